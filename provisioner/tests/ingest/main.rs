//! `anneal image add` against the real daemon, from every source, and everything that can go wrong.
//!
//! Each test has a daemon process of its own in a network namespace of its own, which goes away
//! with the test's thread. Needs root, and the tools of `scripts/setup.sh`.

#![allow(clippy::unwrap_used, missing_docs)]

mod faults;
mod hostile_registry;
mod lab;
mod memory;
mod proofs;
mod registry;
mod sources;
mod uploads;
mod web;
