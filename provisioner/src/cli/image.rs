//! `anneal image …`

use std::path::{Path, PathBuf};

use anneal_protocol::api::ImageView;
use anyhow::Context as _;
use clap::Subcommand;
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::io::ReaderStream;

use super::client::{self, Client};
use super::output::{self, Format, Table};
use super::time;

/// `anneal image …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add an image to the store, under a name and version that never change again
    Add {
        /// `name@version`.
        #[arg(value_parser = name_and_version)]
        name: (String, String),
        /// The disk image; `-` reads standard input.
        file: PathBuf,
        /// Its operating system, which says how it is configured: `debian`.
        #[arg(long)]
        os: String,
    },
    /// List images
    List,
    /// Show an image
    Show {
        /// `name@version`.
        name: String,
    },
    /// Remove images
    Remove {
        /// `name@version`.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

fn name_and_version(text: &str) -> Result<(String, String), String> {
    crate::machine::check::image(text)?;
    let (name, version) = text.split_once('@').unwrap_or((text, ""));
    Ok((name.to_owned(), version.to_owned()))
}

/// Carries out `anneal image …`.
///
/// # Errors
/// When a file cannot be read, or the daemon refuses or cannot be reached.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::Add {
            name: (name, version),
            file,
            os,
        } => {
            let query = [("name", name.as_str()), ("version", &version), ("os", &os)];
            let body = body(&file).await?;
            let response = client.upload(&["images"], &query, body).await?;
            let image: ImageView = client::parse(response).await?;
            output::show(format, &image, show)
        }
        Command::List => {
            let images: Vec<ImageView> = client.list(&["images"], &[], usize::MAX).await?;
            output::show(format, &images, |images| {
                let mut table = Table::new(["NAME", "OS", "SIZE", "STORED", "ADDED", "ID"]);
                for image in images {
                    let (size, stored) = (time::bytes(image.size), time::bytes(image.stored));
                    let (name, os) = (image.name.as_str(), image.os.as_str());
                    table.row([name, os, &size, &stored, &image.added_at, &image.id]);
                }
                table.to_string()
            })
        }
        Command::Show { name } => {
            let image: ImageView = client.get(&["images", &name], &[]).await?;
            output::show(format, &image, show)
        }
        Command::Remove { names } => {
            for name in names {
                client.delete(&["images", &name]).await?;
                output::print(&format!("{name} removed\n"))?;
            }
            Ok(())
        }
    }
}

fn show(image: &ImageView) -> String {
    let mut table = Table::plain();
    table.row(["os", &image.os]);
    table.row(["id", &image.id]);
    table.row(["sha256", &image.sha256]);
    table.row(["disk", &time::bytes(image.size)]);
    table.row(["stored", &time::bytes(image.stored)]);
    table.row(["added", &image.added_at]);
    format!("{}\n{table}", image.name)
}

/// The file as a request's body, with a progress bar on a terminal.
async fn body(path: &Path) -> anyhow::Result<reqwest::Body> {
    if path == Path::new("-") {
        let stdin = tokio::fs::File::open("/dev/stdin").await;
        let stdin = stdin.context("reading standard input")?;
        return Ok(reqwest::Body::wrap_stream(ReaderStream::new(stdin)));
    }
    let doing = || format!("reading {}", path.display());
    let file = tokio::fs::File::open(path).await.with_context(doing)?;
    let size = file.metadata().await.with_context(doing)?.len();
    let bar = ProgressBar::new(size);
    bar.set_style(ProgressStyle::with_template(
        "sending [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )?);
    let parts = ReaderStream::with_capacity(file, 1 << 18).inspect(move |part| {
        bar.inc(part.as_ref().map_or(0, |part| part.len() as u64));
        if bar.position() >= size {
            bar.finish_and_clear();
        }
    });
    Ok(reqwest::Body::wrap_stream(parts))
}
