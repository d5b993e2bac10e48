//! What the tests of proofs share: the publishers' own tools, and one way through the checker.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anneal_image::Proof;
use anneal_protocol::api::{Evidence, ProofRequest};
use base64::Engine as _;
use tempfile::TempDir;

use super::{Checker, Policy, ProofError, Published};
use crate::settings::ImageSettings;

/// Programs and the Debian packages that have them (scripts/setup.sh installs them).
const PACKAGES: &[(&str, &str)] = &[
    ("gpg", "gpg"),
    ("gpgv", "gpgv"),
    ("minisign", "minisign"),
    ("openssl", "openssl"),
    ("unshare", "util-linux"),
];

/// A folder with what a publisher has: keys, an image, signatures.
pub struct Publisher {
    pub dir: TempDir,
}

impl Publisher {
    pub fn new() -> Self {
        // Short: gpg-agent's socket must fit into 108 bytes.
        let dir = tempfile::Builder::new()
            .prefix("pub")
            .tempdir_in("/tmp")
            .unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    /// Runs a program here; it must succeed.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Output {
        let output = self.try_run(program, arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} failed: {told}");
        output
    }

    /// Runs a program here.
    pub fn try_run<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Output {
        tool(program, self.dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

/// A command for a program that must be there.
pub fn tool(program: &str, dir: &Path) -> Command {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|path| path.join(program).is_file());
    let package = PACKAGES.iter().find(|(name, _)| *name == program);
    let package = package.map_or(program, |(_, package)| package);
    assert!(
        found,
        "{program} is missing: run `make setup`, or install the package {package}"
    );
    let mut command = Command::new(program);
    command.current_dir(dir);
    command
}

pub fn evidence(bytes: Vec<u8>) -> Evidence {
    Evidence::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// A policy with these trusted keys, and its state in `dir`.
pub fn policy(dir: &Path, trusted: &[PathBuf]) -> Policy {
    let settings = ImageSettings {
        trusted_keys: trusted.to_vec(),
        allow_local_sources: true,
        ..ImageSettings::default()
    };
    Policy::load(&settings, dir.join("tuf")).unwrap()
}

/// Through the checker, in chunks of a size that fits no block of any algorithm.
pub async fn check_by(
    policy: &Policy,
    request: &ProofRequest,
    bytes: &[u8],
) -> Result<Proof, ProofError> {
    let mut checker = Checker::new(request, policy, &Published::default()).await?;
    for chunk in bytes.chunks(1021) {
        checker.update(chunk);
    }
    checker.finish()
}

pub async fn check(request: &ProofRequest, bytes: &[u8]) -> Result<Proof, ProofError> {
    check_by(&policy(Path::new("/nonexistent"), &[]), request, bytes).await
}

/// Something like an image: longer than any buffer, not repeating.
pub fn image() -> Vec<u8> {
    (0..300_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}
