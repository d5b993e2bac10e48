//! What a publisher proved about an image, as it is kept in the manifest.
//!
//! Invariant: a [`Proof`] that passed [`Proof::check`] is short and has no control characters, so
//! it can be shown on a terminal as it is.
//!
//! Not here: checking evidence; that is the daemon's, once, when an image is added.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest text of a [`Proof`], in bytes.
pub const MAX_PROOF_TEXT: usize = 1024;

/// How a publisher vouched for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofMethod {
    /// A SHA-256 that the operator gave; who published it is the operator's word.
    Sha256,
    /// A SHA-512 that the operator gave; who published it is the operator's word.
    Sha512,
    /// An OpenPGP signature (RFC 9580) over the file or over its list of digests.
    Openpgp,
    /// A minisign signature over the file or over its list of digests.
    Minisign,
    /// A cosign signature with a public key, over the file or over its OCI manifest.
    Cosign,
    /// A target of a TUF repository.
    Tuf,
}

impl ProofMethod {
    /// The word that stands for it everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Openpgp => "openpgp",
            Self::Minisign => "minisign",
            Self::Cosign => "cosign",
            Self::Tuf => "tuf",
        }
    }

    /// Whether a key of the publisher signed: a bare digest proves only that these are the bytes
    /// the operator meant.
    #[must_use]
    pub fn is_signed(self) -> bool {
        !matches!(self, Self::Sha256 | Self::Sha512)
    }
}

impl fmt::Display for ProofMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was proved when an image was added. An image without one is unproven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// How.
    pub method: ProofMethod,
    /// Whose key: fingerprint of the OpenPGP certificate, the minisign public key, `sha256:` and
    /// the hex digest of a cosign key, `sha256:` and that of the TUF root the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Where the evidence came from: URL or file name, as the operator gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What else is worth knowing: when it was signed, a trusted comment, further proofs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Proof {
    /// Checks that every text is short and can be shown.
    ///
    /// # Errors
    /// The field that is not, and why.
    pub fn check(&self) -> Result<(), String> {
        let texts = [
            ("signer", &self.signer),
            ("source", &self.source),
            ("detail", &self.detail),
        ];
        for (name, text) in texts {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > MAX_PROOF_TEXT {
                return Err(format!(
                    "{name} of the proof has {} bytes, allowed are 1 to {MAX_PROOF_TEXT}",
                    text.len()
                ));
            }
            if text.chars().any(char::is_control) {
                return Err(format!("{name} of the proof has control characters"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_short_and_printable() {
        let mut proof = Proof {
            method: ProofMethod::Openpgp,
            signer: Some("F88CFEDE".to_owned()),
            source: None,
            detail: None,
        };
        assert_eq!(proof.check(), Ok(()));
        let json = serde_json::to_string(&proof).unwrap();
        assert_eq!(json, r#"{"method":"openpgp","signer":"F88CFEDE"}"#);
        assert_eq!(serde_json::from_str::<Proof>(&json).unwrap(), proof);
        for bad in [String::new(), "a\u{1b}[2J".to_owned(), "a".repeat(1025)] {
            proof.detail = Some(bad);
            assert!(
                proof
                    .check()
                    .unwrap_err()
                    .starts_with("detail of the proof")
            );
        }
    }
}
