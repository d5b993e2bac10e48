//! The `wipe-disk` step: afterwards nothing on the disk is recognised as anything.

use std::ops::Range;

use anneal_protocol::agent::{StepFailure, WipeResult};
use anneal_protocol::disk::DiskSelector;
use tokio_util::sync::CancellationToken;

use super::device::Disk;
use super::{choose, io_failure, partition, safety};
use crate::cmdline::Options;
use crate::report;
use crate::step::still_wanted;

/// Both ends of a disk or partition hold what identifies it: partition tables, file systems,
/// RAID and LVM metadata.
const END: u64 = 1 << 20;

/// Erases.
///
/// # Errors
/// As choosing and opening a disk, and `DiskIo`.
pub fn run(
    options: &Options,
    selector: &DiskSelector,
    cancel: &CancellationToken,
) -> Result<WipeResult, StepFailure> {
    let chosen = choose(options, selector)?;
    let disk = &chosen.disk;
    let failed = |what: &str, e: &std::io::Error| io_failure(what, &disk.node, e);
    let partitions = std::fs::File::open(&disk.node)
        .and_then(|file| partition::read(&file, disk.info.sector_size))
        .unwrap_or_default();
    let device = safety::open(&chosen, 0)?;
    tracing::info!(
        disk = disk.info.name,
        serial = disk.info.serial,
        "wiping the disk"
    );
    still_wanted(cancel)?;
    let discarded = device.discard_all().is_ok();
    // Discarded blocks may still read as before: what identifies is overwritten all the same.
    let ranges = ranges(device.size(), &partitions);
    let total = ranges.len() as u64;
    for (done, range) in (0..).zip(ranges) {
        still_wanted(cancel)?;
        report::progress(done, total, 0);
        device.zero(range).map_err(|e| failed("wipe", &e))?;
    }
    device.flush().map_err(|e| failed("flush", &e))?;
    device.reread_partitions()?;
    Ok(WipeResult {
        disk: disk.info.name.clone(),
        method: if discarded {
            "discard"
        } else {
            "zero-signatures"
        }
        .to_owned(),
    })
}

/// Both ends of the disk and of each partition.
fn ranges(size: u64, partitions: &[partition::Partition]) -> Vec<Range<u64>> {
    let whole = std::iter::once(0..size);
    let parts = partitions
        .iter()
        .map(|p| p.start..p.start.saturating_add(p.length));
    // Partitions first: when it is cut short, the table still says where they are.
    let mut all: Vec<Range<u64>> = parts
        .chain(whole)
        .map(|range| range.start..range.end.min(size))
        .filter(|range| !range.is_empty())
        .flat_map(|range| {
            let head = range.start..range.end.min(range.start + END);
            let tail = range.end.saturating_sub(END).max(head.end)..range.end;
            [head, tail]
        })
        .collect();
    all.retain(|range| !range.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_everything_and_nothing_outside() {
        let partition = |start, length| partition::Partition {
            number: 1,
            start,
            length,
            uuid: None,
            name: None,
            file_system: None,
        };
        let size = 100 * END;
        let wiped = ranges(
            size,
            &[
                partition(END, 10 * END),
                partition(50 * END, 512),
                partition(90 * END, 50 * END),
                partition(200 * END, END),
            ],
        );
        assert_eq!(
            wiped,
            [
                END..2 * END,
                10 * END..11 * END,
                50 * END..50 * END + 512,
                90 * END..91 * END,
                99 * END..100 * END,
                0..END,
                99 * END..100 * END,
            ]
        );
    }
}
