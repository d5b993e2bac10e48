//! HTTP: the plain boot listener, the plain image port, and the TLS listener for operators, agents
//! and nodes.
//!
//! Handlers record facts and intents; they decide nothing.

pub mod agent;
pub mod api;
pub mod blob;
pub mod boot;
mod clients;
mod cloud_init;
pub mod config;
pub mod event_sink;
pub mod files;
pub mod kairos;
mod kairos_report;
pub mod listener;
pub mod metadata;
mod metadata_facts;
pub mod node;
pub mod problem;
mod session;
mod stall;
mod whose;
