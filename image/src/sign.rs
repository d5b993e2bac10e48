//! Keys and signatures: Ed25519 (RFC 8032) over the manifest's canonical bytes.

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signature, Signer};
use serde::{Deserialize, Serialize};

use crate::manifest::{Manifest, ManifestError, check_length};

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not an Ed25519 public key in hex.
    #[error("image key is not an ed25519 public key of 64 hex digits")]
    Public,
    /// Not a private key in PEM.
    #[error("image signing key is not an ed25519 private key in pkcs#8 pem")]
    Private,
}

/// A key that signs manifests.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

impl SigningKey {
    /// Makes the key of these 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Reads PKCS#8 PEM (`BEGIN PRIVATE KEY`).
    ///
    /// # Errors
    /// When it is not such a key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| KeyError::Private)
    }

    /// Writes PKCS#8 PEM. A secret.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        // Without the public half (PKCS#8 version 1): OpenSSL 3.0 reads no other.
        let key = ed25519_dalek::pkcs8::KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        key.to_pkcs8_pem(LineEnding::LF)
            .map(|pem| pem.to_string())
            .map_err(|_| KeyError::Private)
    }

    /// Signs anything but a manifest: what is signed must begin with a word that says what it is.
    #[must_use]
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The key that verifies what this one signs.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }
}

/// A key that verifies manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// Reads 64 hex digits.
    ///
    /// # Errors
    /// When they are not a point on the curve.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| KeyError::Public)?;
        ed25519_dalek::VerifyingKey::from_bytes(&bytes)
            .map(Self)
            .map_err(|_| KeyError::Public)
    }

    /// Reads an SPKI PEM (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// When it is not an Ed25519 key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        use ed25519_dalek::pkcs8::DecodePublicKey as _;
        ed25519_dalek::VerifyingKey::from_public_key_pem(pem)
            .map(Self)
            .map_err(|_| KeyError::Public)
    }

    /// Writes SPKI PEM.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        use ed25519_dalek::pkcs8::EncodePublicKey as _;
        self.0
            .to_public_key_pem(LineEnding::LF)
            .map_err(|_| KeyError::Public)
    }

    /// Whether this key made the signature (64 bytes) of these bytes.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }

    /// 64 lower-case hex digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0.as_bytes())
    }

    /// Short name of the key: the first 16 hex digits of its BLAKE3 digest.
    #[must_use]
    pub fn id(&self) -> String {
        blake3::hash(self.0.as_bytes()).to_hex()[..16].to_owned()
    }
}

/// A manifest with its signature: the contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedManifest {
    /// The list of frames.
    pub manifest: Manifest,
    /// Which key signed, see [`PublicKey::id`]: tells a rotated key from a forged manifest.
    pub key_id: String,
    /// Ed25519 signature over [`Manifest::canonical`], hex.
    pub signature: String,
}

impl SignedManifest {
    /// Signs.
    #[must_use]
    pub fn sign(manifest: Manifest, key: &SigningKey) -> Self {
        let signature = hex::encode(key.0.sign(&manifest.canonical()).to_bytes());
        Self {
            manifest,
            key_id: key.public().id(),
            signature,
        }
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// When another key signed, or the signature is wrong.
    pub fn verify(&self, key: &PublicKey) -> Result<(), ManifestError> {
        if self.key_id != key.id() {
            return Err(ManifestError::OtherKey {
                found: self.key_id.chars().take(64).collect(),
                expected: key.id(),
            });
        }
        let mut bytes = [0; 64];
        hex::decode_to_slice(&self.signature, &mut bytes).map_err(|_| ManifestError::Signature)?;
        key.0
            .verify_strict(&self.manifest.canonical(), &Signature::from_bytes(&bytes))
            .map_err(|_| ManifestError::Signature)
    }

    /// Checks that one of `keys` signed.
    ///
    /// # Errors
    /// When none did, or the signature is wrong.
    pub fn verify_any(&self, keys: &[PublicKey]) -> Result<(), ManifestError> {
        match keys.iter().find(|key| key.id() == self.key_id) {
            Some(key) => self.verify(key),
            None => {
                let ids: Vec<_> = keys.iter().map(PublicKey::id).collect();
                Err(ManifestError::OtherKey {
                    found: self.key_id.chars().take(64).collect(),
                    expected: ids.join(" or "),
                })
            }
        }
    }

    /// Reads `manifest.json` without checking the signature.
    ///
    /// # Errors
    /// When it is too long, not of the format, or breaks a rule of the format.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        check_length(json)?;
        serde_json::from_slice(json).map_err(ManifestError::Syntax)
    }

    /// Reads `manifest.json` as received from anywhere: limits, signature and identity are
    /// checked, so that the result can be trusted to be the image `id`. One of `keys` must have
    /// signed.
    ///
    /// # Errors
    /// When any of them does not hold.
    pub fn open(json: &[u8], keys: &[PublicKey], id: &str) -> Result<Manifest, ManifestError> {
        let signed = Self::parse(json)?;
        signed.verify_any(keys)?;
        let found = signed.manifest.id();
        if found != id {
            return Err(ManifestError::OtherImage {
                found,
                expected: id.to_owned(),
            });
        }
        Ok(signed.manifest)
    }

    /// Text for `manifest.json`.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("invariant: a struct of numbers and text is JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Frame;

    fn manifest() -> Manifest {
        let frame = Frame {
            offset: 0,
            length: 10,
            digest: Some([7; 32]),
        };
        Manifest::bare(512, 65536, vec![frame])
    }

    #[test]
    fn opens_what_was_signed_and_nothing_else() {
        let key = SigningKey::from_seed(&[1; 32]);
        let signed = SignedManifest::sign(manifest(), &key);
        let (json, id) = (signed.to_json(), signed.manifest.id());
        let public = PublicKey::from_hex(&key.public().to_hex()).unwrap();
        assert_eq!(
            SignedManifest::open(&json, &[public], &id).unwrap(),
            manifest()
        );

        let other = SigningKey::from_seed(&[2; 32]);
        let both = [other.public(), public];
        assert!(SignedManifest::open(&json, &both, &id).is_ok());
        assert!(SignedManifest::open(&json, &[], &id).is_err());
        assert!(matches!(
            SignedManifest::open(&json, &[other.public()], &id),
            Err(ManifestError::OtherKey { .. })
        ));
        assert!(matches!(
            SignedManifest::open(&json, &[public], "blake3:00"),
            Err(ManifestError::OtherImage { .. })
        ));
        // Claims the trusted key's id, signed by another one.
        let mut forged = SignedManifest::sign(manifest(), &other);
        forged.key_id = public.id();
        assert!(matches!(
            SignedManifest::open(&forged.to_json(), &[other.public(), public], &id),
            Err(ManifestError::Signature)
        ));
    }

    #[test]
    fn no_changed_byte_is_accepted_as_another_manifest() {
        let key = SigningKey::from_seed(&[1; 32]);
        let signed = SignedManifest::sign(manifest(), &key);
        let (json, id) = (signed.to_json(), signed.manifest.id());
        for at in 0..json.len() {
            for change in [0x01, 0x20, 0x80] {
                let mut bytes = json.clone();
                bytes[at] ^= change;
                // The hex of a signature may be upper-case: same meaning, same manifest.
                if let Ok(opened) = SignedManifest::open(&bytes, &[key.public()], &id) {
                    assert_eq!(opened, signed.manifest);
                    assert_eq!(
                        String::from_utf8(bytes)
                            .unwrap()
                            .to_lowercase()
                            .into_bytes(),
                        json
                    );
                }
            }
        }
    }

    #[test]
    fn keys_survive_pem() {
        let key = SigningKey::from_seed(&[3; 32]);
        let pem = key.to_pem().unwrap();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{pem}");
        assert_eq!(SigningKey::from_pem(&pem).unwrap().public(), key.public());
        assert!(SigningKey::from_pem("nonsense").is_err());
        assert!(PublicKey::from_hex("abcd").is_err());
        assert!(!format!("{key:?}").contains(&hex::encode([3; 32])));
    }
}
