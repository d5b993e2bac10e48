//! The inventory: what a machine is, as its owner described it.
//!
//! Owns: the [`Machine`] record, how it is written in files (`file`), how two of them differ
//! (`apply`), what the installed system is told (`node`), and the snapshot of it that protocol servers look at.
//!
//! Not here: what a machine is doing (that is a run, see `workflow`).

pub mod apply;
pub mod check;
pub mod file;
mod node;
mod view;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, RwLock};

use anneal_protocol::disk::{DiskHints, DiskSelector, ProtectedDisk};
use anneal_protocol::machine::Mac;
use anneal_protocol::node::NodeConfig;
use serde::{Deserialize, Serialize};

pub(crate) use node::repeatable_kernel_arg;

pub use anneal_protocol::net::Cidr;
pub use anneal_protocol::node::Nic;

/// A machine as described in the inventory. Stored as JSON; see `machine/file.rs` for the YAML.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Unique name: lower-case letters, digits and `-`, a valid DNS label.
    pub name: String,
    /// Rack, the failure domain.
    pub rack: Option<String>,
    /// Role.
    pub role: Option<String>,
    /// Network cards, at least one; exactly one boots.
    pub nics: Vec<Nic>,
    /// BMC; none means that a person works the power button.
    pub bmc: Option<Bmc>,
    /// Which disk to install to.
    pub disk: DiskHints,
    /// Disks that must never be written.
    pub protected_disks: Vec<ProtectedDisk>,
    /// Image, `name@version`.
    pub image: Option<String>,
    /// Workflow; `install-image` when absent.
    pub workflow: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the installed system is told.
    #[serde(flatten)]
    pub config: NodeConfig,
}

/// How to reach a machine's BMC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmc {
    /// `redfish+https://host[:port][/redfish/v1/Systems/ID]` or `redfish+http://…`.
    pub url: String,
    /// User name.
    pub username: String,
    /// File that holds the password: it is read when needed and never stored by us.
    pub password_file: std::path::PathBuf,
    /// SHA-256 (hex) of the BMC's certificate; absent with https means: it must chain to a
    /// system CA.
    pub tls_sha256: Option<String>,
}

impl Machine {
    /// The cluster that it joins.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.config.cluster.as_deref()
    }

    /// The card it boots over.
    #[must_use]
    pub fn boot_nic(&self) -> Option<&Nic> {
        self.nics
            .iter()
            .find(|nic| nic.boot)
            .or_else(|| self.nics.first())
    }

    /// Host name of the installed system.
    #[must_use]
    pub fn hostname(&self) -> &str {
        self.config.hostname.as_deref().unwrap_or(&self.name)
    }

    /// Every address that is this machine's own: of cards, bonds and VLANs.
    pub fn addresses(&self) -> impl Iterator<Item = Cidr> {
        let bonds = self.config.bonds.iter().filter_map(|bond| bond.address);
        let vlans = self.config.vlans.iter().filter_map(|vlan| vlan.address);
        let nics = self.nics.iter().filter_map(|nic| nic.address);
        nics.chain(bonds).chain(vlans)
    }

    /// Which disk steps may write to.
    #[must_use]
    pub fn disk_selector(&self) -> DiskSelector {
        DiskSelector {
            hints: self.disk.clone(),
            protected: self.protected_disks.clone(),
        }
    }
}

/// What protocol servers know of the inventory: who owns a MAC, and which address it gets.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By hardware address.
    pub by_mac: HashMap<Mac, Reservation>,
    /// Addresses that are no card's but a bond's or a VLAN's: by whom.
    pub others: HashMap<Ipv4Addr, String>,
}

impl Snapshot {
    /// The machine that has `address` on a card, a bond or a VLAN.
    #[must_use]
    pub fn owner_of(&self, address: IpAddr) -> Option<String> {
        let other = match address {
            IpAddr::V4(address) => self.others.get(&address).cloned(),
            IpAddr::V6(_) => None,
        };
        self.machine_at(address).or(other)
    }

    /// The machine that has `address` reserved.
    #[must_use]
    pub fn machine_at(&self, address: IpAddr) -> Option<String> {
        self.by_mac
            .values()
            .find(|nic| {
                nic.address
                    .is_some_and(|reserved| IpAddr::V4(reserved.ip) == address)
            })
            .map(|nic| nic.machine.clone())
    }
}

/// One reserved card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Machine that owns the card.
    pub machine: String,
    /// Address to give it; none means: from the pool.
    pub address: Option<Cidr>,
    /// The machine boots over it.
    pub boot: bool,
}

/// The current [`Snapshot`]; replaced as a whole when the inventory changes.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    current: Arc<RwLock<Arc<Snapshot>>>,
}

impl Directory {
    /// The inventory as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Replaces it.
    pub fn replace(&self, snapshot: Snapshot) {
        *self
            .current
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(snapshot);
    }
}
