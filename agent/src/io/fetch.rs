//! Fetches frames over several connections, from several sources, as the [`Scheduler`] says, and
//! hands them to whoever decodes.
//!
//! Threads of its own: fetching goes on while the disk is written, and uses more than one
//! processor when TLS needs it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anneal_image::Manifest;
use anneal_protocol::agent::{FailureCode, SourceUse, StepFailure};
use tokio::sync::watch;

use super::fault::Fault;
use super::memory::{Budget, Buffer};
use super::runs::runs;
use super::sched::{Policy, Scheduler, Step};
use super::source::{Clients, Hosts, Origin};
use crate::step::{fail, fail_for_now};

/// Threads that receive, at most: the rest of the processors decodes.
const MOST_THREADS: usize = 4;
/// Connections when nothing else was said.
pub const DEFAULT_CONNECTIONS: usize = 4;
/// Seconds without enough bytes after which a connection is taken to be dead.
pub const DEFAULT_STALL: Duration = Duration::from_secs(30);

/// How to fetch.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where from, best first within a tier.
    pub origins: Vec<Origin>,
    /// Addresses of their names.
    pub hosts: Hosts,
    /// At the same time, over all sources.
    pub connections: usize,
    /// See [`DEFAULT_STALL`].
    pub stall: Duration,
    /// When to try again and when to give up.
    pub policy: Policy,
    /// Most bytes received and not yet decoded.
    pub waiting: u64,
}

/// A frame as it came: not verified.
#[derive(Debug)]
pub struct Parcel {
    /// Index of the frame.
    pub index: usize,
    /// Which source sent it.
    pub source: usize,
    /// Its zstd frame.
    pub buffer: Buffer,
}

#[derive(Debug)]
struct State {
    scheduler: Scheduler,
    parcels: VecDeque<Parcel>,
    /// Nothing more is handed out; with the reason, if it is a failure.
    over: Option<Option<StepFailure>>,
    last_byte: Duration,
}

#[derive(Debug)]
struct Shared {
    manifest: Arc<Manifest>,
    settings: Settings,
    budget: Budget,
    state: Mutex<State>,
    /// A parcel came, or it is over.
    arrived: Condvar,
    /// The scheduler has something new to say.
    changed: watch::Sender<u64>,
    begin: Instant,
    transferred: AtomicU64,
}

/// Frames on their way. Dropping it ends the fetching.
#[derive(Debug)]
pub struct Fetch {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Fetch {
    /// Begins to fetch the wanted frames, one flag a frame.
    ///
    /// # Errors
    /// `BadOrder` without a source, `Internal` when threads or TLS cannot be set up.
    pub fn start(
        manifest: &Arc<Manifest>,
        wanted: Vec<bool>,
        settings: Settings,
    ) -> Result<Self, StepFailure> {
        if settings.origins.is_empty() {
            return Err(fail(
                FailureCode::BadOrder,
                "no source of image data is given",
            ));
        }
        let tiers: Vec<u8> = settings.origins.iter().map(|origin| origin.tier).collect();
        let cut = runs(manifest, &wanted);
        let slots = settings.connections.max(1);
        let scheduler = Scheduler::new(settings.policy, &tiers, slots, wanted, cut);
        let shared = Arc::new(Shared {
            manifest: manifest.clone(),
            budget: Budget::new(settings.waiting),
            state: Mutex::new(State {
                scheduler,
                parcels: VecDeque::new(),
                over: None,
                last_byte: Duration::ZERO,
            }),
            arrived: Condvar::new(),
            changed: watch::Sender::new(0),
            begin: Instant::now(),
            transferred: AtomicU64::new(0),
            settings,
        });
        let mut fetch = Self {
            shared,
            threads: Vec::new(),
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = slots.min(cpus).min(MOST_THREADS);
        for first in 0..threads {
            fetch
                .spawn((first..slots).step_by(threads).collect())
                .map_err(|e| {
                    fail_for_now(
                        FailureCode::Internal,
                        format!("cannot start to fetch: {e:#}"),
                    )
                })?;
        }
        Ok(fetch)
    }

    /// A thread for these slots.
    fn spawn(&mut self, slots: Vec<usize>) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let clients = {
            let _inside = runtime.enter();
            Clients::new(&self.shared.settings.origins, &self.shared.settings.hosts)?
        };
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name("fetch".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let clients = Arc::new(clients);
                    let mut tasks = tokio::task::JoinSet::new();
                    for slot in slots {
                        tasks.spawn(run_slot(shared.clone(), clients.clone(), slot));
                    }
                    let mut over = shared.changed.subscribe();
                    tokio::select! {
                        _ = async { while tasks.join_next().await.is_some() {} } => {}
                        // Whatever is still on its way is not wanted.
                        _ = over.wait_for(|_| shared.state().over.is_some()) => {}
                    }
                });
                // A name that is still being looked up is not waited for.
                runtime.shutdown_background();
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// The next frame to decode; waits for it. None when all are verified or it was stopped.
    ///
    /// # Errors
    /// Why no more will come.
    pub fn next(&self) -> Result<Option<Parcel>, StepFailure> {
        let mut state = self.shared.state();
        loop {
            if let Some(over) = &state.over {
                return match over {
                    Some(failure) => Err(failure.clone()),
                    None => Ok(None),
                };
            }
            if let Some(parcel) = state.parcels.pop_front() {
                return Ok(Some(parcel));
            }
            state = self
                .shared
                .arrived
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says whether a frame had the right digest. One that had not is fetched again, from
    /// another source.
    pub fn judge(&self, index: usize, source: usize, right: bool) {
        let now = self.shared.begin.elapsed();
        let mut state = self.shared.state();
        if right {
            state.scheduler.right();
            // Nothing changes for a slot that waits, but at the end.
            if !state.scheduler.is_done() {
                return;
            }
        } else {
            state.scheduler.wrong(index, source, now);
            let name = &self.shared.settings.origins[source].name;
            tracing::warn!(
                source = name,
                frame = index,
                "wrong bytes: this source is not asked any more"
            );
        }
        drop(state);
        self.shared.wake();
    }

    /// Ends it: nobody waits any more.
    pub fn stop(&self) {
        self.shared.end(None);
    }

    /// Bytes received so far.
    #[must_use]
    pub fn transferred(&self) -> u64 {
        self.shared.transferred.load(Ordering::Relaxed)
    }

    /// What each source was good for, and the time from the first request to the last byte.
    #[must_use]
    pub fn account(&self) -> (Vec<SourceUse>, Duration) {
        let state = self.shared.state();
        let origins = &self.shared.settings.origins;
        let sources = state.scheduler.sources().iter().zip(origins);
        let uses = sources.map(|(source, origin)| SourceUse {
            url: origin.name.clone(),
            bytes: source.bytes,
            faults: source.faults,
            last_fault: source.last_fault.as_ref().map(ToString::to_string),
            dropped: source.dropped,
        });
        (uses.collect(), state.last_byte)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // A panic in it has been reported by the hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    fn end(&self, failure: Option<StepFailure>) {
        let mut state = self.state();
        if state.over.is_none() {
            state.over = Some(failure);
            state.parcels.clear();
        }
        drop(state);
        self.budget.close();
        self.arrived.notify_all();
        self.wake();
    }

    /// Why it was given up: the source that failed last gives it its name.
    fn hopeless(&self) -> StepFailure {
        let state = self.state();
        let origins = &self.settings.origins;
        let code = match state.scheduler.culprit() {
            Some((_, fault)) => fault.code(),
            None => FailureCode::Server,
        };
        let sources = state.scheduler.sources().iter().zip(origins);
        let reasons: Vec<String> = sources
            .map(|(source, origin)| match &source.last_fault {
                Some(fault) => format!("{} {fault}", origin.name),
                None => format!("{} was not asked", origin.name),
            })
            .collect();
        let text = format!("no source serves the image data: {}", reasons.join("; "));
        fail_for_now(code, text)
    }
}

/// One connection's life: asks what to do, does it, tells.
async fn run_slot(shared: Arc<Shared>, clients: Arc<Clients>, slot: usize) {
    let mut changed = shared.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let step = {
            let mut state = shared.state();
            if state.over.is_some() {
                return;
            }
            state.scheduler.next(slot, shared.begin.elapsed())
        };
        match step {
            Step::Fetch { source, frames } => {
                let outcome = fetch_run(&shared, &clients, slot, source, frames).await;
                if let Err(fault) = &outcome {
                    let name = &shared.settings.origins[source].name;
                    tracing::warn!(source = name, "image data: {fault}");
                }
                let now = shared.begin.elapsed();
                shared.state().scheduler.ended(slot, outcome, now);
                shared.wake();
            }
            Step::Wait(pause) => {
                let pause = pause.unwrap_or(Duration::from_secs(3600));
                // Either way: look again.
                let _ = tokio::time::timeout(pause, changed.changed()).await;
            }
            Step::Done => return shared.end(None),
            Step::GiveUp => return shared.end(Some(shared.hopeless())),
        }
    }
}

/// One request: every frame of the run that comes completely is handed on.
async fn fetch_run(
    shared: &Shared,
    clients: &Clients,
    slot: usize,
    source: usize,
    frames: Range<usize>,
) -> Result<(), Fault> {
    let manifest = &shared.manifest;
    let settings = &shared.settings;
    let mut body = clients
        .open(
            &settings.origins,
            source,
            manifest.data_range(frames.clone()),
            manifest.data_size(),
            settings.stall,
        )
        .await?;
    for index in frames {
        let length = manifest.frames()[index].length;
        let Some(mut buffer) = shared.budget.take(length as usize).await else {
            return Ok(());
        };
        body.read(length as usize, &mut buffer.bytes).await?;
        shared
            .transferred
            .fetch_add(u64::from(length), Ordering::Relaxed);
        let now = shared.begin.elapsed();
        let mut state = shared.state();
        let wanted = state.scheduler.needs(index);
        let more = state.scheduler.got(slot, index, u64::from(length), now);
        if wanted && state.over.is_none() {
            state.last_byte = now;
            state.parcels.push_back(Parcel {
                index,
                source,
                buffer,
            });
            shared.arrived.notify_one();
        }
        if !more {
            break;
        }
    }
    Ok(())
}
