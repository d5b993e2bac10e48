//! In which order the sectors that make a disk bootable are cleared and written.
//!
//! Firmware and kernels look at sector 0 (MBR), sector 1 (GPT header) and the last sector (backup
//! GPT header). Every other sector is only found through them. So:
//!
//! - Before anything else changes, sector 0 is cleared; then sector 1 and the last sector; each
//!   time the disk is flushed. Until then the earlier system is whole.
//! - At the end everything but those three is written and flushed; then the GPT headers; then
//!   sector 0. When anything fails from there on, all three are cleared again.
//!
//! Whatever subset of unflushed writes survives a power cut: a disk with a valid table is whole
//! but for those three sectors.

use std::ops::Range;

use anneal_image::Manifest;
use anneal_protocol::agent::StepFailure;

use super::device::{Aligned, Disk};
use super::write::{failed, flush};

/// A part of one of the frames that are written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Index of the frame.
    pub frame: usize,
    /// Bytes of it.
    pub bytes: Range<usize>,
}

/// Takes the partition table away. Nothing boots the disk after this, and at no point is there
/// half a table.
///
/// # Errors
/// `DiskIo`.
pub fn clear_tables<D: Disk>(disk: &D) -> Result<(), StepFailure> {
    for group in tables(disk.size(), disk.sector()) {
        for range in group {
            clear(disk, &range)?;
        }
        flush(disk)?;
    }
    Ok(())
}

/// After a failure at the end of a write: nothing that boots may be left, so the table is taken
/// away again, and what else is in `more`. Everything is tried, whatever fails. The failure stays
/// what it was, and says so when the table may still be there.
#[must_use]
pub fn give_up<D: Disk>(disk: &D, more: &[Range<u64>], mut failure: StepFailure) -> StepFailure {
    let mut left: Option<String> = None;
    let mut note = |outcome: Result<(), StepFailure>| {
        if let Err(error) = outcome {
            left.get_or_insert(error.message);
        }
    };
    for group in tables(disk.size(), disk.sector()) {
        for range in group {
            note(clear(disk, &range));
        }
        note(flush(disk));
    }
    if let Some(why) = left {
        let told = "; nor could its partition table be taken away, so that it may boot";
        failure.message = format!("{}{told}: {why}", failure.message);
    }
    // Nothing leads there any more: as much of it as the disk lets go.
    for range in more {
        let _ = disk.zero(range.clone());
    }
    let _ = disk.flush();
    failure
}

fn clear<D: Disk>(disk: &D, range: &Range<u64>) -> Result<(), StepFailure> {
    let zeros = Aligned::new((range.end - range.start) as usize);
    disk.write_at(range.start, &zeros)
        .map_err(|e| failed("clear", range.start, &e))
}

/// Sectors to clear first, in groups; the disk is flushed after each.
fn tables(disk_size: u64, sector: u64) -> [Vec<Range<u64>>; 2] {
    let last = (disk_size / sector).saturating_sub(1) * sector;
    [vec![0], vec![sector, last]].map(|group| {
        group
            .into_iter()
            .filter(|start| start + sector <= disk_size)
            .map(|start| start..start + sector)
            .collect()
    })
}

/// The frames held back to the end, in three groups; the disk is flushed after each. What an image
/// that is smaller than the disk has at its end is found through its header only, as all else.
#[must_use]
pub fn finish(manifest: &Manifest, last: &[usize], disk_size: u64, sector: u64) -> [Vec<Part>; 3] {
    let end = (disk_size / sector).saturating_sub(1) * sector;
    let mut groups = [Vec::new(), Vec::new(), Vec::new()];
    for &frame in last {
        let range = manifest.raw_range(frame);
        let mut cuts: Vec<u64> = [sector, 2 * sector, end]
            .into_iter()
            .filter(|cut| range.start < *cut && *cut < range.end)
            .collect();
        cuts.extend([range.start, range.end]);
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let group = match pair[0] {
                0 => 2,
                start if start == sector || start >= end => 1,
                _ => 0,
            };
            groups[group].push(Part {
                frame,
                // Both are within the frame.
                bytes: (pair[0] - range.start) as usize..(pair[1] - range.start) as usize,
            });
        }
    }
    groups
}
