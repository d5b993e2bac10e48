//! DHCPv4: gives machines of the inventory their address and the next thing to boot.
//!
//! Owns: the decision ([`policy`], pure), what is known of a client ([`client`]), the leases as
//! decisions see them ([`leases`]), the server that carries decisions out ([`Server`]) and the
//! search for other servers on the wire ([`probe`]).
//!
//! Invariants: a packet can be garbage without stopping the server. An address is granted only
//! after the lease is stored. A card has one lease whatever stage of its boot asks. Answers leave
//! through the one interface that we serve.
//!
//! Not here: what a machine boots (`boot` decides when iPXE fetches its script), and the bytes
//! (`anneal_protocol::dhcpv4`).

pub mod client;
pub mod guard;
pub mod leases;
pub mod policy;
pub mod probe;
mod reply;
mod server;
mod socket;
mod subnet;

#[cfg(test)]
mod policy_tests;

use std::net::Ipv4Addr;

pub use server::{Counters, DhcpConfig, Server};

/// Where boot files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootUrls {
    /// TFTP server.
    pub tftp: Ipv4Addr,
    /// Plain HTTP, `http://ip:port` without a slash at the end. An address, not a name: some
    /// firmware has no resolver at this point.
    pub boot_http: String,
}
