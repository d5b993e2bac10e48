//! What the catalog knows of an image, and what it is told when one is added.

use anneal_image::{Manifest, Proof};
use anneal_protocol::time::Millis;

use super::ImageError;
use crate::clock::now;

/// An image under one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of the canonical manifest, `blake3:` + hex.
    pub id: String,
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Family of the operating system: which templates may configure it.
    pub os: String,
    /// Its version.
    pub os_version: Option<String>,
    /// Bytes of the raw disk.
    pub size: u64,
    /// Bytes of `data.zst`.
    pub stored: u64,
    /// SHA-256 of the raw disk, hex.
    pub sha256: String,
    /// The publisher's proof that was checked; none: unproven.
    pub proof: Option<Proof>,
    /// Kept by garbage collection whether somebody uses this name or not.
    pub pinned: bool,
    /// Where else the data lies: URLs, in the order in which they were added.
    pub mirrors: Vec<String>,
    /// When this name was added.
    pub added_at: Millis,
}

impl ImageRecord {
    pub(super) fn new(manifest: &Manifest, name: &str, version: &str) -> Self {
        Self {
            id: manifest.id(),
            name: name.to_owned(),
            version: version.to_owned(),
            os: manifest.os().to_owned(),
            os_version: manifest.os_version().map(ToOwned::to_owned),
            size: manifest.size(),
            stored: manifest.file_size(),
            sha256: manifest.sha256(),
            proof: manifest.proof().cloned(),
            pinned: false,
            mirrors: Vec::new(),
            added_at: now(),
        }
    }

    /// `name@version`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// What to seal under which name.
#[derive(Debug, Clone, Default)]
pub struct SealRequest {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Family of the operating system; none: as [`Findings`] say.
    pub os: Option<String>,
    /// Its version; none: as [`Findings`] say.
    pub os_version: Option<String>,
    /// Partitions that are expected to change: label, number or UUID.
    pub mutable: Vec<String>,
    /// Where else the same data lies already.
    pub mirrors: Vec<String>,
    /// Bytes of the raw disk, where they are known before it is read: very large disks get larger
    /// frames.
    pub size: Option<u64>,
}

impl SealRequest {
    /// Refuses what can be refused before a byte is read.
    pub(super) fn check(&self) -> Result<(), ImageError> {
        parse_reference(&format!("{}@{}", self.name, self.version))?;
        self.os.as_deref().map_or(Ok(()), check_os)?;
        if let Some(version) = &self.os_version {
            anneal_image::check_os_version(version)
                .map_err(|rule| ImageError::Invalid(format!("{rule}; found {version:?}")))?;
        }
        Ok(())
    }
}

/// What is known only when all of a source has been read.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// The publisher's proof, checked; none: unproven.
    pub proof: Option<Proof>,
    /// Family of the operating system, as the content says.
    pub os: Option<String>,
    /// Its version, as the content says.
    pub os_version: Option<String>,
}

/// Splits `name@version` and checks both.
///
/// # Errors
/// When it is not of that form.
pub fn parse_reference(reference: &str) -> Result<(&str, &str), ImageError> {
    let word = |text: &str, also: &str| {
        !text.is_empty()
            && text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    reference
        .split_once('@')
        .filter(|(name, version)| word(name, "._-") && word(version, "._-+~"))
        .ok_or_else(|| {
            ImageError::Invalid(format!(
                "image {reference:?} is not name@version: letters, digits, dots and hyphens, as in debian@12.9"
            ))
        })
}

fn check_os(os: &str) -> Result<(), ImageError> {
    anneal_image::check_os(os).map_err(|rule| {
        ImageError::Invalid(format!(
            "os {os:?} is not the name of a family such as debian: {rule}"
        ))
    })
}
