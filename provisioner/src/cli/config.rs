//! `anneal config`: would the readers of a machine's texts take them?

use anneal_protocol::api::{CheckOutcome, ValidateView};
use clap::Subcommand;

use super::client::Client;
use super::output::{self, Format, Table, printable};

/// `anneal config …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every check there is, and say which could not run; fails when one finds a mistake
    Validate {
        /// Machines
        #[arg(required = true)]
        machines: Vec<String>,
        /// Workflow [default: the machine's, else install-image]
        #[arg(long, value_name = "NAME")]
        workflow: Option<String>,
        /// Image, name@version [default: the machine's]
        #[arg(long, value_name = "NAME@VERSION")]
        image: Option<String>,
    },
}

/// Carries out `anneal config …`.
///
/// # Errors
/// When the daemon refuses or cannot be reached, or a check failed.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    let Command::Validate {
        machines,
        workflow,
        image,
    } = command;
    let pairs = [
        ("workflow", workflow.as_deref()),
        ("image", image.as_deref()),
    ];
    let query: Vec<(&str, &str)> = pairs
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect();
    let mut invalid = Vec::new();
    for machine in &machines {
        let path = ["machines", machine.as_str(), "validate"];
        let view: ValidateView = client.get(&path, &query).await?;
        output::show(format, &view, show)?;
        if !view.valid {
            invalid.push(machine.as_str());
        }
    }
    anyhow::ensure!(invalid.is_empty(), "not valid: {}", invalid.join(", "));
    Ok(())
}

fn show(view: &ValidateView) -> String {
    let mut table = Table::new(["CHECK", "OF", "OUTCOME", "WHY"]);
    for check in &view.checks {
        let outcome = match check.outcome {
            CheckOutcome::Passed => "passed",
            CheckOutcome::Failed => "FAILED",
            CheckOutcome::NotRun => "not run",
        };
        // The first line here, all of it below.
        let first = check.detail.lines().next().unwrap_or_default();
        table.row([
            check.check.as_str(),
            &check.subject,
            outcome,
            &printable(first),
        ]);
    }
    let mut text = format!("{}\n{table}", view.machine);
    for check in view
        .checks
        .iter()
        .filter(|check| check.detail.lines().count() > 1)
    {
        text += &format!("\n{} of {}:\n", check.check, check.subject);
        for line in check.detail.lines() {
            text += &format!("   {}\n", printable(line));
        }
    }
    text
}
