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
