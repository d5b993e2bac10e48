//! Which connection fetches which frames from which source next. Pure: no I/O, no clock; time
//! comes in as what has passed since the start.
//!
//! A slot is one connection's place. It asks [`Scheduler::next`], fetches, tells of every frame
//! that came ([`Scheduler::got`]) and how the request ended ([`Scheduler::ended`]). Whoever
//! decodes tells [`Scheduler::right`] or [`Scheduler::wrong`].
//!
//! Invariants: every wanted frame is always verified, received, part of a slot's run, or pending;
//! so as long as one source serves, all of them come. A source that sent wrong bytes is never
//! asked again. Sources of a better tier are preferred; one that failed lately or is much slower
//! than the others comes last, whatever its tier.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::fault::{Fault, Gravity};

/// When to try again and when to give up.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Pause after the first failure of a source; doubles.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
    /// Lasting faults in a row after which a source is dropped.
    pub lasting: u32,
    /// Time without a frame from any source after which, once all have failed, it is given up.
    pub patience: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(15),
            lasting: 3,
            patience: Duration::from_secs(300),
        }
    }
}

/// How much slower than the best a source may be before it comes last.
const SLOW: f64 = 8.0;
/// Bytes before a source's speed is judged.
const SPEED_SAMPLE: u64 = 4 << 20;
/// Failures not yet made good after which a source comes last.
const DEMOTED: u32 = 2;

/// What a slot does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fetch these consecutive frames.
    Fetch {
        /// Which source.
        source: usize,
        /// First and one after the last frame.
        frames: Range<usize>,
    },
    /// Nothing now: ask again when something changed, or after this time.
    Wait(Option<Duration>),
    /// Every frame is verified.
    Done,
    /// No source is left, or none has brought anything for long.
    GiveUp,
}

/// What is known about one source.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Lower is preferred.
    pub tier: u8,
    /// Bytes it sent.
    pub bytes: u64,
    /// Failed requests.
    pub faults: u32,
    /// The last failure.
    pub last_fault: Option<Fault>,
    /// Not asked any more.
    pub dropped: bool,
    /// Failures in a row, of all slots together.
    strikes: u32,
    lasting: u32,
    /// Failures not yet made good by successes.
    debt: u32,
    not_before: Duration,
    active: u32,
    busy: Duration,
}

impl Source {
    /// Bytes per second of one connection, once it is known.
    fn speed(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss, reason = "a rough figure")]
        (self.bytes >= SPEED_SAMPLE && !self.busy.is_zero())
            .then(|| self.bytes as f64 / self.busy.as_secs_f64())
    }
}

#[derive(Debug, Clone)]
struct Active {
    source: usize,
    /// What is still to come.
    rest: Range<usize>,
    since: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    policy: Policy,
    sources: Vec<Source>,
    slots: Vec<Option<Active>>,
    pending: VecDeque<Range<usize>>,
    /// Still to be received (again).
    needed: Vec<bool>,
    /// Wanted and not verified.
    open: usize,
    last_progress: Duration,
    last_failed: Option<usize>,
}

impl Scheduler {
    /// `tiers` has one entry a source; `wanted` one a frame; `runs` covers the wanted ones.
    #[must_use]
    pub fn new(
        policy: Policy,
        tiers: &[u8],
        slots: usize,
        wanted: Vec<bool>,
        runs: Vec<Range<usize>>,
    ) -> Self {
        let source = |tier: &u8| Source {
            tier: *tier,
            ..Source::default()
        };
        Self {
            policy,
            sources: tiers.iter().map(source).collect(),
            slots: vec![None; slots],
            pending: runs.into(),
            open: wanted.iter().filter(|wanted| **wanted).count(),
            needed: wanted,
            last_progress: Duration::ZERO,
            last_failed: None,
        }
    }

    /// What a slot without a request does now.
    pub fn next(&mut self, slot: usize, now: Duration) -> Step {
        if self.is_done() {
            return Step::Done;
        }
        if self.hopeless(now) {
            return Step::GiveUp;
        }
        if self.pending.is_empty() {
            self.split();
        }
        if self.pending.is_empty() {
            return Step::Wait(None);
        }
        let Some(source) = self.choose(now) else {
            let soonest = self
                .sources
                .iter()
                .filter(|source| !source.dropped && source.not_before > now)
                .map(|source| source.not_before - now)
                .min();
            return Step::Wait(soonest);
        };
        let Some(frames) = self.pending.pop_front() else {
            return Step::Wait(None);
        };
        self.sources[source].active += 1;
        self.slots[slot] = Some(Active {
            source,
            rest: frames.clone(),
            since: now,
        });
        Step::Fetch { source, frames }
    }

    /// A frame of the slot's run has come completely. Says whether the next one is still wanted
    /// from it; when not, the request ends well here.
    pub fn got(&mut self, slot: usize, frame: usize, bytes: u64, now: Duration) -> bool {
        let Some(active) = &mut self.slots[slot] else {
            return false;
        };
        active.rest.start = frame + 1;
        self.needed[frame] = false;
        let source = &mut self.sources[active.source];
        source.bytes += bytes;
        source.busy += now.saturating_sub(active.since);
        active.since = now;
        source.strikes = 0;
        source.lasting = 0;
        self.last_progress = now;
        let rest = active.rest.clone();
        !source.dropped && rest.into_iter().any(|frame| self.needed[frame])
    }

    /// Whether a frame of a run is to be kept: not everything that passes is wanted.
    #[must_use]
    pub fn needs(&self, frame: usize) -> bool {
        self.needed[frame]
    }

    /// A slot's request is over; what did not come is somebody else's now.
    pub fn ended(&mut self, slot: usize, outcome: Result<(), Fault>, now: Duration) {
        let Some(active) = self.slots[slot].take() else {
            return;
        };
        let source = &mut self.sources[active.source];
        source.active = source.active.saturating_sub(1);
        match outcome {
            Ok(()) => source.debt = source.debt.saturating_sub(1),
            Err(fault) => self.blame(active.source, fault, now),
        }
        self.give_back(active.rest);
    }

    /// A received frame has the digest that the manifest names.
    pub fn right(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// Whether every wanted frame is verified.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.open == 0
    }

    /// A received frame has not: its source is dropped, and the frame is fetched again.
    pub fn wrong(&mut self, frame: usize, source: usize, now: Duration) {
        self.blame(source, Fault::Corrupt { frame }, now);
        self.needed[frame] = true;
        self.pending.push_front(frame..frame + 1);
    }

    /// The sources, as they were given.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The source that failed last: why it was given up.
    #[must_use]
    pub fn culprit(&self) -> Option<(usize, &Fault)> {
        let index = self.last_failed?;
        Some((index, self.sources[index].last_fault.as_ref()?))
    }

    fn blame(&mut self, index: usize, fault: Fault, now: Duration) {
        let policy = self.policy;
        let source = &mut self.sources[index];
        let gravity = fault.gravity();
        source.faults += 1;
        // Slots that fail together are one failure.
        let together = source.strikes > 0 && now < source.not_before;
        source.last_fault = Some(fault);
        self.last_failed = Some(index);
        if gravity == Gravity::Fatal {
            source.dropped = true;
        }
        if together {
            return;
        }
        source.strikes += 1;
        source.debt = source.debt.saturating_add(1);
        let doubled = policy.first_pause * 2_u32.pow((source.strikes - 1).min(16));
        source.not_before = now + doubled.min(policy.longest_pause);
        source.lasting = match gravity {
            Gravity::Lasting => source.lasting + 1,
            _ => 0,
        };
        source.dropped |= source.lasting >= policy.lasting;
    }

    /// The best source that may be asked now.
    fn choose(&self, now: Duration) -> Option<usize> {
        let speeds = self.sources.iter().filter(|source| !source.dropped);
        let best = speeds.filter_map(Source::speed).fold(0.0, f64::max);
        let ready = self.sources.iter().enumerate().filter(|(_, source)| {
            // After a failure one request finds out whether it serves again.
            !source.dropped
                && source.not_before <= now
                && (source.strikes == 0 || source.active == 0)
        });
        ready
            .min_by_key(|(index, source)| {
                let slow = source.speed().is_some_and(|speed| speed * SLOW < best);
                let last = slow || source.debt >= DEMOTED;
                (last, source.tier, source.active, *index)
            })
            .map(|(index, _)| index)
    }

    fn hopeless(&self, now: Duration) -> bool {
        if self.sources.iter().all(|source| source.dropped) {
            // What came already may still be right.
            return !self.pending.is_empty();
        }
        let mut alive = self.sources.iter().filter(|source| !source.dropped);
        // Not that all are idle: with several, one or the other is always being tried again.
        now.saturating_sub(self.last_progress) >= self.policy.patience
            && alive.all(|source| source.strikes > 0)
    }

    /// Nothing is pending: the slot with the most to come gives half of it away.
    fn split(&mut self) {
        let most = self
            .slots
            .iter_mut()
            .flatten()
            .max_by_key(|active| active.rest.len())
            .filter(|active| active.rest.len() >= 2);
        if let Some(active) = most {
            let middle = active.rest.start + active.rest.len().div_ceil(2);
            let given = middle..active.rest.end;
            active.rest.end = middle;
            self.give_back(given);
        }
    }

    /// Frames that must be fetched by somebody: those of the range that are still needed.
    fn give_back(&mut self, mut frames: Range<usize>) {
        while frames.start < frames.end && !self.needed[frames.start] {
            frames.start += 1;
        }
        while frames.start < frames.end && !self.needed[frames.end - 1] {
            frames.end -= 1;
        }
        if !frames.is_empty() {
            self.pending.push_front(frames);
        }
    }
}

#[cfg(test)]
#[path = "sched_tests.rs"]
mod tests;
