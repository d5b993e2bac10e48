//! The program that runs from RAM on the machine being provisioned.
//!
//! As PID 1 of the netboot environment it brings up one NIC, trades the boot token from the
//! kernel command line for a certificate, and carries out the daemon's orders until one of them
//! leaves the agent. It keeps nothing across boots.
//!
//! Invariants: no disk is written that the inventory protects, that is in use, or that is not
//! the only match for its hints; nothing unverified is ever left bootable; contents of files and
//! tokens are never logged.
//!
//! Not here: decisions about machines and runs. Those are the daemon's.

pub mod agent;
pub mod boot;
pub mod client;
pub mod cmdline;
pub mod disk;
pub mod evidence;
pub mod init;
pub mod inventory;
pub mod io;
pub mod net;
pub mod report;
pub mod step;
pub mod write;
