//! `anneal workflow …`

use std::path::PathBuf;

use anneal_protocol::api::WorkflowView;
use anyhow::Context as _;
use clap::Subcommand;

use super::client::Client;
use super::output::{self, Format, Table};

/// `anneal workflow …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List workflows
    List,
    /// Check workflow files with the daemon's actions and templates
    Validate {
        /// Files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// Carries out `anneal workflow …`.
///
/// # Errors
/// When a file is wrong, with its place, or the daemon cannot be reached.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::List => {
            let workflows: Vec<WorkflowView> = client.list(&["workflows"], &[], usize::MAX).await?;
            output::show(format, &workflows, |workflows| {
                let mut table = Table::new(["NAME", "STEPS"]);
                for workflow in workflows {
                    let steps = match &workflow.error {
                        Some(error) => format!("cannot be used: {error}"),
                        None => workflow.steps.join(", "),
                    };
                    table.row([workflow.name.as_str(), &steps]);
                }
                table.to_string()
            })
        }
        Command::Validate { files } => {
            for file in files {
                let name = file.to_string_lossy();
                let text =
                    std::fs::read_to_string(&file).with_context(|| format!("reading {name}"))?;
                client
                    .post_file(
                        &["workflows", "validate"],
                        &[],
                        "application/yaml",
                        &name,
                        text,
                    )
                    .await?;
                output::print(&format!("{name}: valid\n"))?;
            }
            Ok(())
        }
    }
}
