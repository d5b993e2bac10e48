//! Machines with real firmware on a wire of their own, and what is tried on them.
//!
//! Owns: the simulator ([`sim`]: namespaces, network, virtual machines, Redfish service, daemon)
//! and the virtual rack that `make demo` and `make lab` show ([`rack`]), and measurements beside peers
//! ([`bench`]).
//!
//! Invariants: nothing outlives the process that started it, however that ends, and nothing of
//! the host is touched: see [`sim::isolate`].
//!
//! Not here: tests of one part alone; those live in that part's package.

pub mod bench;
pub mod rack;
pub mod sim;
