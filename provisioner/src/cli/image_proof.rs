//! `anneal image add`: the flags of the publisher's proof.
//!
//! Files and addresses are read here, on the operator's side, and sent along inline: the daemon
//! fetches no evidence but TUF metadata and what lies beside an image in an OCI registry.

use std::path::Path;
use std::time::Duration;

use anneal_protocol::api::{Evidence, ProofRequest};
use anyhow::{Context as _, bail};
use base64::Engine as _;
use clap::Args;
use futures_util::StreamExt as _;

use crate::image::proof::limit;
use crate::image::proof::sums::{self, Algorithm};

/// How long an address may take to answer, and to send all of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the publisher says about the image, checked on the file as published (compressed).
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Proof of the publisher (all that are given must hold)")]
pub struct ProofArgs {
    /// Its SHA-256, or a file or address that has it
    #[arg(long, value_name = "VALUE|FILE|URL")]
    sha256: Option<String>,
    /// Its SHA-512, or a file or address that has it
    #[arg(long, value_name = "VALUE|FILE|URL")]
    sha512: Option<String>,
    /// A list of digests that names it (SHA256SUMS, *.DIGESTS, *-CHECKSUM)
    #[arg(long, value_name = "FILE|URL")]
    sums: Option<String>,
    /// OpenPGP or minisign signature over the list, when it is not in the list; needs --key
    #[arg(long, value_name = "FILE|URL", requires_all = ["sums", "key"])]
    sums_signature: Option<String>,
    /// Name of the image in the list, when SOURCE is not called so
    #[arg(long, value_name = "NAME")]
    published_name: Option<String>,
    /// Signature over the image: OpenPGP, minisign, or cosign's base64 (with --cosign-key)
    #[arg(long, value_name = "FILE|URL")]
    signature: Option<String>,
    /// Keys that may have signed: an OpenPGP keyring, or a minisign public key
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
    /// Cosign's public key, PEM; for oci:// sources the signature is found in the registry
    #[arg(long, value_name = "FILE")]
    cosign_key: Option<String>,
    /// A root.json of the TUF repository that you trust
    #[arg(long, value_name = "FILE", requires_all = ["tuf_metadata", "tuf_target"])]
    tuf_root: Option<String>,
    /// Where the metadata of the TUF repository is
    #[arg(long, value_name = "URL", requires = "tuf_root")]
    tuf_metadata: Option<String>,
    /// Name of the image in the TUF repository
    #[arg(long, value_name = "NAME", requires = "tuf_root")]
    tuf_target: Option<String>,
    /// Add the image without proof (role admin); it stays visible wherever the image runs
    #[arg(long, conflicts_with_all = ["sha256", "sha512", "sums", "signature", "cosign_key", "tuf_root"])]
    pub unproven: bool,
}

impl ProofArgs {
    /// Reads the evidence. `source` is where the image comes from, as it was typed: its last
    /// part is the name to look for in lists. None when no proof was given.
    ///
    /// # Errors
    /// When a file or address cannot be read, is too large, or flags do not fit together.
    pub async fn request(&self, source: &str) -> anyhow::Result<Option<ProofRequest>> {
        let mut proofs = Vec::new();
        for (algorithm, given) in [
            (Algorithm::Sha256, &self.sha256),
            (Algorithm::Sha512, &self.sha512),
        ] {
            if let Some(given) = given {
                proofs.push(self.digest(algorithm, given, source).await?);
            }
        }
        if let Some(given) = &self.sums {
            proofs.push(self.list(given, source).await?);
        }
        if let Some(request) = self.signed(source).await? {
            proofs.push(request);
        }
        if let (Some(root), Some(metadata_url), Some(target)) =
            (&self.tuf_root, &self.tuf_metadata, &self.tuf_target)
        {
            proofs.push(ProofRequest::Tuf {
                root: text(read(root, limit::ROOT).await?, root)?,
                metadata_url: metadata_url.clone(),
                target: target.clone(),
            });
        }
        if self.key.is_some() && self.signature.is_none() && self.sums.is_none() {
            bail!("--key alone proves nothing: give --signature or --sums as well");
        }
        Ok(match proofs.len() {
            0 | 1 => proofs.pop(),
            _ => Some(ProofRequest::All { proofs }),
        })
    }

    /// A value, or where to find it: one alone or in a list.
    async fn digest(
        &self,
        algorithm: Algorithm,
        given: &str,
        source: &str,
    ) -> anyhow::Result<ProofRequest> {
        let looks_like_value =
            given.len() == algorithm.digits() && given.bytes().all(|c| c.is_ascii_hexdigit());
        let (value, from) = if looks_like_value {
            (given.to_owned(), None)
        } else {
            let list = text(read(given, limit::SUMS).await?, given)?;
            let found = match sums::lone(&list) {
                Some((found, digest)) if found == algorithm => digest,
                Some((found, _)) => bail!("{given} has a {found}, not a {algorithm}"),
                None => {
                    sums::find_of(&list, &self.name(source)?, Some(algorithm))
                        .map_err(anyhow::Error::msg)
                        .with_context(|| format!("looking for the {algorithm} in {given}"))?
                        .digest
                }
            };
            (hex::encode(found), Some(shown(given)))
        };
        Ok(match algorithm {
            Algorithm::Sha256 => ProofRequest::Sha256 {
                value,
                source: from,
            },
            Algorithm::Sha512 => ProofRequest::Sha512 {
                value,
                source: from,
            },
        })
    }

    async fn list(&self, given: &str, source: &str) -> anyhow::Result<ProofRequest> {
        let signature = match &self.sums_signature {
            Some(from) => Some(evidence(read(from, limit::SIGNATURE).await?)),
            None => None,
        };
        // With --signature the key may be meant for that alone: an unsigned list stays one.
        let list = text(read(given, limit::SUMS).await?, given)?;
        let signed = signature.is_some() || list.contains("-----BEGIN PGP SIGNED MESSAGE-----");
        let keys = match &self.key {
            Some(from) if signed => Some(evidence(read(from, limit::KEYS).await?)),
            Some(_) if self.signature.is_none() => bail!(
                "{given} carries no signature of its own: give --sums-signature, or leave out --key"
            ),
            _ => None,
        };
        Ok(ProofRequest::Sums {
            text: list,
            file_name: self.name(source)?,
            signature,
            keys,
            source: Some(shown(given)),
        })
    }

    /// A signature over the image itself; its content and the keys tell the kind.
    async fn signed(&self, source: &str) -> anyhow::Result<Option<ProofRequest>> {
        let from = self.signature.as_deref();
        let signature = match from {
            Some(from) => Some(read(from, limit::SIGNATURE).await?),
            None => None,
        };
        if let Some(key) = &self.cosign_key {
            if signature.is_none() && !source.starts_with("oci://") {
                bail!("--cosign-key needs --signature, unless the image comes from oci://");
            }
            return Ok(Some(ProofRequest::Cosign {
                signature: match (signature, from) {
                    (Some(bytes), Some(from)) => Some(text(bytes, from)?),
                    _ => None,
                },
                key: text(read(key, limit::KEYS).await?, key)?,
                source: from.map(shown),
            }));
        }
        let (Some(signature), Some(from)) = (signature, from) else {
            return Ok(None);
        };
        let Some(key) = &self.key else {
            bail!("--signature needs to know whose it is: give --key FILE or --cosign-key FILE");
        };
        let keys = read(key, limit::KEYS).await?;
        let source = Some(shown(from));
        Ok(Some(if is_minisign(&signature) {
            ProofRequest::Minisign {
                signature: text(signature, from)?,
                key: text(keys, key)?,
                source,
            }
        } else {
            ProofRequest::Openpgp {
                signature: evidence(signature),
                keys: evidence(keys),
                source,
            }
        }))
    }

    /// What the publisher calls the image.
    fn name(&self, source: &str) -> anyhow::Result<String> {
        if let Some(name) = &self.published_name {
            return Ok(name.clone());
        }
        let path = source.split(['?', '#']).next().unwrap_or(source);
        let path = if is_address(source) { path } else { source };
        match path.rsplit('/').next() {
            Some(name) if !name.is_empty() && name != "-" && !source.starts_with("oci://") => {
                Ok(name.to_owned())
            }
            _ => bail!(
                "which name has the image in the list of digests? \"{source}\" does not tell: give --published-name"
            ),
        }
    }
}

fn is_address(given: &str) -> bool {
    given.starts_with("https://") || given.starts_with("http://")
}

/// Minisign's files are text and begin with a comment (its manual, "Signature format").
fn is_minisign(signature: &[u8]) -> bool {
    signature.starts_with(b"untrusted comment:")
}

/// Where evidence came from, for the record: an address as it is without what may be secret in
/// it, a file by its name.
fn shown(given: &str) -> String {
    let text = if is_address(given) {
        match reqwest::Url::parse(given) {
            Ok(mut url) => {
                let _ = url.set_password(None);
                let _ = url.set_username("");
                url.set_query(None);
                url.set_fragment(None);
                url.to_string()
            }
            Err(_) => given.to_owned(),
        }
    } else {
        let name = Path::new(given).file_name();
        name.map_or_else(|| given.to_owned(), |name| name.to_string_lossy().into())
    };
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(clean).take(limit::NAME / 4).collect()
}

fn evidence(bytes: Vec<u8>) -> Evidence {
    match String::from_utf8(bytes) {
        Ok(text) => Evidence::Text(text),
        Err(error) => {
            let base64 = base64::engine::general_purpose::STANDARD;
            Evidence::Base64(base64.encode(error.as_bytes()))
        }
    }
}

fn text(bytes: Vec<u8>, from: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes)
        .ok()
        .with_context(|| format!("{from} is not text: is it the right file?"))
}

/// Reads a file or an address, no more than `most` bytes.
async fn read(given: &str, most: usize) -> anyhow::Result<Vec<u8>> {
    let bytes = if is_address(given) {
        let doing = || format!("fetching {given}");
        tokio::time::timeout(PATIENCE, fetch(given, most))
            .await
            .with_context(doing)?
            .with_context(doing)?
    } else {
        use tokio::io::AsyncReadExt as _;
        let doing = || format!("reading {given}");
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(given).await.with_context(doing)?;
        let limit = most as u64 + 1;
        file.take(limit)
            .read_to_end(&mut bytes)
            .await
            .with_context(doing)?;
        bytes
    };
    if bytes.len() > most {
        bail!("{given} has more than the {most} bytes that such a file may have");
    }
    if bytes.is_empty() {
        bail!("{given} is empty");
    }
    Ok(bytes)
}

async fn fetch(address: &str, most: usize) -> anyhow::Result<Vec<u8>> {
    let response = reqwest::get(address).await?.error_for_status()?;
    let mut stream = response.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() > most {
            break;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "image_proof_tests.rs"]
mod tests;
