//! What a drift audit says: the result of `audit-disk`, and what the signed report is made of.

use serde::{Deserialize, Serialize};

/// Most ranges told of one region; more are counted.
pub const MAX_RANGES: usize = 64;

/// How the disk of a machine compares to the sealed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditResult {
    /// Kernel name of the disk.
    pub disk: String,
    /// Serial of the disk.
    pub serial: Option<String>,
    /// Id of the image that it was compared to.
    pub image: String,
    /// Something differs that must be identical.
    pub drifted: bool,
    /// Frames of the image, each compared.
    pub frames: u64,
    /// Frames that are not what the image says, wherever they are.
    pub frames_differing: u64,
    /// Bytes of the disk that were read.
    pub bytes_read: u64,
    /// Bytes that were fetched to see exactly what differs.
    pub transferred: u64,
    /// Milliseconds.
    pub duration_ms: u64,
    /// The whole image, in the order of the disk.
    pub regions: Vec<RegionDrift>,
}

/// What is expected of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Expectation {
    /// Every byte is that of the image.
    Identical,
    /// It belongs to the installed system.
    MayDiffer,
    /// A partition table: every partition of the image is there; those that may differ may have
    /// grown, others may have been added.
    SamePartitions,
}

/// One region of the disk: a partition, the table, or what lies between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegionDrift {
    /// Label of the partition, or what else it is.
    pub name: String,
    /// Number of the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// What is expected.
    pub expected: Expectation,
    /// The expectation does not hold.
    pub drifted: bool,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes that differ, in whole blocks of 512; in whole frames where `exact` is false.
    pub differing: u64,
    /// Differences were looked at byte by byte.
    pub exact: bool,
    /// Where, at most [`MAX_RANGES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<ByteRange>,
    /// Ranges beyond those.
    #[serde(default)]
    pub ranges_left_out: u64,
    /// What is different, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// A signed statement, as the API tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttestationView {
    /// Id.
    pub id: String,
    /// `provision` or `audit`.
    pub kind: String,
    /// Machine it is about.
    pub machine: String,
    /// Run that made it.
    pub run: String,
    /// Image id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// One sentence.
    pub summary: String,
    /// RFC 3339.
    pub created_at: String,
    /// The DSSE envelope; only when one attestation is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<serde_json::Value>,
}

/// A page of attestations.
pub type AttestationPage = crate::api::Page<AttestationView>;
/// A page of keys.
pub type AttestationKeyPage = crate::api::Page<AttestationKey>;

/// A public key that the daemon's statements are signed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttestationKey {
    /// Short name of the key, as in the envelopes.
    pub id: String,
    /// SPKI PEM, Ed25519.
    pub public_key: String,
}
