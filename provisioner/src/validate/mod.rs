//! Would the readers of a machine's texts take them? Every check there is, and which could not
//! run and why.
//!
//! Owns: telling what kind a text is (`kind`), the checks that need no program (`builtin`), and
//! the systems' own validators as programs on this host (`program`).
//!
//! Invariants: no secret is in what is checked, only texts of the same shape, so the files that
//! programs read hold none. A check that did not run is never counted as passed.
//!
//! Not here: what the texts are (`workflow`), and rules of anneal's own (`workflow::texts`).

mod builtin;
mod kind;
mod program;

use std::path::Path;

use anneal_protocol::api::{CheckOutcome, CheckView, RenderView, ValidateView};

use crate::workflow::{StartError, texts_of};
use kind::Kind;

/// Checks everything that a machine would get; `schemas` is where JSON Schemas may lie.
///
/// # Errors
/// When machine, image or workflow do not exist or the daemon failed: then there is nothing to check.
pub async fn machine(
    name: &str,
    rendered: Result<RenderView, StartError>,
    schemas: &Path,
) -> Result<ValidateView, StartError> {
    let checks = match rendered {
        Ok(view) => {
            let mut checks = ours(&view);
            for text in texts_of(&view) {
                checks.extend(reader(&text.place, &text.path, &text.text, &view, schemas).await);
            }
            checks
        }
        Err(StartError::Refused(reasons)) => reasons
            .into_iter()
            .map(|reason| check("templates and workflow", name, CheckOutcome::Failed, reason))
            .collect(),
        Err(StartError::Workflow(error)) => {
            vec![check(
                "workflow",
                name,
                CheckOutcome::Failed,
                error.to_string(),
            )]
        }
        Err(other) => return Err(other),
    };
    Ok(ValidateView {
        machine: name.to_owned(),
        valid: checks
            .iter()
            .all(|check| check.outcome != CheckOutcome::Failed),
        checks,
    })
}

fn check(
    check: impl Into<String>,
    subject: impl Into<String>,
    outcome: CheckOutcome,
    detail: impl Into<String>,
) -> CheckView {
    CheckView {
        check: check.into(),
        subject: subject.into(),
        outcome,
        detail: detail.into(),
    }
}

/// What the preparation of a run has checked already.
fn ours(view: &RenderView) -> Vec<CheckView> {
    let workflow = format!("workflow {}", view.workflow);
    let mut checks = vec![check(
        "templates and workflow",
        workflow,
        CheckOutcome::Passed,
        view.warnings.join("; "),
    )];
    if view.os.is_none() {
        let why = "the run has no image, so its family is not known";
        checks.push(check(
            "family",
            view.machine.clone(),
            CheckOutcome::NotRun,
            why,
        ));
    }
    checks
}

/// Checks one text by the rules of its reader.
async fn reader(
    place: &str,
    path: &str,
    text: &str,
    view: &RenderView,
    schemas: &Path,
) -> Vec<CheckView> {
    let kind = kind::of(path, text, view.os.as_deref().unwrap_or_default());
    let builtin = |name: &str, checked: Result<(), String>| match checked {
        Ok(()) => check(name, place, CheckOutcome::Passed, ""),
        Err(told) => check(name, place, CheckOutcome::Failed, told),
    };
    let program = async |validator| program::run(validator, place, text).await;
    match kind {
        Kind::Ignition => vec![program(program::IGNITION).await],
        Kind::CloudConfig => {
            let syntax = builtin("YAML", builtin::yaml(text));
            vec![syntax, program(program::CLOUD_INIT).await]
        }
        Kind::Network => vec![builtin("network configuration", builtin::network(text))],
        Kind::Talos => {
            let schema = program::talos_schema(schemas, view.image.as_deref());
            vec![
                builtin("YAML", builtin::yaml(text)),
                program(program::TALOSCTL).await,
                program::talos(schema, place, text).await,
            ]
        }
        Kind::Yaml => vec![builtin("YAML", builtin::yaml(text))],
        Kind::Json => vec![builtin("JSON", builtin::json(text))],
        Kind::Toml => {
            let why = "no reader of TOML here: `apiclient` on the system itself checks it";
            vec![check("TOML", place, CheckOutcome::NotRun, why)]
        }
        Kind::Other => {
            let why = "nothing here knows this kind of text";
            vec![check("text", place, CheckOutcome::NotRun, why)]
        }
    }
}

#[cfg(test)]
mod tests;
