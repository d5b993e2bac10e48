//! Signed statements of what is on a machine and how it got there.
//!
//! Owns: the statements ([`statement`]) and their envelope ([`dsse`]). They are made and stored
//! in the transaction that ends a run with success, so that no successful run is without one.
//! Anyone who has the daemon's public key verifies them without the daemon.
//!
//! Invariants: nothing secret is in a statement; a stored statement never changes.
//!
//! Not here: measuring (the agent's), trust in the agent (its certificate's).

pub mod dsse;
pub mod statement;

use anneal_image::SigningKey;
use anneal_protocol::time::Millis;

use crate::workflow::run::RunRow;

pub use dsse::{Envelope, EnvelopeError};
pub use statement::Draft;

/// An attestation as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Attestation {
    /// UUIDv7.
    pub id: String,
    /// `provision` or `audit`.
    pub kind: String,
    /// Machine it is about.
    pub machine: String,
    /// Run that made it.
    pub run: String,
    /// Image id.
    pub image: Option<String>,
    /// One sentence.
    pub summary: String,
    /// When it was signed.
    pub created_at: Millis,
    /// The envelope, JSON.
    pub envelope: String,
}

/// Signs what is to be attested about a run.
#[must_use]
pub fn sign(drafts: Vec<Draft>, run: &RunRow, key: &SigningKey, now: Millis) -> Vec<Attestation> {
    drafts
        .into_iter()
        .map(|draft| {
            let payload = draft.statement.to_string();
            let envelope = Envelope::sign(payload.as_bytes(), key);
            Attestation {
                id: uuid::Uuid::now_v7().to_string(),
                kind: draft.kind.to_owned(),
                machine: run.machine.clone(),
                run: run.id.clone(),
                image: run.image.clone(),
                summary: draft.summary,
                created_at: now,
                envelope: serde_json::json!(envelope).to_string(),
            }
        })
        .collect()
}
