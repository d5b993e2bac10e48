//! How far an ingest is; written by its parts, read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one ingest.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    /// Plus one; zero: not known.
    total: AtomicU64,
    written: AtomicU64,
}

impl Progress {
    /// Published bytes that came in.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// More came in.
    pub fn add_received(&self, count: u64) {
        self.received.fetch_add(count, Ordering::Relaxed);
    }

    /// Published bytes in all, if that is known.
    pub fn total(&self) -> Option<u64> {
        self.total.load(Ordering::Relaxed).checked_sub(1)
    }

    /// It is known now.
    pub fn set_total(&self, total: u64) {
        self.total.store(total.saturating_add(1), Ordering::Relaxed);
    }

    /// Bytes of the raw disk that are sealed.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// So many are sealed now.
    pub fn set_written(&self, written: u64) {
        self.written.store(written, Ordering::Relaxed);
    }
}
