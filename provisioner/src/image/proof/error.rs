//! Why a proof is not accepted.

use axum::http::StatusCode;

use crate::http::problem::ApiError;

/// Why an image is not added, as far as its proof is concerned.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Neither a proof nor the wish to do without one.
    #[error(
        "image {0} comes without proof of its publisher: give --sha256 VALUE|FILE|URL, --sha512, --sums FILE|URL [--sums-signature FILE|URL --key FILE], --signature FILE|URL --key FILE (OpenPGP, minisign), --cosign-key FILE, or --tuf-root FILE --tuf-metadata URL --tuf-target NAME; an admin may add it with --unproven, which stays visible wherever it runs"
    )]
    Required(String),
    /// A proof, and the wish to do without one.
    #[error("an image is either proven or unproven: leave out --unproven or the proof")]
    Contradiction,
    /// The caller may not do this.
    #[error("adding an image without proof needs the role admin, the caller is {0}")]
    AdminOnly(&'static str),
    /// The evidence itself cannot be used; the image has not been looked at.
    #[error("{0}")]
    Unusable(String),
    /// The evidence is about other bytes, or the signature is wrong.
    #[error("the proof does not hold: {0}")]
    Failed(String),
    /// Evidence that the daemon fetches itself could not be had.
    #[error("{what} cannot be had: {why}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// The whole chain of causes.
        why: String,
    },
}

impl From<ProofError> for ApiError {
    fn from(error: ProofError) -> Self {
        let status = match error {
            ProofError::AdminOnly(_) => StatusCode::FORBIDDEN,
            ProofError::Unreachable { .. } => StatusCode::BAD_GATEWAY,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl ProofError {
    /// The stable code of the API.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Required(_) => "image-proof-required",
            Self::Contradiction | Self::Unusable(_) => "image-proof-invalid",
            Self::AdminOnly(_) => "forbidden",
            Self::Failed(_) => "image-proof-failed",
            Self::Unreachable { .. } => "image-proof-unreachable",
        }
    }
}
