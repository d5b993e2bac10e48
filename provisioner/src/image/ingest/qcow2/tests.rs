//! Images that `qemu-img` made, and headers that it would not make.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::image::ingest::decode::tests::sample;

const TOO_MUCH: u64 = 1 << 40;

struct Lab {
    dir: tempfile::TempDir,
    raw: Vec<u8>,
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.expect("qemu-img (package qemu-utils)");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {output:?}"
    );
}

impl Lab {
    /// A disk of 5 MiB and a bit: data, holes, zeros, data.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut raw = sample(1 << 20);
        raw.resize(4 << 20, 0);
        raw.extend(sample((1 << 20) + 512 * 3));
        std::fs::write(dir.path().join("raw"), &raw).unwrap();
        Self { dir, raw }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn convert(&self, options: &[&str]) -> PathBuf {
        let (raw, out) = (self.path("raw"), self.path("out.qcow2"));
        let ends = ["convert", "-f", "raw", "-O", "qcow2"];
        let files = [raw.to_str().unwrap(), out.to_str().unwrap()];
        qemu_img(&[&ends[..], options, &files].concat());
        out
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IngestError> {
    let mut image = Qcow2::open(File::open(path).unwrap(), TOO_MUCH)?;
    let mut raw = Vec::new();
    image
        .read_to_end(&mut raw)
        .map_err(|error| IngestError::from_io("reading", error))?;
    assert_eq!(raw.len() as u64, image.size());
    Ok(raw)
}

fn refused(path: &Path) -> String {
    read(path).unwrap_err().to_string()
}

#[test]
fn what_qemu_img_writes_is_read() {
    let lab = Lab::new();
    for options in [
        &["-o", "compat=0.10"][..],
        &["-o", "compat=1.1"],
        &["-c"],
        &["-c", "-o", "compat=0.10"],
        &["-c", "-o", "compression_type=zstd"],
        &["-o", "cluster_size=512"],
        &["-c", "-o", "cluster_size=4k"],
        &["-o", "cluster_size=2M"],
        &["-o", "preallocation=full"],
        &["-o", "lazy_refcounts=on"],
    ] {
        let image = lab.convert(options);
        assert!(read(&image).unwrap() == lab.raw, "{options:?}");
    }
}

#[test]
fn a_large_empty_disk_costs_nothing() {
    let lab = Lab::new();
    let image = lab.path("large.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        image.to_str().unwrap(),
        "300G",
    ]);
    let image = Qcow2::open(File::open(&image).unwrap(), TOO_MUCH).unwrap();
    assert_eq!(image.size(), 300 << 30);
    let file = lab.path("large.qcow2");
    let error = Qcow2::open(File::open(file).unwrap(), 1 << 30)
        .err()
        .unwrap();
    assert!(matches!(error, IngestError::TooLarge { .. }), "{error}");
}

#[test]
fn what_needs_another_file_or_a_key_is_refused() {
    let lab = Lab::new();
    let (base, top) = (lab.convert(&[]), lab.path("top.qcow2"));
    let (base, top_name) = (base.to_str().unwrap(), top.to_str().unwrap());
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top_name,
    ]);
    assert!(
        refused(&top).contains("has a backing file"),
        "{}",
        refused(&top)
    );
    let data = format!("data_file={}", lab.path("data").display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, top_name, "1M"]);
    assert!(refused(&top).contains("keeps its data in another file"));
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on",
        top_name,
        "1M",
    ]);
    assert!(refused(&top).contains("extended second-level entries"));
    let key = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu_img(&[
        "create",
        "-q",
        "--object",
        "secret,id=s,data=x",
        "-f",
        "qcow2",
        "-o",
        key,
        top_name,
        "1M",
    ]);
    assert!(refused(&top).contains("is encrypted"));
}

#[test]
fn every_cut_and_every_lie_is_an_error_never_a_panic() {
    let lab = Lab::new();
    for options in [&[][..], &["-c"], &["-c", "-o", "compression_type=zstd"]] {
        let image = lab.convert(options);
        let whole = std::fs::read(&image).unwrap();
        for length in [
            0,
            4,
            71,
            80,
            111,
            70_000,
            whole.len() / 2,
            whole.len() - 70_000,
        ] {
            std::fs::write(&image, &whole[..length]).unwrap();
            let error = read(&image).unwrap_err();
            let cut = matches!(
                error,
                IngestError::CutShort { .. } | IngestError::Damaged { .. }
            );
            assert!(cut, "{options:?} cut to {length}: {error}");
        }
        for (at, value, word) in [
            (4, &[0, 0, 0, 9][..], "is of version 9"),
            (20, &[0, 0, 0, 40], "clusters of 2^40"),
            (24, &[0; 8], "an empty disk"),
            (24, &[0x7f, 0, 0, 0, 0, 0, 0, 0], "larger than"),
            (36, &[0, 0, 0, 0], "does not cover its disk"),
            (40, &[0xff; 8], "ends in the middle"),
            (72, &[0, 0, 0, 0, 0, 0, 0, 2], "marked corrupt"),
            (72, &[1, 0, 0, 0, 0, 0, 0, 0], "not known here"),
        ] {
            let mut bad = whole.clone();
            bad[at..at + value.len()].copy_from_slice(value);
            std::fs::write(&image, &bad).unwrap();
            let text = refused(&image);
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn any_change_gives_an_error_or_a_disk(at in 0_usize..400_000, byte in 0_u8..=255) {
        let lab = Lab::new();
        let image = lab.convert(&["-c", "-o", "cluster_size=4k"]);
        let mut bytes = std::fs::read(&image).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        std::fs::write(&image, &bytes).unwrap();
        if let Ok(mut image) = Qcow2::open(File::open(&image).unwrap(), 1 << 30) {
            let _ = std::io::copy(&mut image, &mut std::io::sink());
        }
    }
}
