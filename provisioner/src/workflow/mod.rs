//! Workflows and runs: what is done to a machine, in which order, and how far it is.
//!
//! Owns: the file format ([`file`], [`plan`]), the table of actions ([`action`]), the checks that
//! refuse nonsense before a server loses power ([`check`]), the decisions ([`engine`], pure), and
//! the [`Engine`] that carries them out.
//!
//! Invariants: only this module changes the state of a machine, in one transaction with the run.
//! The engine is level-triggered: a wake-up says "look again". Every transition is stored before
//! anything follows from it, so a daemon killed at any instruction goes on where it was. A step
//! that writes is never reported done without the agent's result for that very attempt, and never
//! run again with other inputs.
//!
//! It is not a DAG, has no undo, and does not run two steps of a machine at a time.
//!
//! Not here: boot files, DHCP and tokens; they record facts, this module looks at them.

pub mod action;
pub mod caller;
pub mod check;
pub mod duration;
pub mod engine;
pub mod file;
pub mod inputs;
pub mod plan;
mod rendered;
pub mod run;
mod secrets;
pub mod texts;
pub mod version;

mod agents;
mod api_port;
mod asks;
mod deps;
mod drive;
mod driver;
mod library;
mod meta;
mod record;
mod sources;
mod start;
mod view;

#[cfg(test)]
mod testing;

pub use action::Action;
pub use asks::Ear;
pub use caller::Caller;
pub use deps::{Boxed, EngineDeps, ImageSource, TokenSource};
pub use driver::{Engine, EngineError};
pub use engine::{Change, node_report, wants_agent};
pub use library::{DEFAULT, LibraryError};
pub use rendered::{Shown, texts_of};
pub use run::{RunState, Snapshot, StepRow, StepState};
pub use start::{StartError, StartRun};

#[cfg(test)]
mod attest_tests;
#[cfg(test)]
mod join_tests;
#[cfg(test)]
pub(crate) mod plan_tests;
#[cfg(test)]
mod rack;
#[cfg(test)]
mod rendered_tests;
#[cfg(test)]
mod tests;
