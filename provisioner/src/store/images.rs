//! Images and their names.

use std::collections::HashSet;

use anneal_protocol::time::Millis;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::{Result, Store, StoreError, during};
use crate::image::{ImageError, ImageRecord};

pub(super) const COLUMNS: &str = "SELECT i.id, i.size, i.stored, i.sha256, i.os, i.os_version, i.proof, \
     n.name, n.version, n.pinned, n.added_at, \
     (SELECT json_group_array(url) FROM (SELECT url FROM image_mirrors m \
         WHERE m.image = i.id ORDER BY m.added_at, m.url)) AS mirrors \
     FROM image_names n JOIN images i ON i.id = n.image";

impl Store {
    /// Adds a name for an image (and the image). Adding the same again changes nothing.
    ///
    /// # Errors
    /// When the name stands for another image or the database fails.
    pub async fn add_image(&self, image: &ImageRecord) -> std::result::Result<(), ImageError> {
        const DOING: &str = "storing an image";
        let proof = image.proof.as_ref().map(serde_json::to_string);
        let proof = proof.transpose().map_err(corrupt)?;
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO images (id, size, stored, sha256, os, os_version, proof, added_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
        )
        .bind(&image.id)
        .bind(signed(image.size))
        .bind(signed(image.stored))
        .bind(&image.sha256)
        .bind(&image.os)
        .bind(&image.os_version)
        .bind(proof)
        .bind(image.added_at.0)
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        // The update changes nothing; it makes the row that is there come back.
        let holder: String = sqlx::query_scalar(
            "INSERT INTO image_names (name, version, image, added_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name, version) DO UPDATE SET name = excluded.name RETURNING image",
        )
        .bind(&image.name)
        .bind(&image.version)
        .bind(&image.id)
        .bind(image.added_at.0)
        .fetch_one(&mut *tx)
        .await
        .map_err(during(DOING))?;
        if holder != image.id {
            return Err(ImageError::Exists(image.reference()));
        }
        for url in &image.mirrors {
            insert_mirror(&mut tx, &image.id, url, image.added_at).await?;
        }
        Ok(tx.commit().await.map_err(during(DOING))?)
    }

    /// The image of this name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image(&self, name: &str, version: &str) -> Result<Option<ImageRecord>> {
        // The query is made of constants.
        let query = format!("{COLUMNS} WHERE n.name = $1 AND n.version = $2");
        sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(name)
            .bind(version)
            .fetch_optional(&self.reader)
            .await
            .map_err(during("reading an image"))?
            .as_ref()
            .map(image_row)
            .transpose()
    }

    /// Every name, sorted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn images(&self) -> Result<Vec<ImageRecord>> {
        let query = format!("{COLUMNS} ORDER BY n.name, n.added_at, n.version");
        sqlx::query(sqlx::AssertSqlSafe(query))
            .fetch_all(&self.reader)
            .await
            .map_err(during("listing images"))?
            .iter()
            .map(image_row)
            .collect()
    }

    /// Ids of all images.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_ids(&self) -> Result<HashSet<String>> {
        // Through the writer, which has seen every commit.
        sqlx::query_scalar("SELECT id FROM images")
            .fetch_all(&self.writer)
            .await
            .map(HashSet::from_iter)
            .map_err(during("listing images"))
    }

    /// Takes a name away, and the image with its last name.
    ///
    /// # Errors
    /// When a machine has the image as its own, when it is the last name and an active run
    /// installs the image, when there is no such name, or when the database fails.
    pub async fn remove_image(
        &self,
        name: &str,
        version: &str,
    ) -> std::result::Result<ImageRecord, ImageError> {
        const DOING: &str = "removing an image";
        let reference = format!("{name}@{version}");
        let mut tx = self.begin().await?;
        let query = format!("{COLUMNS} WHERE n.name = $1 AND n.version = $2");
        let image = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(name)
            .bind(version)
            .fetch_optional(&mut *tx)
            .await
            .map_err(during(DOING))?
            .as_ref()
            .map(image_row)
            .transpose()?
            .ok_or_else(|| ImageError::NotFound(reference.clone()))?;
        let in_use = |by: String| ImageError::InUse {
            reference: reference.clone(),
            by,
        };
        let machine: Option<String> = sqlx::query_scalar(
            "SELECT name FROM machines WHERE json_extract(spec, '$.image') = $1 ORDER BY name LIMIT 1",
        )
        .bind(&reference)
        .fetch_optional(&mut *tx)
        .await
        .map_err(during(DOING))?;
        if let Some(machine) = machine {
            return Err(in_use(format!(
                "machine {machine}: give it another image first"
            )));
        }
        execute(
            &mut tx,
            "DELETE FROM image_names WHERE name = $1 AND version = $2",
            &[name, version],
        )
        .await?;
        let names: i64 = sqlx::query_scalar("SELECT count(*) FROM image_names WHERE image = $1")
            .bind(&image.id)
            .fetch_one(&mut *tx)
            .await
            .map_err(during(DOING))?;
        if names == 0 {
            let run = sqlx::query(
                "SELECT id, machine FROM runs WHERE image = $1 \
                 AND state IN ('pending', 'running', 'failing') LIMIT 1",
            )
            .bind(&image.id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(during(DOING))?;
            if let Some(run) = run {
                return Err(in_use(format!(
                    "run {} of machine {}: wait for it or cancel it",
                    run.get::<String, _>("id"),
                    run.get::<String, _>("machine")
                )));
            }
            execute(&mut tx, "DELETE FROM images WHERE id = $1", &[&image.id]).await?;
        }
        tx.commit().await.map_err(during(DOING))?;
        Ok(image)
    }
}

pub(super) async fn insert_mirror(
    tx: &mut Transaction<'static, Sqlite>,
    image: &str,
    url: &str,
    at: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO image_mirrors (image, url, added_at) VALUES ($1, $2, $3) \
         ON CONFLICT (image, url) DO NOTHING",
    )
    .bind(image)
    .bind(url)
    .bind(at.0)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(during("storing an image's mirror"))
}

async fn execute(
    tx: &mut Transaction<'static, Sqlite>,
    query: &'static str,
    arguments: &[&str],
) -> std::result::Result<(), StoreError> {
    let mut query = sqlx::query(query);
    for argument in arguments {
        query = query.bind((*argument).to_owned());
    }
    query
        .execute(&mut **tx)
        .await
        .map(|_| ())
        .map_err(during("removing an image"))
}

/// Sizes are far below 2^63 (the format's limit is 2^42), SQLite's integers are signed.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn corrupt(source: serde_json::Error) -> StoreError {
    StoreError::Corrupt {
        what: "image",
        source,
    }
}

pub(super) fn image_row(row: &SqliteRow) -> Result<ImageRecord> {
    let proof: Option<String> = row.get("proof");
    let mirrors: String = row.get("mirrors");
    Ok(ImageRecord {
        id: row.get("id"),
        name: row.get("name"),
        version: row.get("version"),
        os: row.get("os"),
        os_version: row.get("os_version"),
        size: row.get::<i64, _>("size").unsigned_abs(),
        stored: row.get::<i64, _>("stored").unsigned_abs(),
        sha256: row.get("sha256"),
        proof: proof
            .map(|json| serde_json::from_str(&json))
            .transpose()
            .map_err(corrupt)?,
        pinned: row.get("pinned"),
        mirrors: serde_json::from_str(&mirrors).map_err(corrupt)?,
        added_at: Millis(row.get("added_at")),
    })
}
