//! The `wipe-disk` step: afterwards nothing on the disk is recognised as anything.
//!
//! A power cut in the middle must not leave half a partition table: nobody could tell any more
//! what is on such a disk, so rules that protect disks by label would refuse it for ever. So the
//! table is kept, whole, until what it leads to is gone, and then taken away as before a write,
//! see [`order`]. The next run finds the table and begins anew, or finds no table.

use std::io;
use std::ops::Range;

use anneal_protocol::agent::{StepFailure, WipeResult};
use anneal_protocol::disk::DiskSelector;
use tokio_util::sync::CancellationToken;

use super::device::Disk;
use super::{choose, order, partition, safety, write};
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
    let partitions = std::fs::File::open(&disk.node)
        .and_then(|file| partition::read(&file, disk.info.sector_size))
        .unwrap_or_default();
    let device = safety::open(&chosen, 0)?;
    tracing::info!(
        disk = disk.info.name,
        serial = disk.info.serial,
        "wiping the disk"
    );
    let method = wipe(
        &device,
        &partitions,
        || device.discard_all(),
        &mut |done, total| {
            report::progress(done, total, 0);
            still_wanted(cancel)
        },
    )?;
    device.reread_partitions()?;
    Ok(WipeResult {
        disk: disk.info.name.clone(),
        method: method.to_owned(),
    })
}

/// Carries it out; returns how. `watch` is called with ranges done and in all; its error stops
/// the wiping.
fn wipe<D: Disk>(
    disk: &D,
    partitions: &[partition::Partition],
    discard: impl FnOnce() -> io::Result<()>,
    watch: write::Watch<'_>,
) -> Result<&'static str, StepFailure> {
    let inside = ends(partitions.iter().map(|p| p.start..p.end()), disk.size());
    let outside = ends(std::iter::once(0..disk.size()), disk.size());
    // Discarded blocks may still read as before, so what identifies is overwritten; and they may
    // read as they did before that, so it is overwritten once more.
    let total = 2 * inside.len() as u64 + outside.len() as u64;
    let mut done = 0;
    let mut zero = |ranges: &[Range<u64>]| {
        for range in ranges {
            watch(done, total)?;
            disk.zero(range.clone())
                .map_err(|e| write::failed("wipe", range.start, &e))?;
            done += 1;
        }
        write::flush(disk)
    };
    zero(&inside)?;
    order::clear_tables(disk)?;
    let discarded = discard().is_ok();
    zero(&inside)?;
    zero(&outside)?;
    Ok(if discarded {
        "discard"
    } else {
        "zero-signatures"
    })
}

/// Both ends of each of these, as far as they are within the disk.
fn ends(of: impl Iterator<Item = Range<u64>>, size: u64) -> Vec<Range<u64>> {
    of.map(|range| range.start..range.end.min(size))
        .filter(|range| !range.is_empty())
        .flat_map(|range| {
            let head = range.start..range.end.min(range.start + END);
            let tail = range.end.saturating_sub(END).max(head.end)..range.end;
            [head, tail]
        })
        .filter(|range| !range.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::{Memory, Random, partition as with_gpt, recognised};

    #[test]
    fn both_ends_of_everything_and_nothing_outside() {
        let partition = |start, length| partition::Partition {
            number: 1,
            start,
            length,
            uuid: None,
            type_guid: None,
            name: None,
            file_system: None,
        };
        let size = 100 * END;
        let partitions = [
            partition(END, 10 * END),
            partition(50 * END, 512),
            partition(90 * END, 50 * END),
            partition(200 * END, END),
        ];
        assert_eq!(
            ends(partitions.iter().map(|p| p.start..p.end()), size),
            [
                END..2 * END,
                10 * END..11 * END,
                50 * END..50 * END + 512,
                90 * END..91 * END,
                99 * END..100 * END,
            ]
        );
        assert_eq!(
            ends(std::iter::once(0..size), size),
            [0..END, 99 * END..size]
        );
    }

    /// Wherever the power goes: while anything takes the disk for one with partitions, the table
    /// says all; after that there is none. The next run completes.
    #[test]
    fn a_power_cut_never_leaves_half_a_table() {
        let mut seen = [0; 2];
        let dir = tempfile::tempdir().unwrap();
        for seed in 0..200 {
            let mut random = Random(seed);
            let mut disk = vec![0xa5; 6 * END as usize];
            with_gpt(&mut disk, 512);
            let file = dir.path().join("disk");
            let table = |disk: &[u8]| {
                std::fs::write(&file, disk).unwrap();
                partition::read(&std::fs::File::open(&file).unwrap(), 512)
            };
            let before = table(&disk).unwrap();
            assert_eq!(before.len(), 1);
            // Clearing, flushing and what is asked for in between: 14 operations.
            let cut = random.below(15) as usize;
            let memory = Memory::of(disk, 512).dies_after(cut);
            let done = wipe(
                &memory,
                &before,
                || memory.discard_all(),
                &mut |_, _| Ok(()),
            );
            let platter = memory.after_cut(&mut random);
            let after = table(&platter).unwrap_or_else(|error| {
                panic!("seed {seed}, cut after {cut}: half a table is left: {error}")
            });
            let places = |partitions: &[partition::Partition]| -> Vec<_> {
                partitions.iter().map(|p| p.start..p.end()).collect()
            };
            assert!(
                after.is_empty() || places(&after) == places(&before),
                "{seed}"
            );
            assert!(done.is_err() || after.is_empty());
            seen[usize::from(after.is_empty())] += 1;

            let again = Memory::of(platter, 512);
            wipe(
                &again,
                &after,
                || Err(io::ErrorKind::Unsupported.into()),
                &mut |_, _| Ok(()),
            )
            .unwrap();
            let now = again.now();
            assert!(!recognised(&now, 512));
            assert!(now[..END as usize].iter().all(|byte| *byte == 0));
        }
        assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
    }
}
