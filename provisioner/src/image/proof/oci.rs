//! Cosign signatures beside an image in an OCI registry: the artefact `sha256-HEX.sig` has, for
//! each signature, a layer that names the signed digest, and the signature as an annotation
//! (cosign's "Signature Specification").

use std::collections::BTreeMap;

use anneal_image::{Proof, ProofMethod};
use serde::Deserialize;

use super::{ProofError, cosign, limit};
use crate::image::ingest::IngestError;
use crate::image::ingest::oci::Registry;

/// Signatures of one digest that are looked at.
const MOST_SIGNATURES: usize = 64;
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// An image in a registry, resolved to digests. What the caller says of it must be checked: each
/// digest is that of the bytes it names.
#[derive(Debug)]
pub struct OciImage<'a> {
    /// The repository that it is in.
    pub registry: &'a Registry,
    /// Digests that lead to the bytes: of the index, if there is one, and of the manifest. A
    /// signature over any of them counts.
    pub digests: Vec<String>,
    /// Digest of the layer that holds the disk, as the manifest names it.
    pub layer: String,
}

/// Looks for a signature by the key over one of the image's digests.
///
/// # Errors
/// When there is none, none of them is right, or the registry does not answer.
pub async fn check(image: &OciImage<'_>, key: &cosign::Key) -> Result<Proof, ProofError> {
    let mut reasons = Vec::new();
    for digest in &image.digests {
        let tag = tag(digest).map_err(ProofError::Failed)?;
        let beside = format!("{}:{tag}", image.registry.name());
        let Some(layers) = signatures(image.registry, &tag, &beside).await? else {
            reasons.push(format!("there is no {beside}"));
            continue;
        };
        for layer in layers.iter().take(MOST_SIGNATURES) {
            match signed(image.registry, &beside, layer, digest, key).await? {
                Ok(identity) => {
                    let identity = identity.map(|name| format!(", signed as {name}"));
                    return Ok(Proof {
                        method: ProofMethod::Cosign,
                        signer: Some(key.fingerprint.clone()),
                        source: Some(beside),
                        detail: Some(format!("{digest}{}", identity.unwrap_or_default())),
                    });
                }
                Err(reason) => reasons.push(format!("{beside}: {reason}")),
            }
        }
    }
    Err(ProofError::Failed(format!(
        "no cosign signature by the key {} was found beside {}: {}",
        key.fingerprint,
        image.registry.name(),
        reasons.join("; ")
    )))
}

/// Where cosign puts the signatures of a digest.
fn tag(digest: &str) -> Result<String, String> {
    let hex = digest.strip_prefix("sha256:");
    let good = |hex: &&str| hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_hexdigit());
    hex.filter(good)
        .map(|hex| format!("sha256-{hex}.sig"))
        .ok_or_else(|| format!("\"{digest}\" is not a sha256 digest, and cosign signs no other"))
}

/// The artefact: a signature is an annotation of a layer, which is what was signed.
#[derive(Deserialize)]
struct Signatures {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The layers of the artefact, if there is one.
async fn signatures(
    registry: &Registry,
    tag: &str,
    beside: &str,
) -> Result<Option<Vec<Layer>>, ProofError> {
    let found = registry.find_manifest(tag).await;
    let Some((_, bytes)) = found.map_err(|error| unreachable(beside, &error))? else {
        return Ok(None);
    };
    let found: Signatures = serde_json::from_slice(&bytes).map_err(|error| {
        ProofError::Failed(format!("{beside} is not a list of signatures: {error}"))
    })?;
    Ok(Some(found.layers))
}

fn unreachable(what: &str, error: &IngestError) -> ProofError {
    ProofError::Unreachable {
        what: what.to_owned(),
        why: error.to_string(),
    }
}

/// Whether this layer is a signature by the key over the digest; gives the name it was signed as.
async fn signed(
    registry: &Registry,
    beside: &str,
    layer: &Layer,
    digest: &str,
    key: &cosign::Key,
) -> Result<Result<Option<String>, String>, ProofError> {
    let Some(signature) = layer.annotations.get(SIGNATURE) else {
        return Ok(Err("a layer without signature".to_owned()));
    };
    let most = limit::SIGNATURE;
    if layer.size > most as u64 || signature.len() > most {
        return Ok(Err(format!("a signature of more than {most} bytes")));
    }
    match registry.small_blob(&layer.digest, most).await {
        Ok(payload) => Ok(judge(&payload, signature, digest, key)),
        Err(IngestError::Digest(text)) => Ok(Err(text)),
        Err(error) => Err(unreachable(beside, &error)),
    }
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(default)]
    identity: Identity,
    image: Signed,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct Identity {
    #[serde(default, rename = "docker-reference")]
    reference: Option<String>,
}

#[derive(Deserialize)]
struct Signed {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// The signature must be by the key, and over a statement about this very digest. Pure.
fn judge(
    payload: &[u8],
    signature: &str,
    digest: &str,
    key: &cosign::Key,
) -> Result<Option<String>, String> {
    key.verify(signature, payload)?;
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|error| format!("what was signed is not about an image: {error}"))?;
    let critical = payload.critical;
    if critical.kind != "cosign container image signature" {
        return Err(format!(
            "what was signed is a \"{}\"",
            critical.kind.escape_default()
        ));
    }
    if critical.image.digest != digest {
        return Err(format!(
            "the signature is over {}, expected {digest}",
            critical.image.digest.escape_default()
        ));
    }
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let name = critical.identity.reference.filter(|name| !name.is_empty());
    Ok(name.map(|name| name.chars().map(clean).take(200).collect()))
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
