//! Attestations: written with the end of their run, read by id and machine.

use anneal_protocol::time::Millis;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::{Result, Store, during};
use crate::attestation::Attestation;

/// Stores one, in the transaction that ends its run.
pub(super) async fn insert(
    tx: &mut Transaction<'static, Sqlite>,
    attestation: &Attestation,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO attestations (id, kind, machine, run, image, summary, created_at, envelope) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&attestation.id)
    .bind(&attestation.kind)
    .bind(&attestation.machine)
    .bind(&attestation.run)
    .bind(&attestation.image)
    .bind(&attestation.summary)
    .bind(attestation.created_at.0)
    .bind(&attestation.envelope)
    .execute(&mut **tx)
    .await
    .map(|_| ())
    .map_err(during("storing an attestation"))
}

impl Store {
    /// Attestations, newest first, at most `limit`, older than `before` if given, of one machine,
    /// run or kind if given.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attestations(
        &self,
        machine: Option<&str>,
        run: Option<&str>,
        kind: Option<&str>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Attestation>> {
        sqlx::query(
            "SELECT * FROM attestations WHERE ($1 IS NULL OR machine = $1) \
             AND ($2 IS NULL OR run = $2) AND ($3 IS NULL OR kind = $3) \
             AND ($4 IS NULL OR id < $4) ORDER BY id DESC LIMIT $5",
        )
        .bind(machine)
        .bind(run)
        .bind(kind)
        .bind(before)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map(|rows| rows.iter().map(row_of).collect())
        .map_err(during("listing attestations"))
    }

    /// The attestation of this id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attestation(&self, id: &str) -> Result<Option<Attestation>> {
        sqlx::query("SELECT * FROM attestations WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.reader)
            .await
            .map(|row| row.as_ref().map(row_of))
            .map_err(during("reading an attestation"))
    }
}

fn row_of(row: &SqliteRow) -> Attestation {
    Attestation {
        id: row.get("id"),
        kind: row.get("kind"),
        machine: row.get("machine"),
        run: row.get("run"),
        image: row.get("image"),
        summary: row.get("summary"),
        created_at: Millis(row.get("created_at")),
        envelope: row.get("envelope"),
    }
}
