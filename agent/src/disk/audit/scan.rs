//! Reads the whole disk once, on several threads, and compares each frame with its digest.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;

use anneal_image::{HEAD, Manifest};
use anneal_protocol::agent::StepFailure;
use tokio_util::sync::CancellationToken;

use crate::disk::compare::{Unreadable, compare};
use crate::disk::device::{BlockDevice, Disk};
use crate::disk::{Found, io_failure};
use crate::report;
use crate::step::still_wanted;

/// More threads than this only make a disk seek.
const MAX_THREADS: usize = 4;

/// What the disk holds.
pub struct Scan {
    /// Frames that are not what the image says, ascending.
    pub differing: Vec<usize>,
    /// The beginning of the disk.
    pub head: Vec<u8>,
    /// Bytes read.
    pub read: u64,
}

/// Compares every frame of the image with the disk.
///
/// # Errors
/// When the disk cannot be read, or the step is no longer wanted.
pub fn scan(
    disk: &Found,
    manifest: &Manifest,
    cancel: &CancellationToken,
) -> Result<Scan, StepFailure> {
    let device = open(disk)?;
    device
        .drop_cache()
        .map_err(|error| io_failure("drop the cache of", &disk.node, &error))?;
    let head = read(&device, disk, 0..(HEAD as u64).min(manifest.size()))?;
    let frames: Vec<usize> = (0..manifest.frames().len()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let begin = std::time::Instant::now();
    let same = compare(
        &device,
        manifest,
        &frames,
        threads.min(MAX_THREADS),
        Unreadable::Fails,
        &mut |done| {
            let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            let rate = done.saturating_mul(1000) / ms.max(1);
            report::progress(done, manifest.size(), rate);
            still_wanted(cancel)
        },
    )?;
    let differing = frames.iter().zip(same).filter(|(_, same)| !same);
    Ok(Scan {
        differing: differing.map(|(frame, _)| *frame).collect(),
        read: manifest.size() + head.len() as u64,
        head,
    })
}

/// Reads a range of the disk, cache bypassed.
///
/// # Errors
/// When the disk cannot be read.
pub fn read_range(disk: &Found, range: Range<u64>) -> Result<Vec<u8>, StepFailure> {
    read(&open(disk)?, disk, range)
}

/// For reading only, and not alone: an audit takes nothing from anybody.
fn open(disk: &Found) -> Result<BlockDevice, StepFailure> {
    let open = |more| {
        File::options()
            .read(true)
            .custom_flags(libc::O_CLOEXEC | more)
            .open(&disk.node)
    };
    let file = match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
        outcome => outcome,
    };
    let file = file.map_err(|error| io_failure("open", &disk.node, &error))?;
    let info = &disk.info;
    Ok(BlockDevice::new(
        file,
        &disk.node,
        info.size,
        info.sector_size,
    ))
}

fn read(device: &BlockDevice, disk: &Found, range: Range<u64>) -> Result<Vec<u8>, StepFailure> {
    // A frame or the head: some MiB.
    let mut bytes = vec![0; (range.end - range.start) as usize];
    device.read_at(range.start, &mut bytes).map_err(|error| {
        io_failure(&format!("read byte {} of", range.start), &disk.node, &error)
    })?;
    Ok(bytes)
}
