//! Reads one copy of a GPT from a disk. What its bytes say is told by [`anneal_image::gpt`], as
//! for images; only here is the backup looked at too, by [`partition`](super::partition).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use anneal_image::gpt::{Entry, GptError, Header};

use super::partition::Partition;

/// Reads the copy whose header is at `lba`. None when it is damaged.
///
/// # Errors
/// When the disk cannot be read, or the table is larger than any that is read: what it holds is
/// unknown then, and the text says what to do.
pub fn read(file: &File, sector: u64, lba: u64) -> io::Result<Option<Vec<Partition>>> {
    match copy(file, sector, lba)? {
        Ok(partitions) => Ok(Some(partitions)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn copy(file: &File, sector: u64, lba: u64) -> io::Result<Result<Vec<Partition>, GptError>> {
    let mut bytes = vec![0; usize::try_from(sector).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, lba * sector)?;
    let header = match Header::parse(&bytes, lba) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    let place = header.place();
    // At most 16 MiB, the header was checked.
    let mut bytes = vec![0; (place.end - place.start) as usize];
    file.read_exact_at(&mut bytes, place.start)?;
    let partitions = match header.entries(&bytes) {
        Ok(entries) => entries.map(|entry| entry.map(partition)).collect(),
        Err(error) => Err(error),
    };
    Ok(partitions)
}

fn partition(entry: Entry) -> Partition {
    Partition {
        number: entry.number,
        start: entry.range.start,
        length: entry.range.end - entry.range.start,
        uuid: Some(entry.uuid),
        type_guid: Some(entry.type_guid),
        name: Some(entry.name).filter(|name| !name.is_empty()),
        file_system: None,
    }
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
        let mut bytes = vec![0; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let end = bytes.len() / 512 - 1;
        for own in [1, end] {
            let count = own * 512 + 80;
            bytes[count..count + 4].copy_from_slice(&4097_u32.to_le_bytes());
            reseal(&mut bytes, 512, own);
        }
        file.write_all_at(&bytes, 0).unwrap();
        for error in [
            read(&file, 512, 1).unwrap_err(),
            table::read(&file, 512).unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("4097 entries"), "{error}");
        }
    }

    /// A disk like [`disk`] with a number in the header of the copy at `own` changed, and resealed.
    fn odd(own: usize, at: usize, number: u32) -> File {
        let file = disk(8, 100);
        let mut bytes = vec![0; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let at = own * 512 + at;
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        reseal(&mut bytes, 512, own);
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    #[test]
    fn the_backup_stands_in_for_a_damaged_table_and_not_for_one_too_large() {
        let (first, backup) = (1, (1 << 11) - 1);
        let (count, size) = (80, 84);
        let too_large = odd(first, count, 4097);
        assert!(read(&too_large, 512, backup as u64).unwrap().is_some());
        let error = table::read(&too_large, 512).unwrap_err();
        assert!(error.to_string().contains("4097 entries"), "{error}");
        // The first one counts; and no table has entries of 64 bytes.
        for file in [odd(backup, count, 4097), odd(first, size, 64)] {
            assert_eq!(table::read(&file, 512).unwrap()[0].start, 8 * 512);
        }
    }
}
