//! OpenPGP signatures (RFC 9580) over an image or a list of digests.
//!
//! The crate `pgp` reads packets and computes; the policy is here and in [`cert`]: SHA-256 or
//! better, a key that is bound to its certificate, meant for signing, neither revoked nor
//! expired (when it signed, and now), and a signature that was not made in the future.
//!
//! Invariant: everything but the last computation is decided before a byte of the image is read.

mod cert;

use std::fmt;

use pgp::composed::{CleartextSignedMessage, Deserializable, DetachedSignature, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType, SignatureVersion, SubpacketData};
use sha2::digest::DynDigest;

use cert::Component;
pub use cert::date;

/// Signatures of one file; more are a mistake or an attack.
const MOST_SIGNATURES: usize = 16;
/// How far a publisher's clock may be ahead of ours, in seconds.
const SKEW: u64 = 60;

/// Certificates of those who may sign.
#[derive(Debug, Clone)]
pub struct Keyring {
    certs: Vec<SignedPublicKey>,
}

impl Keyring {
    /// Reads certificates, binary or armored, one or many. Broken ones are passed over.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
        let mut certs = Vec::new();
        let mut cause = None;
        let mut keep = |read: pgp::errors::Result<SignedPublicKey>| match read {
            Ok(cert) => certs.push(cert),
            Err(error) => cause = Some(error.to_string()),
        };
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN PGP PRIVATE KEY BLOCK-----") => {
                return Err(
                    "the OpenPGP keys are private ones: give the public key (gpg --export), and keep those secret"
                        .to_owned(),
                );
            }
            Ok(text) if text.contains(BEGIN) => {
                // One file may have several armored blocks, with text around them.
                for block in text.split(BEGIN).skip(1) {
                    let block = format!("{BEGIN}{block}");
                    match SignedPublicKey::from_armor_many(block.as_bytes()) {
                        Ok((read, _)) => read.for_each(&mut keep),
                        Err(error) => keep(Err(error)),
                    }
                }
            }
            _ => match SignedPublicKey::from_bytes_many(bytes) {
                Ok(read) => read.for_each(&mut keep),
                Err(error) => keep(Err(error)),
            },
        }
        if certs.is_empty() {
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            return Err(format!("no OpenPGP certificate was found{cause}"));
        }
        Ok(Self { certs })
    }

    /// Fingerprints of the certificates, upper-case hex.
    pub fn fingerprints(&self) -> impl Iterator<Item = String> {
        self.certs
            .iter()
            .map(|cert| cert::fingerprint(&cert.primary_key))
    }

    /// Adds the certificates of another.
    pub fn extend(&mut self, other: Self) {
        self.certs.extend(other.certs);
    }
}

/// Who signed, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Fingerprint of the certificate, upper-case hex.
    pub fingerprint: String,
    /// Fingerprint of the key that signed, when it is not the certificate's own.
    pub subkey: Option<String>,
    /// When, seconds since 1970.
    pub at: u64,
}

impl Signer {
    /// For people.
    #[must_use]
    pub fn detail(&self) -> String {
        let subkey = self.subkey.as_ref();
        let subkey = subkey.map(|key| format!(" with the subkey {key}"));
        format!("signed {}{}", date(self.at), subkey.unwrap_or_default())
    }
}

/// A signature over bytes that are still to come.
pub struct Verifier {
    pending: Vec<Pending>,
}

struct Pending {
    signature: Signature,
    hasher: Box<dyn DynDigest + Send>,
    candidates: Vec<(Component, Signer)>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signers = self.pending.iter().flat_map(|pending| &pending.candidates);
        f.debug_list()
            .entries(signers.map(|(_, signer)| signer))
            .finish()
    }
}

impl Verifier {
    /// For a detached signature, binary or armored.
    ///
    /// # Errors
    /// When no signature in it can count.
    pub fn detached(
        signature: &[u8],
        keys: &Keyring,
        trusted: Option<&Keyring>,
        now: u64,
    ) -> Result<Self, String> {
        let unreadable = |error| format!("the OpenPGP signature cannot be read: {error}");
        let is_armored = signature.trim_ascii_start().starts_with(b"-----BEGIN PGP ");
        let parsed: Vec<_> = if is_armored {
            let (read, _) = DetachedSignature::from_armor_many(signature).map_err(unreadable)?;
            read.take(MOST_SIGNATURES + 1).collect()
        } else {
            let read = DetachedSignature::from_bytes_many(signature).map_err(unreadable)?;
            read.take(MOST_SIGNATURES + 1).collect()
        };
        let signatures = parsed.into_iter().map(|one| one.map(|one| one.signature));
        let signatures: Vec<_> = signatures.collect::<Result<_, _>>().map_err(unreadable)?;
        Self::new(signatures, SignatureType::Binary, keys, trusted, now)
    }

    fn new(
        signatures: Vec<Signature>,
        kind: SignatureType,
        keys: &Keyring,
        trusted: Option<&Keyring>,
        now: u64,
    ) -> Result<Self, String> {
        if signatures.is_empty() || signatures.len() > MOST_SIGNATURES {
            return Err(format!(
                "the OpenPGP signature holds {} signatures, expected 1 to {MOST_SIGNATURES}",
                signatures.len()
            ));
        }
        let mut pending = Vec::new();
        let mut reasons = Vec::new();
        for signature in signatures {
            match prepare(signature, kind, keys, trusted, now) {
                Ok(one) => pending.push(one),
                Err(reason) => reasons.push(reason),
            }
        }
        if pending.is_empty() {
            return Err(reasons.join("; "));
        }
        Ok(Self { pending })
    }

    /// The next signed bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for pending in &mut self.pending {
            pending.hasher.update(bytes);
        }
    }

    /// All bytes were given.
    ///
    /// # Errors
    /// When a signature by one of the keys is wrong.
    pub fn finish(self) -> Result<Signer, String> {
        let mut good = None;
        for pending in self.pending {
            let Some((first, _)) = pending.candidates.first() else {
                continue;
            };
            let key = first.fingerprint.clone();
            let signer = pending.verify().ok_or_else(|| {
                format!("the OpenPGP signature by the key {key} does not belong to these bytes")
            })?;
            good.get_or_insert(signer);
        }
        good.ok_or_else(|| "there is no OpenPGP signature to check".to_owned())
    }
}

impl Pending {
    /// Who of the candidates made the signature over what was hashed.
    fn verify(mut self) -> Option<Signer> {
        let config = self.signature.config()?;
        let length = config.hash_signature_data(&mut self.hasher).ok()?;
        self.hasher.update(&config.trailer(length).ok()?);
        let digest = self.hasher.finalize();
        let bytes = self.signature.signature()?;
        let made_by = |component: &Component| component.verify(config.hash_alg, &digest, bytes);
        let found = self
            .candidates
            .iter()
            .find(|(component, _)| made_by(component));
        found.map(|(_, signer)| signer.clone())
    }
}

/// Checks a cleartext-signed text; gives the text that was signed, and by whom.
///
/// # Errors
/// When it is not one, or no signature of it counts.
pub fn cleartext(
    text: &str,
    keys: &Keyring,
    trusted: Option<&Keyring>,
    now: u64,
) -> Result<(String, Signer), String> {
    let (message, _) = CleartextSignedMessage::from_string(text.trim_start())
        .map_err(|error| format!("the signed list of digests cannot be read: {error}"))?;
    let signed = message.signed_text();
    let signatures = message.signatures().to_vec();
    let mut verifier = Verifier::new(signatures, SignatureType::Text, keys, trusted, now)?;
    verifier.update(signed.as_bytes());
    Ok((signed, verifier.finish()?))
}

/// Everything that can be said of a signature without what it signs.
fn prepare(
    signature: Signature,
    kind: SignatureType,
    keys: &Keyring,
    trusted: Option<&Keyring>,
    now: u64,
) -> Result<Pending, String> {
    let at = acceptable(&signature, now)?;
    let Some(config) = signature.config() else {
        return Err("the OpenPGP signature is of an unknown version".to_owned());
    };
    if config.typ() != kind {
        return Err(format!(
            "the OpenPGP signature is of the kind {:?}, expected {kind:?}",
            config.typ()
        ));
    }
    // What goes before the data is known for version 4 only: nothing.
    if signature.version() != SignatureVersion::V4 {
        return Err(format!(
            "the OpenPGP signature is of version {:?}, expected 4",
            signature.version()
        ));
    }
    let mut candidates = Vec::new();
    let mut reasons = Vec::new();
    for cert in keys
        .certs
        .iter()
        .filter(|cert| cert::may_be_by(cert, &signature))
    {
        match cert::signers(
            cert,
            &signature,
            trusted.map(|t| t.certs.as_slice()),
            at,
            now,
        ) {
            Ok(found) => candidates.extend(found),
            Err(reason) => reasons.push(reason),
        }
    }
    if candidates.is_empty() {
        return Err(match reasons.is_empty() {
            true => stranger(&signature, keys),
            false => reasons.join("; "),
        });
    }
    let hasher = config.hash_alg.new_hasher();
    let hasher = hasher.map_err(|error| format!("the OpenPGP signature: {error}"))?;
    Ok(Pending {
        signature,
        hasher,
        candidates,
    })
}

/// Checks what a signature says about itself; gives when it was made.
fn acceptable(signature: &Signature, now: u64) -> Result<u64, String> {
    let hash = signature.hash_alg();
    if !hash.is_some_and(is_strong) {
        let name = hash.map_or_else(|| "unknown".to_owned(), |hash| hash.to_string());
        return Err(format!(
            "the OpenPGP signature uses the digest {name}, which is too weak: expected SHA-256 or better"
        ));
    }
    let Some(created) = signature.created() else {
        return Err("the OpenPGP signature does not say when it was made".to_owned());
    };
    let at = u64::from(created.as_secs());
    if at > now + SKEW {
        return Err(format!(
            "the OpenPGP signature was made in the future, {}: is this host's clock right?",
            date(at)
        ));
    }
    let life = signature.signature_expiration_time();
    let life = life.map_or(0, |life| u64::from(life.as_secs()));
    if life > 0 && now >= at + life {
        return Err(format!(
            "the OpenPGP signature expired on {}",
            date(at + life)
        ));
    }
    if has_unknown_critical(signature) {
        return Err("the OpenPGP signature has a critical part that is not known here".to_owned());
    }
    Ok(at)
}

/// RFC 9580, section 5.2.3.7: a critical subpacket that is not understood makes a signature
/// invalid; the same goes for notations (section 5.2.3.24).
fn has_unknown_critical(signature: &Signature) -> bool {
    signature.config().is_none_or(|config| {
        config.hashed_subpackets().any(|subpacket| {
            subpacket.is_critical
                && matches!(
                    subpacket.data,
                    SubpacketData::Other(..)
                        | SubpacketData::Experimental(..)
                        | SubpacketData::Notation(_)
                )
        })
    })
}

/// MD5, SHA-1 and RIPEMD-160 are broken or close to it; SHA-224 is never needed.
fn is_strong(hash: HashAlgorithm) -> bool {
    matches!(
        hash,
        HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512
    )
}

fn stranger(signature: &Signature, keys: &Keyring) -> String {
    let issuer = signature.issuer_fingerprint();
    let issuer = issuer.first().map(|fingerprint| format!("{fingerprint:X}"));
    let issuer = issuer.or_else(|| {
        let id = signature.issuer_key_id();
        id.first().map(|id| id.to_string().to_uppercase())
    });
    let given: Vec<String> = keys.fingerprints().take(8).collect();
    format!(
        "the OpenPGP signature was made by the key {}, which is not among the keys given ({})",
        issuer.unwrap_or_else(|| "that it does not name".to_owned()),
        given.join(", ")
    )
}

#[cfg(test)]
mod tests;
