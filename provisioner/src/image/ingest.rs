//! From what publishers offer to a sealed image.
//!
//! Owns: sources (uploads, URLs, registries), formats, which operating system it is, and ingests:
//! images on their way into the catalog, which the API shows. The bytes pass, in order:
//!
//! ```text
//! source -> pipe -> [proof] -> format by content -> [size limit] -> pipe -> Catalog::seal
//!  task               a thread of its own (`line`)                          another thread
//! ```
//!
//! Invariants: pipes are bounded, so that a slow part holds the others up, to the network, and
//! memory does not grow with the image; an end of file is passed on only when everything before
//! it was whole and checked; an ingest that does not end in an image leaves nothing.
//!
//! Not here: packing and naming (`Catalog::seal`), the proof itself (`image::proof`).

pub mod decode;
mod desk;
pub mod detect;
mod digest;
mod error;
pub mod fetch;
pub mod format;
pub mod guard;
mod job;
mod line;
mod memory;
pub mod oci;
pub mod pipe;
pub mod progress;
pub mod qcow2;
pub mod raw;
pub mod tar;
mod upload;
mod window;

pub use desk::{Ingests, Limits};
pub use digest::ContentDigest;
pub use error::IngestError;
pub use job::{Ended, Job};
pub use upload::{Part, PutError, Upload};
