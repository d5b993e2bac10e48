//! What is known of a token for joining, and what that means.

use std::time::Duration;

use anneal_protocol::time::Millis;

use super::Request;
use crate::settings::ClusterSettings;

/// For how long what an issuer was asked for may come to be. We wait at most half a minute for its
/// answer; a Kubernetes API works on a request that we have given up for another one.
const SETTLES: Duration = Duration::from_secs(120);

/// A token for joining a cluster, without the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Id, growing with time; not secret.
    pub id: String,
    /// Machine that it was made for.
    pub machine: String,
    /// Run that it was made for.
    pub run: String,
    /// Cluster that it lets join.
    pub cluster: String,
    /// Word of the issuer.
    pub issuer: String,
    /// Its public half, with which it is taken back, if it has one.
    pub token_id: Option<String>,
    /// SHA-256, hex, once it is there.
    pub digest: Option<String>,
    /// What it was made for.
    pub why: String,
    /// When the issuer was asked.
    pub created_at: Millis,
    /// When it was there.
    pub minted_at: Option<Millis>,
    /// When it stops being good; none: never.
    pub expires_at: Option<Millis>,
    /// Nobody needs it, whatever becomes of its run.
    pub superseded: bool,
    /// When it was taken back.
    pub revoked_at: Option<Millis>,
    /// How often that was tried.
    pub tries: u32,
    /// When it is tried again.
    pub retry_at: Option<Millis>,
    /// Why it did not succeed.
    pub problem: Option<String>,
}

impl JoinToken {
    /// What is known before an issuer is asked.
    pub(super) fn new(cluster: &ClusterSettings, request: Request<'_>, at: Millis) -> Self {
        let expires = cluster.issuer.expires();
        Self {
            id: uuid::Uuid::now_v7().to_string(),
            machine: request.machine.to_owned(),
            run: request.run.to_owned(),
            cluster: cluster.name.clone(),
            issuer: cluster.issuer.as_str().to_owned(),
            token_id: None,
            digest: None,
            why: request.why.to_owned(),
            created_at: at,
            minted_at: None,
            expires_at: expires.then(|| at.plus(cluster.ttl)),
            superseded: false,
            revoked_at: None,
            tries: 0,
            retry_at: None,
            problem: None,
        }
    }

    /// Until when the token may come to be although it is not there: the issuer has not answered,
    /// or nobody heard it. None once it was there.
    pub(super) fn unsettled_until(&self) -> Option<Millis> {
        match self.minted_at {
            None => Some(self.created_at.plus(SETTLES)),
            Some(_) => None,
        }
    }

    /// `permanent`, `revoked`, `expired`, `revoking` (it was tried and failed), `asked` (the issuer
    /// has not answered) or `live`.
    #[must_use]
    pub fn state(&self, now: Millis) -> &'static str {
        if self.revoked_at.is_some() {
            return "revoked";
        }
        match self.expires_at {
            None => "permanent",
            Some(at) if at <= now => "expired",
            Some(_) if self.problem.is_some() => "revoking",
            Some(_) if self.minted_at.is_none() => "asked",
            Some(_) => "live",
        }
    }

    /// What the cluster's administrators read about it.
    #[must_use]
    pub fn description(&self) -> String {
        format!("anneal: machine {}, run {}", self.machine, self.run)
    }
}
