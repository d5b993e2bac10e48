//! The key that signs manifests: made at the first start, kept in a file only we can read.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anneal_image::SigningKey;
use anyhow::{Context, ensure};

/// Reads the key from `path` (PKCS#8 PEM), or makes one there, with mode 0600.
///
/// # Errors
/// When the file cannot be used, is not a key, or others may read it.
pub fn signing_key(path: &Path) -> anyhow::Result<SigningKey> {
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
    let pem = std::fs::read_to_string(path).with_context(reading)?;
    SigningKey::from_pem(&pem).with_context(reading)
}

fn create(path: &Path) -> anyhow::Result<()> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("random numbers: {error}"))?;
    let pem = zeroize::Zeroizing::new(SigningKey::from_seed(&seed).to_pem()?);
    zeroize::Zeroize::zeroize(&mut seed);
    // Written aside and renamed, so that a crash leaves no half of a key.
    let aside = path.with_extension("new");
    if aside.exists() {
        std::fs::remove_file(&aside)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(pem.as_bytes())?;
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
        let first = signing_key(&path).unwrap();
        assert_eq!(signing_key(&path).unwrap().public(), first.public());
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = signing_key(&path).unwrap_err().to_string();
        assert!(
            error.contains("can be read by others (mode 0640)"),
            "{error}"
        );

        let other = dir.path().join("other.pem");
        assert_ne!(signing_key(&other).unwrap().public(), first.public());
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image-key.pem");
        signing_key(&path).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        let error = format!("{:#}", signing_key(&path).unwrap_err());
        assert!(error.contains("not an ed25519 private key"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
    }
}
