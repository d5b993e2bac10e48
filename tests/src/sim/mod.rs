//! The simulator: everything around the daemon that a rack has.
//!
//! Owns: namespaces ([`isolate`]), the wire ([`net`]), child processes ([`process`]), firmware
//! machines under libvirt ([`libvirt`], [`domain`]), their Redfish service ([`redfish`]), quick
//! machines that skip firmware ([`direct`]), the daemon under test ([`daemon`], [`api`]).
//!
//! Invariants: every wait is bounded ([`wait`]); all of it runs inside one PID namespace.
//!
//! Not here: what should happen. That is said by the scenarios and the demo.

pub mod accel;
pub mod api;
pub mod daemon;
pub mod direct;
pub mod domain;
pub mod isolate;
pub mod libvirt;
pub mod net;
pub mod process;
pub mod redfish;
pub mod tool;
pub mod wait;
