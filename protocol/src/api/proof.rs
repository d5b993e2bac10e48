//! Proofs of a publisher: the evidence that comes with an image, and how a proof is shown.

use serde::{Deserialize, Serialize};

/// Evidence for the bytes of an image as they were published (compressed, if they were).
///
/// Everything is inline: the daemon fetches nothing but TUF metadata and signatures in an OCI
/// registry. `source` says where the evidence came from, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(no_recursion))]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
pub enum ProofRequest {
    /// The SHA-256 that the publisher names.
    Sha256 {
        /// 64 hex digits.
        value: String,
        /// Where the value came from, URL or file name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// The SHA-512 that the publisher names.
    Sha512 {
        /// 128 hex digits.
        value: String,
        /// Where the value came from, URL or file name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// A list of digests: `SHA256SUMS`, `*.DIGESTS`, `*-CHECKSUM`; signed if there are keys.
    Sums {
        /// The list. A cleartext-signed one carries its signature.
        text: String,
        /// The image's name in the list.
        file_name: String,
        /// Detached OpenPGP or minisign signature over the list.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<Evidence>,
        /// Keys that may have signed; without them the list counts as unsigned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keys: Option<Evidence>,
        /// Where the list came from, URL or file name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// Detached OpenPGP signature over the image.
    Openpgp {
        /// The signature, binary or armored.
        signature: Evidence,
        /// Certificates of those who may have signed, binary or armored.
        keys: Evidence,
        /// Where the signature came from, URL or file name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// Minisign signature over the image.
    Minisign {
        /// The `.minisig` file.
        signature: String,
        /// The public key: the file, or its second line.
        key: String,
        /// Where the signature came from, URL or file name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// Cosign signature with a public key.
    Cosign {
        /// Base64, as `cosign sign-blob` writes it. Absent for an image from an OCI registry:
        /// there the signature is beside the image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
        /// The public key, PEM.
        key: String,
        /// Where the signature came from, URL or file name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// A target of a TUF repository.
    Tuf {
        /// A `root.json` that the operator trusts.
        root: String,
        /// Where the repository's metadata is, http or https.
        metadata_url: String,
        /// Name of the target.
        target: String,
    },
    /// Several proofs, none of them of this kind; all must hold.
    All {
        /// The proofs.
        proofs: Vec<ProofRequest>,
    },
}

/// Evidence that may be binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Text as it is.
    Text(String),
    /// Bytes in base64 (standard alphabet, padded).
    Base64(String),
}

/// What was proved when an image was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProofView {
    /// `sha256`, `sha512`, `openpgp`, `minisign`, `cosign` or `tuf`.
    pub method: String,
    /// Whose key: its fingerprint or id. Absent for a bare digest: nobody signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Where the evidence came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What else is worth knowing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
