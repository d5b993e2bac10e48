//! The agent as a whole: as an ordinary process (`session`, `write`) and as PID 1 of a virtual
//! machine (`netboot`, `power`); and what it is built from (`tree`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod attached;
mod daemon;
mod device;
mod mirror;
mod netboot;
mod power;
mod random;
mod session;
mod support;
mod tree;
mod vm;
mod write;
mod writelog;
