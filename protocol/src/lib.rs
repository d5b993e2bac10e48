//! What the daemon, the agent and the CLI say to each other.
//!
//! Owns: the messages of the agent protocol ([`agent`]), the kernel command line handed to the
//! agent ([`cmdline`]), what an image is written with ([`stream`]), the operator's HTTP API ([`api`]), DHCP on the wire ([`dhcpv4`]) and the
//! words they share ([`machine`], [`node`], [`net`], [`disk`], [`time`]).
//!
//! Invariants: types only. Nothing here reads a socket, a file or a clock, and no type depends on
//! how it is stored.
//!
//! Not here: decisions. Who may do what, and when, is the daemon's.

pub mod agent;
pub mod api;
pub mod audit;
pub mod cmdline;
pub mod dhcpv4;
pub mod disk;
pub mod machine;
pub mod net;
pub mod node;
pub mod stream;
pub mod time;
