//! What the decoders of all ingests may take together.
//!
//! A decoder's window is by far the most that an ingest holds. So that several at once need no
//! more memory than one, a decoder waits until there is room for its window. Small ones pass
//! beside large ones.
//!
//! Invariant: whoever waits holds nothing of the pool that it waits for: a disk that is
//! compressed once more inside a compressed layer has a pool of its own, and nothing is deeper.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::IngestError;
use super::decode::MEMORY;

/// What is counted, bytes.
const UNIT: u64 = 1 << 20;

/// The room of all decoders; cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory {
    /// By depth: of the source itself, and of what is in a layer of it.
    pools: [Arc<Semaphore>; 2],
}

/// A decoder's part of it, given back when it is dropped.
pub type Taken = OwnedSemaphorePermit;

impl Default for Memory {
    fn default() -> Self {
        let pool = || Arc::new(Semaphore::new((MEMORY / UNIT) as usize));
        Self {
            pools: [pool(), pool()],
        }
    }
}

impl Memory {
    /// For one ingest, which gives up waiting when it is stopped.
    #[must_use]
    pub fn share(&self, stop: CancellationToken) -> Share {
        Share {
            memory: self.clone(),
            stop,
        }
    }
}

/// One ingest's access to the room.
#[derive(Debug, Clone)]
pub struct Share {
    memory: Memory,
    stop: CancellationToken,
}

impl Share {
    /// Takes `bytes`, [`MEMORY`] at most, at `depth`. Blocks the thread until there is room.
    ///
    /// # Errors
    /// When the ingest is stopped meanwhile; whoever stopped it says why.
    pub fn take(&self, depth: usize, bytes: u64) -> Result<Taken, IngestError> {
        let pool = &self.memory.pools[depth.min(1)];
        let units = u32::try_from(bytes.min(MEMORY).div_ceil(UNIT)).unwrap_or(u32::MAX);
        if let Ok(taken) = Arc::clone(pool).try_acquire_many_owned(units) {
            return Ok(taken);
        }
        tracing::info!(
            bytes,
            "an image waits until others leave it memory for decoding"
        );
        Handle::current().block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => Err(IngestError::Broken),
                taken = Arc::clone(pool).acquire_many_owned(units) => {
                    taken.map_err(|_| IngestError::Broken)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn large_windows_take_turns_and_small_ones_pass() {
        let memory = Memory::default();
        let stop = CancellationToken::new();
        let share = memory.share(stop.clone());
        let most = share.take(0, MEMORY - UNIT).unwrap();
        let small = share.take(0, 1).unwrap();
        let inner = share.take(1, u64::MAX).unwrap();
        let (one, two) = (share.clone(), memory.share(CancellationToken::new()));
        let stopped = tokio::task::spawn_blocking(move || one.take(0, UNIT));
        let waits = tokio::task::spawn_blocking(move || two.take(0, 2 * UNIT));
        stop.cancel();
        let limit = Duration::from_secs(60);
        let ended = tokio::time::timeout(limit, stopped).await.unwrap().unwrap();
        assert!(ended.unwrap_err().is_consequence());
        drop((small, inner));
        assert!(!waits.is_finished(), "there is room for one unit only");
        drop(most);
        let taken = tokio::time::timeout(limit, waits).await.unwrap().unwrap();
        assert_eq!(taken.unwrap().num_permits(), 2);
    }
}
