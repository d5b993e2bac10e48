//! What `stream-image` is told beyond image and disk, and what it says when it is done.
//!
//! Types only; [`agent`](crate::agent) names them where they travel.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What `stream-image` reads again after writing, past every cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Nothing: frames were verified before they were written.
    None,
    /// What was written or zeroed.
    Changed,
    /// The whole image.
    #[default]
    Full,
}

/// Whether `stream-image` looks at what is on the disk first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delta {
    /// Yes, as long as it can pay: only what differs is fetched and written.
    #[default]
    Auto,
    /// No: everything is fetched and written.
    Off,
}

/// How `stream-image` goes about it. Everything may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Whether to look at the disk first.
    #[serde(default)]
    pub delta: Delta,
    /// URLs of the image's `data.zst`, or of the folder that holds it (with a `/` at the end):
    /// `http://` or `https://`. None of them is trusted. The agent adds the daemon's own
    /// endpoint as the last resort.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Addresses of the names in `sources`: the netboot environment has no resolver.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Most memory for bytes on their way, in MiB; none: 256, and never more than the machine
    /// can spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// Connections at the same time; none: the agent decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// The partition that takes what the disk has beyond the image: `last`, or a label, number or
    /// UUID; it must be the last on the disk. None: the table stays as the image has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grow: Option<String>,
    /// File-system labels by which the installed system finds its own partitions: when another
    /// disk of the machine has one of them, nothing is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unique_labels: Vec<String>,
}

impl StreamOptions {
    /// Whether nothing was said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Result of `stream-image`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamResult {
    /// Kernel name of the disk that was written, for the record.
    pub disk: String,
    /// Serial of that disk.
    pub serial: Option<String>,
    /// Image id.
    pub image: String,
    /// Size of the raw image in bytes.
    pub bytes: u64,
    /// Frames and bytes of data written.
    pub written: Amount,
    /// Frames and bytes made zero (discarded, where the disk promises that zeros remain).
    pub zeroed: Amount,
    /// Frames and bytes that were right already and left alone.
    pub unchanged: Amount,
    /// What was read from the disk and compared before the first write.
    pub compared: Amount,
    /// What was read back after the last write and was right; absent with `verify: none`.
    pub read_back: Option<Amount>,
    /// Bytes of image data that came over the network, useless ones included.
    pub transferred: u64,
    /// The same by source, in the order of preference.
    pub sources: Vec<SourceUse>,
    /// Where the time went.
    pub times: StreamTimes,
    /// Time from the first request to the last flush, milliseconds.
    pub duration_ms: u64,
    /// Bytes of the partition that was grown; absent when none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown: Option<u64>,
    /// Most memory the agent had in use, in bytes (`VmHWM`); 0 when the kernel does not say.
    pub peak_memory: u64,
}

/// Frames, and the bytes of the raw disk that they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    /// Counts one frame of so many bytes.
    pub fn add(&mut self, bytes: u64) {
        self.frames += 1;
        self.bytes += bytes;
    }
}

/// What one source was good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceUse {
    /// Its URL, without credentials.
    pub url: String,
    /// Bytes of image data that it sent.
    pub bytes: u64,
    /// How often a request to it failed.
    pub faults: u32,
    /// The last of these failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fault: Option<String>,
    /// It was not asked any more: wrong bytes, or the same refusal over and over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// Milliseconds of each part. Fetching and writing overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamTimes {
    /// Reading and hashing what was on the disk.
    pub compare_ms: u64,
    /// From the first request for data to the last byte.
    pub fetch_ms: u64,
    /// From the first change of the disk to the last flush, reading back not counted.
    pub write_ms: u64,
    /// Reading back.
    pub verify_ms: u64,
}
