//! What each frame costs: digest, decoding, planning. `cargo bench -p anneal-image --bench frames`.
//!
//! The data is the machine code of this program: programs and libraries are what images are full of.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;

use anneal_image::{
    Facts, FrameDecoder, Manifest, PackOptions, SignedManifest, SigningKey, WritePlan, is_slice,
    pack,
};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

const MIB: usize = 1 << 20;

fn main() {
    divan::main();
}

/// So many bytes of this program, over and over.
fn code(length: usize) -> Vec<u8> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    program.into_iter().cycle().take(length).collect()
}

fn sealed(raw: &[u8], frame_size: u32) -> (Manifest, Vec<u8>) {
    let options = PackOptions {
        frame_size,
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

/// A disk of `frames` frames: every third one has data. Small ones, so that it is made quickly.
fn wide(frames: usize) -> Manifest {
    const FRAME: usize = 64 << 10;
    let mut raw = vec![0; frames * FRAME];
    for (number, frame) in raw.chunks_mut(FRAME).enumerate().step_by(3) {
        frame[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    }
    sealed(&raw, FRAME as u32).0
}

#[divan::bench(args = [256, 1024, 4096])]
fn blake3(bencher: Bencher, kib: usize) {
    let raw = code(kib << 10);
    bencher
        .counter(BytesCount::of_slice(&raw))
        .bench(|| blake3::hash(black_box(&raw)));
}

#[divan::bench(args = [256, 1024, 4096])]
fn decode_and_verify(bencher: Bencher, kib: usize) {
    let raw = code(kib << 10);
    let (manifest, data) = sealed(&raw, (kib << 10) as u32);
    let range = manifest.data_range(0..1);
    let encoded = &data[range.start as usize..range.end as usize];
    let mut decoder = FrameDecoder::new().unwrap();
    let mut memory = vec![0; raw.len()];
    bencher.counter(BytesCount::of_slice(&raw)).bench_local(|| {
        let raw = decoder.decode(&manifest, 0, black_box(encoded), &mut memory);
        black_box(raw.unwrap().len())
    });
}

/// A frame that the manifest says is zero, as a delta meets it.
#[divan::bench]
fn zero_frame(bencher: Bencher) {
    let raw = vec![0; MIB];
    let (manifest, _) = sealed(&raw, MIB as u32);
    bencher
        .counter(BytesCount::of_slice(&raw))
        .bench(|| is_slice(&manifest, 0, black_box(&raw)));
}

#[divan::bench(args = [2_048, 20_480])]
fn plan(bencher: Bencher, frames: usize) {
    let manifest = wide(frames);
    bencher
        .counter(ItemsCount::new(frames))
        .bench(|| WritePlan::new(black_box(&manifest), manifest.size()).unwrap());
}

#[divan::bench(args = [2_048, 20_480])]
fn open_manifest(bencher: Bencher, frames: usize) {
    let key = SigningKey::from_seed(&[1; 32]);
    let manifest = wide(frames);
    let id = manifest.id();
    let text = SignedManifest::sign(manifest, &key).to_json();
    let keys = [key.public()];
    bencher
        .counter(ItemsCount::new(frames))
        .bench(|| SignedManifest::open(black_box(&text), &keys, &id).unwrap());
}
