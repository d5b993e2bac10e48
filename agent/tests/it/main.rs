//! The agent as a whole: as an ordinary process (`session`) and as PID 1 of a virtual machine
//! (`netboot`); and what it is built from (`tree`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod daemon;
mod mirror;
mod netboot;
mod session;
mod support;
mod tree;
mod write;
