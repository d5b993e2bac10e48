//! What was last written to a machine's disk, from the runs that did.

use sqlx::Row;

use super::{Result, Store, during};

/// An image on a machine's disk, as it was when it was written; it may be gone from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDisk {
    /// Its id.
    pub id: String,
    /// `name@version`.
    pub reference: String,
    /// It was added without proof of its publisher.
    pub unproven: bool,
}

impl Store {
    /// The image that was last written to the machine's disk, or begun to be.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_on_disk(&self, machine: &str) -> Result<Option<OnDisk>> {
        let row = sqlx::query(
            "SELECT image, json_extract(plan, '$.image.name') || '@' || \
             json_extract(plan, '$.image.version') AS name, \
             COALESCE(json_extract(plan, '$.image.unproven'), 0) AS unproven \
             FROM runs r WHERE machine = $1 AND image IS NOT NULL AND EXISTS \
             (SELECT 1 FROM steps s WHERE s.run = r.id AND s.uses = 'stream-image' \
             AND s.started_at IS NOT NULL) ORDER BY created_at DESC, id DESC LIMIT 1",
        )
        .bind(machine)
        .fetch_optional(&self.reader)
        .await
        .map_err(during("reading what was last written"))?;
        Ok(row.map(|row| OnDisk {
            id: row.get("image"),
            reference: row.get("name"),
            unproven: row.get::<i64, _>("unproven") != 0,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(store: &Store, id: &str, image: Option<(&str, &str)>, wrote: bool) {
        let plan = image.map(|(version, unproven)| {
            format!(r#"{{"image":{{"name":"os","version":"{version}"{unproven}}}}}"#)
        });
        let mut tx = store.begin().await.unwrap();
        sqlx::query(
            "INSERT INTO runs (id, machine, workflow, plan, image, state, requested_by, \
             created_at, deadline) VALUES ($1, 'r1n1', 'w', $2, $3, 'failed', 'me', 1, 1)",
        )
        .bind(id)
        .bind(plan.as_deref().unwrap_or("{}"))
        .bind(image.map(|_| "blake3:00"))
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO steps (run, idx, phase, name, uses, state, started_at) \
             VALUES ($1, 0, 'main', 's', 'stream-image', 'failed', $2)",
        )
        .bind(id)
        .bind(wrote.then_some(1_i64))
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn the_last_run_that_wrote_says_what_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let written = async || store.image_on_disk("r1n1").await.unwrap();
        let found = |reference: &str, unproven| {
            Some(OnDisk {
                id: "blake3:00".to_owned(),
                reference: reference.to_owned(),
                unproven,
            })
        };
        assert_eq!(written().await, None);
        // Runs from before proofs were recorded say nothing of them.
        run(&store, "1", Some(("1", "")), true).await;
        assert_eq!(written().await, found("os@1", false));
        run(&store, "2", Some(("2", r#","unproven":true"#)), true).await;
        assert_eq!(written().await, found("os@2", true));
        // One that never began to write, and one without image, change nothing.
        run(&store, "3", Some(("3", r#","unproven":false"#)), false).await;
        run(&store, "4", None, false).await;
        assert_eq!(written().await, found("os@2", true));
        assert_eq!(store.image_on_disk("r1n2").await.unwrap(), None);
    }
}
