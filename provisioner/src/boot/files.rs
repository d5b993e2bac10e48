//! The files that machines may fetch while they boot: a fixed set, opened once at start.
//!
//! Owns: which names exist, their media types and entity tags. Nothing else is ever served to
//! firmware, so no path from the wire touches the file system.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::http::files::{Blob, Content};

/// The agent's kernel.
pub const KERNEL: &str = "vmlinuz";
/// The agent's initramfs.
pub const INITRAMFS: &str = "initramfs.img";

/// What is served, and whether the daemon can do without it.
const NAMES: [(&str, Need); 6] = [
    ("undionly.kpxe", Need::Required),
    ("snponly.efi", Need::Required),
    ("ipxe.efi", Need::Required),
    // Not every distribution's package has it.
    ("ipxe-arm64.efi", Need::Optional),
    (KERNEL, Need::Required),
    (INITRAMFS, Need::Required),
];

/// Files up to this size are kept in memory, in bytes: the boot programs, not the initramfs.
const KEEP_IN_MEMORY: u64 = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

/// Why there are no boot files.
#[derive(Debug, thiserror::Error)]
pub enum BootFilesError {
    /// Files that machines cannot boot without are not there.
    #[error("{} lacks {}: run `make netboot`, or set netboot_dir to where its output is", .dir.display(), .names.join(", "))]
    Missing {
        /// Directory that was looked at.
        dir: PathBuf,
        /// What is missing.
        names: Vec<&'static str>,
    },
    /// A file is there but cannot be used.
    #[error("boot file {} cannot be read", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file has no bytes: a build was interrupted.
    #[error("boot file {} is empty: run `make netboot` again", .path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
}

/// The boot files, ready to be sent.
#[derive(Debug, Clone)]
pub struct BootFiles {
    files: BTreeMap<String, Blob>,
}

impl BootFiles {
    /// Opens the files in `dir`. Small ones are read into memory, large ones stay on disk and
    /// must be replaced by renaming, never rewritten, while the daemon runs.
    ///
    /// # Errors
    /// When a required file is missing, empty or unreadable; the message says what to do.
    pub fn load(dir: &Path) -> Result<Self, BootFilesError> {
        let mut files = BTreeMap::new();
        let mut missing = Vec::new();
        for (name, need) in NAMES {
            let path = dir.join(name);
            match open(&path) {
                Ok(blob) if blob.content.is_empty() => return Err(BootFilesError::Empty { path }),
                Ok(blob) => {
                    files.insert(name.to_owned(), blob);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => match need {
                    Need::Required => missing.push(name),
                    Need::Optional => tracing::warn!(
                        file = name,
                        "boot file missing, its machines cannot boot over the network"
                    ),
                },
                Err(source) => return Err(BootFilesError::Unreadable { path, source }),
            }
        }
        if missing.is_empty() {
            Ok(Self { files })
        } else {
            Err(BootFilesError::Missing {
                dir: dir.to_owned(),
                names: missing,
            })
        }
    }

    /// A set made from bytes, for tests and tools.
    pub fn from_bytes(files: impl IntoIterator<Item = (&'static str, Bytes)>) -> Self {
        let files = files
            .into_iter()
            .map(|(name, bytes)| {
                let blob = Blob {
                    etag: blake3::hash(&bytes).to_hex().to_string(),
                    content_type: content_type(name),
                    content: Content::Memory(bytes),
                };
                (name.to_owned(), blob)
            })
            .collect();
        Self { files }
    }

    /// The file of exactly this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Blob> {
        self.files.get(name)
    }

    /// The names there are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

fn open(path: &Path) -> std::io::Result<Blob> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(std::io::Error::other("is not a regular file"));
    }
    let mut hasher = blake3::Hasher::new();
    let (len, content) = if meta.len() <= KEEP_IN_MEMORY {
        let bytes = std::fs::read(path)?;
        hasher.update(&bytes);
        (bytes.len() as u64, Content::Memory(Bytes::from(bytes)))
    } else {
        let len = std::io::copy(&mut file, &mut hasher)?;
        let file = Arc::new(file);
        (len, Content::Disk { file, len })
    };
    tracing::debug!(path = %path.display(), bytes = len, "boot file opened");
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    Ok(Blob {
        content,
        content_type: content_type(name),
        etag: hasher.finalize().to_hex().to_string(),
    })
}

/// Media type by name. EDK2 boots a file by exactly these types
/// (`HttpBootCheckImageType` in HttpBootSupport.c), or else by the suffix.
fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("efi") => "application/efi",
        Some("iso") => "application/vnd.efi-iso",
        // The initramfs is no virtual disk, although its suffix says so to EDK2.
        Some("img") if name != INITRAMFS => "application/vnd.efi-img",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(dir: &Path) {
        for (name, _) in NAMES {
            std::fs::write(dir.join(name), name).unwrap();
        }
    }

    #[test]
    fn names_what_is_missing_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        std::fs::remove_file(dir.path().join("snponly.efi")).unwrap();
        std::fs::remove_file(dir.path().join("vmlinuz")).unwrap();
        let error = BootFiles::load(dir.path()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{} lacks snponly.efi, vmlinuz: run `make netboot`, or set netboot_dir to where \
                 its output is",
                dir.path().display()
            )
        );
    }

    #[test]
    fn refuses_an_empty_file_and_does_without_arm64() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        std::fs::remove_file(dir.path().join("ipxe-arm64.efi")).unwrap();
        let files = BootFiles::load(dir.path()).unwrap();
        assert!(files.get("ipxe-arm64.efi").is_none());
        assert_eq!(files.names().count(), 5);
        std::fs::write(dir.path().join(KERNEL), "").unwrap();
        let error = BootFiles::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("vmlinuz is empty"), "{error}");
    }

    #[test]
    fn keeps_large_files_on_disk_with_a_tag_of_their_content() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let large = vec![7; usize::try_from(KEEP_IN_MEMORY).unwrap() + 1];
        std::fs::write(dir.path().join(INITRAMFS), &large).unwrap();
        let files = BootFiles::load(dir.path()).unwrap();
        let blob = files.get(INITRAMFS).unwrap();
        assert!(matches!(blob.content, Content::Disk { len, .. } if len == large.len() as u64));
        assert_eq!(blob.etag, blake3::hash(&large).to_hex().as_str());
        assert!(matches!(
            files.get("snponly.efi").unwrap().content,
            Content::Memory(_)
        ));
    }

    #[test]
    fn types_are_those_that_firmware_compares() {
        let table = [
            ("snponly.efi", "application/efi"),
            ("x.iso", "application/vnd.efi-iso"),
            ("x.img", "application/vnd.efi-img"),
            (INITRAMFS, "application/octet-stream"),
            (KERNEL, "application/octet-stream"),
            ("undionly.kpxe", "application/octet-stream"),
        ];
        for (name, expected) in table {
            assert_eq!(content_type(name), expected, "{name}");
        }
    }
}
