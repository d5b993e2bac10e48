//! A small Redfish service in this process that misbehaves on demand.
//!
//! It speaks HTTP/1.1 on bare sockets, one request for each connection, so that a test can have a
//! connection reset, cut in the middle of a body, or left hanging. Not a general Redfish server:
//! it has a service root, sessions, one or more systems with power and boot override, and entity
//! tags.

mod service;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use service::State;

/// The password that this BMC knows; the user is `root`.
pub const PASSWORD: &str = "correct horse";

/// A fault: what happens to the next requests with this method whose path ends like this.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub method: &'static str,
    pub path: &'static str,
    pub times: u32,
    pub what: What,
}

/// What happens instead of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// This status with this message, and `Retry-After: 0` for 429.
    Status(u16, &'static str),
    /// Nothing; the connection stays open.
    Hang,
    /// 200 with JSON that stops in the middle.
    Garbage,
    /// Fewer bytes than `Content-Length` says.
    Cut,
    /// The connection is reset (RST).
    Reset,
    /// It is carried out, and answered 409.
    DoneButConflict,
}

/// How entity tags are treated on PATCH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tags {
    /// There are none, and `If-Match` gives 412.
    None,
    /// Weak ones, wanted back as they are.
    Required,
    /// The tag changes behind the first two PATCHes.
    MoveTwice,
    /// Weak ones are handed out, strong ones accepted.
    StrongOnly,
    /// They are handed out, and every `If-Match` gives 412.
    NeverAccepted,
}

/// What kind of BMC it is.
#[derive(Debug, Clone)]
pub struct Options {
    pub power: &'static str,
    /// How often the old power state is reported before the new one.
    pub looks_to_change: u32,
    pub reset_types: &'static [&'static str],
    /// The reset types stand in an ActionInfo resource, not in the action.
    pub in_action_info: bool,
    pub systems: &'static [&'static str],
    /// Status of a POST to Sessions when there are none; then basic login works.
    pub no_sessions: Option<u16>,
    pub boot: Value,
    /// Keys (with this value) that give 400 in a PATCH of Boot.
    pub refuses: &'static [(&'static str, Option<&'static str>)],
    /// PATCHes of Boot are answered 204 and forgotten.
    pub drops_boot: bool,
    /// Boot mode that a PATCH without one ends in.
    pub mode_when_left_out: Option<&'static str>,
    pub tags: Tags,
    pub tls: bool,
    /// Where requests for a system are sent instead.
    pub redirects_system_to: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            power: "Off",
            looks_to_change: 0,
            reset_types: &["On", "ForceOff", "ForceRestart"],
            in_action_info: false,
            systems: &["1"],
            no_sessions: None,
            boot: json!({"BootSourceOverrideTarget": "None",
                "BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideMode": "UEFI"}),
            refuses: &[],
            drops_boot: false,
            mode_when_left_out: None,
            tags: Tags::Required,
            tls: false,
            redirects_system_to: None,
        }
    }
}

/// The running service; it stops when dropped.
pub struct Mock {
    port: u16,
    certificate: Option<Vec<u8>>,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Mock {
    /// Starts it on a free port of the loopback interface.
    pub async fn start(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (acceptor, certificate) = if options.tls {
            let (acceptor, certificate) = wire::tls();
            (Some(acceptor), Some(certificate))
        } else {
            (None, None)
        };
        let state = Arc::new(Mutex::new(State::new(options)));
        let server = tokio::spawn(wire::serve(listener, acceptor, state.clone()));
        Self {
            port,
            certificate,
            state,
            server,
        }
    }

    /// Its address, as an inventory has it.
    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("redfish+{scheme}://127.0.0.1:{}", self.port)
    }

    /// SHA-256 of its certificate.
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(self.certificate.as_ref().unwrap()))
    }

    pub fn add(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Faults that have not all happened yet.
    pub fn pending_faults(&self) -> usize {
        self.state()
            .faults
            .iter()
            .filter(|fault| fault.times > 0)
            .count()
    }

    pub fn expire_sessions(&self) {
        self.state().sessions.clear();
    }

    pub fn open_sessions(&self) -> usize {
        self.state().sessions.len()
    }

    /// Requests that were let in by name and password in a header.
    pub fn basic_logins(&self) -> u32 {
        self.state().basic_logins
    }

    /// Reset types that were carried out, in order.
    pub fn resets(&self) -> Vec<String> {
        self.state().resets.clone()
    }

    pub fn power(&self) -> String {
        self.state().power.clone()
    }

    pub fn boot(&self) -> Value {
        self.state().boot.clone()
    }

    /// Requests with this method whose path ends like this.
    pub fn count(&self, method: &str, path: &str) -> u32 {
        let state = self.state();
        let same = |(m, p): &&(String, String)| m == method && p.ends_with(path);
        state
            .requests
            .iter()
            .filter(same)
            .count()
            .try_into()
            .unwrap()
    }

    /// Requests of any kind.
    pub fn total(&self) -> usize {
        self.state().requests.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Installs the TLS provider for this test process, as the binary does in `main`.
pub fn install_provider() {
    // An error means that another test of this process was first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
