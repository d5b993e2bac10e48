//! The catalog: which sealed images there are, under which names.
//!
//! Owns: the folder `<state_dir>/images/<hex id>/{data.zst,manifest.json}`, the signing key, and
//! the rules for adding and removing.
//!
//! Invariants: a folder with an image's name is complete and on disk, because it gets that name
//! by a rename after everything in it was synced; an image in the database has its folder. What
//! a crash leaves behind (folders without a row, unfinished adds) is removed when the catalog
//! opens. Two names for the same content share one folder.
//!
//! Not here: the format itself (crate `image`), how images reach agents (`http`).

mod folder;
mod ingest;
mod key;
pub mod proof;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use anneal_image::{Manifest, PackError, PublicKey, SigningKey};
use anneal_protocol::time::Millis;
use tokio::sync::Mutex;

use crate::clock::now;
use crate::store::{Store, StoreError};

use folder::Folder;
pub use ingest::{BodyReader, BodySender, body};
pub use key::signing_key;

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
    /// Bytes of the raw disk.
    pub size: u64,
    /// Bytes of `data.zst`.
    pub stored: u64,
    /// SHA-256 of the raw disk, hex.
    pub sha256: String,
    /// When this name was added.
    pub added_at: Millis,
}

impl ImageRecord {
    /// `name@version`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// Why the catalog did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not `name@version`, or not an OS family.
    #[error("{0}")]
    Invalid(String),
    /// No such image.
    #[error(
        "image {0} is not in the catalog: add it with `anneal image add`, see `anneal image list`"
    )]
    NotFound(String),
    /// The database knows it, but its files are gone.
    #[error("image {reference} has no data in {}: remove it and add it again", .folder.display())]
    FilesMissing {
        /// `name@version`.
        reference: String,
        /// Where they should be.
        folder: PathBuf,
    },
    /// The name stands for other content already.
    #[error(
        "image {0} exists with other content: images do not change, choose another version or remove it first"
    )]
    Exists(String),
    /// Somebody needs it.
    #[error("image {reference} is in use by {by}")]
    InUse {
        /// `name@version`.
        reference: String,
        /// The machine or run, and what to do.
        by: String,
    },
    /// A format that is not read here.
    #[error("the source is {format}, supported are raw disks and zstd-compressed ones: {convert}")]
    Unsupported {
        /// What it is.
        format: &'static str,
        /// A command that makes it acceptable.
        convert: &'static str,
    },
    /// The partition table speaks of more than what came.
    #[error(
        "the source has {found} bytes, but its partition table needs {needed}: it was cut short"
    )]
    CutShort {
        /// Bytes of the raw disk.
        found: u64,
        /// Bytes that the table covers.
        needed: u64,
    },
    /// The source could not be packed.
    #[error("the image was not added")]
    Pack(#[from] PackError),
    /// The folder of images failed.
    #[error("{operation} {}", .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The catalog of images.
#[derive(Debug)]
pub struct Catalog {
    store: Store,
    folder: Folder,
    key: SigningKey,
    /// Held while folders and rows change together, so that a removal cannot take the folder
    /// that an addition has just found to exist.
    changing: Arc<Mutex<()>>,
}

impl Catalog {
    /// Opens the catalog in `dir` and removes what a crash left there.
    ///
    /// # Errors
    /// When the folder or the database cannot be used.
    pub async fn open(store: Store, dir: PathBuf, key: SigningKey) -> anyhow::Result<Self> {
        let folder = Folder::open(dir)?;
        folder.sweep_unfinished()?;
        let catalog = Self {
            store,
            folder,
            key,
            changing: Arc::default(),
        };
        catalog.sweep_orphans().await?;
        let public = catalog.key.public();
        for image in catalog.list().await? {
            if !catalog.folder.holds(&image.id, &public) {
                tracing::warn!(
                    image = image.reference(),
                    "image has no data or is not signed by this daemon's key: remove it and add it again"
                );
            }
        }
        Ok(catalog)
    }

    /// The key that agents verify manifests with.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// The same in hex, as it travels to agents.
    #[must_use]
    pub fn public_key_hex(&self) -> String {
        self.key.public().to_hex()
    }

    /// The signed manifest of an image, if there is one of that id.
    #[must_use]
    pub fn manifest_path(&self, id: &str) -> Option<PathBuf> {
        self.folder.file(id, folder::MANIFEST)
    }

    /// The data of an image, if there is one of that id.
    #[must_use]
    pub fn data_path(&self, id: &str) -> Option<PathBuf> {
        self.folder.file(id, folder::DATA)
    }

    /// Looks up `name@version`.
    ///
    /// # Errors
    /// When it is not of that form, unknown, or without data.
    pub async fn resolve(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        let (name, version) = parse_reference(reference)?;
        let image = self
            .store
            .image(name, version)
            .await?
            .ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
        if self.data_path(&image.id).is_none() || self.manifest_path(&image.id).is_none() {
            return Err(ImageError::FilesMissing {
                reference: reference.to_owned(),
                folder: self.folder.path(&image.id),
            });
        }
        Ok(image)
    }

    /// Every name, sorted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Ok(self.store.images().await?)
    }

    /// Seals what comes out of `reader` (a raw disk, or one compressed with zstd) and gives it a
    /// name. Adding the same content under the same name again changes nothing. `progress` is
    /// told how many raw bytes are packed. Until this returns, nothing is in the catalog; when it
    /// fails or is dropped, nothing stays on disk (at the latest after the next start).
    ///
    /// # Errors
    /// When the source is not acceptable, the name is taken, or disk or database fail.
    pub async fn add(
        &self,
        name: &str,
        version: &str,
        os: &str,
        reader: impl Read + Send + 'static,
        mut progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<ImageRecord, ImageError> {
        let reference = format!("{name}@{version}");
        parse_reference(&reference)?;
        check_os(os)?;
        let (folder, key, os) = (self.folder.clone(), self.key.clone(), os.to_owned());
        let draft = blocking(move || {
            let mut draft = folder.draft()?;
            let manifest = ingest::seal(reader, &os, &mut draft, &mut progress)?;
            draft.finish(manifest, &key)
        })
        .await?;

        let image = record(draft.manifest(), name, version);
        let _changing = self.changing.clone().lock_owned().await;
        let holder = self.store.image(name, version).await?;
        if holder.is_some_and(|holder| holder.id != image.id) {
            return Err(ImageError::Exists(reference));
        }
        let public = self.key.public();
        blocking(move || draft.publish(&public)).await?;
        if let Err(error) = self.store.add_image(&image).await {
            self.sweep_orphans().await?;
            return Err(error);
        }
        tracing::info!(image = reference, id = image.id, "image added");
        Ok(image)
    }

    /// Takes a name away, and the data with the last name.
    ///
    /// # Errors
    /// When a machine or an active run needs it, or it is unknown.
    pub async fn remove(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        let (name, version) = parse_reference(reference)?;
        let _changing = self.changing.clone().lock_owned().await;
        let image = self.store.remove_image(name, version).await?;
        // The row is gone; should this process die here, the next one removes the folder.
        self.sweep_orphans().await?;
        tracing::info!(image = reference, id = image.id, "image removed");
        Ok(image)
    }

    /// Removes folders of images that the database does not know. Not while something is added:
    /// the caller holds `changing`, or has the catalog to itself.
    async fn sweep_orphans(&self) -> Result<(), ImageError> {
        let known = self.store.image_ids().await?;
        let folder = self.folder.clone();
        blocking(move || folder.sweep_orphans(&known)).await
    }
}

fn record(manifest: &Manifest, name: &str, version: &str) -> ImageRecord {
    ImageRecord {
        id: manifest.id(),
        name: name.to_owned(),
        version: version.to_owned(),
        os: manifest.os().to_owned(),
        size: manifest.size(),
        stored: manifest.data_size(),
        sha256: manifest.sha256(),
        added_at: now(),
    }
}

/// Runs work that blocks on files off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(ImageError::Invalid(format!("stopped: {error}"))),
        },
    }
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
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if os.is_empty() || os.len() > 32 || !os.bytes().all(word) {
        return Err(ImageError::Invalid(format!(
            "os {os:?} is not the name of a family such as debian: 1 to 32 lower-case letters, digits and hyphens"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
