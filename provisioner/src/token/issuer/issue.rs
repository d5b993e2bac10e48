//! Asking an issuer: what is written down before, and after.

use zeroize::Zeroizing;

use super::kubernetes::{self, BootstrapToken};
use super::{
    Failure, IssueError, Issuers, JoinToken, LONGEST_FILE, Request, ca, exec, file, talos,
};
use crate::clock::{now, rfc3339};
use crate::event::kind;
use crate::render::{JoinSecrets, JoinWanted};
use crate::settings::{ClusterSettings, IssuerSettings};
use crate::token::{TokenError, digest};

impl Issuers {
    pub(super) async fn issue_from(
        &self,
        cluster: &ClusterSettings,
        request: Request<'_>,
        wanted: JoinWanted,
    ) -> Result<JoinSecrets, IssueError> {
        let failed = |failure: Failure| IssueError::Issuer {
            cluster: cluster.name.clone(),
            issuer: cluster.issuer.as_str(),
            reason: failure.reason,
            retryable: failure.retryable,
        };
        let mut secrets = JoinSecrets::default();
        if let IssuerSettings::Talos { .. } = &cluster.issuer {
            let bundle = self.bundle(cluster).await.map_err(failed)?;
            if wanted.token || wanted.bundle {
                let token = bundle.join_token();
                self.given(cluster, request, token).await?;
            }
            bundle.fill(&mut secrets).map_err(failed)?;
            return Ok(secrets);
        }
        if wanted.ca {
            let pem = self.ca(cluster).await.map_err(failed)?;
            secrets.ca_hash = Some(ca::pin(&pem).map_err(|e| failed(Failure::lasting(e)))?);
            secrets.ca_pem = Some(pem);
        }
        if !wanted.token {
            return Ok(secrets);
        }
        if let IssuerSettings::Static { token } = &cluster.issuer {
            let token = self.files.read(token).await;
            let token = token.map_err(|e| failed(file(&e)))?;
            exec::shape(&token).map_err(|e| failed(Failure::lasting(e)))?;
            self.given(cluster, request, &token).await?;
            secrets.token = Some(token);
            secrets.expires_at = Some("never".to_owned());
            return Ok(secrets);
        }
        let record = self.minted(cluster, request).await?;
        secrets.expires_at = record.0.expires_at.map(rfc3339);
        secrets.token_id = record.0.token_id;
        secrets.token = Some(record.1);
        Ok(secrets)
    }

    /// Has a token made that expires.
    async fn minted(
        &self,
        cluster: &ClusterSettings,
        request: Request<'_>,
    ) -> Result<(JoinToken, Zeroizing<String>), IssueError> {
        let mut record = JoinToken::new(cluster, request, now());
        let bootstrap = match &cluster.issuer {
            IssuerSettings::Kubernetes { .. } => {
                let random = |e: TokenError| IssueError::Issuer {
                    cluster: cluster.name.clone(),
                    issuer: cluster.issuer.as_str(),
                    reason: e.to_string(),
                    retryable: true,
                };
                Some(BootstrapToken::random().map_err(random)?)
            }
            _ => None,
        };
        record.token_id = bootstrap.as_ref().map(|token| token.id.clone());
        // From here on there may be a token, and the sweep knows of it.
        self.store.insert_join_token(&record).await?;
        let made = match bootstrap {
            Some(token) => self.create(cluster, &mut record, token).await,
            None => exec::mint(cluster, &record).await,
        };
        let token = match made {
            Ok(token) => token,
            Err(failure) => {
                if failure.maybe_made {
                    self.store.supersede_join_token(&record.id).await?;
                } else {
                    self.store.remove_join_token(&record.id).await?;
                }
                return Err(IssueError::Issuer {
                    cluster: cluster.name.clone(),
                    issuer: cluster.issuer.as_str(),
                    reason: failure.reason,
                    retryable: failure.retryable,
                });
            }
        };
        record.token_id = record.token_id.or_else(|| exec::token_id(&token));
        self.note(&mut record, &token, request).await?;
        Ok((record, token))
    }

    async fn create(
        &self,
        cluster: &ClusterSettings,
        record: &mut JoinToken,
        mut token: BootstrapToken,
    ) -> Result<Zeroizing<String>, Failure> {
        let IssuerSettings::Kubernetes { access, groups } = &cluster.issuer else {
            return Err(Failure::lasting("not a Kubernetes issuer"));
        };
        let api = kubernetes::Api::open(access, &self.files).await?;
        for _ in 0..3 {
            if api.create(&token, record, groups).await? {
                return Ok(token.text());
            }
            // Somebody else has a token of this id.
            token = BootstrapToken::random().map_err(|e| Failure::passing(e.to_string()))?;
            let renamed = self.store.rename_join_token(&record.id, &token.id).await;
            renamed.map_err(|e| Failure::passing(e.to_string()))?;
            record.token_id = Some(token.id.clone());
        }
        Err(Failure::passing("three random token ids were taken"))
    }

    /// Records that a text holds a token that was there before.
    async fn given(
        &self,
        cluster: &ClusterSettings,
        request: Request<'_>,
        token: &str,
    ) -> Result<(), IssueError> {
        let mut record = JoinToken::new(cluster, request, now());
        record.token_id = exec::token_id(token);
        self.store.insert_join_token(&record).await?;
        self.note(&mut record, token, request).await
    }

    async fn note(
        &self,
        record: &mut JoinToken,
        token: &str,
        request: Request<'_>,
    ) -> Result<(), IssueError> {
        record.minted_at = Some(now());
        record.digest = Some(digest(token));
        self.store
            .join_token_minted(record, request.replaces)
            .await?;
        let message = format!(
            "{} gets a token to join cluster {}, in {}",
            record.machine, record.cluster, record.why
        );
        let data = serde_json::json!({
            "token": record.id,
            "cluster": record.cluster,
            "issuer": record.issuer,
            "token_id": record.token_id,
            "why": record.why,
            "expires_at": record.expires_at.map(rfc3339),
        });
        self.record(
            kind::JOIN_ISSUED,
            message,
            &record.machine,
            &record.run,
            data,
        );
        Ok(())
    }

    /// The CA of a cluster's API, PEM.
    pub(super) async fn ca(&self, cluster: &ClusterSettings) -> Result<String, Failure> {
        match (&cluster.ca, &cluster.issuer) {
            (Some(path), _) => {
                let read = tokio::fs::read_to_string(path).await;
                read.map_err(|e| Failure::lasting(format!("reading {}: {e}", path.display())))
            }
            (None, IssuerSettings::Kubernetes { access, .. }) => {
                kubernetes::Api::open(access, &self.files).await?.ca().await
            }
            (None, issuer) => Err(Failure::lasting(format!(
                "the `{}` issuer does not know the cluster's CA: set `ca` of cluster {}",
                issuer.as_str(),
                cluster.name
            ))),
        }
    }

    pub(super) async fn bundle(&self, cluster: &ClusterSettings) -> Result<talos::Bundle, Failure> {
        let name = &cluster.name;
        if let IssuerSettings::Talos {
            secrets: Some(path),
        } = &cluster.issuer
        {
            let text = self.files.read_text(path, LONGEST_FILE).await;
            let text = text.map_err(|e| file(&e))?;
            return talos::Bundle::parse(&text, &path.to_string_lossy()).map_err(Failure::lasting);
        }
        let stored = self.store.cluster_secrets(name).await;
        let stored = stored.map_err(|e| Failure::passing(e.to_string()))?;
        let Some(stored) = stored else {
            return Err(Failure::lasting(format!(
                "its secrets are missing: anneal cluster import {name} FILE"
            )));
        };
        let text = self.vault.open(name, &stored.sealed);
        let text = text.map_err(|e| Failure::lasting(format!("{e:#}")))?;
        talos::Bundle::parse(&text, name).map_err(Failure::lasting)
    }
}
