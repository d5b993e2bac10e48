//! Disk images in container registries: which blob of a reference is the disk, and opening it.
//!
//! Invariants: every byte of a manifest and of a blob is checked against the digest that named
//! it; only what a tag means is the registry's word, and the digest that it meant is recorded.
//!
//! Not here: signatures of manifests (`image::proof`).

mod manifest;
mod registry;

use anneal_protocol::api::OciSource;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use reqwest::Response;
use reqwest::header::HeaderMap;

use super::IngestError;
use super::digest::ContentDigest;
use super::fetch::{Patience, Trouble, Web};

pub use manifest::Layer;
use manifest::{Manifest, Platform};
use registry::Registry;

/// Indexes in indexes: one is usual, a few are tolerated.
const DEPTH: usize = 3;

/// What a reference was found to be.
#[derive(Debug)]
pub struct Resolved {
    /// The reference, as it was read.
    pub reference: oci_client::Reference,
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
    registry: Registry,
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
    let reference: oci_client::Reference = text.parse().map_err(|error| {
        IngestError::Invalid(format!(
            "{text:?} is not an OCI reference such as registry.example.org/os/debian:12: {error}"
        ))
    })?;
    let platform = Platform::parse(source.platform.as_deref().unwrap_or("linux/amd64"))?;
    let registry = Registry::new(web, &reference, source)?;
    let mut wanted = match reference.digest() {
        Some(digest) => digest.to_owned(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let mut digests = Vec::new();
    for _ in 0..DEPTH {
        let (digest, bytes) = registry.manifest(&wanted).await?;
        digests.push(digest);
        match Manifest::parse(&bytes)? {
            Manifest::Index(index) => wanted = index.choose(&platform)?,
            Manifest::Image(image) => {
                let layer = image.choose(source.layer.as_deref())?;
                let resolved = Resolved {
                    reference,
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

/// Client and login with which signatures beside the image are looked for: the library's own,
/// because it is the library that does it.
#[must_use]
pub fn library(source: &OciSource) -> (oci_client::Client, RegistryAuth) {
    const END: &str = "-----END CERTIFICATE-----";
    let certificates = source.ca.iter().flat_map(|pem| pem.split_inclusive(END));
    let config = ClientConfig {
        protocol: match source.plain_http {
            true => ClientProtocol::Http,
            false => ClientProtocol::Https,
        },
        tls_certs_only: certificates
            .filter(|pem| pem.contains(END))
            .map(|pem| Certificate {
                encoding: CertificateEncoding::Pem,
                data: pem.as_bytes().to_vec(),
            })
            .collect(),
        connect_timeout: Some(Patience::default().connect),
        read_timeout: Some(Patience::default().stall),
        ..ClientConfig::default()
    };
    let auth = match (&source.username, &source.password) {
        (Some(user), Some(password)) => RegistryAuth::Basic(user.clone(), password.clone()),
        _ => RegistryAuth::Anonymous,
    };
    (oci_client::Client::new(config), auth)
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
