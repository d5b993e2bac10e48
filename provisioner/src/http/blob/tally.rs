//! What was sent to whom: summed up, so that thousands of ranges are one fact, not thousands.
//!
//! A machine that writes an image asks for hundreds of ranges over several connections. They are
//! one entry until the machine has asked for nothing for [`QUIET`]; then the entry becomes one
//! `image.transfer` event with bytes, requests and time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::head::Part;
use super::metrics::BlobMetrics;
use crate::event::{Event, Recorder, kind};

/// A machine that asks for nothing for so long has finished.
const QUIET: Duration = Duration::from_secs(5);

/// One who fetches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// Its machine, if the inventory knows the address.
    pub(super) machine: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    client: Client,
    image: String,
    part: Part,
}

#[derive(Debug)]
struct Sum {
    bytes: u64,
    requests: u64,
    open: usize,
    began: Instant,
    last: Instant,
}

/// All sums that are still growing.
#[derive(Debug)]
pub(super) struct Tally {
    sums: Mutex<HashMap<Key, Sum>>,
    recorder: Recorder,
    metrics: BlobMetrics,
}

/// One body on its way; counted when it is dropped, whole or cut short.
#[derive(Debug)]
pub(super) struct Transfer {
    tally: Arc<Tally>,
    key: Key,
    sent: u64,
}

impl Tally {
    pub(super) fn new(recorder: Recorder, metrics: BlobMetrics) -> Self {
        Self {
            sums: Mutex::default(),
            recorder,
            metrics,
        }
    }

    /// A body begins.
    pub(super) fn begin(self: &Arc<Self>, client: &Client, image: &str, part: Part) -> Transfer {
        let key = Key {
            client: client.clone(),
            image: image.to_owned(),
            part,
        };
        let now = Instant::now();
        let mut sums = self.lock();
        let sum = sums.entry(key.clone()).or_insert(Sum {
            bytes: 0,
            requests: 0,
            open: 0,
            began: now,
            last: now,
        });
        sum.open += 1;
        sum.requests += 1;
        drop(sums);
        Transfer {
            tally: self.clone(),
            key,
            sent: 0,
        }
    }

    /// Records what has been quiet since [`QUIET`] before `now`, or everything.
    pub(super) fn record(&self, now: Instant, everything: bool) {
        let over = |sum: &Sum| {
            everything || (sum.open == 0 && now.saturating_duration_since(sum.last) >= QUIET)
        };
        let ended: Vec<(Key, Sum)> = self.lock().extract_if(|_, sum| over(sum)).collect();
        for (key, sum) in ended {
            // Clients that gave up before the first byte are nobody's fact.
            if sum.bytes > 0 {
                self.tell(&key, &sum);
            }
        }
    }

    fn tell(&self, key: &Key, sum: &Sum) {
        let Client { address, machine } = &key.client;
        let who = machine.clone().unwrap_or_else(|| address.to_string());
        let file = format!("{}/{}", key.image, key.part.name());
        let message = format!(
            "{who} fetched {} bytes of image {:.12} in {} requests",
            sum.bytes, key.image, sum.requests
        );
        let mut event = Event::new(kind::IMAGE, message).data(json!({
            "file": file,
            "image": format!("blake3:{}", key.image),
            "bytes": sum.bytes,
            "requests": sum.requests,
            "duration_ms": u64::try_from((sum.last - sum.began).as_millis()).unwrap_or(u64::MAX),
            "address": address,
        }));
        if machine.is_none() {
            self.recorder.record_stranger(event);
            return;
        }
        event.machine.clone_from(machine);
        self.recorder.record(event);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Sum>> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfer {
    /// So many bytes more were sent.
    pub(super) fn add(&mut self, bytes: u64) {
        self.sent += bytes;
        self.tally.metrics.sent(bytes);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.tally.metrics.image(&self.key.image, self.sent);
        let mut sums = self.tally.lock();
        if let Some(sum) = sums.get_mut(&self.key) {
            sum.bytes += self.sent;
            sum.open = sum.open.saturating_sub(1);
            sum.last = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;
    use crate::store::Store;

    #[tokio::test]
    async fn many_ranges_are_one_fact_once_it_is_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, writer) = event::channel(store.clone());
        let writer = tokio::spawn(writer.run(tokio_util::sync::CancellationToken::new()));
        let tally = Arc::new(Tally::new(recorder.clone(), BlobMetrics::default()));
        let client = Client {
            address: [10, 77, 0, 11].into(),
            machine: Some("r1n1".to_owned()),
        };
        let image = "ab".repeat(32);
        for _ in 0..1_000 {
            tally.begin(&client, &image, Part::Data).add(10);
        }
        let open = tally.begin(&client, &image, Part::Data);
        let later = Instant::now() + QUIET * 2;
        tally.record(later, false);
        assert_eq!(tally.lock().len(), 1, "a body is still on its way");
        drop(open);
        tally.record(Instant::now(), false);
        assert_eq!(tally.lock().len(), 1, "it is not quiet yet");
        tally.record(later, false);
        assert_eq!(tally.lock().len(), 0);
        recorder
            .record_durably(Event::new("test.last", "last"))
            .await
            .unwrap();
        let events = store.events_after(0, 10, Some("r1n1"), None).await.unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].event.kind, kind::IMAGE);
        assert_eq!(events[0].event.data["bytes"], 10_000);
        assert_eq!(events[0].event.data["requests"], 1_001);
        writer.abort();
    }
}
