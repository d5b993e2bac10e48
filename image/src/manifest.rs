//! The manifest: what a sealed image consists of, its limits, its canonical form and its id.
//!
//! Canonical form: JSON without white space, keys in the order of the structs below, absent
//! values left out, integers in decimal, digests in lower-case hex. It is what `serde_json`
//! writes for these structs, and what is hashed (id) and signed.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::proof::Proof;
use crate::table::Table;
use crate::wire::Wire;

/// Version of the format that this crate writes and reads.
pub const FORMAT: u32 = 1;
/// Frame size when nothing else is asked for, in bytes of the raw disk.
pub const DEFAULT_FRAME_SIZE: u32 = 1024 * 1024;
/// Smallest frame size.
pub const MIN_FRAME_SIZE: u32 = 64 * 1024;
/// Largest frame size: what a reader must be ready to hold in memory, twice.
pub const MAX_FRAME_SIZE: u32 = 16 * 1024 * 1024;
/// Most frames of an image: 256 GiB of disk with the default frame size, 4 TiB with the largest.
pub const MAX_FRAMES: u64 = 262_144;
/// Largest signed manifest as text; readers stop there before they parse.
pub const MAX_MANIFEST_BYTES: u64 = 64 * 1024 * 1024;
/// A disk is a whole number of these.
pub const SECTOR: u64 = 512;

/// Why a manifest is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the manifest's shape.
    #[error("image manifest cannot be read: {0}")]
    Syntax(serde_json::Error),
    /// Longer than [`MAX_MANIFEST_BYTES`].
    #[error("image manifest has {0} bytes, more than the {MAX_MANIFEST_BYTES} allowed")]
    TooLong(u64),
    /// A rule of the format is broken.
    #[error("image manifest is invalid: {0}")]
    Invalid(String),
    /// A partition that may change is not in the table.
    #[error("{0}")]
    Mutable(String),
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
    pub(crate) os: String,
    pub(crate) os_version: Option<String>,
    pub(crate) size: u64,
    pub(crate) frame_size: u32,
    pub(crate) sha256: [u8; 32],
    pub(crate) table: Option<Table>,
    pub(crate) proof: Option<Proof>,
    pub(crate) frames: Vec<Frame>,
}

impl Manifest {
    /// Itself, if it obeys its limits.
    pub(crate) fn checked(self) -> Result<Self, ManifestError> {
        self.check().map_err(ManifestError::Invalid)?;
        Ok(self)
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

    /// Version of the operating system, as its publisher counts.
    #[must_use]
    pub fn os_version(&self) -> Option<&str> {
        self.os_version.as_deref()
    }

    /// The partition table; none when the disk has none that is understood.
    #[must_use]
    pub fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// The publisher's proof that was checked; none: the image is unproven.
    #[must_use]
    pub fn proof(&self) -> Option<&Proof> {
        self.proof.as_ref()
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

    /// Bytes of `data.zst` that are frames. The file is a little longer, see
    /// [`Manifest::file_size`].
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

    fn check(&self) -> Result<(), String> {
        check_os(&self.os)?;
        if let Some(version) = &self.os_version {
            check_os_version(version)?;
        }
        check_frame_size(self.frame_size)?;
        if self.size == 0 || !self.size.is_multiple_of(SECTOR) {
            return Err(format!(
                "size {} is not a positive multiple of {SECTOR}",
                self.size
            ));
        }
        if let Some(problem) = self.table.as_ref().and_then(|t| t.problem(self.size)) {
            return Err(format!("partition table: {problem}"));
        }
        self.proof.as_ref().map_or(Ok(()), Proof::check)?;
        self.check_frames()
    }

    fn check_frames(&self) -> Result<(), String> {
        let count = self.size.div_ceil(u64::from(self.frame_size));
        if count > MAX_FRAMES {
            return Err(format!(
                "{count} frames, more than the {MAX_FRAMES} allowed"
            ));
        }
        if count != self.frames.len() as u64 {
            return Err(format!(
                "{} frames, but the size needs {count}",
                self.frames.len()
            ));
        }
        let longest = zstd::zstd_safe::compress_bound(self.frame_size as usize) as u64;
        let mut next = 0;
        for (index, frame) in self.frames.iter().enumerate() {
            if frame.offset != next {
                return Err(format!(
                    "frame {index} begins at {}, but the one before ends at {next}",
                    frame.offset
                ));
            }
            if frame.length == 0 || u64::from(frame.length) > longest {
                return Err(format!(
                    "frame {index} has {} bytes, allowed are 1 to {longest}",
                    frame.length
                ));
            }
            next += u64::from(frame.length);
        }
        Ok(())
    }
}

/// Checks the family of an operating system.
///
/// # Errors
/// Says what it should be.
pub fn check_os(os: &str) -> Result<(), String> {
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if os.is_empty() || os.len() > 32 || !os.bytes().all(word) {
        return Err("os must be 1 to 32 lower-case letters, digits and hyphens".to_owned());
    }
    Ok(())
}

/// Checks the version of an operating system.
///
/// # Errors
/// Says what it should be.
pub fn check_os_version(version: &str) -> Result<(), String> {
    let word = |c: u8| c.is_ascii_alphanumeric() || b"._-+~:".contains(&c);
    if version.is_empty() || version.len() > 64 || !version.bytes().all(word) {
        return Err("os_version must be 1 to 64 letters, digits and any of ._-+~:".to_owned());
    }
    Ok(())
}

pub(crate) fn check_frame_size(size: u32) -> Result<(), String> {
    if !size.is_power_of_two() || !(MIN_FRAME_SIZE..=MAX_FRAME_SIZE).contains(&size) {
        return Err(format!(
            "frame size {size} is not a power of two from {MIN_FRAME_SIZE} to {MAX_FRAME_SIZE}"
        ));
    }
    Ok(())
}

pub(crate) fn check_length(json: &[u8]) -> Result<(), ManifestError> {
    if json.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(ManifestError::TooLong(json.len() as u64));
    }
    Ok(())
}

#[cfg(test)]
impl Manifest {
    /// One with these frames and nothing that is optional.
    pub(crate) fn bare(size: u64, frame_size: u32, frames: Vec<Frame>) -> Self {
        Self {
            os: "test".to_owned(),
            os_version: None,
            size,
            frame_size,
            sha256: [9; 32],
            table: None,
            proof: None,
            frames,
        }
        .checked()
        .unwrap()
    }
}

#[cfg(test)]
mod tests;
