//! `anneal image verify|pin|unpin|mirror|gc|key …`: what is done with images that are there.

use std::time::Duration;

use anneal_protocol::api::{
    AddMirror, AddedMirror, CollectRequest, CollectView, ImageKeyView, ImageView, ResignView,
    VerifyView,
};
use anyhow::bail;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::client::{self, Client};
use super::output::{self, Format, Table};
use super::time;
use crate::workflow::duration;

/// `anneal image mirror …`
#[derive(Debug, Subcommand)]
pub enum Mirror {
    /// Add a place where the data of an image lies, after asking it for the first and last frame
    Add {
        /// `name@version`.
        name: String,
        /// URL of data.zst: http, https, `oci://registry/repository:tag` or `@sha256:…`
        /// (`oci+http://` for a registry without TLS).
        url: String,
    },
    /// Forget a mirror
    Remove {
        /// `name@version`.
        name: String,
        /// As `anneal image show` prints it.
        url: String,
    },
}

/// `anneal image key …`
#[derive(Debug, Subcommand)]
pub enum Key {
    /// List the keys that sign images, or did
    List,
    /// Make a new key sign from now on; what the key before signed stays valid
    Rotate,
    /// Sign again what earlier keys signed, and retire the keys that nothing needs any more
    Resign,
}

/// A duration such as `36h` or `7d`.
pub fn age(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .ok_or_else(|| "expected a number and a unit such as 90s, 36h or 7d".to_owned())
}

/// Reads an image in the store again. Fails when it is damaged.
pub async fn verify(client: &Client, name: &str, format: Format) -> anyhow::Result<()> {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    bar.set_message(format!("the daemon reads {name} again"));
    bar.enable_steady_tick(Duration::from_millis(200));
    let response = client.post_slowly(&["images", name, "verify"], &()).await;
    bar.finish_and_clear();
    let result: VerifyView = client::parse(response?).await?;
    output::show(format, &result, |result| match &result.problem {
        None => format!(
            "{name} is intact: {} verified\n",
            time::bytes(result.verified)
        ),
        Some(_) => String::new(),
    })?;
    if let Some(problem) = &result.problem {
        bail!(
            "image {name} is damaged after {} of {}: {problem}; remove it and add it again",
            time::bytes(result.verified),
            time::bytes(result.size)
        );
    }
    Ok(())
}

/// Pins or unpins images.
pub async fn pin(client: &Client, names: &[String], pinned: bool) -> anyhow::Result<()> {
    for name in names {
        let path = ["images", name, "pin"];
        if pinned {
            client.put_mark(&path).await?;
        } else {
            client.delete(&path).await?;
        }
        let done = if pinned { "pinned" } else { "no longer pinned" };
        output::print(&format!("{name} {done}\n"))?;
    }
    Ok(())
}

/// `anneal image mirror …`
pub async fn mirror(client: &Client, command: Mirror, format: Format) -> anyhow::Result<()> {
    match command {
        Mirror::Add { name, url } => {
            let body = AddMirror { url };
            let path = ["images", &name, "mirrors"];
            let response = client.post_slowly(&path, &body).await?;
            let added: AddedMirror = client::parse(response).await?;
            output::show(format, &added, |added| {
                format!("{name} has the mirror {}\n", added.url)
            })
        }
        Mirror::Remove { name, url } => {
            let path = ["images", &name, "mirrors"];
            let image: ImageView = client.delete_with(&path, &[("url", &url)]).await?;
            output::show(format, &image, |_| format!("{name}: {url} removed\n"))
        }
    }
}

/// Removes images that nobody needs.
pub async fn collect(
    client: &Client,
    older_than: Duration,
    dry_run: bool,
    format: Format,
) -> anyhow::Result<()> {
    let request = CollectRequest {
        older_than_ms: u64::try_from(older_than.as_millis()).unwrap_or(u64::MAX),
        dry_run,
    };
    let response = client.post_slowly(&["images", "gc"], &request).await?;
    let result: CollectView = client::parse(response).await?;
    output::show(format, &result, |result| {
        if result.images.is_empty() {
            return "nothing to remove\n".to_owned();
        }
        let mut table = Table::new(["NAME", "FREED", "ADDED", "ID"]);
        for item in &result.images {
            let freed = time::bytes(item.freed);
            let image = &item.image;
            table.row([image.name.as_str(), &freed, &image.added_at, &image.id]);
        }
        let done = if result.dry_run {
            "would be freed"
        } else {
            "freed"
        };
        format!("{table}{} {done}\n", time::bytes(result.freed))
    })
}

/// `anneal image key …`
pub async fn key(client: &Client, command: Key, format: Format) -> anyhow::Result<()> {
    match command {
        Key::List => {
            let keys: Vec<ImageKeyView> = client.list(&["image-keys"], &[], usize::MAX).await?;
            output::show(format, &keys, |keys| {
                let mut table = Table::new(["ID", "SIGNS", "IMAGES", "KEY"]);
                for key in keys {
                    let signs = if key.signs { "yes" } else { "no" };
                    let count = key.images.len().to_string();
                    table.row([key.id.as_str(), signs, &count, &key.key]);
                }
                table.to_string()
            })
        }
        Key::Rotate => {
            let response = client.post(&["image-keys"], &()).await?;
            let key: ImageKeyView = client::parse(response).await?;
            output::show(format, &key, |key| {
                format!(
                    "{} signs from now on; `anneal image key resign` signs older images with it\n",
                    key.id
                )
            })
        }
        Key::Resign => {
            let response = client.post_slowly(&["image-keys", "resign"], &()).await?;
            let done: ResignView = client::parse(response).await?;
            output::show(format, &done, |done| {
                let mut text = String::new();
                for name in &done.images {
                    text.push_str(&format!("{name} signed\n"));
                }
                for kept in &done.kept {
                    text.push_str(&format!("left as it is: {kept}\n"));
                }
                for key in &done.retired {
                    text.push_str(&format!("key {key} retired\n"));
                }
                if text.is_empty() {
                    text.push_str("nothing to do\n");
                }
                text
            })
        }
    }
}
