//! `sgdisk` makes the tables and judges what comes out.

use super::*;
use crate::gpt::u64_at;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A disk of `size` bytes, partitioned by sgdisk with two partitions in the first 16 MiB.
fn disk(size: u64) -> (tempfile::NamedTempFile, Vec<u8>, Table) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file_mut().set_len(16 * MIB).unwrap();
    let out = Command::new("sgdisk")
        .args(["-n1:1M:4M", "-c1:ROOT", "-n2:5M:12M", "-c2:STATE"])
        .arg(file.path())
        .output()
        .expect("sgdisk is needed: apt install gdisk");
    assert!(out.status.success(), "{out:?}");
    let mut head = vec![0; MIB as usize];
    file.as_file_mut().read_exact(&mut head).unwrap();
    let table = Table::read(&head, 16 * MIB).unwrap();
    file.as_file_mut().set_len(size).unwrap();
    (file, head, table)
}

fn write(file: &mut File, grown: &Grown) {
    file.seek(SeekFrom::Start(grown.backup_at)).unwrap();
    file.write_all(&grown.backup).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&grown.head).unwrap();
}

fn sgdisk(file: &tempfile::NamedTempFile, what: &str) -> String {
    let out = Command::new("sgdisk").arg(what).arg(file.path()).output();
    String::from_utf8(out.unwrap().stdout).unwrap()
}

/// Whether the bytes end with a valid backup header.
fn backup_is_sound(backup: &[u8], sector: usize) -> bool {
    let header = &backup[backup.len() - sector..];
    let mut copy = header[..92].to_vec();
    copy[16..20].fill(0);
    header.starts_with(b"EFI PART")
        && crc32(&copy) == u32_at(header, 16)
        && crc32(&backup[..128 * 128]) == u32_at(header, 88)
        && u64_at(header, 32) == 1
}

#[test]
fn sgdisk_finds_no_problem_with_a_grown_table() {
    for (size, which) in [
        (100 * MIB, Grow::Last),
        (100 * MIB + 512 * 7, Grow::parse("STATE")),
        (16 * MIB, Grow::parse("2")),
    ] {
        let (mut file, head, table) = disk(size);
        let grown = grow(&head, Some(&table), size, 512, &which).unwrap();
        assert_eq!(
            grown.backup_at + grown.backup.len() as u64,
            size / 512 * 512
        );
        assert!(backup_is_sound(&grown.backup, 512));
        write(file.as_file_mut(), &grown);
        let verdict = sgdisk(&file, "-v");
        assert!(verdict.contains("No problems found"), "{size}: {verdict}");
        let now = Table::read(&grown.head, size).unwrap();
        assert_eq!(now.partition(1), table.partition(1));
        let (before, after) = (table.partition(2).unwrap(), now.partition(2).unwrap());
        assert_eq!((after.start, &after.uuid), (before.start, &before.uuid));
        assert_eq!(after.size, grown.size);
        assert!(after.size >= before.size && after.end() > size - 3 * MIB);
        // What is read back from the end is the same table.
        let mut backup = vec![0; grown.backup.len()];
        let place = SeekFrom::Start(grown.backup_at);
        file.as_file_mut().seek(place).unwrap();
        file.as_file_mut().read_exact(&mut backup).unwrap();
        assert_eq!(backup, grown.backup);
    }
}

#[test]
fn refuses_what_cannot_be_grown() {
    let (_file, head, table) = disk(100 * MIB);
    let try_it = |size, sector, which: &str| {
        grow(&head, Some(&table), size, sector, &Grow::parse(which)).unwrap_err()
    };
    assert_eq!(
        try_it(100 * MIB, 512, "ROOT"),
        GrowError::NotLast { number: 1, next: 2 }
    );
    let none = try_it(100 * MIB, 512, "HOME").to_string();
    assert!(none.contains("HOME") && none.contains("STATE"), "{none}");
    assert!(matches!(
        try_it(100 * MIB, 4096, "last"),
        GrowError::OtherSectors {
            image: 512,
            disk: 4096
        }
    ));
    let end = table.partition(2).unwrap().end();
    assert_eq!(try_it(end + 512, 512, "last"), GrowError::NoRoom(end + 512));
    assert_eq!(
        grow(&head, None, 100 * MIB, 512, &Grow::Last),
        Err(GrowError::NoGpt)
    );
    // Not the table of these bytes.
    let mut other = table.clone();
    other.partitions[1].number = 129;
    let error = grow(&head, Some(&other), 100 * MIB, 512, &Grow::Last).unwrap_err();
    assert!(error.to_string().ends_with("no entry 129"), "{error}");
    let mut damaged = head.clone();
    damaged[520] ^= 1;
    assert!(matches!(
        grow(&damaged, Some(&table), 100 * MIB, 512, &Grow::Last),
        Err(GrowError::Damaged(_))
    ));
    assert!(matches!(
        grow(&head[..4096], Some(&table), 100 * MIB, 512, &Grow::Last),
        Err(GrowError::Damaged(_))
    ));
}

/// No tool at hand makes a GPT for 4096-byte sectors in a file: this one is made by hand from
/// one that sgdisk made.
#[test]
fn sectors_of_4096_bytes() {
    let (_file, small, _) = disk(16 * MIB);
    let mut head = vec![0; MIB as usize];
    head[..512].copy_from_slice(&small[..512]);
    head[4096..4096 + 512].copy_from_slice(&small[512..1024]);
    head[8192..8192 + 128 * 128].copy_from_slice(&small[1024..1024 + 128 * 128]);
    for entry in [8192, 8192 + 128] {
        for at in [entry + 32, entry + 40] {
            let sector = u64_at(&head, at);
            put_u64(
                &mut head,
                at,
                (sector + 1) / 8 - u64::from(at == entry + 40),
            );
        }
    }
    let crc = crc32(&head[8192..8192 + 128 * 128]);
    let sectors = 16 * MIB / 4096;
    let header = &mut head[4096..8192];
    put_u64(header, 32, sectors - 1);
    put_u64(header, 48, sectors - 6);
    put_u32(header, 88, crc);
    seal(header);
    let table = Table::read(&head, 16 * MIB).unwrap();
    assert_eq!(table.sector_size, 4096);
    let size = 64 * MIB;
    let grown = grow(&head, Some(&table), size, 4096, &Grow::Last).unwrap();
    assert!(backup_is_sound(&grown.backup, 4096));
    assert_eq!(grown.backup.len(), 5 * 4096);
    assert_eq!(grown.backup_at + grown.backup.len() as u64, size);
    let now = Table::read(&grown.head, size).unwrap();
    assert_eq!(now.partition(2).unwrap().end(), 63 * MIB);
}
