//! Which keys of an OpenPGP certificate may sign, and since when until when.
//!
//! The newest valid self-signature counts. Revocations count whatever their digest and reason:
//! a publisher who revokes a key has another.

use pgp::composed::{SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{PublicKey, PublicSubkey, Signature, SignatureType, SubpacketData};
use pgp::ser::Serialize;
use pgp::types::{Fingerprint, KeyDetails, PublicParams, SignatureBytes, Tag, VerifyingKey};

use super::{Signer, acceptable};

/// A key of a certificate that may have made a signature.
#[derive(Debug, Clone)]
pub struct Component {
    key: Key,
    /// Upper-case hex.
    pub fingerprint: String,
    created: u64,
    expires: Option<u64>,
}

#[derive(Debug, Clone)]
enum Key {
    Primary(PublicKey),
    Sub(PublicSubkey),
}

impl Component {
    /// Whether this key made the signature over that digest.
    pub fn verify(&self, hash: HashAlgorithm, digest: &[u8], signature: &SignatureBytes) -> bool {
        match &self.key {
            Key::Primary(key) => key.verify(hash, digest, signature).is_ok(),
            Key::Sub(key) => key.verify(hash, digest, signature).is_ok(),
        }
    }

    /// Whether the key lived when it signed, and lives now.
    fn lives(&self, at: u64, now: u64) -> Result<(), String> {
        let key = &self.fingerprint;
        if at < self.created {
            return Err(format!(
                "the OpenPGP signature is older ({}) than the key {key} ({})",
                date(at),
                date(self.created)
            ));
        }
        match self.expires {
            Some(end) if at >= end => Err(format!(
                "the key {key} expired on {}, before it signed on {}",
                date(end),
                date(at)
            )),
            Some(end) if now >= end => Err(format!(
                "the key {key} expired on {}: take the publisher's current key file, or a current image",
                date(end)
            )),
            _ => Ok(()),
        }
    }
}

/// `2026-11-21`.
#[must_use]
pub fn date(seconds: u64) -> String {
    let moment = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(i64::MAX));
    moment.map_or_else(
        |_| seconds.to_string(),
        |moment| moment.strftime("%Y-%m-%d").to_string(),
    )
}

/// Upper-case hex, as gpg shows it.
pub fn fingerprint(key: &impl KeyDetails) -> String {
    format!("{:X}", key.fingerprint())
}

/// Whether the signature names a key of the certificate, or names none.
pub fn may_be_by(cert: &SignedPublicKey, signature: &Signature) -> bool {
    names(&cert.primary_key, signature)
        || cert
            .public_subkeys
            .iter()
            .any(|sub| names(&sub.key, signature))
}

/// What a signature says of its maker is a hint: the computation decides.
fn names(key: &impl KeyDetails, signature: &Signature) -> bool {
    let fingerprints: Vec<&Fingerprint> = signature.issuer_fingerprint();
    if !fingerprints.is_empty() {
        return fingerprints.contains(&&key.fingerprint());
    }
    let ids = signature.issuer_key_id();
    ids.is_empty() || ids.contains(&&key.legacy_key_id())
}

/// The keys of `cert` that may have made the signature at `at`. With `trusted`, the certificate
/// must be there too, and what is said there must not speak against it.
pub fn signers(
    cert: &SignedPublicKey,
    signature: &Signature,
    trusted: Option<&[SignedPublicKey]>,
    at: u64,
    now: u64,
) -> Result<Vec<(Component, Signer)>, String> {
    let own = fingerprint(&cert.primary_key);
    let judged = match trusted {
        None => None,
        Some(trusted) => Some(
            trusted
                .iter()
                .find(|known| known.primary_key.fingerprint() == cert.primary_key.fingerprint())
                .ok_or_else(|| {
                    format!(
                        "the key {own} is not among the trusted keys of this daemon (images.trusted_keys)"
                    )
                })?,
        ),
    };
    let primary = primary(cert, now)?;
    if let Some(known) = judged {
        self::primary(known, now)?;
    }
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    let mut take = |component: Result<Component, String>, subkey: bool| match component
        .and_then(|c| c.lives(at, now).map(|()| c))
    {
        Ok(component) => {
            let signer = Signer {
                fingerprint: own.clone(),
                subkey: subkey.then(|| component.fingerprint.clone()),
                at,
            };
            found.push((component, signer));
        }
        Err(reason) => reasons.push(reason),
    };
    if names(&cert.primary_key, signature) {
        take(primary.may_sign(), false);
    }
    for sub in cert
        .public_subkeys
        .iter()
        .filter(|sub| names(&sub.key, signature))
    {
        let known = judged.and_then(|known| {
            let same = |k: &&SignedPublicSubKey| k.key.fingerprint() == sub.key.fingerprint();
            known
                .public_subkeys
                .iter()
                .find(same)
                .map(|k| subkey(known, k, &primary, now))
        });
        let own = subkey(cert, sub, &primary, now);
        take(known.unwrap_or_else(|| own.clone()).and(own), true);
    }
    if found.is_empty() {
        return Err(reasons.join("; "));
    }
    Ok(found)
}

/// A primary key that is bound and not revoked.
struct Primary {
    component: Component,
    signs: bool,
}

impl Primary {
    fn may_sign(&self) -> Result<Component, String> {
        match self.signs {
            true => Ok(self.component.clone()),
            false => Err(format!(
                "the key {} is not meant for signing",
                self.component.fingerprint
            )),
        }
    }
}

fn primary(cert: &SignedPublicKey, now: u64) -> Result<Primary, String> {
    let key = &cert.primary_key;
    let own = fingerprint(key);
    check_strength(key, &own)?;
    let revoked = cert.details.revocation_signatures.iter();
    if let Some(revocation) = revoked.into_iter().find(|r| r.verify_key(key).is_ok()) {
        return Err(told_revoked(&own, revocation));
    }
    let newest = self_signatures(cert)
        .filter_map(|signature| acceptable(signature, now).ok().map(|at| (at, signature)))
        .max_by_key(|(at, _)| *at);
    let Some((_, newest)) = newest else {
        return Err(format!(
            "the key {own} has no valid self-signature (with SHA-256 or better) that is not revoked"
        ));
    };
    let created = u64::from(key.created_at().as_secs());
    Ok(Primary {
        // Old certificates say nothing; then a primary key may do what its algorithm can.
        signs: key_flags(newest).unwrap_or(true),
        component: Component {
            key: Key::Primary(key.clone()),
            fingerprint: own,
            created,
            expires: expires(created, newest),
        },
    })
}

/// Self-signatures that compute, on the key itself or on a user id that was not revoked later.
fn self_signatures(cert: &SignedPublicKey) -> impl Iterator<Item = &Signature> {
    let key = &cert.primary_key;
    let direct = cert.details.direct_signatures.iter();
    let direct = direct.filter(move |signature| {
        signature.typ() == Some(SignatureType::Key) && signature.verify_key(key).is_ok()
    });
    let users = cert.details.users.iter().flat_map(move |user| {
        let valid: Vec<&Signature> = user
            .signatures
            .iter()
            .filter(|s| s.verify_certification(key, Tag::UserId, &user.id).is_ok())
            .collect();
        let is_revocation = |s: &&Signature| s.typ() == Some(SignatureType::CertRevocation);
        let revoked = valid
            .iter()
            .copied()
            .filter(is_revocation)
            .map(Signature::created)
            .max();
        valid.into_iter().filter(move |s| {
            !is_revocation(s) && revoked.is_none_or(|revoked| s.created() > revoked)
        })
    });
    direct.chain(users)
}

fn subkey(
    cert: &SignedPublicKey,
    sub: &SignedPublicSubKey,
    primary: &Primary,
    now: u64,
) -> Result<Component, String> {
    let key = &cert.primary_key;
    let own = fingerprint(&sub.key);
    check_strength(&sub.key, &own)?;
    let valid = || {
        let computes = |s: &&Signature| s.verify_subkey_binding(key, &sub.key).is_ok();
        sub.signatures.iter().filter(computes)
    };
    let is_revocation = |s: &&Signature| s.typ() == Some(SignatureType::SubkeyRevocation);
    if let Some(revocation) = valid().find(is_revocation) {
        return Err(told_revoked(&own, revocation));
    }
    let newest = valid()
        .filter(|s| s.typ() == Some(SignatureType::SubkeyBinding))
        .filter_map(|signature| acceptable(signature, now).ok().map(|at| (at, signature)))
        .max_by_key(|(at, _)| *at);
    let Some((_, newest)) = newest else {
        return Err(format!(
            "the subkey {own} is not bound to the key {} (with SHA-256 or better)",
            primary.component.fingerprint
        ));
    };
    if !key_flags(newest).unwrap_or(false) {
        return Err(format!("the subkey {own} is not meant for signing"));
    }
    // Without this anyone could adopt somebody else's signing key (RFC 9580, section 5.2.1.9).
    let bound_back = newest.embedded_signature().is_some_and(|back| {
        acceptable(back, now).is_ok() && back.verify_primary_key_binding(&sub.key, key).is_ok()
    });
    if !bound_back {
        return Err(format!(
            "the subkey {own} does not confirm that it belongs to the key {}",
            primary.component.fingerprint
        ));
    }
    let created = u64::from(sub.key.created_at().as_secs());
    let ends = [expires(created, newest), primary.component.expires];
    Ok(Component {
        key: Key::Sub(sub.key.clone()),
        fingerprint: own,
        created,
        expires: ends.into_iter().flatten().min(),
    })
}

/// When a key that was made at `created` expires, by its newest self-signature.
fn expires(created: u64, newest: &Signature) -> Option<u64> {
    let life = newest.key_expiration_time()?.as_secs();
    (life > 0).then(|| created + u64::from(life))
}

/// Whether the key is for signing data; none when the self-signature says nothing.
fn key_flags(signature: &Signature) -> Option<bool> {
    let config = signature.config()?;
    config
        .hashed_subpackets()
        .find_map(|subpacket| match &subpacket.data {
            SubpacketData::KeyFlags(flags) => Some(flags.sign()),
            _ => None,
        })
}

fn told_revoked(key: &str, revocation: &Signature) -> String {
    let at = revocation.created().map(|at| date(u64::from(at.as_secs())));
    let why = revocation.revocation_reason_string();
    let why = why.map(|why| String::from_utf8_lossy(why).into_owned());
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let why: String = why
        .unwrap_or_default()
        .chars()
        .map(clean)
        .take(100)
        .collect();
    format!(
        "the key {key} was revoked{}{}",
        at.map(|at| format!(" on {at}")).unwrap_or_default(),
        if why.is_empty() {
            String::new()
        } else {
            format!(" ({why})")
        }
    )
}

/// RSA of at least 2048 bits, or a curve.
fn check_strength(key: &impl KeyDetails, own: &str) -> Result<(), String> {
    let strong = match key.public_params() {
        // On the wire: two numbers, each with two bytes of length; the exponent is short. The
        // modulus has 256 bytes or more (its top bit is set).
        params @ PublicParams::RSA(_) => params.write_len() > 2 + 256 + 2,
        PublicParams::ECDSA(_)
        | PublicParams::EdDSALegacy(_)
        | PublicParams::Ed25519(_)
        | PublicParams::Ed448(_) => true,
        _ => false,
    };
    match strong {
        true => Ok(()),
        false => Err(format!(
            "the key {own} is too weak or of a kind that is not accepted: expected RSA with 2048 bits or more, ECDSA or EdDSA"
        )),
    }
}
