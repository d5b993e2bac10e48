//! Grows the image's partition table to the disk while the image is written: the grown beginning
//! takes the place of the image's own, and the backup table goes to the end of the disk.

use std::collections::BTreeMap;

use anneal_image::{Grow, GrowError, Grown, Manifest, grow};
use anneal_protocol::agent::{FailureCode, StepFailure};

use super::device::{Aligned, Disk};
use super::write::failed;
use crate::step::{fail, fail_for_now};

/// Refuses what cannot work, before anything is changed: a table for other sectors, and a
/// partition that cannot grow.
///
/// # Errors
/// `DiskRefused` for the sectors, `BadOrder` for the partition.
pub fn check(manifest: &Manifest, sector: u32, which: Option<&Grow>) -> Result<(), StepFailure> {
    let table = manifest.table();
    if let Some(table) = table.filter(|table| table.sector_size != sector) {
        return Err(fail(
            FailureCode::DiskRefused,
            format!(
                "the image's partition table counts in sectors of {} bytes, the disk has {sector}: \
                 it would not boot; use an image made for such disks",
                table.sector_size
            ),
        ));
    }
    let Some(which) = which else { return Ok(()) };
    anneal_image::may_grow(table, which)
        .map_err(|error| fail(FailureCode::BadOrder, format!("grow: {error}")))
}

/// What to write instead of `first`, the image's first frame. `None` when the disk has no more
/// room than the image. Pure.
///
/// # Errors
/// `BadOrder` when the table cannot be grown.
pub fn plan<D: Disk>(
    manifest: &Manifest,
    disk: &D,
    which: &Grow,
    first: &[u8],
) -> Result<Option<Grown>, StepFailure> {
    let sector = u32::try_from(disk.sector()).unwrap_or(u32::MAX);
    match grow(first, manifest.table(), disk.size(), sector, which) {
        // A backup inside the image would take the place of what the image has there.
        Ok(grown) => Ok(Some(grown).filter(|grown| grown.backup_at >= manifest.size())),
        Err(GrowError::NoRoom(_)) => Ok(None),
        Err(error) => {
            let text = format!("grow: {error}");
            Err(fail(FailureCode::BadOrder, text))
        }
    }
}

/// Puts the grown beginning into the place of the image's own among the frames that are written
/// last. `None` when the disk has no more room than the image.
///
/// # Errors
/// `Internal` when the table cannot be grown: the disk has been changed by now, which `BadOrder`
/// denies.
pub fn apply<D: Disk>(
    manifest: &Manifest,
    disk: &D,
    which: &Grow,
    held: &mut BTreeMap<usize, Aligned>,
) -> Result<Option<Grown>, StepFailure> {
    let first = held.get_mut(&0).ok_or_else(|| {
        let text = "the first frame is not in memory";
        fail_for_now(FailureCode::Internal, text)
    })?;
    let grown = plan(manifest, disk, which, first)
        .map_err(|failure| fail(FailureCode::Internal, failure.message))?;
    if let Some(grown) = &grown {
        first.copy_from_slice(&grown.head);
    }
    Ok(grown)
}

/// Whether the disk has `first`, the image's first frame, as it would be written. What cannot be
/// read is not there.
pub fn is_there<D: Disk>(disk: &D, first: &[u8], grown: Option<&Grown>) -> bool {
    if let Some(grown) = grown {
        return reads_back(disk, grown).unwrap_or(false);
    }
    let mut found = Aligned::new(first.len());
    disk.read_at(0, &mut found).is_ok() && found[..] == *first
}

/// Whether the grown table reads back as it was written.
///
/// # Errors
/// When the disk cannot be read.
pub fn reads_back<D: Disk>(disk: &D, grown: &Grown) -> Result<bool, StepFailure> {
    for (start, bytes) in [(0, &grown.head), (grown.backup_at, &grown.backup)] {
        let mut found = Aligned::new(bytes.len());
        disk.read_at(start, &mut found)
            .map_err(|e| failed("read", start, &e))?;
        if found[..] != bytes[..] {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
#[path = "grow_tests.rs"]
mod tests;
