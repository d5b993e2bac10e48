//! Minisign signatures (its manual, "Signature format"), both kinds: over the BLAKE2b-512 of the
//! file, and the older ones over the file itself, which Ed25519 verifies as it streams.
//!
//! Invariant: the trusted comment is shown only after its own signature was verified.

use std::fmt;

use base64::Engine as _;
use blake2::{Blake2b512, Digest as _};
use ed25519_dalek::{Signature, StreamVerifier, VerifyingKey};

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    id: [u8; 8],
    key: VerifyingKey,
    /// The key as `minisign -P` takes it: the id and the whole key.
    pub text: String,
}

impl Key {
    /// Reads the file, or its second line.
    ///
    /// # Errors
    /// When it is not a minisign key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines.find(|line| !line.starts_with("untrusted comment:"));
        let bytes = line.and_then(decode::<42>);
        let Some(bytes) = bytes.filter(|bytes| bytes.starts_with(b"Ed")) else {
            return Err(
                "the minisign key cannot be read: expected the .pub file, or its second line"
                    .to_owned(),
            );
        };
        let key = bytes[10..]
            .try_into()
            .ok()
            .and_then(|b| VerifyingKey::from_bytes(b).ok());
        let Some(key) = key.filter(|key| !key.is_weak()) else {
            return Err("the minisign key is not a point that can sign".to_owned());
        };
        Ok(Self {
            id: part(&bytes[2..]),
            key,
            text: base64::engine::general_purpose::STANDARD.encode(bytes),
        })
    }
}

/// A signature over bytes that are still to come.
pub struct Verifier {
    key: Key,
    signature: Signature,
    over: Over,
    comment: String,
}

enum Over {
    Digest(Box<Blake2b512>),
    File(Box<StreamVerifier>),
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("key", &self.key.text)
            .finish_non_exhaustive()
    }
}

/// Who signed, and what they said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The public key, as `minisign -P` takes it.
    pub key: String,
    /// The trusted comment, printable.
    pub comment: String,
}

impl Verifier {
    /// Reads a `.minisig` file, and checks whose it is and its trusted comment.
    ///
    /// # Errors
    /// When it is not one, by another key, or its comment was changed.
    pub fn new(signature: &str, key: Key) -> Result<Self, String> {
        let unreadable = || {
            "the minisign signature cannot be read: expected four lines, as in a .minisig file"
                .to_owned()
        };
        let mut lines = signature.lines();
        let first = lines.next().unwrap_or_default();
        if !first.starts_with("untrusted comment:") {
            return Err(unreadable());
        }
        let bytes = lines.next().and_then(decode::<74>).ok_or_else(unreadable)?;
        let comment = lines
            .next()
            .and_then(|line| line.strip_prefix("trusted comment: "));
        let comment = comment.ok_or_else(unreadable)?;
        let global = lines.next().and_then(decode::<64>).ok_or_else(unreadable)?;
        if part::<8>(&bytes[2..]) != key.id {
            return Err(format!(
                "the minisign signature was made by the key {}, expected {}",
                id(part(&bytes[2..])),
                id(key.id)
            ));
        }
        let signature = Signature::from_bytes(&part(&bytes[10..]));
        let mut vouched = bytes[10..].to_vec();
        vouched.extend_from_slice(comment.as_bytes());
        let global = Signature::from_bytes(&global);
        key.key.verify_strict(&vouched, &global).map_err(|_| {
            "the trusted comment of the minisign signature is not the signer's".to_owned()
        })?;
        let over = match &bytes[..2] {
            b"ED" => Over::Digest(Box::default()),
            b"Ed" => Over::File(Box::new(
                key.key
                    .verify_stream(&signature)
                    .map_err(|_| unreadable())?,
            )),
            _ => return Err("the minisign signature is of an unknown algorithm".to_owned()),
        };
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Ok(Self {
            key,
            signature,
            over,
            comment: comment.chars().map(clean).take(200).collect(),
        })
    }

    /// The next signed bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.over {
            Over::Digest(hasher) => hasher.update(bytes),
            Over::File(verifier) => verifier.update(bytes),
        }
    }

    /// All bytes were given.
    ///
    /// # Errors
    /// When the signature is wrong.
    pub fn finish(self) -> Result<Signer, String> {
        let verified = match self.over {
            Over::Digest(hasher) => self
                .key
                .key
                .verify_strict(&hasher.finalize(), &self.signature),
            Over::File(verifier) => verifier.finalize_and_verify(),
        };
        match verified {
            Ok(()) => Ok(Signer {
                key: self.key.text,
                comment: self.comment,
            }),
            Err(_) => Err(format!(
                "the minisign signature by the key {} does not belong to these bytes",
                id(self.key.id)
            )),
        }
    }
}

/// A key's id as minisign prints it.
fn id(id: [u8; 8]) -> String {
    format!("{:016X}", u64::from_le_bytes(id))
}

fn decode<const N: usize>(line: &str) -> Option<[u8; N]> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(line.trim());
    bytes.ok()?.try_into().ok()
}

/// The first bytes of a slice that is long enough.
fn part<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[..N]);
    part
}

#[cfg(test)]
#[path = "minisign_tests.rs"]
mod tests;
