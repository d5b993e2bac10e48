//! The envelope: DSSE 1.0 (secure-systems-lab/dsse) around an in-toto statement, signed with
//! Ed25519. Pure.
//!
//! The signed bytes begin with `DSSEv1`, a manifest's with `{`: a signature of the one is never a
//! signature of the other, though the same key makes both.

use anneal_image::{PublicKey, SigningKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// What the payload is (in-toto attestation framework 1.0).
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Longest envelope that is read, bytes.
pub const MAX_ENVELOPE: usize = 4 << 20;

/// A signed statement, as it is stored, sent and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// [`PAYLOAD_TYPE`].
    pub payload_type: String,
    /// The statement, base64.
    pub payload: String,
    /// Who signed; one is enough.
    pub signatures: Vec<Signature>,
}

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Which key, see [`PublicKey::id`]: a hint, never trusted.
    #[serde(default)]
    pub keyid: String,
    /// Ed25519 signature over [`pae`], base64.
    pub sig: String,
}

/// Why an envelope is not believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Longer than [`MAX_ENVELOPE`].
    #[error("the envelope has {0} bytes, more than the {MAX_ENVELOPE} allowed")]
    TooLong(usize),
    /// Not an envelope.
    #[error("this is not a DSSE envelope: {0}")]
    Shape(String),
    /// Something else is in it.
    #[error("the envelope holds {0:?}, expected {PAYLOAD_TYPE:?}")]
    OtherPayload(String),
    /// Nobody who is trusted signed it.
    #[error("no signature by a trusted key: signed by {signers}, trusted {trusted}")]
    NotTrusted {
        /// Key ids in the envelope.
        signers: String,
        /// Key ids that were given.
        trusted: String,
    },
}

/// The bytes that are signed: DSSE's pre-authentication encoding.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Envelope {
    /// Signs a statement.
    #[must_use]
    pub fn sign(payload: &[u8], key: &SigningKey) -> Self {
        let sig = key.sign_bytes(&pae(PAYLOAD_TYPE, payload));
        Self {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![Signature {
                keyid: key.public().id(),
                sig: STANDARD.encode(sig),
            }],
        }
    }

    /// Reads an envelope; nothing in it is believed yet.
    ///
    /// # Errors
    /// When it is too long or not an envelope.
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        if json.len() > MAX_ENVELOPE {
            return Err(EnvelopeError::TooLong(json.len()));
        }
        serde_json::from_slice(json).map_err(|e| EnvelopeError::Shape(e.to_string()))
    }

    /// Checks that one of `keys` signed, and gives the statement and the key.
    ///
    /// # Errors
    /// When none did, or it is not a statement's envelope.
    pub fn open<'k>(
        &self,
        keys: &'k [PublicKey],
    ) -> Result<(Vec<u8>, &'k PublicKey), EnvelopeError> {
        if self.payload_type != PAYLOAD_TYPE {
            let found = self.payload_type.chars().take(100).collect();
            return Err(EnvelopeError::OtherPayload(found));
        }
        let payload = STANDARD
            .decode(&self.payload)
            .map_err(|e| EnvelopeError::Shape(format!("payload: {e}")))?;
        let signed = pae(&self.payload_type, &payload);
        let good = |key: &&PublicKey| {
            self.signatures.iter().any(|signature| {
                let sig = STANDARD.decode(&signature.sig).unwrap_or_default();
                key.verifies(&signed, &sig)
            })
        };
        match keys.iter().find(good) {
            Some(key) => Ok((payload, key)),
            None => Err(EnvelopeError::NotTrusted {
                signers: list(self.signatures.iter().map(|s| s.keyid.clone())),
                trusted: list(keys.iter().map(PublicKey::id)),
            }),
        }
    }
}

fn list(ids: impl Iterator<Item = String>) -> String {
    let ids: Vec<String> = ids.map(|id| id.chars().take(64).collect()).collect();
    if ids.is_empty() {
        "nobody".to_owned()
    } else {
        ids.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_that_of_the_specification() {
        // The example in the specification's protocol.md.
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn opens_what_was_signed_and_nothing_else() {
        let (key, other) = (
            SigningKey::from_seed(&[1; 32]),
            SigningKey::from_seed(&[2; 32]),
        );
        let envelope = Envelope::sign(b"{}", &key);
        let keys = [other.public(), key.public()];
        let (payload, by) = envelope.open(&keys).unwrap();
        assert_eq!((payload.as_slice(), by), (b"{}".as_slice(), &key.public()));
        let json = serde_json::to_vec(&envelope).unwrap();
        assert_eq!(Envelope::parse(&json).unwrap(), envelope);

        let error = envelope.open(&[other.public()]).unwrap_err();
        assert!(error.to_string().contains(&key.public().id()), "{error}");
        assert!(envelope.open(&[]).is_err());

        let mut forged = envelope.clone();
        forged.payload = STANDARD.encode(b"{ }");
        assert!(forged.open(&keys).is_err());
        let mut retyped = envelope.clone();
        retyped.payload_type = "application/json".to_owned();
        assert!(matches!(
            retyped.open(&keys),
            Err(EnvelopeError::OtherPayload(_))
        ));
        // Names the trusted key, signed by another.
        let mut claimed = Envelope::sign(b"{}", &other);
        claimed.signatures[0].keyid = key.public().id();
        assert!(claimed.open(&[key.public()]).is_err());
        assert!(Envelope::parse(b"[]").is_err());
        assert!(Envelope::parse(&vec![b' '; MAX_ENVELOPE + 1]).is_err());
    }
}
