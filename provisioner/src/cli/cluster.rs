//! `anneal cluster …`

use std::path::PathBuf;

use anneal_protocol::api::ClusterView;
use anyhow::Context as _;
use clap::Subcommand;
use zeroize::Zeroizing;

use super::client::Client;
use super::output::{self, Format, Table, cell};

/// `anneal cluster …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the clusters that machines may join
    List,
    /// Show a cluster, and whether its issuer could be asked now
    Show {
        /// Its name in anneal.yaml.
        name: String,
    },
    /// Import a Talos cluster's secrets; they are stored encrypted and never shown
    Import {
        /// Its name in anneal.yaml.
        name: String,
        /// What `talosctl gen secrets` wrote; `-`: standard input.
        file: PathBuf,
    },
    /// Remove imported secrets; machines that have joined keep theirs
    Remove {
        /// The cluster's name.
        name: String,
    },
}

/// Carries out `anneal cluster …`.
///
/// # Errors
/// When the daemon refuses or cannot be reached, or the file cannot be read.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::List => {
            let clusters: Vec<ClusterView> = client.list(&["clusters"], &[], usize::MAX).await?;
            output::show(format, &clusters, |clusters| table(clusters))
        }
        Command::Show { name } => {
            let cluster: ClusterView = client.get(&["clusters", &name], &[]).await?;
            output::show(format, &cluster, |cluster| {
                table(std::slice::from_ref(cluster))
            })
        }
        Command::Import { name, file } => {
            let text = Zeroizing::new(
                match file.as_os_str() == "-" {
                    true => std::io::read_to_string(std::io::stdin()),
                    false => std::fs::read_to_string(&file),
                }
                .with_context(|| format!("reading {}", file.display()))?,
            );
            let path = ["clusters", name.as_str(), "secrets"];
            client.put_text(&path, text.as_str()).await?;
            output::print(&format!("secrets of {name} imported\n"))
        }
        Command::Remove { name } => {
            client.delete(&["clusters", &name, "secrets"]).await?;
            output::print(&format!("secrets of {name} removed\n"))
        }
    }
}

fn table(clusters: &[ClusterView]) -> String {
    let mut table = Table::new([
        "NAME", "ENDPOINT", "ISSUER", "TTL", "STATE", "IMPORTED", "BY",
    ]);
    for cluster in clusters {
        let ttl = cluster.ttl_secs.map(std::time::Duration::from_secs);
        let ttl = ttl.map_or_else(|| "for ever".to_owned(), crate::workflow::duration::show);
        table.row([
            cluster.name.as_str(),
            &cluster.endpoint,
            &cluster.issuer,
            &ttl,
            &cluster.state,
            cell(cluster.imported_at.as_deref()),
            cell(cluster.imported_by.as_deref()),
        ]);
    }
    table.to_string()
}
