//! `anneal image …`

use anneal_protocol::api::{ImageView, IngestView};
use clap::Subcommand;

use super::client::Client;
use super::image_add::{self, AddArgs};
use super::output::{self, Format, Table};
use super::time;

/// `anneal image …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add an image to the store, under a name and version that never change again
    Add(Box<AddArgs>),
    /// List images on their way into the store, and the last that came to an end
    Ingests,
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

pub(super) fn name_and_version(text: &str) -> Result<(String, String), String> {
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
        Command::Add(args) => {
            let image = image_add::add(&client, *args).await?;
            output::show(format, &image, show)
        }
        Command::Ingests => {
            let ingests: Vec<IngestView> =
                client.list(&["images", "ingests"], &[], usize::MAX).await?;
            output::show(format, &ingests, |ingests| image_add::table(ingests))
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
