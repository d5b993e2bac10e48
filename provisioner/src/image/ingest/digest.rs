//! The digest that content must have because something that is trusted names it.

use sha2::{Digest, Sha256, Sha512};

use super::IngestError;

enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// A digest `sha256:…` or `sha512:…`, and what came so far.
pub struct ContentDigest {
    hash: Hash,
    expected: String,
}

impl ContentDigest {
    /// Reads an OCI digest.
    ///
    /// # Errors
    /// When it is not of an algorithm that is known, or malformed.
    pub fn parse(text: &str) -> Result<Self, IngestError> {
        let wrong = || {
            IngestError::Source(format!(
                "{text:?} is not a digest: expected sha256: or sha512: and lower-case hex"
            ))
        };
        let (kind, hex) = text.split_once(':').ok_or_else(wrong)?;
        let (hash, length) = match kind {
            "sha256" => (Hash::Sha256(Sha256::new()), 64),
            "sha512" => (Hash::Sha512(Sha512::new()), 128),
            _ => return Err(wrong()),
        };
        let lower = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if hex.len() != length || !hex.bytes().all(lower) {
            return Err(wrong());
        }
        Ok(Self {
            hash,
            expected: hex.to_owned(),
        })
    }

    /// More of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Compares.
    ///
    /// # Errors
    /// What it is and should be.
    pub fn check(self) -> Result<(), String> {
        let found = match self.hash {
            Hash::Sha256(hash) => hex::encode(hash.finalize()),
            Hash::Sha512(hash) => hex::encode(hash.finalize()),
        };
        match found == self.expected {
            true => Ok(()),
            false => Err(format!(
                "its digest is {found}, {} was expected",
                self.expected
            )),
        }
    }
}
