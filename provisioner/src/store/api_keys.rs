//! API keys (as digests) and the answers kept for idempotency keys.

use anneal_protocol::api::Role;
use anneal_protocol::time::Millis;
use sqlx::Row;

use super::{Result, Store, StoreError, during};

/// A key's record: everything but the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyRecord {
    /// Unique name.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Millis,
}

/// A stored answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// Digest of the request it answered.
    pub request: String,
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub response: String,
}

impl Store {
    /// Stores a key's digest.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the name is taken.
    pub async fn insert_api_key(&self, key: &ApiKeyRecord, digest: &str) -> Result<()> {
        let done = sqlx::query(
            "INSERT INTO api_keys (name, digest, role, created_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&key.name)
        .bind(digest)
        .bind(role_word(key.role))
        .bind(key.created_at.0)
        .execute(&self.writer)
        .await
        .map_err(during("storing an API key"))?;
        if done.rows_affected() == 0 {
            let name = &key.name;
            return Err(StoreError::Conflict(format!(
                "an API key named \"{name}\" exists: remove it first or choose another name"
            )));
        }
        Ok(())
    }

    /// Replaces the digest of a key, making the key if there is none: for the key that the
    /// daemon writes into its own admin context.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn replace_api_key(&self, key: &ApiKeyRecord, digest: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO api_keys (name, digest, role, created_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name) DO UPDATE SET digest = excluded.digest, role = excluded.role, \
             created_at = excluded.created_at",
        )
        .bind(&key.name)
        .bind(digest)
        .bind(role_word(key.role))
        .bind(key.created_at.0)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(during("replacing an API key"))
    }

    /// The key with this digest.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn api_key_by_digest(&self, digest: &str) -> Result<Option<ApiKeyRecord>> {
        sqlx::query("SELECT name, role, created_at FROM api_keys WHERE digest = $1")
            .bind(digest)
            .fetch_optional(&self.reader)
            .await
            .map(|row| row.as_ref().map(record))
            .map_err(during("looking up an API key"))
    }

    /// All keys, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_api_keys(&self) -> Result<Vec<ApiKeyRecord>> {
        sqlx::query("SELECT name, role, created_at FROM api_keys ORDER BY name")
            .fetch_all(&self.reader)
            .await
            .map(|rows| rows.iter().map(record).collect())
            .map_err(during("listing API keys"))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none; [`StoreError::Conflict`] when it is the last
    /// admin key, without which nobody could make another.
    pub async fn remove_api_key(&self, name: &str) -> Result<()> {
        const DOING: &str = "removing an API key";
        let mut tx = self.begin().await?;
        let role: Option<String> = sqlx::query_scalar("SELECT role FROM api_keys WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await
            .map_err(during(DOING))?;
        let Some(role) = role else {
            return Err(StoreError::NotFound(format!(
                "no API key is named \"{name}\""
            )));
        };
        let admins: i64 = sqlx::query_scalar("SELECT count(*) FROM api_keys WHERE role = 'admin'")
            .fetch_one(&mut *tx)
            .await
            .map_err(during(DOING))?;
        if role == "admin" && admins == 1 {
            return Err(StoreError::Conflict(format!(
                "\"{name}\" is the last admin key: create another one first"
            )));
        }
        sqlx::query("DELETE FROM api_keys WHERE name = $1")
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(during(DOING))?;
        tx.commit().await.map_err(during(DOING))
    }

    /// The answer kept for an idempotency key of a caller.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn idempotent_answer(&self, caller: &str, key: &str) -> Result<Option<StoredAnswer>> {
        sqlx::query(
            "SELECT request, status, response FROM idempotency WHERE caller = $1 AND key = $2",
        )
        .bind(caller)
        .bind(key)
        .fetch_optional(&self.writer)
        .await
        .map(|row| {
            row.map(|row| StoredAnswer {
                request: row.get("request"),
                status: u16::try_from(row.get::<i64, _>("status")).unwrap_or(500),
                response: row.get("response"),
            })
        })
        .map_err(during("looking up an idempotency key"))
    }

    /// Keeps an answer, and forgets those older than `forget_before`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_answer(
        &self,
        caller: &str,
        key: &str,
        answer: &StoredAnswer,
        now: Millis,
        forget_before: Millis,
    ) -> Result<()> {
        const DOING: &str = "keeping an answer";
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM idempotency WHERE created_at < $1")
            .bind(forget_before.0)
            .execute(&mut *tx)
            .await
            .map_err(during(DOING))?;
        sqlx::query(
            "INSERT INTO idempotency (key, caller, request, status, response, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (caller, key) DO NOTHING",
        )
        .bind(key)
        .bind(caller)
        .bind(&answer.request)
        .bind(i64::from(answer.status))
        .bind(&answer.response)
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        tx.commit().await.map_err(during(DOING))
    }
}

fn record(row: &sqlx::sqlite::SqliteRow) -> ApiKeyRecord {
    let role: String = row.get("role");
    ApiKeyRecord {
        name: row.get("name"),
        role: match role.as_str() {
            "admin" => Role::Admin,
            "operator" => Role::Operator,
            _ => Role::Viewer,
        },
        created_at: Millis(row.get("created_at")),
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}
