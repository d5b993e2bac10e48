//! Counters of the image port.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Images that are counted one by one; what is sent of others is counted together.
const MOST_IMAGES: usize = 64;
/// The label of the others.
const OTHERS: &str = "others";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ImageLabel {
    image: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: u16,
}

/// What the image port counts; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct BlobMetrics {
    bytes: Counter,
    images: Family<ImageLabel, Counter>,
    known: Arc<Mutex<HashSet<String>>>,
    requests: Family<StatusLabel, Counter>,
    connections: Gauge,
    refused: Counter,
}

impl BlobMetrics {
    /// Counters at zero, in `registry`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let own = Self::default();
        registry.register(
            "image_port_sent_bytes",
            "Image bytes sent by the image port",
            own.bytes.clone(),
        );
        registry.register(
            "image_sent_bytes",
            "Image bytes sent by the image port, by image (first 12 digits of its id)",
            own.images.clone(),
        );
        registry.register(
            "image_port_requests",
            "Answers of the image port, by status",
            own.requests.clone(),
        );
        registry.register(
            "image_port_connections",
            "Connections open at the image port",
            own.connections.clone(),
        );
        registry.register(
            "image_port_refused",
            "Connections not taken because there were too many",
            own.refused.clone(),
        );
        own
    }

    /// Bytes that went out.
    pub(super) fn sent(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// Bytes of an image (hex) that a finished body had.
    pub(super) fn image(&self, hex: &str, bytes: u64) {
        let short = hex.get(..12).unwrap_or(hex);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let counted =
            known.contains(short) || (known.len() < MOST_IMAGES && known.insert(short.to_owned()));
        drop(known);
        let image = if counted { short } else { OTHERS }.to_owned();
        self.images
            .get_or_create(&ImageLabel { image })
            .inc_by(bytes);
    }

    /// An answer with this status.
    pub(super) fn answered(&self, status: u16) {
        self.requests.get_or_create(&StatusLabel { status }).inc();
    }

    /// A connection was taken.
    pub(super) fn opened(&self) {
        self.connections.inc();
    }

    /// A connection ended.
    pub(super) fn closed(&self) {
        self.connections.dec();
    }

    /// A connection was not taken.
    pub(super) fn refused(&self) {
        self.refused.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_labels_is_bounded() {
        let mut registry = Registry::default();
        let metrics = BlobMetrics::register(&mut registry);
        for n in 0..1_000 {
            metrics.image(&format!("{n:064}").chars().rev().collect::<String>(), 1);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let labels = text.matches("image_sent_bytes_total{").count();
        assert_eq!(labels, MOST_IMAGES + 1, "{text}");
        let others = 1_000 - MOST_IMAGES;
        assert!(
            text.contains(&format!("{{image=\"others\"}} {others}")),
            "{text}"
        );
    }
}
