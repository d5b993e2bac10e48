//! The real [`BmcControl`]: Redfish clients, one for each BMC, kept as long as their credentials
//! hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anneal_bmc::{BootTarget, Client, Credentials, Endpoint, Error, Timing};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::password::{PasswordDirs, PasswordError};
use super::{BmcControl, BmcFailure, BmcFuture, BootDevice, PowerAction, PowerState};
use crate::machine::Bmc;

/// Talks to every BMC of the inventory, to each one request at a time.
#[derive(Debug, Default)]
pub struct BmcPool {
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    passwords: PasswordDirs,
}

/// The queue of one BMC: who holds the lock talks to it.
type Slot = tokio::sync::Mutex<Option<Held>>;

/// A client, and what it was made from: when the inventory or the password changes, it goes.
#[derive(Debug)]
struct Held {
    endpoint: Endpoint,
    credentials: Credentials,
    client: Client,
}

/// Why an operation did not happen, before it is told to the engine.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Bmc(#[from] Error),
}

impl BmcPool {
    /// A pool with timing that suits slow BMCs, which reads passwords from these directories.
    #[must_use]
    pub fn new(passwords: PasswordDirs) -> Self {
        Self {
            passwords,
            ..Self::default()
        }
    }

    /// Gives the sessions back; call it once, when the daemon stops. BMCs have few of them, and
    /// keep those of a killed daemon until they expire.
    pub async fn close(&self) {
        let slots: Vec<Arc<Slot>> = self.slots().drain().map(|(_, slot)| slot).collect();
        let logouts = slots.iter().map(|slot| async {
            if let Some(mut held) = slot.lock().await.take() {
                held.client.logout().await;
            }
        });
        futures_util::future::join_all(logouts).await;
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, bmc: &Bmc) -> Arc<Slot> {
        self.slots().entry(bmc.url.clone()).or_default().clone()
    }

    /// Asks a BMC, when everybody before has been answered.
    async fn ask<T>(
        &self,
        bmc: &Bmc,
        question: impl for<'c> FnOnce(&'c mut Client) -> BoxFuture<'c, Result<T, Error>> + Send,
    ) -> Result<T, BmcFailure> {
        let slot = self.slot(bmc);
        let mut held = slot.lock().await;
        let done = async { Ok(question(self.client(bmc, &mut held).await?).await?) };
        done.await.map_err(|failure| told(bmc, &failure))
    }

    /// The client for a BMC, made anew when its description or password changed.
    async fn client<'a>(
        &self,
        bmc: &Bmc,
        held: &'a mut Option<Held>,
    ) -> Result<&'a mut Client, Failure> {
        let endpoint = Endpoint::parse(&bmc.url, bmc.tls_sha256.as_deref())?;
        let password = self.passwords.read(&bmc.password_file).await?;
        let credentials = Credentials::new(bmc.username.as_str(), password);
        let stale =
            held.take_if(|held| held.endpoint != endpoint || held.credentials != credentials);
        if let Some(mut stale) = stale {
            stale.client.logout().await;
        }
        if held.is_none() {
            *held = Some(Held {
                client: Client::new(endpoint.clone(), credentials.clone(), Timing::default())?,
                endpoint,
                credentials,
            });
        }
        let held = held.as_mut();
        Ok(&mut held.expect("invariant: filled above").client)
    }
}

impl BmcControl for BmcPool {
    fn power<'a>(&'a self, bmc: &'a Bmc, action: PowerAction) -> BmcFuture<'a, ()> {
        Box::pin(self.ask(bmc, move |client| client.power(action.into()).boxed()))
    }

    fn power_state<'a>(&'a self, bmc: &'a Bmc) -> BmcFuture<'a, PowerState> {
        let state = self.ask(bmc, |client| client.power_state().boxed());
        Box::pin(async move { Ok(state.await?.into()) })
    }

    fn boot_once<'a>(&'a self, bmc: &'a Bmc, device: BootDevice) -> BmcFuture<'a, ()> {
        Box::pin(self.ask(bmc, move |client| client.boot_once(device.into()).boxed()))
    }
}

/// The whole chain in one message, for events and for `machine show`.
fn told(bmc: &Bmc, failure: &Failure) -> BmcFailure {
    let mut message = failure.to_string();
    let mut source = std::error::Error::source(failure);
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    BmcFailure {
        url: without_userinfo(&bmc.url),
        message,
        retryable: matches!(failure, Failure::Bmc(error) if error.retryable()),
    }
}

/// A URL that carries a password is refused; the refusal must not repeat it.
fn without_userinfo(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

impl From<PowerAction> for anneal_bmc::PowerAction {
    fn from(action: PowerAction) -> Self {
        match action {
            PowerAction::On => Self::On,
            PowerAction::Off => Self::Off,
            PowerAction::Cycle => Self::Cycle,
        }
    }
}

impl From<anneal_bmc::PowerState> for PowerState {
    fn from(state: anneal_bmc::PowerState) -> Self {
        match state {
            anneal_bmc::PowerState::On => Self::On,
            anneal_bmc::PowerState::Off => Self::Off,
        }
    }
}

impl From<BootDevice> for BootTarget {
    fn from(device: BootDevice) -> Self {
        match device {
            BootDevice::Pxe => Self::Pxe,
            BootDevice::UefiHttp => Self::UefiHttp,
            BootDevice::Disk => Self::Hdd,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::AsyncReadExt;

    use super::*;

    /// A pool that reads passwords from the directory of `file`.
    fn pool(file: &Path) -> BmcPool {
        BmcPool::new(PasswordDirs::new(vec![file.parent().unwrap().to_owned()]))
    }

    fn bmc(url: &str, password_file: &Path) -> Bmc {
        Bmc {
            url: url.to_owned(),
            username: "root".to_owned(),
            password_file: password_file.to_owned(),
            tls_sha256: None,
        }
    }

    #[tokio::test]
    async fn names_the_password_file_that_is_missing_or_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let missing = bmc("redfish+http://127.0.0.1:1", &dir.path().join("r1n1"));
        let failure = pool(&missing.password_file)
            .power_state(&missing)
            .await
            .unwrap_err();
        assert!(!failure.retryable);
        let path = missing.password_file.display();
        assert!(
            failure.message.contains(&format!("password from {path}")),
            "{failure}"
        );
        assert!(failure.message.contains("No such file"), "{failure}");
        for (contents, problem) in [
            ("", "empty"),
            ("\n", "empty"),
            ("a\nb\n", "not a single line"),
        ] {
            std::fs::write(&missing.password_file, contents).unwrap();
            let failure = pool(&missing.password_file)
                .power_state(&missing)
                .await
                .unwrap_err();
            assert!(failure.message.contains(problem), "{failure}");
        }
    }

    #[tokio::test]
    async fn refuses_ipmi_and_never_repeats_a_password() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "pw").unwrap();
        let pool = pool(file.path());
        let ipmi = pool.power_state(&bmc("ipmi://10.0.0.1", file.path())).await;
        assert!(ipmi.unwrap_err().message.contains("IPMI is not supported"));
        let leaky = bmc("redfish+https://root:hunter2@10.0.0.1", file.path());
        let failure = pool.power_state(&leaky).await.unwrap_err();
        assert!(!failure.retryable);
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }

    /// What a BMC saw.
    #[derive(Default)]
    struct Seen {
        /// Requests that are not answered yet, and the most of them at the same time.
        open: usize,
        most: usize,
        /// Requests.
        all: usize,
        /// Sessions that were deleted.
        given_back: usize,
    }

    /// A BMC that answers every request after the client had time to send another one.
    async fn slow_bmc(listener: tokio::net::TcpListener, seen: Arc<Mutex<Seen>>) {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            connections.spawn(async move {
                {
                    let mut seen = seen.lock().unwrap();
                    seen.open += 1;
                    seen.most = seen.most.max(seen.open);
                    seen.all += 1;
                }
                answer(stream, &seen).await
            });
        }
    }

    async fn answer(mut stream: tokio::net::TcpStream, seen: &Mutex<Seen>) -> std::io::Result<()> {
        use tokio::io::AsyncWriteExt;
        let mut request = [0; 4096];
        let length = stream.read(&mut request).await?;
        let request = String::from_utf8_lossy(&request[..length]);
        let line = request.lines().next().unwrap_or_default();
        if line.starts_with("POST /redfish/v1/SessionService/Sessions ") {
            let session = "HTTP/1.1 201 x\r\nX-Auth-Token: t\r\nLocation: /sessions/7\r\n";
            let answer = format!("{session}Content-Length: 2\r\n\r\n{{}}");
            seen.lock().unwrap().open -= 1;
            return stream.write_all(answer.as_bytes()).await;
        }
        if line.starts_with("DELETE /sessions/7 ") {
            seen.lock().unwrap().given_back += 1;
        }
        let (status, body) = match request.split(' ').nth(1) {
            Some("/redfish/v1/") => (200, r#"{"Systems": {"@odata.id": "/s"}}"#),
            Some("/s") => (200, r#"{"Members": [{"@odata.id": "/s/1"}]}"#),
            Some("/s/1") => (200, r#"{"PowerState": "On"}"#),
            _ => (404, "{}"),
        };
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        seen.lock().unwrap().open -= 1;
        let length = body.len();
        let text = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await
    }

    #[tokio::test]
    async fn a_bmc_gets_one_request_at_a_time() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redfish+http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Seen>>::default();
        let server = tokio::spawn(slow_bmc(listener, seen.clone()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "pw").unwrap();
        let (pool, bmc) = (pool(file.path()), bmc(&url, file.path()));
        let states = (0..8).map(|_| pool.power_state(&bmc));
        for state in futures_util::future::join_all(states).await {
            assert_eq!(state.unwrap(), PowerState::On);
        }
        server.abort();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.most, 1, "at the same time, of {}", seen.all);
        assert!(seen.all > 8);
    }

    #[tokio::test]
    async fn closing_gives_the_sessions_back() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redfish+http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Seen>>::default();
        let server = tokio::spawn(slow_bmc(listener, seen.clone()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "pw").unwrap();
        let (pool, bmc) = (pool(file.path()), bmc(&url, file.path()));
        let given_back = || seen.lock().unwrap().given_back;
        pool.power_state(&bmc).await.unwrap();
        assert_eq!(given_back(), 0, "the session is kept between calls");
        pool.close().await;
        assert_eq!(given_back(), 1);
        // Once: nothing is held any more. Who still asks gets a session of its own.
        pool.close().await;
        assert_eq!(given_back(), 1);
        pool.power_state(&bmc).await.unwrap();
        pool.close().await;
        assert_eq!(given_back(), 2);
        server.abort();
    }
}
