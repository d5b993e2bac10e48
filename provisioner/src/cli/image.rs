//! `anneal image …`

use anneal_protocol::api::{ImageView, IngestView};
use clap::Subcommand;

use super::client::Client;
use super::image_add::{self, AddArgs};
use super::output::{self, Format, Table};
use super::{image_care, image_export, time};

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
    /// Read an image in the store again, all of it; fails when it is damaged
    Verify {
        /// `name@version`.
        name: String,
    },
    /// Get an image out of the store, verified
    Export(image_export::Export),
    /// Remove images
    Remove {
        /// `name@version`.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove images that nobody needs: not pinned, named by no machine, installed by no active
    /// run, and no machine's last installation
    Gc {
        /// Only images added so long ago.
        #[arg(long, value_name = "AGE", default_value = "7d", value_parser = image_care::age)]
        older_than: std::time::Duration,
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
    },
    /// Keep images from `gc`
    Pin {
        /// `name@version`.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Leave images to `gc` again
    Unpin {
        /// `name@version`.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Manage other places where the data of an image lies
    #[command(subcommand)]
    Mirror(image_care::Mirror),
    /// Manage the keys that sign images
    #[command(subcommand)]
    Key(image_care::Key),
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
                let mut table = Table::new([
                    "NAME", "OS", "SIZE", "STORED", "PROOF", "PINNED", "ADDED", "ID",
                ]);
                for image in images {
                    let (size, stored) = (time::bytes(image.size), time::bytes(image.stored));
                    let proof = image.proof.as_ref().map_or("unproven", |p| &p.method);
                    let pinned = if image.pinned { "yes" } else { "" };
                    let (name, os) = (image.name.as_str(), image.os.as_str());
                    let (added, id) = (image.added_at.as_str(), image.id.as_str());
                    table.row([name, os, &size, &stored, proof, pinned, added, id]);
                }
                table.to_string()
            })
        }
        Command::Show { name } => {
            let image: ImageView = client.get(&["images", &name], &[]).await?;
            output::show(format, &image, show)
        }
        Command::Verify { name } => image_care::verify(&client, &name, format).await,
        Command::Export(arguments) => image_export::export(&client, arguments).await,
        Command::Gc {
            older_than,
            dry_run,
        } => image_care::collect(&client, older_than, dry_run, format).await,
        Command::Pin { names } => image_care::pin(&client, &names, true).await,
        Command::Unpin { names } => image_care::pin(&client, &names, false).await,
        Command::Mirror(command) => image_care::mirror(&client, command, format).await,
        Command::Key(command) => image_care::key(&client, command, format).await,
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
    if let Some(version) = &image.os_version {
        table.row(["os version", version]);
    }
    table.row(["id", &image.id]);
    table.row(["sha256", &image.sha256]);
    table.row(["disk", &time::bytes(image.size)]);
    table.row(["stored", &time::bytes(image.stored)]);
    match &image.proof {
        None => table.row(["proof", "none: this image is unproven"]),
        Some(proof) => {
            table.row(["proof", &proof.method]);
            let more = [
                ("signed by", &proof.signer),
                ("evidence", &proof.source),
                ("detail", &proof.detail),
            ];
            for (name, text) in more {
                if let Some(text) = text {
                    table.row([name, text]);
                }
            }
        }
    }
    table.row(["pinned", if image.pinned { "yes" } else { "no" }]);
    for url in &image.mirrors {
        table.row(["mirror", url]);
    }
    table.row(["added", &image.added_at]);
    format!("{}\n{table}", image.name)
}
