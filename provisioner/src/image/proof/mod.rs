//! Proofs of the publisher, checked once, while an image is added.
//!
//! Owns: what may be added without proof ([`Policy`]), whose keys count, and the check itself:
//! a [`Checker`] sees every byte as it was published, once, in order, and says at the end whether
//! all the evidence holds.
//!
//! Invariants: memory does not grow with the image; evidence from outside is bounded before it is
//! parsed ([`limit`]); whatever can be refused without the image is refused before a byte of it
//! is read; a [`anneal_image::Proof`] exists only for bytes that were checked.
//!
//! Not here: fetching images, and what happens after (the daemon's own key signs the manifest;
//! agents never see a publisher's key).

mod check;
mod cosign;
mod error;
mod evidence;
mod minisign;
mod oci;
mod openpgp;
mod policy;
pub mod sums;
#[cfg(test)]
mod testing;
mod trust;
mod tuf;

use anneal_image::Proof;
use anneal_protocol::api::ProofView;

pub use check::{Checker, Published};
pub use error::ProofError;
pub use oci::OciImage;
pub use policy::Policy;

/// A proof as the API shows it.
#[must_use]
pub fn view(proof: &Proof) -> ProofView {
    ProofView {
        method: proof.method.to_string(),
        signer: proof.signer.clone(),
        source: proof.source.clone(),
        detail: proof.detail.clone(),
    }
}

/// Bounds of evidence, in bytes. Real ones are far smaller; a request has 1 MiB in all.
pub mod limit {
    /// A list of digests.
    pub const SUMS: usize = 512 << 10;
    /// Keys: an OpenPGP keyring is the largest.
    pub const KEYS: usize = 512 << 10;
    /// A signature.
    pub const SIGNATURE: usize = 64 << 10;
    /// A TUF root.
    pub const ROOT: usize = 512 << 10;
    /// Name of a file or target, an address, where evidence came from.
    pub const NAME: usize = 1000;
    /// Proofs of one image.
    pub const PROOFS: usize = 8;
}
