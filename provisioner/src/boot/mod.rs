//! What does this machine boot next?
//!
//! Owns: the decision ([`decide`], a pure function of the machine's run), the iPXE scripts that
//! say it, and the set of boot files that may be served.
//!
//! Not here: sockets (`tftp`, `http`), tokens, and what a run does next (`workflow`).

use std::net::IpAddr;

use anneal_protocol::cmdline::Boot;
use anneal_protocol::machine::Mac;

/// What a machine that asks over the network is told to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The agent, with these first facts (they hold a fresh boot token).
    Agent(Box<Boot>),
    /// Its own disk.
    Disk {
        /// Machine, for the record.
        machine: String,
    },
    /// Nothing: nobody knows it.
    Unknown,
}

/// Who answers [`Target`] for a MAC. The daemon implements it over store and tokens.
pub trait BootSource: Send + Sync {
    /// What `mac`, asking from `from`, boots next. A boot token is minted for every `Agent`.
    fn target<'a>(
        &'a self,
        mac: Mac,
        from: IpAddr,
    ) -> std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Target>> + Send + 'a>>;
}
