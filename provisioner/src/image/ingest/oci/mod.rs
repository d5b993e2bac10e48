//! Disk images in container registries: which blob of a reference is the disk, and opening it.
//!
//! Invariants: every byte of a manifest and of a blob is checked against the digest that named
//! it; only what a tag means is the registry's word, and the digest that it meant is recorded.
//!
//! Not here: signatures of manifests (`image::proof`).

mod manifest;
mod registry;

use std::sync::Arc;

use anneal_protocol::api::OciSource;
use oci_spec::distribution::Reference;
use reqwest::Response;
use reqwest::header::HeaderMap;

use super::IngestError;
use super::digest::ContentDigest;
use super::fetch::{Trouble, Web};

pub use manifest::Layer;
use manifest::{Manifest, Platform};
pub use registry::Registry;

/// Indexes in indexes: one is usual, a few are tolerated.
const DEPTH: usize = 3;

/// What a reference was found to be.
#[derive(Debug)]
pub struct Resolved {
    /// The reference, as it was read.
    pub reference: Reference,
    /// The repository that it is in.
    pub registry: Arc<Registry>,
    /// Digests that lead to the layer, each checked: of the index, if there is one, and of the
    /// manifest. What a signature is about.
    pub digests: Vec<String>,
    /// The layer with the disk.
    pub layer: Layer,
    /// Version, from the manifest's annotations.
    pub version: Option<String>,
}

/// A blob that can be opened, also in its middle.
pub struct Blob {
    registry: Arc<Registry>,
    layer: Layer,
}

impl Blob {
    /// Which blob of which repository.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} of oci://{}", self.layer.digest, self.registry.name())
    }

    /// Opens it; `headers` may ask for a range.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses the credentials.
    pub async fn open(&self, headers: HeaderMap) -> Result<Response, Trouble> {
        let path = format!("blobs/{}", self.layer.digest);
        self.registry.get(&path, headers).await
    }
}

/// Finds the layer with the disk.
///
/// # Errors
/// When the reference or what it names cannot be had or understood, or the layer is not clear.
pub async fn resolve(web: Web, source: &OciSource) -> Result<(Resolved, Blob), IngestError> {
    let text = source.reference.trim_start_matches("oci://");
    let reference: Reference = text.parse().map_err(|error| {
        IngestError::Invalid(format!(
            "{text:?} is not an OCI reference such as registry.example.org/os/debian:12: {error}"
        ))
    })?;
    let platform = Platform::parse(source.platform.as_deref().unwrap_or("linux/amd64"))?;
    let registry = Arc::new(Registry::new(web, &reference, source)?);
    let mut wanted = match reference.digest() {
        Some(digest) => digest.to_owned(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let mut digests = Vec::new();
    for _ in 0..DEPTH {
        let (digest, bytes) = registry.manifest(&wanted).await?;
        digests.push(digest);
        match Manifest::parse(&bytes)? {
            Manifest::Index(index) => {
                wanted = index.choose(&platform)?;
                // It is about to be part of a path.
                ContentDigest::parse(&wanted)?;
            }
            Manifest::Image(image) => {
                let layer = image.choose(source.layer.as_deref())?;
                let resolved = Resolved {
                    reference,
                    registry: Arc::clone(&registry),
                    digests,
                    version: image.version(&layer),
                    layer: layer.clone(),
                };
                return Ok((resolved, Blob { registry, layer }));
            }
        }
    }
    Err(IngestError::Source(format!(
        "{text} is an index of indexes of indexes: name the manifest by its digest"
    )))
}

impl Layer {
    /// What its bytes must have.
    ///
    /// # Errors
    /// When the manifest's digest is malformed.
    pub fn expected(&self) -> Result<ContentDigest, IngestError> {
        ContentDigest::parse(&self.digest)
    }
}
