//! What frame size, digest and level cost: `cargo bench -p anneal-image --bench sealing -- DISK [CHANGED]`.
//!
//! DISK is a raw disk; CHANGED the same disk after some change, to see how much of it a delta
//! fetches. Times are processor time of the thread that works, so that other work on the machine
//! disturbs little; each is the best of three passes. Without DISK nothing is measured.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::io::Read;
use std::path::Path;

use anneal_image::{Facts, Manifest, PackOptions, SignedManifest, SigningKey, decode_frame, pack};
use sha2::{Digest, Sha256};

const PASSES: usize = 3;
const KIB: u32 = 1024;

fn main() {
    // Cargo adds `--bench`.
    let files: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let Some(disk) = files.first() else {
        println!("usage: cargo bench -p anneal-image --bench sealing -- DISK [CHANGED]");
        return;
    };
    let raw = std::fs::read(disk).unwrap();
    let changed = files.get(1).map(|path| std::fs::read(path).unwrap());
    println!("disk: {} bytes", raw.len());
    digests(&raw);
    println!(
        "\n| frame | level | stored | of raw | of data | encode MB/s | decode MB/s | decode+digest MB/s | manifest of 2 / 20 GiB | changed frames fetched |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for kib in [256, 512, 1024, 2048, 4096] {
        row(&raw, changed.as_deref(), kib * KIB, 3);
    }
    for level in [1, 6, 9] {
        row(&raw, changed.as_deref(), 1024 * KIB, level);
    }
    pipeline(Path::new(disk));
}

/// Processor time of this thread in seconds.
fn cpu() -> f64 {
    let mut text = String::new();
    std::fs::File::open("/proc/thread-self/schedstat")
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Best processor time of some work.
fn best(mut work: impl FnMut()) -> f64 {
    let times = (0..PASSES).map(|_| {
        let begin = cpu();
        work();
        cpu() - begin
    });
    times.fold(f64::INFINITY, f64::min)
}

fn rate(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e6
}

fn digests(raw: &[u8]) {
    let part = &raw[..raw.len().min(512 << 20)];
    for kib in [256, 1024, 4096] {
        let slices = || part.chunks(kib * 1024);
        let blake3 = best(|| {
            slices().for_each(|s| {
                black_box(blake3::hash(s));
            })
        });
        let sha256 = best(|| {
            slices().for_each(|s| {
                black_box(Sha256::digest(s));
            })
        });
        println!(
            "digest of {kib} KiB slices: BLAKE3 {:.0} MB/s, SHA-256 {:.0} MB/s",
            rate(part.len(), blake3),
            rate(part.len(), sha256)
        );
    }
}

fn sealed(raw: &[u8], frame_size: u32, level: i32) -> (Manifest, Vec<u8>) {
    let options = PackOptions {
        frame_size,
        level,
        ..PackOptions::default()
    };
    let mut data = Vec::new();
    let packed = pack(&mut &raw[..], &mut data, &options, &mut |_| {}).unwrap();
    let facts = Facts {
        os: "debian".into(),
        ..Facts::default()
    };
    (packed.into_manifest(facts).unwrap(), data)
}

fn row(raw: &[u8], changed: Option<&[u8]>, frame_size: u32, level: i32) {
    let (manifest, data) = sealed(raw, frame_size, level);
    let slices: Vec<&[u8]> = raw.chunks(frame_size as usize).collect();
    let with_data: Vec<usize> = (0..slices.len())
        .filter(|&i| !manifest.frames()[i].is_zero())
        .collect();
    let used: usize = with_data.iter().map(|&i| slices[i].len()).sum();
    let mut zstd = zstd::bulk::Compressor::new(level).unwrap();
    let encode = {
        let begin = cpu();
        for &index in &with_data {
            black_box(zstd.compress(slices[index]).unwrap());
        }
        cpu() - begin
    };
    let frame = |index: usize| {
        let range = manifest.data_range(index..index + 1);
        &data[range.start as usize..range.end as usize]
    };
    let mut buffer = Vec::with_capacity(frame_size as usize);
    let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
    let decode = best(|| {
        for &index in &with_data {
            buffer.clear();
            decompressor
                .decompress_to_buffer(frame(index), &mut buffer)
                .unwrap();
        }
    });
    let verified = best(|| {
        for &index in &with_data {
            decode_frame(&manifest, index, frame(index), &mut buffer).unwrap();
        }
    });
    let json = SignedManifest::sign(manifest.clone(), &SigningKey::from_seed(&[1; 32])).to_json();
    let entry = json.len() as f64 / slices.len() as f64;
    let entries =
        |gib: f64| gib * 1024.0 * 1024.0 * 1024.0 / f64::from(frame_size) * entry / 1024.0;
    let delta = changed.map_or_else(
        || "-".to_owned(),
        |changed| {
            let differ: Vec<usize> = with_data
                .iter()
                .copied()
                .filter(|&i| changed.chunks(frame_size as usize).nth(i) != Some(slices[i]))
                .collect();
            let bytes: usize = differ.iter().map(|&i| frame(i).len()).sum();
            format!(
                "{} ({:.2} % of data, {:.1} MB)",
                differ.len(),
                100.0 * bytes as f64 / data.len() as f64,
                bytes as f64 / 1e6
            )
        },
    );
    println!(
        "| {} KiB | {level} | {:.1} MB | {:.2} % | {:.2} % | {:.0} | {:.0} | {:.0} | {:.0} KiB / {:.0} KiB | {delta} |",
        frame_size / KIB,
        data.len() as f64 / 1e6,
        100.0 * data.len() as f64 / raw.len() as f64,
        100.0 * data.len() as f64 / used as f64,
        rate(used, encode),
        rate(used, decode),
        rate(used, verified),
        entries(2.0),
        entries(20.0),
    );
}

/// The whole of packing as the daemon does it, by the clock.
fn pipeline(disk: &Path) {
    for threads in [1, 2] {
        let options = PackOptions {
            threads,
            ..PackOptions::default()
        };
        let begin = std::time::Instant::now();
        let mut file = std::fs::File::open(disk).unwrap();
        let packed = pack(&mut file, &mut std::io::sink(), &options, &mut |_| {}).unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "packing with {threads} thread(s): {:.0} MB/s by the clock",
            packed.size() as f64 / seconds / 1e6
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    println!("peak memory, the disk included: {peak}");
}
