//! Copies that add up, and copies that do not. What programs write is read in `table::read`.

use proptest::prelude::*;

use super::*;

/// A header in sector 1 of 512 bytes, with entries in sector 2.
fn header(count: u32, size: u32, entries: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24] = 1;
    header[72] = 2;
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&size.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
    seal(&mut header);
    header
}

fn seal(header: &mut [u8]) {
    header[16..20].fill(0);
    let crc = crc32(&header[..92]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

/// An entry of 128 bytes.
fn entry(first: u64, last: u64, name: &[u16]) -> Vec<u8> {
    let mut entry = vec![0; 128];
    entry[..16].copy_from_slice(&std::array::from_fn::<u8, 16, _>(|at| at as u8));
    entry[16] = 0xff;
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&last.to_le_bytes());
    for (unit, into) in name.iter().zip(entry[56..].chunks_exact_mut(2)) {
        into.copy_from_slice(&unit.to_le_bytes());
    }
    entry
}

#[test]
fn crc_is_the_usual_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn no_table_is_read_in_part() {
    let parse = |count, size| Header::parse(&header(count, size, &[]), 1);
    for (count, size) in [(0, 128), (4096, 128), (1, 4096), (4096, 4096), (1, 136)] {
        let found = parse(count, size).unwrap();
        let length = u64::from(count) * u64::from(size);
        assert_eq!(found.place(), 1024..1024 + length);
    }
    assert_eq!(parse(4097, 128), Err(GptError::TooMany(4097)));
    assert!(!GptError::TooMany(4097).is_damage());
    for size in [0, 64, 120, 129, 4104, u32::MAX] {
        let error = parse(1, size).unwrap_err();
        assert_eq!(error, GptError::EntrySize(size));
        assert_eq!(error.is_damage(), size <= MAX_ENTRY_SIZE, "{size}");
        assert!(error.to_string().contains("the usual 128"));
    }
    // The last of the most that there can be counts as the first does.
    let mut entries = vec![0; 4095 * 128];
    entries.extend(entry(100, 199, &[]));
    let found = Header::parse(&header(4096, 128, &entries), 1).unwrap();
    let found: Result<Vec<_>, _> = found.entries(&entries).unwrap().collect();
    let found = found.unwrap();
    assert_eq!((found.len(), found[0].number), (1, 4096));
}

#[test]
fn a_header_is_that_of_its_own_sector() {
    let good = header(1, 128, &[]);
    assert!(Header::parse(&good, 1).is_ok());
    let misplaced = GptError::Misplaced { said: 1, found: 7 };
    assert_eq!(Header::parse(&good, 7), Err(misplaced));
    assert_eq!(Header::parse(&good[..91], 1), Err(GptError::CutShort));
    assert_eq!(Header::parse(&[0; 512], 9), Err(GptError::NoHeader(9)));
    let mut damaged = good.clone();
    damaged[40] ^= 1;
    assert_eq!(Header::parse(&damaged, 1), Err(GptError::HeaderChecksum));
    for length in [91, 513] {
        let mut wrong = good.clone();
        wrong[12..16].copy_from_slice(&u32::to_le_bytes(length));
        assert_eq!(Header::parse(&wrong, 1), Err(GptError::HeaderSize(length)));
    }
    for sector in [u64::MAX, 1 << 54] {
        let mut far = good.clone();
        far[72..80].copy_from_slice(&sector.to_le_bytes());
        seal(&mut far);
        assert_eq!(Header::parse(&far, 1), Err(GptError::NoPlace(sector)));
    }
}

#[test]
fn entries_are_those_that_the_header_speaks_of() {
    let mut entries = vec![0; 128];
    entries.extend(entry(34, 34, &[0x61, 0xd800, 0, 0x62]));
    let found = Header::parse(&header(2, 128, &entries), 1).unwrap();
    assert_eq!([1, 2].map(|n| found.entry(n)), [Some(1024), Some(1152)]);
    assert_eq!([0, 3, u32::MAX].map(|n| found.entry(n)), [None; 3]);
    let one = Entry {
        number: 2,
        type_guid: "03020100-0504-0706-0809-0a0b0c0d0e0f".to_owned(),
        uuid: "000000ff-0000-0000-0000-000000000000".to_owned(),
        name: "a\u{fffd}".to_owned(),
        range: 34 * 512..35 * 512,
    };
    let listed: Result<Vec<_>, _> = found.entries(&entries).unwrap().collect();
    assert_eq!(listed, Ok(vec![one]));
    let mut longer = entries.clone();
    longer.extend([0; 128]);
    for other in [&entries[..128], &longer[..]] {
        let error = found.entries(other).map(drop).unwrap_err();
        assert_eq!(error, GptError::EntriesChecksum);
    }
    // The first copy is read from the beginning of a disk, if all of it is there.
    let mut disk = vec![0; 512];
    disk.extend(header(2, 128, &entries));
    disk.extend(&entries);
    assert_eq!(primary(&disk, 512).unwrap().len(), 1);
    let short = &disk[..disk.len() - 1];
    assert_eq!(primary(short, 512), Err(GptError::NotInHead(short.len())));
    assert_eq!(primary(&disk[..700], 512), Err(GptError::CutShort));
}

#[test]
fn the_backup_is_at_the_end_of_the_disk() {
    assert_eq!(header_sectors(1 << 20, 512), [1, 2047]);
    assert_eq!(header_sectors((1 << 20) + 511, 512), [1, 2047]);
    assert_eq!(header_sectors(1 << 20, 4096), [1, 255]);
    assert_eq!(header_sectors(100, 512), [1, 0]);
}

proptest! {
    #[test]
    fn whatever_an_entry_says_it_ends_on_a_disk_or_is_damage(
        first in any::<u64>(),
        length in 0_u64..1 << 60,
        rest in proptest::collection::vec(any::<u8>(), 128),
    ) {
        let mut entry = rest;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        for last in [first.wrapping_add(length), first.wrapping_sub(1), u64::MAX] {
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            for sector in [512, 4096] {
                match Entry::parse(&entry, 1, sector) {
                    Ok(found) => {
                        prop_assert!(found.range.start <= found.range.end);
                        prop_assert!(i64::try_from(found.range.end).is_ok());
                    }
                    Err(error) => {
                        prop_assert_eq!(error, GptError::Range { number: 1, first, last });
                    }
                }
            }
        }
    }

    #[test]
    fn noise_in_a_sound_header_never_panics(
        noise in proptest::collection::vec(any::<u8>(), 512),
        place in 0_u64..8,
    ) {
        let mut noise = noise;
        noise[..16].copy_from_slice(&header(1, 128, &[])[..16]);
        for sound in [false, true] {
            if sound {
                noise[24..32].copy_from_slice(&1_u64.to_le_bytes());
                noise[72..80].copy_from_slice(&place.to_le_bytes());
                noise[80..88].copy_from_slice(&[2, 0, 0, 0, 128, 0, 0, 0]);
                let entries = crc32(&noise[128..384]);
                noise[88..92].copy_from_slice(&entries.to_le_bytes());
            }
            seal(&mut noise);
            let found = Header::parse(&noise, 1);
            prop_assert!(found.is_ok() || !sound);
            if let Ok(found) = found
                && let Ok(entries) = found.entries(&noise[128..384])
            {
                prop_assert!(entries.count() <= 2);
            }
        }
    }
}
