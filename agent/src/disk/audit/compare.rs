//! Which part of the disk may differ from the image, and which part does. Pure.

use std::ops::Range;

use anneal_image::{Manifest, Partition, Table, TableKind};
use anneal_protocol::audit::{ByteRange, Expectation, MAX_RANGES, RegionDrift};

/// Differences are told in blocks of this many bytes.
const BLOCK: u64 = 512;
/// Boot code at the beginning of a disk (UEFI 2.10, table 5.1).
const BOOT_CODE: u64 = 440;

/// Divides the whole image into regions, in the order of the disk.
#[must_use]
pub fn regions(manifest: &Manifest) -> Vec<RegionDrift> {
    regions_of(manifest.size(), manifest.table())
}

fn regions_of(size: u64, table: Option<&Table>) -> Vec<RegionDrift> {
    let Some(table) = table else {
        return vec![region("disk", None, Expectation::Identical, 0..size)];
    };
    let mut parts: Vec<&Partition> = table.partitions.iter().collect();
    parts.sort_by_key(|part| part.start);
    let first = parts.first().map_or(size, |part| part.start);
    let table_end = table_size(table).min(first).min(size);
    let boot_code = BOOT_CODE.min(table_end);
    let mut all = vec![
        region("boot code", None, Expectation::Identical, 0..boot_code),
        region(
            "partition table",
            None,
            Expectation::SamePartitions,
            boot_code..table_end,
        ),
    ];
    let backup = match table.kind {
        TableKind::Gpt => size.saturating_sub(33 * u64::from(table.sector_size)),
        TableKind::Mbr => size,
    };
    let mut at = table_end;
    for part in parts {
        gap(&mut all, at..part.start);
        let expected = if part.mutable {
            Expectation::MayDiffer
        } else {
            Expectation::Identical
        };
        let name = part.label.as_deref().unwrap_or(&part.kind);
        all.push(region(
            name,
            Some(part.number),
            expected,
            part.start..part.end(),
        ));
        at = part.end();
    }
    let backup = backup.max(at);
    gap(&mut all, at..backup);
    if backup < size {
        // Whoever grows the disk moves it; the first table is what counts.
        let range = backup..size;
        all.push(region(
            "backup partition table",
            None,
            Expectation::MayDiffer,
            range,
        ));
    }
    all
}

/// Bytes from the beginning of a disk that its first table needs.
fn table_size(table: &Table) -> u64 {
    let sector = u64::from(table.sector_size);
    match table.kind {
        // Protective MBR, header and 128 entries of 128 bytes.
        TableKind::Gpt => 2 * sector + 128 * 128,
        TableKind::Mbr => 512,
    }
}

fn gap(all: &mut Vec<RegionDrift>, range: Range<u64>) {
    if range.start < range.end {
        all.push(region(
            "not in a partition",
            None,
            Expectation::Identical,
            range,
        ));
    }
}

fn region(
    name: &str,
    number: Option<u32>,
    expected: Expectation,
    range: Range<u64>,
) -> RegionDrift {
    RegionDrift {
        name: name.to_owned(),
        number,
        expected,
        drifted: false,
        start: range.start,
        size: range.end - range.start,
        differing: 0,
        exact: true,
        ranges: Vec::new(),
        ranges_left_out: 0,
        notes: Vec::new(),
    }
}

fn range_of(region: &RegionDrift) -> Range<u64> {
    region.start..region.start + region.size
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (both.start < both.end).then_some(both)
}

/// The expectations that a range of the disk falls under.
fn touched(regions: &[RegionDrift], range: &Range<u64>) -> impl Iterator<Item = Expectation> {
    regions
        .iter()
        .filter(|region| overlap(&range_of(region), range).is_some())
        .map(|region| region.expected)
}

/// Whether a difference in this range can only be judged byte by byte: it lies in several regions
/// of which one must be identical.
#[must_use]
pub fn must_be_compared(regions: &[RegionDrift], range: &Range<u64>) -> bool {
    let all: Vec<_> = touched(regions, range).collect();
    all.len() > 1 && all.contains(&Expectation::Identical)
}

/// Whether it is worth knowing exactly what differs in this range.
#[must_use]
pub fn may_be_compared(regions: &[RegionDrift], range: &Range<u64>) -> bool {
    touched(regions, range).any(|expected| expected == Expectation::Identical)
}

/// Notes a frame that differs somewhere.
pub fn add_whole(regions: &mut [RegionDrift], range: &Range<u64>) {
    for region in regions {
        if let Some(both) = overlap(&range_of(region), range) {
            region.exact = false;
            add(region, both);
        }
    }
}

/// Notes what differs between the image's bytes at `start` and the disk's.
pub fn add_bytes(regions: &mut [RegionDrift], start: u64, image: &[u8], disk: &[u8]) {
    let end = start + image.len().min(disk.len()) as u64;
    for region in regions {
        let Some(both) = overlap(&range_of(region), &(start..end)) else {
            continue;
        };
        let mut at = both.start;
        while at < both.end {
            let next = (at / BLOCK * BLOCK + BLOCK).min(both.end);
            // Within the slices: both ends lie between `start` and `end`.
            let here = (at - start) as usize..(next - start) as usize;
            if image[here.clone()] != disk[here] {
                add(region, at..next);
            }
            at = next;
        }
    }
}

fn add(region: &mut RegionDrift, range: Range<u64>) {
    let length = range.end - range.start;
    region.differing += length;
    if region.expected == Expectation::Identical {
        region.drifted = true;
    }
    let is_full = region.ranges.len() >= MAX_RANGES;
    match region.ranges.last_mut() {
        Some(last) if last.start + last.length == range.start && region.ranges_left_out == 0 => {
            last.length += length;
        }
        _ if is_full => region.ranges_left_out += 1,
        _ => region.ranges.push(ByteRange {
            start: range.start,
            length,
        }),
    }
}

/// Compares the disk's table with the image's, and says so in the table's region.
pub fn judge_table(regions: &mut [RegionDrift], image: Option<&Table>, disk: Option<&Table>) {
    let Some(image) = image else { return };
    let Some(region) = regions
        .iter_mut()
        .find(|region| region.expected == Expectation::SamePartitions)
    else {
        return;
    };
    let Some(disk) = disk else {
        region.drifted = true;
        region
            .notes
            .push("the disk has no readable partition table".to_owned());
        return;
    };
    for expected in &image.partitions {
        let name = expected.label.as_deref().unwrap_or(&expected.kind);
        let name = format!("partition {} ({name})", expected.number);
        let Some(found) = disk.partition(expected.number) else {
            region.drifted = true;
            region.notes.push(format!("{name} is missing"));
            continue;
        };
        if let Some(what) = difference(expected, found) {
            region.drifted = true;
            region.notes.push(format!("{name} has another {what}"));
        } else if found.size > expected.size {
            let grown = found.size - expected.size;
            region
                .notes
                .push(format!("{name} has grown by {grown} bytes"));
        }
    }
    for found in &disk.partitions {
        if image.partition(found.number).is_none() {
            let label = found.label.as_deref().unwrap_or(&found.kind);
            let text = format!("partition {} ({label}) was added", found.number);
            region.notes.push(text);
        }
    }
}

/// Which field of a partition is not as it must be.
fn difference(expected: &Partition, found: &Partition) -> Option<&'static str> {
    let size_is_right = if expected.mutable {
        found.size >= expected.size
    } else {
        found.size == expected.size
    };
    [
        ("type", found.kind == expected.kind),
        ("beginning", found.start == expected.start),
        ("size", size_is_right),
        ("UUID", expected.mutable || found.uuid == expected.uuid),
        ("label", expected.mutable || found.label == expected.label),
    ]
    .into_iter()
    .find_map(|(what, right)| (!right).then_some(what))
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
