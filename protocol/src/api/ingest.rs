//! Ingests: images on their way into the store.

use serde::{Deserialize, Serialize};

use super::Problem;

/// Body of `POST /images/ingests`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct IngestRequest {
    /// Name of the image.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Family of the operating system, `debian`; none: as the disk's partitions tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Its version; none: as file name or annotations tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Keep `os` although the disk's partitions are those of another system.
    #[serde(default)]
    pub force_os: bool,
    /// Where it comes from.
    pub source: IngestSource,
    /// The publisher's proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<super::ProofRequest>,
    /// Add it without proof; needs the role admin.
    #[serde(default)]
    pub unproven: bool,
    /// Partitions that are expected to change: label, number or UUID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mutable_partitions: Vec<String>,
    /// URLs at which the same sealed data lies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum IngestSource {
    /// The caller sends it: `PUT /images/ingests/{id}/data`.
    Upload(UploadSource),
    /// The daemon fetches it.
    Url(UrlSource),
    /// The daemon fetches it from a container registry.
    Oci(OciSource),
}

/// An upload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UploadSource {
    /// Name of the file, from which a version may be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
}

/// A download.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UrlSource {
    /// http or https, without user and password.
    pub url: String,
    /// Certificates (PEM) to trust instead of those that the daemon's host trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// An artefact or an image in a registry.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct OciSource {
    /// `registry/repository:tag` or `…@sha256:…`.
    pub reference: String,
    /// Which image of an index; default `linux/amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Digest, title or media type of the layer with the disk, where that is not clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Speak HTTP without TLS.
    #[serde(default)]
    pub plain_http: bool,
    /// Certificates (PEM) to trust instead of those that the daemon's host trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password or token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

impl std::fmt::Debug for OciSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The login stays out of logs.
        f.debug_struct("OciSource")
            .field("reference", &self.reference)
            .field("platform", &self.platform)
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

/// How an ingest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum IngestState {
    /// Nothing of the upload has come.
    Waiting,
    /// Bytes come in, are decoded and sealed.
    Running,
    /// The image is in the catalog.
    Done,
    /// It came to nothing; `problem` says why, and nothing was kept.
    Failed,
}

/// An image on its way into the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IngestView {
    /// Its id.
    pub id: String,
    /// `name@version` that the image will have.
    pub name: String,
    /// Where it comes from, for people.
    pub source: String,
    /// API key that asked for it.
    pub requested_by: String,
    /// How it is.
    pub state: IngestState,
    /// Published bytes that came in; an upload goes on here.
    pub received: u64,
    /// Published bytes in all, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes of the raw disk that are sealed.
    pub written: u64,
    /// What the content turned out to be, `qcow2 in xz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// When it began, RFC 3339.
    pub created_at: String,
    /// The image, when done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<super::ImageView>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
