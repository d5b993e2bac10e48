//! An image onto a disk: manifest, sources, memory, write, reread the partition table. For the
//! `stream-image` step and for `anneal-agent write`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anneal_image::{
    END_OF_DISK, Grow, Manifest, ManifestError, PublicKey, SignedManifest, WritePlan,
};
use anneal_protocol::agent::{
    FailureCode, StepFailure, StreamOptions, StreamResult, StreamTimes, Verify,
};
use anneal_protocol::disk::{DiskInfo, DiskSelector};
use tokio_util::sync::CancellationToken;

use super::body::Supply;
use super::device::{BlockDevice, Disk as _};
use super::write::{Job, Written, write_image};
use super::{Chosen, choose, grow, order, safety, unique};
use crate::client::insist;
use crate::io::fetch::{self, Fetch};
use crate::io::memory::{self, Buffer, Needs};
use crate::io::sched::Policy;
use crate::io::source::Origin;
use crate::report;
use crate::step::{Context, abandoned, blocking, fail, still_wanted};

/// How long the manifest is asked for while the daemon is away.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(300);
/// The speed shown is that of so many looks, about a tenth of a second each.
const SPEED_LOOKS: usize = 30;
/// A line about progress this often.
const TELL: Duration = Duration::from_secs(10);
/// Tiers of sources: mirrors, the daemon's plain port, its encrypted endpoint.
const MIRROR: u8 = 0;
const DAEMON: u8 = 1;
const LAST_RESORT: u8 = 2;

/// One image, one disk, and how.
#[derive(Debug)]
pub struct Order {
    /// What to write; signature and identity are checked.
    pub manifest: Manifest,
    /// Its id.
    pub image: String,
    /// See there.
    pub how: How,
    /// Where from.
    pub origins: Vec<Origin>,
    /// Most memory when `options` does not say, in bytes.
    pub memory: u64,
}

/// How to go about it.
#[derive(Debug, Clone)]
pub struct How {
    /// What to read back.
    pub verify: Verify,
    /// Time without image data from anywhere after which it is given up.
    pub stall_timeout: Duration,
    /// Whether to compare, and how much memory and how many connections to use.
    pub options: StreamOptions,
}

/// Puts an image on the disk that the selector names.
///
/// # Errors
/// See [`FailureCode`]; after any of them the disk is not bootable, or untouched.
pub async fn run(
    context: &Context,
    image: &str,
    selector: DiskSelector,
    how: How,
    cancel: &CancellationToken,
) -> Result<StreamResult, StepFailure> {
    let agent = context.options.clone();
    let labels = how.options.unique_labels.clone();
    let chosen = blocking(move || {
        let chosen = choose(&agent, &selector)?;
        unique::check(&agent, &chosen, &labels)?;
        Ok(chosen)
    })
    .await?;
    let manifest = tokio::select! {
        manifest = manifest(context, image) => manifest?,
        () = cancel.cancelled() => return Err(abandoned()),
    };
    let order = Order {
        manifest,
        image: image.to_owned(),
        origins: origins(context, image, &how.options)?,
        how,
        memory: context.memory,
    };
    let cancel = cancel.clone();
    blocking(move || install(&chosen, order, &mut || still_wanted(&cancel))).await
}

/// The sources of the order, and the daemon's own endpoint as the last resort.
fn origins(
    context: &Context,
    image: &str,
    options: &StreamOptions,
) -> Result<Vec<Origin>, StepFailure> {
    let daemon = Origin::daemon(&context.client, image, LAST_RESORT)?;
    let mut origins = Vec::new();
    for url in &options.sources {
        let mut origin = Origin::mirror(url, MIRROR)?;
        if origin.host() == daemon.host() {
            origin.tier = DAEMON;
        }
        origins.push(origin);
    }
    origins.push(daemon);
    Ok(origins)
}

pub(super) async fn manifest(context: &Context, image: &str) -> Result<Manifest, StepFailure> {
    let text = insist("fetch the manifest", Some(MANIFEST_PATIENCE), async || {
        context.client.manifest(image).await
    })
    .await?;
    let keys = context.image_keys.iter();
    let keys: Vec<PublicKey> = keys.map(|key| image_key(key)).collect::<Result<_, _>>()?;
    SignedManifest::open(&text, &keys, image).map_err(|e| manifest_failure(image, &e))
}

/// Reads the key that manifests must be signed with.
///
/// # Errors
/// `ManifestInvalid` when it is none.
pub fn image_key(hex: &str) -> Result<PublicKey, StepFailure> {
    PublicKey::from_hex(hex)
        .map_err(|e| fail(FailureCode::ManifestInvalid, format!("image key: {e}")))
}

/// What is wrong with a manifest, as a failure.
#[must_use]
pub fn manifest_failure(image: &str, error: &ManifestError) -> StepFailure {
    fail(
        FailureCode::ManifestInvalid,
        format!("{error} (image {image})"),
    )
}

/// Writes an image to a disk. `wanted` is asked about ten times a second; its error stops the
/// writing.
///
/// # Errors
/// See [`FailureCode`]; after any of them the disk is not bootable, or untouched.
pub fn install(
    chosen: &Chosen,
    order: Order,
    wanted: &mut dyn FnMut() -> Result<(), StepFailure>,
) -> Result<StreamResult, StepFailure> {
    let begin = Instant::now();
    let disk = &chosen.disk.info;
    let how = order.how;
    let manifest = Arc::new(order.manifest);
    tracing::info!(
        disk = disk.name,
        serial = disk.serial,
        image = order.image,
        bytes = manifest.size(),
        "writing the image"
    );
    let grow = how.options.grow.as_deref().map(Grow::parse);
    grow::check(&manifest, disk.sector_size, grow.as_ref())?;
    let device = safety::open(chosen, manifest.size())?;
    let connections = how
        .options
        .connections
        .map_or(fetch::DEFAULT_CONNECTIONS, |n| n as usize);
    let limit = how
        .options
        .memory
        .map_or(order.memory, |mib| u64::from(mib) << 20);
    let plan = memory::plan(&needs(&manifest, limit, connections));
    let settings = settings(order.origins, &how, connections, plan.waiting);
    let job = Job {
        grow: grow.as_ref(),
        manifest: manifest.as_ref(),
        disk: &device,
        delta: how.options.delta,
        verify: how.verify,
        workers: plan.workers,
    };
    let mut meter = Meter::new();
    let (written, fetch) = write_image(
        job,
        |frames| Fetch::start(&manifest, frames, settings),
        &mut |done, total| {
            meter.look(done, total);
            wanted()
        },
    )?;
    reread(&device, &manifest, &written)?;
    let size = manifest.size();
    let result = result(disk, (order.image, size), &written, fetch.as_ref(), begin);
    tracing::info!(
        disk = result.disk,
        written = result.written.bytes,
        unchanged = result.unchanged.bytes,
        transferred = result.transferred,
        ms = result.duration_ms,
        "image written"
    );
    Ok(result)
}

/// Shows the kernel what was written. A disk on which it still sees something else must not boot
/// after a step that failed; one that held the image already stays as it was.
fn reread(device: &BlockDevice, manifest: &Manifest, written: &Written) -> Result<(), StepFailure> {
    device.reread_partitions().map_err(|failure| {
        if written.written.frames + written.zeroed.frames == 0 {
            return failure;
        }
        let plan = WritePlan::new(manifest, device.size());
        let clear = plan.map(|plan| plan.clear).unwrap_or_default();
        order::give_up(device, &clear, failure)
    })
}

fn settings(origins: Vec<Origin>, how: &How, connections: usize, waiting: u64) -> fetch::Settings {
    fetch::Settings {
        origins,
        hosts: how.options.hosts.clone(),
        connections,
        stall: fetch::DEFAULT_STALL.min(how.stall_timeout),
        policy: Policy {
            patience: how.stall_timeout,
            ..Policy::default()
        },
        waiting,
    }
}

/// What the write of this image on this machine needs.
fn needs(manifest: &Manifest, limit: u64, connections: usize) -> Needs {
    let frame = u64::from(manifest.frame_size()).min(manifest.size());
    let lengths = manifest
        .frames()
        .iter()
        .map(|frame| u64::from(frame.length));
    Needs {
        limit,
        available: memory::available(),
        cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        frame,
        encoded: lengths.max().unwrap_or(0),
        // First and last frame, one in hand before the disk is cleared, and what is right but
        // lies where the end of the disk is cleared.
        held: 3 * frame + END_OF_DISK,
        connections: connections as u64,
    }
}

fn result(
    disk: &DiskInfo,
    (image, bytes): (String, u64),
    written: &Written,
    fetch: Option<&Fetch>,
    begin: Instant,
) -> StreamResult {
    let (sources, fetch_time) = fetch.map(Fetch::account).unwrap_or_default();
    StreamResult {
        disk: disk.name.clone(),
        serial: disk.serial.clone(),
        image,
        bytes,
        written: written.written,
        zeroed: written.zeroed,
        unchanged: written.unchanged,
        compared: written.compared,
        read_back: written.read_back,
        transferred: fetch.map_or(0, Fetch::transferred),
        sources,
        times: StreamTimes {
            compare_ms: ms(written.compare_time),
            fetch_ms: ms(fetch_time),
            write_ms: ms(written.write_time),
            verify_ms: ms(written.verify_time),
        },
        duration_ms: ms(begin.elapsed()),
        grown: written.grown,
        peak_memory: memory::peak(),
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Supply for Fetch {
    type Bytes = Buffer;

    fn next(&self) -> Result<Option<(usize, usize, Buffer)>, StepFailure> {
        let parcel = Self::next(self)?;
        Ok(parcel.map(|parcel| (parcel.index, parcel.source, parcel.buffer)))
    }

    fn judge(&self, frame: usize, source: usize, right: bool) {
        Self::judge(self, frame, source, right);
    }

    fn stop(&self) {
        Self::stop(self);
    }
}

/// Progress for the daemon and a line now and then, both with the speed of late.
struct Meter {
    looks: VecDeque<(Instant, u64)>,
    told: Instant,
}

impl Meter {
    fn new() -> Self {
        Self {
            looks: VecDeque::new(),
            told: Instant::now(),
        }
    }

    fn look(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        if self.looks.len() == SPEED_LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back((now, done));
        let rate = self.looks.front().map_or(0, |(then, before)| {
            let ms = ms(now - *then);
            done.saturating_sub(*before).saturating_mul(1000) / ms.max(1)
        });
        report::progress(done, total, rate);
        if now - self.told >= TELL {
            self.told = now;
            tracing::info!(
                done_mb = done / 1_000_000,
                total_mb = total / 1_000_000,
                mb_per_s = rate / 1_000_000,
                "in progress"
            );
        }
    }
}
