//! Reads one copy of a GPT (UEFI 2.10, section 5.3): header and entries. Pure: whoever has the
//! disk gives the bytes. They may be anybody's: what does not add up is damage, not some other
//! partition.
//!
//! A copy is read as a whole or not at all, because what stands in entries that nobody looks at
//! could be anything: what protects a disk, for example, or what tells the system on it. So a
//! table that is larger than [`MAX_ENTRIES`] or [`MAX_ENTRY_SIZE`] allow is an error, for
//! everybody who reads tables here:
//!
//! - sealing and growing an image ([`Table::read`](crate::Table::read), [`grow`](crate::grow()))
//!   and the ingest, which have the beginning of a disk and take the first copy alone: [`primary`];
//! - the agent, which has a whole disk and takes the backup when the first copy is damaged:
//!   [`header_sectors`], [`Header::parse`], [`Header::entries`].
//!
//! Not here: what a label may look like, partitions that overlap, the protective MBR, writing.

use std::ops::Range;

/// Most entries of a table that is read; 128 are usual.
pub const MAX_ENTRIES: u32 = 4096;
/// Most bytes of an entry of a table that is read; 128 are usual.
pub const MAX_ENTRY_SIZE: u32 = 4096;
/// Least bytes of an entry (UEFI 2.10, table 5.6).
const MIN_ENTRY_SIZE: u32 = 128;
/// Where the first header is (UEFI 2.10, section 5.3.2).
const FIRST: u64 = 1;
const SIGNATURE: &[u8] = b"EFI PART";
/// Bytes of a header at least (UEFI 2.10, table 5.5).
const HEADER: usize = 92;

/// Why a copy of a GPT cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// The sector of the header is not there in full.
    #[error("gpt header is cut short")]
    CutShort,
    /// No signature.
    #[error("there is no gpt header in sector {0}")]
    NoHeader(u64),
    /// The header is longer than its sector, or too short.
    #[error("gpt header says that it has {0} bytes")]
    HeaderSize(u32),
    /// The header is damaged.
    #[error("gpt header has a wrong checksum")]
    HeaderChecksum,
    /// A copy of some other sector: of a backup, or of another disk.
    #[error("gpt header is that of sector {said}, not of sector {found}")]
    Misplaced {
        /// Where it says that it is.
        said: u64,
        /// Where it is.
        found: u64,
    },
    /// More entries than [`MAX_ENTRIES`].
    #[error(
        "gpt has {0} entries, more than the {MAX_ENTRIES} that are read: make it anew with the usual 128"
    )]
    TooMany(u32),
    /// Entries of another size than tables have.
    #[error(
        "gpt has entries of {0} bytes, expected a multiple of 8 from {MIN_ENTRY_SIZE} to {MAX_ENTRY_SIZE}: make it anew with the usual 128"
    )]
    EntrySize(u32),
    /// The entries lie on no disk.
    #[error("gpt entries begin in sector {0}, which no disk has")]
    NoPlace(u64),
    /// The entries lie behind what was read of the disk.
    #[error("gpt entries are not in the first {0} bytes of the disk")]
    NotInHead(usize),
    /// The entries are damaged.
    #[error("gpt entries have a wrong checksum")]
    EntriesChecksum,
    /// An entry lies on no disk, or ends before it begins.
    #[error("partition {number} goes from sector {first} to {last}")]
    Range {
        /// Its number.
        number: u32,
        /// Its first sector.
        first: u64,
        /// Its last sector.
        last: u64,
    },
}

impl GptError {
    /// Whether these bytes are no sound table, rather than one that is larger than what is read.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::TooMany(_) => false,
            // No table has smaller ones, or such between.
            Self::EntrySize(size) => *size <= MAX_ENTRY_SIZE,
            _ => true,
        }
    }
}

/// Header of one copy (UEFI 2.10, table 5.5). There is none in memory that was not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    sector: u64,
    place: Range<u64>,
    entry_size: u32,
    entries_checksum: u32,
}

impl Header {
    /// Checks the header in sector `lba`, all of whose bytes are given: signature, checksum,
    /// place, and how many entries there are of what size (UEFI 2.10, section 5.3.2).
    ///
    /// # Errors
    /// When there is none, it is damaged, or its table is larger than what is read.
    pub fn parse(bytes: &[u8], lba: u64) -> Result<Self, GptError> {
        if bytes.len() < HEADER {
            return Err(GptError::CutShort);
        }
        if !bytes.starts_with(SIGNATURE) {
            return Err(GptError::NoHeader(lba));
        }
        let length = u32_at(bytes, 12);
        if !(HEADER..=bytes.len()).contains(&(length as usize)) {
            return Err(GptError::HeaderSize(length));
        }
        let mut unsealed = bytes[..length as usize].to_vec();
        unsealed[16..20].fill(0);
        if crc32(&unsealed) != u32_at(bytes, 16) {
            return Err(GptError::HeaderChecksum);
        }
        let said = u64_at(bytes, 24);
        if said != lba {
            return Err(GptError::Misplaced { said, found: lba });
        }
        let (count, entry_size) = (u32_at(bytes, 80), u32_at(bytes, 84));
        if count > MAX_ENTRIES {
            return Err(GptError::TooMany(count));
        }
        // Powers of two times 128; earlier editions of UEFI allowed any multiple of 8.
        if !(MIN_ENTRY_SIZE..=MAX_ENTRY_SIZE).contains(&entry_size) || entry_size % 8 != 0 {
            return Err(GptError::EntrySize(entry_size));
        }
        let sector = bytes.len() as u64;
        let begin = u64_at(bytes, 72);
        let place = begin.checked_mul(sector).and_then(|start| {
            // At most 16 MiB by the limits above.
            let end = start.checked_add(u64::from(count) * u64::from(entry_size))?;
            is_offset(end).then_some(start..end)
        });
        Ok(Self {
            sector,
            place: place.ok_or(GptError::NoPlace(begin))?,
            entry_size,
            entries_checksum: u32_at(bytes, 88),
        })
    }

    /// Checks the first header of a disk that begins with `head`, in sectors of `sector` bytes.
    ///
    /// # Errors
    /// As [`Self::parse`], and when `head` ends before the header does.
    pub fn first(head: &[u8], sector: u32) -> Result<Self, GptError> {
        let sector = sector as usize;
        let bytes = head.get(sector..2 * sector).ok_or(GptError::CutShort)?;
        Self::parse(bytes, FIRST)
    }

    /// Bytes of a sector.
    #[must_use]
    pub fn sector(&self) -> u64 {
        self.sector
    }

    /// Bytes of the disk that hold the entries, at most 16 MiB.
    #[must_use]
    pub fn place(&self) -> Range<u64> {
        self.place.clone()
    }

    /// Where on the disk the entry of this number begins, in bytes. None when the table is
    /// shorter.
    #[must_use]
    pub fn entry(&self, number: u32) -> Option<u64> {
        let before = u64::from(number.checked_sub(1)?);
        let start = self.place.start + before * u64::from(self.entry_size);
        Some(start).filter(|start| *start < self.place.end)
    }

    /// The entries that are in use, in the order of their numbers; `bytes` are those at
    /// [`Self::place`].
    ///
    /// # Errors
    /// When the entries are not those that the header speaks of; and, for each entry, when it
    /// lies on no disk.
    pub fn entries(
        &self,
        bytes: &[u8],
    ) -> Result<impl Iterator<Item = Result<Entry, GptError>>, GptError> {
        if crc32(bytes) != self.entries_checksum {
            return Err(GptError::EntriesChecksum);
        }
        let sector = self.sector;
        let numbered = bytes.chunks_exact(self.entry_size as usize).zip(1_u32..);
        Ok(numbered
            .filter(|(entry, _)| entry[..16] != [0; 16])
            .map(move |(entry, number)| Entry::parse(entry, number, sector)))
    }
}

/// A partition (UEFI 2.10, table 5.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position in the table, from 1.
    pub number: u32,
    /// Its type, as a lower-case GUID.
    pub type_guid: String,
    /// What Linux calls PARTUUID: a lower-case GUID.
    pub uuid: String,
    /// Its name, may be empty. What is not UTF-16 in it is U+FFFD.
    pub name: String,
    /// Bytes of the disk. Their end fits into an `i64`, as offsets in files must.
    pub range: Range<u64>,
}

impl Entry {
    /// `entry` has [`MIN_ENTRY_SIZE`] bytes at least.
    fn parse(entry: &[u8], number: u32, sector: u64) -> Result<Self, GptError> {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let range = bytes_of(first, last, sector).ok_or(GptError::Range {
            number,
            first,
            last,
        })?;
        Ok(Self {
            number,
            type_guid: guid(&entry[..16]),
            uuid: guid(&entry[16..32]),
            name: text(&entry[56..128]),
            range,
        })
    }
}

/// Bytes of the sectors of a disk that begins with `head`, 512 or 4096: the second one begins
/// with a GPT header (UEFI 2.10, section 5.3.2). None when neither does.
#[must_use]
pub fn sector_size(head: &[u8]) -> Option<u32> {
    [512_u32, 4096].into_iter().find(|&sector| {
        head.get(sector as usize..)
            .is_some_and(|rest| rest.starts_with(SIGNATURE))
    })
}

/// The partitions in the first copy of the table of a disk that begins with `head`, in sectors of
/// `sector` bytes.
///
/// # Errors
/// When there is no such copy, `head` ends before it does, or it cannot be used.
pub fn primary(head: &[u8], sector: u32) -> Result<Vec<Entry>, GptError> {
    let header = Header::first(head, sector)?;
    let place = header.place();
    // What does not fit is not in the head either.
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let bytes = head
        .get(index(place.start)..index(place.end))
        .ok_or(GptError::NotInHead(head.len()))?;
    let entries = header.entries(bytes)?;
    entries.collect()
}

/// Bytes of a disk that begins with `head`, by its GPT, whose backup header is in the last sector
/// (UEFI 2.10, section 5.3.2). Asked of damaged headers too: the worst is that a damaged disk is
/// refused.
#[must_use]
pub fn disk_size(head: &[u8]) -> Option<u64> {
    let sector = sector_size(head)?;
    let header = head.get(sector as usize..)?.get(..HEADER)?;
    u64_at(header, 32)
        .checked_add(1)?
        .checked_mul(sector.into())
}

/// Sectors of the headers on a disk of `size` bytes in sectors of `sector`: of the first copy,
/// and of its backup, which counts when the first is damaged (UEFI 2.10, section 5.3.2). It is
/// looked for at the end of the disk, wherever the first header says that it is: a damaged one
/// cannot be asked.
#[must_use]
pub fn header_sectors(size: u64, sector: u64) -> [u64; 2] {
    [FIRST, (size / sector).saturating_sub(1)]
}

/// From the first to the last sector, in bytes. None when no disk is that large, or the last lies
/// more than one sector before the first.
fn bytes_of(first: u64, last: u64, sector: u64) -> Option<Range<u64>> {
    let start = first.checked_mul(sector)?;
    let end = last.checked_add(1)?.checked_mul(sector)?;
    (start <= end && is_offset(end)).then_some(start..end)
}

/// Offsets of files have a sign.
fn is_offset(at: u64) -> bool {
    i64::try_from(at).is_ok()
}

/// The first three groups are little-endian numbers, the others bytes (UEFI 2.10, appendix A).
fn guid(bytes: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let text = hex::encode(order.map(|index: usize| bytes[index]));
    format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}

/// UTF-16, little-endian, up to the first zero.
fn text(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The checksum of headers and entries: CRC-32 of ISO 3309 (UEFI 2.10, section 4.2). A few KiB of
/// a disk: no table needed.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests;
