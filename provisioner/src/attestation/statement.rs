//! What is attested: in-toto statements (attestation framework 1.0) about a machine. Pure.
//!
//! | kind | when | predicate type |
//! |---|---|---|
//! | `provision` | a run that wrote an image succeeded | [`PROVISION`] |
//! | `audit` | a run that audited a disk succeeded | [`AUDIT`] |
//!
//! The subject is the image, by the SHA-256 of its raw disk; the predicate says on which machine,
//! by which run, and what was found.

use anneal_protocol::agent::StreamResult;
use anneal_protocol::audit::AuditResult;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::workflow::{Action, Change, Snapshot, StepRow, StepState, node_report};

/// Type of every statement.
pub const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// Predicate of `provision`.
pub const PROVISION: &str = "urn:anneal:attestation:provision:v1";
/// Predicate of `audit`.
pub const AUDIT: &str = "urn:anneal:attestation:audit:v1";

/// A statement before it is signed.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// `provision` or `audit`.
    pub kind: &'static str,
    /// One sentence for lists.
    pub summary: String,
    /// The statement.
    pub statement: Value,
}

/// What is to be attested when a run changes so: nothing, unless it just succeeded.
#[must_use]
pub fn drafts(s: &Snapshot, change: &Change) -> Vec<Draft> {
    use crate::workflow::RunState;
    if !s.run.state.is_active() || change.run.state != RunState::Succeeded {
        return Vec::new();
    }
    let done = |action: Action| {
        change.steps.iter().filter(move |row| {
            row.state == StepState::Succeeded && s.action(row.idx) == Some(action)
        })
    };
    let mut drafts: Vec<Draft> = done(Action::AuditDisk)
        .filter_map(|row| audit(s, change, row))
        .collect();
    // The last one is what the disk holds.
    if let Some(row) = done(Action::StreamImage).next_back() {
        drafts.extend(provision(s, change, row));
    }
    drafts
}

fn audit(s: &Snapshot, change: &Change, row: &StepRow) -> Option<Draft> {
    let output = row.output.clone()?;
    let result: AuditResult = serde_json::from_value(output.clone()).ok()?;
    let drifted = result.regions.iter().filter(|region| region.drifted);
    let names: Vec<_> = drifted.map(|region| region.name.as_str()).collect();
    let summary = if result.drifted {
        format!("drifted: {}", names.join(", "))
    } else {
        "as sealed".to_owned()
    };
    Some(Draft {
        kind: "audit",
        summary,
        statement: statement(
            s,
            AUDIT,
            json!({
                "machine": machine(s),
                "run": run(s, change),
                "image": image(s),
                "verdict": if result.drifted { "drifted" } else { "as-sealed" },
                "audit": output,
            }),
        ),
    })
}

fn provision(s: &Snapshot, change: &Change, row: &StepRow) -> Option<Draft> {
    let output = row.output.clone()?;
    let result: StreamResult = serde_json::from_value(output.clone()).ok()?;
    let name = s.plan.image.as_ref()?;
    Some(Draft {
        kind: "provision",
        summary: format!("{}@{} on {}", name.name, name.version, result.disk),
        statement: statement(
            s,
            PROVISION,
            json!({
                "machine": machine(s),
                "run": run(s, change),
                "image": image(s),
                "written": output,
                "steps": steps(change),
                "node": node_report(s, change),
            }),
        ),
    })
}

fn statement(s: &Snapshot, predicate_type: &str, predicate: Value) -> Value {
    let subject = s.plan.image.as_ref().map(|image| {
        json!({
            "name": format!("{}@{}", image.name, image.version),
            "digest": { "sha256": image.sha256 },
        })
    });
    json!({
        "_type": STATEMENT,
        "subject": subject.into_iter().collect::<Vec<_>>(),
        "predicateType": predicate_type,
        "predicate": predicate,
    })
}

fn machine(s: &Snapshot) -> Value {
    let machine = &s.plan.machine;
    let macs: Vec<_> = machine.nics.iter().map(|nic| nic.mac.to_string()).collect();
    json!({ "name": machine.name, "macs": macs })
}

fn run(s: &Snapshot, change: &Change) -> Value {
    json!({
        "id": s.run.id,
        "workflow": s.run.workflow,
        "requested_by": s.run.requested_by,
        "started_at": rfc3339(s.run.created_at),
        "finished_at": change.run.finished_at.map(rfc3339),
    })
}

fn image(s: &Snapshot) -> Value {
    s.plan.image.as_ref().map_or(Value::Null, |image| {
        json!({
            "name": format!("{}@{}", image.name, image.version),
            "id": image.id,
            "os": image.os,
            "size": image.size,
        })
    })
}

/// How the machine got there, step by step. Results of other steps hold no secrets: files are
/// told by their digest.
fn steps(change: &Change) -> Vec<Value> {
    change
        .steps
        .iter()
        .filter(|row| row.state != StepState::Skipped)
        .map(|row| {
            json!({
                "name": row.name,
                "uses": row.uses,
                "state": row.state.as_str(),
                "attempts": row.attempt,
                "started_at": row.started_at.map(rfc3339),
                "finished_at": row.finished_at.map(rfc3339),
                "output": row.output,
            })
        })
        .collect()
}
