//! Image data on its way from the network to whoever decodes it.
//!
//! | module | what |
//! |---|---|
//! | [`runs`] | which frames are asked for together (pure) |
//! | [`sched`] | which connection fetches what from where next (pure) |
//! | [`fault`] | what can be wrong with a source |
//! | [`memory`] | how much memory is used for what |
//! | [`source`] | one request |
//! | [`fetch`] | threads and connections |

pub mod fault;
pub mod fetch;
pub mod memory;
pub mod runs;
pub mod sched;
pub mod source;
