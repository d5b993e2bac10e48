//! Which images stay: pins and garbage collection.

use std::time::Duration;

use anneal_protocol::time::Millis;

use super::{Catalog, ImageError, ImageRecord, parse_reference};
use crate::clock::now;

/// A name that garbage collection took away (or would).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// What it was.
    pub image: ImageRecord,
    /// Bytes that are free again: none while another name stands for the same data.
    pub freed: u64,
}

impl Catalog {
    /// Sets or clears the pin of a name.
    ///
    /// # Errors
    /// When it is unknown or the database fails.
    pub async fn pin(&self, reference: &str, pinned: bool) -> Result<ImageRecord, ImageError> {
        let (name, version) = parse_reference(reference)?;
        if !self.store.pin_image(name, version, pinned).await? {
            return Err(ImageError::NotFound(reference.to_owned()));
        }
        self.resolve(reference).await
    }

    /// Takes away every name that is older than `grace`, not pinned, named by no machine, and
    /// whose image no active run installs and no machine was last installed from; and the data
    /// with the last name. `dry_run` only says what would go.
    ///
    /// # Errors
    /// When the database or the folder fails.
    pub async fn gc(&self, grace: Duration, dry_run: bool) -> Result<Vec<Collected>, ImageError> {
        let grace = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
        let before = Millis(now().0.saturating_sub(grace));
        let _changing = self.changing.clone().lock_owned().await;
        let collected = self.store.collect_images(before, dry_run).await?;
        if !dry_run {
            // The rows are gone; should this process die here, the next one removes the folders.
            self.sweep_orphans().await?;
            for Collected { image, freed } in &collected {
                tracing::info!(image = image.reference(), freed, "image collected");
            }
        }
        Ok(collected)
    }
}
