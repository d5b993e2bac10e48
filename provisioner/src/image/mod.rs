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
pub mod ingest;
mod keep;
mod key;
mod mirror;
pub mod proof;
mod record;
mod reread;
mod resign;

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use anneal_image::{Facts, ManifestError, PackError, PackOptions, PublicKey, pack};
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::store::{Store, StoreError};

use folder::{Folder, Sealed};
use ingest::guard::Guard;
pub use keep::Collected;
pub use key::Keyring;
pub use record::{Findings, ImageRecord, SealRequest, parse_reference};
pub use reread::Reread;
pub use resign::{KeyUse, Resigned};

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
    /// The name stands for the same disk, sealed with other facts.
    #[error(
        "image {0} exists with the same disk but other facts (os, proof or mutable partitions): images do not change, choose another version or remove it first"
    )]
    ExistsOtherwise(String),
    /// Somebody needs it.
    #[error("image {reference} is in use by {by}")]
    InUse {
        /// `name@version`.
        reference: String,
        /// The machine or run, and what to do.
        by: String,
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
    /// A partition that may change is not there.
    #[error("{0}")]
    Partition(String),
    /// A mirror is not one.
    #[error("{0}")]
    Mirror(String),
    /// The keys that sign could not be changed.
    #[error("{0}")]
    Key(String),
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
    keys: RwLock<Keyring>,
    /// Held while folders and rows change together, so that a removal cannot take the folder
    /// that an addition has just found to exist.
    changing: Arc<Mutex<()>>,
    /// Where mirrors may be.
    guard: Guard,
}

impl Catalog {
    /// Opens the catalog in `dir` and removes what a crash left there.
    ///
    /// # Errors
    /// When the folder or the database cannot be used.
    pub async fn open(store: Store, dir: PathBuf, keys: Keyring) -> anyhow::Result<Self> {
        let folder = Folder::open(dir)?;
        folder.sweep_unfinished()?;
        let catalog = Self {
            store,
            folder,
            keys: RwLock::new(keys),
            changing: Arc::default(),
            guard: Guard { allow_local: false },
        };
        catalog.sweep_orphans().await?;
        let keys = catalog.public_keys();
        for image in catalog.list().await? {
            if !catalog.folder.holds(&image.id, &keys) {
                tracing::warn!(
                    image = image.reference(),
                    "image has no data or is not signed by a key of this daemon: remove it and add it again"
                );
            }
        }
        Ok(catalog)
    }

    /// The same with other rules for where mirrors may be.
    #[must_use]
    pub fn guarded_by(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// The keys that agents verify manifests with: the one that signs now, then those before it
    /// that are still valid.
    #[must_use]
    pub fn public_keys(&self) -> Vec<PublicKey> {
        self.keyring().public()
    }

    fn keyring(&self) -> Keyring {
        let keys = self.keys.read();
        keys.unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    fn replace_keyring(&self, keys: Keyring) {
        *self
            .keys
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
    }

    /// A folder for whoever prepares an image: in the store, so that moving is cheap and space is
    /// accounted for there. Dropping it removes it; after a crash the next start does.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self) -> Result<TempDir, ImageError> {
        self.folder.scratch()
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

    /// The key that signs now: manifests, and statements about machines.
    #[must_use]
    pub fn signing_key(&self) -> anneal_image::SigningKey {
        self.keyring().signing().clone()
    }

    /// Every name, sorted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Ok(self.store.images().await?)
    }

    /// Seals the raw disk that comes out of `reader` and gives it a name. `finish` is called once
    /// the reader has come to its end, and before anything becomes visible: it says what is known
    /// only then, or refuses. `progress` is told how many raw bytes are packed. Adding the same
    /// content with the same facts under the same name again changes nothing.
    ///
    /// Until this returns, nothing is in the catalog; when it fails or is dropped, nothing stays
    /// on disk (at the latest after the next start).
    ///
    /// # Errors
    /// When the source is not acceptable, `finish` refuses, the name is taken, or disk or
    /// database fail.
    pub async fn seal<E>(
        &self,
        request: SealRequest,
        mut reader: impl Read + Send + 'static,
        finish: impl FnOnce() -> Result<Findings, E> + Send + 'static,
        mut progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<ImageRecord, ImageError>
    where
        ImageError: From<E>,
    {
        request.check()?;
        let folder = self.folder.clone();
        let (sealed, request) = blocking(move || {
            let mut draft = folder.draft()?;
            let options = PackOptions {
                size: request.size,
                ..PackOptions::default()
            };
            let packed = pack(&mut reader, draft.data(), &options, &mut progress)?;
            if let Some(needed) = packed.table_end().filter(|&end| end > packed.size()) {
                let found = packed.size();
                return Err(ImageError::CutShort { found, needed });
            }
            let facts = facts(&request, finish()?)?;
            let manifest = packed.into_manifest(facts)?;
            Ok((draft.finish(manifest)?, request))
        })
        .await?;
        self.publish(sealed, request).await
    }

    /// Makes a sealed image visible under its name.
    async fn publish(
        &self,
        sealed: Sealed,
        request: SealRequest,
    ) -> Result<ImageRecord, ImageError> {
        let mut image = ImageRecord::new(sealed.manifest(), &request.name, &request.version);
        image.mirrors = mirror::check_all(&request.mirrors, sealed.manifest(), self.guard).await?;
        let _changing = self.changing.clone().lock_owned().await;
        let holder = self.store.image(&image.name, &image.version).await?;
        if let Some(holder) = holder.filter(|holder| holder.id != image.id) {
            return Err(match holder.sha256 == image.sha256 {
                true => ImageError::ExistsOtherwise(image.reference()),
                false => ImageError::Exists(image.reference()),
            });
        }
        // The keys of now, not those of when sealing began: they may have been changed since.
        let keys = self.keyring();
        blocking(move || sealed.publish(&keys)).await?;
        if let Err(error) = self.store.add_image(&image).await {
            self.sweep_orphans().await?;
            return Err(error);
        }
        tracing::info!(image = image.reference(), id = image.id, "image added");
        // What was there before stays: an earlier pin, earlier mirrors.
        let stored = self.store.image(&image.name, &image.version).await?;
        stored.ok_or_else(|| ImageError::NotFound(image.reference()))
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

fn facts(request: &SealRequest, findings: Findings) -> Result<Facts, ImageError> {
    let os = request.os.clone().or(findings.os).ok_or_else(|| {
        ImageError::Invalid(
            "the disk does not say what operating system it has: give it with --os".to_owned(),
        )
    })?;
    Ok(Facts {
        os,
        os_version: request.os_version.clone().or(findings.os_version),
        mutable: request.mutable.clone(),
        proof: findings.proof,
    })
}

impl From<ManifestError> for ImageError {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Mutable(text) => Self::Partition(text),
            error => Self::Invalid(error.to_string()),
        }
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

#[cfg(test)]
mod care_tests;
#[cfg(test)]
mod tests;
