//! Changing the key that signs, and signing again what the key before has signed.

use anneal_image::{PublicKey, SignedManifest};

use super::{Catalog, ImageError, blocking};

/// A valid key and what it signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub key: PublicKey,
    /// Whether it signs from now on.
    pub signs: bool,
    /// Names of the images that it has signed.
    pub images: Vec<String>,
}

/// What signing again did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resigned {
    /// Names of the images that the signing key has signed now.
    pub images: Vec<String>,
    /// Names of the images that stay as they are, with the reason.
    pub kept: Vec<(String, String)>,
    /// Keys that nothing needs any more.
    pub retired: Vec<PublicKey>,
}

impl Catalog {
    /// The valid keys, the signing one first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keys(&self) -> Result<Vec<KeyUse>, ImageError> {
        let images = self.list().await?;
        let (folder, keys) = (self.folder.clone(), self.public_keys());
        blocking(move || {
            let mut uses: Vec<KeyUse> = keys
                .iter()
                .enumerate()
                .map(|(index, key)| KeyUse {
                    key: *key,
                    signs: index == 0,
                    images: Vec::new(),
                })
                .collect();
            for image in images {
                let signer = folder.signer(&image.id, &keys);
                if let Some(used) = uses.iter_mut().find(|used| Some(used.key) == signer) {
                    used.images.push(image.reference());
                }
            }
            Ok(uses)
        })
        .await
    }

    /// A new key signs from now on. The key before stays valid until nothing is signed by it any
    /// more and [`Catalog::resign`] retires it.
    ///
    /// # Errors
    /// When the files of the keys cannot be written; nothing has changed then.
    pub async fn rotate_key(&self) -> Result<PublicKey, ImageError> {
        let _changing = self.changing.clone().lock_owned().await;
        let mut keys = self.keyring();
        let keys = blocking(move || {
            keys.rotate()
                .map_err(|error| ImageError::Key(format!("{error:#}")))?;
            Ok(keys)
        })
        .await?;
        let key = keys.signing().public();
        self.replace_keyring(keys);
        tracing::info!(key = key.id(), "a new key signs images");
        Ok(key)
    }

    /// Signs again every image that an earlier key signed, and forgets the keys that are not
    /// needed any more. Only what is in the database and has a valid signature is signed. An image
    /// that an active run installs is left: its agent may know the earlier keys only.
    ///
    /// # Errors
    /// When disk or database fail. What was signed until then stays signed.
    pub async fn resign(&self) -> Result<Resigned, ImageError> {
        let _changing = self.changing.clone().lock_owned().await;
        let images = self.list().await?;
        let busy = self.store.images_being_installed().await?;
        let (folder, mut keys) = (self.folder.clone(), self.keyring());
        let (keys, done) = blocking(move || {
            let mut done = Resigned::default();
            let valid = keys.public();
            let current = valid[0];
            for image in &images {
                let name = image.reference();
                match folder.signer(&image.id, &valid) {
                    None => done
                        .kept
                        .push((name, "it has no valid signature: add it again".to_owned())),
                    Some(key) if key == current => {}
                    Some(_) if busy.contains(&image.id) => done.kept.push((
                        name,
                        "an active run installs it: resign again afterwards".to_owned(),
                    )),
                    Some(_) => {
                        folder.resign(&image.id, &valid, keys.signing())?;
                        done.images.push(name);
                    }
                }
            }
            let used: Vec<_> = images
                .iter()
                .filter_map(|image| folder.signer(&image.id, &valid))
                .collect();
            done.retired = keys
                .retire(|key| used.contains(key))
                .map_err(|error| ImageError::Key(format!("{error:#}")))?;
            Ok((keys, done))
        })
        .await?;
        self.replace_keyring(keys);
        for key in &done.retired {
            tracing::info!(key = key.id(), "image key retired");
        }
        Ok(done)
    }
}

impl super::folder::Folder {
    /// Which of `keys` signed the image `id`; none when it is not here or none did.
    pub(super) fn signer(&self, id: &str, keys: &[PublicKey]) -> Option<PublicKey> {
        let json = std::fs::read(self.file(id, super::folder::MANIFEST)?).ok()?;
        let signed = SignedManifest::parse(&json).ok()?;
        signed.verify_any(keys).ok()?;
        if signed.manifest.id() != id {
            return None;
        }
        keys.iter().find(|key| key.id() == signed.key_id).copied()
    }
}
