//! Images in the API.

use serde::{Deserialize, Serialize};

use super::ProofView;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageView {
    /// `name@version`.
    pub name: String,
    /// Digest of the canonical manifest, `blake3:` + hex.
    pub id: String,
    /// Bytes of the raw disk.
    pub size: u64,
    /// Bytes stored.
    pub stored: u64,
    /// SHA-256 of the raw disk, hex.
    pub sha256: String,
    /// OS family, `debian`: which templates may configure it.
    pub os: String,
    /// Version of the operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// The publisher's proof that was checked when the image was added; absent: unproven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofView>,
    /// Kept by `gc` whether somebody uses it or not.
    #[serde(default)]
    pub pinned: bool,
    /// Where else its data can be fetched: `http://`, `https://` or `oci://` URLs.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// RFC 3339.
    pub added_at: String,
}

/// How reading an image again ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyView {
    /// `name@version`.
    pub name: String,
    /// Image id.
    pub id: String,
    /// Everything is as the manifest says.
    pub intact: bool,
    /// Bytes of the raw disk that were right before the end or the first problem.
    pub verified: u64,
    /// Bytes of the raw disk.
    pub size: u64,
    /// The first thing that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The first frame that is wrong, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<u64>,
}

/// Body of `POST /images/{name}/mirrors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AddMirror {
    /// URL of `data.zst`: `http://`, `https://`, or `oci://registry/repository:tag` or
    /// `@sha256:…` (`oci+http://` for a registry without TLS).
    pub url: String,
}

/// Answer to `POST /images/{name}/mirrors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AddedMirror {
    /// What agents will be told: for an OCI reference, the URL of the blob.
    pub url: String,
    /// The image.
    pub image: ImageView,
}

/// Body of `POST /images/gc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// Only images added so many milliseconds ago.
    pub older_than_ms: u64,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What garbage collection removed, or would.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CollectView {
    /// Nothing was removed.
    pub dry_run: bool,
    /// Bytes freed.
    pub freed: u64,
    /// The images.
    pub images: Vec<CollectedImage>,
}

/// One image of a [`CollectView`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CollectedImage {
    /// Bytes freed: none while another name stands for the same data.
    pub freed: u64,
    /// The image.
    pub image: ImageView,
}

/// A key that signs images, or did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageKeyView {
    /// Short name, as in a manifest's `key_id`.
    pub id: String,
    /// Ed25519 public key, 64 hex digits.
    pub key: String,
    /// Signs from now on; false: stays valid for what it has signed.
    pub signs: bool,
    /// Names of the images it has signed.
    pub images: Vec<String>,
}

/// What signing again did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResignView {
    /// Names of the images that were signed again.
    pub images: Vec<String>,
    /// Images that stay as they are, `name@version: reason`.
    pub kept: Vec<String>,
    /// Ids of the keys that are not valid any more.
    pub retired: Vec<String>,
}
