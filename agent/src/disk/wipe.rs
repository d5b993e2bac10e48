//! The `wipe-disk` step: afterwards nothing on the disk is recognised as anything.
//!
//! A power cut in the middle must not leave half a partition table: nobody could tell any more
//! what is on such a disk, so rules that protect disks by label would refuse it for ever. So the
//! table is kept, whole, until what it leads to is gone, and then taken away as before a write,
//! see [`order`]. The next run finds the table and begins anew, or finds no table.
//!
//! A table that cannot be read leads nobody to what is on the disk: then all of it is overwritten,
//! and that table, too, stays until the rest is done.

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
/// A whole disk is overwritten in pieces of this, so that it can be stopped.
const PIECE: u64 = 256 << 20;

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
        .and_then(|file| partition::read(&file, disk.info.sector_size));
    let device = safety::open(&chosen, 0)?;
    tracing::info!(
        disk = disk.info.name,
        serial = disk.info.serial,
        "wiping the disk"
    );
    if let Err(error) = &partitions {
        tracing::warn!(disk = disk.info.name, %error, "no table says what is where: overwriting everything");
    }
    let method = wipe(
        &device,
        partitions.as_deref().ok(),
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

/// Carries it out; returns how. Without `partitions`, nobody knows which there are. `watch` is
/// called with ranges done and in all; its error stops the wiping.
fn wipe<D: Disk>(
    disk: &D,
    partitions: Option<&[partition::Partition]>,
    discard: impl FnOnce() -> io::Result<()>,
    watch: write::Watch<'_>,
) -> Result<&'static str, StepFailure> {
    let (inside, rounds) = match partitions {
        Some(known) => (ends(known.iter().map(|p| p.start..p.end()), disk.size()), 2),
        None => (between(disk.size()), 1),
    };
    let outside = ends(std::iter::once(0..disk.size()), disk.size());
    // Discarded blocks may still read as before, so what identifies is overwritten; and they may
    // read as they did before that, so it is overwritten once more.
    let total = rounds * inside.len() as u64 + outside.len() as u64;
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
    if partitions.is_none() {
        zero(&outside)?;
        return Ok("zero-all");
    }
    let discarded = discard().is_ok();
    zero(&inside)?;
    zero(&outside)?;
    Ok(if discarded {
        "discard"
    } else {
        "zero-signatures"
    })
}

/// What lies between the ends of a disk, in pieces.
fn between(size: u64) -> Vec<Range<u64>> {
    let end = size.saturating_sub(END);
    (END..end)
        .step_by(PIECE as usize)
        .map(|start| start..end.min(start + PIECE))
        .collect()
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

    #[test]
    fn between_the_ends_nothing_is_left_out() {
        for size in [0, END, 2 * END, 2 * END + 512, 700 << 20, 1 << 40] {
            let mut all = ends(std::iter::once(0..size), size);
            all.extend(between(size));
            all.sort_by_key(|range| range.start);
            let mut at = 0;
            for range in all {
                assert_eq!(range.start, at, "{size}");
                assert!(range.start < range.end && range.end - range.start <= PIECE);
                at = range.end;
            }
            assert_eq!(at, size);
        }
    }

    /// Both copies of the table are damaged. Wherever the power goes: until all that nobody could
    /// find is overwritten, the next run sees that there is a table.
    #[test]
    fn a_disk_with_an_unreadable_table_is_overwritten_as_a_whole() {
        let end = END as usize;
        let mut disk = vec![0xa5; 6 * end];
        with_gpt(&mut disk, 512);
        let last = disk.len() - 512;
        for header in [512, last] {
            disk[header + 16] ^= 1;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        let table = |disk: &[u8]| {
            std::fs::write(&file, disk).unwrap();
            partition::read(&std::fs::File::open(&file).unwrap(), 512)
        };
        assert!(table(&disk).is_err());
        let discard = || -> io::Result<()> { panic!("a hint is not enough") };
        let mut seen = [0; 2];
        for cut in 0..100 {
            let memory = Memory::of(disk.clone(), 512).dies_after(cut);
            let done = wipe(&memory, None, discard, &mut |_, _| Ok(()));
            let platter = memory.after_cut(&mut Random(cut as u64));
            let gone = table(&platter).map(|found| assert!(found.is_empty()));
            if gone.is_ok() {
                assert!(platter[end..5 * end].iter().all(|byte| *byte == 0), "{cut}");
            }
            seen[usize::from(gone.is_ok())] += 1;
            if let Ok(method) = done {
                assert_eq!(method, "zero-all");
                assert!(platter.iter().all(|byte| *byte == 0));
                break;
            }
        }
        assert!(seen.iter().all(|count| *count > 1), "{seen:?}");
        let stopped = Memory::of(disk, 512);
        wipe(&stopped, None, discard, &mut |_, _| {
            Err(crate::step::abandoned())
        })
        .unwrap_err();
        assert_eq!(stopped.operations(), 0);
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
                Some(&before),
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
                Some(&after),
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
