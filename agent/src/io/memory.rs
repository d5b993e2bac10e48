//! How much memory a write may use, and what for. [`plan`] is pure.
//!
//! What is counted: raw slices that are being decoded, hashed or written (one a worker), encoded
//! frames on their way to a worker, frames held back to the end, and an allowance for what each
//! connection has in its buffers. Not counted: the agent itself (some MB), and what the kernel
//! keeps for sockets and for the disk.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory for bytes on their way when nothing else was said.
pub const DEFAULT_LIMIT: u64 = 256 << 20;
/// What a connection has in its buffers: the HTTP client's, TLS' and HTTP/2's windows.
const CONNECTION: u64 = 1 << 20;
/// Beyond this, more encoded frames in waiting only use memory.
const ENOUGH_WAITING: u64 = 32 << 20;
/// Workers per processor: while some wait for the disk, others decode. At 1 MiB each this is cheap;
/// with two, processors were idle while a disk took its writes.
const WORKERS_PER_CPU: usize = 4;
const MOST_WORKERS: usize = 32;
/// Fewer leave the disk with nothing queued while frames are decoded.
const FEWEST_WORKERS: usize = 4;

/// How the memory is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Threads that decode, verify and write; each has one raw slice.
    pub workers: usize,
    /// Most bytes of encoded frames between connection and worker.
    pub waiting: u64,
}

/// What the machine and the image are like.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Most memory, as it was asked for.
    pub limit: u64,
    /// What the machine can spare (`MemAvailable`).
    pub available: u64,
    /// Processors.
    pub cpus: usize,
    /// Raw bytes of a frame.
    pub frame: u64,
    /// Bytes of the longest encoded frame.
    pub encoded: u64,
    /// Bytes of frames held back to the end.
    pub held: u64,
    /// Connections.
    pub connections: u64,
}

/// Divides the memory. With less than the least that can work (one worker, one frame in waiting), that
/// least is used all the same.
#[must_use]
pub fn plan(needs: &Needs) -> Plan {
    let limit = needs.limit.min(needs.available / 2);
    let free = limit.saturating_sub(needs.held + needs.connections * CONNECTION);
    let wanted = (needs.cpus * WORKERS_PER_CPU).clamp(FEWEST_WORKERS, MOST_WORKERS);
    let fits = usize::try_from(free / 2 / needs.frame.max(1)).unwrap_or(MOST_WORKERS);
    let workers = wanted.min(fits).max(1);
    let left = free.saturating_sub(workers as u64 * needs.frame);
    let enough = ENOUGH_WAITING.max(2 * workers as u64 * needs.encoded);
    Plan {
        workers,
        waiting: left.min(enough).max(needs.encoded),
    }
}

/// `MemAvailable` in bytes; a small machine's worth when the kernel does not say.
#[must_use]
pub fn available() -> u64 {
    field("/proc/meminfo", "MemAvailable:").unwrap_or(DEFAULT_LIMIT)
}

/// Most memory this process ever had in use (`VmHWM`), in bytes.
#[must_use]
pub fn peak() -> u64 {
    field("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// A number of kB in a file of the kernel's.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(number * 1024)
}

/// Hands out memory for encoded frames, never more than there is, and takes it back for reuse.
#[derive(Debug, Clone)]
pub struct Budget {
    /// In units of [`UNIT`].
    free: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

const UNIT: usize = 1024;
/// Buffers kept for reuse, all of them within what their permits allowed once.
const IDLE: usize = 8;

/// Memory for one frame.
#[derive(Debug)]
pub struct Buffer {
    /// The bytes.
    pub bytes: Vec<u8>,
    budget: Budget,
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    /// So many bytes in all.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(UNIT);
        Self {
            free: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            idle: Arc::default(),
        }
    }

    /// Waits until there is room for so many bytes. None once the budget is closed.
    pub async fn take(&self, bytes: usize) -> Option<Buffer> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        let permit = self.free.clone().acquire_many_owned(units).await.ok()?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Vec<u8>| (bytes..=2 * bytes).contains(&buffer.capacity());
        let found = idle.iter().position(fits).map(|at| idle.swap_remove(at));
        drop(idle);
        Some(Buffer {
            bytes: found.unwrap_or_else(|| Vec::with_capacity(bytes)),
            budget: self.clone(),
            _permit: permit,
        })
    }

    /// Nobody waits any more.
    pub fn close(&self) {
        self.free.close();
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut idle = self
            .budget
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if idle.len() == IDLE {
            idle.swap_remove(0);
        }
        idle.push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn needs() -> Needs {
        Needs {
            limit: DEFAULT_LIMIT,
            available: 16 << 30,
            cpus: 2,
            frame: 4 * MIB,
            encoded: 4 * MIB,
            held: 8 * MIB,
            connections: 4,
        }
    }

    fn used(needs: &Needs, plan: Plan) -> u64 {
        plan.waiting
            + plan.workers as u64 * needs.frame
            + needs.held
            + needs.connections * CONNECTION
    }

    #[test]
    fn the_limit_holds_on_large_and_small_machines() {
        for cpus in [1, 2, 8, 128] {
            for limit in [48, 64, 128, 256, 4096] {
                for available in [256, 1024, 65536] {
                    for frame in [MIB / 16, MIB, 4 * MIB] {
                        let needs = Needs {
                            limit: limit * MIB,
                            available: available * MIB,
                            cpus,
                            frame,
                            encoded: frame + frame / 128,
                            ..needs()
                        };
                        let plan = plan(&needs);
                        let most = needs.limit.min(needs.available / 2);
                        assert!(used(&needs, plan) <= most, "{needs:?} {plan:?}");
                        assert!(plan.workers >= 1 && plan.waiting >= needs.encoded);
                    }
                }
            }
        }
        assert_eq!(plan(&needs()).workers, 8);
    }

    #[test]
    fn the_least_is_used_when_there_is_less() {
        let needs = Needs {
            limit: MIB,
            ..needs()
        };
        let plan = plan(&needs);
        assert_eq!((plan.workers, plan.waiting), (1, needs.encoded));
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_makes_wait_and_reuses() {
        use std::time::Duration;
        let budget = Budget::new(10_000);
        let mut first = budget.take(6000).await.unwrap();
        first.bytes.extend_from_slice(&[1; 6000]);
        let place = first.bytes.as_ptr();
        let second = tokio::time::timeout(Duration::from_secs(1), budget.take(6000)).await;
        assert!(second.is_err(), "more than there is was handed out");
        drop(first);
        let second = budget.take(5000).await.unwrap();
        assert!(second.bytes.is_empty() && second.bytes.as_ptr() == place);
        budget.close();
        assert!(budget.take(1).await.is_none());
    }
}
