//! Events for the timeline, from the difference between two states of a run. Pure.

use super::engine::Change;
use super::run::{Snapshot, StepRow, StepState};
use super::version::INSTALLED;
use crate::attestation::Attestation;
use crate::event::{Event, kind};

/// What a change means for people, in order.
#[must_use]
pub fn events(s: &Snapshot, change: &Change) -> Vec<Event> {
    let about = |event: Event| event.machine(&s.run.machine).run(&s.run.id);
    let mut events = Vec::new();
    for (before, after) in s.steps.iter().zip(&change.steps) {
        let same = before.state == after.state
            && before.attempt == after.attempt
            && before.boot_id == after.boot_id;
        if !same {
            events.push(about(step_event(before, after)));
            events.extend(other_version(after).map(about));
        }
    }
    if s.run.state != change.run.state {
        let state = change.run.state.as_str();
        let message = match change.run.reason.as_str() {
            "" => format!("run {state}"),
            reason => format!("run {state}: {reason}"),
        };
        events.push(about(
            Event::new(format!("{}{state}", kind::RUN_PREFIX), message).data(serde_json::json!({
                "workflow": change.run.workflow,
                "reason": change.run.reason,
            })),
        ));
    }
    events
}

/// That a statement was signed.
#[must_use]
pub fn attested(attestation: &Attestation) -> Event {
    let message = format!("{} attested: {}", attestation.kind, attestation.summary);
    Event::new("attestation.signed", message)
        .machine(&attestation.machine)
        .run(&attestation.run)
        .data(serde_json::json!({ "id": attestation.id, "kind": attestation.kind }))
}

/// That the node called home from another version than was installed.
fn other_version(after: &StepRow) -> Option<Event> {
    let said = after.output.as_ref()?;
    let installed = said[INSTALLED].as_str()?;
    let data = serde_json::json!({
        "installed_version": installed,
        "version": said["version"],
        "image_version": said["image_version"],
    });
    let event = Event::new(kind::OTHER_VERSION, after.reason.clone());
    (after.state == StepState::Failed).then(|| event.data(data))
}

fn step_event(before: &StepRow, after: &StepRow) -> Event {
    let name = format!("step {} `{}`", after.idx + 1, after.name);
    let failed_attempt = after.state == StepState::Pending && after.attempt > after.scratch.base;
    let word = match after.state {
        _ if failed_attempt => "retry",
        StepState::Running if before.boot_id.is_none() && after.boot_id.is_some() => "dispatched",
        state => state.as_str(),
    };
    let message = match after.reason.as_str() {
        "" => format!("{name}: {word}, attempt {}", after.attempt),
        reason => format!("{name}: {word}, attempt {}: {reason}", after.attempt),
    };
    Event::new(format!("{}{word}", kind::STEP_PREFIX), message).data(serde_json::json!({
        "index": after.idx,
        "name": after.name,
        "uses": after.uses,
        "attempt": after.attempt,
        "state": after.state.as_str(),
        "reason": after.reason,
        "output": after.output,
    }))
}
