//! Tokens: what is known of each secret except the secret.

use anneal_protocol::time::Millis;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Result, Store, StoreError, during};
use crate::event::kind;
use crate::token::{Purpose, Refused, TokenRecord};

const COLUMNS: &str =
    "id, digest, purpose, machine, run, created_at, expires_at, used_at, used_by, revoked_at";

impl Store {
    /// Stores a new token's record.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn insert_token(&self, token: &TokenRecord) -> Result<()> {
        sqlx::query(
            "INSERT INTO tokens (id, digest, purpose, machine, run, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&token.id)
        .bind(&token.digest)
        .bind(token.purpose.as_str())
        .bind(&token.machine)
        .bind(&token.run)
        .bind(token.created_at.0)
        .bind(token.expires_at.0)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(during("storing a token"))
    }

    /// The token whose secret has this digest.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn token_by_digest(&self, digest: &str) -> Result<Option<TokenRecord>> {
        let sql = format!("SELECT {COLUMNS} FROM tokens WHERE digest = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(digest)
            .fetch_optional(&self.writer)
            .await
            .map_err(during("looking up a token"))?
            .as_ref()
            .map(token)
            .transpose()
    }

    /// Marks a token used; false when somebody was faster or it is no longer live.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn use_token(&self, id: &str, by: &str, at: Millis) -> Result<bool> {
        sqlx::query(
            "UPDATE tokens SET used_at = $2, used_by = $3 \
             WHERE id = $1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > $2",
        )
        .bind(id)
        .bind(at.0)
        .bind(by)
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() == 1)
        .map_err(during("using a token"))
    }

    /// Revokes the unused tokens of a run, of one purpose or of all; tells how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_tokens(
        &self,
        run: &str,
        purpose: Option<Purpose>,
        at: Millis,
    ) -> Result<u64> {
        sqlx::query(
            "UPDATE tokens SET revoked_at = $3 WHERE run = $1 AND used_at IS NULL \
             AND revoked_at IS NULL AND ($2 IS NULL OR purpose = $2)",
        )
        .bind(run)
        .bind(purpose.map(Purpose::as_str))
        .bind(at.0)
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected())
        .map_err(during("revoking tokens"))
    }

    /// Whether a token of this run was used by two parties.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn replayed(&self, run: &str) -> Result<bool> {
        let found: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM events WHERE run = $1 AND kind = $2 \
             AND json_extract(data, '$.reason') = $3",
        )
        .bind(run)
        .bind(kind::TOKEN_ALARM)
        .bind(Refused::Replayed.to_string())
        .fetch_one(&self.reader)
        .await
        .map_err(during("looking for replayed tokens"))?;
        Ok(found > 0)
    }

    /// Tokens, newest first, after (older than) the token with id `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_tokens(&self, after: Option<&str>, limit: u32) -> Result<Vec<TokenRecord>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM tokens WHERE $1 IS NULL OR id < $1 ORDER BY id DESC LIMIT $2"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.reader)
            .await
            .map_err(during("listing tokens"))?
            .iter()
            .map(token)
            .collect()
    }
}

fn token(row: &SqliteRow) -> Result<TokenRecord> {
    let purpose: String = row.get("purpose");
    Ok(TokenRecord {
        id: row.get("id"),
        digest: row.get("digest"),
        purpose: Purpose::parse(&purpose)
            .ok_or_else(|| StoreError::Conflict(format!("unknown token purpose {purpose}")))?,
        machine: row.get("machine"),
        run: row.get("run"),
        created_at: Millis(row.get("created_at")),
        expires_at: Millis(row.get("expires_at")),
        used_at: row.get::<Option<i64>, _>("used_at").map(Millis),
        used_by: row.get("used_by"),
        revoked_at: row.get::<Option<i64>, _>("revoked_at").map(Millis),
    })
}
