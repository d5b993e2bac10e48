//! The DHCP server and real clients, each in a network namespace of its own. Needs root.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

#[path = "../executable/mod.rs"]
mod executable;
mod firmware;
mod netns;
mod programs;
mod site;
