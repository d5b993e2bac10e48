//! Metrics in OpenMetrics text, fed by the event stream: whatever is recorded is counted.
//!
//! Not here: decisions, and labels without a bound (machine names are not labels).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::dhcp::Counters;
use crate::event::{Recorder, kind};
use crate::http::blob::BlobMetrics;
use crate::store::EventRow;
use crate::workflow::Engine;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabel {
    protocol: String,
}

/// The DHCP server counts for itself: most packets cause no event.
#[derive(Debug)]
struct Dhcp(Arc<Counters>);

impl Collector for Dhcp {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let counters = &self.0;
        let help = "DHCP packets: those received, those of them left alone and why, and answers";
        let mut metric =
            encoder.encode_descriptor("dhcp_packets", help, None, MetricType::Counter)?;
        for (what, count) in [
            ("received", &counters.received),
            ("malformed", &counters.malformed),
            ("ignored", &counters.ignored),
            ("dropped", &counters.dropped),
            ("offer", &counters.offers),
            ("ack", &counters.acks),
            ("nak", &counters.naks),
            ("failed", &counters.failed),
        ] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(metric.encode_family(&[("what", what)])?)?;
        }
        Ok(())
    }
}

/// The daemon's metrics; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    events: Family<KindLabel, Counter>,
    runs: Family<StateLabel, Counter>,
    phases: Family<PhaseLabel, Histogram>,
    boot_bytes: Family<ProtocolLabel, Counter>,
    events_lost: Counter,
    image_port: BlobMetrics,
    resident: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// All metrics, at zero, with what a DHCP server counts.
    #[must_use]
    pub fn new(dhcp: Option<Arc<Counters>>) -> Self {
        let mut registry = Registry::with_prefix("anneal");
        if let Some(counters) = dhcp {
            registry.register_collector(Box::new(Dhcp(counters)));
        }
        let events = Family::default();
        registry.register("events", "Events recorded, by kind", events.clone());
        let runs = Family::default();
        registry.register("runs", "Runs that reached a state", runs.clone());
        let phases = Family::new_with_constructor(phase_histogram as fn() -> Histogram);
        registry.register_with_unit(
            "run_phase_duration",
            "Time successful runs spent in each phase",
            Unit::Seconds,
            phases.clone(),
        );
        let boot_bytes = Family::default();
        registry.register(
            "boot_sent_bytes",
            "Boot file bytes sent",
            boot_bytes.clone(),
        );
        let events_lost = Counter::default();
        registry.register(
            "events_lost",
            "Events not stored: the disk could not keep up, or strangers caused too many",
            events_lost.clone(),
        );
        let image_port = BlobMetrics::register(&mut registry);
        let resident = Gauge::default();
        registry.register_with_unit(
            "resident_memory",
            "Resident memory of the daemon",
            Unit::Bytes,
            resident.clone(),
        );
        let registry = Arc::new(registry);
        Self {
            registry,
            events,
            runs,
            phases,
            boot_bytes,
            events_lost,
            image_port,
            resident,
        }
    }

    /// The counters of the image port.
    #[must_use]
    pub fn image_port(&self) -> BlobMetrics {
        self.image_port.clone()
    }

    /// The exposition text.
    #[must_use]
    pub fn render(&self) -> String {
        if let Some(bytes) = resident_memory() {
            self.resident.set(bytes);
        }
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// Counts events until `stop`.
    ///
    /// # Errors
    /// Never; the signature is that of a supervised task.
    pub async fn run(
        self,
        recorder: Recorder,
        engine: Engine,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut watcher = recorder.watch();
        loop {
            let row = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                row = watcher.recv() => row,
            };
            match row {
                Ok(row) if row.id > 0 => self.count(&row, &engine).await,
                // Shown, not stored: progress.
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "metrics fell behind the event stream");
                }
                Err(RecvError::Closed) => return Ok(()),
            }
            let lost = recorder.dropped();
            self.events_lost
                .inc_by(lost.saturating_sub(self.events_lost.get()));
        }
    }

    async fn count(&self, row: &EventRow, engine: &Engine) {
        let event = &row.event;
        self.events
            .get_or_create(&KindLabel {
                kind: event.kind.clone(),
            })
            .inc();
        let protocol = match event.kind.as_str() {
            kind::TFTP => Some("tftp"),
            kind::HTTP => Some("http"),
            _ => None,
        };
        if let (Some(protocol), Some(bytes)) = (protocol, event.data["bytes"].as_u64()) {
            let label = ProtocolLabel {
                protocol: protocol.to_owned(),
            };
            self.boot_bytes.get_or_create(&label).inc_by(bytes);
        }
        let Some(state) = event.kind.strip_prefix(kind::RUN_PREFIX) else {
            return;
        };
        self.runs
            .get_or_create(&StateLabel {
                state: state.to_owned(),
            })
            .inc();
        let Some(run) = event.run.as_deref().filter(|_| state == "succeeded") else {
            return;
        };
        match engine.view(run).await {
            Ok(view) => {
                for phase in view.phases {
                    let label = PhaseLabel { phase: phase.name };
                    let seconds = std::time::Duration::from_millis(phase.duration_ms).as_secs_f64();
                    self.phases.get_or_create(&label).observe(seconds);
                }
            }
            Err(error) => tracing::warn!(run, %error, "phases of a run could not be counted"),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(None)
    }
}

/// From half a second to about half an hour.
fn phase_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.5, 2.0, 12))
}

/// Resident memory of this process in bytes, from `/proc/self/statm`.
fn resident_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size())
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dhcp_counts_is_exported() {
        let counters = Arc::new(Counters::default());
        let metrics = Metrics::new(Some(counters.clone()));
        counters.received.fetch_add(7, Ordering::Relaxed);
        counters.naks.fetch_add(2, Ordering::Relaxed);
        let text = metrics.render();
        for line in [
            "# TYPE anneal_dhcp_packets counter",
            "anneal_dhcp_packets_total{what=\"received\"} 7",
            "anneal_dhcp_packets_total{what=\"nak\"} 2",
            "anneal_dhcp_packets_total{what=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!Metrics::default().render().contains("dhcp"));
    }
}
