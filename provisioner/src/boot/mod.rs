//! What does this machine boot next?
//!
//! Owns: the decision ([`decide`], a pure function of the machine's run), the iPXE scripts that
//! say it ([`script`]), and the set of boot files that may be served ([`BootFiles`]).
//!
//! Not here: sockets (`tftp`, `http`), tokens, and what a run does next (`workflow`).

use std::net::IpAddr;

use anneal_protocol::cmdline::Boot;
use anneal_protocol::machine::Mac;

mod files;
pub mod script;

pub use script::agent_arguments;

pub use files::{BootFiles, BootFilesError, INITRAMFS, KERNEL};

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

/// What matters about a run for the question what to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunBoot {
    /// The run has not ended.
    pub active: bool,
    /// Its next step is carried out by the agent.
    pub wants_agent: bool,
}

/// What a machine boots, before anything is minted for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The agent.
    Agent,
    /// Its own disk.
    Disk,
}

/// What a known machine boots. Without an active run that wants the agent it is always the
/// disk: no state of the daemon reinstalls a machine by accident.
#[must_use]
pub fn decide(run: Option<&RunBoot>) -> Choice {
    match run {
        Some(RunBoot {
            active: true,
            wants_agent: true,
        }) => Choice::Agent,
        _ => Choice::Disk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_active_run_that_wants_it_starts_the_agent() {
        let run = |active, wants_agent| RunBoot {
            active,
            wants_agent,
        };
        let table = [
            (None, Choice::Disk),
            (Some(run(false, false)), Choice::Disk),
            (Some(run(false, true)), Choice::Disk),
            (Some(run(true, false)), Choice::Disk),
            (Some(run(true, true)), Choice::Agent),
        ];
        for (run, expected) in table {
            assert_eq!(decide(run.as_ref()), expected, "{run:?}");
        }
    }
}
