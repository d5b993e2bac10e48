//! Which images may be added at all, and whose keys count.

use std::path::{Path, PathBuf};

use anneal_protocol::api::{ProofRequest, Role};

use tokio::sync::{Mutex, MutexGuard};

use super::ProofError;
use super::trust::Trusted;
use crate::image::ingest::guard::Guard;
use crate::settings::ImageSettings;

/// The operator's rules about proofs.
#[derive(Debug)]
pub struct Policy {
    require_proof: bool,
    /// Where TUF repositories are remembered.
    tuf_dir: PathBuf,
    /// Held while a repository is looked at: `tough` keeps several files of it that belong together.
    tuf: Mutex<()>,
    /// Where TUF metadata may be fetched from.
    guard: Guard,
    /// None: whoever adds an image says whose key counts.
    trusted: Option<Trusted>,
}

impl Policy {
    /// Makes the rules of the settings.
    ///
    /// # Errors
    /// When a file of trusted keys cannot be read or holds none.
    pub fn load(settings: &ImageSettings, tuf_dir: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            require_proof: settings.require_proof,
            tuf_dir,
            tuf: Mutex::default(),
            guard: Guard {
                allow_local: settings.allow_local_sources,
            },
            trusted: Trusted::load(&settings.trusted_keys)?,
        })
    }

    /// The keys that count, if not every key does.
    #[must_use]
    pub fn trusted(&self) -> Option<&Trusted> {
        self.trusted.as_ref()
    }

    /// Where TUF metadata may be fetched from.
    pub(super) fn guard(&self) -> Guard {
        self.guard
    }

    /// Held while a TUF repository is looked at.
    pub(super) async fn tuf_lock(&self) -> MutexGuard<'_, ()> {
        self.tuf.lock().await
    }

    /// Where TUF repositories are remembered, so that none can go back to an older version.
    #[must_use]
    pub fn tuf_dir(&self) -> &Path {
        &self.tuf_dir
    }

    /// Whether somebody with this role may add the image `reference` with (or without) this
    /// proof. Pure; to be asked before a byte of the image is read.
    ///
    /// # Errors
    /// What is missing, and how to give it.
    pub fn admit(
        &self,
        reference: &str,
        proof: Option<&ProofRequest>,
        unproven: bool,
        role: Role,
    ) -> Result<(), ProofError> {
        match (proof, unproven) {
            (Some(_), true) => Err(ProofError::Contradiction),
            (Some(_), false) => Ok(()),
            (None, false) if self.require_proof => Err(ProofError::Required(reference.to_owned())),
            (None, _) if role < Role::Admin => Err(ProofError::AdminOnly(match role {
                Role::Viewer => "viewer",
                Role::Operator => "operator",
                Role::Admin => "admin",
            })),
            (None, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_proof_only_an_admin_and_only_on_purpose() {
        let sha = ProofRequest::Sha256 {
            value: "00".repeat(32),
            source: None,
        };
        let policy = |require_proof| Policy {
            require_proof,
            tuf_dir: PathBuf::new(),
            tuf: Mutex::default(),
            guard: Guard { allow_local: false },
            trusted: None,
        };
        let code = |require, proof: Option<&ProofRequest>, unproven, role| {
            let told = policy(require).admit("debian@12", proof, unproven, role);
            told.map_err(|error| error.code()).err()
        };
        let (operator, admin) = (Role::Operator, Role::Admin);
        let cases = [
            (true, Some(&sha), false, operator, None),
            (true, Some(&sha), true, admin, Some("image-proof-invalid")),
            (true, None, false, admin, Some("image-proof-required")),
            (true, None, true, operator, Some("forbidden")),
            (true, None, true, admin, None),
            (false, None, false, operator, Some("forbidden")),
            (false, None, false, admin, None),
        ];
        for (require, proof, unproven, role, expected) in cases {
            let told = code(require, proof, unproven, role);
            assert_eq!(told, expected, "{require} {proof:?} {unproven} {role:?}");
        }
        let text = policy(true).admit("debian@12", None, false, admin);
        let text = text.unwrap_err().to_string();
        assert!(
            text.starts_with("image debian@12 comes without proof"),
            "{text}"
        );
        for flag in [
            "--sha256",
            "--sums",
            "--signature",
            "--cosign-key",
            "--tuf-root",
            "--unproven",
        ] {
            assert!(text.contains(flag), "{flag} is missing in: {text}");
        }
    }
}
