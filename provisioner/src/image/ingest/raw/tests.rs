//! Layers in layers, from files of the real tools.

use std::io::Cursor;
use std::process::Command;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::image::ingest::decode::tests::{packed, sample};
use crate::image::ingest::detect::tests::table;
use crate::image::ingest::memory::Memory;

fn rules(tar: bool) -> Rules {
    Rules {
        max_size: 1 << 30,
        tar,
        memory: Memory::default().share(CancellationToken::new()),
        spool: std::env::temp_dir(),
    }
}

fn read(bytes: Vec<u8>, rules: &Rules) -> Result<(String, Vec<u8>), IngestError> {
    let mut disk = open(Box::new(Cursor::new(bytes)), rules)?;
    let mut raw = Vec::new();
    disk.reader
        .read_to_end(&mut raw)
        .map_err(|error| IngestError::from_io("reading", error))?;
    assert!(raw.starts_with(&disk.head));
    Ok((disk.format, raw))
}

fn qcow2(raw: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("raw"), dir.path().join("out"));
    std::fs::write(&from, raw).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "-c"];
    let status = Command::new("qemu-img")
        .args(convert)
        .args([&from, &to])
        .status();
    assert!(status.expect("qemu-img (package qemu-utils)").success());
    std::fs::read(to).unwrap()
}

#[test]
fn every_published_form_is_the_same_disk() {
    let raw = sample(200 << 10);
    let qcow2 = qcow2(&raw);
    for (bytes, format) in [
        (raw.clone(), "raw"),
        (packed("gzip", &["-c"], &raw), "gzip"),
        (packed("xz", &["-c"], &raw), "xz"),
        (packed("bzip2", &["-c"], &raw), "bzip2"),
        (packed("zstd", &["-c", "-q"], &raw), "zstd"),
        (packed("lz4", &["-c", "-q"], &raw), "lz4"),
        (packed("xz", &["-c"], &qcow2), "qcow2 in xz"),
        (qcow2, "qcow2"),
    ] {
        let (found, disk) = read(bytes, &rules(false)).unwrap();
        assert_eq!(found, format);
        assert!(disk == raw, "{format}");
    }
}

#[test]
fn all_of_a_long_partition_table_is_looked_at() {
    let mut raw = table(512, 4096, &[(4095, "OEM")]);
    let end = raw.len();
    raw.resize(end + (64 << 10), 7);
    for bytes in [raw.clone(), packed("xz", &["-c"], &raw)] {
        let mut disk = open(Box::new(Cursor::new(bytes)), &rules(false)).unwrap();
        assert!(disk.head == raw[..end]);
        let mut read = Vec::new();
        disk.reader.read_to_end(&mut read).unwrap();
        assert!(read == raw);
    }
    // Cut short in the middle of its table, it is as long as it is.
    let disk = open(
        Box::new(Cursor::new(raw[..100 << 10].to_vec())),
        &rules(false),
    )
    .unwrap();
    assert!(disk.head == raw[..100 << 10]);
}

#[test]
fn archives_and_double_compression_are_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let raw = sample(10 << 10);
    std::fs::write(dir.path().join("disk.raw"), &raw).unwrap();
    let tar = Command::new("tar")
        .arg("-C")
        .arg(dir.path())
        .args(["-cf", "-", "disk.raw"])
        .output();
    let tar = tar.unwrap().stdout;
    let xz = packed("xz", &["-c"], &tar);
    let text = read(xz.clone(), &rules(false)).unwrap_err().to_string();
    assert!(text.contains("tar archive, compressed with xz"), "{text}");
    let text = read(tar.clone(), &rules(false)).unwrap_err().to_string();
    assert!(text.contains("`tar -xf FILE`"), "{text}");
    let twice = packed("gzip", &["-c"], &packed("xz", &["-c"], &raw));
    let text = read(twice, &rules(false)).unwrap_err().to_string();
    assert!(text.contains("xz inside gzip"), "{text}");

    assert_eq!(
        read(tar, &rules(true)).unwrap(),
        ("tar".to_owned(), raw.clone())
    );
    assert_eq!(
        read(xz, &rules(true)).unwrap(),
        ("tar in xz".to_owned(), raw)
    );
}

#[test]
fn bombs_do_not_go_off() {
    let mut small = rules(false);
    small.max_size = 1 << 20;
    let fits = packed("gzip", &["-c"], &vec![0; 1 << 20]);
    assert_eq!(read(fits, &small).unwrap().1.len(), 1 << 20);
    for (tool, arguments) in [("gzip", &["-c"][..]), ("zstd", &["-c", "-q"])] {
        let bomb = packed(tool, arguments, &vec![0; (1 << 20) + 1]);
        let error = read(bomb, &small).unwrap_err();
        assert!(
            matches!(error, IngestError::TooLarge { limit: 1_048_576 }),
            "{error}"
        );
    }
    let error = read(qcow2(&vec![0; (1 << 20) + 512]), &small).unwrap_err();
    assert!(matches!(error, IngestError::TooLarge { .. }), "{error}");
}

#[test]
fn a_store_without_room_is_said_so() {
    space(&std::env::temp_dir(), 0).unwrap();
    let error = space(&std::env::temp_dir(), u64::MAX / 2).unwrap_err();
    assert!(matches!(error, IngestError::NoSpace { .. }), "{error}");
}
