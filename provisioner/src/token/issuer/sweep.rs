//! Takes back the tokens that nobody needs: level-triggered, one at a time, patient.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anneal_protocol::time::Millis;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Failure, Issuers, JoinToken, exec, kubernetes};
use crate::clock::now;
use crate::event::kind;
use crate::settings::IssuerSettings;
use crate::store::StoreError;

/// How often to look when nothing seems to happen.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// Pause after the first failure; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How long to wait after so many failed tries.
fn pause(tries: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << tries.min(10))
        .min(LONGEST_PAUSE)
}

impl Issuers {
    /// Takes back what is to be taken back, whenever `changed` says that something happened, and
    /// now and then, until `stop`.
    ///
    /// # Errors
    /// When the database fails otherwise than for a full disk, which is waited out.
    pub async fn run(
        self: Arc<Self>,
        changed: Arc<Notify>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let wake = changed.notified();
            tokio::pin!(wake);
            wake.as_mut().enable();
            let swept = tokio::select! {
                // What is under way is dropped: the next daemon does it again.
                () = stop.cancelled() => return Ok(()),
                swept = self.sweep() => swept,
            };
            let look_at = match swept {
                Err(error) if error.is_out_of_space() => {
                    tracing::error!(%error, "revoking join tokens waits: the disk fails");
                    None
                }
                swept => swept?,
            };
            let pause = look_at.map_or(LOOK_AGAIN, |at| at.since(now()).min(LOOK_AGAIN));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = wake => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes back what is to be taken back now. Tells when to look again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sweep(&self) -> Result<Option<Millis>, StoreError> {
        let mut look_at: Option<Millis> = None;
        // An API that does not answer is not asked again for every token that it has. It is asked
        // for the one that was tried least, so that one of them cannot keep all others waiting.
        let mut away: BTreeMap<String, Failure> = BTreeMap::new();
        for token in self.store.join_tokens_to_revoke(now()).await? {
            let again = match token.retry_at.filter(|at| now() < *at) {
                Some(at) => Some(at),
                None => self.attend(&token, &mut away).await?,
            };
            look_at = look_at.into_iter().chain(again).min();
        }
        Ok(look_at)
    }

    /// Takes one token back, unless its cluster is away, and notes how that went. Tells when to
    /// look at it again.
    async fn attend(
        &self,
        token: &JoinToken,
        away: &mut BTreeMap<String, Failure>,
    ) -> Result<Option<Millis>, StoreError> {
        let (outcome, tried) = match away.get(&token.cluster) {
            Some(failure) => (Err(failure.clone()), false),
            None => (self.take_back(token).await, true),
        };
        if let (Err(failure), true) = (&outcome, tried)
            && failure.away
        {
            away.insert(token.cluster.clone(), failure.clone());
        }
        if matches!(outcome, Ok(false)) {
            return Ok(None);
        }
        if let Some(at) = token.unsettled_until().filter(|at| now() < *at) {
            // Nobody knows whether there will be one: that there is none now says nothing, and
            // neither does it that its id is not known.
            self.store.join_token_unsettled(&token.id, at).await?;
            return Ok(Some(at));
        }
        let Err(failure) = outcome else {
            if self.store.join_token_revoked(token, now()).await? {
                self.tell(token, kind::JOIN_REVOKED, "is revoked", None);
            }
            return Ok(None);
        };
        self.unrevoked(token, &failure, tried).await.map(Some)
    }

    /// Notes that a token could not be taken back: it was tried, or its cluster is away. Tells
    /// when to look at it again.
    async fn unrevoked(
        &self,
        token: &JoinToken,
        failure: &Failure,
        tried: bool,
    ) -> Result<Millis, StoreError> {
        let at = now().plus(pause(token.tries));
        self.store
            .join_token_unrevoked(&token.id, &failure.reason, at, tried)
            .await?;
        // Once is enough for people; the list of tokens has the latest reason. One that has ended
        // is rubbish, and no danger.
        let good = token.expires_at.is_none_or(|end| now() < end);
        if token.problem.is_none() && good {
            let what = "could not be revoked and is tried again";
            self.tell(token, kind::JOIN_UNREVOKED, what, Some(&failure.reason));
        }
        if tried {
            tracing::warn!(
                cluster = token.cluster,
                machine = token.machine,
                tries = token.tries + 1,
                reason = failure.reason,
                "a join token could not be revoked"
            );
        }
        Ok(at)
    }

    /// Takes one token back. False when there is no way to: it ends by itself.
    async fn take_back(&self, token: &JoinToken) -> Result<bool, Failure> {
        let cluster = self.cluster(&token.cluster).map_err(Failure::lasting)?;
        let issuer = cluster.issuer.as_str();
        if token.issuer != issuer {
            return Err(Failure::lasting(format!(
                "it was made by the issuer `{}`, and anneal.yaml says `{issuer}` for cluster {} now: revoke it there, or bring that issuer back until it is",
                token.issuer, cluster.name
            )));
        }
        match &cluster.issuer {
            IssuerSettings::Kubernetes { access, .. } => {
                let Some(id) = &token.token_id else {
                    return Err(Failure::lasting("the token's id is not known"));
                };
                let api = kubernetes::Api::open(access, &self.files).await?;
                api.delete(id).await?;
                Ok(true)
            }
            IssuerSettings::Exec { .. } => exec::revoke(cluster, token).await,
            IssuerSettings::Talos { .. } | IssuerSettings::Static { .. } => Ok(false),
        }
    }

    fn tell(&self, token: &JoinToken, kind: &str, what: &str, reason: Option<&str>) {
        let because = reason
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        let message = format!(
            "the token with which {} joins cluster {} {what}{because}",
            token.machine, token.cluster
        );
        let data = serde_json::json!({
            "token": token.id,
            "cluster": token.cluster,
            "issuer": token.issuer,
            "token_id": token.token_id,
            "reason": reason,
        });
        self.record(kind, message, &token.machine, &token.run, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_ten_minutes() {
        let pauses: Vec<u64> = [0, 1, 2, 6, 7, 40].map(|n| pause(n).as_secs()).into();
        assert_eq!(pauses, [5, 10, 20, 320, 600, 600]);
    }
}
