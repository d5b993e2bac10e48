//! `make bench`: what anneal does with image bytes, measured beside its peers in one run.
//!
//! Owns: the world of a measurement (two network namespaces joined by a veth pair, a disk in memory and
//! one on disk), the image, the peers' command lines, the numbers and the page they end up on.
//!
//! Invariants: a number of ours is never shown without a peer's or a limit's from the same run; every
//! number is the median of several runs in turn, so that a change of the machine's mood meets all
//! alike; what was written is compared with the image once for each program.
//!
//! Not here: pass or fail. A slow machine is not a failure; a wrong byte is.

pub mod delta;
pub mod image;
pub mod limits;
pub mod machine;
pub mod measure;
pub mod peers;
pub mod report;
pub mod serve;
pub mod sink;
pub mod world;
pub mod write;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Writing a whole image, beside the peers, with the limits.
    Write,
    /// Writing over a disk of which 1 % differs.
    Delta,
    /// Serving: CPU time and throughput of the image port beside nginx.
    Serve,
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Parts, in this order.
    pub parts: Vec<Part>,
    /// Runs of each program; the median counts. One that takes long has one.
    pub runs: usize,
    /// Size of the image's disk, in bytes.
    pub size: u64,
    /// Gibibytes that each serving run moves.
    pub served_gib: u64,
}

impl Plan {
    /// For numbers that are worth something.
    #[must_use]
    pub fn full() -> Self {
        Self {
            parts: vec![Part::Write, Part::Delta, Part::Serve],
            runs: 5,
            size: 2 << 30,
            served_gib: 16,
        }
    }

    /// To see whether everything works.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            runs: 1,
            size: 768 << 20,
            served_gib: 2,
            ..Self::full()
        }
    }
}
