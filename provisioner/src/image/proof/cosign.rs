//! Cosign signatures with a public key, without a transparency log: ECDSA P-256 over the SHA-256
//! of a blob, or Ed25519 over the blob (or its SHA-512, Ed25519ph), in base64.
//!
//! Not here: bundles and keyless signatures; a certificate from Fulcio proves who logged in where,
//! which is no key that an operator could name.

use std::fmt;

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use ed25519_dalek::{Signature, StreamVerifier, VerifyingKey};
use sha2::{Digest as _, Sha256, Sha512};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A public key.
#[derive(Clone)]
pub struct Key {
    kind: Kind,
    /// `sha256:` and the hex digest of the key in DER.
    pub fingerprint: String,
}

#[derive(Clone)]
enum Kind {
    P256(ParsedPublicKey),
    Ed25519(VerifyingKey),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint)
    }
}

impl Key {
    /// Reads a PEM file as `cosign public-key` or `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// When it is not the public half of an ECDSA P-256 or Ed25519 key.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let expected = "expected a PEM file that begins with BEGIN PUBLIC KEY, of an ECDSA P-256 or Ed25519 key";
        if pem.contains("PRIVATE KEY-----") {
            return Err(
                "the cosign key is a private one: give the public key, and keep this one secret"
                    .to_owned(),
            );
        }
        let der = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .ok()
            .map(|(_, pem)| pem)
            .filter(|pem| pem.label == "PUBLIC KEY")
            .map(|pem| pem.contents)
            .ok_or_else(|| format!("the cosign key cannot be read: {expected}"))?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&der)
            .map_err(|_| format!("the cosign key cannot be read: {expected}"))?;
        let algorithm = info.algorithm.algorithm.to_id_string();
        let curve = info.algorithm.parameters.as_ref();
        let curve = curve
            .and_then(|any| any.as_oid().ok())
            .map(|oid| oid.to_id_string());
        let point: &[u8] = &info.subject_public_key.data;
        let kind = match (algorithm.as_str(), curve.as_deref()) {
            // RFC 5480, section 2.1.1; RFC 8410, section 3.
            ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => {
                ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
                    .ok()
                    .map(Kind::P256)
            }
            ("1.3.101.112", _) => {
                let key = point
                    .try_into()
                    .ok()
                    .and_then(|b| VerifyingKey::from_bytes(b).ok());
                key.filter(|key| !key.is_weak()).map(Kind::Ed25519)
            }
            _ => None,
        };
        let kind = kind.ok_or_else(|| {
            format!("the cosign key is of the kind {algorithm}, which is not accepted: {expected}")
        })?;
        Ok(Self {
            kind,
            fingerprint: format!("sha256:{}", hex::encode(Sha256::digest(&der))),
        })
    }

    /// Checks a signature over bytes that are at hand.
    ///
    /// # Errors
    /// When it is not base64, or wrong.
    pub fn verify(&self, signature: &str, bytes: &[u8]) -> Result<(), String> {
        let mut verifier = Verifier::new(signature, self.clone())?;
        verifier.update(bytes);
        verifier.finish().map(drop)
    }
}

/// A signature over bytes that are still to come.
pub struct Verifier {
    fingerprint: String,
    state: State,
}

enum State {
    P256 {
        key: ParsedPublicKey,
        signature: Vec<u8>,
        hasher: Box<Sha256>,
    },
    Ed25519 {
        key: VerifyingKey,
        signature: Signature,
        plain: Box<StreamVerifier>,
        prehash: Box<Sha512>,
    },
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint)
    }
}

impl Verifier {
    /// Reads a signature as `cosign sign-blob` writes it.
    ///
    /// # Errors
    /// When it is not base64 of a signature by such a key.
    pub fn new(signature: &str, key: Key) -> Result<Self, String> {
        let decoded = base64::engine::general_purpose::STANDARD.decode(signature.trim());
        let signature = decoded.map_err(|_| {
            "the cosign signature is not base64: expected the output of `cosign sign-blob` (bundles are not read)".to_owned()
        })?;
        let state = match key.kind {
            Kind::P256(key) => State::P256 {
                key,
                signature,
                hasher: Box::default(),
            },
            Kind::Ed25519(key) => {
                let wrong = |_| "the cosign signature is not one of an Ed25519 key".to_owned();
                let signature = Signature::from_slice(&signature).map_err(wrong)?;
                State::Ed25519 {
                    plain: Box::new(key.verify_stream(&signature).map_err(wrong)?),
                    prehash: Box::default(),
                    key,
                    signature,
                }
            }
        };
        Ok(Self {
            fingerprint: key.fingerprint,
            state,
        })
    }

    /// The next signed bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::P256 { hasher, .. } => hasher.update(bytes),
            State::Ed25519 { plain, prehash, .. } => {
                plain.update(bytes);
                prehash.update(bytes);
            }
        }
    }

    /// All bytes were given; gives the fingerprint of the key.
    ///
    /// # Errors
    /// When the signature is wrong.
    pub fn finish(self) -> Result<String, String> {
        let good = match self.state {
            State::P256 {
                key,
                signature,
                hasher,
            } => {
                // Less safe only in that the library cannot know what was hashed; we do.
                let digest = Digest::import_less_safe(&hasher.finalize(), &digest::SHA256);
                digest.is_ok_and(|digest| key.verify_digest_sig(&digest, &signature).is_ok())
            }
            State::Ed25519 {
                key,
                signature,
                plain,
                prehash,
            } => {
                plain.finalize_and_verify().is_ok()
                    || key
                        .verify_prehashed_strict(*prehash, None, &signature)
                        .is_ok()
            }
        };
        match good {
            true => Ok(self.fingerprint),
            false => Err(format!(
                "the cosign signature is not by the key {} over these bytes",
                self.fingerprint
            )),
        }
    }
}

#[cfg(test)]
#[path = "cosign_tests.rs"]
pub(super) mod tests;
