//! The agent protocol: HTTP/1.1 with JSON bodies over TLS.
//!
//! | call | who | what |
//! |---|---|---|
//! | `POST /agent/v1/enroll` | TLS, server pinned by CA fingerprint | boot token + CSR -> client certificate |
//! | `POST /agent/v1/next` | mutual TLS | long poll for the next order |
//! | `POST /agent/v1/report` | mutual TLS | progress and log lines, batched |
//! | `POST /agent/v1/result` | mutual TLS | how an order ended; repeated until acknowledged |
//! | `GET /agent/v1/images/{id}/manifest` | mutual TLS | [`SignedManifest`](#) as stored |
//! | `GET /agent/v1/images/{id}/data` | mutual TLS | `data.zst`, with ranges |
//!
//! Invariants: every call may be repeated; an order is named by run, step and attempt, and the
//! daemon ignores whatever names an attempt that is over. The agent keeps no state across boots:
//! a new boot has a new `boot_id`, and what the old one was doing is lost and run again.

use serde::{Deserialize, Serialize};

use crate::disk::{DiskInfo, DiskSelector};
use crate::machine::Mac;
pub use crate::stream::{
    Amount, Delta, SourceUse, StreamOptions, StreamResult, StreamTimes, Verify,
};

/// Body of `enroll`: trade the boot token for a certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The boot token from the kernel command line.
    pub token: String,
    /// Machine the boot script named; must be the one the token was made for.
    pub machine: String,
    /// PKCS#10 request, PEM. The key never leaves the agent. A repeated call with the same key
    /// is answered with the same certificate; with another key it is a replay.
    pub csr: String,
    /// MAC of the NIC that booted.
    pub mac: Mac,
    /// Random, fresh for every boot of the agent.
    pub boot_id: String,
    /// SMBIOS system UUID, if readable.
    #[serde(default)]
    pub uuid: Option<String>,
}

/// Answer to `enroll`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// Client certificate, PEM; names machine and run; lives for hours.
    pub certificate: String,
    /// The CA, PEM; its fingerprint is the pinned one.
    pub ca: String,
    /// Ed25519 public keys (32 bytes, hex): one of them must have signed an image's manifest. The
    /// first signs now, the others did before.
    pub image_keys: Vec<String>,
    /// The run to work for.
    pub run: String,
}

/// Body of `next`. The daemon holds the call for up to 25 s when there is nothing to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NextRequest {
    /// Run this agent booted for.
    pub run: String,
    /// This boot.
    pub boot_id: String,
    /// What the machine has; sent with the first call of a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
}

/// Answer to `next`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "next", rename_all = "kebab-case")]
pub enum Next {
    /// Carry this out.
    Order(Box<Order>),
    /// Nothing yet; ask again after so many milliseconds.
    Wait {
        /// Pause before the next call.
        after_ms: u64,
    },
    /// The run is over and nothing more will come; the agent idles, asking seldom, and leaves
    /// the power to the daemon.
    Finished {
        /// Why, for the console.
        reason: String,
    },
}

/// Names one attempt at one step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OrderId {
    /// Run.
    pub run: String,
    /// Position of the step in the run, on-failure steps counted on.
    pub step: u32,
    /// Attempt, from 1.
    pub attempt: u32,
}

/// One step to carry out now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Which attempt this is.
    pub id: OrderId,
    /// The step's name as the author wrote it.
    pub name: String,
    /// What to do.
    pub action: AgentAction,
    /// Time left until the step's deadline, in milliseconds, when the order was sent.
    pub timeout_ms: u64,
}

/// What an agent can do. Adding one here and in `agent/src/step.rs` is all it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "uses", rename_all = "kebab-case")]
pub enum AgentAction {
    /// Report the hardware. Result: [`Inventory`].
    Inventory,
    /// Erase signatures and discard (or zero) one disk. Result: [`WipeResult`].
    WipeDisk {
        /// Which disk.
        disk: DiskSelector,
    },
    /// Write a sealed image. Result: [`StreamResult`].
    StreamImage {
        /// Image id: the digest of its canonical manifest.
        image: String,
        /// Which disk.
        disk: DiskSelector,
        /// What to read again afterwards.
        verify: Verify,
        /// No image data for this long, from wherever it is asked for: the attempt fails.
        #[serde(default = "stall_timeout_ms")]
        stall_timeout_ms: u64,
        /// Where from, and how.
        #[serde(default, skip_serializing_if = "StreamOptions::is_default")]
        options: StreamOptions,
    },
    /// Compare a disk with a sealed image; write nothing. Result:
    /// [`AuditResult`](crate::audit::AuditResult).
    AuditDisk {
        /// Image id.
        image: String,
        /// Which disk.
        disk: DiskSelector,
    },
    /// Put one file onto a file system of the installed disk. Result: [`WriteFileResult`].
    WriteFile {
        /// Which disk the partition must be on.
        disk: DiskSelector,
        /// Which partition of it.
        partition: PartitionRef,
        /// Absolute path inside the file system; parents are made.
        path: String,
        /// The bytes, base64. May hold secrets: never logged.
        contents_base64: String,
        /// Permission bits, octal text such as `0600`.
        mode: String,
        /// Those of parents that have to be made; default `0755`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        directory_mode: Option<String>,
        /// Numeric owner.
        #[serde(default)]
        uid: u32,
        /// Numeric group.
        #[serde(default)]
        gid: u32,
    },
    /// Edit the kernel arguments that the boot loader of the installed disk gives: of every entry (Boot Loader
    /// Specification, type 1: `loader/entries/*.conf`, else `boot/loader/entries/*.conf`), or where there are none of
    /// every `linux` line in `grub/grub.cfg`, else `boot/grub/grub.cfg`. Result: [`BootArgumentsResult`].
    BootArguments {
        /// Which disk the partition must be on.
        disk: DiskSelector,
        /// The partition that holds one of these; when it is not given, the only one that does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        partition: Option<PartitionRef>,
        /// Arguments that each entry or line has afterwards. May hold secrets: never logged.
        #[serde(default)]
        add: Vec<String>,
        /// Arguments that none has afterwards, as they stand there, or `key=*` for every value of
        /// a key. Words with a GRUB variable are left alone.
        #[serde(default)]
        remove: Vec<String>,
    },
    /// Set keys of the partition `META` of an installed Talos; the others stay. Result:
    /// [`TalosMetaResult`].
    WriteTalosMeta {
        /// Which disk the partition must be on.
        disk: DiskSelector,
        /// The keys, each once.
        values: Vec<MetaValue>,
    },
    /// Start a kernel found on the installed disk, without firmware. Success is the next boot.
    Kexec {
        /// Which disk.
        disk: DiskSelector,
        /// Partition that holds the files.
        partition: PartitionRef,
        /// Path of the kernel on it.
        kernel: String,
        /// Path of the initramfs on it.
        #[serde(default)]
        initramfs: Option<String>,
        /// Kernel command line.
        cmdline: String,
    },
    /// Restart through the firmware. Success is the next boot.
    Reboot,
    /// Switch the machine off.
    PowerOff,
    /// Gather logs and disk state for a failed run. Result: [`Evidence`].
    CollectEvidence,
}

impl AgentAction {
    /// Whether the machine leaves the agent when it obeys: the result is then
    /// [`Outcome::Leaving`], and success is seen from outside.
    #[must_use]
    pub fn leaves_agent(&self) -> bool {
        matches!(self, Self::Kexec { .. } | Self::Reboot | Self::PowerOff)
    }
}

/// How long image data may fail to come when nothing else was asked for: 5 minutes, long enough
/// for a switch to restart.
#[must_use]
pub fn stall_timeout_ms() -> u64 {
    5 * 60 * 1_000
}

/// A partition, by what does not change between boots. All given fields must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionRef {
    /// File-system label or GPT partition name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// File-system label only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_label: Option<String>,
    /// GPT unique partition GUID or the file system's UUID (for vfat its serial, `1A2B-3C4D`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// GPT partition type GUID.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_guid: Option<String>,
    /// Number, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
}

/// A key of Talos' META partition, and what it holds afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetaValue {
    /// From 1: 0 is the end of a record.
    pub key: u8,
    /// The bytes, base64. May hold secrets: never logged.
    pub contents_base64: String,
}

/// Body of `report`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Order it is about.
    pub order: OrderId,
    /// This boot.
    pub boot_id: String,
    /// How far along; absent when unchanged.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// Log lines since the last report, oldest first.
    #[serde(default)]
    pub logs: Vec<LogLine>,
    /// Log lines dropped because the buffer was full.
    #[serde(default)]
    pub logs_dropped: u64,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes per second of late; 0 when not measured.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rate: u64,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One line for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since the Unix epoch by the agent's clock.
    pub at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// The text.
    pub text: String,
}

/// Answer to `report`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportAck {
    /// The attempt is over for the daemon (cancelled, timed out, superseded): stop.
    pub abandon: bool,
}

/// Body of `result`. Repeated until acknowledged with 2xx.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepResult {
    /// Order it is about.
    pub order: OrderId,
    /// This boot.
    pub boot_id: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Done; `output` is the result type named at the action.
    Succeeded {
        /// The typed result as JSON.
        output: serde_json::Value,
    },
    /// About to reboot, kexec or switch off. Sent before, acknowledged before it happens.
    Leaving,
    /// Not done.
    Failed(StepFailure),
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailure {
    /// Stable word: see [`FailureCode`].
    pub code: FailureCode,
    /// One sentence for people, naming the object.
    pub message: String,
    /// Whether trying again can help.
    pub retryable: bool,
}

/// Whose fault a failure is, in stable words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// No disk matches the hints.
    NoDisk,
    /// Several disks match the hints.
    AmbiguousDisk,
    /// The disk is protected, mounted, read-only or otherwise not to be written.
    DiskRefused,
    /// The disk is smaller than the image.
    DiskTooSmall,
    /// Reading or writing the disk failed.
    DiskIo,
    /// A manifest's signature or digest is wrong.
    ManifestInvalid,
    /// Image bytes do not match their digest.
    ImageCorrupt,
    /// The image ended early.
    ImageTruncated,
    /// No bytes arrived for too long.
    ImageStalled,
    /// The server could not be reached or answered with an error for too long.
    Server,
    /// What was read back is not what was written.
    ReadBackMismatch,
    /// No such partition, or several.
    Partition,
    /// The file system is not one the agent can write, or it failed.
    FileSystem,
    /// The order itself makes no sense.
    BadOrder,
    /// The kernel could not be loaded.
    Kexec,
    /// The agent was told to stop.
    Abandoned,
    /// Anything else.
    Internal,
}

/// Result of `wipe-disk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeResult {
    /// Kernel name of the disk.
    pub disk: String,
    /// `discard`, `zero-signatures`, or `zero-all` when the partition table could not be read.
    pub method: String,
}

/// Result of `write-file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFileResult {
    /// Partition written to, `vda3`.
    pub partition: String,
    /// Bytes written.
    pub bytes: u64,
    /// SHA-256 of the contents, hex.
    pub sha256: String,
}

/// Result of `boot-arguments`: names of the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootArgumentsResult {
    /// Partition they are on, `vda3`.
    pub partition: String,
    /// Those that were rewritten.
    pub changed: Vec<String>,
    /// Those that were right already.
    pub unchanged: Vec<String>,
}

/// Result of `write-talos-meta`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TalosMetaResult {
    /// Partition written to, `vda4`.
    pub partition: String,
    /// Keys that were set, ascending.
    pub set: Vec<u8>,
    /// Tags that were there before and stay as they were, ascending.
    pub kept: Vec<u32>,
    /// Neither copy of the record was valid: this one is the first.
    pub fresh: bool,
}

/// Result of `collect-evidence`: what can be known before the disk is touched again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The tail of the kernel log.
    pub kernel_log: Vec<String>,
    /// The disks as they are now.
    pub disks: Vec<DiskInfo>,
}

/// What the agent found on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Inventory {
    /// SMBIOS system manufacturer.
    pub manufacturer: Option<String>,
    /// SMBIOS product name.
    pub product: Option<String>,
    /// SMBIOS system serial.
    pub serial: Option<String>,
    /// SMBIOS system UUID.
    pub uuid: Option<String>,
    /// `uefi` or `bios`.
    pub firmware: String,
    /// CPU model.
    pub cpu_model: Option<String>,
    /// Logical CPUs.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// NICs.
    pub nics: Vec<NicInfo>,
    /// Disks.
    pub disks: Vec<DiskInfo>,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NicInfo {
    /// Kernel name.
    pub name: String,
    /// Permanent address.
    pub mac: Mac,
    /// Kernel driver.
    pub driver: Option<String>,
    /// Link is up.
    pub carrier: bool,
    /// Mbit/s, if the driver says.
    pub speed: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads bytes as every message there is; what can be read must survive the way back.
    fn read_all(bytes: &[u8]) {
        fn check<T: serde::de::DeserializeOwned + Serialize>(bytes: &[u8]) {
            let Ok(message) = serde_json::from_slice::<T>(bytes) else {
                return;
            };
            let text = serde_json::to_vec(&message).unwrap();
            let again: T = serde_json::from_slice(&text).unwrap();
            assert_eq!(serde_json::to_vec(&again).unwrap(), text);
        }
        check::<EnrollRequest>(bytes);
        check::<EnrollResponse>(bytes);
        check::<NextRequest>(bytes);
        check::<Next>(bytes);
        check::<Order>(bytes);
        check::<Report>(bytes);
        check::<StepResult>(bytes);
    }

    fn order() -> serde_json::Value {
        serde_json::json!({
            "next": "order",
            "id": { "run": "0199", "step": 3, "attempt": 1 },
            "name": "write the image",
            "action": {
                "uses": "stream-image",
                "image": "blake3:00",
                "disk": { "hints": { "type": "nvme", "min_size": 1_000_000 }, "protected": [{ "serial": "S5" }] },
                "verify": "full", "stall_timeout_ms": 300_000,
                "options": { "delta": "off", "sources": ["http://10.77.0.1:8081/images/00/"], "memory": 64 }
            },
            "timeout_ms": 1_200_000
        })
    }

    #[test]
    fn an_order_reads_as_written() {
        let next: Next = serde_json::from_value(order()).unwrap();
        let written = serde_json::to_value(&next).unwrap();
        assert_eq!(written["action"], order()["action"]);
        assert_eq!(written["id"], order()["id"]);
    }

    #[test]
    fn a_disk_hint_nobody_knows_is_refused() {
        let mut order = order();
        order["action"]["disk"]["hints"]["slot"] = "1".into();
        assert!(serde_json::from_value::<Next>(order).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            read_all(&bytes);
        }

        #[test]
        fn a_damaged_order_never_panics(at in 0_usize..400, byte in any::<u8>()) {
            let mut bytes = order().to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            read_all(&bytes);
        }
    }
}
