//! Makes tokens and takes them back: the store around [`judge`].

use std::time::Duration;

use subtle::ConstantTimeEq;

use super::{Claim, Purpose, Refused, TokenRecord, digest, judge, random_secret};
use crate::clock::now;
use crate::event::{Event, Recorder, kind};
use crate::store::{Store, StoreError};

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

/// What token to make.
#[derive(Debug, Clone, Copy)]
pub struct Mint<'a> {
    /// What it is good for.
    pub purpose: Purpose,
    /// Machine it is bound to.
    pub machine: &'a str,
    /// Run it is bound to.
    pub run: &'a str,
    /// How long it lives.
    pub ttl: Duration,
    /// What it serves; see [`TokenRecord::subject`].
    pub subject: Option<&'a str>,
    /// It may be shown without TLS; see [`TokenRecord::plain`].
    pub plain: bool,
}

/// What an agent's enrolment is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolment {
    /// It is the latest of its run.
    Good,
    /// Its run was taken up again when its agent had fallen silent.
    Void,
    /// Another agent has enrolled since.
    Followed,
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

    /// Makes a token and returns the secret: 64 hex digits. It is not kept anywhere. A new boot
    /// token supersedes the unused ones of its run: at any moment one boot script is good.
    ///
    /// # Errors
    /// When the store or the random number generator fails.
    pub async fn mint(&self, mint: Mint<'_>) -> Result<String, TokenError> {
        let secret = random_secret()?;
        let created_at = now();
        self.store
            .insert_token(&TokenRecord {
                id: uuid::Uuid::now_v7().to_string(),
                digest: digest(&secret),
                purpose: mint.purpose,
                subject: mint.subject.map(str::to_owned),
                plain: mint.plain,
                machine: mint.machine.to_owned(),
                run: mint.run.to_owned(),
                created_at,
                expires_at: created_at.plus(mint.ttl),
                used_at: None,
                used_by: None,
                revoked_at: None,
                superseded: false,
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
        let failed = |e: StoreError| (TokenError::from(e), None);
        let Some(token) = self.find(secret).await.map_err(failed)? else {
            self.refuse(Refused::Unknown, None, claim);
            return Err((TokenError::Refused(Refused::Unknown), None));
        };
        if let Err(refused) = judge(&token, claim, now()) {
            self.refuse(refused, Some(&token), claim);
            return Err((TokenError::Refused(refused), Some(token)));
        }
        if token.used_at.is_none() {
            let won = self.store.use_token(&token.id, claim.by, now()).await;
            if !won.map_err(failed)? {
                // Between the look and the mark somebody was faster: look again, once.
                let again = self.find(secret).await.map_err(failed)?;
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

    /// The session with this secret, if it is `wanted`, not over, and the caller's. Whoever
    /// shows it first is the one that it belongs to. A session that is over alarms nobody: what
    /// kept it asks again for ever.
    ///
    /// # Errors
    /// As [`Self::redeem`].
    pub async fn session(
        &self,
        secret: &str,
        claim: Claim<'_>,
        wanted: impl Fn(&TokenRecord) -> bool,
    ) -> Result<TokenRecord, (TokenError, Option<TokenRecord>)> {
        let found = self.find(secret).await.map_err(|e| (e.into(), None))?;
        let live = |token: &TokenRecord| {
            token.purpose == Purpose::Session
                && token.revoked_at.is_none()
                && now() < token.expires_at
                && wanted(token)
        };
        if !found.as_ref().is_some_and(live) {
            return Err((TokenError::Refused(Refused::Unknown), None));
        }
        self.redeem(secret, claim).await
    }

    /// The token with this secret, if there is one.
    pub(super) async fn find(&self, secret: &str) -> Result<Option<TokenRecord>, StoreError> {
        let wanted = digest(secret);
        let found = self.store.token_by_digest(&wanted).await?;
        Ok(found.filter(|t| t.digest.as_bytes().ct_eq(wanted.as_bytes()).into()))
    }

    /// Revokes the unused tokens of a run that is over, but for those of one purpose.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn revoke_run(&self, run: &str, but: Option<Purpose>) -> Result<u64, TokenError> {
        Ok(self.store.revoke_tokens(run, but, now()).await?)
    }

    /// What an enrolment (the id of a boot token) is worth. An agent enrols once in its life, and
    /// a machine runs one agent at a time.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn enrolment(&self, run: &str, id: &str) -> Result<Enrolment, TokenError> {
        Ok(match self.store.latest_enrolment(run).await? {
            Some((latest, None)) if latest == id => Enrolment::Good,
            Some((latest, Some(_))) if latest == id => Enrolment::Void,
            _ => Enrolment::Followed,
        })
    }

    /// Records that an agent speaks although a later one has enrolled.
    pub fn alarm_two_agents(&self, machine: &str, run: &str, by: &str) {
        let message = "an agent speaks although a later one has enrolled for the same run";
        self.recorder.record(
            Event::new(kind::TOKEN_ALARM, message)
                .machine(machine)
                .run(run)
                .data(serde_json::json!({
                    "purpose": Purpose::Boot.as_str(),
                    "reason": message,
                    "fails_run": true,
                    "by": by,
                })),
        );
    }

    pub(super) fn refuse(&self, refused: Refused, token: Option<&TokenRecord>, claim: Claim<'_>) {
        let message = format!("{} token refused: {refused}", claim.purpose.as_str());
        // What a caller says of itself is cut short: nobody writes essays into our record.
        let claimed: Option<String> = claim.machine.map(|m| m.chars().take(63).collect());
        let event = Event::new(kind::TOKEN_ALARM, message).data(serde_json::json!({
            "purpose": claim.purpose.as_str(),
            "reason": refused.to_string(),
            "fails_run": refused.fails_run(),
            "claimed_machine": claimed,
            "by": claim.by,
            "token": token.map(|t| t.id.as_str()),
            "subject": token.and_then(|t| t.subject.as_deref()),
        }));
        match token {
            Some(token) => self
                .recorder
                .record(event.machine(&token.machine).run(&token.run)),
            None => self.recorder.record_stranger(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: Claim<'static> = Claim {
        purpose: Purpose::Boot,
        machine: Some("r1n1"),
        by: "key-a",
    };

    fn mint(purpose: Purpose) -> Mint<'static> {
        Mint {
            purpose,
            machine: "r1n1",
            run: "run",
            ttl: purpose.default_ttl(),
            subject: None,
            plain: false,
        }
    }

    async fn tokens() -> (Tokens, Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, _writer) = crate::event::channel(store.clone());
        (Tokens::new(store.clone(), recorder), store, dir)
    }

    fn refusal(outcome: Result<TokenRecord, (TokenError, Option<TokenRecord>)>) -> Option<Refused> {
        match outcome {
            Err((TokenError::Refused(refused), _)) => Some(refused),
            Err((error, _)) => panic!("{error}"),
            Ok(_) => None,
        }
    }

    async fn worth(tokens: &Tokens, token: &TokenRecord) -> Enrolment {
        tokens.enrolment("run", &token.id).await.unwrap()
    }

    #[tokio::test]
    async fn one_of_many_concurrent_redeemers_wins() {
        let (tokens, store, _dir) = tokens().await;
        let secret = tokens.mint(mint(Purpose::Boot)).await.unwrap();
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
        let (tokens, _, _dir) = tokens().await;
        let secret = tokens.mint(mint(Purpose::PhoneHome)).await.unwrap();
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

    /// Firmware that fetches the script twice, an iPXE whose answer was lost, a machine that is
    /// switched off and on before its agent enrols: the latest script is the one that runs.
    #[tokio::test]
    async fn fetching_the_script_again_is_honest() {
        let (tokens, _, _dir) = tokens().await;
        for _ in 0..3 {
            tokens.mint(mint(Purpose::Boot)).await.unwrap();
        }
        let last = tokens.mint(mint(Purpose::Boot)).await.unwrap();
        let token = tokens.redeem(&last, CLAIM).await.unwrap();
        assert_eq!(worth(&tokens, &token).await, Enrolment::Good);
        assert_eq!(refusal(tokens.redeem(&last, CLAIM).await), None, "repeat");
    }

    /// The machine booted with the first script, a thief fetched the second.
    #[tokio::test]
    async fn redeeming_a_superseded_token_tells_of_two_parties() {
        let (tokens, store, _dir) = tokens().await;
        let machine = tokens.mint(mint(Purpose::Boot)).await.unwrap();
        let thief = tokens.mint(mint(Purpose::Boot)).await.unwrap();
        let refused = refusal(tokens.redeem(&machine, CLAIM).await);
        assert_eq!(refused, Some(Refused::Superseded));
        assert!(refused.unwrap().fails_run());
        // When the run is over, what is left is merely revoked.
        tokens.revoke_run("run", None).await.unwrap();
        assert_eq!(
            refusal(tokens.redeem(&thief, CLAIM).await),
            Some(Refused::Revoked)
        );
        let states: Vec<_> = store.list_tokens(None, 10).await.unwrap();
        assert_eq!(states.iter().filter(|t| t.superseded).count(), 1);
    }

    /// The machine has enrolled, then a thief fetches a newer script and enrols too.
    #[tokio::test]
    async fn a_later_enrolment_ends_the_one_before() {
        let (tokens, _, _dir) = tokens().await;
        let first = tokens.mint(mint(Purpose::Boot)).await.unwrap();
        let first = tokens.redeem(&first, CLAIM).await.unwrap();
        let later = tokens.mint(mint(Purpose::Boot)).await.unwrap();
        assert_eq!(worth(&tokens, &first).await, Enrolment::Good);
        let by = Claim {
            by: "key-b",
            ..CLAIM
        };
        let later = tokens.redeem(&later, by).await.unwrap();
        assert_eq!(worth(&tokens, &later).await, Enrolment::Good);
        assert_eq!(worth(&tokens, &first).await, Enrolment::Followed);
    }
    /// A node that registers again and again has one key, not many.
    #[tokio::test]
    async fn a_kairos_session_ends_the_ones_before() {
        let (tokens, _, _dir) = tokens().await;
        let session = |run| Mint {
            run,
            subject: Some(super::super::KAIROS),
            ..mint(Purpose::Session)
        };
        let other_run = tokens.mint(session("run-2")).await.unwrap();
        let first = tokens.mint(session("run")).await.unwrap();
        let claim = Claim {
            purpose: Purpose::Session,
            ..CLAIM
        };
        let shown = async |secret: &str| refusal(tokens.session(secret, claim, |_| true).await);
        assert_eq!(shown(&first).await, None);
        let second = tokens.mint(session("run")).await.unwrap();
        assert_eq!(shown(&first).await, Some(Refused::Unknown));
        assert_eq!(shown(&second).await, None);
        assert_eq!(shown(&other_run).await, None);
    }
}
