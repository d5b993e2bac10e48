//! What happened: recorded by everybody, stored in order, broadcast to whoever watches.
//!
//! Owns: the [`Event`] type, the [`Recorder`] that protocol servers hold, and the writer task
//! that stores events in batches. The boot recorder (a run's timeline) and the facts that the
//! workflow engine looks at (`sightings`) are these same events.
//!
//! Invariants: recording never blocks a protocol server. Events are stored in the order they
//! were recorded, hash-chained. What tells of a run's change is stored in the transaction that
//! makes the change (`store::runs`), all else soon after it happened. Nothing secret is ever in an event.
//!
//! Not here: decisions. An event says what was seen, not what follows from it.

pub mod retention;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anneal_protocol::time::Millis;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::now;
use crate::dhcp::guard::Limiter;
use crate::store::{EventRow, Store};

/// Kinds of events, the stable words of the API. Protocol servers use these constants.
pub mod kind {
    /// A DHCP message came in or went out; `data.message`, `data.stage`, `data.address`.
    pub const DHCP: &str = "dhcp.message";
    /// A DHCPACK went out: the machine has its address.
    pub const DHCP_ACK: &str = "dhcp.ack";
    /// A client we do not know asked; counted, not answered.
    pub const DHCP_IGNORED: &str = "dhcp.ignored";
    /// A TFTP transfer ended; `data.file`, `data.bytes`, `data.duration_ms`.
    pub const TFTP: &str = "tftp.transfer";
    /// An HTTP boot file was sent; `data.file`, `data.bytes`, `data.duration_ms`.
    pub const HTTP: &str = "http.transfer";
    /// A machine fetched an image, or part of one; `data.image`, `data.bytes`, `data.requests`,
    /// `data.duration_ms`. Many ranges are one event.
    pub const IMAGE: &str = "image.transfer";
    /// A boot script was rendered; `data.target` is `agent` or `disk`.
    pub const BOOT_SCRIPT: &str = "boot.script";
    /// The agent redeemed its boot token.
    pub const AGENT_ENROLLED: &str = "agent.enrolled";
    /// The agent asked for its first order in this boot; `data.boot_id`.
    pub const AGENT_HELLO: &str = "agent.hello";
    /// A line from the agent's log.
    pub const AGENT_LOG: &str = "agent.log";
    /// How far a step is; broadcast only, never stored.
    pub const STEP_PROGRESS: &str = "step.progress";
    /// The installed system called home; `data` is the node's report.
    pub const PHONE_HOME: &str = "node.phone-home";
    /// It runs another version than its run installed; `data.installed_version`, `data.version`,
    /// `data.image_version`.
    pub const OTHER_VERSION: &str = "node.other-version";
    /// Talos said something of its start; `data.event` is `sequence`, `phase`, `service` or
    /// `config-error`.
    pub const TALOS_EVENT: &str = "talos.event";
    /// Talos said what it is called and where it is; `data.hostname`, `data.addresses`.
    pub const TALOS_ADDRESS: &str = "talos.address";
    /// Talos said how it is; `data.stage`, `data.ready`, `data.unmet`.
    pub const TALOS_STATUS: &str = "talos.status";
    /// Talos is running and ready; `data` is a node's report with `by`, `evidence`.
    pub const TALOS_READY: &str = "talos.ready";
    /// The Kairos agent said something; `data.boot_state`.
    pub const KAIROS_REPORT: &str = "kairos.report";
    /// The Kairos agent reported from its active image; `data` is a node's report with `by`.
    pub const KAIROS_READY: &str = "kairos.ready";
    /// Power was switched; `data.action`.
    pub const POWER: &str = "bmc.power";
    /// The boot device was set; `data.device`.
    pub const BOOT_DEVICE: &str = "bmc.boot-device";
    /// A document was fetched by its config URL; `data.document`, `data.address`, `data.again`.
    pub const CONFIG_SERVED: &str = "config.served";
    /// A document could not be made when it was fetched, and its token is not used up;
    /// `data.document`, `data.address`, `data.reason`.
    pub const CONFIG_FAILED: &str = "config.failed";
    /// A text that is on its way to a machine holds a token for joining a cluster;
    /// `data.cluster`, `data.why`, `data.expires_at`.
    pub const JOIN_ISSUED: &str = "join.issued";
    /// An issuer made no token; `data.cluster`, `data.reason`.
    pub const JOIN_FAILED: &str = "join.failed";
    /// A token for joining was taken back.
    pub const JOIN_REVOKED: &str = "join.revoked";
    /// A token for joining could not be taken back, and that is tried again; `data.reason`.
    pub const JOIN_UNREVOKED: &str = "join.unrevoked";
    /// Somebody used a token that they should not have.
    pub const TOKEN_ALARM: &str = "token.alarm";
    /// The stored events do not follow from each other: somebody changed them.
    pub const CHAIN_BROKEN: &str = "event.chain-broken";
    /// A run was created, or changed its state: `run.` + state.
    pub const RUN_PREFIX: &str = "run.";
    /// A step changed its state: `step.` + state.
    pub const STEP_PREFIX: &str = "step.";
    /// A machine was registered or its description changed; `data.fields`.
    pub const MACHINE_APPLIED: &str = "machine.applied";
    /// A machine was removed from the inventory.
    pub const MACHINE_REMOVED: &str = "machine.removed";
}

/// Something that happened. `message` is one sentence for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Dotted word, see [`kind`].
    pub kind: String,
    /// Machine it is about.
    pub machine: Option<String>,
    /// Run it is about.
    pub run: Option<String>,
    /// One sentence.
    pub message: String,
    /// Details, without secrets.
    pub data: serde_json::Value,
}

impl Event {
    /// An event about nothing in particular; narrow it with the other methods.
    #[must_use]
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            machine: None,
            run: None,
            message: message.into(),
            data: serde_json::Value::Null,
        }
    }

    /// About this machine.
    #[must_use]
    pub fn machine(mut self, machine: impl Into<String>) -> Self {
        self.machine = Some(machine.into());
        self
    }

    /// About this run.
    #[must_use]
    pub fn run(mut self, run: impl Into<String>) -> Self {
        self.run = Some(run.into());
        self
    }

    /// With these details.
    #[must_use]
    pub fn data(mut self, data: serde_json::Value) -> Self {
        self.data = data;
        self
    }
}

#[derive(Debug)]
struct Entry {
    at: Millis,
    event: Event,
    /// Somebody waits to hear that it is stored; gone when they wait no more.
    done: Option<oneshot::Sender<()>>,
}

impl Entry {
    /// Whether somebody waited for it and gave up: they were told that it is not stored.
    fn is_given_up(&self) -> bool {
        self.done.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// How many events of one kind strangers may cause in each [`STRANGERS_WINDOW`].
const STRANGERS: u32 = 20;
/// See [`STRANGERS`].
const STRANGERS_WINDOW: Duration = Duration::from_secs(60);
/// How many events may wait for the disk before new ones are dropped (and counted).
const BACKLOG: usize = 16_384;
/// How long [`Recorder::record_durably`] waits.
const DURABLE_LIMIT: Duration = Duration::from_secs(10);
/// How often it is tried again to store events for which there is no room.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(500);
/// How many events a slow watcher may fall behind before it has to read the store again.
const WATCH_BACKLOG: usize = 1_024;

/// An event could not be stored, and will not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event was not stored: the disk is full or too slow, or the daemon stops")]
pub struct NotStored;

/// Records events; cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Entry>,
    watchers: broadcast::Sender<Arc<EventRow>>,
    stored: Arc<Notify>,
    dropped: Arc<std::sync::atomic::AtomicU64>,
    strangers: Arc<Mutex<Limiter<String>>>,
}

/// Stores what a [`Recorder`] records; run it as a task.
#[derive(Debug)]
pub struct Writer {
    receiver: mpsc::Receiver<Entry>,
    watchers: broadcast::Sender<Arc<EventRow>>,
    stored: Arc<Notify>,
    store: Store,
}

/// Makes a recorder and the writer that must run for it.
#[must_use]
pub fn channel(store: Store) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let (watchers, _) = broadcast::channel(WATCH_BACKLOG);
    let stored = Arc::new(Notify::new());
    let recorder = Recorder {
        sender,
        watchers: watchers.clone(),
        stored: stored.clone(),
        dropped: Arc::default(),
        strangers: Arc::new(Mutex::new(Limiter::new(STRANGERS, STRANGERS_WINDOW))),
    };
    (
        recorder,
        Writer {
            receiver,
            watchers,
            stored,
            store,
        },
    )
}

impl Recorder {
    /// Records an event without waiting. When the disk cannot keep up, it is dropped and counted.
    pub fn record(&self, event: Event) {
        let entry = Entry {
            at: now(),
            event,
            done: None,
        };
        if self.sender.try_send(entry).is_err() {
            self.dropped
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Records what somebody unknown did: a few of each kind in a while, the rest is only
    /// counted, so that nobody can fill the disk by asking.
    pub fn record_stranger(&self, event: Event) {
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if strangers.allow(event.kind.clone(), now()) {
            drop(strangers);
            self.record(event);
        } else {
            self.dropped
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Records an event and waits until it is stored: for facts that must not be lost, such as
    /// a phone-home, before they are acknowledged.
    ///
    /// # Errors
    /// When it is not stored in time, such as on a full disk, or the writer has stopped: the fact
    /// must not be acknowledged.
    pub async fn record_durably(&self, event: Event) -> Result<(), NotStored> {
        let (done, wait) = oneshot::channel();
        let entry = Entry {
            at: now(),
            event,
            done: Some(done),
        };
        let stored = async {
            self.sender.send(entry).await.map_err(|_| NotStored)?;
            wait.await.map_err(|_| NotStored)
        };
        tokio::time::timeout(DURABLE_LIMIT, stored)
            .await
            .map_err(|_| NotStored)?
    }

    /// Tells watchers of events that somebody has just stored together with what they tell of.
    pub fn announce(&self, rows: Vec<EventRow>) {
        announce(&self.watchers, &self.stored, rows);
    }

    /// Shows an event to watchers without storing it (progress).
    pub fn show(&self, event: Event) {
        // No watcher is not an error.
        let _ = self.watchers.send(Arc::new(EventRow {
            id: 0,
            at: now(),
            event,
        }));
    }

    /// Stored events from now on; `id` 0 marks events that are shown but not stored.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Arc<EventRow>> {
        self.watchers.subscribe()
    }

    /// Wakes whoever waits on it after events were stored: "look again".
    #[must_use]
    pub fn stored(&self) -> Arc<Notify> {
        self.stored.clone()
    }

    /// Events lost because the disk could not keep up.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Writer {
    /// Stores events until `stop`, then what is still waiting, then returns. On a full disk it
    /// keeps what it has and tries again; who waits for an event is told that it is not stored.
    ///
    /// # Errors
    /// When the database fails otherwise, or the disk is still full at the end: the daemon must
    /// not go on without its record.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        const BATCH: usize = 256;
        let mut entries = Vec::with_capacity(BATCH);
        loop {
            let received = tokio::select! {
                n = self.receiver.recv_many(&mut entries, BATCH) => n,
                () = stop.cancelled() => {
                    self.receiver.close();
                    self.receiver.recv_many(&mut entries, BATCH).await
                }
            };
            if received == 0 {
                return Ok(());
            }
            self.store_batch(&mut entries, &stop).await?;
        }
    }

    async fn store_batch(
        &self,
        entries: &mut Vec<Entry>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut told = false;
        loop {
            entries.retain(|entry| !entry.is_given_up());
            let events: Vec<(Millis, Event)> = entries
                .iter()
                .map(|entry| (entry.at, entry.event.clone()))
                .collect();
            let error = match self.store.append_events(&events).await {
                Ok(rows) => {
                    announce(&self.watchers, &self.stored, rows);
                    for done in entries.drain(..).filter_map(|entry| entry.done) {
                        // They may have stopped waiting this very moment.
                        let _ = done.send(());
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            if !error.is_out_of_space() || stop.is_cancelled() {
                return Err(error.into());
            }
            if !told {
                tracing::error!(%error, "events wait: the disk of the state directory is full");
                told = true;
            }
            entries.retain(|entry| entry.done.is_none());
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(NO_ROOM_PAUSE) => {}
            }
        }
    }
}

/// Tells watchers of stored events. Batches may come out of order; who needs the order reads the
/// store.
fn announce(watchers: &broadcast::Sender<Arc<EventRow>>, stored: &Notify, rows: Vec<EventRow>) {
    for row in rows {
        tracing::debug!(
            kind = row.event.kind,
            machine = row.event.machine,
            run = row.event.run,
            message = row.event.message,
            "event"
        );
        // No watcher is not an error.
        let _ = watchers.send(Arc::new(row));
    }
    stored.notify_waiters();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stores_in_order_and_chains() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, writer) = channel(store.clone());
        let stop = CancellationToken::new();
        let task = tokio::spawn(writer.run(stop.clone()));
        for n in 0..600 {
            recorder.record(Event::new("test.n", n.to_string()).machine("r1n1"));
        }
        recorder
            .record_durably(Event::new("test.last", "last").machine("r1n1"))
            .await
            .unwrap();
        let rows = store
            .events_after(0, 1000, Some("r1n1"), None)
            .await
            .unwrap();
        assert_eq!(rows.len(), 601);
        assert!(rows.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert_eq!(store.broken_event_chain().await.unwrap(), None);
        let sightings = store.sightings("r1n1").await.unwrap();
        assert_eq!(sightings.len(), 2);
        sqlx::query("UPDATE events SET message = 'forged' WHERE id = 300")
            .execute(&store.writer)
            .await
            .unwrap();
        assert_eq!(store.broken_event_chain().await.unwrap(), Some(300));
        stop.cancel();
        task.await.unwrap().unwrap();
    }
}
