//! From a request to a plan: everything that can be refused is refused here, before a server
//! loses power.

use anneal_protocol::agent::Inventory;
use anneal_protocol::api::{Plan, PlannedStep, RenderedDocument};
use anneal_protocol::machine::MachineState;

use super::action::{Action, RunsOn};
use super::check::{self, Findings, Subject};
use super::inputs;
use super::library::LibraryError;
use super::plan::Workflow;
use super::run::RunPlan;
use super::texts::{documents, lint, texts};
use crate::machine::Machine;
use crate::render::{Context, ImageFacts, Renderer};
use crate::store::StoreError;

/// Who wants what done to which machine.
#[derive(Debug, Clone)]
pub struct StartRun {
    /// Machine.
    pub machine: String,
    /// Workflow; default: the machine's, else `install-image`.
    pub workflow: Option<String>,
    /// Image `name@version`; default: the machine's.
    pub image: Option<String>,
    /// Who asks, for the record.
    pub requested_by: String,
}

/// Why a run is not made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such machine.
    #[error("there is no machine {0}: register it with `anneal apply`")]
    MachineNotFound(String),
    /// No such workflow, or a wrong one.
    #[error(transparent)]
    Workflow(#[from] LibraryError),
    /// No such image in the store.
    #[error("there is no image {0}: add it with `anneal image add`")]
    ImageMissing(String),
    /// The workflow makes no sense for the machine; each entry names file and line.
    #[error("the run was refused: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// The machine has an active run.
    #[error("{0}")]
    Conflict(String),
    /// The machine's description was changed, or the machine removed, while the run was planned.
    #[error("{0}")]
    Stale(String),
    /// The daemon failed.
    #[error("the daemon could not prepare the run")]
    Internal(#[source] anyhow::Error),
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(text) => Self::Conflict(text),
            StoreError::Stale(text) => Self::Stale(text),
            other => Self::Internal(other.into()),
        }
    }
}

/// A request that passed all checks.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What the run will be made of.
    pub plan: RunPlan,
    /// The same for people.
    pub shown: Plan,
    /// The documents behind config URLs.
    pub documents: Vec<RenderedDocument>,
}

/// What a plan is made from. Pure input of [`prepare`].
#[derive(Debug, Clone)]
pub struct Material<'a> {
    /// The machine.
    pub machine: Machine,
    /// Its state now.
    pub state: MachineState,
    /// Its hardware as last reported.
    pub inventory: Option<Inventory>,
    /// The image.
    pub image: Option<ImageFacts>,
    /// The workflow.
    pub workflow: Workflow,
    /// Templates.
    pub renderer: &'a Renderer,
    /// Variables, secrets redacted.
    pub context: Context,
}

/// Renders and checks everything; nothing is stored or touched.
///
/// # Errors
/// [`StartError::Refused`] with every reason found.
pub fn prepare(material: Material<'_>) -> Result<Prepared, StartError> {
    let Material {
        machine,
        state,
        inventory,
        image,
        workflow,
        renderer,
        context,
    } = material;
    let mut errors = Vec::new();
    let mut skip = Vec::new();
    let mut steps = Vec::new();
    for step in workflow.all_steps() {
        let runs = match &step.when {
            None => true,
            Some(when) => renderer
                .condition(when, &step.place, &context)
                .unwrap_or_else(|e| {
                    errors.push(format!("{}: condition: {}", step.place, e.message));
                    true
                }),
        };
        skip.push(!runs);
        let spec = step.uses.spec();
        let rendered = if runs {
            inputs::render(step, renderer, &context).and_then(|params| {
                inputs::typed(step, &params, &machine, image.as_ref()).map(|_| params)
            })
        } else {
            Ok(step.with.clone())
        };
        let with = rendered.unwrap_or_else(|e| {
            let text = e.to_string();
            errors.push(if text.starts_with(&step.place) {
                text
            } else {
                format!("{}: {text}", step.place)
            });
            step.with.clone()
        });
        steps.push(PlannedStep {
            name: step.name.clone(),
            uses: spec.name.to_owned(),
            runs_on: match spec.runs_on {
                RunsOn::Daemon => "daemon".to_owned(),
                RunsOn::Agent => "agent".to_owned(),
            },
            with: serde_json::Value::Object(with),
            runs,
            destructive: spec.destructive,
        });
    }
    // What is behind a URL was looked at where it was asked for: a mistake there is told once.
    let documents = match errors.is_empty() {
        false => Vec::new(),
        true => documents(renderer, &context).unwrap_or_else(|failed| {
            errors.extend(failed.iter().map(ToString::to_string));
            Vec::new()
        }),
    };
    let Findings {
        errors: found,
        mut warnings,
    } = check::check(
        &workflow,
        &Subject {
            machine: &machine,
            image: image.as_ref(),
            inventory: inventory.as_ref(),
            skip: &skip,
            token_used: context.token_promised(),
            event_sink: context.has_event_sink(),
        },
    );
    errors.extend(found);
    let installs = steps
        .iter()
        .any(|step| step.runs && step.uses == Action::StreamImage.spec().name);
    let (found, more) = lint(&machine, &texts(&steps, &documents), installs);
    errors.extend(found);
    warnings.extend(more);
    errors.dedup();
    if !errors.is_empty() && image.is_none() && needs_image(&workflow) {
        // The reason of most of the others, which only name the variable.
        errors.insert(0, no_image(&machine, &workflow));
    }
    if !errors.is_empty() {
        return Err(StartError::Refused(errors));
    }
    let shown = Plan {
        machine: machine.name.clone(),
        workflow: workflow.name.clone(),
        image: image.as_ref().map(|image| image.id.clone()),
        disk: disk_sentence(&machine, inventory.as_ref(), &workflow),
        steps,
        warnings,
    };
    let plan = RunPlan {
        workflow,
        machine,
        image,
        skip,
        state_before: state,
    };
    Ok(Prepared {
        plan,
        shown,
        documents,
    })
}

fn no_image(machine: &Machine, workflow: &Workflow) -> String {
    format!(
        "{} has no image, and workflow {} needs one: set `image: NAME@VERSION` in its inventory, or say --image",
        machine.name, workflow.name
    )
}

/// Whether a workflow needs an image.
#[must_use]
pub fn needs_image(workflow: &Workflow) -> bool {
    let needs = |action| matches!(action, Action::StreamImage | Action::AuditDisk);
    workflow.all_steps().any(|s| needs(s.uses))
}

/// Whether a workflow's image is one that is there already, not one to install.
#[must_use]
pub fn only_audits(workflow: &Workflow) -> bool {
    let uses = |action| workflow.all_steps().any(|s| s.uses == action);
    uses(Action::AuditDisk) && !uses(Action::StreamImage)
}

fn disk_sentence(machine: &Machine, inventory: Option<&Inventory>, workflow: &Workflow) -> String {
    if !workflow.all_steps().any(|s| s.uses.spec().destructive) {
        return "none: no step writes to a disk".to_owned();
    }
    let hints = serde_json::to_value(&machine.disk)
        .ok()
        .and_then(|hints| hints.as_object().cloned())
        .unwrap_or_default()
        .iter()
        .map(|(key, value)| format!("{key}: {}", value.to_string().trim_matches('"')))
        .collect::<Vec<_>>()
        .join(", ");
    let known = match inventory.map(|report| check::candidates(machine, report)) {
        None => "not seen yet".to_owned(),
        Some(disks) => match disks.as_slice() {
            [] => "no disk of the last hardware report".to_owned(),
            disks => disks
                .iter()
                .map(|disk| {
                    let serial = disk.serial.as_deref().unwrap_or("no serial");
                    let model = disk.model.as_deref().unwrap_or("no model");
                    format!("{} ({model}, {serial}, {} bytes)", disk.name, disk.size)
                })
                .collect::<Vec<_>>()
                .join(" or "),
        },
    };
    let protected = match machine.protected_disks.len() {
        0 => String::new(),
        n => format!("; {n} protected"),
    };
    format!("{hints}: {known}{protected}")
}
