//! How much memory a compressed stream says that it takes to decode. Pure.
//!
//! Sources: RFC 8878, section 3.1.1.1 (Zstandard frame headers); the .xz file format 1.2, sections
//! 3.1 and 5.3.1 (block headers, LZMA2's dictionary). The others have windows that do not matter.

use super::format::Format;

/// How much of a stream is looked at: xz's stream header and the longest block header.
pub const PEEK: usize = 12 + 1024;
/// What a decoder takes besides its window, and all that one without a window takes.
const BESIDES: u64 = 1 << 20;

/// Bytes that decoding the stream at the beginning of `head` takes, by its own word.
#[must_use]
pub fn needed(format: Format, head: &[u8]) -> u64 {
    let window = match format {
        Format::Zstd => zstd(head),
        Format::Xz => xz(head),
        _ => Some(0),
    };
    // A head that is not understood is the decoder's to refuse.
    window.unwrap_or(0).saturating_add(BESIDES)
}

fn zstd(head: &[u8]) -> Option<u64> {
    let descriptor = *head.get(4)?;
    if descriptor & 0x20 == 0 {
        let window = *head.get(5)?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment: the window is the content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (length, more) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let field = head.get(5 + dictionary..5 + dictionary + length)?;
    let mut bytes = [0; 8];
    bytes[..length].copy_from_slice(field);
    Some(u64::from_le_bytes(bytes).saturating_add(more))
}

fn xz(head: &[u8]) -> Option<u64> {
    const LZMA2: u64 = 0x21;
    let block = head.get(12..)?;
    // Zero begins the index: there is no block.
    if *block.first()? == 0 {
        return Some(0);
    }
    let flags = *block.get(1)?;
    let mut rest = block.get(2..)?;
    for _ in 0..(flags >> 6).count_ones() {
        number(&mut rest)?;
    }
    for _ in 0..=(flags & 3) {
        let (filter, length) = (number(&mut rest)?, number(&mut rest)?);
        let length = usize::try_from(length).ok()?;
        let properties = rest.get(..length)?;
        rest = rest.get(length..)?;
        if filter == LZMA2 {
            let bits = *properties.first()? & 0x3f;
            return Some(match bits {
                40.. => u64::from(u32::MAX),
                bits => u64::from(2 | (bits & 1)) << (bits / 2 + 11),
            });
        }
    }
    None
}

/// A number of one to nine bytes, the low ones first, seven bits each.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in 0..9 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ingest::decode::tests::{packed, sample};

    #[test]
    fn the_tools_own_streams_say_what_they_take() {
        let raw = sample(300_000);
        const MIB: u64 = 1 << 20;
        for (tool, arguments, expected) in [
            ("zstd", &["-q", "-c", "-3"][..], 300_000),
            ("zstd", &["-q", "-c", "--no-content-size", "-19"], 8 * MIB),
            (
                "zstd",
                &["-q", "-c", "--no-content-size", "--long=27"],
                128 * MIB,
            ),
            ("xz", &["-c", "-0"], MIB / 4),
            ("xz", &["-c", "-6"], 8 * MIB),
            ("xz", &["-c", "-T2", "-9"], 64 * MIB),
            (
                "xz",
                &["-c", "--x86", "--lzma2=preset=6,dict=12MiB"],
                12 * MIB,
            ),
            ("gzip", &["-c"], 0),
        ] {
            let format = match tool {
                "zstd" => Format::Zstd,
                "xz" => Format::Xz,
                _ => Format::Gzip,
            };
            let stream = match arguments.contains(&"--no-content-size") {
                // From a pipe: neither the size nor a smaller window is known.
                true => piped(tool, arguments, &raw),
                false => packed(tool, arguments, &raw),
            };
            let head = &stream[..stream.len().min(PEEK)];
            let told = needed(format, head) - BESIDES;
            assert_eq!(told, expected, "{tool} {arguments:?}");
            for cut in 0..head.len().min(64) {
                assert!(needed(format, &head[..cut]) <= expected + BESIDES);
            }
        }
        assert_eq!(needed(Format::Xz, &[0xff; PEEK]), BESIDES);
    }

    fn piped(tool: &str, arguments: &[&str], raw: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let mut child = Command::new(tool)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, raw) = (child.stdin.take().unwrap(), raw.to_vec());
        let writer = std::thread::spawn(move || input.write_all(&raw).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.stdout
    }
}
