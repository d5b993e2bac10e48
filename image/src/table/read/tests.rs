//! Tables that programs write, and tables that somebody made up.

use proptest::prelude::*;

use super::*;
use crate::gpt::crc32;

const SIZE: u64 = 64 << 20;

/// Header and entries of a GPT with partitions (name, first and last sector).
fn gpt(sector: usize, parts: &[(&str, u64, u64)]) -> Vec<u8> {
    let mut head = vec![0; 256 << 10];
    head[446 + 4] = PROTECTIVE;
    head[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (index, (name, first, last)) in parts.iter().enumerate() {
        let entry = &mut head[2 * sector + index * 128..][..128];
        entry[..16].fill(0xaf);
        entry[16..32].fill(index as u8 + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (at, unit) in name.encode_utf16().enumerate() {
            entry[56 + 2 * at..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let entries = crc32(&head[2 * sector..][..128 * 128]);
    let header = &mut head[sector..][..92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24] = 1;
    header[32..40].copy_from_slice(&(SIZE / sector as u64 - 1).to_le_bytes());
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    header[88..92].copy_from_slice(&entries.to_le_bytes());
    seal(&mut head, sector);
    head
}

fn seal(head: &mut [u8], sector: usize) {
    head[sector + 16..sector + 20].fill(0);
    let crc = crc32(&head[sector..sector + 92]);
    head[sector + 16..sector + 20].copy_from_slice(&crc.to_le_bytes());
}

fn mbr(parts: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut head = vec![0; 512];
    head[440..444].copy_from_slice(&[0x4d, 0x3c, 0x2b, 0x1a]);
    for (index, (kind, start, count)) in parts.iter().enumerate() {
        let entry = &mut head[446 + 16 * index..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&count.to_le_bytes());
    }
    head[510..].copy_from_slice(&[0x55, 0xaa]);
    head
}

fn problem(head: &[u8]) -> String {
    let found = read(head, SIZE);
    assert_eq!(found.table, None);
    found.problem.unwrap_or_else(|| "none".to_owned())
}

#[test]
fn reads_both_sector_sizes() {
    for sector in [512_u64, 4096] {
        let head = gpt(sector as usize, &[("EFI", 100, 199), ("ROOT ä", 200, 200)]);
        let found = read(&head, SIZE);
        assert_eq!((found.problem, found.end), (None, Some(SIZE)));
        let table = found.table.unwrap();
        assert_eq!(u64::from(table.sector_size), sector);
        let root = table.find("ROOT ä").unwrap();
        assert_eq!(
            (root.number, root.start, root.size),
            (2, 200 * sector, sector)
        );
        assert_eq!(
            root.uuid.as_deref(),
            Some("02020202-0202-0202-0202-020202020202")
        );
        assert_eq!(table.find("1").unwrap().label.as_deref(), Some("EFI"));
    }
}

#[test]
fn knows_how_long_a_damaged_gpt_disk_was() {
    for sector in [512_usize, 4096] {
        let mut head = vec![0; 8192];
        head[sector..sector + 8].copy_from_slice(b"EFI PART");
        head[sector + 32..sector + 40].copy_from_slice(&999_u64.to_le_bytes());
        assert_eq!(read(&head, SIZE).end, Some(1000 * sector as u64));
        head[sector + 32..sector + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(read(&head, SIZE).end, None);
    }
}

#[test]
fn reads_an_mbr() {
    let table = read(&mbr(&[(0x83, 2048, 100), (0, 0, 0), (0x05, 4096, 8)]), SIZE)
        .table
        .unwrap();
    assert_eq!(table.kind, TableKind::Mbr);
    let kinds: Vec<_> = table.partitions.iter().map(|p| p.kind.as_str()).collect();
    assert_eq!(kinds, ["0x83", "0x05"]);
    let extended = table.find("1A2B3C4D-03").unwrap();
    assert_eq!(
        (extended.number, extended.start, extended.size),
        (3, 4096 * 512, 8 * 512)
    );
}

#[test]
fn what_has_no_table_has_none() {
    let mut fat = mbr(&[(0x83, 1, 1)]);
    fat[446] = 0x33;
    for head in [&[][..], &[0; 511], &[0; 8192], &fat, &mbr(&[])] {
        assert_eq!(read(head, SIZE), Found::default());
    }
}

#[test]
fn unusable_tables_are_none_with_a_reason() {
    assert!(problem(&mbr(&[(PROTECTIVE, 1, 9)])).contains("but there is none"));
    assert!(problem(&mbr(&[(0x83, 2048, 1 << 20)])).contains("beyond the 67108864"));
    // As hybrid ISOs have it.
    assert!(problem(&mbr(&[(0x17, 64, 4096), (0xef, 100, 8)])).contains("1 and 2 overlap"));
    assert!(problem(&gpt(512, &[("a", 100, 200), ("b", 200, 300)])).contains("1 and 2 overlap"));
    assert!(problem(&gpt(512, &[("a", 200, 100)])).contains("from sector 200 to 100"));
    assert!(problem(&gpt(512, &[("a", 0, u64::MAX)])).contains("from sector 0 to"));
    assert!(problem(&gpt(512, &[("a", 100, SIZE)])).contains("beyond the 67108864"));

    let mut head = gpt(512, &[("a", 100, 200)]);
    head[600] ^= 1;
    assert!(problem(&head).contains("header has a wrong checksum"));
    let mut head = gpt(512, &[("a", 100, 200)]);
    head[1024 + 60] ^= 1;
    assert!(problem(&head).contains("entries have a wrong checksum"));
    let changes: [(usize, u8, &str); 5] = [
        (12, 91, "says that it has 91 bytes"),
        (24, 2, "that of sector 2, not of sector 1"),
        (82, 1, "more than the 4096 that are read"),
        (85, 128, "entries of 32896 bytes"),
        (74, 1, "not in the first 262144 bytes"),
    ];
    for (at, value, expected) in changes {
        let mut head = gpt(512, &[("a", 100, 200)]);
        head[512 + at] = value;
        seal(&mut head, 512);
        assert!(problem(&head).contains(expected), "{}", problem(&head));
    }
}

#[test]
fn names_that_cannot_be_printed_are_left_out() {
    for name in ["a\u{1b}[31m", "a\u{fffd}"] {
        let table = read(&gpt(512, &[(name, 100, 200)]), SIZE).table;
        assert_eq!(table.unwrap().partitions[0].label, None);
    }
}

#[test]
fn mutable_partitions_are_found_by_any_name() {
    let parts = [("ESP", 100, 199), ("STATE", 200, 299), ("STATE", 300, 399)];
    let table = read(&gpt(512, &parts), SIZE).table.unwrap();
    let marked = |name: &str| {
        let mut table = table.clone();
        table.mark_mutable(&[name.to_owned()]).map(|()| {
            let mutable = table.partitions.iter().filter(|p| p.mutable);
            mutable.map(|p| p.number).collect::<Vec<_>>()
        })
    };
    assert_eq!(marked("ESP"), Ok(vec![1]));
    assert_eq!(marked("2"), Ok(vec![2]));
    assert_eq!(marked("03030303-0303-0303-0303-030303030303"), Ok(vec![3]));
    let error = marked("STATE").unwrap_err();
    assert!(error.starts_with("more than one partition is called \"STATE\""));
    assert_eq!(
        marked("OEM").unwrap_err(),
        "no partition has the label, number or UUID \"OEM\"; there are \
         1 \"ESP\" (01010101-0101-0101-0101-010101010101), \
         2 \"STATE\" (02020202-0202-0202-0202-020202020202), \
         3 \"STATE\" (03030303-0303-0303-0303-030303030303)"
    );
}

/// What a real program writes is read as it meant it.
#[test]
fn agrees_with_sfdisk() {
    for (label, expected) in [("gpt", TableKind::Gpt), ("dos", TableKind::Mbr)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE).unwrap();
        let name = if label == "gpt" { ", name=one" } else { "" };
        let script = format!("label: {label}\nsize=8M{name}\nsize=4M\n");
        sfdisk(file.path(), &[], &script);
        let json = sfdisk(file.path(), &["-J"], "");
        let truth: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let truth = &truth["partitiontable"];
        let table = read(&std::fs::read(file.path()).unwrap()[..HEAD], SIZE)
            .table
            .unwrap();
        assert_eq!(table.kind, expected);
        let parts = truth["partitions"].as_array().unwrap();
        assert_eq!(parts.len(), table.partitions.len());
        for (part, said) in table.partitions.iter().zip(parts) {
            assert_eq!(part.start, said["start"].as_u64().unwrap() * 512);
            assert_eq!(part.size, said["size"].as_u64().unwrap() * 512);
            assert_eq!(part.label.as_deref(), said["name"].as_str());
            let kind = said["type"].as_str().unwrap().to_lowercase();
            assert_eq!(part.kind.trim_start_matches("0x"), kind);
            if let Some(uuid) = said["uuid"].as_str() {
                assert_eq!(part.uuid.as_deref(), Some(uuid.to_lowercase().as_str()));
            }
        }
    }
}

/// As the agent reads it: 128 entries are usual, and others count as well.
#[test]
fn reads_long_tables_that_sgdisk_makes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let made = std::process::Command::new("/usr/sbin/sgdisk")
        .args(["-S", "4096", "-n", "1:2048:+1M", "-n", "1000:0:+1M"])
        .args(["-c", "1000:KEEP"])
        .arg(file.path())
        .output()
        .expect("sgdisk: install the package gdisk");
    assert!(made.status.success(), "{made:?}");
    let disk = std::fs::read(file.path()).unwrap();
    let table = read(&disk[..HEAD], SIZE).table.unwrap();
    let numbers: Vec<_> = table.partitions.iter().map(|part| part.number).collect();
    assert_eq!(numbers, [1, 1000]);
    assert_eq!(table.find("KEEP").unwrap().size, 1 << 20);
    // Not the part of it that is there.
    let problem = read(&disk[..HEAD / 4], SIZE).problem.unwrap();
    assert!(
        problem.contains("not in the first 262144 bytes"),
        "{problem}"
    );
}

fn sfdisk(disk: &std::path::Path, arguments: &[&str], script: &str) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new("/usr/sbin/sfdisk")
        .args(arguments)
        .arg(disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("sfdisk is needed ({error}): apt-get install fdisk"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

proptest! {
    #[test]
    fn hostile_tables_never_panic(
        changes in proptest::collection::vec((0_usize..3000, any::<u8>()), 0..8),
        sector in prop_oneof![Just(512_usize), Just(4096)],
        size in 0_u64..(1 << 30),
        resealed in any::<bool>(),
    ) {
        let mut head = gpt(sector, &[("a", 100, 200), ("b", 300, 400)]);
        for (at, value) in changes {
            head[at % (2 * sector + 512)] = value;
        }
        if resealed {
            let crc = crc32(&head[2 * sector..][..128 * 128]);
            head[sector + 88..sector + 92].copy_from_slice(&crc.to_le_bytes());
            seal(&mut head, sector);
        }
        if let Some(table) = read(&head, size).table {
            prop_assert_eq!(table.problem(size), None);
        }
    }

    #[test]
    fn noise_never_panics(head in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let mut head = head;
        if head.len() >= 512 {
            head[510..512].copy_from_slice(&[0x55, 0xaa]);
            head[446] &= 0x80;
        }
        read(&head, SIZE);
    }
}
