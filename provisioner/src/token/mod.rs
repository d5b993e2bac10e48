//! Tokens: secrets with one purpose, one machine, one use and a short life.
//!
//! Owns: minting (256 random bits), redeeming, expiry, revocation, and the alarm when a token is
//! used twice.
//!
//! Invariants: the secret exists only in the answer of [`Tokens::mint`]; the store has its
//! SHA-256. A secret is looked up by digest and the digests are compared in constant time. The
//! decision ([`judge`]) is pure.
//!
//! One use, with one allowance: a client whose answer was lost on the way repeats its request.
//! A repeat by the same redeemer (for a boot token: the same private key) is the same use;
//! anybody else is a replay.

use std::time::Duration;

use anneal_protocol::time::Millis;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::clock::now;
use crate::event::{Event, Recorder, kind};
use crate::store::{Store, StoreError};

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Handed to the agent on the kernel command line; trades for a certificate.
    Boot,
    /// Lets the installed system say that it booted.
    PhoneHome,
}

impl Purpose {
    /// The stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::PhoneHome => "phone-home",
        }
    }

    /// How long a token of this purpose lives when the caller does not say: boot 10 minutes,
    /// phone-home 30.
    #[must_use]
    pub fn default_ttl(self) -> Duration {
        match self {
            Self::Boot => Duration::from_secs(10 * 60),
            Self::PhoneHome => Duration::from_secs(30 * 60),
        }
    }

    /// Reads the stored word.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        [Self::Boot, Self::PhoneHome]
            .into_iter()
            .find(|purpose| purpose.as_str() == word)
    }
}

/// What is stored about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Id, growing with time; not secret.
    pub id: String,
    /// SHA-256 of the secret, hex.
    pub digest: String,
    /// What it is good for.
    pub purpose: Purpose,
    /// Machine it is bound to.
    pub machine: String,
    /// Run it is bound to.
    pub run: String,
    /// When it was made.
    pub created_at: Millis,
    /// When it stops being good.
    pub expires_at: Millis,
    /// When it was used.
    pub used_at: Option<Millis>,
    /// Who used it: key digest or address.
    pub used_by: Option<String>,
    /// When it was revoked unused.
    pub revoked_at: Option<Millis>,
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

/// Why a token was not accepted. The caller hears only that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody made this token.
    #[error("unknown token")]
    Unknown,
    /// It is for something else.
    #[error("token has another purpose")]
    WrongPurpose,
    /// It is for another machine.
    #[error("token belongs to another machine")]
    WrongMachine,
    /// Too late.
    #[error("token has expired")]
    Expired,
    /// Its run is over.
    #[error("token was revoked")]
    Revoked,
    /// Somebody else used it before.
    #[error("token was used before, by somebody else")]
    Replayed,
}

/// Why a token could not be made or redeemed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not good.
    #[error("token refused")]
    Refused(#[source] Refused),
    /// The store failed.
    #[error("token store")]
    Store(#[from] StoreError),
    /// No randomness.
    #[error("random number generator of the system failed")]
    Random,
}

/// Who wants to redeem, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// What it is wanted for.
    pub purpose: Purpose,
    /// Machine that the caller says it is, or is seen to be; `None` when nothing says so.
    pub machine: Option<&'a str>,
    /// What identifies the redeemer on a repeat: key digest or source address.
    pub by: &'a str,
}

/// Whether a token is good for a claim.
///
/// # Errors
/// Says why not.
pub fn judge(token: &TokenRecord, claim: Claim<'_>, now: Millis) -> Result<(), Refused> {
    if token.purpose != claim.purpose {
        return Err(Refused::WrongPurpose);
    }
    if claim
        .machine
        .is_some_and(|machine| machine != token.machine)
    {
        return Err(Refused::WrongMachine);
    }
    if token.revoked_at.is_some() {
        return Err(Refused::Revoked);
    }
    if token.used_at.is_some() {
        let same = token.used_by.as_deref() == Some(claim.by);
        return if same { Ok(()) } else { Err(Refused::Replayed) };
    }
    if token.expires_at <= now {
        return Err(Refused::Expired);
    }
    Ok(())
}

/// Makes and redeems tokens; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokens {
    store: Store,
    recorder: Recorder,
}

impl Tokens {
    /// Over this store; alarms go to this recorder.
    #[must_use]
    pub fn new(store: Store, recorder: Recorder) -> Self {
        Self { store, recorder }
    }

    /// Makes a token and returns the secret: 64 hex digits. It is not kept anywhere.
    ///
    /// # Errors
    /// When the store or the random number generator fails.
    pub async fn mint(
        &self,
        purpose: Purpose,
        machine: &str,
        run: &str,
        ttl: Duration,
    ) -> Result<String, TokenError> {
        let secret = random_secret()?;
        let created_at = now();
        self.store
            .insert_token(&TokenRecord {
                id: uuid::Uuid::now_v7().to_string(),
                digest: digest(&secret),
                purpose,
                machine: machine.to_owned(),
                run: run.to_owned(),
                created_at,
                expires_at: created_at.plus(ttl),
                used_at: None,
                used_by: None,
                revoked_at: None,
            })
            .await?;
        Ok(secret)
    }

    /// Redeems a token. A refusal is recorded; a replay raises an alarm that names the run.
    ///
    /// # Errors
    /// [`TokenError::Refused`] says why; the record of the token comes with it where there is
    /// one, so that the caller can fail its run.
    pub async fn redeem(
        &self,
        secret: &str,
        claim: Claim<'_>,
    ) -> Result<TokenRecord, (TokenError, Option<TokenRecord>)> {
        let wanted = digest(secret);
        let found = self
            .store
            .token_by_digest(&wanted)
            .await
            .map_err(|e| (e.into(), None))?;
        let Some(token) = found.filter(|t| t.digest.as_bytes().ct_eq(wanted.as_bytes()).into())
        else {
            self.refuse(Refused::Unknown, None, claim);
            return Err((TokenError::Refused(Refused::Unknown), None));
        };
        if let Err(refused) = judge(&token, claim, now()) {
            self.refuse(refused, Some(&token), claim);
            return Err((TokenError::Refused(refused), Some(token)));
        }
        if token.used_at.is_none() {
            let won = self.store.use_token(&token.id, claim.by, now()).await;
            if !won.map_err(|e| (e.into(), None))? {
                // Between the look and the mark somebody was faster: look again, once.
                let again = self
                    .store
                    .token_by_digest(&wanted)
                    .await
                    .map_err(|e| (e.into(), None))?;
                let verdict = again
                    .as_ref()
                    .map_or(Err(Refused::Unknown), |t| judge(t, claim, now()));
                if let Err(refused) = verdict {
                    self.refuse(refused, again.as_ref(), claim);
                    return Err((TokenError::Refused(refused), again));
                }
            }
        }
        Ok(token)
    }

    /// Revokes the unused tokens of a run that is over, or those of one purpose.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn revoke_run(&self, run: &str, purpose: Option<Purpose>) -> Result<u64, TokenError> {
        Ok(self.store.revoke_tokens(run, purpose, now()).await?)
    }

    fn refuse(&self, refused: Refused, token: Option<&TokenRecord>, claim: Claim<'_>) {
        let message = format!("{} token refused: {refused}", claim.purpose.as_str());
        // What a caller says of itself is cut short: nobody writes essays into our record.
        let claimed: Option<String> = claim.machine.map(|m| m.chars().take(63).collect());
        let event = Event::new(kind::TOKEN_ALARM, message).data(serde_json::json!({
            "purpose": claim.purpose.as_str(),
            "reason": refused.to_string(),
            "claimed_machine": claimed,
            "by": claim.by,
            "token": token.map(|t| t.id.as_str()),
        }));
        match token {
            Some(token) => self
                .recorder
                .record(event.machine(&token.machine).run(&token.run)),
            None => self.recorder.record_stranger(event),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenRecord {
        TokenRecord {
            id: "1".into(),
            digest: digest("secret"),
            purpose: Purpose::Boot,
            machine: "r1n1".into(),
            run: "run".into(),
            created_at: Millis(0),
            expires_at: Millis(1000),
            used_at: None,
            used_by: None,
            revoked_at: None,
        }
    }

    const CLAIM: Claim<'static> = Claim {
        purpose: Purpose::Boot,
        machine: Some("r1n1"),
        by: "key-a",
    };

    #[test]
    fn judges() {
        let used = TokenRecord {
            used_at: Some(Millis(5)),
            used_by: Some("key-a".into()),
            ..token()
        };
        let revoked = TokenRecord {
            revoked_at: Some(Millis(5)),
            ..token()
        };
        let cases = [
            ("fresh", token(), CLAIM, 999, Ok(())),
            (
                "expired at its last moment",
                token(),
                CLAIM,
                1000,
                Err(Refused::Expired),
            ),
            (
                "other purpose",
                token(),
                Claim {
                    purpose: Purpose::PhoneHome,
                    ..CLAIM
                },
                1,
                Err(Refused::WrongPurpose),
            ),
            (
                "other machine",
                token(),
                Claim {
                    machine: Some("r1n2"),
                    ..CLAIM
                },
                1,
                Err(Refused::WrongMachine),
            ),
            ("repeat by the same key", used.clone(), CLAIM, 6, Ok(())),
            (
                "replay by another key",
                used,
                Claim {
                    by: "key-b",
                    ..CLAIM
                },
                6,
                Err(Refused::Replayed),
            ),
            ("revoked", revoked, CLAIM, 6, Err(Refused::Revoked)),
        ];
        for (name, token, claim, at, expected) in cases {
            assert_eq!(judge(&token, claim, Millis(at)), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn one_of_many_concurrent_redeemers_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, _writer) = crate::event::channel(store.clone());
        let tokens = Tokens::new(store.clone(), recorder);
        let ttl = Purpose::Boot.default_ttl();
        let secret = tokens
            .mint(Purpose::Boot, "r1n1", "run", ttl)
            .await
            .unwrap();
        assert_eq!(secret.len(), 64);
        let stored = store.list_tokens(None, 10).await.unwrap();
        assert!(stored.iter().all(|t| !format!("{t:?}").contains(&secret)));
        let tries: Vec<_> = (0..8)
            .map(|n| {
                let (tokens, secret) = (tokens.clone(), secret.clone());
                tokio::spawn(async move {
                    let by = format!("key-{n}");
                    tokens
                        .redeem(&secret, Claim { by: &by, ..CLAIM })
                        .await
                        .is_ok()
                })
            })
            .collect();
        let mut won = 0;
        for task in tries {
            won += usize::from(task.await.unwrap());
        }
        assert_eq!(won, 1);
    }

    #[tokio::test]
    async fn a_revoked_run_leaves_no_live_token() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, _writer) = crate::event::channel(store.clone());
        let tokens = Tokens::new(store, recorder);
        let ttl = Duration::from_secs(60);
        let secret = tokens
            .mint(Purpose::PhoneHome, "r1n1", "run", ttl)
            .await
            .unwrap();
        assert_eq!(tokens.revoke_run("run", None).await.unwrap(), 1);
        let claim = Claim {
            purpose: Purpose::PhoneHome,
            machine: None,
            by: "10.0.0.1",
        };
        let (error, record) = tokens.redeem(&secret, claim).await.unwrap_err();
        assert!(matches!(error, TokenError::Refused(Refused::Revoked)));
        assert_eq!(record.unwrap().run, "run");
    }
}
