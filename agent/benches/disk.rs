//! What comparing a disk and planning its requests cost: `cargo bench -p anneal-agent --bench disk`.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::io;
use std::ops::Range;

use anneal_agent::disk::compare::{Unreadable, compare};
use anneal_agent::disk::device::Disk;
use anneal_agent::io::runs::runs;
use anneal_image::{Facts, Manifest, PackOptions, pack};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

const MIB: usize = 1 << 20;

fn main() {
    divan::main();
}

fn sealed(raw: &[u8], frame_size: u32) -> Manifest {
    let options = PackOptions {
        frame_size,
        level: 1,
        ..PackOptions::default()
    };
    let packed = pack(&mut &raw[..], &mut io::sink(), &options, &mut |_| {}).unwrap();
    let facts = Facts {
        os: "debian".into(),
        ..Facts::default()
    };
    packed.into_manifest(facts).unwrap()
}

/// A disk in memory that is only read: reading it costs one copy.
struct Memory(Vec<u8>);

impl Disk for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn sector(&self) -> u64 {
        512
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn zero(&self, _: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        into.copy_from_slice(&self.0[start..start + into.len()]);
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// 64 MiB, half of it data, which is all right.
#[divan::bench(args = [1, 2, 4])]
fn compare_disk(bencher: Bencher, threads: usize) {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut raw: Vec<u8> = program.into_iter().cycle().take(32 * MIB).collect();
    raw.resize(64 * MIB, 0);
    let manifest = sealed(&raw, MIB as u32);
    let frames: Vec<usize> = (0..manifest.frames().len()).collect();
    let disk = Memory(raw);
    bencher
        .counter(BytesCount::of_slice(&disk.0))
        .bench_local(|| {
            let same = compare(
                &disk,
                &manifest,
                black_box(&frames),
                threads,
                Unreadable::Fails,
                &mut |_| Ok(()),
            );
            assert!(same.unwrap().into_iter().all(|same| same));
        });
}

/// Which frames are asked for together: all of a full write, and every hundredth.
#[divan::bench(args = [1, 100])]
fn cut_into_requests(bencher: Bencher, every: usize) {
    const FRAME: usize = 64 << 10;
    const FRAMES: usize = 20_480;
    let mut raw = vec![0; FRAMES * FRAME];
    for (number, frame) in raw.chunks_mut(FRAME).enumerate() {
        frame[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    }
    let manifest = sealed(&raw, FRAME as u32);
    let wanted: Vec<bool> = (0..FRAMES).map(|frame| frame % every == 0).collect();
    bencher
        .counter(ItemsCount::new(FRAMES))
        .bench_local(|| runs(&manifest, black_box(&wanted)));
}
