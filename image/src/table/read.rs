//! Reads the partition table from the beginning of a disk: pure and bounded. What it cannot use
//! (bad checksums, partitions that overlap or lie beyond the disk) is no table, with a reason. A
//! GPT is read by [`gpt`]; only its first copy, because the end of the disk has not come yet.

use super::{MAX_PARTITIONS, Partition, Table, TableKind, is_label};
use crate::gpt::{self, Entry, u32_at};

/// How much of the disk is looked at: the usual table needs 17 KiB (24 KiB with 4096-byte
/// sectors), and the boards that put their boot loader first need less than this.
pub const HEAD: usize = 1 << 20;
/// Type of the partition in an MBR that only protects a GPT.
pub(super) const PROTECTIVE: u8 = 0xee;

/// What the beginning of a disk says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The table, when there is one that obeys all rules.
    pub table: Option<Table>,
    /// Why there is none although there seems to be one.
    pub problem: Option<String>,
    /// Bytes of the disk by its GPT, whose backup is in the last sector.
    pub end: Option<u64>,
}

/// Reads the table of a disk of `size` bytes that begins with `head`.
pub(crate) fn read(head: &[u8], size: u64) -> Found {
    let result = match gpt::sector_size(head) {
        Some(sector) => read_gpt(head, sector).map(Some),
        None => read_mbr(head),
    };
    let checked = result.and_then(|table| match table {
        Some(table) => match table.problem(size) {
            Some(problem) => Err(problem),
            None => Ok(Some(table)),
        },
        None => Ok(None),
    });
    let (table, problem) = match checked {
        Ok(table) => (table, None),
        Err(problem) => (None, Some(problem)),
    };
    Found {
        table,
        problem,
        end: gpt::disk_size(head),
    }
}

fn read_gpt(head: &[u8], sector: u32) -> Result<Table, String> {
    let entries = gpt::primary(head, sector).map_err(|error| error.to_string())?;
    if entries.len() > MAX_PARTITIONS {
        return Err(format!("gpt has more than {MAX_PARTITIONS} partitions"));
    }
    Ok(Table {
        kind: TableKind::Gpt,
        sector_size: sector,
        partitions: entries.into_iter().map(partition).collect(),
    })
}

fn partition(entry: Entry) -> Partition {
    // A name that cannot be printed is left out: the partition has a number and a UUID.
    let label = Some(entry.name)
        .filter(|name| is_label(name) && !name.contains(char::REPLACEMENT_CHARACTER));
    Partition {
        number: entry.number,
        label,
        kind: entry.type_guid,
        uuid: Some(entry.uuid),
        start: entry.range.start,
        size: entry.range.end - entry.range.start,
        mutable: false,
    }
}

/// The four primary entries. A disk without partition table may well end its first sector with
/// the same two bytes (a FAT file system does), so what does not look like one is none.
fn read_mbr(head: &[u8]) -> Result<Option<Table>, String> {
    let Some(sector) = head.get(..512).filter(|s| s.ends_with(&[0x55, 0xaa])) else {
        return Ok(None);
    };
    let entries = || (1_u32..).zip(sector[446..510].chunks_exact(16));
    if entries().any(|(_, entry)| entry[0] & 0x7f != 0) || entries().all(|(_, e)| e[4] == 0) {
        return Ok(None);
    }
    if entries().any(|(_, entry)| entry[4] == PROTECTIVE) {
        return Err("mbr protects a gpt, but there is none".to_owned());
    }
    let disk = u32_at(sector, 440);
    let partitions = entries()
        .filter(|(_, entry)| entry[4] != 0)
        .map(|(number, entry)| Partition {
            number,
            label: None,
            kind: format!("0x{:02x}", entry[4]),
            uuid: (disk != 0).then(|| format!("{disk:08x}-{number:02x}")),
            start: u64::from(u32_at(entry, 8)) * 512,
            size: u64::from(u32_at(entry, 12)) * 512,
            mutable: false,
        })
        .collect();
    Ok(Some(Table {
        kind: TableKind::Mbr,
        sector_size: 512,
        partitions,
    }))
}

#[cfg(test)]
mod tests;
