//! HTTP: the plain boot listener, the plain image port, and the TLS listener for operators, agents
//! and nodes.
//!
//! Handlers record facts and intents; they decide nothing.

pub mod agent;
pub mod api;
pub mod blob;
pub mod boot;
pub mod config;
pub mod event_sink;
pub mod files;
pub mod listener;
pub mod node;
pub mod problem;
mod stall;
mod whose;
