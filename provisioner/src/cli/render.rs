//! `anneal render`: everything that a machine would get.

use std::fmt::Write as _;
use std::time::Instant;

use anneal_protocol::api::{MachineView, RenderView};
use serde::Serialize;

use super::client::Client;
use super::output::{self, Format, Table, cell, printable};
use super::provision::parameters;

/// What to render.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Machine
    #[arg(required_unless_present = "all")]
    machine: Option<String>,
    /// Render every machine, and tell which cannot be; the texts are not printed
    #[arg(long, conflicts_with_all = ["machine", "step", "show_secrets"])]
    all: bool,
    /// Workflow [default: the machine's, else install-image]
    #[arg(long, value_name = "NAME")]
    workflow: Option<String>,
    /// Image, name@version [default: the machine's]
    #[arg(long, value_name = "NAME@VERSION")]
    image: Option<String>,
    /// Print this step only, counted from 1
    #[arg(long, value_name = "N")]
    step: Option<usize>,
    /// Print texts of the shape of secrets instead of `(redacted)`; for admins. Tokens are made when
    /// a run hands them out, so none is made for this: what is shown is worth nothing
    #[arg(long)]
    show_secrets: bool,
}

impl Args {
    fn query(&self) -> Vec<(&str, &str)> {
        let pairs = [
            ("workflow", self.workflow.as_deref()),
            ("image", self.image.as_deref()),
            ("show_secrets", self.show_secrets.then_some("true")),
        ];
        let given = |(key, value): (&'static str, Option<_>)| value.map(|value| (key, value));
        pairs.into_iter().filter_map(given).collect()
    }
}

/// Carries out `anneal render`.
///
/// # Errors
/// When the daemon refuses: a template failed, or the workflow makes no sense for the machine.
pub async fn render(client: Client, args: Args, format: Format) -> anyhow::Result<()> {
    let Some(machine) = &args.machine else {
        let all = all(&client, &args).await?;
        output::show(format, &all, table)?;
        return all.outcome();
    };
    let mut view: RenderView = client
        .get(&["machines", machine, "render"], &args.query())
        .await?;
    if let Some(step) = args.step {
        let there = view.steps.len();
        anyhow::ensure!(
            (1..=there).contains(&step),
            "there is no step {step}: workflow {} has steps 1 to {there}",
            view.workflow
        );
        for (index, other) in view.steps.iter_mut().enumerate() {
            other.runs &= index + 1 == step;
        }
        view.agent_arguments = None;
        view.documents.clear();
    }
    output::show(format, &view, show)
}

/// What came of rendering every machine.
#[derive(Debug, Serialize)]
struct All {
    machines: Vec<Rendered>,
    failed: Vec<Failed>,
    seconds: f64,
}

/// A machine that can be rendered.
#[derive(Debug, Serialize)]
struct Rendered {
    machine: String,
    workflow: String,
    image: Option<String>,
    texts: usize,
    bytes: usize,
    warnings: Vec<String>,
}

/// One that cannot.
#[derive(Debug, Serialize)]
struct Failed {
    machine: String,
    error: String,
}

/// Renders all machines, one after the other. A mistake in one says nothing of the others.
async fn all(client: &Client, args: &Args) -> anyhow::Result<All> {
    let machines: Vec<MachineView> = client.list(&["machines"], &[], usize::MAX).await?;
    let began = Instant::now();
    let mut all = All {
        machines: Vec::new(),
        failed: Vec::new(),
        seconds: 0.0,
    };
    for machine in machines {
        let path = ["machines", machine.name.as_str(), "render"];
        let view: anyhow::Result<RenderView> = client.get(&path, &args.query()).await;
        match view {
            Ok(view) => {
                let texts = crate::workflow::texts_of(&view);
                all.machines.push(Rendered {
                    machine: machine.name,
                    texts: texts.len(),
                    bytes: texts.iter().map(|text| text.text.len()).sum(),
                    workflow: view.workflow,
                    image: view.image,
                    warnings: view.warnings,
                });
            }
            Err(error) => all.failed.push(Failed {
                error: format!("{error:#}"),
                machine: machine.name,
            }),
        }
    }
    all.seconds = began.elapsed().as_secs_f64();
    Ok(all)
}

/// A line a machine, without texts; who failed is told at the end, as an error.
fn table(all: &All) -> String {
    let mut table = Table::new(["MACHINE", "WORKFLOW", "IMAGE", "TEXTS", "BYTES", "WARNINGS"]);
    for rendered in &all.machines {
        table.row([
            rendered.machine.as_str(),
            &rendered.workflow,
            cell(rendered.image.as_deref()),
            &rendered.texts.to_string(),
            &rendered.bytes.to_string(),
            &rendered.warnings.len().to_string(),
        ]);
    }
    let machines = all.machines.len() + all.failed.len();
    format!("{table}{machines} machines in {:.1} s\n", all.seconds)
}

impl All {
    fn outcome(&self) -> anyhow::Result<()> {
        let failed = self.failed.iter();
        let told: Vec<String> = failed
            .map(|failed| format!("{}: {}", failed.machine, failed.error))
            .collect();
        match told.len() {
            0 => Ok(()),
            number => anyhow::bail!("{number} cannot be rendered:\n{}", told.join("\n")),
        }
    }
}

/// Every text as the machine would get it.
fn show(view: &RenderView) -> String {
    let mut text = format!(
        "{}: workflow {}, image {}, family {}\n",
        view.machine,
        view.workflow,
        cell(view.image.as_deref()),
        cell(view.os.as_deref())
    );
    for warning in &view.warnings {
        // Writing into a text does not fail.
        let _ = writeln!(text, "warning: {}", printable(warning));
    }
    if let Some(arguments) = &view.agent_arguments {
        let _ = write!(
            text,
            "\nboot script: kernel arguments of the agent\n   {}\n",
            printable(arguments)
        );
    }
    for (index, step) in view.steps.iter().enumerate().filter(|(_, step)| step.runs) {
        let title = format!("{} ({})", step.name, step.uses);
        let shown = parameters(index + 1, &title, &step.with);
        match shown.is_empty() {
            true => _ = write!(text, "\n{}. {title}\n", index + 1),
            false => text += &shown,
        }
    }
    for document in &view.documents {
        let plain = if document.plain { ", in clear" } else { "" };
        let _ = write!(
            text,
            "\nconfig URL for {}{plain}: {}\n",
            printable(&document.subject),
            printable(&document.template)
        );
        for line in document.text.lines() {
            let _ = writeln!(text, "     | {}", printable(line));
        }
    }
    text
}
