//! Cosign signatures beside an image in an OCI registry: the artefact `sha256-HEX.sig` has, for
//! each signature, a layer that names the signed digest, and the signature as an annotation
//! (cosign's "Signature Specification").

use anneal_image::{Proof, ProofMethod};
use futures_util::StreamExt as _;
use oci_client::Reference;
use oci_client::client::Client;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{
    IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest,
};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{ProofError, cosign, limit};

/// Signatures of one digest that are looked at.
const MOST_SIGNATURES: usize = 64;
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// An image in a registry, resolved to digests. What the caller says of it must be checked: each
/// digest is that of the bytes it names.
pub struct OciImage<'a> {
    /// Client that the image is fetched with.
    pub client: &'a Client,
    /// Login there.
    pub auth: &'a RegistryAuth,
    /// Registry and repository.
    pub reference: &'a Reference,
    /// Digests that lead to the bytes: of the index, if there is one, and of the manifest. A
    /// signature over any of them counts.
    pub digests: Vec<String>,
    /// Digest of the layer that holds the disk, as the manifest names it.
    pub layer: String,
}

impl std::fmt::Debug for OciImage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OciImage")
            .field("reference", &self.reference)
            .field("digests", &self.digests)
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

/// Looks for a signature by the key over one of the image's digests.
///
/// # Errors
/// When there is none, none of them is right, or the registry does not answer.
pub async fn check(image: &OciImage<'_>, key: &cosign::Key) -> Result<Proof, ProofError> {
    let mut reasons = Vec::new();
    for digest in &image.digests {
        let tag = tag(digest).map_err(ProofError::Failed)?;
        let beside = Reference::with_tag(
            image.reference.registry().to_owned(),
            image.reference.repository().to_owned(),
            tag,
        );
        let Some(layers) = signatures(image, &beside).await? else {
            reasons.push(format!("there is no {beside}"));
            continue;
        };
        for layer in layers.iter().take(MOST_SIGNATURES) {
            match signed(image, &beside, layer, digest, key).await? {
                Ok(identity) => {
                    let identity = identity.map(|name| format!(", signed as {name}"));
                    return Ok(Proof {
                        method: ProofMethod::Cosign,
                        signer: Some(key.fingerprint.clone()),
                        source: Some(beside.whole()),
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
        image.reference,
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

/// The layers of the artefact, if there is one.
async fn signatures(
    image: &OciImage<'_>,
    beside: &Reference,
) -> Result<Option<Vec<OciDescriptor>>, ProofError> {
    let kinds = [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];
    let text = match image
        .client
        .pull_manifest_raw(beside, image.auth, &kinds)
        .await
    {
        Ok((text, _)) => text,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(unreachable(beside, error)),
    };
    let manifest: OciImageManifest = serde_json::from_slice(&text).map_err(|error| {
        ProofError::Failed(format!("{beside} is not a list of signatures: {error}"))
    })?;
    Ok(Some(manifest.layers))
}

fn is_missing(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|e| {
            matches!(
                e.code,
                OciErrorCode::ManifestUnknown | OciErrorCode::NotFound
            )
        }),
        OciDistributionError::ServerError { code, .. } => *code == 404,
        _ => false,
    }
}

fn unreachable(what: &Reference, error: OciDistributionError) -> ProofError {
    ProofError::Unreachable {
        what: what.whole(),
        why: format!("{:#}", anyhow::Error::new(error)),
    }
}

/// Whether this layer is a signature by the key over the digest; gives the name it was signed as.
async fn signed(
    image: &OciImage<'_>,
    beside: &Reference,
    layer: &OciDescriptor,
    digest: &str,
    key: &cosign::Key,
) -> Result<Result<Option<String>, String>, ProofError> {
    let annotations = layer.annotations.as_ref();
    let Some(signature) = annotations.and_then(|all| all.get(SIGNATURE)) else {
        return Ok(Err("a layer without signature".to_owned()));
    };
    let most = limit::SIGNATURE;
    if usize::try_from(layer.size).map_or(true, |size| size > most) || signature.len() > most {
        return Ok(Err(format!("a signature of more than {most} bytes")));
    }
    let stream = image.client.pull_blob_stream(beside, layer).await;
    let mut stream = stream.map_err(|error| unreachable(beside, error))?.stream;
    let mut payload = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| ProofError::Unreachable {
            what: beside.whole(),
            why: error.to_string(),
        })?;
        payload.extend_from_slice(&chunk);
        if payload.len() > most {
            return Ok(Err(format!("a signature of more than {most} bytes")));
        }
    }
    if layer.digest != format!("sha256:{}", hex::encode(Sha256::digest(&payload))) {
        return Ok(Err("a signature that was damaged".to_owned()));
    }
    Ok(judge(&payload, signature, digest, key))
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
