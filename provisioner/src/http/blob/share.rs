//! Who may send next, and how much: decided purely; time comes in as a value.
//!
//! A *turn* is the right to hand some bytes to one socket. There are few turns at once, so that
//! the order in which they are given matters as soon as the daemon, not a client, is what is
//! slow. The next turn goes to the machine that was sent the least (start-time fair queuing, by
//! bytes): a machine with eight connections gets what a machine with one gets. Token buckets
//! bound a machine's rate and the rate of all.
//!
//! Invariants: bytes are charged when a turn is given, and what was not sent is given back, so
//! several turns of one machine cannot run ahead of the others. A machine that sends less than its
//! share saves up at most [`CREDIT`]. A waiter is never forgotten: it has a turn, or [`Scheduler::next`] says when
//! to look again, or all turns are out and the next one that comes back looks.
//!
//! Not here: threads and clocks (`turns`).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Most bytes of one turn.
pub const SLICE: u32 = 1 << 20;
/// How far behind a machine may be and still catch up: pauses between two requests, and the time
/// a socket needs to empty, cost it nothing.
pub const CREDIT: u64 = 8 << 20;
/// How much of a second a bucket holds: bursts of that length pass at full speed.
const BURST_PARTS: u64 = 20;
/// Smallest bucket, in bytes.
const SMALLEST_BURST: u64 = 64 * 1024;

/// Rates in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// For each machine.
    pub per_machine: Option<u64>,
    /// For all together.
    pub total: Option<u64>,
}

/// One who waits for a turn; unique while it waits or has one.
pub type Ticket = u64;

/// What follows now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This waiter has a turn of so many bytes.
    Turn(Ticket, u32),
    /// Somebody waits only for a rate limit: look again then.
    At(Instant),
    /// Nobody waits, or all turns are out.
    Nothing,
}

/// Bytes that may be sent now, and how they come back.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: u64,
    burst: u64,
    /// Bytes, in billionths, so that slow rates lose nothing to rounding.
    nano_tokens: u128,
    at: Instant,
}

const NANO: u128 = 1_000_000_000;

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        let burst = (rate / BURST_PARTS).max(SMALLEST_BURST);
        Self {
            rate,
            burst,
            nano_tokens: u128::from(burst) * NANO,
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        let full = u128::from(self.burst) * NANO;
        self.nano_tokens = (self.nano_tokens + passed * u128::from(self.rate)).min(full);
    }

    /// How long until `bytes` are there.
    fn wait(&self, bytes: u64) -> Duration {
        let missing = (u128::from(bytes) * NANO).saturating_sub(self.nano_tokens);
        let nanos = missing.div_ceil(u128::from(self.rate.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take(&mut self, bytes: u64) {
        self.nano_tokens = self.nano_tokens.saturating_sub(u128::from(bytes) * NANO);
    }

    fn give_back(&mut self, bytes: u64) {
        let full = u128::from(self.burst) * NANO;
        self.nano_tokens = (self.nano_tokens + u128::from(bytes) * NANO).min(full);
    }
}

#[derive(Debug)]
struct Machine {
    /// Bytes sent, on a scale where idle machines are moved up to the busy ones.
    sent: u64,
    bucket: Option<Bucket>,
    waiting: VecDeque<(Ticket, u32)>,
    /// Turns that are out.
    out: usize,
    /// Connections that hold on to this entry.
    members: usize,
}

/// Decides whose turn it is. Machines are known by any text.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    total: Option<Bucket>,
    machines: HashMap<String, Machine>,
    /// Where the machine that sent last stands: newcomers begin here.
    floor: u64,
    turns: usize,
    out: HashMap<Ticket, (String, u32)>,
}

impl Scheduler {
    /// With so many turns at once (at least one).
    #[must_use]
    pub fn new(limits: Limits, turns: usize, now: Instant) -> Self {
        Self {
            limits,
            total: limits.total.map(|rate| Bucket::new(rate, now)),
            machines: HashMap::new(),
            floor: 0,
            turns: turns.max(1),
            out: HashMap::new(),
        }
    }

    /// A connection of `machine` has come.
    pub fn join(&mut self, machine: &str, now: Instant) {
        let (floor, limits) = (self.floor, self.limits);
        let entry = self
            .machines
            .entry(machine.to_owned())
            .or_insert_with(|| Machine {
                sent: floor,
                bucket: limits.per_machine.map(|rate| Bucket::new(rate, now)),
                waiting: VecDeque::new(),
                out: 0,
                members: 0,
            });
        entry.members += 1;
    }

    /// A connection of `machine` has gone; its tickets must be back.
    pub fn leave(&mut self, machine: &str) {
        if let Some(entry) = self.machines.get_mut(machine) {
            entry.members = entry.members.saturating_sub(1);
            if entry.members == 0 {
                self.machines.remove(machine);
            }
        }
    }

    /// `ticket` of `machine`, which has joined, wants to send `bytes`.
    pub fn ask(&mut self, machine: &str, ticket: Ticket, bytes: u64) {
        let floor = self.floor;
        let Some(entry) = self.machines.get_mut(machine) else {
            return;
        };
        if entry.waiting.is_empty() && entry.out == 0 {
            entry.sent = entry.sent.max(floor.saturating_sub(CREDIT));
        }
        let bytes = u32::try_from(bytes).map_or(SLICE, |bytes| bytes.min(SLICE));
        entry.waiting.push_back((ticket, bytes));
    }

    /// `ticket` does not wait any more. Its turn, if it has one, is back with nothing sent.
    pub fn withdraw(&mut self, machine: &str, ticket: Ticket) {
        if let Some(entry) = self.machines.get_mut(machine) {
            entry.waiting.retain(|(waits, _)| *waits != ticket);
        }
        self.done(ticket, 0);
    }

    /// The turn of `ticket` is over; `sent` bytes of it were sent.
    pub fn done(&mut self, ticket: Ticket, sent: u32) {
        let Some((machine, given)) = self.out.remove(&ticket) else {
            return;
        };
        let unsent = u64::from(given.saturating_sub(sent));
        if let Some(total) = &mut self.total {
            total.give_back(unsent);
        }
        if let Some(entry) = self.machines.get_mut(&machine) {
            entry.out -= 1;
            entry.sent -= unsent;
            if let Some(bucket) = &mut entry.bucket {
                bucket.give_back(unsent);
            }
        }
    }

    /// Gives the next turn, if one can be given. Call until it is not [`Next::Turn`].
    pub fn next(&mut self, now: Instant) -> Next {
        if self.out.len() >= self.turns {
            return Next::Nothing;
        }
        if let Some(total) = &mut self.total {
            total.refill(now);
        }
        let mut best: Option<(u64, &String, u64)> = None;
        let mut soonest: Option<Instant> = None;
        for (name, machine) in &mut self.machines {
            let Some((_, wanted)) = machine.waiting.front().copied() else {
                continue;
            };
            if let Some(bucket) = &mut machine.bucket {
                bucket.refill(now);
            }
            // A turn waits until its bucket holds all it wants or is full: not for crumbs.
            let buckets = [self.total.as_ref(), machine.bucket.as_ref()];
            let bytes = buckets
                .iter()
                .flatten()
                .fold(u64::from(wanted), |bytes, bucket| bytes.min(bucket.burst));
            let own = machine.bucket.map_or(Duration::ZERO, |b| b.wait(bytes));
            if own > Duration::ZERO {
                let at = now + own;
                soonest = Some(soonest.map_or(at, |other| other.min(at)));
            } else if best.is_none_or(|(sent, other, _)| (machine.sent, name) < (sent, other)) {
                best = Some((machine.sent, name, bytes));
            }
        }
        let Some((_, name, bytes)) = best else {
            return soonest.map_or(Next::Nothing, Next::At);
        };
        // Whoever is next waits for the total and is not overtaken by those who want less.
        match self.total.map(|total| total.wait(bytes)) {
            Some(wait) if wait > Duration::ZERO => Next::At(now + wait),
            _ => {
                let name = name.clone();
                self.give(name, u32::try_from(bytes).unwrap_or(SLICE))
            }
        }
    }

    fn give(&mut self, name: String, bytes: u32) -> Next {
        let Some(machine) = self.machines.get_mut(&name) else {
            return Next::Nothing;
        };
        let Some((ticket, _)) = machine.waiting.pop_front() else {
            return Next::Nothing;
        };
        self.floor = self.floor.max(machine.sent);
        machine.sent += u64::from(bytes);
        machine.out += 1;
        for bucket in [&mut self.total, &mut machine.bucket].into_iter().flatten() {
            bucket.take(u64::from(bytes));
        }
        self.out.insert(ticket, (name, bytes));
        Next::Turn(ticket, bytes)
    }
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
