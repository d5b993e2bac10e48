//! Tokens with which machines join Kubernetes clusters, made by somebody else on our behalf.
//!
//! Owns: which issuer serves a cluster, the record of every token that was asked for, and taking
//! back those that nobody needs any more ([`Issuers::run`]).
//!
//! Invariants: a token is asked for when the text that holds it is sent, never earlier. Before an
//! issuer is asked, what is needed to take the token back is stored; so a daemon that dies at any
//! moment leaves nothing behind that its successor does not know of. (A command that makes tokens
//! chooses their ids: of those, only the description is known before.) The secret half is in the
//! answer of [`Issuers::issue`] only; the store has its SHA-256. Whether a token is to be taken
//! back is read from the store each time: nothing has to be remembered for it.
//!
//! Not here: when a text is rendered (`workflow`), and our own one-use tokens (`token`).

mod ca;
mod exec;
mod issue;
mod kubeconfig;
mod kubernetes;
mod record;
mod sweep;
mod talos;
mod vault;

use std::path::Path;

use anyhow::Context as _;

use crate::bmc::PasswordDirs;
use crate::clock::now;
use crate::event::{Event, Recorder, kind};
use crate::render::{ClusterFacts, JoinSecrets, JoinWanted};
use crate::settings::{ClusterSettings, IssuerSettings, JoinSettings};
use crate::store::{ClusterSecrets, Store, StoreError};
use crate::yaml::nearest;

pub use record::JoinToken;

/// Longest file with a secret of a cluster: a kubeconfig or a Talos bundle has some 10 KB.
const LONGEST_FILE: u64 = 256 * 1024;

/// Who wants a token, and what for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Cluster to join.
    pub cluster: &'a str,
    /// Machine that will.
    pub machine: &'a str,
    /// Run that it is made for.
    pub run: &'a str,
    /// What holds it: a step, or a config URL.
    pub why: &'a str,
    /// Earlier tokens of the run for the same end are in nobody's hands.
    pub replaces: bool,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer did not make one.
    #[error("no join token for cluster {cluster}: issuer `{issuer}`: {reason}")]
    Issuer {
        /// The cluster.
        cluster: String,
        /// Its issuer.
        issuer: &'static str,
        /// What went wrong, and what to do.
        reason: String,
        /// Whether trying again can help.
        retryable: bool,
    },
    /// The settings have no such cluster.
    #[error("{0}")]
    Unknown(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IssueError {
    /// Whether trying again can help.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Issuer { retryable, .. } => *retryable,
            Self::Unknown(_) => false,
            Self::Store(_) => true,
        }
    }
}

/// How an issuer failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What went wrong.
    reason: String,
    /// Trying again can help.
    retryable: bool,
    /// There may be a token all the same.
    maybe_made: bool,
    /// Nobody answered: the cluster's other tokens would fare alike.
    away: bool,
}

impl Failure {
    /// It would fail again, and made nothing.
    fn lasting(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retryable: false,
            maybe_made: false,
            away: false,
        }
    }

    /// Another try may succeed; nothing was made.
    fn passing(reason: impl Into<String>) -> Self {
        Self {
            retryable: true,
            ..Self::lasting(reason)
        }
    }

    /// Nobody answered; another try may succeed.
    fn away(reason: impl Into<String>) -> Self {
        Self {
            away: true,
            ..Self::passing(reason)
        }
    }

    /// Nobody knows whether it did what it was asked.
    fn unknown(reason: impl Into<String>) -> Self {
        Self {
            maybe_made: true,
            ..Self::passing(reason)
        }
    }
}

/// The clusters and their issuers; share it.
#[derive(Debug)]
pub struct Issuers {
    clusters: Vec<ClusterSettings>,
    files: PasswordDirs,
    vault: vault::Vault,
    store: Store,
    recorder: Recorder,
}

impl Issuers {
    /// Of these clusters. Nothing is asked of them yet.
    ///
    /// # Errors
    /// When a secret's file is where none may be.
    pub fn open(
        settings: &JoinSettings,
        state_dir: &Path,
        store: Store,
        recorder: Recorder,
    ) -> anyhow::Result<Self> {
        let files = PasswordDirs::for_clusters(settings.secret_dirs.clone());
        for cluster in &settings.clusters {
            if let Some(file) = secret_file(&cluster.issuer) {
                files
                    .check(file)
                    .with_context(|| format!("settings of cluster {}", cluster.name))?;
            }
            if matches!(cluster.issuer, IssuerSettings::Static { .. }) {
                tracing::warn!(
                    cluster = cluster.name,
                    "machines of this cluster get a static token: it never expires, and is good for whoever saw it"
                );
            }
        }
        Ok(Self {
            clusters: settings.clusters.clone(),
            files,
            vault: vault::Vault::new(state_dir.join("cluster-secrets.key")),
            store,
            recorder,
        })
    }

    /// The clusters, in the order of the settings.
    #[must_use]
    pub fn clusters(&self) -> &[ClusterSettings] {
        &self.clusters
    }

    /// The cluster of this name.
    ///
    /// # Errors
    /// A sentence that names the known ones.
    pub fn cluster(&self, name: &str) -> Result<&ClusterSettings, String> {
        let known = || self.clusters.iter().map(|cluster| cluster.name.as_str());
        if let Some(cluster) = self.clusters.iter().find(|cluster| cluster.name == name) {
            return Ok(cluster);
        }
        let names: Vec<_> = known().collect();
        Err(match (nearest(name, known()), names.is_empty()) {
            (_, true) => {
                format!("there is no cluster `{name}`: anneal.yaml has no `clusters`")
            }
            (Some(meant), _) => format!("there is no cluster `{name}`, did you mean `{meant}`?"),
            (None, _) => format!(
                "there is no cluster `{name}`, expected one of: {}",
                names.join(", ")
            ),
        })
    }

    /// What templates may know of a cluster; none when there is no such. A Talos cluster's bundle
    /// is read for what it does not have. One that cannot be read tells nothing:
    /// [`Self::read`], [`Self::ready`] and [`Self::issue`] say why.
    pub async fn look(&self, name: &str) -> Option<ClusterFacts> {
        Some(self.read(name).await?.0)
    }

    /// As [`Self::look`], and why the bundle could not be read, if so: a text that reads it may then
    /// be another than it was, or will be.
    pub async fn read(&self, name: &str) -> Option<(ClusterFacts, Option<IssueError>)> {
        let cluster = self.cluster(name).ok()?;
        let has_bundle = matches!(cluster.issuer, IssuerSettings::Talos { .. });
        let lacks = match has_bundle {
            true => self.bundle(cluster).await.map(|bundle| bundle.lacks()),
            false => Ok(Vec::new()),
        };
        let (lacks, unread) = match lacks {
            Ok(lacks) => (lacks, None),
            Err(failure) => {
                tracing::debug!(cluster = name, reason = failure.reason, "no secrets");
                let error = IssueError::Issuer {
                    cluster: cluster.name.clone(),
                    issuer: cluster.issuer.as_str(),
                    reason: failure.reason,
                    // A plan was made with it: it was there, and somebody may bring it back.
                    retryable: true,
                };
                (Vec::new(), Some(error))
            }
        };
        let own_ca = matches!(
            cluster.issuer,
            IssuerSettings::Kubernetes { .. } | IssuerSettings::Talos { .. }
        );
        let facts = ClusterFacts {
            name: cluster.name.clone(),
            endpoint: cluster.endpoint.clone(),
            host: cluster.host.clone(),
            token_id: own_ca,
            ca: own_ca || cluster.ca.is_some(),
            bundle: has_bundle,
            lacks,
        };
        Some((facts, unread))
    }

    /// Whether a cluster's issuer could be asked: its files are there and can be read. Nothing
    /// is made. Gives what to know before saying yes.
    ///
    /// # Errors
    /// A sentence about what is missing.
    pub async fn ready(&self, name: &str) -> Result<Vec<String>, String> {
        let cluster = self.cluster(name)?;
        let told = |failure: Failure| format!("cluster {name}: {}", failure.reason);
        if let Some(path) = &cluster.ca {
            let pem = self.ca(cluster).await.map_err(told)?;
            ca::pin(&pem).map_err(|e| format!("cluster {name}: {}: {e}", path.display()))?;
        }
        match &cluster.issuer {
            IssuerSettings::Kubernetes { access, .. } => {
                kubernetes::connection(access, &self.files)
                    .await
                    .map_err(told)?;
            }
            IssuerSettings::Exec {
                command, revoke, ..
            } => {
                for command in std::iter::once(command).chain(revoke) {
                    exec::check(command).map_err(told)?;
                }
            }
            IssuerSettings::Talos { .. } => {
                self.bundle(cluster).await.map_err(told)?;
            }
            IssuerSettings::Static { token } => {
                self.files.read(token).await.map_err(|e| told(file(&e)))?;
                return Ok(vec![format!(
                    "machines of cluster {name} get its static token: it never expires, and is good for whoever saw it"
                )]);
            }
        }
        Ok(Vec::new())
    }

    /// Makes what a text wants.
    ///
    /// # Errors
    /// When the issuer or the store fails. An issuer's failure is recorded.
    pub async fn issue(
        &self,
        request: Request<'_>,
        wanted: JoinWanted,
    ) -> Result<JoinSecrets, IssueError> {
        let cluster = self.cluster(request.cluster).map_err(IssueError::Unknown)?;
        let issued = self.issue_from(cluster, request, wanted).await;
        if let Err(IssueError::Issuer { reason, .. }) = &issued {
            let message = format!("no join token for {}: {reason}", request.machine);
            let data = serde_json::json!({
                "cluster": cluster.name,
                "issuer": cluster.issuer.as_str(),
                "reason": reason,
                "why": request.why,
            });
            let (machine, run) = (request.machine, request.run);
            self.record(kind::JOIN_FAILED, message, machine, run, data);
        }
        issued
    }

    /// Imports a cluster's secrets, to be stored encrypted. Tells whether others were replaced.
    ///
    /// # Errors
    /// [`ImportError`].
    pub async fn import(&self, name: &str, text: &str, by: &str) -> Result<bool, ImportError> {
        let cluster = self.cluster(name).map_err(ImportError::Unknown)?;
        match &cluster.issuer {
            IssuerSettings::Talos { secrets: None } => {}
            IssuerSettings::Talos {
                secrets: Some(path),
            } => {
                return Err(ImportError::Refused(format!(
                    "the secrets of cluster {name} are in {}, as anneal.yaml says",
                    path.display()
                )));
            }
            other => {
                return Err(ImportError::Refused(format!(
                    "cluster {name} has the issuer `{}`: only `talos` has secrets to import",
                    other.as_str()
                )));
            }
        }
        talos::Bundle::parse(text, "secrets").map_err(ImportError::Refused)?;
        self.keep_key(name).await?;
        let secrets = ClusterSecrets {
            sealed: self.vault.seal(name, text).map_err(ImportError::Vault)?,
            imported_at: now(),
            imported_by: by.to_owned(),
        };
        Ok(self.store.put_cluster_secrets(name, &secrets).await?)
    }

    /// Refuses to have a new key made while secrets of other clusters wait for the old one.
    async fn keep_key(&self, name: &str) -> Result<(), ImportError> {
        let mut others = self.store.clusters_with_secrets().await?;
        others.retain(|other| other != name);
        // In this order: whoever has stored secrets has made a key before.
        if others.is_empty() || self.vault.has_key().map_err(ImportError::Vault)? {
            return Ok(());
        }
        Err(ImportError::Refused(format!(
            "the key {} is gone, and the stored secrets of {} open with no other: bring it back from where it was saved, or remove those secrets first (anneal cluster remove NAME)",
            self.vault.place().display(),
            others.join(", ")
        )))
    }

    fn record(
        &self,
        kind: &str,
        message: String,
        machine: &str,
        run: &str,
        data: serde_json::Value,
    ) {
        let event = Event::new(kind, message).machine(machine).run(run);
        self.recorder.record(event.data(data));
    }
}

/// Why secrets were not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// No such cluster.
    #[error("{0}")]
    Unknown(String),
    /// They are not what they should be.
    #[error("{0}")]
    Refused(String),
    /// They cannot be encrypted.
    #[error("encrypting the secrets")]
    Vault(#[source] anyhow::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The file that an issuer reads a secret from.
fn secret_file(issuer: &IssuerSettings) -> Option<&Path> {
    use crate::settings::Access;
    match issuer {
        IssuerSettings::Kubernetes {
            access: Access::Kubeconfig { file, .. },
            ..
        } => Some(file),
        IssuerSettings::Talos { secrets } => secrets.as_deref(),
        IssuerSettings::Static { token } => Some(token),
        _ => None,
    }
}

/// A secret's file that cannot be read; somebody may put it right meanwhile.
fn file(error: &crate::bmc::PasswordError) -> Failure {
    use std::error::Error as _;
    let cause = error.source().map(|e| format!(": {e}")).unwrap_or_default();
    Failure::lasting(format!("{error}{cause}"))
}

#[cfg(test)]
mod tests;
