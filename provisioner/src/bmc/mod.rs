//! One queue per BMC over the `anneal-bmc` crate: power and boot device of machines.
//!
//! Owns: which BMC belongs to which machine's steps, that a BMC gets one request at a time, and
//! where the password is read from.
//!
//! Not here: Redfish (crate `anneal-bmc`), and when to switch what (`workflow`).

mod password;
mod pool;

pub use password::{PasswordDirs, PasswordError};
pub use pool::BmcPool;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

use crate::machine::Bmc;

/// What to do with the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerAction {
    /// Switch on; nothing when it is on.
    On,
    /// Switch off at once; nothing when it is off.
    Off,
    /// Off (if on), then on: the machine starts from its firmware.
    Cycle,
}

/// Whether a machine has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// It runs.
    On,
    /// It does not.
    Off,
}

/// What the firmware starts next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootDevice {
    /// Network, PXE.
    Pxe,
    /// Network, UEFI HTTP boot.
    UefiHttp,
    /// Disk.
    Disk,
}

/// Why a BMC did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("BMC {url}: {message}")]
pub struct BmcFailure {
    /// The BMC.
    pub url: String,
    /// What it said, and what to do.
    pub message: String,
    /// Whether trying again can help (a timeout can, a wrong password cannot).
    pub retryable: bool,
}

/// A boxed future, so that the engine can hold any implementation.
pub type BmcFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BmcFailure>> + Send + 'a>>;

/// What the engine asks of BMCs. Calls are level-triggered: repeating one is harmless, except
/// that `Cycle` cycles again.
pub trait BmcControl: Debug + Send + Sync {
    /// Switches the power; returns when the BMC reports the wanted state.
    fn power<'a>(&'a self, bmc: &'a Bmc, action: PowerAction) -> BmcFuture<'a, ()>;
    /// Reads the power state.
    fn power_state<'a>(&'a self, bmc: &'a Bmc) -> BmcFuture<'a, PowerState>;
    /// Sets the device for the next start, once where the BMC can.
    fn boot_once<'a>(&'a self, bmc: &'a Bmc, device: BootDevice) -> BmcFuture<'a, ()>;
}
