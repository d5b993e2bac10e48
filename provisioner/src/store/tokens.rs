//! Tokens: what is known of each secret except the secret.

use anneal_protocol::time::Millis;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::{Result, Store, StoreError, during};
use crate::event::kind;
use crate::token::{KAIROS, Purpose, TokenRecord};

const COLUMNS: &str = "id, digest, purpose, subject, plain, machine, run, created_at, expires_at, used_at, used_by, \
     revoked_at, superseded";

impl Store {
    /// Stores a new token's record. A boot token takes the place of the unused ones of its run, the
    /// session of a Kairos agent that of the ones before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn insert_token(&self, token: &TokenRecord) -> Result<()> {
        const DOING: &str = "storing a token";
        let mut tx = self.begin().await?;
        if token.purpose == Purpose::Boot {
            sqlx::query(
                "UPDATE tokens SET revoked_at = $3, superseded = 1 WHERE run = $1 \
                 AND purpose = $2 AND used_at IS NULL AND revoked_at IS NULL",
            )
            .bind(&token.run)
            .bind(token.purpose.as_str())
            .bind(token.created_at.0)
            .execute(&mut *tx)
            .await
            .map_err(during(DOING))?;
        }
        if token.purpose == Purpose::Session && token.subject.as_deref() == Some(KAIROS) {
            end_sessions(&mut tx, token).await?;
        }
        sqlx::query(
            "INSERT INTO tokens (id, digest, purpose, machine, run, created_at, expires_at, \
             subject, plain) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&token.id)
        .bind(&token.digest)
        .bind(token.purpose.as_str())
        .bind(&token.machine)
        .bind(&token.run)
        .bind(token.created_at.0)
        .bind(token.expires_at.0)
        .bind(&token.subject)
        .bind(token.plain)
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        tx.commit().await.map_err(during(DOING))
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

    /// Revokes the tokens of a run, but for those of one purpose, and then the sessions they were
    /// traded for; tells how many. Used ones are left as they are, unless there may be more to
    /// fetch with them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_tokens(&self, run: &str, but: Option<Purpose>, at: Millis) -> Result<u64> {
        sqlx::query(
            "UPDATE tokens SET revoked_at = $3 WHERE run = $1 AND revoked_at IS NULL \
             AND (used_at IS NULL OR purpose IN ($4, $5, $6)) \
             AND ($2 IS NULL OR purpose NOT IN ($2, $5))",
        )
        .bind(run)
        .bind(but.map(Purpose::as_str))
        .bind(at.0)
        .bind(Purpose::Config.as_str())
        .bind(Purpose::Session.as_str())
        .bind(Purpose::Metadata.as_str())
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected())
        .map_err(during("revoking tokens"))
    }

    /// The boot token that the latest agent of a run enrolled with, and when that became void.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn latest_enrolment(&self, run: &str) -> Result<Option<(String, Option<Millis>)>> {
        // Only one boot token of a run is live at a time: they are used in the order of their
        // making. The writer's connection sees what was just written.
        let row = sqlx::query(
            "SELECT id, revoked_at FROM tokens WHERE run = $1 AND purpose = $2 \
             AND used_at IS NOT NULL ORDER BY id DESC LIMIT 1",
        )
        .bind(run)
        .bind(Purpose::Boot.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(during("looking for the latest enrolment"))?;
        Ok(row.map(|row| {
            let void: Option<i64> = row.get("revoked_at");
            (row.get("id"), void.map(Millis))
        }))
    }

    /// When a document of a config token was first served.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn config_served(&self, token: &str, document: &str) -> Result<Option<Millis>> {
        let at: Option<i64> = sqlx::query_scalar(
            "SELECT served_at FROM config_documents WHERE token = $1 AND document = $2",
        )
        .bind(token)
        .bind(document)
        .fetch_optional(&self.writer)
        .await
        .map_err(during("looking for a served document"))?;
        Ok(at.map(Millis))
    }

    /// Marks a document of a config token as served; false when it was before, when somebody
    /// else has the token, or when it is no longer live.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn serve_config(
        &self,
        token: &str,
        document: &str,
        by: &str,
        at: Millis,
    ) -> Result<bool> {
        const DOING: &str = "marking a document as served";
        let mut tx = self.begin().await?;
        let taken = sqlx::query(
            "UPDATE tokens SET used_at = coalesce(used_at, $2), used_by = $3 WHERE id = $1 \
             AND revoked_at IS NULL AND expires_at > $2 AND (used_by IS NULL OR used_by = $3)",
        )
        .bind(token)
        .bind(at.0)
        .bind(by)
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        let marked = sqlx::query(
            "INSERT INTO config_documents (token, document, served_at) VALUES ($1, $2, $3) \
             ON CONFLICT DO NOTHING",
        )
        .bind(token)
        .bind(document)
        .bind(at.0)
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        if taken.rows_affected() != 1 || marked.rows_affected() != 1 {
            return Ok(false);
        }
        tx.commit().await.map_err(during(DOING))?;
        Ok(true)
    }

    /// Whether something about this run's tokens says that two parties hold what only the
    /// machine should.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn compromised(&self, run: &str) -> Result<bool> {
        let found: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM events WHERE run = $1 AND kind = $2 \
             AND json_extract(data, '$.fails_run')",
        )
        .bind(run)
        .bind(kind::TOKEN_ALARM)
        .fetch_one(&self.reader)
        .await
        .map_err(during("looking for alarms"))?;
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

/// Makes void what agents of a run have enrolled with so far.
pub(super) async fn void_enrolments(
    tx: &mut Transaction<'static, Sqlite>,
    run: &str,
    at: Millis,
) -> Result<()> {
    sqlx::query(
        "UPDATE tokens SET revoked_at = $3 WHERE run = $1 AND purpose = $2 AND revoked_at IS NULL",
    )
    .bind(run)
    .bind(Purpose::Boot.as_str())
    .bind(at.0)
    .execute(&mut **tx)
    .await
    .map(|_| ())
    .map_err(during("voiding enrolments"))
}

/// Ends the sessions of a run that are of the same sort as a new one.
async fn end_sessions(tx: &mut Transaction<'static, Sqlite>, token: &TokenRecord) -> Result<()> {
    sqlx::query(
        "UPDATE tokens SET revoked_at = $4 WHERE run = $1 AND purpose = $2 AND subject = $3 \
         AND revoked_at IS NULL",
    )
    .bind(&token.run)
    .bind(token.purpose.as_str())
    .bind(&token.subject)
    .bind(token.created_at.0)
    .execute(&mut **tx)
    .await
    .map(|_| ())
    .map_err(during("ending sessions"))
}

fn token(row: &SqliteRow) -> Result<TokenRecord> {
    let purpose: String = row.get("purpose");
    Ok(TokenRecord {
        id: row.get("id"),
        digest: row.get("digest"),
        purpose: Purpose::parse(&purpose)
            .ok_or_else(|| StoreError::Conflict(format!("unknown token purpose {purpose}")))?,
        subject: row.get("subject"),
        plain: row.get("plain"),
        machine: row.get("machine"),
        run: row.get("run"),
        created_at: Millis(row.get("created_at")),
        expires_at: Millis(row.get("expires_at")),
        used_at: row.get::<Option<i64>, _>("used_at").map(Millis),
        used_by: row.get("used_by"),
        revoked_at: row.get::<Option<i64>, _>("revoked_at").map(Millis),
        superseded: row.get("superseded"),
    })
}
