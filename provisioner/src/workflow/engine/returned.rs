//! An agent that was taken for lost and speaks again.
//!
//! The same boot goes on with the same attempt when nothing else has happened in between: no
//! reboot was ordered, the firmware was not seen, no other boot said hello, no attempt was made
//! since. Otherwise the attempt is over, as for any other that is late.

use anneal_protocol::time::Millis;

use super::Change;
use super::edit::Edit;
use super::facts::firmware_since;
use crate::workflow::run::{Lost, PowerMark, Snapshot, StepRow, StepState};

/// What is remembered of an attempt whose agent fell silent, or did not leave as it said: whoever did not hear our
/// answer to that stays.
pub(super) fn remember(s: &Snapshot, row: &StepRow, now: Millis) -> Option<Lost> {
    if !matches!(row.state, StepState::Running | StepState::Leaving) {
        return None;
    }
    Some(Lost {
        boot_id: s.boot()?.id.clone(),
        held: row.boot_id.is_some(),
        attempt: row.attempt,
        deadline: row.deadline?,
        at: now,
    })
}

/// Takes a boot of the agent back that was taken for lost. `asks`: it asks for work, so it does
/// nothing now; otherwise it tells of the attempt that it had. `None`: nothing changes.
#[must_use]
pub fn returned(s: &Snapshot, boot_id: &str, asks: bool, now: Millis) -> Option<Change> {
    let idx = s.current().filter(|_| !s.run.cancel)?;
    let row = &s.steps[idx];
    let lost = row.scratch.lost.as_ref()?;
    let waits = row.state == StepState::Pending && row.scratch.recovering;
    let same = lost.boot_id == boot_id && s.boot().is_some_and(|boot| boot.id == boot_id);
    // Without a BMC the mark says that a person was asked, not that anything happened.
    let rebooted = match row.scratch.power {
        None => false,
        Some(PowerMark::Asked(_)) => true,
        Some(PowerMark::Done(_)) => s.plan.machine.bmc.is_some(),
    };
    if !waits || !same || rebooted || firmware_since(s, lost.at) {
        return None;
    }
    let resumes = row.attempt == lost.attempt && now < lost.deadline && (lost.held || asks);
    if !resumes && !asks {
        return None;
    }
    let mut edit = Edit::of(s);
    let row = &mut edit.steps[idx];
    row.scratch.recovering = false;
    row.scratch.power = None;
    row.not_before = None;
    if let Some(lost) = row.scratch.lost.take().filter(|_| resumes) {
        row.state = StepState::Running;
        row.boot_id = lost.held.then_some(lost.boot_id);
        row.deadline = Some(lost.deadline);
        row.reason.clear();
    }
    Some(edit.into_change())
}
