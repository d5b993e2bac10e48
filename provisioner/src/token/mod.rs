//! Tokens: secrets with one purpose, one machine, one use and a short life.
//!
//! Owns: minting (256 random bits), redeeming, expiry, revocation, serving configuration by URL,
//! and the alarm when a token is used twice.
//!
//! Invariants: the secret exists only in the answer of [`Tokens::mint`]; the store has its
//! SHA-256. A secret is looked up by digest and the digests are compared in constant time. The
//! decisions ([`judge`], [`judge_config`]) are pure.
//!
//! One use, with one allowance: a client whose answer was lost on the way repeats its request.
//! A repeat by the same redeemer (for a boot token: the same private key) is the same use;
//! anybody else is a replay.

mod config;
pub mod issuer;
mod judge;
mod redeem;

use std::time::Duration;

use anneal_protocol::time::Millis;
use sha2::{Digest, Sha256};

pub use config::{Configs, Fetch, FetchError, GRACE, RunOver};
pub use judge::{Claim, Refused, Use, judge, judge_config};
pub use redeem::{Enrolment, Mint, TokenError, Tokens};

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Handed to the agent on the kernel command line; trades for a certificate.
    Boot,
    /// In the URL from which a first-boot loader fetches its configuration.
    Config,
    /// In the URL of the metadata service; trades for a session there.
    Metadata,
    /// Lets the installed system say that it booted.
    PhoneHome,
    /// What another token was traded for: shown again and again, by one address, until it ends.
    Session,
}

impl Purpose {
    const ALL: [Self; 5] = [
        Self::Boot,
        Self::Config,
        Self::Metadata,
        Self::PhoneHome,
        Self::Session,
    ];

    /// The stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Config => "config",
            Self::Metadata => "metadata",
            Self::PhoneHome => "phone-home",
            Self::Session => "session",
        }
    }

    /// How long a token of this purpose lives when the caller does not say: boot 10 minutes,
    /// all others 30.
    #[must_use]
    pub fn default_ttl(self) -> Duration {
        match self {
            Self::Boot => Duration::from_secs(10 * 60),
            Self::Config | Self::Metadata | Self::PhoneHome | Self::Session => {
                Duration::from_secs(30 * 60)
            }
        }
    }

    /// Reads the stored word.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|purpose| purpose.as_str() == word)
    }
}

/// Subject of the sessions of Kairos agents.
pub const KAIROS: &str = "kairos";

/// What is stored about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Id, growing with time; not secret.
    pub id: String,
    /// SHA-256 of the secret, hex.
    pub digest: String,
    /// What it is good for.
    pub purpose: Purpose,
    /// What a config token serves, or one of the metadata service or its session: a template, or
    /// a folder of them with a slash at its end. [`KAIROS`] for a session of the Kairos agent.
    pub subject: Option<String>,
    /// A token for documents that may be shown without TLS.
    pub plain: bool,
    /// Machine it is bound to.
    pub machine: String,
    /// Run it is bound to.
    pub run: String,
    /// When it was made.
    pub created_at: Millis,
    /// When it stops being good.
    pub expires_at: Millis,
    /// When it was first used.
    pub used_at: Option<Millis>,
    /// Who used it: key digest or address.
    pub used_by: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<Millis>,
    /// It was revoked because a newer one took its place, not because its run ended.
    pub superseded: bool,
}

impl TokenRecord {
    /// `live`, `used`, `expired` or `revoked`.
    #[must_use]
    pub fn state(&self, now: Millis) -> &'static str {
        if self.used_at.is_some() {
            "used"
        } else if self.revoked_at.is_some() {
            "revoked"
        } else if self.expires_at <= now {
            "expired"
        } else {
            "live"
        }
    }
}

/// SHA-256 of a secret, hex: what is stored in its place.
#[must_use]
pub fn digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// 256 random bits as 64 hex digits.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn random_secret() -> Result<String, TokenError> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| TokenError::Random)?;
    Ok(hex::encode(bytes))
}
