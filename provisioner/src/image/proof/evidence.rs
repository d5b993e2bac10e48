//! From the evidence of a request to signatures that can be checked: bounded, decoded, and by keys
//! that count.

use std::borrow::Cow;

use anneal_image::ProofMethod;
use anneal_protocol::api::Evidence;
use base64::Engine as _;

use super::{Policy, ProofError, limit, minisign, openpgp};
use crate::clock::now;

/// Who stands behind a list of digests.
pub enum Vouched {
    /// Nobody; a word on why.
    Nobody(&'static str),
    /// A key.
    Signer {
        method: ProofMethod,
        signer: String,
        detail: String,
    },
}

/// The part of a list that may be believed, and whom.
pub fn list<'t>(
    text: &'t str,
    signature: Option<&Evidence>,
    keys: Option<&Evidence>,
    policy: &Policy,
) -> Result<(Cow<'t, str>, Vouched), ProofError> {
    let is_cleartext = text.contains("-----BEGIN PGP SIGNED MESSAGE-----");
    let by_openpgp = |signer: openpgp::Signer| Vouched::Signer {
        method: ProofMethod::Openpgp,
        detail: signer.detail(),
        signer: signer.fingerprint,
    };
    match (signature, keys) {
        (None, None) if is_cleartext => Ok((
            text.into(),
            Vouched::Nobody("from a list whose signature was not checked: no key was given"),
        )),
        (None, None) => Ok((text.into(), Vouched::Nobody("from an unsigned list"))),
        (None, Some(keys)) if is_cleartext => {
            let keys = keyring(keys)?;
            let signed =
                openpgp::cleartext(text, &keys, trusted_openpgp(policy, &keys)?, seconds());
            let (signed, signer) = signed.map_err(ProofError::Failed)?;
            Ok((signed.into(), by_openpgp(signer)))
        }
        (None, Some(_)) => Err(ProofError::Unusable(
            "the list of digests carries no signature: give --sums-signature, or leave out the key"
                .to_owned(),
        )),
        (Some(_), None) => Err(ProofError::Unusable(
            "whose is the signature over the list of digests? Give --key".to_owned(),
        )),
        (Some(signature), Some(keys)) => {
            let bytes = decode("the signature", signature, limit::SIGNATURE)?;
            if bytes.starts_with(b"untrusted comment:") {
                let signature = String::from_utf8_lossy(&bytes);
                let key = decode("the key", keys, limit::KEYS)?;
                let key = String::from_utf8_lossy(&key);
                let mut verifier = minisigned(&signature, &key, policy)?;
                verifier.update(text.as_bytes());
                let signer = verifier.finish().map_err(ProofError::Failed)?;
                let vouched = Vouched::Signer {
                    method: ProofMethod::Minisign,
                    signer: signer.key,
                    detail: signer.comment,
                };
                return Ok((text.into(), vouched));
            }
            let mut verifier = detached(signature, keys, policy)?;
            verifier.update(text.as_bytes());
            let signer = verifier.finish().map_err(ProofError::Failed)?;
            Ok((text.into(), by_openpgp(signer)))
        }
    }
}

/// Reads a detached OpenPGP signature and finds its signers among the keys.
pub fn detached(
    signature: &Evidence,
    keys: &Evidence,
    policy: &Policy,
) -> Result<openpgp::Verifier, ProofError> {
    let signature = decode("the signature", signature, limit::SIGNATURE)?;
    let keys = keyring(keys)?;
    let trusted = trusted_openpgp(policy, &keys)?;
    openpgp::Verifier::detached(&signature, &keys, trusted, seconds()).map_err(ProofError::Failed)
}

/// Reads a minisign signature.
pub fn minisigned(
    signature: &str,
    key: &str,
    policy: &Policy,
) -> Result<minisign::Verifier, ProofError> {
    bounded("the signature", signature.len(), limit::SIGNATURE)?;
    bounded("the key", key.len(), limit::KEYS)?;
    let key = minisign::Key::parse(key).map_err(ProofError::Unusable)?;
    if let Some(trusted) = policy.trusted() {
        trusted.minisign(&key).map_err(ProofError::Failed)?;
    }
    minisign::Verifier::new(signature, key).map_err(ProofError::Failed)
}

fn keyring(keys: &Evidence) -> Result<openpgp::Keyring, ProofError> {
    let bytes = decode("the key", keys, limit::KEYS)?;
    openpgp::Keyring::parse(&bytes).map_err(ProofError::Unusable)
}

/// The keys that count beside the given ones; an error when some are trusted, but none of
/// OpenPGP's.
fn trusted_openpgp<'p>(
    policy: &'p Policy,
    given: &openpgp::Keyring,
) -> Result<Option<&'p openpgp::Keyring>, ProofError> {
    let Some(trusted) = policy.trusted() else {
        return Ok(None);
    };
    let none = || {
        let given = given.fingerprints().next().unwrap_or_default();
        ProofError::Failed(super::trust::untrusted("OpenPGP", &given))
    };
    trusted.openpgp().map(Some).ok_or_else(none)
}

/// Seconds since 1970.
fn seconds() -> u64 {
    u64::try_from(now().0 / 1000).unwrap_or(0)
}

fn decode(what: &str, evidence: &Evidence, most: usize) -> Result<Vec<u8>, ProofError> {
    match evidence {
        Evidence::Text(text) => {
            bounded(what, text.len(), most)?;
            Ok(text.clone().into_bytes())
        }
        Evidence::Base64(text) => {
            bounded(what, text.len() / 4 * 3, most)?;
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            decoded.map_err(|error| ProofError::Unusable(format!("{what} is not base64: {error}")))
        }
    }
}

/// Refuses evidence that is larger than any real one.
pub fn bounded(what: &str, length: usize, most: usize) -> Result<(), ProofError> {
    if length <= most {
        return Ok(());
    }
    Err(ProofError::Unusable(format!(
        "{what} has {length} bytes, allowed are {most}"
    )))
}
