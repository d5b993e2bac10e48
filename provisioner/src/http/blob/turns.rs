//! Threads that wait for their turn: [`Scheduler`] with a lock, a clock and somebody to wake.
//!
//! Not here: whose turn it is (`share`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Instant;

use tokio::sync::Notify;

use super::share::{Limits, Next, Scheduler, Ticket};

/// Gives turns to connections.
#[derive(Debug)]
pub(super) struct Turns {
    inner: Mutex<Inner>,
    /// A turn is due later than the last look knew.
    later: Notify,
}

#[derive(Debug)]
struct Inner {
    scheduler: Scheduler,
    given: HashMap<Ticket, u32>,
    asleep: HashMap<Ticket, Thread>,
    /// When to look again, because a rate limit will have let go.
    look_at: Option<Instant>,
    last: Ticket,
    closed: bool,
}

/// A connection of a machine, as far as turns go.
#[derive(Debug)]
pub(super) struct Member {
    turns: Arc<Turns>,
    machine: String,
    ticket: Ticket,
}

impl Turns {
    pub(super) fn new(limits: Limits, at_once: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                scheduler: Scheduler::new(limits, at_once, Instant::now()),
                given: HashMap::new(),
                asleep: HashMap::new(),
                look_at: None,
                last: 0,
                closed: false,
            }),
            later: Notify::new(),
        }
    }

    /// A connection of `machine`.
    pub(super) fn join(self: &Arc<Self>, machine: String) -> Member {
        let mut inner = self.lock();
        inner.last += 1;
        let ticket = inner.last;
        inner.scheduler.join(&machine, Instant::now());
        drop(inner);
        Member {
            turns: self.clone(),
            machine,
            ticket,
        }
    }

    /// Nobody gets a turn any more, and whoever waits for one stops waiting.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        for (_, thread) in inner.asleep.drain() {
            thread.unpark();
        }
    }

    /// Looks again whenever a rate limit has let go. Runs until it is dropped.
    pub(super) async fn pace(&self) {
        loop {
            let look_at = self.lock().look_at;
            let Some(at) = look_at else {
                self.later.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {
                    let mut inner = self.lock();
                    inner.look_at = None;
                    self.look(&mut inner);
                }
                () = self.later.notified() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every turn that can be given.
    fn look(&self, inner: &mut Inner) {
        loop {
            match inner.scheduler.next(Instant::now()) {
                Next::Turn(ticket, bytes) => {
                    inner.given.insert(ticket, bytes);
                    if let Some(thread) = inner.asleep.remove(&ticket) {
                        thread.unpark();
                    }
                }
                Next::At(at) => {
                    if inner.look_at != Some(at) {
                        inner.look_at = Some(at);
                        self.later.notify_one();
                    }
                    return;
                }
                Next::Nothing => return,
            }
        }
    }
}

impl Member {
    /// Waits for a turn: how many of `bytes` may be sent now. None when the port closes.
    pub(super) fn turn(&self, bytes: u64) -> Option<u32> {
        let mut inner = self.turns.lock();
        inner.scheduler.ask(&self.machine, self.ticket, bytes);
        self.turns.look(&mut inner);
        loop {
            if inner.closed {
                return None;
            }
            if let Some(bytes) = inner.given.remove(&self.ticket) {
                return Some(bytes);
            }
            inner.asleep.insert(self.ticket, thread::current());
            drop(inner);
            thread::park();
            inner = self.turns.lock();
        }
    }

    /// The turn is over; so many bytes of it were sent.
    pub(super) fn done(&self, sent: u32) {
        let mut inner = self.turns.lock();
        inner.scheduler.done(self.ticket, sent);
        self.turns.look(&mut inner);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut inner = self.turns.lock();
        inner.given.remove(&self.ticket);
        inner.asleep.remove(&self.ticket);
        inner.scheduler.withdraw(&self.machine, self.ticket);
        inner.scheduler.leave(&self.machine);
        self.turns.look(&mut inner);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test(flavor = "multi_thread")]
    async fn threads_wait_for_a_limit_and_stop_waiting_when_the_port_closes() {
        let limits = Limits {
            per_machine: None,
            total: Some(64 * MIB),
        };
        let turns = Arc::new(Turns::new(limits, 4));
        let began = Instant::now();
        let pacer = tokio::spawn({
            let turns = turns.clone();
            async move { turns.pace().await }
        });
        let sent = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let member = turns.join(format!("m{}", n % 2));
                let (sent, turns) = (sent.clone(), turns.clone());
                thread::spawn(move || {
                    while let Some(bytes) = member.turn(u64::MAX) {
                        member.done(bytes);
                        if sent.fetch_add(u64::from(bytes), Ordering::Relaxed) > 16 * MIB {
                            turns.close();
                        }
                    }
                })
            })
            .collect();
        let joined = tokio::task::spawn_blocking(move || {
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
        });
        tokio::time::timeout(std::time::Duration::from_secs(60), joined)
            .await
            .expect("nobody waits for ever")
            .unwrap();
        // A limit is a lower bound of time, so a slow machine cannot make this fail.
        let least = (16 * MIB - 64 * MIB / 20) as f64 / (64 * MIB) as f64;
        assert!(began.elapsed().as_secs_f64() >= least);
        pacer.abort();
        assert!(turns.lock().asleep.is_empty());
    }
}
