//! Targets of TUF repositories, by the crate `tough`.
//!
//! The operator's root is where trust begins; the daemon fetches the rest of the metadata and
//! refuses what has expired. What it saw last of a repository is kept in the state directory, so
//! that an older version of it is refused later.
//!
//! Not here: fetching the target itself; its bytes come with the image, from wherever.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anneal_image::{Proof, ProofMethod};
use futures_util::StreamExt as _;
use reqwest::{StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tough::error::Error as TufError;
use tough::schema::RoleType;
use tough::{
    ExpirationEnforcement, Limits, RepositoryLoader, TargetName, Transport, TransportError,
    TransportErrorKind, TransportStream, async_trait,
};

use super::openpgp::date;
use super::{ProofError, limit};
use crate::image::ingest::fetch::{self, Patience, Trouble, Web};
use crate::image::ingest::guard::Guard;

/// How long fetching all metadata of a repository may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of metadata of one repository, delegated roles included.
const MOST_METADATA: u64 = 64 << 20;

const LIMITS: Limits = Limits {
    max_root_size: limit::ROOT as u64,
    max_targets_size: 16 << 20,
    max_timestamp_size: 64 << 10,
    max_snapshot_size: 4 << 20,
    max_root_updates: 256,
};

/// What a repository says of a target.
#[derive(Debug)]
pub struct Target {
    /// Its size in bytes.
    pub length: u64,
    /// Its SHA-256.
    pub sha256: Vec<u8>,
    /// What is proved if the bytes are these.
    pub proof: Proof,
}

/// Fetches and verifies the metadata of the repository at `metadata_url` and looks the target
/// up. `state_dir` remembers repositories; one call at a time.
///
/// # Errors
/// When metadata cannot be had, is wrong, has expired or is older than what was seen before, or
/// has no such target.
pub async fn find(
    state_dir: &Path,
    guard: Guard,
    root: &str,
    metadata_url: &str,
    target: &str,
) -> Result<Target, ProofError> {
    let url = Url::parse(metadata_url).map_err(|error| {
        ProofError::Unusable(format!(
            "\"{metadata_url}\" is not the address of TUF metadata ({error}): expected https://HOST/PATH/"
        ))
    })?;
    guard
        .url(&url)
        .map_err(|error| ProofError::Unusable(format!("TUF metadata: {error}")))?;
    let name = TargetName::new(target)
        .map_err(|error| ProofError::Unusable(format!("the TUF target: {error}")))?;
    let seen = state_dir.join(hex::encode(&Sha256::digest(url.as_str())[..16]));
    std::fs::create_dir_all(&seen).map_err(|error| ProofError::Unreachable {
        what: format!("what is known of the TUF repository {url}"),
        why: format!("creating {}: {error}", seen.display()),
    })?;
    let web = fetch::client(guard, Patience::default(), None);
    let web = web.map_err(|error| ProofError::Unreachable {
        what: url.to_string(),
        why: error.to_string(),
    })?;
    let transport = Http {
        web,
        left: Arc::new(AtomicU64::new(MOST_METADATA)),
    };
    let loading = RepositoryLoader::new(&root, url.clone(), url.clone())
        .transport(transport)
        .limits(LIMITS)
        .datastore(seen)
        .expiration_enforcement(ExpirationEnforcement::Safe)
        .load();
    let repository = tokio::time::timeout(PATIENCE, loading)
        .await
        .map_err(|_| ProofError::Unreachable {
            what: format!("TUF metadata from {url}"),
            why: format!("not complete after {} seconds", PATIENCE.as_secs()),
        })?
        .map_err(|error| told(&url, error))?;
    let targets = &repository.targets().signed;
    let Ok(found) = targets.find_target(&name, false) else {
        let names = repository.all_targets().map(|(name, _)| name.raw());
        let names: Vec<&str> = names.take(10).collect();
        return Err(ProofError::Failed(format!(
            "the TUF repository {url} has no target \"{target}\", but {}",
            match names.is_empty() {
                true => "none at all".to_owned(),
                false => names.join(", "),
            }
        )));
    };
    let ends = u64::try_from(repository.timestamp().signed.expires.as_second()).unwrap_or(0);
    Ok(Target {
        length: found.length,
        sha256: found.hashes.sha256.to_vec(),
        proof: Proof {
            method: ProofMethod::Tuf,
            signer: Some(format!("sha256:{}", hex::encode(Sha256::digest(root)))),
            source: Some(url.to_string()),
            detail: Some(format!(
                "target {target}, targets version {}, root version {}, good until {}",
                targets.version,
                repository.root().signed.version,
                date(ends)
            )),
        },
    })
}

/// Why a request failed.
fn words(trouble: Trouble) -> String {
    match trouble {
        Trouble::Broken(text) => text,
        Trouble::Fatal(error) => error.to_string(),
    }
}

/// What went wrong, in the operator's words.
fn told(url: &Url, error: TufError) -> ProofError {
    match error {
        TufError::ExpiredMetadata { role, .. } => ProofError::Failed(format!(
            "the {role} metadata of the TUF repository {url} has expired: {}",
            match role {
                RoleType::Root => "get a current root.json from the publisher",
                _ => "the publisher must renew it, or somebody serves an old copy",
            }
        )),
        TufError::OlderMetadata {
            role,
            current_version,
            new_version,
            ..
        } => ProofError::Failed(format!(
            "the {role} metadata of the TUF repository {url} went back from version {current_version} to {new_version}: somebody serves an old copy"
        )),
        TufError::Transport { source, .. } => ProofError::Unreachable {
            what: format!("TUF metadata from {url}"),
            why: format!("{:#}", anyhow::Error::new(source)),
        },
        error => ProofError::Failed(format!(
            "the TUF repository {url}: {:#}",
            anyhow::Error::new(error)
        )),
    }
}

/// Fetches metadata by HTTP from where the daemon may fetch, no more than [`MOST_METADATA`] in all.
#[derive(Debug, Clone)]
struct Http {
    web: Web,
    left: Arc<AtomicU64>,
}

#[async_trait]
impl Transport for Http {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let other = |url: &Url, cause: Box<dyn std::error::Error + Send + Sync>| {
            TransportError::new_with_cause(TransportErrorKind::Other, url.as_str(), cause)
        };
        let request = self.web.get(url.clone());
        let request = request.map_err(|trouble| other(&url, words(trouble).into()))?;
        let answer = request.send().await.map_err(fetch::trouble);
        let answer = answer.map_err(|trouble| other(&url, words(trouble).into()))?;
        // Object stores that do not let strangers list answer 403 for what does not exist.
        if matches!(
            answer.status(),
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE
        ) {
            return Err(TransportError::new(
                TransportErrorKind::FileNotFound,
                url.as_str(),
            ));
        }
        let answer = answer
            .error_for_status()
            .map_err(|error| other(&url, error.into()))?;
        let left = self.left.clone();
        // Gathered first: the stream must be Sync, which a body is not.
        let mut body = answer.bytes_stream();
        let mut chunks = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| other(&url, error.into()))?;
            let length = chunk.len() as u64;
            let take = |left: u64| left.checked_sub(length);
            if left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_err()
            {
                let text = format!("more than {MOST_METADATA} bytes of metadata");
                return Err(other(&url, text.into()));
            }
            chunks.push(Ok(chunk));
        }
        Ok(Box::pin(futures_util::stream::iter(chunks)))
    }
}

#[cfg(test)]
#[path = "tuf_tests.rs"]
mod tests;
