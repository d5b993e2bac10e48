//! Readers that are not ours can seek in `data.zst`: one in Python, written from the text of the
//! zstd seekable format, that knows nothing of manifests.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use anneal_image::{Facts, MIN_FRAME_SIZE, PackOptions, pack};

/// Prints the bytes OFFSET to OFFSET+LENGTH of the disk; unpacks only the frames that hold them.
const READER: &str = r#"
import struct, subprocess, sys
path, offset, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "rb") as file:
    size = file.seek(0, 2)
    file.seek(size - 9)
    count, descriptor, magic = struct.unpack("<IBI", file.read(9))
    assert magic == 0x8F92EAB1, hex(magic)
    assert descriptor & 0x7C == 0, "reserved bits"
    entry = 12 if descriptor & 0x80 else 8
    file.seek(size - 9 - count * entry - 8)
    skippable, rest = struct.unpack("<II", file.read(8))
    assert skippable == 0x184D2A5E, hex(skippable)
    assert rest == count * entry + 9, rest
    entries = [struct.unpack("<II", file.read(entry)[:8]) for _ in range(count)]
    assert sum(packed for packed, _ in entries) + rest + 8 == size
    packed_at = raw_at = 0
    for packed, raw in entries:
        if raw_at < offset + length and offset < raw_at + raw:
            file.seek(packed_at)
            done = subprocess.run(["zstd", "-dc"], input=file.read(packed), stdout=subprocess.PIPE, check=True)
            assert len(done.stdout) == raw, len(done.stdout)
            begin, end = max(offset - raw_at, 0), min(offset + length - raw_at, raw)
            sys.stdout.buffer.write(done.stdout[begin:end])
        packed_at += packed
        raw_at += raw
"#;

#[test]
fn a_reader_written_from_the_specification_seeks() {
    let frame = MIN_FRAME_SIZE as usize;
    let mut disk: Vec<u8> = (0..5 * frame + 1536).map(|i| (i / 251 * 7) as u8).collect();
    disk[2 * frame..3 * frame].fill(0);
    let options = PackOptions {
        frame_size: MIN_FRAME_SIZE,
        ..PackOptions::default()
    };
    let mut data = Vec::new();
    let packed = pack(&mut &disk[..], &mut data, &options, &mut |_| {}).unwrap();
    let facts = Facts {
        os: "debian".into(),
        ..Facts::default()
    };
    let manifest = packed.into_manifest(facts).unwrap();
    assert_eq!(manifest.file_size(), data.len() as u64);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    for (offset, length) in [
        (0, 10),
        (frame - 1, 2),
        (2 * frame - 100, frame + 200),
        (disk.len() - 512, 512),
    ] {
        let output = Command::new("python3")
            .args(["-c", READER])
            .arg(file.path())
            .args([offset.to_string(), length.to_string()])
            .stderr(Stdio::piped())
            .output()
            .unwrap_or_else(|error| {
                panic!("python3 is needed ({error}): apt-get install python3 zstd")
            });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(output.stdout, disk[offset..offset + length]);
    }
}
