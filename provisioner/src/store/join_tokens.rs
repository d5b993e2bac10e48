//! Tokens for joining clusters, without the secrets; and imported secrets of clusters, encrypted.

use std::time::Duration;

use anneal_protocol::time::Millis;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Result, Store, during};
use crate::event::kind;
use crate::token::issuer::JoinToken;

const COLUMNS: &str = "id, machine, run, cluster, issuer, token_id, digest, why, created_at, \
     minted_at, expires_at, superseded, revoked_at, tries, retry_at, problem";

/// How long after its end a token is still taken back, to leave no rubbish behind.
const AFTER_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// Imported secrets of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSecrets {
    /// Encrypted.
    pub sealed: Vec<u8>,
    /// When.
    pub imported_at: Millis,
    /// Whose API key it was.
    pub imported_by: String,
}

impl Store {
    /// Stores what is known of a token that is about to be made.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn insert_join_token(&self, token: &JoinToken) -> Result<()> {
        sqlx::query(
            "INSERT INTO join_tokens (id, machine, run, cluster, issuer, token_id, why, \
             created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&token.id)
        .bind(&token.machine)
        .bind(&token.run)
        .bind(&token.cluster)
        .bind(&token.issuer)
        .bind(&token.token_id)
        .bind(&token.why)
        .bind(token.created_at.0)
        .bind(token.expires_at.map(|at| at.0))
        .execute(&self.writer)
        .await
        .map_err(during("storing a join token"))?;
        Ok(())
    }

    /// Notes that a token was made, also when it was taken for revoked before it was there. With
    /// `replaces`, earlier ones of its run for the same end are not needed any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join_token_minted(&self, token: &JoinToken, replaces: bool) -> Result<()> {
        const DOING: &str = "noting a join token";
        let mut tx = self.begin().await?;
        sqlx::query(
            "UPDATE join_tokens SET minted_at = $2, digest = $3, token_id = $4, \
             revoked_at = NULL, retry_at = NULL, tries = 0, problem = NULL WHERE id = $1",
        )
        .bind(&token.id)
        .bind(token.minted_at.map(|at| at.0))
        .bind(&token.digest)
        .bind(&token.token_id)
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        if replaces {
            sqlx::query(
                "UPDATE join_tokens SET superseded = 1 WHERE run = $1 AND why = $2 AND id < $3 \
                 AND revoked_at IS NULL",
            )
            .bind(&token.run)
            .bind(&token.why)
            .bind(&token.id)
            .execute(&mut *tx)
            .await
            .map_err(during(DOING))?;
        }
        tx.commit().await.map_err(during(DOING))
    }

    /// Notes another id for a token that is about to be made: the one before was taken.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rename_join_token(&self, id: &str, token_id: &str) -> Result<()> {
        sqlx::query("UPDATE join_tokens SET token_id = $2 WHERE id = $1")
            .bind(id)
            .bind(token_id)
            .execute(&self.writer)
            .await
            .map_err(during("noting a join token's id"))?;
        Ok(())
    }

    /// Forgets a token that was certainly never made.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_join_token(&self, id: &str) -> Result<()> {
        sqlx::query("DELETE FROM join_tokens WHERE id = $1 AND minted_at IS NULL")
            .bind(id)
            .execute(&self.writer)
            .await
            .map_err(during("forgetting a join token"))?;
        Ok(())
    }

    /// Marks a token as one that nobody needs: nobody knows whether it was made. What was found
    /// of it before does not count.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn supersede_join_token(&self, id: &str) -> Result<()> {
        sqlx::query(
            "UPDATE join_tokens SET superseded = 1, revoked_at = NULL, retry_at = NULL, \
             tries = 0, problem = NULL WHERE id = $1",
        )
        .bind(id)
        .execute(&self.writer)
        .await
        .map_err(during("giving up a join token"))?;
        Ok(())
    }

    /// Tokens that are to be taken back: their run is over, its node has called home since, or
    /// another one took their place. Those that never expire are not among them, nor those that
    /// ended by themselves long ago. Those that were tried least come first. Whether the time for
    /// another try has come is left to the caller.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join_tokens_to_revoke(&self, now: Millis) -> Result<Vec<JoinToken>> {
        let since = now.0.saturating_sub(Millis(0).plus(AFTER_EXPIRY).0);
        let sql = format!(
            "SELECT {COLUMNS} FROM join_tokens AS token WHERE revoked_at IS NULL \
             AND expires_at > $1 AND (superseded = 1 \
             OR NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = token.run \
                AND runs.state IN ('pending', 'running', 'failing')) \
             OR EXISTS (SELECT 1 FROM sightings AS seen WHERE seen.machine = token.machine \
                AND seen.run = token.run AND seen.kind = $2 AND seen.at >= token.created_at)) \
             ORDER BY tries, id"
        );
        // The writer's connection sees what was just written.
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(since)
            .bind(kind::PHONE_HOME)
            .fetch_all(&self.writer)
            .await
            .map_err(during("looking for join tokens to revoke"))
            .map(|rows| rows.iter().map(token).collect())
    }

    /// Notes that a token is revoked. False when it was made meanwhile: then what was revoked was
    /// not there yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join_token_revoked(&self, token: &JoinToken, at: Millis) -> Result<bool> {
        sqlx::query(
            "UPDATE join_tokens SET revoked_at = $2, problem = NULL \
             WHERE id = $1 AND minted_at IS NOT DISTINCT FROM $3",
        )
        .bind(&token.id)
        .bind(at.0)
        .bind(token.minted_at.map(|at| at.0))
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() == 1)
        .map_err(during("noting a revoked join token"))
    }

    /// Notes when to look again for a token that may yet be made. Nothing changes when it was.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join_token_unsettled(&self, id: &str, retry_at: Millis) -> Result<()> {
        sqlx::query("UPDATE join_tokens SET retry_at = $2 WHERE id = $1 AND minted_at IS NULL")
            .bind(id)
            .bind(retry_at.0)
            .execute(&self.writer)
            .await
            .map(|_| ())
            .map_err(during("noting a join token that may yet be made"))
    }

    /// Notes that a token could not be revoked, and when to try again. `tried`: it was this one
    /// that failed, not another of its cluster.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join_token_unrevoked(
        &self,
        id: &str,
        problem: &str,
        retry_at: Millis,
        tried: bool,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE join_tokens SET tries = tries + $4, problem = $2, retry_at = $3 WHERE id = $1",
        )
        .bind(id)
        .bind(problem)
        .bind(retry_at.0)
        .bind(i64::from(tried))
        .execute(&self.writer)
        .await
        .map_err(during("noting an unrevoked join token"))?;
        Ok(())
    }

    /// Tokens for joining, newest first, older than the one with id `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_join_tokens(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<JoinToken>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM join_tokens WHERE $1 IS NULL OR id < $1 ORDER BY id DESC LIMIT $2"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.reader)
            .await
            .map_err(during("listing join tokens"))
            .map(|rows| rows.iter().map(token).collect())
    }

    /// Imported secrets of a cluster.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cluster_secrets(&self, cluster: &str) -> Result<Option<ClusterSecrets>> {
        let row = sqlx::query(
            "SELECT sealed, imported_at, imported_by FROM cluster_secrets WHERE cluster = $1",
        )
        .bind(cluster)
        .fetch_optional(&self.writer)
        .await
        .map_err(during("reading a cluster's secrets"))?;
        Ok(row.map(|row| ClusterSecrets {
            sealed: row.get("sealed"),
            imported_at: Millis(row.get("imported_at")),
            imported_by: row.get("imported_by"),
        }))
    }

    /// Clusters whose imported secrets are stored.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn clusters_with_secrets(&self) -> Result<Vec<String>> {
        sqlx::query_scalar("SELECT cluster FROM cluster_secrets ORDER BY cluster")
            .fetch_all(&self.writer)
            .await
            .map_err(during("listing clusters with secrets"))
    }

    /// Stores secrets of a cluster in place of those before; tells whether there were any.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn put_cluster_secrets(
        &self,
        cluster: &str,
        secrets: &ClusterSecrets,
    ) -> Result<bool> {
        const DOING: &str = "storing a cluster's secrets";
        let mut tx = self.begin().await?;
        let removed = sqlx::query("DELETE FROM cluster_secrets WHERE cluster = $1")
            .bind(cluster)
            .execute(&mut *tx)
            .await
            .map_err(during(DOING))?;
        sqlx::query(
            "INSERT INTO cluster_secrets (cluster, sealed, imported_at, imported_by) \
             VALUES ($1, $2, $3, $4)",
        )
        .bind(cluster)
        .bind(&secrets.sealed)
        .bind(secrets.imported_at.0)
        .bind(&secrets.imported_by)
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        tx.commit().await.map_err(during(DOING))?;
        Ok(removed.rows_affected() > 0)
    }

    /// Removes a cluster's secrets; tells whether there were any.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_cluster_secrets(&self, cluster: &str) -> Result<bool> {
        sqlx::query("DELETE FROM cluster_secrets WHERE cluster = $1")
            .bind(cluster)
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(during("removing a cluster's secrets"))
    }
}

fn token(row: &SqliteRow) -> JoinToken {
    let moment = |column: &str| row.get::<Option<i64>, _>(column).map(Millis);
    JoinToken {
        id: row.get("id"),
        machine: row.get("machine"),
        run: row.get("run"),
        cluster: row.get("cluster"),
        issuer: row.get("issuer"),
        token_id: row.get("token_id"),
        digest: row.get("digest"),
        why: row.get("why"),
        created_at: Millis(row.get("created_at")),
        minted_at: moment("minted_at"),
        expires_at: moment("expires_at"),
        superseded: row.get("superseded"),
        revoked_at: moment("revoked_at"),
        tries: row.get("tries"),
        retry_at: moment("retry_at"),
        problem: row.get("problem"),
    }
}
