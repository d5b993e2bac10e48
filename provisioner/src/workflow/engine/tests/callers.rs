//! Who ends a wait for the installed system, and when it is listened to.

use super::*;
use crate::workflow::caller::Caller;

/// The agent has left at 61 s; the run waits as `with` says once the machine is seen.
fn left(with: &str) -> Snapshot {
    let text = INSTALL.replace(
        "wait-phone-home,",
        &format!("wait-phone-home, with: {with},"),
    );
    let mut s = snapshot(&text);
    settle_down(&mut s, at(0));
    for idx in 0..2 {
        s.steps[idx].state = StepState::Succeeded;
    }
    hello(&mut s, "b1", at(10));
    s.steps[2].state = StepState::Leaving;
    s.steps[2].attempt = 1;
    s.steps[2].attempt_at = Some(at(60));
    s.steps[2].scratch.left_at = Some(at(61));
    s.steps[2].deadline = Some(at(360));
    s
}

fn waits(with: &str) -> Snapshot {
    let mut s = left(with);
    see(
        &mut s,
        kind::BOOT_SCRIPT,
        at(70),
        serde_json::json!({ "target": "disk" }),
    );
    settle_down(&mut s, at(70));
    assert_eq!(s.current(), Some(3), "{s:?}");
    s
}

#[test]
fn only_whom_the_step_names_ends_it() {
    let all = [
        ("token", Caller::Token),
        ("talos", Caller::Talos),
        ("kairos", Caller::Kairos),
    ];
    for (word, by) in all {
        for (_, other) in all {
            let mut s = waits(&format!("{{ by: {word} }}"));
            assert_eq!(listens_to(&s), Ok(Some(by)));
            let said = serde_json::json!({ "hostname": "r1n1" });
            see(&mut s, other.says(), at(100), said);
            settle_down(&mut s, at(100));
            assert_eq!(
                s.run.state == RunState::Succeeded,
                by == other,
                "{word} {other:?}"
            );
        }
        let mut s = waits(&format!("{{ by: {word} }}"));
        see(&mut s, by.says(), at(50), serde_json::json!({}));
        settle_down(&mut s, at(100));
        assert_eq!(
            s.run.state,
            RunState::Running,
            "said before it was installed"
        );
        settle_down(&mut s, at(2_000));
        assert!(s.run.reason.contains(by.missed()), "{}", s.run.reason);
    }
}

#[test]
fn listens_from_the_moment_the_machine_leaves() {
    let mut s =
        snapshot(&INSTALL.replace("wait-phone-home,", "wait-phone-home, with: { by: talos },"));
    settle_down(&mut s, at(0));
    assert_eq!(
        listens_to(&s),
        Err(Caller::Talos),
        "an older system may still run"
    );
    assert_eq!(listens_to(&left("{ by: talos }")), Ok(Some(Caller::Talos)));
    let mut over = waits("{ by: talos }");
    over.run.state = RunState::Failed;
    assert_eq!(listens_to(&over), Ok(None));
    // What it says on its way is also a sign that it left.
    let mut s = left("{ by: talos }");
    see(&mut s, kind::TALOS_EVENT, at(90), serde_json::json!({}));
    settle_down(&mut s, at(90));
    assert_eq!(s.steps[2].state, StepState::Succeeded);
}

#[test]
fn the_api_port_is_looked_at_when_half_the_time_went_by_in_silence() {
    let with = "{ by: talos, fallback: api-port }";
    let mut s = waits(with);
    let Decision::Wait(waiting) = settle_down(&mut s, at(71)) else {
        panic!("waits for events first")
    };
    // 15 minutes from the 70th second.
    assert_eq!(waiting.look_at, Some(at(70 + 450)));
    let Decision::Act(command) = settle_down(&mut s, at(70 + 450)) else {
        panic!("looks")
    };
    assert_eq!(command.act, Act::LookApi);
    assert_eq!(settle(&s, command, &Done::NotYet, at(521)), None);
    // Whatever it sent, it can send.
    for said in [kind::TALOS_EVENT, kind::TALOS_ADDRESS, kind::TALOS_STATUS] {
        let mut talks = waits(with);
        see(&mut talks, said, at(100), serde_json::json!({}));
        let decided = settle_down(&mut talks, at(70 + 450));
        assert!(matches!(decided, Decision::Wait(_)), "{said}");
    }
    let mut talks = s.clone();
    let status = serde_json::json!({ "said": "running, not ready: etcd: not healthy" });
    see(&mut talks, kind::TALOS_STATUS, at(530), status);
    let Decision::Wait(waiting) = settle_down(&mut talks, at(540)) else {
        panic!("a sink that works is believed")
    };
    assert!(
        waiting
            .what
            .ends_with("(it says: running, not ready: etcd: not healthy)")
    );
    see(
        &mut s,
        kind::TALOS_READY,
        at(540),
        serde_json::json!({ "evidence": "api-port" }),
    );
    settle_down(&mut s, at(540));
    assert_eq!(s.run.state, RunState::Succeeded);
    let mut without = waits("{ by: talos }");
    assert!(matches!(
        settle_down(&mut without, at(800)),
        Decision::Wait(_)
    ));
}

/// The agent wrote an image of this version, left, and the node said something.
fn called(os_version: Option<&str>, said: serde_json::Value) -> Snapshot {
    let mut s = waits("{ by: token }");
    s.plan.image.as_mut().unwrap().os_version = os_version.map(str::to_owned);
    see(&mut s, kind::PHONE_HOME, at(100), said);
    settle_down(&mut s, at(100));
    s
}

#[test]
fn a_node_that_runs_another_version_than_was_installed_is_no_success() {
    let fell_back = serde_json::json!({ "hostname": "r1n1", "image_version": "1" });
    let s = called(Some("2"), fell_back.clone());
    let reason = "the installed image debian@12 says version 2, the node runs 1";
    assert_eq!(
        (s.run.state, s.run.reason.as_str()),
        (
            RunState::Failed,
            &*format!("step `wait-phone-home` failed: {reason}")
        )
    );
    let output = s.steps[3].output.as_ref().unwrap();
    assert_eq!(output["installed_version"], "2", "{output}");
    assert_eq!(output["image_version"], "1", "{output}");
    // Again is the same: the node has said what it runs.
    let mut again = s.clone();
    apply(&mut again, reopen(&s, at(200)).unwrap());
    settle_down(&mut again, at(200));
    assert_eq!(
        (again.run.state, again.run.reason),
        (s.run.state, s.run.reason)
    );

    for (os_version, said) in [
        (Some("1"), fell_back.clone()),
        (None, fell_back.clone()),
        (Some("2"), serde_json::json!({ "hostname": "r1n1" })),
    ] {
        let s = called(os_version, said);
        assert_eq!(s.run.state, RunState::Succeeded, "{}", s.run.reason);
        assert!(s.steps[3].output.as_ref().unwrap()["installed_version"].is_null());
    }
    // A run that wrote nothing has no opinion.
    let mut s = waits("{ by: token }");
    s.plan.image.as_mut().unwrap().os_version = Some("2".to_owned());
    s.steps[1].state = StepState::Skipped;
    see(&mut s, kind::PHONE_HOME, at(100), fell_back);
    settle_down(&mut s, at(100));
    assert_eq!(s.run.state, RunState::Succeeded);
}

#[test]
fn another_version_is_told_and_a_step_may_allow_it() {
    let mut s = waits("{ by: token }");
    s.plan.image.as_mut().unwrap().os_version = Some("2".to_owned());
    s.plan.workflow.steps[3].continue_on_error = true;
    let said = serde_json::json!({ "version": "1", "os": "Debian" });
    see(&mut s, kind::PHONE_HOME, at(100), said);
    let Decision::Change(change) = decide(&s, at(100)) else {
        panic!("nothing happened")
    };
    let events = crate::workflow::record::events(&s, &change);
    let told: Vec<_> = events.iter().map(|event| &*event.kind).collect();
    assert_eq!(told, ["step.failed", kind::OTHER_VERSION]);
    let reason = "the installed image debian@12 says version 2, the node runs 1";
    assert_eq!(events[1].message, reason);
    assert_eq!(events[1].data["installed_version"], "2");
    apply(&mut s, *change);
    let Decision::Change(last) = decide(&s, at(101)) else {
        panic!("the run goes on")
    };
    let machine = machine_change(&s, &last, at(101)).unwrap();
    assert_eq!(machine.state, MachineState::Provisioned);
    assert_eq!(machine.node.unwrap()["installed_version"], "2");
    assert_eq!(last.run.state, RunState::Succeeded);
    assert!(last.run.reason.contains(reason), "{}", last.run.reason);
}
