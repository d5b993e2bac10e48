//! Reads the partition table from the beginning of a disk: pure and bounded. What it cannot use
//! (bad checksums, partitions that overlap or lie beyond the disk) is no table, with a reason.

use super::{MAX_PARTITIONS, Partition, Table, TableKind, is_label};

/// How much of the disk is looked at: the usual table needs 17 KiB (24 KiB with 4096-byte
/// sectors), and the boards that put their boot loader first need less than this.
pub const HEAD: usize = 1 << 20;
/// Most entries of a GPT that are looked at; the usual number is 128.
const MAX_ENTRIES: u32 = 1024;
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
    let gpt = [512_u32, 4096].into_iter().find(|&sector| {
        head.get(sector as usize..)
            .is_some_and(|rest| rest.starts_with(b"EFI PART"))
    });
    let (result, end) = match gpt {
        Some(sector) => (read_gpt(head, sector).map(Some), gpt_end(head, sector)),
        None => (read_mbr(head), None),
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
        end,
    }
}

/// Header of a GPT (UEFI 2.10, table 5.5), its checksum checked.
pub(super) struct Gpt {
    pub(super) sector: u64,
    pub(super) entries: u64,
    pub(super) count: u32,
    pub(super) entry_size: u32,
    entries_crc: u32,
}

impl Gpt {
    pub(super) fn read(head: &[u8], sector: u32) -> Result<Self, String> {
        let header = head
            .get(sector as usize..2 * sector as usize)
            .ok_or("gpt header is cut short")?;
        let length = u32_at(header, 12) as usize;
        if !(92..=sector as usize).contains(&length) {
            return Err(format!("gpt header says that it has {length} bytes"));
        }
        let mut copy = header[..length].to_vec();
        copy[16..20].fill(0);
        if crc32(&copy) != u32_at(header, 16) {
            return Err("gpt header has a wrong checksum".to_owned());
        }
        if u64_at(header, 24) != 1 {
            return Err("gpt header is not that of the first table".to_owned());
        }
        Ok(Self {
            sector: sector.into(),
            entries: u64_at(header, 72),
            count: u32_at(header, 80),
            entry_size: u32_at(header, 84),
            entries_crc: u32_at(header, 88),
        })
    }
}

/// Where the disk ends: the backup header is in the last sector (UEFI 2.10, section 5.3.2). Asked
/// of damaged headers too: the worst is that a damaged disk is refused.
fn gpt_end(head: &[u8], sector: u32) -> Option<u64> {
    let header = head.get(sector as usize..)?.get(..92)?;
    u64_at(header, 32)
        .checked_add(1)?
        .checked_mul(sector.into())
}

fn read_gpt(head: &[u8], sector: u32) -> Result<Table, String> {
    let gpt = Gpt::read(head, sector)?;
    if gpt.count > MAX_ENTRIES || !(128..=4096).contains(&gpt.entry_size) || gpt.entry_size % 8 != 0
    {
        return Err(format!(
            "gpt has {} entries of {} bytes, more than is read",
            gpt.count, gpt.entry_size
        ));
    }
    // At most 4 MiB by the limits above.
    let length = gpt.count as usize * gpt.entry_size as usize;
    let entries = gpt
        .entries
        .checked_mul(gpt.sector)
        .and_then(|start| usize::try_from(start).ok())
        .and_then(|start| head.get(start..)?.get(..length))
        .ok_or("gpt entries are not in the first MiB of the disk")?;
    if crc32(entries) != gpt.entries_crc {
        return Err("gpt entries have a wrong checksum".to_owned());
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1_u32..).zip(entries.chunks_exact(gpt.entry_size as usize)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        if partitions.len() == MAX_PARTITIONS {
            return Err(format!("gpt has more than {MAX_PARTITIONS} partitions"));
        }
        partitions.push(gpt_partition(entry, number, gpt.sector)?);
    }
    Ok(Table {
        kind: TableKind::Gpt,
        sector_size: sector,
        partitions,
    })
}

/// An entry of a GPT (UEFI 2.10, table 5.6).
fn gpt_partition(entry: &[u8], number: u32, sector: u64) -> Result<Partition, String> {
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let place = last
        .checked_sub(first)
        .and_then(|sectors| sectors.checked_add(1)?.checked_mul(sector))
        .zip(first.checked_mul(sector));
    let Some((size, start)) = place else {
        return Err(format!(
            "partition {number} goes from sector {first} to {last}"
        ));
    };
    let name: Vec<u16> = entry[56..128]
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    // A name that cannot be printed is left out: the partition has a number and a UUID.
    let label = String::from_utf16(&name).ok().filter(|name| is_label(name));
    Ok(Partition {
        number,
        label,
        kind: guid(&entry[..16]),
        uuid: Some(guid(&entry[16..32])),
        start,
        size,
        mutable: false,
    })
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

/// The first three groups are little-endian numbers, the others bytes (UEFI 2.10, appendix A).
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (position, index) in ORDER.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[index]));
    }
    text
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32 of ISO 3309, as in UEFI 2.10, section 4.2. A few KiB once an image: no table needed.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests;
