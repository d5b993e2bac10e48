//! The writer against disks in memory that lose power, lie, or fill with noise.

use std::io;
use std::ops::Range;

use anneal_image::{Facts, FrameReader, MIN_FRAME_SIZE, Manifest, PackOptions, WritePlan, pack};
use anneal_protocol::agent::{FailureCode, StepFailure, Verify};
use proptest::prelude::*;

use super::{FrameSource, write_image};
use crate::disk::device::Disk;

const F: usize = MIN_FRAME_SIZE as usize;

/// A disk with a volatile cache: what was not flushed may or may not survive a cut.
struct Memory {
    durable: Vec<u8>,
    /// Writes since the last flush, oldest first.
    cached: Vec<(usize, Vec<u8>)>,
    /// Operations until the power goes.
    left: usize,
    /// Stores something else from this byte on.
    lies_at: Option<usize>,
}

impl Memory {
    /// Full of an earlier system: bootable, noisy.
    fn used(size: usize) -> Self {
        let mut durable = vec![0xa5; size];
        durable[510..512].copy_from_slice(&[0x55, 0xaa]);
        durable[512..520].copy_from_slice(b"EFI PART");
        durable[size - 512..size - 504].copy_from_slice(b"EFI PART");
        Self {
            durable,
            cached: Vec::new(),
            left: usize::MAX,
            lies_at: None,
        }
    }

    fn tick(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::Other)?;
        Ok(())
    }

    /// The platter after the cut: of the unflushed writes, those that `survives` picks.
    fn after_cut(mut self, survives: u64) -> Vec<u8> {
        for (n, (at, data)) in self.cached.drain(..).enumerate() {
            if survives >> (n % 64) & 1 == 1 {
                self.durable[at..at + data.len()].copy_from_slice(&data);
            }
        }
        self.durable
    }

    fn now(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (at, data) in &self.cached {
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
        bytes
    }
}

impl Disk for Memory {
    fn size(&self) -> u64 {
        self.durable.len() as u64
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.tick()?;
        let offset = offset as usize;
        let mut data = data.to_vec();
        if let Some(at) = self.lies_at
            && (offset..offset + data.len()).contains(&at)
        {
            data[at - offset] ^= 1;
        }
        self.cached.push((offset, data));
        Ok(())
    }

    fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        let length = (range.end - range.start) as usize;
        self.write_at(range.start, &vec![0; length])
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        into.copy_from_slice(&self.now()[offset..offset + into.len()]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tick()?;
        self.durable = self.now();
        self.cached.clear();
        Ok(())
    }
}

/// Would any firmware start this disk? UEFI wants a protective MBR and a GPT, BIOS the MBR's
/// signature: all of it is in the first two sectors.
fn bootable(disk: &[u8]) -> bool {
    disk[510..512] == [0x55, 0xaa] || disk[512..520] == *b"EFI PART"
}

/// A raw disk: `d` data, `0` zeros, one letter a frame, the last one half as long.
fn raw(shape: &str) -> Vec<u8> {
    let mut raw: Vec<u8> = shape
        .bytes()
        .enumerate()
        .flat_map(|(frame, kind)| {
            (0..F).map(move |i| match kind {
                b'0' => 0,
                _ => (i as u8).wrapping_mul(31).wrapping_add(frame as u8) | 1,
            })
        })
        .collect();
    raw.truncate(raw.len() - F / 2);
    if shape.starts_with('d') {
        raw[510..512].copy_from_slice(&[0x55, 0xaa]);
        raw[512..520].copy_from_slice(b"EFI PART");
    }
    raw
}

fn sealed(raw: &[u8]) -> (Manifest, Vec<u8>) {
    let options = PackOptions {
        frame_size: MIN_FRAME_SIZE,
        ..PackOptions::default()
    };
    let mut data = Vec::new();
    let packed = pack(&mut &raw[..], &mut data, &options, &mut |_| ()).unwrap();
    let facts = Facts {
        os: "test".into(),
        ..Facts::default()
    };
    let manifest = packed.into_manifest(facts).unwrap();
    // The frames, without the seek table after them.
    data.truncate(manifest.data_size() as usize);
    (manifest, data)
}

struct Source<'a>(FrameReader<'a, &'a [u8]>);

impl FrameSource for Source<'_> {
    fn next(&mut self, raw: &mut Vec<u8>) -> Result<Option<usize>, StepFailure> {
        self.0
            .next_raw(raw)
            .map_err(|e| crate::step::fail(FailureCode::ImageCorrupt, e.to_string()))
    }
}

fn write(
    manifest: &Manifest,
    data: &[u8],
    disk: &mut Memory,
    verify: Verify,
) -> Result<super::Written, StepFailure> {
    let plan = WritePlan::new(manifest, disk.size()).unwrap();
    let frames = 0..manifest.frames().len();
    let mut source = Source(FrameReader::new(manifest, frames, data));
    let mut last = 0;
    write_image(
        manifest,
        &plan,
        &mut source,
        disk,
        verify,
        &mut |done, total| {
            assert!(
                done >= last && done <= total,
                "progress {last} -> {done} of {total}"
            );
            last = done;
            Ok(())
        },
    )
}

#[test]
fn the_disk_is_the_image_and_says_so() {
    for shape in ["dd0d00dd", "d", "d0", "dd", "0d", "d0000d"] {
        let raw = raw(shape);
        let (manifest, data) = sealed(&raw);
        for verify in [Verify::ReadBack, Verify::None] {
            let mut disk = Memory::used(raw.len() + 3 * F);
            let written = write(&manifest, &data, &mut disk, verify).unwrap();
            assert!(disk.cached.is_empty(), "{shape}: not flushed");
            assert!(disk.durable[..raw.len()] == raw, "{shape}: differs");
            // The earlier system's backup GPT is gone too.
            assert!(disk.durable[raw.len() + 2 * F..].iter().all(|&b| b == 0));
            let expected = (verify == Verify::ReadBack).then(|| manifest.sha256());
            assert_eq!(written.read_back_sha256, expected);
        }
    }
}

/// The power goes after every single operation in turn: the disk is whole or does not boot.
#[test]
fn a_cut_never_leaves_half_an_image_bootable() {
    let raw = raw("dd0d0dd");
    let (manifest, data) = sealed(&raw);
    let mut whole = 0;
    for left in 0.. {
        for survives in [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa] {
            let mut disk = Memory::used(raw.len() + 17 * F);
            disk.left = left;
            let done = write(&manifest, &data, &mut disk, Verify::ReadBack).is_ok();
            let flushed_once = left > 2;
            let disk = disk.after_cut(survives);
            if done {
                assert!(disk[..raw.len()] == raw);
                whole += 1;
            } else if flushed_once && bootable(&disk) {
                assert!(
                    disk[..raw.len()] == raw,
                    "half an image boots after {left} operations"
                );
            }
        }
        if whole == 4 {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape_any_cut(
        shape in "d[d0]{1,7}",
        left in 3_usize..16,
        survives: u64,
    ) {
        let raw = raw(&shape);
        let (manifest, data) = sealed(&raw);
        let mut disk = Memory::used(raw.len() + 17 * F);
        disk.left = left;
        let done = write(&manifest, &data, &mut disk, Verify::None).is_ok();
        let disk = disk.after_cut(survives);
        let same = disk[..raw.len()] == raw;
        prop_assert!(!done || same);
        prop_assert!(!bootable(&disk) || same, "half of {} boots", shape);
    }

    /// One bit of the image data flipped anywhere: nothing of that frame reaches the disk, and
    /// nothing boots.
    #[test]
    fn a_flipped_bit_is_found_before_it_is_written(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let raw = raw("dd0dd");
        let (manifest, mut data) = sealed(&raw);
        let at = at.index(data.len());
        data[at] ^= 1 << bit;
        let mut disk = Memory::used(raw.len());
        let result = write(&manifest, &data, &mut disk, Verify::None);
        match result {
            // zstd frames hold a few bits that do not change what they decode to.
            Ok(_) => prop_assert!(disk.durable == raw),
            Err(failure) => {
                prop_assert_eq!(failure.code, FailureCode::ImageCorrupt);
                prop_assert!(!bootable(&disk.now()));
            }
        }
    }
}

#[test]
fn truncated_data_is_no_image() {
    let raw = raw("dd0dd");
    let (manifest, data) = sealed(&raw);
    for keep in [0, 1, data.len() / 2, data.len() - 1] {
        let mut disk = Memory::used(raw.len());
        let result = write(&manifest, &data[..keep], &mut disk, Verify::None);
        assert!(result.is_err(), "{keep}");
        assert!(!bootable(&disk.now()), "{keep}");
    }
}

/// The source ends early but cleanly.
#[test]
fn missing_frames_are_noticed() {
    struct First(Vec<Vec<u8>>);
    impl FrameSource for First {
        fn next(&mut self, raw: &mut Vec<u8>) -> Result<Option<usize>, StepFailure> {
            Ok(self.0.pop().map(|frame| {
                *raw = frame;
                0
            }))
        }
    }
    let raw = raw("ddd");
    let (manifest, _) = sealed(&raw);
    let plan = WritePlan::new(&manifest, raw.len() as u64).unwrap();
    let mut disk = Memory::used(raw.len());
    let mut source = First(vec![raw[..F].to_vec()]);
    let mut watch = |_, _| Ok(());
    let failure = write_image(
        &manifest,
        &plan,
        &mut source,
        &mut disk,
        Verify::None,
        &mut watch,
    )
    .unwrap_err();
    assert_eq!(failure.code, FailureCode::ImageTruncated);
    assert!(!bootable(&disk.now()));
}

/// A disk that does not keep what it is given is found out before it can boot, wherever it lies.
#[test]
fn read_back_finds_a_lying_disk() {
    let raw = raw("dd0dd");
    let (manifest, data) = sealed(&raw);
    for lies_at in [100, F + 5, 3 * F + 7, raw.len() - 1] {
        let mut disk = Memory::used(raw.len() + 17 * F);
        disk.lies_at = Some(lies_at);
        let failure = write(&manifest, &data, &mut disk, Verify::ReadBack).unwrap_err();
        assert_eq!(failure.code, FailureCode::ReadBackMismatch, "{lies_at}");
        assert!(!bootable(&disk.now()), "boots with a lie at {lies_at}");
    }
}

#[test]
fn an_abandoned_write_leaves_nothing_bootable() {
    let raw = raw("dddd");
    let (manifest, data) = sealed(&raw);
    let plan = WritePlan::new(&manifest, raw.len() as u64).unwrap();
    let mut disk = Memory::used(raw.len());
    let mut source = Source(FrameReader::new(&manifest, 0..4, &data[..]));
    let mut looks = 0;
    let failure = write_image(
        &manifest,
        &plan,
        &mut source,
        &mut disk,
        Verify::None,
        &mut |_, _| {
            looks += 1;
            if looks == 3 {
                Err(crate::step::abandoned())
            } else {
                Ok(())
            }
        },
    )
    .unwrap_err();
    assert_eq!(failure.code, FailureCode::Abandoned);
    assert!(!bootable(&disk.now()));
}
