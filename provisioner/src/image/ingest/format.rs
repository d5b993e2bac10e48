//! What is this? Told by content, never by a name. Pure.

use super::IngestError;

/// How much of a source is looked at: what a GPT of 4096-byte sectors takes, and an ISO's mark.
pub const PEEK: usize = 64 << 10;

/// What the beginning of some content says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// gzip (RFC 1952), one or more members.
    Gzip,
    /// xz, one or more streams.
    Xz,
    /// bzip2, one or more streams.
    Bzip2,
    /// Zstandard (RFC 8878), one or more frames.
    Zstd,
    /// LZ4 frames.
    Lz4,
    /// QEMU's copy-on-write image.
    Qcow2,
    /// A tar archive.
    Tar,
    /// ISO 9660: taken as it is.
    Iso,
    /// Anything else: taken as it is.
    Raw,
}

impl Format {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Qcow2 => "qcow2",
            Self::Tar => "tar",
            Self::Iso => "iso",
            Self::Raw => "raw",
        }
    }

    /// Whether it is one of the compressions.
    #[must_use]
    pub fn is_compression(self) -> bool {
        matches!(
            self,
            Self::Gzip | Self::Xz | Self::Bzip2 | Self::Zstd | Self::Lz4
        )
    }
}

const CONVERT: &str = "convert it with `qemu-img convert -O raw FILE disk.raw` and add disk.raw";

/// Formats that are recognised in order to refuse them with advice.
const OTHERS: &[(&[u8], &str, &str)] = &[
    (b"KDMV", "a vmdk image", CONVERT),
    (b"# Disk DescriptorFile", "a vmdk descriptor", CONVERT),
    (b"vhdxfile", "a vhdx image", CONVERT),
    (b"conectix", "a vhd image", CONVERT),
    (
        b"PK\x03\x04",
        "a zip archive",
        "unpack it and add the raw disk in it",
    ),
    (
        b"7z\xbc\xaf\x27\x1c",
        "a 7z archive",
        "unpack it and add the raw disk in it",
    ),
    (
        &[0x02, 0x21, 0x4c, 0x18],
        "in the legacy lz4 format",
        "decode it with `lz4 -dc FILE | anneal image add NAME@VERSION -`",
    ),
    (
        &[0x5d, 0, 0],
        "in the lzma format before xz",
        "decode it with `xz -dc FILE | anneal image add NAME@VERSION -`",
    ),
    (
        b"<!DOCTYPE",
        "a web page",
        "the address is not that of the image itself",
    ),
    (
        b"<html",
        "a web page",
        "the address is not that of the image itself",
    ),
];

/// Tells what `head`, the first bytes of some content, begins.
///
/// # Errors
/// When it is empty or something that is known and not read here.
pub fn sniff(head: &[u8]) -> Result<Format, IngestError> {
    if head.is_empty() {
        return Err(IngestError::Format(
            "the source is empty, a disk image was expected".to_owned(),
        ));
    }
    if let Some((_, what, advice)) = OTHERS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Err(IngestError::Format(format!(
            "the source is {what}, which is not read here: {advice}"
        )));
    }
    if head.starts_with(b"\x7fELF") {
        return Err(IngestError::Format(
            "the source is a program (ELF), not a disk image".to_owned(),
        ));
    }
    Ok(known(head))
}

fn known(head: &[u8]) -> Format {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|h| h.starts_with(magic));
    if at(0, b"\x1f\x8b\x08") {
        Format::Gzip
    } else if at(0, b"\xfd7zXZ\0") {
        Format::Xz
    } else if at(0, b"BZh")
        && head
            .get(3)
            .is_some_and(|level| (b'1'..=b'9').contains(level))
    {
        Format::Bzip2
    } else if at(0, &[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(head) {
        Format::Zstd
    } else if at(0, &[0x04, 0x22, 0x4d, 0x18]) {
        Format::Lz4
    } else if at(0, b"QFI\xfb") {
        Format::Qcow2
    } else if at(257, b"ustar") && !at(510, &[0x55, 0xaa]) {
        Format::Tar
    } else if at(0x8001, b"CD001") {
        Format::Iso
    } else {
        Format::Raw
    }
}

/// A skippable frame of zstd or lz4 (RFC 8878, section 3.1.2).
#[must_use]
pub fn is_skippable(head: &[u8]) -> bool {
    head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_by_content() {
        let mut iso = vec![0; 0x8010];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let mut disk = tar.clone();
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        for (head, format) in [
            (b"\x1f\x8b\x08\0".to_vec(), Format::Gzip),
            (b"BZh91AY".to_vec(), Format::Bzip2),
            (b"BZhello".to_vec(), Format::Raw),
            (vec![0x5e, 0x2a, 0x4d, 0x18], Format::Zstd),
            (vec![0x04, 0x22, 0x4d, 0x18], Format::Lz4),
            (b"QFI\xfb".to_vec(), Format::Qcow2),
            (tar, Format::Tar),
            (disk, Format::Raw),
            (iso, Format::Iso),
            (vec![0; 512], Format::Raw),
        ] {
            assert_eq!(sniff(&head).unwrap(), format);
        }
        for (head, word) in [
            (&b""[..], "is empty"),
            (b"KDMV", "qemu-img convert"),
            (b"\x02\x21\x4c\x18", "lz4 -dc"),
            (b"<!DOCTYPE html>", "a web page"),
        ] {
            let error = sniff(head).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
