//! Reading a stored image again, all of it: is the disk that it lies on still telling the truth?

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anneal_image::{FrameError, SignedManifest, VerifyError, verify_store};

use super::{Catalog, ImageError, ImageRecord, blocking};

/// How reading an image again ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reread {
    /// Which image.
    pub image: ImageRecord,
    /// Bytes of the raw disk that were right before the end or the first problem.
    pub verified: u64,
    /// The first thing that is wrong.
    pub problem: Option<String>,
    /// The first frame that is wrong, when it is one.
    pub frame: Option<u64>,
}

impl Catalog {
    /// Reads manifest and data of an image again, and compares: signature, id, every frame, the
    /// SHA-256 of the whole disk, the seek table. Stops at the first difference, or when the
    /// future is dropped.
    ///
    /// # Errors
    /// When the image is unknown or has no files. What is wrong with the files is no error but
    /// [`Reread::problem`].
    pub async fn verify(&self, reference: &str) -> Result<Reread, ImageError> {
        let image = self.resolve(reference).await?;
        let (keys, id) = (self.public_keys(), image.id.clone());
        let missing = || ImageError::FilesMissing {
            reference: reference.to_owned(),
            folder: self.folder.path(&image.id),
        };
        let manifest = self.manifest_path(&image.id).ok_or_else(missing)?;
        let data = self.data_path(&image.id).ok_or_else(missing)?;
        let wanted = Arc::new(AtomicBool::new(true));
        let _stop = StopOnDrop(wanted.clone());
        let (verified, problem, frame) = blocking(move || {
            let mut verified = 0;
            let result = read_again(&manifest, &data, &keys, &id, wanted, &mut verified);
            Ok(match result {
                Ok(()) => (verified, None, None),
                Err((problem, frame)) => (verified, Some(problem), frame),
            })
        })
        .await?;
        Ok(Reread {
            image,
            verified,
            problem,
            frame,
        })
    }
}

fn read_again(
    manifest: &std::path::Path,
    data: &std::path::Path,
    keys: &[anneal_image::PublicKey],
    id: &str,
    wanted: Arc<AtomicBool>,
    verified: &mut u64,
) -> Result<(), (String, Option<u64>)> {
    let whole = |error: &dyn std::fmt::Display| (error.to_string(), None);
    let json = std::fs::read(manifest)
        .map_err(|error| (format!("manifest cannot be read: {error}"), None))?;
    let manifest = SignedManifest::open(&json, keys, id).map_err(|error| whole(&error))?;
    let file = File::open(data).map_err(|error| (format!("data cannot be read: {error}"), None))?;
    let source = Wanted {
        inner: file,
        wanted,
    };
    verify_store(source, &manifest, &mut |bytes| *verified = bytes).map_err(|error| {
        let frame = match &error {
            VerifyError::Frame(
                FrameError::Truncated { frame, .. }
                | FrameError::Corrupt { frame }
                | FrameError::TooLong { frame }
                | FrameError::Read { frame, .. },
            ) => Some(*frame as u64),
            _ => None,
        };
        (format!("{:#}", anyhow::Error::new(error)), frame)
    })
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A file that fails once nobody wants to know any more.
struct Wanted {
    inner: File,
    wanted: Arc<AtomicBool>,
}

impl Read for Wanted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.wanted.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody wants to know any more"));
        }
        self.inner.read(buffer)
    }
}
