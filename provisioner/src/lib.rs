//! The daemon and the operator's CLI. `ARCHITECTURE.md` has the map and the invariants.

pub mod app;
pub mod attestation;
pub mod bmc;
pub mod boot;
pub mod cli;
pub mod clock;
pub mod dhcp;
pub mod event;
pub mod http;
pub mod image;
pub mod machine;
pub mod metrics;
pub mod pki;
pub mod render;
pub mod settings;
pub mod store;
mod subprocess;
pub mod tftp;
pub mod token;
pub mod validate;
pub mod workflow;
pub mod yaml;
