//! Decoding what the real tools made, whole and damaged.

use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::image::ingest::memory::Memory;

const TOOLS: [(Format, &str, &[&str]); 5] = [
    (Format::Gzip, "gzip", &["-c"]),
    (Format::Xz, "xz", &["-c", "-T2", "--block-size=65536"]),
    (Format::Bzip2, "bzip2", &["-c", "-1"]),
    (Format::Zstd, "zstd", &["-c", "-q"]),
    (Format::Lz4, "lz4", &["-c", "-q", "-B4"]),
];

/// Bytes that compress a little, so that there are several blocks.
pub fn sample(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x3f
    });
    noise.take(length).collect()
}

/// What the tool makes of a file with these bytes.
pub fn packed(tool: &str, arguments: &[&str], raw: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("raw");
    std::fs::write(&file, raw).unwrap();
    run(tool, arguments, &file)
}

fn run(tool: &str, arguments: &[&str], file: &Path) -> Vec<u8> {
    let output = Command::new(tool).args(arguments).arg(file).output();
    let output = output
        .unwrap_or_else(|error| panic!("{tool} (package of that name, xz-utils for xz): {error}"));
    assert!(output.status.success(), "{tool}: {output:?}");
    output.stdout
}

fn decode(format: Format, bytes: &[u8]) -> Result<Vec<u8>, IngestError> {
    let mut raw = Vec::new();
    let share = Memory::default().share(CancellationToken::new());
    Decoder::new(format, Box::new(Cursor::new(bytes.to_vec())), share, 0)
        .read_to_end(&mut raw)
        .map(|_| raw)
        .map_err(|error| IngestError::from_io("decoding", error))
}

#[test]
fn one_stream_and_several_are_decoded() {
    let raw = sample(400_000);
    for (format, tool, arguments) in TOOLS {
        let (one, two) = (
            packed(tool, arguments, &raw),
            packed(tool, arguments, b"the end"),
        );
        assert!(one.len() > 100_000, "{tool}: several blocks");
        assert_eq!(decode(format, &one).unwrap(), raw, "{tool}");
        let joined = [&one[..], &two].concat();
        let expected = [&raw[..], b"the end"].concat();
        assert_eq!(
            decode(format, &joined).unwrap(),
            expected,
            "{tool}, two streams"
        );
        let empty = packed(tool, arguments, b"");
        assert_eq!(
            decode(format, &[&empty[..], &two].concat()).unwrap(),
            b"the end",
            "{tool}"
        );
    }
}

/// Else another could come between two frames, and each might wait for the other.
#[tokio::test]
async fn memory_is_kept_from_one_frame_to_the_next() {
    const LENGTH: usize = 4 << 20;
    let (large, small) = (
        packed("zstd", &["-c", "-q"], &sample(LENGTH)),
        packed("zstd", &["-c", "-q"], b"the end"),
    );
    let memory = Memory::default();
    let share = memory.share(CancellationToken::new());
    let impatient = CancellationToken::new();
    impatient.cancel();
    let others = memory.share(impatient);
    let decoding = tokio::task::spawn_blocking(move || {
        let bytes = Cursor::new([large, small].concat());
        let mut decoder = Decoder::new(Format::Zstd, Box::new(bytes), share, 0);
        let mut raw = vec![0; LENGTH + 1];
        decoder.read_exact(&mut raw).unwrap();
        // It is in the second frame, which takes 2 MiB; the first took more.
        assert!(others.take(0, MEMORY - (2 << 20)).is_err());
        decoder.read_to_end(&mut raw).unwrap();
        assert!(raw.ends_with(b"the end"));
        assert!(others.take(0, MEMORY).is_ok(), "given back at the end");
    });
    decoding.await.unwrap();
}

#[test]
fn a_cut_is_never_an_end() {
    let raw = sample(300_000);
    for (format, tool, arguments) in TOOLS {
        let whole = packed(tool, arguments, &raw);
        // Everywhere near the ends, and here and there between.
        let near = (1..40).chain(whole.len() - 40..whole.len());
        for length in near.chain((40..whole.len() - 40).step_by(whole.len() / 60)) {
            let error = decode(format, &whole[..length]).unwrap_err();
            let cut = matches!(error, IngestError::CutShort { .. });
            assert!(cut || length < 40, "{tool} cut to {length}: {error}");
        }
        let second = [&whole[..], &whole[..whole.len() - 1]].concat();
        let error = decode(format, &second).unwrap_err();
        assert!(
            matches!(error, IngestError::CutShort { .. }),
            "{tool}: {error}"
        );
    }
}

#[test]
fn lz4_blocks_that_are_missing_are_noticed() {
    // A cut between two blocks: the decoder's own reader takes it for the end.
    let whole = packed(
        "lz4",
        &["-c", "-q", "-B4", "--no-frame-crc"],
        &sample(300_000),
    );
    let first = u32::from_le_bytes(whole[7..11].try_into().unwrap()) & 0x7fff_ffff;
    let cut = &whole[..11 + first as usize];
    let error = decode(Format::Lz4, cut).unwrap_err();
    assert!(matches!(error, IngestError::CutShort { .. }), "{error}");
}

#[test]
fn flipped_bits_are_caught_by_the_formats_own_checks() {
    let raw = sample(300_000);
    for (format, tool, arguments) in TOOLS {
        let whole = packed(tool, arguments, &raw);
        for at in [whole.len() / 3, whole.len() / 2, whole.len() - 6] {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            match decode(format, &bad) {
                Ok(_) => panic!("{tool}: a flipped bit at {at} of {}", whole.len()),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(format.name()), "{tool}: {text}");
                }
            }
        }
    }
}

#[test]
fn what_follows_is_refused_with_its_place() {
    for (format, tool, arguments) in TOOLS {
        let whole = packed(tool, arguments, &sample(100_000));
        for garbage in [&b"garbage that nobody expects"[..], b"\0\0\0\0\0", b"x"] {
            let error = decode(format, &[&whole[..], garbage].concat()).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, IngestError::Trailing { .. }),
                "{tool}: {text}"
            );
            // xz allows zero padding in units of four.
            let at = whole.len()
                + if format == Format::Xz && garbage[0] == 0 {
                    4
                } else {
                    0
                };
            assert!(text.contains(&format!("at byte {at} ")), "{tool}: {text}");
        }
    }
    let xz = packed("xz", &["-c"], b"abc");
    assert_eq!(
        decode(Format::Xz, &[&xz[..], &[0; 8]].concat()).unwrap(),
        b"abc"
    );
    assert_eq!(
        decode(Format::Xz, &[&xz[..], &[0; 4], &xz[..]].concat()).unwrap(),
        b"abcabc"
    );
}

#[test]
fn skippable_frames_are_skipped() {
    let zst = packed("zstd", &["-c", "-q"], b"abc");
    let skip = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
    assert_eq!(
        decode(Format::Zstd, &[&skip[..], &zst, &skip].concat()).unwrap(),
        b"abc"
    );
    let error = decode(Format::Zstd, &[&zst[..], &skip[..9]].concat()).unwrap_err();
    assert!(matches!(error, IngestError::CutShort { .. }), "{error}");
}

#[test]
fn windows_that_do_not_fit_into_memory_are_refused() {
    // A dictionary of 1 GiB is only claimed: the file is small.
    let xz = packed("xz", &["-c", "--lzma2=dict=1GiB"], b"abc");
    let text = decode(Format::Xz, &xz).unwrap_err().to_string();
    assert!(text.contains("needs more than the 128 MiB"), "{text}");
    // A frame header with a window of 2 GiB (RFC 8878, section 3.1.1.1.2: exponent 21).
    let zst = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
    let text = decode(Format::Zstd, &zst).unwrap_err().to_string();
    assert!(text.contains("needs more than the 128 MiB"), "{text}");
}
