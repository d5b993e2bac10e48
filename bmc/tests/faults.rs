//! The client against a BMC that fails on demand.
//!
//! The server here is a mock, because no real BMC and no emulator can be made to answer 500 at the
//! second request, break the connection or change its certificate. What it does otherwise follows
//! DSP0266. `sushy.rs` runs the same client against a Redfish service that is not ours.

#![allow(clippy::unwrap_used)] // a test that cannot go on ends

mod mock;

use std::time::Duration;

use anneal_bmc::{
    BootTarget, Client, Credentials, Endpoint, Error, PowerAction, PowerState, Timing,
};
use mock::{Fault, Mock, Options, Tags, What};
use serde_json::json;

const PASSWORD: &str = mock::PASSWORD;

fn timing() -> Timing {
    Timing {
        connect: Duration::from_secs(5),
        request: Duration::from_secs(30),
        attempts: 4,
        backoff: Duration::from_millis(5),
        longest_backoff: Duration::from_millis(50),
        poll: Duration::from_millis(5),
        power: Duration::from_secs(30),
        settle: Duration::from_millis(5),
    }
}

fn client_at(url: &str, password: &str, pin: Option<&str>, timing: Timing) -> Client {
    mock::install_provider();
    let endpoint = Endpoint::parse(url, pin).unwrap();
    let credentials = Credentials::new("root", password.to_owned());
    Client::new(endpoint, credentials, timing).unwrap()
}

fn client(mock: &Mock) -> Client {
    client_at(&mock.url(), PASSWORD, None, timing())
}

/// Every error of a test must be free of the password, in both renderings.
fn checked(error: Error) -> Error {
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(PASSWORD), "{shown}");
    error
}

const PASSING: [What; 7] = [
    What::Status(500, "data sources are unavailable"),
    What::Status(409, "resource in use"),
    What::Status(503, "starting"),
    What::Hang,
    What::Garbage,
    What::Cut,
    What::Reset,
];

/// Hangs are awaited in full, so they get a short limit where they are meant. Not too short: what was
/// carried out and is answered later is sent again.
fn patience(what: What) -> Timing {
    let request = match what {
        What::Hang => Duration::from_secs(2),
        _ => timing().request,
    };
    Timing {
        request,
        ..timing()
    }
}

#[tokio::test]
async fn gets_over_faults_that_pass() {
    let places = [
        ("GET", "/Systems/1"),
        ("POST", "/Actions/ComputerSystem.Reset"),
        ("POST", "/Sessions"),
    ];
    for what in PASSING {
        for (method, path) in places {
            if what == What::Garbage && method == "POST" {
                continue; // what a POST answers with 200 is not looked at
            }
            let mock = Mock::start(Options {
                power: "On",
                ..Options::default()
            })
            .await;
            mock.add(Fault {
                method,
                path,
                times: 2,
                what,
            });
            let mut bmc = client_at(&mock.url(), PASSWORD, None, patience(what));
            bmc.power(PowerAction::Cycle)
                .await
                .unwrap_or_else(|error| panic!("{what:?} at {method} {path}: {error:?}"));
            assert_eq!(mock.pending_faults(), 0, "{what:?} at {method} {path}");
            assert_eq!(bmc.power_state().await.unwrap(), PowerState::On);
            assert_eq!(
                mock.resets(),
                ["ForceOff", "On"],
                "{what:?} at {method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn reports_faults_that_stay_and_stops() {
    for what in PASSING {
        let mock = Mock::start(Options::default()).await;
        mock.add(Fault {
            method: "GET",
            path: "/Systems/1",
            times: u32::MAX,
            what,
        });
        let mut bmc = client_at(&mock.url(), PASSWORD, None, patience(what));
        let error = checked(bmc.power_state().await.unwrap_err());
        assert!(error.retryable(), "{what:?}: {error}");
        let says = match what {
            What::Status(status, text) => {
                format!("GET /redfish/v1/Systems/1: HTTP {status}: {text}")
            }
            What::Hang => "GET /redfish/v1/Systems/1: no answer within 2 s".to_owned(),
            What::Garbage => "/redfish/v1/Systems/1: not JSON".to_owned(),
            _ => "GET /redfish/v1/Systems/1: no answer".to_owned(),
        };
        assert!(error.to_string().contains(&says), "{what:?}: {error}");
        assert_eq!(
            mock.count("GET", "/Systems/1"),
            timing().attempts,
            "{what:?}"
        );
    }
}

#[tokio::test]
async fn retries_sooner_when_the_bmc_says_so() {
    let mock = Mock::start(Options::default()).await;
    mock.add(Fault {
        method: "GET",
        path: "/Systems/1",
        times: 2,
        // The mock adds `Retry-After: 0`: with the pause below, the test would time out.
        what: What::Status(429, "slow down"),
    });
    let slow = Timing {
        backoff: Duration::from_secs(3600),
        longest_backoff: Duration::from_secs(3600),
        ..timing()
    };
    let mut bmc = client_at(&mock.url(), PASSWORD, None, slow);
    let state = tokio::time::timeout(Duration::from_secs(60), bmc.power_state());
    assert_eq!(state.await.unwrap().unwrap(), PowerState::Off);
}

#[tokio::test]
async fn logs_in_again_once_when_the_session_is_gone() {
    let mock = Mock::start(Options::default()).await;
    let mut bmc = client(&mock);
    bmc.power_state().await.unwrap();
    mock.expire_sessions();
    assert_eq!(bmc.power_state().await.unwrap(), PowerState::Off);
    assert_eq!(mock.count("POST", "/Sessions"), 2);
    assert_eq!(
        mock.basic_logins(),
        0,
        "a session that worked is never replaced by basic"
    );
    bmc.logout().await;
    assert_eq!(mock.open_sessions(), 0);
}

#[tokio::test]
async fn gives_up_when_every_session_is_refused() {
    let mock = Mock::start(Options::default()).await;
    mock.add(Fault {
        method: "GET",
        path: "/Systems",
        times: u32::MAX,
        what: What::Status(401, "go away"),
    });
    let error = checked(client(&mock).power_state().await.unwrap_err());
    assert!(matches!(error, Error::Credentials { .. }), "{error:?}");
    assert_eq!(mock.count("POST", "/Sessions"), 2);
}

#[tokio::test]
async fn uses_basic_where_there_are_no_sessions_and_repeats_one_401() {
    for no_sessions in [404, 405, 501] {
        let mock = Mock::start(Options {
            no_sessions: Some(no_sessions),
            ..Options::default()
        })
        .await;
        mock.add(Fault {
            method: "GET",
            path: "/Systems/1",
            times: 1,
            what: What::Status(401, "try again"),
        });
        assert_eq!(client(&mock).power_state().await.unwrap(), PowerState::Off);
        assert!(mock.basic_logins() > 0);
        assert_eq!(mock.pending_faults(), 0);
    }
}

#[tokio::test]
async fn sends_a_wrong_password_once() {
    let mock = Mock::start(Options::default()).await;
    let mut bmc = client_at(&mock.url(), "battery staple", None, timing());
    let error = bmc.power_state().await.unwrap_err();
    assert!(
        matches!(error, Error::Credentials { status: 401 }),
        "{error:?}"
    );
    assert!(!error.retryable());
    let shown = format!("{error} {error:?} {bmc:?}");
    assert!(
        !shown.contains("battery"),
        "the mock repeats what it got: {shown}"
    );
    assert_eq!(mock.count("POST", "/Sessions"), 1);
    assert_eq!(mock.basic_logins(), 0);
}

#[tokio::test]
async fn waits_for_a_slow_power_state() {
    let mock = Mock::start(Options {
        power: "On",
        looks_to_change: 5,
        ..Options::default()
    })
    .await;
    let mut bmc = client(&mock);
    bmc.power(PowerAction::Cycle).await.unwrap();
    assert_eq!(mock.resets(), ["ForceOff", "On"]);
    assert_eq!(mock.power(), "On");
}

#[tokio::test]
async fn reports_a_power_state_that_never_comes() {
    let mock = Mock::start(Options {
        looks_to_change: u32::MAX,
        ..Options::default()
    })
    .await;
    let impatient = Timing {
        power: Duration::from_millis(500),
        ..timing()
    };
    let mut bmc = client_at(&mock.url(), PASSWORD, None, impatient);
    let error = bmc.power(PowerAction::On).await.unwrap_err();
    let want = "power did not become On within 0.5 s: the BMC still reports Off";
    assert_eq!(error.to_string(), want);
    assert!(error.retryable());
}

#[tokio::test]
async fn restarts_where_off_is_not_offered_and_reads_action_info() {
    for in_action_info in [false, true] {
        let mock = Mock::start(Options {
            power: "On",
            reset_types: &["On", "PowerCycle", "ForceRestart"],
            in_action_info,
            ..Options::default()
        })
        .await;
        client(&mock).power(PowerAction::Cycle).await.unwrap();
        assert_eq!(mock.resets(), ["PowerCycle"], "{in_action_info}");
    }
}

#[tokio::test]
async fn a_conflict_is_fine_when_the_machine_is_there_already() {
    let mock = Mock::start(Options::default()).await;
    mock.add(Fault {
        method: "POST",
        path: "/Actions/ComputerSystem.Reset",
        times: u32::MAX,
        what: What::DoneButConflict,
    });
    client(&mock).power(PowerAction::On).await.unwrap();
    assert_eq!(mock.power(), "On");
}

#[tokio::test]
async fn asks_which_system_is_meant() {
    let options = Options {
        systems: &["DGX", "HGX_Baseboard_0"],
        ..Options::default()
    };
    let mock = Mock::start(options.clone()).await;
    let error = client(&mock).power_state().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "this BMC has 2 systems (/redfish/v1/Systems/DGX, /redfish/v1/Systems/HGX_Baseboard_0); \
         name one in the URL, as in redfish+https://host/redfish/v1/Systems/DGX"
    );
    assert!(!error.retryable());
    let named = format!("{}/redfish/v1/Systems/HGX_Baseboard_0", mock.url());
    let mut bmc = client_at(&named, PASSWORD, None, timing());
    assert_eq!(bmc.power_state().await.unwrap(), PowerState::Off);
    assert_eq!(mock.count("GET", "/Systems/DGX"), 0);

    let none = Mock::start(Options {
        systems: &[],
        ..options
    })
    .await;
    let error = client(&none).power_state().await.unwrap_err();
    assert!(matches!(error, Error::NoSystem(_)), "{error:?}");
}

#[tokio::test]
async fn sets_the_boot_device_in_the_form_that_the_bmc_takes() {
    let boot = json!({"BootSourceOverrideTarget": "None",
        "BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideMode": "Legacy"});
    for refuses in [
        &[][..],
        &[("BootSourceOverrideEnabled", Some("Once"))],
        &[("BootSourceOverrideMode", None)],
    ] {
        let mock = Mock::start(Options {
            boot: boot.clone(),
            refuses,
            ..Options::default()
        })
        .await;
        client(&mock).boot_once(BootTarget::Pxe).await.unwrap();
        let now = mock.boot();
        assert_eq!(now["BootSourceOverrideTarget"], "Pxe", "{refuses:?}");
        assert_eq!(now["BootSourceOverrideMode"], "Legacy", "{refuses:?}");
        assert_ne!(now["BootSourceOverrideEnabled"], "Disabled", "{refuses:?}");
    }
}

#[tokio::test]
async fn keeps_the_boot_mode_of_a_bmc_that_resets_it() {
    let mock = Mock::start(Options {
        boot: json!({"BootSourceOverrideTarget": "None", "BootSourceOverrideMode": "Legacy"}),
        mode_when_left_out: Some("UEFI"),
        ..Options::default()
    })
    .await;
    client(&mock).boot_once(BootTarget::Pxe).await.unwrap();
    assert_eq!(mock.boot()["BootSourceOverrideMode"], "Legacy");
}

#[tokio::test]
async fn notices_a_boot_device_that_was_accepted_and_dropped() {
    let mock = Mock::start(Options {
        drops_boot: true,
        ..Options::default()
    })
    .await;
    let error = client(&mock).boot_once(BootTarget::Pxe).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the BMC accepted boot device Pxe but reports None"
    );
    assert_eq!(mock.boot()["BootSourceOverrideTarget"], "None");
}

#[tokio::test]
async fn keeps_up_with_entity_tags() {
    for tags in [
        Tags::None,
        Tags::Required,
        Tags::MoveTwice,
        Tags::StrongOnly,
        Tags::NeverAccepted,
    ] {
        let mock = Mock::start(Options {
            tags,
            ..Options::default()
        })
        .await;
        client(&mock)
            .boot_once(BootTarget::Hdd)
            .await
            .unwrap_or_else(|error| panic!("{tags:?}: {error:?}"));
        assert_eq!(mock.boot()["BootSourceOverrideTarget"], "Hdd", "{tags:?}");
    }
}

#[tokio::test]
async fn talks_only_to_the_pinned_certificate() {
    let mock = Mock::start(Options {
        tls: true,
        ..Options::default()
    })
    .await;
    let good = mock.fingerprint();
    let make = |pin: Option<&str>| client_at(&mock.url(), PASSWORD, pin, timing());
    assert_eq!(
        make(Some(&good)).power_state().await.unwrap(),
        PowerState::Off
    );
    let before = mock.total();
    assert!(before > 0);

    let other = "00".repeat(32);
    let error = checked(make(Some(&other)).power_state().await.unwrap_err());
    let Error::Certificate { expected, got } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((expected, got), (&other, &good));
    assert!(error.to_string().contains(&good), "{error}");
    assert!(!error.retryable());

    let error = checked(make(None).power_state().await.unwrap_err());
    assert!(
        matches!(error, Error::Unreachable { .. }),
        "no system CA signed it: {error:?}"
    );
    assert_eq!(
        mock.total(),
        before,
        "no request reached a BMC that was not trusted"
    );
}

#[tokio::test]
async fn sends_credentials_to_no_other_host() {
    let elsewhere = Mock::start(Options::default()).await;
    let target = elsewhere.url().replace("redfish+", "") + "/redfish/v1/Systems/1";
    let mock = Mock::start(Options {
        redirects_system_to: Some(target),
        ..Options::default()
    })
    .await;
    let error = client(&mock).power_state().await.unwrap_err();
    assert!(
        matches!(error, Error::Refused { status: 307, .. }),
        "{error:?}"
    );
    assert_eq!(elsewhere.total(), 0);
}
