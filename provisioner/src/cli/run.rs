//! `anneal run …`

use anneal_protocol::agent::StreamResult;
use anneal_protocol::api::{EventView, RunView, StepView};
use clap::Subcommand;
use serde::Serialize;

use super::client::{self, Client};
use super::output::{self, Format, Table, printable};
use super::{follow, provision, time};

/// `anneal run …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List runs, newest first
    List {
        /// Only of this machine.
        #[arg(long, value_name = "NAME")]
        machine: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show a run: its steps, the time spent in each phase, and everything that happened
    Show {
        /// Its id.
        id: String,
    },
    /// Watch a run until it ends; fails when the run does
    Follow {
        /// Its id.
        id: String,
    },
    /// Cancel a run
    Cancel {
        /// Its id.
        id: String,
    },
    /// Go on with a failed or cancelled run from the step that failed, and watch it
    Retry {
        /// Its id.
        id: String,
        /// Do not watch it.
        #[arg(long)]
        no_follow: bool,
    },
}

/// A run with everything that happened in it: what `run show` gives to programs.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    run: RunView,
    timeline: Vec<EventView>,
}

/// Carries out `anneal run …`.
///
/// # Errors
/// When the daemon refuses, or a run that is watched ends without success.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::List { machine, limit } => {
            let query: Vec<_> = machine
                .iter()
                .map(|name| ("machine", name.as_str()))
                .collect();
            let runs: Vec<RunView> = client.list(&["runs"], &query, limit).await?;
            output::show(format, &runs, |runs| list(runs))
        }
        Command::Show { id } => {
            let run: RunView = client.get(&["runs", &id], &[]).await?;
            let query = [("run", id.as_str())];
            let timeline = client.list(&["event-log"], &query, usize::MAX).await?;
            output::show(format, &Shown { run, timeline }, show)
        }
        Command::Follow { id } => {
            let run: RunView = client.get(&["runs", &id], &[]).await?;
            provision::follow_all(&client, vec![run], 0, format).await
        }
        Command::Cancel { id } => {
            let run = change(&client, &id, "cancel").await?;
            output::show(format, &run, summary)
        }
        Command::Retry { id, no_follow } => {
            // What happened before is not told again.
            let query = [("run", id.as_str())];
            let past: Vec<EventView> = client.list(&["event-log"], &query, usize::MAX).await?;
            let after = past.last().map_or(0, |event| event.id);
            let run = change(&client, &id, "retry").await?;
            if no_follow {
                return output::show(format, &run, summary);
            }
            provision::follow_all(&client, vec![run], after, format).await
        }
    }
}

async fn change(client: &Client, id: &str, what: &str) -> anyhow::Result<RunView> {
    let nothing = serde_json::json!({});
    client::parse(client.post(&["runs", id, what], &nothing).await?).await
}

/// Runs, a line each.
pub(super) fn list(runs: &[RunView]) -> String {
    let mut table = Table::new([
        "RUN", "MACHINE", "WORKFLOW", "STATE", "STARTED", "TOOK", "WHY",
    ]);
    for run in runs {
        table.row([
            run.id.as_str(),
            &run.machine,
            &run.workflow,
            &run.state,
            &run.created_at,
            &took(&run.created_at, run.finished_at.as_deref()),
            &run.why,
        ]);
    }
    table.to_string()
}

fn took(from: &str, to: Option<&str>) -> String {
    to.and_then(|to| time::between(from, to)).map_or_else(
        || "-".to_owned(),
        |ms| time::short(ms.max(0).unsigned_abs()),
    )
}

/// A run in a few lines: how it is, its steps, its phases.
pub(super) fn summary(run: &RunView) -> String {
    let took = took(&run.created_at, run.finished_at.as_deref());
    let mut text = format!(
        "run {} of machine {}: {} ({})\n{}\n\n{}",
        run.id,
        run.machine,
        run.state,
        if follow::ended(run) {
            format!("took {took}")
        } else {
            format!("until {}", run.deadline)
        },
        printable(&run.why),
        steps(run)
    );
    if !run.phases.is_empty() {
        let all: u64 = run.phases.iter().map(|phase| phase.duration_ms).sum();
        let mut table = Table::new(["PHASE", "TIME", ""]);
        for phase in &run.phases {
            let share = phase.duration_ms.saturating_mul(100) / all.max(1);
            let share = format!("{share:>3}%");
            table.row([phase.name.as_str(), &time::short(phase.duration_ms), &share]);
        }
        text.push_str(&format!("\n{table}"));
    }
    text
}

fn steps(run: &RunView) -> String {
    let mut table = Table::new([
        "#", "STEP", "USES", "STATE", "TRIES", "STARTED", "TOOK", "WHY",
    ]);
    for step in &run.steps {
        let number = (step.index + 1).to_string();
        let started = step.started_at.as_deref();
        let begun = started.map_or_else(String::new, |at| time::relative(&run.created_at, at));
        let took = started.map_or_else(String::new, |at| took(at, step.finished_at.as_deref()));
        let name = match step.phase.as_str() {
            "main" => step.name.clone(),
            phase => format!("{} ({phase})", step.name),
        };
        table.row([
            number.as_str(),
            &name,
            &step.uses,
            &step.state,
            &step.attempts.to_string(),
            &begun,
            &took,
            &why(step),
        ]);
    }
    table.to_string()
}

fn why(step: &StepView) -> String {
    let progress = step
        .progress
        .as_ref()
        .filter(|_| step.finished_at.is_none())
        .map(|progress| {
            let percent = progress.done.saturating_mul(100) / progress.total.max(1);
            let text = format!("{percent}% of {}", time::bytes(progress.total));
            match progress.rate {
                0 => text,
                rate => format!("{text} at {}", time::rate(rate, 1000)),
            }
        });
    let written = step.output.as_ref().and_then(written);
    let parts = [progress, written, step.reason.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// How fast an image was written, if that is what the step did.
fn written(output: &serde_json::Value) -> Option<String> {
    let result: StreamResult = serde_json::from_value(output.clone()).ok()?;
    let mut text = format!(
        "{} to {} at {}, {} over the network",
        time::bytes(result.bytes),
        result.disk,
        time::rate(result.bytes, result.duration_ms),
        time::bytes(result.transferred)
    );
    if result.unchanged.bytes > 0 {
        text.push_str(&format!(
            ", {} were right already",
            time::bytes(result.unchanged.bytes)
        ));
    }
    for source in result.sources.iter().filter(|source| source.dropped) {
        let why = source.last_fault.as_deref().unwrap_or("no reason given");
        text.push_str(&format!("; dropped {}: {why}", source.url));
    }
    Some(text)
}

fn show(shown: &Shown) -> String {
    let mut text = summary(&shown.run);
    text.push_str(&format!("\nTIMELINE since {}\n", shown.run.created_at));
    for event in &shown.timeline {
        text.push_str(&follow::event_line(&shown.run.created_at, event));
        text.push('\n');
    }
    text
}
