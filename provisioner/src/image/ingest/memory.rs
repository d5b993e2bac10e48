//! What the decoders of all ingests may take together.
//!
//! A decoder's window is by far the most that an ingest holds. So that several at once need no
//! more memory than one, a decoder waits until there is room for its window. There is no queue: a
//! small one passes while a large one waits, and a large one may wait as long as small ones come.
//!
//! Invariant: whoever waits holds nothing of the pool that it waits for: a disk that is
//! compressed once more inside a compressed layer has a pool of its own, and nothing is deeper. A
//! decoder keeps what it has from one member of its source to the next, so that it waits once,
//! before anything inside it does. Only a later member with a larger window than all before it
//! makes it wait again, and when what is inside holds its own then, two such sources at once may
//! wait for each other until one of them is cancelled.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::IngestError;
use super::decode::MEMORY;

/// What is counted, bytes.
const UNIT: u64 = 1 << 20;

/// The room of all decoders; cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory {
    /// By depth: of the source itself, and of what is in a layer of it.
    pools: [Arc<Pool>; 2],
}

#[derive(Debug)]
struct Pool {
    /// Units that nobody has.
    free: Mutex<u64>,
    given_back: Notify,
}

/// A decoder's part of it, given back when it is dropped.
#[derive(Debug)]
pub struct Taken {
    pool: Arc<Pool>,
    units: u64,
}

impl Default for Memory {
    fn default() -> Self {
        let pool = || {
            Arc::new(Pool {
                free: Mutex::new(MEMORY / UNIT),
                given_back: Notify::new(),
            })
        };
        Self {
            pools: [pool(), pool()],
        }
    }
}

impl Pool {
    fn free(&self) -> MutexGuard<'_, u64> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, units: u64) -> Option<Taken> {
        let mut free = self.free();
        *free = free.checked_sub(units)?;
        let pool = Arc::clone(self);
        Some(Taken { pool, units })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.pool.free() += self.units;
        self.pool.given_back.notify_waiters();
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
        let units = units(bytes);
        if let Some(taken) = pool.take(units) {
            return Ok(taken);
        }
        tracing::info!(
            bytes,
            "an image waits until others leave it memory for decoding"
        );
        Handle::current().block_on(async {
            loop {
                // Made before we look: what is given back in between is not missed.
                let given_back = pool.given_back.notified();
                if let Some(taken) = pool.take(units) {
                    return Ok(taken);
                }
                tokio::select! {
                    () = self.stop.cancelled() => return Err(IngestError::Broken),
                    () = given_back => {}
                }
            }
        })
    }

    /// As [`Self::take`], for who has something of that depth: it is kept if it is enough, and
    /// given back before waiting for more.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_after(
        &self,
        held: Option<Taken>,
        depth: usize,
        bytes: u64,
    ) -> Result<Taken, IngestError> {
        match held.filter(|held| held.units >= units(bytes)) {
            Some(held) => Ok(held),
            None => self.take(depth, bytes),
        }
    }
}

fn units(bytes: u64) -> u64 {
    bytes.min(MEMORY).div_ceil(UNIT)
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
        assert_eq!(taken.unwrap().units, 2);
    }

    #[tokio::test]
    async fn a_small_one_passes_while_a_large_one_waits() {
        let share = Memory::default().share(CancellationToken::new());
        let held = share.take(0, UNIT).unwrap();
        let (large, small) = (share.clone(), share.clone());
        let large = tokio::task::spawn_blocking(move || large.take(0, MEMORY));
        // Time to begin waiting; too short a time proves less, and fails nothing.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let small = tokio::task::spawn_blocking(move || small.take(0, UNIT));
        let limit = Duration::from_secs(60);
        let passed = tokio::time::timeout(limit, small).await;
        drop(passed.expect("it queues behind the large one").unwrap());
        assert!(!large.is_finished());
        drop(held);
        let taken = tokio::time::timeout(limit, large).await.unwrap().unwrap();
        assert_eq!(taken.unwrap().units, MEMORY / UNIT);
    }

    #[test]
    fn what_is_enough_is_kept() {
        let share = Memory::default().share(CancellationToken::new());
        let held = share.take(0, 4 * UNIT).unwrap();
        let _rest = share.take(0, MEMORY - 5 * UNIT).unwrap();
        let held = share.take_after(Some(held), 0, UNIT).unwrap();
        assert_eq!(held.units, 4);
        let held = share.take_after(Some(held), 0, 5 * UNIT).unwrap();
        assert_eq!(held.units, 5);
    }
}
