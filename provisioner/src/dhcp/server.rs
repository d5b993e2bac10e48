//! Carries decisions out: receive, decide, store, answer, record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anneal_protocol::dhcpv4::{MessageType, Packet};
use anneal_protocol::machine::Mac;
use anneal_protocol::time::Millis;
use anyhow::bail;
use tokio_util::sync::CancellationToken;

use super::BootUrls;
use super::guard::{Limiter, Loaders};
use super::leases::{Change, Leases};
use super::policy::{self, Note, Outcome, Reply, Rules, View};
use super::socket::{Datagram, Interface, ServerSocket};
use super::subnet::contains;
use crate::clock::now;
use crate::event::{Event, Recorder, kind};
use crate::machine::{Cidr, Directory};
use crate::settings::DhcpSettings;
use crate::store::{LeaseChange, Store};

/// How many packets are decided before their leases are stored in one transaction.
const BATCH: usize = 64;
/// Packets of one card in [`FLOOD_WINDOW`] before the rest is dropped. A boot needs about ten.
const FLOOD: u32 = 40;
const FLOOD_WINDOW: Duration = Duration::from_secs(10);
/// One event about an unanswered card in this time.
const IGNORED_WINDOW: Duration = Duration::from_secs(600);
/// Events about unanswered cards in a minute, all together.
const IGNORED_A_MINUTE: u32 = 30;
/// Pause after the socket failed, so that a broken one does not spin.
const AFTER_ERROR: Duration = Duration::from_millis(200);

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct DhcpConfig {
    /// Interface to serve; no other one is heard or answered.
    pub interface: String,
    /// Our address on it.
    pub address: Cidr,
    /// What the operator set.
    pub settings: DhcpSettings,
    /// Where boot files are.
    pub boot: BootUrls,
}

/// What the server has done since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets that arrived.
    pub received: AtomicU64,
    /// Packets that made no sense.
    pub malformed: AtomicU64,
    /// Packets that were understood and deliberately not answered for a recorded reason.
    pub ignored: AtomicU64,
    /// Packets of cards that sent too many.
    pub dropped: AtomicU64,
    /// Offers sent.
    pub offers: AtomicU64,
    /// Acknowledgements sent.
    pub acks: AtomicU64,
    /// Refusals sent.
    pub naks: AtomicU64,
    /// Answers that could not be stored or sent.
    pub failed: AtomicU64,
}

/// The DHCP server.
#[derive(Debug)]
pub struct Server {
    socket: ServerSocket,
    rules: Rules,
    directory: Directory,
    store: Store,
    recorder: Recorder,
    counters: Arc<Counters>,
    leases: Leases,
    flood: Limiter<Mac>,
    ignored_cards: Limiter<Mac>,
    ignored_total: Limiter<()>,
    loaders: Loaders,
}

impl Server {
    /// Checks the settings against the interface, opens the sockets and reads the leases.
    ///
    /// # Errors
    /// When the interface or address does not exist, the pool does not fit, port 67 is taken or
    /// the store fails.
    pub async fn bind(
        config: DhcpConfig,
        directory: Directory,
        store: Store,
        recorder: Recorder,
    ) -> anyhow::Result<Self> {
        let interface = Interface::find(&config.interface)?;
        let ours = config.address.ip;
        if !interface.addresses.contains(&ours) {
            bail!(
                "interface {} does not have the address {ours} (it has {:?}): set it, or correct \
                 `address` in the settings",
                interface.name,
                interface.addresses
            );
        }
        check_pool(&config)?;
        let leases = store.leases().await?;
        let quarantine = store.quarantined_addresses(now()).await?;
        tracing::info!(
            interface = interface.name,
            address = %config.address,
            leases = leases.len(),
            "DHCP listens"
        );
        Ok(Self {
            socket: ServerSocket::bind(interface, ours)?,
            rules: Rules {
                address: config.address,
                settings: config.settings,
                boot: config.boot,
            },
            directory,
            store,
            recorder,
            counters: Arc::default(),
            leases: Leases::new(leases, quarantine),
            flood: Limiter::new(FLOOD, FLOOD_WINDOW),
            ignored_cards: Limiter::new(1, IGNORED_WINDOW),
            ignored_total: Limiter::new(IGNORED_A_MINUTE, Duration::from_secs(60)),
            loaders: Loaders::default(),
        })
    }

    /// What it has done so far; shared, so take it before `run`.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Answers until `stop`.
    ///
    /// # Errors
    /// Never for what clients send or for a wire that fails for a while.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let received = tokio::select! {
                received = self.socket.receive(BATCH) => received,
                () = stop.cancelled() => return Ok(()),
            };
            match received {
                Ok(batch) => self.handle(&batch, now()).await,
                Err(error) => {
                    tracing::warn!(%error, "receiving DHCP packets failed");
                    tokio::select! {
                        () = tokio::time::sleep(AFTER_ERROR) => (),
                        () = stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    /// Decides about a batch, stores its leases at once, then answers.
    async fn handle(&mut self, batch: &[Datagram], now: Millis) {
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut changes = Vec::new();
        for datagram in batch {
            add(&self.counters.received);
            let Some(outcome) = self.decide(datagram, now) else {
                continue;
            };
            if let Some(Change::Store(change)) = &outcome.change {
                changes.push(change.clone());
            }
            outcomes.push(outcome);
        }
        let stored = self.store_changes(&changes, now).await;
        for outcome in outcomes {
            // A grant that could not be stored is not a grant: the client will ask again.
            if stored || !matches!(outcome.change, Some(Change::Store(_))) {
                self.carry_out(outcome, now);
            } else {
                add(&self.counters.failed);
            }
        }
    }

    async fn store_changes(&self, changes: &[LeaseChange], now: Millis) -> bool {
        if changes.is_empty() {
            return true;
        }
        match self.store.change_leases(changes, now).await {
            Ok(()) => true,
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::error!(error = format!("{error:#}"), "storing leases failed");
                false
            }
        }
    }

    /// Decides about one datagram; `None` when it is not even looked at.
    fn decide(&mut self, datagram: &Datagram, now: Millis) -> Option<Outcome> {
        let packet = Packet::parse(&datagram.bytes).ok();
        let Some((packet, mac)) = packet.and_then(|packet| {
            let mac = packet.mac()?;
            Some((packet, mac))
        }) else {
            add(&self.counters.malformed);
            return None;
        };
        if !self.flood.allow(mac, now) {
            add(&self.counters.dropped);
            return None;
        }
        let inventory = self.directory.snapshot();
        let view = View {
            rules: &self.rules,
            inventory: &inventory,
            leases: &self.leases,
            loaders_given: self.loaders.given(mac, packet.xid, now),
            now,
        };
        let outcome = policy::decide(&packet, mac, datagram.arrival, &view);
        if let Some(change) = &outcome.change {
            // At once, so that the next packet of this batch cannot get the same address.
            self.leases.apply(change);
        }
        if outcome.gave_loader_to_ipxe {
            self.loaders.note(mac, packet.xid, now);
        }
        Some(outcome)
    }

    fn carry_out(&mut self, outcome: Outcome, now: Millis) {
        if let Some(reply) = &outcome.reply
            && !self.send(reply)
        {
            return;
        }
        match outcome.note {
            Some(Note::Event(event)) => self.recorder.record(event),
            Some(Note::Ignored {
                mac,
                machine,
                reason,
            }) => self.note_ignored(mac, machine, &reason, now),
            Some(Note::Malformed) => add(&self.counters.malformed),
            None => (),
        }
    }

    fn send(&self, reply: &Reply) -> bool {
        if let Err(error) = self.socket.send(&reply.bytes, reply.to) {
            add(&self.counters.failed);
            tracing::warn!(%error, to = ?reply.to, "sending a DHCP answer failed");
            return false;
        }
        add(match reply.kind {
            MessageType::Offer => &self.counters.offers,
            MessageType::Nak => &self.counters.naks,
            _ => &self.counters.acks,
        });
        true
    }

    /// Anybody on the wire can cause these, so they are few.
    fn note_ignored(&mut self, mac: Mac, machine: Option<String>, reason: &str, now: Millis) {
        add(&self.counters.ignored);
        if !self.ignored_cards.allow(mac, now) || !self.ignored_total.allow((), now) {
            return;
        }
        let event = Event::new(kind::DHCP_IGNORED, format!("{mac}: not answered: {reason}"))
            .data(serde_json::json!({ "mac": mac.to_string(), "reason": reason }));
        self.recorder.record(match machine {
            Some(machine) => event.machine(machine),
            None => event,
        });
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn check_pool(config: &DhcpConfig) -> anyhow::Result<()> {
    let Some((first, last)) = config.settings.pool else {
        if config.settings.serve_unknown {
            bail!("serving unknown machines needs a pool of addresses");
        }
        return Ok(());
    };
    if first > last {
        bail!("the pool {first} - {last} ends before it begins");
    }
    for end in [first, last] {
        if !contains(config.address, end) {
            bail!(
                "the pool address {end} is not in the subnet {}",
                config.address
            );
        }
    }
    Ok(())
}
