//! The manifest: what a sealed image consists of, its limits, its canonical form and its id.
//!
//! Canonical form: JSON without white space, keys in the order of the structs below, absent
//! values left out, integers in decimal, digests in lower-case hex. It is what `serde_json`
//! writes for these structs, and what is hashed (id) and signed.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Version of the format that this crate writes and reads.
pub const FORMAT: u32 = 1;
/// Frame size when nothing else is asked for, in bytes of the raw disk.
pub const DEFAULT_FRAME_SIZE: u32 = 4 * 1024 * 1024;
/// Smallest frame size.
pub const MIN_FRAME_SIZE: u32 = 64 * 1024;
/// Largest frame size: what a reader must be ready to hold in memory, twice.
pub const MAX_FRAME_SIZE: u32 = 16 * 1024 * 1024;
/// Most frames of an image (1 TiB of disk with the default frame size).
pub const MAX_FRAMES: u64 = 262_144;
/// Largest signed manifest as text; readers stop there before they parse.
pub const MAX_MANIFEST_BYTES: u64 = 64 * 1024 * 1024;
/// A disk is a whole number of these.
pub const SECTOR: u64 = 512;

/// Why a manifest is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the manifest's shape.
    #[error("image manifest cannot be read")]
    Syntax(#[source] serde_json::Error),
    /// Longer than [`MAX_MANIFEST_BYTES`].
    #[error("image manifest has {0} bytes, more than the {MAX_MANIFEST_BYTES} allowed")]
    TooLong(u64),
    /// A rule of the format is broken.
    #[error("image manifest is invalid: {0}")]
    Invalid(String),
    /// Signed by another key.
    #[error("image manifest is signed by key {found}, expected {expected}")]
    OtherKey {
        /// Key the manifest names.
        found: String,
        /// Key that is trusted.
        expected: String,
    },
    /// The signature does not belong to this manifest and key.
    #[error("image manifest has a wrong signature")]
    Signature,
    /// It is the manifest of another image.
    #[error("image manifest is that of {found}, expected {expected}")]
    OtherImage {
        /// Id of the manifest.
        found: String,
        /// Id that was asked for.
        expected: String,
    },
}

/// One slice of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where its zstd frame begins in `data.zst`.
    pub offset: u64,
    /// Length of its zstd frame.
    pub length: u32,
    /// BLAKE3 of the raw slice; none when the slice is all zero.
    pub digest: Option<[u8; 32]>,
}

impl Frame {
    /// Whether the raw slice is all zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.digest.is_none()
    }
}

/// The list of an image's frames. Obeys the limits of this module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Manifest {
    os: String,
    size: u64,
    frame_size: u32,
    sha256: [u8; 32],
    frames: Vec<Frame>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    format: u32,
    os: String,
    size: u64,
    frame_size: u32,
    sha256: String,
    frames: Vec<WireFrame>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFrame {
    offset: u64,
    length: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    zero: bool,
}

impl Manifest {
    pub(crate) fn new(
        os: String,
        size: u64,
        frame_size: u32,
        sha256: [u8; 32],
        frames: Vec<Frame>,
    ) -> Result<Self, ManifestError> {
        let manifest = Self {
            os,
            size,
            frame_size,
            sha256,
            frames,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads a manifest and checks its limits.
    ///
    /// # Errors
    /// When it is too long, not of the format, or breaks one of its rules.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        check_length(json)?;
        let wire: Wire = serde_json::from_slice(json).map_err(ManifestError::Syntax)?;
        Self::try_from(wire)
    }

    /// Family of the operating system: which templates may configure it.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Size of the raw disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the raw disk that a frame stands for (the last may stand for fewer).
    #[must_use]
    pub fn frame_size(&self) -> u32 {
        self.frame_size
    }

    /// SHA-256 of the raw disk, lower-case hex.
    #[must_use]
    pub fn sha256(&self) -> String {
        hex::encode(self.sha256)
    }

    /// The frames, in the order of the disk.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Size of `data.zst` in bytes.
    #[must_use]
    pub fn data_size(&self) -> u64 {
        self.frames
            .last()
            .map_or(0, |frame| frame.offset + u64::from(frame.length))
    }

    /// Bytes of the disk that frame `index` stands for.
    ///
    /// # Panics
    /// When there is no such frame.
    #[must_use]
    pub fn raw_range(&self, index: usize) -> Range<u64> {
        assert!(index < self.frames.len(), "frame {index} does not exist");
        let start = index as u64 * u64::from(self.frame_size);
        start..(start + u64::from(self.frame_size)).min(self.size)
    }

    /// Length of the raw slice of frame `index`.
    ///
    /// # Panics
    /// When there is no such frame.
    #[must_use]
    pub fn raw_length(&self, index: usize) -> usize {
        let range = self.raw_range(index);
        // Bounded by MAX_FRAME_SIZE.
        usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
    }

    /// Bytes of `data.zst` that hold these consecutive frames: what to ask a server for.
    ///
    /// # Panics
    /// When the range is empty or reaches beyond the last frame.
    #[must_use]
    pub fn data_range(&self, frames: Range<usize>) -> Range<u64> {
        let frames = &self.frames[frames];
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
            panic!("a range of no frames has no bytes");
        };
        first.offset..last.offset + u64::from(last.length)
    }

    /// The bytes that are hashed and signed.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(&Wire::from(self.clone()))
            .expect("invariant: a struct of numbers and text is JSON")
    }

    /// The image's id: `blake3:` and the hex digest of the canonical form.
    #[must_use]
    pub fn id(&self) -> String {
        format!("blake3:{}", blake3::hash(&self.canonical()).to_hex())
    }

    fn check(&self) -> Result<(), ManifestError> {
        let invalid = |text: String| Err(ManifestError::Invalid(text));
        let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if self.os.is_empty() || self.os.len() > 32 || !self.os.bytes().all(word) {
            return invalid("os must be 1 to 32 lower-case letters, digits and hyphens".to_owned());
        }
        if !self.frame_size.is_power_of_two()
            || !(MIN_FRAME_SIZE..=MAX_FRAME_SIZE).contains(&self.frame_size)
        {
            return invalid(format!(
                "frame size {} is not a power of two from {MIN_FRAME_SIZE} to {MAX_FRAME_SIZE}",
                self.frame_size
            ));
        }
        if self.size == 0 || !self.size.is_multiple_of(SECTOR) {
            return invalid(format!(
                "size {} is not a positive multiple of {SECTOR}",
                self.size
            ));
        }
        let count = self.size.div_ceil(u64::from(self.frame_size));
        if count > MAX_FRAMES {
            return invalid(format!(
                "{count} frames, more than the {MAX_FRAMES} allowed"
            ));
        }
        if count != self.frames.len() as u64 {
            return invalid(format!(
                "{} frames, but the size needs {count}",
                self.frames.len()
            ));
        }
        let longest = zstd::zstd_safe::compress_bound(self.frame_size as usize) as u64;
        let mut next = 0;
        for (index, frame) in self.frames.iter().enumerate() {
            if frame.offset != next {
                return invalid(format!(
                    "frame {index} begins at {}, but the one before ends at {next}",
                    frame.offset
                ));
            }
            if frame.length == 0 || u64::from(frame.length) > longest {
                return invalid(format!(
                    "frame {index} has {} bytes, allowed are 1 to {longest}",
                    frame.length
                ));
            }
            next += u64::from(frame.length);
        }
        Ok(())
    }
}

pub(crate) fn check_length(json: &[u8]) -> Result<(), ManifestError> {
    if json.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(ManifestError::TooLong(json.len() as u64));
    }
    Ok(())
}

fn digest_of(what: &str, text: &str) -> Result<[u8; 32], ManifestError> {
    let mut bytes = [0; 32];
    // Upper-case hex would be a second spelling of the same manifest.
    if text.bytes().any(|c| c.is_ascii_uppercase())
        || hex::decode_to_slice(text, &mut bytes).is_err()
    {
        return Err(ManifestError::Invalid(format!(
            "{what} is not 64 lower-case hex digits"
        )));
    }
    Ok(bytes)
}

impl TryFrom<Wire> for Manifest {
    type Error = ManifestError;

    fn try_from(wire: Wire) -> Result<Self, ManifestError> {
        if wire.format != FORMAT {
            return Err(ManifestError::Invalid(format!(
                "format {} is not supported, this is a reader of format {FORMAT}",
                wire.format
            )));
        }
        let frames = wire
            .frames
            .into_iter()
            .enumerate()
            .map(|(index, frame)| {
                let digest = match (frame.digest, frame.zero) {
                    (Some(text), false) => {
                        Some(digest_of(&format!("digest of frame {index}"), &text)?)
                    }
                    (None, true) => None,
                    _ => {
                        return Err(ManifestError::Invalid(format!(
                            "frame {index} must have either a digest or zero"
                        )));
                    }
                };
                Ok(Frame {
                    offset: frame.offset,
                    length: frame.length,
                    digest,
                })
            })
            .collect::<Result<_, _>>()?;
        Self::new(
            wire.os,
            wire.size,
            wire.frame_size,
            digest_of("sha256", &wire.sha256)?,
            frames,
        )
    }
}

impl From<Manifest> for Wire {
    fn from(manifest: Manifest) -> Self {
        Self {
            format: FORMAT,
            sha256: manifest.sha256(),
            os: manifest.os,
            size: manifest.size,
            frame_size: manifest.frame_size,
            frames: manifest
                .frames
                .into_iter()
                .map(|frame| WireFrame {
                    offset: frame.offset,
                    length: frame.length,
                    digest: frame.digest.map(hex::encode),
                    zero: frame.digest.is_none(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(changes: &[(&str, &str)]) -> String {
        let mut text = format!(
            r#"{{"format":1,"os":"debian","size":131072,"frame_size":65536,"sha256":"{a}","frames":[{{"offset":0,"length":100,"digest":"{a}"}},{{"offset":100,"length":20,"zero":true}}]}}"#,
            a = "ab".repeat(32)
        );
        for (from, to) in changes {
            assert!(text.contains(from), "the case changes nothing: {from}");
            text = text.replacen(from, to, 1);
        }
        text
    }

    #[test]
    fn canonical_form_is_what_was_parsed() {
        let text = json(&[]);
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.canonical(), text.as_bytes());
        assert_eq!(
            manifest.id(),
            format!("blake3:{}", blake3::hash(text.as_bytes()).to_hex())
        );
        let spaced = text.replace(',', " ,\n");
        assert_eq!(Manifest::parse(spaced.as_bytes()).unwrap(), manifest);
        assert_eq!(manifest.data_size(), 120);
        assert_eq!(manifest.data_range(1..2), 100..120);
        assert_eq!(manifest.raw_range(1), 65536..131_072);
    }

    #[test]
    fn refuses_hostile_manifests() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (
                &[("\"format\":1", "\"format\":2")],
                "format 2 is not supported",
            ),
            (&[("\"os\":\"debian\"", "\"os\":\"../etc\"")], "os must be"),
            (&[("\"os\":\"debian\"", "\"os\":\"\"")], "os must be"),
            (&[("65536", "65537")], "frame size 65537"),
            (&[("65536", "1")], "frame size 1"),
            (&[("65536", "2147483648")], "frame size 2147483648"),
            (&[("131072", "0")], "size 0"),
            (&[("131072", "131073")], "size 131073"),
            (&[("131072", "131584")], "2 frames, but the size needs 3"),
            (&[("131072", "65536")], "2 frames, but the size needs 1"),
            (
                &[("131072", "18446744073709551104")],
                "more than the 262144",
            ),
            (
                &[("\"offset\":100", "\"offset\":99")],
                "frame 1 begins at 99",
            ),
            (
                &[("\"offset\":100", "\"offset\":101")],
                "frame 1 begins at 101",
            ),
            (&[("\"offset\":0", "\"offset\":1")], "frame 0 begins at 1"),
            (&[("\"length\":20", "\"length\":0")], "frame 1 has 0 bytes"),
            (
                &[("\"length\":20", "\"length\":4294967295")],
                "frame 1 has 4294967295",
            ),
            (&[(",\"zero\":true", "")], "frame 1 must have either"),
            (
                &[("\"length\":100,", "\"length\":100,\"zero\":true,")],
                "frame 0 must have",
            ),
            (
                &[("\"digest\":\"ab", "\"digest\":\"AB")],
                "digest of frame 0",
            ),
            (&[("\"sha256\":\"ab", "\"sha256\":\"")], "sha256 is not"),
        ];
        for (changes, expected) in cases {
            let error = Manifest::parse(json(changes).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error} / {expected}");
        }
        for changes in [
            [("\"os\"", "\"system\"")],
            [("\"format\":1", "\"format\":1,\"more\":1")],
            [("\"format\":1", "\"format\":1,\"format\":1")],
            [("\"zero\":true", "\"zero\":true,\"offset\":100")],
            [("131072", "-1")],
        ] {
            let error = Manifest::parse(json(&changes).as_bytes()).unwrap_err();
            assert!(matches!(error, ManifestError::Syntax(_)), "{error}");
        }
    }
}
