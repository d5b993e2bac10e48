//! `anneal provision`: start runs and watch them to their end.

use anneal_protocol::api::{Plan, ProvisionRequest, RunView};
use futures_util::future::join_all;

use super::client::{self, Client};
use super::follow::{self, Show};
use super::output::{self, Format, Table, cell, printable};
use super::run;
use super::screen::Screen;

/// What to provision, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
    /// Image, name@version [default: the machine's]
    #[arg(long, value_name = "NAME@VERSION")]
    image: Option<String>,
    /// Workflow [default: the machine's, else install-image]
    #[arg(long, value_name = "NAME")]
    workflow: Option<String>,
    /// Only print what would be done, disks included; nothing is touched
    #[arg(long, conflicts_with = "no_follow")]
    plan: bool,
    /// Do not wait for the end: print the run and return
    #[arg(long)]
    no_follow: bool,
}

/// Carries out `anneal provision`; succeeds only when every run did.
///
/// # Errors
/// When the daemon refuses, or a run ends without success.
pub async fn provision(client: Client, args: Args, format: Format) -> anyhow::Result<()> {
    let request = ProvisionRequest {
        workflow: args.workflow,
        image: args.image,
        plan: args.plan,
    };
    if args.plan {
        for machine in &args.machines {
            let path = ["machines", machine, "provision"];
            let plan: Plan = client::parse(client.post(&path, &request).await?).await?;
            output::show(format, &plan, show_plan)?;
        }
        return Ok(());
    }
    let mut runs: Vec<RunView> = Vec::new();
    for machine in &args.machines {
        let path = ["machines", machine, "provision"];
        runs.push(client::parse(client.post(&path, &request).await?).await?);
    }
    if args.no_follow {
        return output::show(format, &runs, |runs| run::list(runs));
    }
    follow_all(&client, runs, 0, format).await
}

/// Watches runs side by side, from event `after` on. The first that did not succeed is the
/// error, after all ended.
///
/// # Errors
/// When a run ends without success or cannot be watched.
pub async fn follow_all(
    client: &Client,
    runs: Vec<RunView>,
    after: i64,
    format: Format,
) -> anyhow::Result<()> {
    let screen = (format == Format::Table).then(Screen::new);
    let several = runs.len() > 1;
    let mut watched = Vec::new();
    for run in runs {
        let label = if several {
            format!("{}  ", run.machine)
        } else {
            String::new()
        };
        if let Some(screen) = &screen {
            screen.line(&format!("{label}run {} of machine {}", run.id, run.machine))?;
        }
        watched.push(follow::follow(
            client,
            run,
            Show {
                screen: screen.as_ref(),
                label,
                after,
            },
        ));
    }
    let mut failure = None;
    for ended in join_all(watched).await {
        let ended = match ended {
            Ok(run) => {
                output::show(format, &run, run::summary)?;
                follow::succeeded(run).map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            failure.get_or_insert(error);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// A plan as people read it: what will be written where.
pub(super) fn show_plan(plan: &Plan) -> String {
    let mut text = format!(
        "{}: workflow {}, image {}\ndisk: {}\n",
        plan.machine,
        plan.workflow,
        cell(plan.image.as_deref()),
        printable(&plan.disk)
    );
    for warning in &plan.warnings {
        text.push_str(&format!("warning: {}\n", printable(warning)));
    }
    let mut table = Table::new(["#", "STEP", "USES", "WHERE", "DISK"]);
    for (index, step) in plan.steps.iter().enumerate() {
        let disk = match (step.runs, step.destructive) {
            (false, _) => "skipped",
            (true, true) => "writes",
            (true, false) => "",
        };
        let number = (index + 1).to_string();
        table.row([number.as_str(), &step.name, &step.uses, &step.runs_on, disk]);
    }
    text.push_str(&table.to_string());
    for (index, step) in plan.steps.iter().enumerate() {
        text.push_str(&parameters(index + 1, &step.name, &step.with));
    }
    text + "nothing was touched: leave out --plan to do this\n"
}

/// The rendered parameters; texts of several lines are shown as they will be written.
pub(super) fn parameters(number: usize, name: &str, with: &serde_json::Value) -> String {
    let Some(map) = with.as_object().filter(|map| !map.is_empty()) else {
        return String::new();
    };
    let mut text = format!("\n{number}. {name}\n");
    for (key, value) in map {
        let long = |value: &serde_json::Value| value.as_str().is_some_and(|t| t.contains('\n'));
        match value.as_object().filter(|inner| inner.values().any(long)) {
            Some(inner) => {
                for (name, value) in inner {
                    text += &parameter(&format!("{key}.{name}"), value);
                }
            }
            None => text += &parameter(key, value),
        }
    }
    text
}

fn parameter(key: &str, value: &serde_json::Value) -> String {
    match value.as_str() {
        Some(lines) if lines.contains('\n') => {
            let lines = lines.lines();
            let lines: String = lines
                .map(|line| format!("     | {}\n", printable(line)))
                .collect();
            format!("   {}:\n{lines}", printable(key))
        }
        Some(line) => format!("   {}: {}\n", printable(key), printable(line)),
        None => format!("   {}: {value}\n", printable(key)),
    }
}
