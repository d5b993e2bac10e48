//! The client against a Redfish service that is not ours: `sushy-emulator` (PyPI sushy-tools),
//! with its fake driver, over TLS with basic authentication. Its power states follow a command
//! after 1 to 11 seconds, as those of real machines do.

#![allow(clippy::unwrap_used)] // a test that cannot go on ends

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anneal_bmc::{
    BootTarget, Client, Credentials, Endpoint, Error, PowerAction, PowerState, Timing,
};
use sha2::{Digest, Sha256};

const SUSHY_TOOLS: &str = "2.2.0";
const PASSWORD: &str = "correct horse";
const FIRST: &str = "27946b59-9e44-4fa7-8e91-f3527a1ef094";

/// A running emulator; it ends with this value, or with the test process.
struct Emulator {
    child: Child,
    dir: tempfile::TempDir,
    host: String,
    port: u16,
    fingerprint: String,
}

impl Emulator {
    /// Starts it on a free port of the loopback interface and waits until it answers. Its address is
    /// its own, so that nobody takes the port between finding and using it.
    async fn start(systems: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let host = format!("127.77.1.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let venv = venv();
        let dir = tempfile::tempdir().unwrap();
        let fingerprint = certificate(dir.path());
        std::fs::write(dir.path().join("htpasswd"), htpasswd(&venv)).unwrap();
        let port = TcpListener::bind((host.as_str(), 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = dir.path().join("sushy.conf");
        std::fs::write(&config, configuration(dir.path(), systems)).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(venv.join("bin/sushy-emulator"));
        command
            .arg("--config")
            .arg(&config)
            .args(["--interface", &host, "--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        // SAFETY: between fork and exec only this call is made; prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // It dies with the thread that started it, also when the test is killed.
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().expect("sushy-emulator does not start");
        let mut emulator = Self {
            child,
            dir,
            host,
            port,
            fingerprint,
        };
        emulator.wait_until_it_answers().await;
        emulator
    }

    async fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect((self.host.as_str(), self.port)).is_err() {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "sushy-emulator ended: {ended:?}\n{}",
                self.log()
            );
            assert!(
                Instant::now() < deadline,
                "sushy-emulator is silent\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn client(&self, path: &str, password: &str, pin: &str) -> Client {
        let url = format!("redfish+https://{}:{}{path}", self.host, self.port);
        let endpoint = Endpoint::parse(&url, Some(pin)).unwrap();
        let credentials = Credentials::new("root", password.to_owned());
        let timing = Timing {
            poll: Duration::from_millis(200),
            ..Timing::default()
        };
        Client::new(endpoint, credentials, timing).unwrap()
    }

    /// What it has, as another client sees it.
    async fn seen(&self, pointer: &str) -> String {
        let output = Command::new("curl")
            .args(["-sk", "--noproxy", "*"])
            .args(["-u", &format!("root:{PASSWORD}")])
            .arg(format!(
                "https://{}:{}/redfish/v1/Systems/{FIRST}",
                self.host, self.port
            ))
            .output()
            .expect("curl is missing: run `make setup`");
        let system: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        system
            .pointer(pointer)
            .and_then(|found| found.as_str())
            .unwrap_or_default()
            .to_owned()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn powers_and_boots_a_machine_that_has_real_delays() {
    let emulator = Emulator::start(&[(FIRST, "r1n1")]).await;
    let mut bmc = emulator.client("", PASSWORD, &emulator.fingerprint);
    assert_eq!(bmc.power_state().await.unwrap(), PowerState::Off);

    bmc.boot_once(BootTarget::Pxe).await.unwrap();
    assert_eq!(emulator.seen("/Boot/BootSourceOverrideTarget").await, "Pxe");
    assert_eq!(emulator.seen("/Boot/BootSourceOverrideMode").await, "UEFI");

    bmc.power(PowerAction::On).await.unwrap();
    assert_eq!(emulator.seen("/PowerState").await, "On");
    bmc.power(PowerAction::Cycle).await.unwrap();
    assert_eq!(bmc.power_state().await.unwrap(), PowerState::On);
    bmc.power(PowerAction::Off).await.unwrap();
    assert_eq!(emulator.seen("/PowerState").await, "Off");

    bmc.boot_once(BootTarget::UefiHttp).await.unwrap();
    bmc.boot_once(BootTarget::Hdd).await.unwrap();
    assert_eq!(emulator.seen("/Boot/BootSourceOverrideTarget").await, "Hdd");
    bmc.logout().await;
}

#[tokio::test]
async fn refuses_to_guess_and_finds_a_system_by_name() {
    let second = "27946b59-9e44-4fa7-8e91-f3527a1ef095";
    let emulator = Emulator::start(&[(FIRST, "r1n1"), (second, "r1n2")]).await;
    let pin = &emulator.fingerprint;
    let error = emulator
        .client("", PASSWORD, pin)
        .power_state()
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::AmbiguousSystem { systems } if systems.len() == 2),
        "{error}"
    );
    assert!(error.to_string().contains(second), "{error}");
    for id in [second, "r1n2"] {
        let mut bmc = emulator.client(&format!("/redfish/v1/Systems/{id}"), PASSWORD, pin);
        let state = bmc.power_state().await;
        assert_eq!(state.unwrap(), PowerState::Off, "{id}");
    }
}

#[tokio::test]
async fn refuses_a_wrong_password_and_another_certificate() {
    let emulator = Emulator::start(&[(FIRST, "r1n1")]).await;
    let pin = &emulator.fingerprint;
    let error = emulator
        .client("", "battery staple", pin)
        .power_state()
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Credentials { status: 401 }),
        "{error:?}"
    );
    let other = "ab".repeat(32);
    let error = emulator
        .client("", PASSWORD, &other)
        .power_state()
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
}

/// The Python environment of the virtual rack, made here if `make setup` has not been run.
fn venv() -> PathBuf {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/venv");
    let emulator = venv.join("bin/sushy-emulator");
    // Tests run at the same time, and cargo may run other packages that need it too.
    std::fs::create_dir_all(venv.parent().unwrap()).unwrap();
    let lock = File::create(venv.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !emulator.exists() {
        let run = |command: &mut Command| {
            let done = command.stdin(Stdio::null()).status();
            assert!(
                done.is_ok_and(|status| status.success()),
                "cannot make {}: run `make setup`, which installs python3-venv and sushy-tools",
                venv.display()
            );
        };
        // Debian's Python: python3-libvirt belongs to it, and the virtual rack uses this too.
        run(Command::new("/usr/bin/python3")
            .args(["-m", "venv", "--system-site-packages"])
            .arg(&venv));
        run(Command::new(venv.join("bin/pip")).args([
            "install",
            "-q",
            &format!("sushy-tools=={SUSHY_TOOLS}"),
        ]));
    }
    venv
}

/// A self-signed certificate and key for the emulator; gives the fingerprint.
fn certificate(dir: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    hex::encode(Sha256::digest(made.cert.der()))
}

/// The emulator takes bcrypt only; it brings the library.
fn htpasswd(venv: &Path) -> String {
    let script = format!(
        "import bcrypt; print('root:' + bcrypt.hashpw(b'{PASSWORD}', bcrypt.gensalt(4)).decode())"
    );
    let output = Command::new(venv.join("bin/python"))
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn configuration(dir: &Path, systems: &[(&str, &str)]) -> String {
    let dir = dir.display();
    let systems: Vec<String> = systems
        .iter()
        .map(|(uuid, name)| {
            format!("{{'uuid': '{uuid}', 'name': '{name}', 'power_state': 'Off', 'nics': []}}")
        })
        .collect();
    format!(
        "SUSHY_EMULATOR_FAKE_DRIVER = True\n\
         SUSHY_EMULATOR_FAKE_SYSTEMS = [{}]\n\
         SUSHY_EMULATOR_STATE_DIR = '{dir}'\n\
         SUSHY_EMULATOR_AUTH_FILE = '{dir}/htpasswd'\n\
         SUSHY_EMULATOR_SSL_CERT = '{dir}/cert.pem'\n\
         SUSHY_EMULATOR_SSL_KEY = '{dir}/key.pem'\n",
        systems.join(", ")
    )
}
