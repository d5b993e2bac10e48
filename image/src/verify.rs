//! Reading a stored image again, all of it.

use std::io::Read;

use sha2::{Digest, Sha256};

use crate::decode::{FrameError, FrameReader};
use crate::manifest::Manifest;

/// Why a stored image is not what its manifest says.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A frame is wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What follows the frames is not their seek table.
    #[error("image data does not end with the seek table of its frames")]
    SeekTable,
    /// The source failed after the frames.
    #[error("reading the seek table of the image data")]
    Read(#[source] std::io::Error),
    /// Every frame is right, but the whole has another digest: the manifest contradicts itself.
    #[error("raw disk has sha256 {found}, the manifest says {expected}")]
    Sha256 {
        /// Digest of what was decoded.
        found: String,
        /// Digest in the manifest.
        expected: String,
    },
}

/// Decodes all of `data.zst` and compares it with the manifest: every frame, the zero ones
/// included, the digest of the whole, and that the seek table and nothing else follows. `progress` is told how many raw
/// bytes are verified.
///
/// # Errors
/// When anything differs or the source fails.
pub fn verify_store(
    mut data: impl Read,
    manifest: &Manifest,
    progress: &mut dyn FnMut(u64),
) -> Result<(), VerifyError> {
    let mut reader = FrameReader::new(
        manifest,
        0..manifest.frames().len(),
        data.by_ref().take(manifest.data_size()),
    );
    let mut sha256 = Sha256::new();
    let mut raw = Vec::new();
    while let Some(index) = reader.next_raw(&mut raw)? {
        sha256.update(&raw);
        progress(manifest.raw_range(index).end);
    }
    let found = hex::encode(sha256.finalize());
    if found != manifest.sha256() {
        return Err(VerifyError::Sha256 {
            found,
            expected: manifest.sha256(),
        });
    }
    let expected = manifest.seek_table();
    let mut rest = Vec::new();
    data.take(expected.len() as u64 + 1)
        .read_to_end(&mut rest)
        .map_err(VerifyError::Read)?;
    if rest != expected {
        return Err(VerifyError::SeekTable);
    }
    Ok(())
}
