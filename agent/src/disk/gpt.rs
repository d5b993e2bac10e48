//! One copy of a GPT (UEFI 2.10, section 5.3): header and entries, checked. Its bytes may be
//! anybody's: what does not add up is a damaged table, not some other partition.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::partition::Partition;

/// Most entries, and most bytes of each, of a table that is read; 128 of 128 are usual. One with
/// more is unknown as a whole: what stands in the entries that nobody looks at could be anything.
const MAX_ENTRIES: u32 = 4096;
const MAX_ENTRY: u32 = 4096;

/// Reads the copy whose header is at `lba`. None when header or entries fail their checksums, or
/// make no sense.
///
/// # Errors
/// When the disk cannot be read.
pub fn read(file: &File, sector: u64, lba: u64) -> io::Result<Option<Vec<Partition>>> {
    let mut bytes = vec![0; usize::try_from(sector).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, lba * sector)?;
    let Some(header) = Header::parse(&mut bytes, lba) else {
        return Ok(None);
    };
    let Some(start) = header.entries.checked_mul(sector) else {
        return Ok(None);
    };
    // At most 16 MiB by the limits above.
    let mut entries = vec![0; header.count as usize * header.size as usize];
    file.read_exact_at(&mut entries, start)?;
    if crc32(&entries) != header.entries_checksum {
        return Ok(None);
    }
    let used = entries
        .chunks_exact(header.size as usize)
        .zip(1..)
        .filter(|(entry, _)| entry[..16] != [0; 16]);
    Ok(used
        .map(|(entry, number)| partition(entry, number, sector))
        .collect())
}

/// Table 5.5.
struct Header {
    entries: u64,
    count: u32,
    size: u32,
    entries_checksum: u32,
}

impl Header {
    fn parse(bytes: &mut [u8], lba: u64) -> Option<Self> {
        let length = u32_at(bytes, 12) as usize;
        if !bytes.starts_with(b"EFI PART") || !(92..=bytes.len()).contains(&length) {
            return None;
        }
        let checksum = u32_at(bytes, 16);
        bytes[16..20].fill(0);
        let header = Self {
            entries: u64_at(bytes, 72),
            count: u32_at(bytes, 80),
            size: u32_at(bytes, 84),
            entries_checksum: u32_at(bytes, 88),
        };
        let right = crc32(&bytes[..length]) == checksum
            && u64_at(bytes, 24) == lba
            && (128..=MAX_ENTRY).contains(&header.size)
            && header.count <= MAX_ENTRIES;
        right.then_some(header)
    }
}

/// Table 5.6. None when it does not lie on any disk.
fn partition(entry: &[u8], number: u32, sector: u64) -> Option<Partition> {
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let start = first.checked_mul(sector)?;
    let end = last.checked_add(1)?.checked_mul(sector)?;
    // Offsets of files have a sign.
    i64::try_from(end).ok()?;
    Some(Partition {
        number,
        start,
        length: end.checked_sub(start)?,
        uuid: Some(guid(&entry[16..32])),
        type_guid: Some(guid(&entry[..16])),
        name: utf16(&entry[56..128]),
        file_system: None,
    })
}

/// The first three fields are little-endian (UEFI 2.10, appendix A).
fn guid(b: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let text = hex::encode(order.map(|i| b[i]));
    format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}

fn utf16(bytes: &[u8]) -> Option<String> {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    Some(String::from_utf16_lossy(&units)).filter(|name| !name.is_empty())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32 as GPT uses it (ISO 3309, reflected, polynomial 0xedb88320).
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::super::partition as table;
    use super::*;
    use crate::disk::testing::{partition as with_gpt, reseal};

    /// A disk with one partition there, by two tables whose checksums are right.
    fn disk(first: u64, last: u64) -> File {
        let mut bytes = vec![0; 1 << 20];
        with_gpt(&mut bytes, 512);
        let end = bytes.len() / 512 - 1;
        for (own, entry) in [(1, 2 * 512), (end, (end - 1) * 512)] {
            bytes[entry + 32..entry + 40].copy_from_slice(&first.to_le_bytes());
            bytes[entry + 40..entry + 48].copy_from_slice(&last.to_le_bytes());
            reseal(&mut bytes, 512, own);
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_partition_that_lies_on_no_disk_is_a_damaged_table() {
        let file = disk(8, 100);
        let end = (1 << 11) - 1;
        for lba in [1, end] {
            let found = read(&file, 512, lba).unwrap().unwrap();
            assert_eq!((found[0].start, found[0].length), (8 * 512, 93 * 512));
        }
        assert!(table::read(&file, 512).is_ok());
        let max = u64::MAX;
        for (first, last) in [
            (8, max),
            (max, max),
            (max / 512 + 1, max / 512 + 2),
            (8, max / 512),
            (8, (1 << 54) - 1),
            (9, 7),
        ] {
            let file = disk(first, last);
            for lba in [1, end] {
                let found = read(&file, 512, lba).unwrap();
                assert_eq!(found, None, "{first} to {last}");
            }
            let error = table::read(&file, 512).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_header_is_that_of_its_own_sector_and_no_table_is_read_in_part() {
        // Found elsewhere, it is a copy of another disk's.
        let file = disk(8, 100);
        let mut header = [0; 512];
        file.read_exact_at(&mut header, 512).unwrap();
        file.write_all_at(&header, 7 * 512).unwrap();
        assert_eq!(read(&file, 512, 7).unwrap(), None);
        let parse = |count: u32, size: u32| {
            let mut header = header;
            header[80..84].copy_from_slice(&count.to_le_bytes());
            header[84..88].copy_from_slice(&size.to_le_bytes());
            header[16..20].fill(0);
            let crc = crc32(&header[..92]);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            Header::parse(&mut header, 1).is_some()
        };
        assert!(parse(4096, 128) && parse(1, 4096));
        assert!(!parse(4097, 128) && !parse(1, 4097) && !parse(1, 64));
    }

    proptest::proptest! {
        #[test]
        fn whatever_an_entry_says_it_ends_on_a_disk_or_is_damage(
            first in proptest::num::u64::ANY,
            length in 0_u64..1 << 60,
            rest in proptest::collection::vec(proptest::num::u8::ANY, 128),
        ) {
            let mut entry = rest;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            for last in [first.wrapping_add(length), first.wrapping_sub(1), u64::MAX] {
                entry[40..48].copy_from_slice(&last.to_le_bytes());
                for sector in [512, 4096] {
                    let found = partition(&entry, 1, sector);
                    let end = found.map_or(0, |found| found.start + found.length);
                    proptest::prop_assert!(i64::try_from(end).is_ok());
                }
            }
        }
    }
}
