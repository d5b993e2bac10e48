//! Keys that the daemon's operator trusts (`images.trusted_keys`). When there are any, no other
//! key counts, whoever gives it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{cosign, limit, minisign, openpgp};

/// Trusted keys of all kinds.
#[derive(Debug, Default)]
pub struct Trusted {
    openpgp: Option<openpgp::Keyring>,
    minisign: Vec<String>,
    cosign: Vec<String>,
}

impl Trusted {
    /// Reads the files; none when there are no files.
    ///
    /// # Errors
    /// When one cannot be read or holds no key.
    pub fn load(files: &[PathBuf]) -> anyhow::Result<Option<Self>> {
        let mut trusted = Self::default();
        for file in files {
            let doing = || {
                format!(
                    "reading the trusted key {} (images.trusted_keys)",
                    file.display()
                )
            };
            trusted
                .add(&read(file).with_context(doing)?)
                .with_context(doing)?;
        }
        Ok((!files.is_empty()).then_some(trusted))
    }

    /// What a file is, its content tells.
    fn add(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        if text.contains("-----BEGIN PUBLIC KEY-----") {
            let key = cosign::Key::parse(text).map_err(anyhow::Error::msg)?;
            self.cosign.push(key.fingerprint);
        } else if let Ok(key) = minisign::Key::parse(text) {
            self.minisign.push(key.text);
        } else {
            let keys = openpgp::Keyring::parse(bytes).map_err(|error| {
                anyhow::anyhow!("neither a cosign nor a minisign key, and {error}")
            })?;
            match &mut self.openpgp {
                Some(known) => known.extend(keys),
                none => *none = Some(keys),
            }
        }
        Ok(())
    }

    /// The trusted certificates; with none, no OpenPGP key counts.
    #[must_use]
    pub fn openpgp(&self) -> Option<&openpgp::Keyring> {
        self.openpgp.as_ref()
    }

    /// Refuses a minisign key that is not trusted.
    ///
    /// # Errors
    /// Which key that is.
    pub fn minisign(&self, key: &minisign::Key) -> Result<(), String> {
        trusts("minisign", &self.minisign, &key.text)
    }

    /// Refuses a cosign key that is not trusted.
    ///
    /// # Errors
    /// Which key that is.
    pub fn cosign(&self, key: &cosign::Key) -> Result<(), String> {
        trusts("cosign", &self.cosign, &key.fingerprint)
    }
}

fn trusts(kind: &str, known: &[String], key: &String) -> Result<(), String> {
    match known.contains(key) {
        true => Ok(()),
        false => Err(untrusted(kind, key)),
    }
}

/// How a key is refused that is not among the trusted ones.
pub fn untrusted(kind: &str, key: &str) -> String {
    format!(
        "the {kind} key {key} is not among the trusted keys of this daemon (images.trusted_keys)"
    )
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(limit::KEYS as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit::KEYS {
        bail!("it has more than {} bytes", limit::KEYS);
    }
    Ok(bytes)
}
