//! The real [`BmcControl`]: Redfish clients, one for each BMC, kept as long as their credentials
//! hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anneal_bmc::{BootTarget, Client, Credentials, Endpoint, Error, Timing};
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::{BmcControl, BmcFailure, BmcFuture, BootDevice, PowerAction, PowerState};
use crate::machine::Bmc;

/// Longest password file that is read, bytes.
const LONGEST_PASSWORD: u64 = 4096;

/// Talks to every BMC of the inventory, to each one request at a time.
#[derive(Debug, Default)]
pub struct BmcPool {
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    timing: Timing,
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
    #[error("cannot read the password from {}; create the file, readable for the daemon", path.display())]
    Password {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("password file {} is {problem}", path.display())]
    BadPassword {
        path: std::path::PathBuf,
        problem: &'static str,
    },
    #[error(transparent)]
    Bmc(#[from] Error),
}

impl BmcPool {
    /// A pool with timing that suits slow BMCs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pool with other timing.
    #[must_use]
    pub fn with_timing(timing: Timing) -> Self {
        Self {
            timing,
            ..Self::default()
        }
    }

    /// Gives the sessions back; call it once, when the daemon stops. BMCs have few of them, and
    /// keep those of a killed daemon until they expire.
    pub async fn close(&self) {
        let slots: Vec<Arc<Slot>> = self.slots().drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            if let Some(mut held) = slot.lock().await.take() {
                held.client.logout().await;
            }
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, bmc: &Bmc) -> Arc<Slot> {
        self.slots().entry(bmc.url.clone()).or_default().clone()
    }

    /// The client for a BMC, made anew when its description or password changed.
    async fn client<'a>(
        &self,
        bmc: &Bmc,
        held: &'a mut Option<Held>,
    ) -> Result<&'a mut Client, Failure> {
        let endpoint = Endpoint::parse(&bmc.url, bmc.tls_sha256.as_deref())?;
        let credentials = Credentials::new(bmc.username.as_str(), password(bmc).await?);
        let stale =
            held.take_if(|held| held.endpoint != endpoint || held.credentials != credentials);
        if let Some(mut stale) = stale {
            stale.client.logout().await;
        }
        if held.is_none() {
            let timing = self.timing.clone();
            *held = Some(Held {
                client: Client::new(endpoint.clone(), credentials.clone(), timing)?,
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
        Box::pin(async move {
            let slot = self.slot(bmc);
            let mut held = slot.lock().await;
            let done = async {
                Ok(self
                    .client(bmc, &mut held)
                    .await?
                    .power(action.into())
                    .await?)
            };
            done.await.map_err(|failure| told(bmc, &failure))
        })
    }

    fn power_state<'a>(&'a self, bmc: &'a Bmc) -> BmcFuture<'a, PowerState> {
        Box::pin(async move {
            let slot = self.slot(bmc);
            let mut held = slot.lock().await;
            let done = async { Ok(self.client(bmc, &mut held).await?.power_state().await?) };
            let state = done.await.map_err(|failure| told(bmc, &failure))?;
            Ok(state.into())
        })
    }

    fn boot_once<'a>(&'a self, bmc: &'a Bmc, device: BootDevice) -> BmcFuture<'a, ()> {
        Box::pin(async move {
            let slot = self.slot(bmc);
            let mut held = slot.lock().await;
            let done = async {
                Ok(self
                    .client(bmc, &mut held)
                    .await?
                    .boot_once(device.into())
                    .await?)
            };
            done.await.map_err(|failure| told(bmc, &failure))
        })
    }
}

/// Reads the password at the moment it is needed, so that a rotated one counts at once. One line;
/// the line break at its end is not part of it.
async fn password(bmc: &Bmc) -> Result<Zeroizing<String>, Failure> {
    let path = &bmc.password_file;
    let unreadable = |source| Failure::Password {
        path: path.clone(),
        source,
    };
    let bad = |problem| Failure::BadPassword {
        path: path.clone(),
        problem,
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(256));
    let mut limited = file.take(LONGEST_PASSWORD);
    limited.read_to_end(&mut bytes).await.map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| bad("not text"))?;
    let password = text.strip_suffix('\n').unwrap_or(text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(bad("empty"));
    }
    if password.contains(['\n', '\r', '\0']) {
        return Err(bad("not a single line"));
    }
    Ok(Zeroizing::new(password.to_owned()))
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

    use super::*;

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
        let failure = BmcPool::new().power_state(&missing).await.unwrap_err();
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
            let failure = BmcPool::new().power_state(&missing).await.unwrap_err();
            assert!(failure.message.contains(problem), "{failure}");
        }
    }

    #[tokio::test]
    async fn takes_a_password_without_its_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        for (contents, want) in [
            ("pw", "pw"),
            ("pw\n", "pw"),
            ("pw\r\n", "pw"),
            (" p w \n", " p w "),
        ] {
            std::fs::write(&file, contents).unwrap();
            let got = password(&bmc("redfish+http://h", &file)).await.unwrap();
            assert_eq!(got.as_str(), want);
        }
    }

    #[tokio::test]
    async fn refuses_ipmi_and_never_repeats_a_password() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "pw").unwrap();
        let pool = BmcPool::new();
        let ipmi = pool.power_state(&bmc("ipmi://10.0.0.1", file.path())).await;
        assert!(ipmi.unwrap_err().message.contains("IPMI is not supported"));
        let leaky = bmc("redfish+https://root:hunter2@10.0.0.1", file.path());
        let failure = pool.power_state(&leaky).await.unwrap_err();
        assert!(!failure.retryable);
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }
}
