//! Grows a GPT to the disk that it is on (UEFI 2.10, section 5.3): the backup table moves to the
//! end of the disk and one partition takes what is free behind it. Pure: the result is bytes to
//! write, the beginning of the disk last.
//!
//! Only the table: the file system in the partition is grown by the system that owns it.

use super::{Partition, Table, TableKind};
use crate::gpt::{Header, crc32, u32_at};

/// Partitions end at a multiple of this, where there is room for it: what partitioning tools do.
const ALIGN: u64 = 1 << 20;

/// Which partition takes the free space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grow {
    /// The one that lies last on the disk.
    Last,
    /// The one of this label, number or UUID.
    Named(String),
}

impl Grow {
    /// Reads `last`, or a label, number or UUID.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "last" => Self::Last,
            name => Self::Named(name.to_owned()),
        }
    }
}

/// Why a table cannot be grown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrowError {
    /// No table, or not a GPT.
    #[error("the image has no gpt: only a gpt can be grown")]
    NoGpt,
    /// The image is made for other sectors.
    #[error("the image's gpt is made for sectors of {image} bytes, the disk has {disk}")]
    OtherSectors {
        /// Of the image.
        image: u32,
        /// Of the disk.
        disk: u32,
    },
    /// No such partition, or several.
    #[error("{0}")]
    NoPartition(String),
    /// Another one lies behind it.
    #[error("partition {number} cannot grow: partition {next} lies behind it")]
    NotLast {
        /// The one that was to grow.
        number: u32,
        /// The one in its way.
        next: u32,
    },
    /// The table's own bytes make no sense.
    #[error("the image's gpt cannot be grown: {0}")]
    Damaged(String),
    /// Nothing is left for the table itself.
    #[error("the disk has {0} bytes, too few for a backup of the gpt behind the last partition")]
    NoRoom(u64),
}

/// What to write instead of the image's own bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grown {
    /// The beginning of the disk, as long as what was given.
    pub head: Vec<u8>,
    /// Where the backup table begins; it reaches to the end of the disk.
    pub backup_at: u64,
    /// The backup: entries, then header.
    pub backup: Vec<u8>,
    /// Bytes that the partition has now.
    pub size: u64,
}

/// Grows the table in `head`, the first bytes of the image (all of its table must be in it), to
/// a disk of `disk_size` bytes in sectors of `sector` bytes.
///
/// # Errors
/// See [`GrowError`].
pub fn grow(
    head: &[u8],
    table: Option<&Table>,
    disk_size: u64,
    sector: u32,
    which: &Grow,
) -> Result<Grown, GrowError> {
    let table = table
        .filter(|table| table.kind == TableKind::Gpt)
        .ok_or(GrowError::NoGpt)?;
    if table.sector_size != sector {
        return Err(GrowError::OtherSectors {
            image: table.sector_size,
            disk: sector,
        });
    }
    let partition = choose(table, which)?;
    let gpt = Header::first(head, sector).map_err(|error| damaged(&error.to_string()))?;
    let place = Place::of(&gpt, head, disk_size)?;
    let end = place
        .end_of(partition)
        .ok_or(GrowError::NoRoom(disk_size))?;
    let number = partition.number;
    let entry = gpt
        .entry(number)
        .ok_or_else(|| damaged(&format!("it has no entry {number}")))?;
    let mut head = head.to_vec();
    // All entries are in the head.
    put_u64(&mut head, entry as usize + 40, end / place.sector - 1);
    let entries_crc = crc32(&head[place.entries.clone()]);
    protect(&mut head, disk_size / place.sector);

    let header = place.sector as usize..2 * place.sector as usize;
    let primary = &mut head[header.clone()];
    put_u64(primary, 32, place.last);
    put_u64(primary, 48, place.last_usable);
    put_u32(primary, 88, entries_crc);
    seal(primary);

    let mut backup_header = head[header].to_vec();
    put_u64(&mut backup_header, 24, place.last);
    put_u64(&mut backup_header, 32, 1);
    put_u64(&mut backup_header, 72, place.last_usable + 1);
    seal(&mut backup_header);
    let entries_size = (place.last - place.last_usable - 1) * place.sector;
    let mut backup = head[place.entries].to_vec();
    // At most some MiB: what fits into the head.
    backup.resize(entries_size as usize, 0);
    backup.extend_from_slice(&backup_header);
    Ok(Grown {
        head,
        backup_at: (place.last_usable + 1) * place.sector,
        backup,
        size: end - partition.start,
    })
}

/// Whether [`grow`] can work, as far as the image's table alone can say.
///
/// # Errors
/// See [`GrowError`].
pub fn may_grow(table: Option<&Table>, which: &Grow) -> Result<(), GrowError> {
    let table = table.filter(|table| table.kind == TableKind::Gpt);
    choose(table.ok_or(GrowError::NoGpt)?, which).map(drop)
}

fn choose<'t>(table: &'t Table, which: &Grow) -> Result<&'t Partition, GrowError> {
    let last = table.partitions.iter().max_by_key(|p| p.start);
    let none = || GrowError::NoPartition("the image's gpt has no partition to grow".to_owned());
    let last = last.ok_or_else(none)?;
    let chosen = match which {
        Grow::Last => last,
        Grow::Named(name) => table.find(name).map_err(GrowError::NoPartition)?,
    };
    if chosen.number != last.number {
        return Err(GrowError::NotLast {
            number: chosen.number,
            next: last.number,
        });
    }
    Ok(chosen)
}

/// Where things lie on the disk, in sectors unless said otherwise.
struct Place {
    sector: u64,
    /// Bytes of the head that are entries.
    entries: std::ops::Range<usize>,
    /// The disk's last: the backup header's.
    last: u64,
    last_usable: u64,
}

impl Place {
    fn of(gpt: &Header, head: &[u8], disk_size: u64) -> Result<Self, GrowError> {
        let (sector, place) = (gpt.sector(), gpt.place());
        if place.start < 2 * sector || place.end > head.len() as u64 {
            return Err(damaged(
                "its entries are not in the first slice of the image",
            ));
        }
        let needed = (place.end - place.start).div_ceil(sector) + 1;
        let sectors = disk_size / sector;
        let last_usable = sectors.checked_sub(needed + 1);
        Ok(Self {
            sector,
            entries: place.start as usize..place.end as usize,
            last: sectors.saturating_sub(1),
            last_usable: last_usable.ok_or(GrowError::NoRoom(disk_size))?,
        })
    }

    /// The first byte behind the grown partition.
    fn end_of(&self, partition: &Partition) -> Option<u64> {
        let limit = (self.last_usable + 1) * self.sector;
        let aligned = limit / ALIGN * ALIGN;
        [aligned, limit]
            .into_iter()
            .find(|end| *end >= partition.end())
    }
}

fn damaged(text: &str) -> GrowError {
    GrowError::Damaged(text.to_owned())
}

/// Makes the protective MBR cover the whole disk (UEFI 2.10, table 5.4).
fn protect(head: &mut [u8], sectors: u64) {
    let size = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
    let entries = (446..510).step_by(16);
    if let Some(entry) = entries
        .clone()
        .find(|at| head[at + 4] == super::read::PROTECTIVE)
    {
        // One that shares the disk with other entries (a hybrid MBR) keeps its size.
        if entries.filter(|at| head[at + 4] != 0).count() == 1 {
            put_u32(head, entry + 12, size);
        }
    }
}

/// Writes a header's own checksum.
fn seal(header: &mut [u8]) {
    let length = u32_at(header, 12) as usize;
    put_u32(header, 16, 0);
    let crc = crc32(&header[..length]);
    put_u32(header, 16, crc);
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
#[path = "grow_tests.rs"]
mod tests;
