//! What is changed about an image after it was added: pins, mirrors, garbage collection.

use anneal_protocol::time::Millis;
use sqlx::Row as _;

use super::images::{COLUMNS, image_row, insert_mirror};
use super::{Result, Store, during};
use crate::image::Collected;

impl Store {
    /// Sets or clears the pin of a name; false when there is no such name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pin_image(&self, name: &str, version: &str, pinned: bool) -> Result<bool> {
        sqlx::query("UPDATE image_names SET pinned = $3 WHERE name = $1 AND version = $2")
            .bind(name)
            .bind(version)
            .bind(pinned)
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() == 1)
            .map_err(during("pinning an image"))
    }

    /// Adds a place where the data of the image `id` lies.
    ///
    /// # Errors
    /// When there is no such image or the database fails.
    pub async fn add_image_mirror(&self, id: &str, url: &str, at: Millis) -> Result<()> {
        let mut tx = self.begin().await?;
        insert_mirror(&mut tx, id, url, at).await?;
        tx.commit()
            .await
            .map_err(during("storing an image's mirror"))
    }

    /// Forgets a place; false when it was not known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_image_mirror(&self, id: &str, url: &str) -> Result<bool> {
        sqlx::query("DELETE FROM image_mirrors WHERE image = $1 AND url = $2")
            .bind(id)
            .bind(url)
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() == 1)
            .map_err(during("removing an image's mirror"))
    }

    /// Ids of the images that active runs install.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn images_being_installed(&self) -> Result<Vec<String>> {
        sqlx::query_scalar(
            "SELECT DISTINCT image FROM runs WHERE image IS NOT NULL \
             AND state IN ('pending', 'running', 'failing')",
        )
        .fetch_all(&self.writer)
        .await
        .map_err(during("listing images of active runs"))
    }

    /// Removes the names added before `before` that nobody needs, and the images with their last
    /// name; says which. `dry_run` changes nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn collect_images(&self, before: Millis, dry_run: bool) -> Result<Vec<Collected>> {
        const DOING: &str = "collecting images";
        let mut tx = self.begin().await?;
        let query = format!(
            "{COLUMNS} WHERE n.pinned = 0 AND n.added_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM machines \
                 WHERE json_extract(spec, '$.image') = n.name || '@' || n.version) \
             AND NOT EXISTS (SELECT 1 FROM machines m JOIN runs r ON r.id = m.last_run \
                 WHERE r.image = i.id) \
             AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.image = i.id \
                 AND r.state IN ('pending', 'running', 'failing')) \
             ORDER BY n.name, n.added_at, n.version"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(before.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(during(DOING))?;
        let mut collected = Vec::new();
        for row in &rows {
            let image = image_row(row)?;
            sqlx::query("DELETE FROM image_names WHERE name = $1 AND version = $2")
                .bind(&image.name)
                .bind(&image.version)
                .execute(&mut *tx)
                .await
                .map_err(during(DOING))?;
            let gone = sqlx::query(
                "DELETE FROM images WHERE id = $1 \
                 AND NOT EXISTS (SELECT 1 FROM image_names WHERE image = $1) RETURNING id",
            )
            .bind(&image.id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(during(DOING))?;
            let freed = match gone.map(|row| row.get::<String, _>("id")) {
                Some(_) => image.stored,
                None => 0,
            };
            collected.push(Collected { image, freed });
        }
        if !dry_run {
            tx.commit().await.map_err(during(DOING))?;
        }
        Ok(collected)
    }
}
