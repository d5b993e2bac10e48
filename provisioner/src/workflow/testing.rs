//! A way to make the engine "die" at a chosen commit.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::store::StoreError;

/// Counts down at every point; from zero on, nothing is stored or answered any more.
#[derive(Debug)]
pub(super) struct Crash {
    left: AtomicI64,
}

impl Default for Crash {
    fn default() -> Self {
        Self {
            left: AtomicI64::new(i64::MAX),
        }
    }
}

impl Crash {
    /// Die after so many more points.
    pub(super) fn after(&self, points: i64) {
        self.left.store(points, Ordering::SeqCst);
    }

    /// Whether the engine is dead.
    pub(super) fn happened(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    /// One place where a daemon can be killed.
    pub(super) fn point(&self) -> Result<(), StoreError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        // Stays dead whatever is called later.
        self.left.store(-1, Ordering::SeqCst);
        Err(StoreError::NotFound("killed by the test".to_owned()))
    }
}
