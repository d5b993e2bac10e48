//! The images' folder: drafts that are being written, and finished images under their digest.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anneal_image::{Manifest, PublicKey, SignedManifest, SigningKey};
use tempfile::TempDir;

use super::{ImageError, Keyring};

/// File with the frames.
pub const DATA: &str = "data.zst";
/// File with the signed manifest.
pub const MANIFEST: &str = "manifest.json";
/// Beginning of the names of folders that are not images yet, or no longer.
const DRAFT: &str = ".draft-";

/// Adds operation and path to an error.
pub fn failed<'p>(
    operation: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> ImageError + 'p {
    move |source| ImageError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// The folder that images lie in.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens or creates it.
    pub fn open(path: PathBuf) -> Result<Self, ImageError> {
        std::fs::create_dir_all(&path).map_err(failed("creating", &path))?;
        Ok(Self { path })
    }

    /// Where the image `id` lies, or would lie.
    pub fn path(&self, id: &str) -> PathBuf {
        self.path.join(id.strip_prefix("blake3:").unwrap_or(id))
    }

    /// A file of the image `id`; none when `id` is not an id or there is no such image.
    pub fn file(&self, id: &str, name: &str) -> Option<PathBuf> {
        let hex = id.strip_prefix("blake3:")?;
        // Also keeps `..` and `/` out.
        if !is_digest(hex) {
            return None;
        }
        Some(self.path.join(hex).join(name)).filter(|path| path.is_file())
    }

    /// Whether the image `id` is here and its manifest is signed by one of `keys`.
    pub fn holds(&self, id: &str, keys: &[PublicKey]) -> bool {
        let Some(manifest) = self.file(id, MANIFEST) else {
            return false;
        };
        let signed =
            std::fs::read(manifest).is_ok_and(|json| SignedManifest::open(&json, keys, id).is_ok());
        signed && self.file(id, DATA).is_some()
    }

    /// A folder that is not an image; dropping it removes it, or the next start does.
    pub fn scratch(&self) -> Result<TempDir, ImageError> {
        tempfile::Builder::new()
            .prefix(DRAFT)
            .tempdir_in(&self.path)
            .map_err(failed("creating a folder in", &self.path))
    }

    /// Begins a new image.
    pub fn draft(&self) -> Result<Draft, ImageError> {
        let dir = self.scratch()?;
        let path = dir.path().join(DATA);
        let file = File::create(&path).map_err(failed("creating", &path))?;
        Ok(Draft {
            dir,
            data: BufWriter::with_capacity(1 << 20, file),
            folder: self.clone(),
        })
    }

    /// Removes drafts that no process works on any more.
    pub fn sweep_unfinished(&self) -> Result<(), ImageError> {
        for name in self.names()? {
            if name.starts_with(DRAFT) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes images whose id is not in `known`.
    pub fn sweep_orphans(&self, known: &HashSet<String>) -> Result<(), ImageError> {
        for name in self.names()? {
            if is_digest(&name) && !known.contains(&format!("blake3:{name}")) {
                tracing::info!(folder = name, "removing an image that has no name");
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Signs the manifest of the image `id` again, if one of `trusted` has signed it. A crash
    /// leaves the old signature or the new one.
    pub fn resign(
        &self,
        id: &str,
        trusted: &[PublicKey],
        key: &SigningKey,
    ) -> Result<(), ImageError> {
        let path = self.path(id).join(MANIFEST);
        let json = std::fs::read(&path).map_err(failed("reading", &path))?;
        let manifest = SignedManifest::open(&json, trusted, id)?;
        let scratch = self.scratch()?;
        let aside = scratch.path().join(MANIFEST);
        write_synced(&aside, &SignedManifest::sign(manifest, key).to_json())?;
        std::fs::rename(&aside, &path).map_err(failed("renaming", &aside))?;
        sync_dir(&self.path(id))
    }

    fn names(&self) -> Result<Vec<String>, ImageError> {
        let reading = || failed("reading", &self.path);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(reading())? {
            // A name that is not UTF-8 is not ours.
            if let Ok(name) = entry.map_err(reading())?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Renames before it deletes, so that a half-deleted image never has an image's name.
    fn remove(&self, name: &str) -> Result<(), ImageError> {
        let mut path = self.path.join(name);
        if is_digest(name) {
            let aside = self.path.join(format!("{DRAFT}{name}"));
            std::fs::rename(&path, &aside).map_err(failed("renaming", &path))?;
            self.sync()?;
            path = aside;
        }
        std::fs::remove_dir_all(&path).map_err(failed("removing", &path))
    }

    fn sync(&self) -> Result<(), ImageError> {
        sync_dir(&self.path)
    }
}

/// An image that is being written; dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    dir: TempDir,
    data: BufWriter<File>,
    folder: Folder,
}

impl Draft {
    /// Where the frames go.
    pub fn data(&mut self) -> &mut impl Write {
        &mut self.data
    }

    /// Brings the data to disk.
    pub fn finish(self, manifest: Manifest) -> Result<Sealed, ImageError> {
        let Self { dir, data, folder } = self;
        let path = dir.path().join(DATA);
        data.into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .map_err(failed("writing", &path))?;
        Ok(Sealed {
            dir,
            manifest,
            folder,
        })
    }
}

/// An image that is complete but for its signature, and has no name in the folder yet; dropping it
/// removes it.
#[derive(Debug)]
pub struct Sealed {
    dir: TempDir,
    manifest: Manifest,
    folder: Folder,
}

impl Sealed {
    /// What was sealed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Signs it with the key that signs now, and gives it its name. When the folder holds the same
    /// image already, that one stays.
    pub fn publish(self, keys: &Keyring) -> Result<(), ImageError> {
        let id = self.manifest.id();
        if self.folder.holds(&id, &keys.public()) {
            return Ok(());
        }
        let path = self.dir.path().join(MANIFEST);
        let signed = SignedManifest::sign(self.manifest, keys.signing());
        write_synced(&path, &signed.to_json())?;
        sync_dir(self.dir.path())?;
        let target = self.folder.path(&id);
        if target.exists() {
            // Signed by a key that is lost, or damaged by hand.
            let name = id.trim_start_matches("blake3:");
            self.folder.remove(name)?;
        }
        std::fs::rename(self.dir.path(), &target).map_err(failed("renaming", self.dir.path()))?;
        // The folder is the image now: nothing is left to remove.
        let _ = self.dir.keep();
        self.folder.sync()
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    File::create(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(failed("writing", path))
}

fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("syncing", path))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}
