//! The keys that sign manifests: one signs, those before it may still be trusted.
//!
//! Owns: `image-key.pem`, made at the first start, readable only by us, and beside it
//! `image-key.old`: the public halves of the keys that signed before, one a line, newest first.
//! A key stays in that list as long as an image is signed by it; its private half is gone with
//! the rotation.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anneal_image::{PublicKey, SigningKey};
use anyhow::{Context, ensure};

/// The key that signs, and those that signed before and are still valid.
#[derive(Debug, Clone)]
pub struct Keyring {
    path: PathBuf,
    signing: SigningKey,
    old: Vec<PublicKey>,
}

impl Keyring {
    /// Reads the signing key from `path` (PKCS#8 PEM), or makes one there, with mode 0600.
    ///
    /// # Errors
    /// When a file cannot be used, is not a key, or others may read the signing key.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let signing = signing_key(path)?;
        let mut old = read_old(&old_path(path))?;
        // Left by a crash in the middle of a rotation.
        old.retain(|key| *key != signing.public());
        Ok(Self {
            path: path.to_owned(),
            signing,
            old,
        })
    }

    /// The key that signs now.
    #[must_use]
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// Public halves of all valid keys, the signing one first.
    #[must_use]
    pub fn public(&self) -> Vec<PublicKey> {
        let mut keys = vec![self.signing.public()];
        keys.extend_from_slice(&self.old);
        keys
    }

    /// Makes a new signing key and brings it to disk; the one before stays valid.
    ///
    /// # Errors
    /// When a file cannot be written; the keys are then as before.
    pub fn rotate(&mut self) -> anyhow::Result<()> {
        let before = self.signing.public();
        let mut old = vec![before];
        old.extend(self.old.iter().filter(|key| **key != before));
        // The old key first: a crash in between leaves one key in both places, never in none.
        write_old(&old_path(&self.path), &old)?;
        create(&self.path)
            .with_context(|| format!("replacing the image signing key {}", self.path.display()))?;
        self.signing = signing_key(&self.path)?;
        self.old = old;
        Ok(())
    }

    /// Forgets the old keys for which `used` is false; returns those.
    ///
    /// # Errors
    /// When the file cannot be written; the keys are then as before.
    pub fn retire(&mut self, used: impl Fn(&PublicKey) -> bool) -> anyhow::Result<Vec<PublicKey>> {
        let (kept, retired): (Vec<_>, Vec<_>) = self.old.iter().partition(|key| used(key));
        if !retired.is_empty() {
            write_old(&old_path(&self.path), &kept)?;
            self.old = kept;
        }
        Ok(retired)
    }
}

fn old_path(path: &Path) -> PathBuf {
    path.with_extension("old")
}

fn read_old(path: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("reading old image keys {}", path.display()));
        }
    };
    text.lines()
        .map(PublicKey::from_hex)
        .collect::<Result<_, _>>()
        .with_context(|| {
            format!(
                "old image keys {} cannot be read: remove it, images that they signed must then be added again",
                path.display()
            )
        })
}

fn write_old(path: &Path, keys: &[PublicKey]) -> anyhow::Result<()> {
    let text: String = keys.iter().map(|key| key.to_hex() + "\n").collect();
    replace(path, text.as_bytes(), 0o644)
        .with_context(|| format!("writing old image keys {}", path.display()))
}

fn signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let reading = || format!("reading the image signing key {}", path.display());
    if !path.try_exists().with_context(reading)? {
        create(path)
            .with_context(|| format!("creating the image signing key {}", path.display()))?;
    }
    let mode = path.metadata().with_context(reading)?.permissions().mode();
    ensure!(
        mode & 0o077 == 0,
        "image signing key {} can be read by others (mode {:04o}): chmod 600 it, or remove it and add all images again",
        path.display(),
        mode & 0o7777
    );
    let pem = zeroize::Zeroizing::new(std::fs::read_to_string(path).with_context(reading)?);
    SigningKey::from_pem(&pem).with_context(reading)
}

fn create(path: &Path) -> anyhow::Result<()> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("random numbers: {error}"))?;
    let pem = zeroize::Zeroizing::new(SigningKey::from_seed(&seed).to_pem()?);
    zeroize::Zeroize::zeroize(&mut seed);
    replace(path, pem.as_bytes(), 0o600)?;
    Ok(())
}

/// Written aside and renamed, so that a crash leaves no half of a file.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    if let Some(parent) = path.parent() {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image-key.pem");
        let first = Keyring::open(&path).unwrap();
        assert_eq!(Keyring::open(&path).unwrap().public(), first.public());
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = Keyring::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("can be read by others (mode 0640)"),
            "{error}"
        );

        let other = dir.path().join("other.pem");
        assert_ne!(Keyring::open(&other).unwrap().public(), first.public());
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image-key.pem");
        Keyring::open(&path).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        let error = format!("{:#}", Keyring::open(&path).unwrap_err());
        assert!(error.contains("not an ed25519 private key"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
    }

    #[test]
    fn rotation_keeps_the_old_key_until_it_is_retired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image-key.pem");
        let mut ring = Keyring::open(&path).unwrap();
        let first = ring.signing().public();
        ring.rotate().unwrap();
        ring.rotate().unwrap();
        let keys = ring.public();
        assert_eq!((keys.len(), keys[2]), (3, first));
        assert_eq!(keys[0], ring.signing().public());
        assert_eq!(Keyring::open(&path).unwrap().public(), keys);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        assert_eq!(ring.retire(|key| *key == first).unwrap(), [keys[1]]);
        assert_eq!(Keyring::open(&path).unwrap().public(), [keys[0], first]);
        assert_eq!(ring.retire(|_| false).unwrap(), [first]);
        assert_eq!(Keyring::open(&path).unwrap().public(), [keys[0]]);
    }

    #[test]
    fn a_crash_between_the_two_files_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image-key.pem");
        let before = Keyring::open(&path).unwrap().public();
        write_old(&old_path(&path), &before).unwrap();
        let mut ring = Keyring::open(&path).unwrap();
        assert_eq!(ring.public(), before);
        ring.rotate().unwrap();
        assert_eq!(ring.public()[1..], before);
    }
}
