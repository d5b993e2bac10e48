//! Pack, decode, and everything that can go wrong with the bytes in between.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::process::{Command, Stdio};

use anneal_image::{
    Facts, FrameError, FrameReader, MIN_FRAME_SIZE, Manifest, PackError, PackOptions, VerifyError,
    WritePlan, decode_frame, verify_store,
};
use proptest::prelude::*;

const F: usize = MIN_FRAME_SIZE as usize;

fn options(threads: usize) -> PackOptions {
    PackOptions {
        frame_size: MIN_FRAME_SIZE,
        threads,
        ..PackOptions::default()
    }
}

/// Packs as a Debian without proof.
fn pack(
    reader: &mut dyn Read,
    writer: &mut dyn std::io::Write,
    options: &PackOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Manifest, PackError> {
    let facts = Facts {
        os: "debian".into(),
        ..Facts::default()
    };
    let packed = anneal_image::pack(reader, writer, options, progress)?;
    Ok(packed.into_manifest(facts).unwrap())
}

fn packed(raw: &[u8]) -> (Manifest, Vec<u8>) {
    let mut data = Vec::new();
    let manifest = pack(&mut &raw[..], &mut data, &options(2), &mut |_| {}).unwrap();
    (manifest, data)
}

/// A disk of slices that are zero, compressible or noise, chosen by `kinds`.
fn disk(kinds: &[u8], tail_sectors: usize) -> Vec<u8> {
    let mut raw = Vec::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (index, kind) in kinds.iter().enumerate() {
        for position in 0..F {
            raw.push(match kind % 3 {
                0 => 0,
                1 => (index + position / 997) as u8,
                _ => {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                }
            });
        }
    }
    raw.truncate(raw.len() - F + tail_sectors * 512);
    raw
}

/// The frames in `data.zst`, without the seek table.
fn frames<'d>(manifest: &Manifest, data: &'d [u8]) -> &'d [u8] {
    &data[..manifest.data_size() as usize]
}

/// Reads all frames, holding every one that comes out against the truth.
fn read_all(manifest: &Manifest, data: &[u8], truth: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut reader = FrameReader::new(manifest, 0..manifest.frames().len(), data);
    let (mut all, mut raw) = (Vec::new(), Vec::new());
    loop {
        match reader.next_raw(&mut raw) {
            Ok(Some(index)) => {
                let range = manifest.raw_range(index);
                assert_eq!(raw, truth[range.start as usize..range.end as usize]);
                all.extend_from_slice(&raw);
            }
            Ok(None) => return Ok(all),
            Err(error) => {
                assert!(raw.is_empty(), "unverified bytes were handed out");
                return Err(error);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_packed_comes_back(
        kinds in proptest::collection::vec(any::<u8>(), 1..6),
        tail in 1usize..=F / 512,
        threads in 1usize..4,
    ) {
        let raw = disk(&kinds, tail);
        let mut data = Vec::new();
        let mut seen = 0;
        let manifest = pack(&mut &raw[..], &mut data, &options(threads), &mut |n| seen = n).unwrap();
        prop_assert_eq!(seen, raw.len() as u64);
        prop_assert_eq!(manifest.file_size(), data.len() as u64);
        prop_assert_eq!(&read_all(&manifest, frames(&manifest, &data), &raw).unwrap(), &raw);
        verify_store(&data[..], &manifest, &mut |_| {}).unwrap();
        prop_assert_eq!(&packed(&raw).0, &manifest, "depends on the number of threads");
        for (index, frame) in manifest.frames().iter().enumerate() {
            let range = manifest.raw_range(index);
            let slice = &raw[range.start as usize..range.end as usize];
            prop_assert_eq!(frame.is_zero(), slice.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_plan_carried_out_makes_the_disk(
        kinds in proptest::collection::vec(any::<u8>(), 1..8),
        spare in 0usize..4,
    ) {
        let raw = disk(&kinds, F / 512);
        let (manifest, data) = packed(&raw);
        let mut target = vec![0xff_u8; raw.len() + spare * F];
        let plan = WritePlan::new(&manifest, target.len() as u64).unwrap();
        for range in &plan.clear {
            target[range.start as usize..range.end as usize].fill(0);
        }
        let bulk = (0..manifest.frames().len()).filter(|index| !plan.last.contains(index));
        for index in bulk.chain(plan.last.iter().copied()) {
            let bytes = manifest.data_range(index..index + 1);
            let bytes = &data[bytes.start as usize..bytes.end as usize];
            let mut frame = Vec::new();
            decode_frame(&manifest, index, bytes, &mut frame).unwrap();
            let range = manifest.raw_range(index);
            target[range.start as usize..range.end as usize].copy_from_slice(&frame);
        }
        prop_assert_eq!(&target[..raw.len()], &raw[..]);
    }

    #[test]
    fn hostile_manifest_text_never_panics(text in ".{0,200}") {
        let _ = Manifest::parse(text.as_bytes());
    }

    #[test]
    fn hostile_frames_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (manifest, _) = packed(&disk(&[1], 8));
        let mut raw = Vec::new();
        prop_assert!(decode_frame(&manifest, 0, &bytes, &mut raw).is_err());
        prop_assert!(raw.is_empty());
    }
}

#[test]
fn every_changed_byte_is_caught() {
    let raw = disk(&[1, 0, 1], 3);
    let (manifest, data) = packed(&raw);
    let data = frames(&manifest, &data).to_vec();
    assert!(data.len() < 2000, "the test tries every byte");
    let mut harmless = 0;
    for at in 0..data.len() {
        for change in [0x01, 0x10, 0x80] {
            let mut bad = data.clone();
            bad[at] ^= change;
            match read_all(&manifest, &bad, &raw) {
                Err(FrameError::Corrupt { frame }) => {
                    let frame = manifest.frames()[frame];
                    let range =
                        frame.offset as usize..(frame.offset as usize + frame.length as usize);
                    assert!(range.contains(&at), "the wrong frame is named");
                }
                // A bit that zstd does not look at: what comes out is still the truth.
                Ok(all) => {
                    assert_eq!(all, raw);
                    harmless += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(harmless < data.len() / 10, "{harmless} of {}", data.len());
}

#[test]
fn every_truncation_is_caught() {
    let raw = disk(&[1, 0, 1], 3);
    let (manifest, data) = packed(&raw);
    let data = frames(&manifest, &data).to_vec();
    for length in 0..data.len() {
        let error = read_all(&manifest, &data[..length], &raw).unwrap_err();
        assert!(matches!(error, FrameError::Truncated { .. }), "{error}");
    }
    let mut long = data.clone();
    long.push(0);
    let error = read_all(&manifest, &long, &raw).unwrap_err();
    assert!(matches!(error, FrameError::TooLong { frame: 2 }), "{error}");
}

#[test]
fn frames_in_another_order_are_caught() {
    let raw = disk(&[2, 2, 2], F / 512);
    let (manifest, data) = packed(&raw);
    let cut = |index: usize| {
        let range = manifest.data_range(index..index + 1);
        data[range.start as usize..range.end as usize].to_vec()
    };
    for order in [[1, 0, 2], [0, 2, 1], [2, 1, 0], [0, 0, 2]] {
        let swapped: Vec<u8> = order.iter().flat_map(|&index| cut(index)).collect();
        let error = read_all(&manifest, &swapped, &raw).unwrap_err();
        assert!(matches!(error, FrameError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_bomb_is_refused_without_being_unpacked() {
    let (manifest, _) = packed(&disk(&[1], 1));
    let bomb = zstd::bulk::compress(&vec![7; 64 << 20], 1).unwrap();
    let mut raw = Vec::new();
    let error = decode_frame(&manifest, 0, &bomb, &mut raw).unwrap_err();
    assert!(matches!(error, FrameError::Corrupt { frame: 0 }));
    assert!(raw.capacity() <= 2 * F, "{}", raw.capacity());
}

#[test]
fn a_wrong_seek_table_is_caught() {
    let raw = disk(&[1, 0], 3);
    let (manifest, data) = packed(&raw);
    let end = manifest.data_size() as usize;
    verify_store(&data[..], &manifest, &mut |_| {}).unwrap();
    let mut wrong = vec![data[..end].to_vec(), data[..data.len() - 1].to_vec()];
    wrong.push([&data[..], &[0]].concat());
    for at in end..data.len() {
        let mut bad = data.clone();
        bad[at] ^= 1;
        wrong.push(bad);
    }
    for bad in wrong {
        let error = verify_store(&bad[..], &manifest, &mut |_| {}).unwrap_err();
        assert!(matches!(error, VerifyError::SeekTable), "{error}");
    }
}

#[test]
fn a_zero_frame_that_is_not_zero_and_a_wrong_whole_are_caught() {
    let raw = disk(&[1, 0], F / 512);
    let (manifest, data) = packed(&raw);
    let mut other = raw.clone();
    other[F + 100] = 1;
    let (_, other_data) = packed(&other);
    let zero = manifest.data_range(1..2);
    let forged = [
        &data[..zero.start as usize],
        &other_data[zero.start as usize..],
    ]
    .concat();
    verify_store(&forged[..], &manifest, &mut |_| {}).unwrap_err();
    let mut bytes = Vec::new();
    assert!(decode_frame(&manifest, 1, &other_data[zero.start as usize..], &mut bytes).is_err());

    let text = String::from_utf8(manifest.canonical()).unwrap();
    let lying = text.replace(&manifest.sha256(), &"0".repeat(64));
    let lying = Manifest::parse(lying.as_bytes()).unwrap();
    let error = verify_store(&data[..], &lying, &mut |_| {}).unwrap_err();
    assert!(matches!(error, VerifyError::Sha256 { .. }), "{error}");
}

/// The beginning of a disk of 20 GiB says that small frames would be too many.
#[test]
fn a_gpt_says_how_large_the_frames_must_be() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(20 << 30).unwrap();
    let made = Command::new("/usr/sbin/sgdisk")
        .args(["-n", "1:2048:+1M"])
        .arg(file.path())
        .stdout(Stdio::null())
        .status();
    assert!(made.expect("sgdisk: install the package gdisk").success());
    let mut beginning = file.as_file().take(4 << 20);
    let manifest = pack(
        &mut beginning,
        &mut std::io::sink(),
        &options(1),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(manifest.frame_size(), 2 * MIN_FRAME_SIZE);
}

#[test]
fn refuses_what_is_not_a_disk() {
    let pack = |mut reader: &mut dyn Read| {
        anneal_image::pack(&mut reader, &mut std::io::sink(), &options(1), &mut |_| {})
    };
    assert!(matches!(pack(&mut &b""[..]), Err(PackError::Empty)));
    assert!(matches!(
        pack(&mut &[1; 513][..]),
        Err(PackError::NotSectors(513))
    ));
    let wrong = PackOptions {
        frame_size: 1000,
        ..options(1)
    };
    let error = anneal_image::pack(
        &mut &[0; 512][..],
        &mut std::io::sink(),
        &wrong,
        &mut |_| {},
    );
    assert!(matches!(error, Err(PackError::Options(_))));
    let packed = anneal_image::pack(
        &mut &[0; 512][..],
        &mut std::io::sink(),
        &options(1),
        &mut |_| {},
    );
    let facts = Facts {
        os: "No Such OS".into(),
        ..Facts::default()
    };
    let error = packed.unwrap().into_manifest(facts).unwrap_err();
    assert!(error.to_string().contains("os must be"), "{error}");
}

#[test]
fn a_full_store_is_an_error() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 < bytes.len() {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let raw = disk(&[2, 2, 2], 128);
    let error = pack(&mut &raw[..], &mut Full(F + 100), &options(2), &mut |_| {}).unwrap_err();
    assert!(matches!(error, PackError::Write { .. }), "{error}");
}

/// Nobody is locked in: the `zstd` program gives back the disk.
#[test]
fn the_zstd_program_reads_the_data() {
    let raw = disk(&[1, 0, 2, 0], 7);
    let (_, data) = packed(&raw);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    let output = Command::new("zstd")
        .args(["-dc", "--"])
        .arg(file.path())
        .stdin(Stdio::null())
        .output()
        .expect("zstd is needed: apt-get install zstd");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, raw);
}
