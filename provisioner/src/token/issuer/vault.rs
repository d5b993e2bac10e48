//! Secrets of clusters at rest: AES-256-GCM with a key that only the daemon's user can read.
//!
//! The key is a file beside the database, so that a copy of the database alone tells nothing.
//! What was sealed for one cluster opens for no other.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

const KEY_LEN: usize = 32;
/// First byte of what is stored: how it was made.
const VERSION: u8 = 1;

/// Seals and opens; knows where the key is, not the key.
#[derive(Debug)]
pub(super) struct Vault {
    key: PathBuf,
    /// Held by who looks whether there is a key, and makes it: there is never a second one.
    making: Mutex<()>,
}

impl Vault {
    pub(super) fn new(key: PathBuf) -> Self {
        Self {
            key,
            making: Mutex::default(),
        }
    }

    /// Where the key is, or would be.
    pub(super) fn place(&self) -> &Path {
        &self.key
    }

    /// Whether there is a key.
    pub(super) fn has_key(&self) -> anyhow::Result<bool> {
        let there = self.key.try_exists();
        there.with_context(|| format!("looking for {}", self.key.display()))
    }

    /// Encrypts a text for a cluster. When there is no key, one is made: whoever has sealed texts
    /// left must not let that happen.
    pub(super) fn seal(&self, cluster: &str, text: &str) -> anyhow::Result<Vec<u8>> {
        self.make_key()?;
        let mut bytes = text.as_bytes().to_vec();
        let key = self.key()?;
        let nonce = key
            .seal_in_place_append_tag(aad(cluster), &mut bytes)
            .map_err(|_| anyhow::anyhow!("encryption failed"))?;
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut bytes);
        Ok(sealed)
    }

    /// Decrypts what was sealed for a cluster.
    pub(super) fn open(&self, cluster: &str, sealed: &[u8]) -> anyhow::Result<Zeroizing<String>> {
        let wrong = || {
            format!(
                "the stored secrets of cluster {cluster} do not open with {}: bring that key back, or import them again",
                self.key.display()
            )
        };
        let (head, body) = sealed
            .split_at_checked(1 + NONCE_LEN)
            .filter(|(head, _)| head[0] == VERSION)
            .with_context(wrong)?;
        let nonce =
            Nonce::try_assume_unique_for_key(&head[1..]).map_err(|_| anyhow::anyhow!(wrong()))?;
        let mut bytes = Zeroizing::new(body.to_vec());
        let key = self.key().with_context(wrong)?;
        let plain = key
            .open_in_place(nonce, aad(cluster), &mut bytes)
            .map_err(|_| anyhow::anyhow!(wrong()))?;
        Ok(Zeroizing::new(String::from_utf8(plain.to_vec())?))
    }

    fn make_key(&self) -> anyhow::Result<()> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_key()? {
            return Ok(());
        }
        let mut key = Zeroizing::new([0_u8; KEY_LEN]);
        getrandom::fill(&mut *key).map_err(|e| anyhow::anyhow!("random numbers: {e}"))?;
        crate::pki::write_file(&self.key, 0o600, &*key)
    }

    fn key(&self) -> anyhow::Result<RandomizedNonceKey> {
        let reading = || format!("reading the key of cluster secrets {}", self.key.display());
        let mode = self
            .key
            .metadata()
            .with_context(reading)?
            .permissions()
            .mode();
        ensure!(
            mode & 0o077 == 0,
            "{} can be read by others (mode {:04o}): chmod 600 it",
            self.key.display(),
            mode & 0o7777
        );
        let bytes = Zeroizing::new(std::fs::read(&self.key).with_context(reading)?);
        RandomizedNonceKey::new(&AES_256_GCM, &bytes)
            .map_err(|_| anyhow::anyhow!("{}: expected {KEY_LEN} bytes", self.key.display()))
    }
}

fn aad(cluster: &str) -> Aad<String> {
    Aad::from(format!("anneal cluster secrets\0{cluster}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_for_its_cluster_with_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(dir.path().join("key"));
        assert!(vault.open("a", &[VERSION; 64]).is_err(), "no key yet");
        let sealed = vault.seal("a", "s3cr3t").unwrap();
        assert_ne!(sealed, vault.seal("a", "s3cr3t").unwrap(), "a nonce each");
        assert!(!sealed.windows(6).any(|bytes| bytes == b"s3cr3t"));
        assert_eq!(vault.open("a", &sealed).unwrap().as_str(), "s3cr3t");
        assert!(vault.open("b", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(vault.open("a", &bent).is_err(), "byte {at}");
        }
        let key = dir.path().join("key");
        let mode = key.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
        let error = format!("{:#}", vault.open("a", &sealed).unwrap_err());
        assert!(
            error.contains("can be read by others (mode 0640)"),
            "{error}"
        );
        std::fs::remove_file(&key).unwrap();
        vault.seal("a", "other").unwrap();
        let error = vault.open("a", &sealed).unwrap_err().to_string();
        assert!(error.contains("import them again"), "{error}");
    }

    #[test]
    fn all_that_seal_first_at_once_use_one_key() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let vault = Vault::new(dir.path().join("key"));
            let sealed = std::thread::scope(|scope| {
                let vault = &vault;
                let seal = |_| scope.spawn(move || vault.seal("a", "s3cr3t").unwrap());
                let threads: Vec<_> = (0..4).map(seal).collect();
                let sealed = threads.into_iter().map(|thread| thread.join().unwrap());
                sealed.collect::<Vec<_>>()
            });
            for sealed in sealed {
                assert_eq!(vault.open("a", &sealed).unwrap().as_str(), "s3cr3t");
            }
        }
    }
}
