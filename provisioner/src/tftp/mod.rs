//! TFTP for firmware: read-only, boot files only (RFC 1350, 2347, 2348, 2349, 7440).
//!
//! Owns: the packet format ([`packet`]), the protocol as a state machine without sockets or
//! clock ([`transfer`]), and the sockets around it ([`Server`]).
//!
//! Invariants: names from the wire are looked up in `BootFiles`, never in the file system. What
//! a client asks for is bounded: block size by the interface's MTU, window, transfers for each
//! client and in total. A transfer whose client has not answered yet may come from a forged address:
//! it holds one block, and the oldest of them makes room when there are too many. Every transfer is a joined task that ends: when the file is there, when
//! the client says so or falls silent, or when the daemon stops.
//!
//! Not here: which file a machine is told to fetch (`dhcp`).

mod job;
pub mod packet;
mod server;
pub mod transfer;

pub use server::{Limits, Server};
