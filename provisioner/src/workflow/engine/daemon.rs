//! Steps that the daemon carries out: netboot, power, boot-device, wait-phone-home.

use anneal_protocol::time::Millis;

use super::edit::{Edit, after};
use super::facts::{any_said_since, booted_since, firmware_since, said_since};
use super::{Act, Change, Command, Decision, Waiting};
use crate::event::kind;
use crate::workflow::action::Action;
use crate::workflow::caller::{Caller, SIGNS_OF_TALOS, Wait};
use crate::workflow::duration;
use crate::workflow::plan::Step;
use crate::workflow::run::{PowerMark, Snapshot, StepRow, StepState};
use crate::workflow::version::{INSTALLED, Other};

pub(super) fn decide(s: &Snapshot, idx: usize, step: &Step, now: Millis) -> Decision {
    let row = &s.steps[idx];
    // A fact that came while waiting for the next attempt is as good as one that came in time.
    if let Some(change) = arrived(s, idx, step, now) {
        return change.into();
    }
    if row.state == StepState::Pending {
        return begin(s, idx, StepState::Running, now);
    }
    let deadline = row.deadline.unwrap_or(now);
    if now >= deadline {
        let mut edit = Edit::of(s);
        edit.fail_attempt(s, idx, &too_late(step), true, now);
        return edit.into();
    }
    let has_bmc = s.plan.machine.bmc.is_some();
    match step.uses {
        Action::Netboot if has_bmc => power_then(
            s,
            idx,
            Act::Netboot,
            deadline,
            |row| waiting(row, "the agent to start and say hello", deadline),
            now,
        ),
        Action::Netboot => waiting(
            row,
            &format!(
                "somebody to power {} on by hand, booting from the network",
                s.run.machine
            ),
            deadline,
        ),
        Action::Power => power_then(
            s,
            idx,
            Act::Power,
            deadline,
            |row| waiting(row, "the BMC", deadline),
            now,
        ),
        Action::BootDevice => Decision::Act(command(row, Act::BootDevice, deadline)),
        _ => match Wait::of(step) {
            Some(wait) => call(s, idx, wait, deadline, now),
            None => waiting(row, "nothing", deadline),
        },
    }
}

/// Waits for the installed system, and looks at Talos' API port when nothing at all was heard of
/// it for half of the step's time.
fn call(s: &Snapshot, idx: usize, wait: Wait, deadline: Millis, now: Millis) -> Decision {
    let row = &s.steps[idx];
    let since = installed_at(s, idx);
    let told = |kind| said_since(s, kind, since);
    if wait.api_port && !any_said_since(s, SIGNS_OF_TALOS, since) {
        let begun = row.attempt_at.unwrap_or(now);
        let half = begun.plus(deadline.since(begun) / 2);
        if now >= half {
            return Decision::Act(command(row, Act::LookApi, deadline));
        }
        return Decision::Wait(Waiting {
            what: wait.by.awaited().to_owned(),
            since: begun,
            until: Some(deadline),
            look_at: Some(half),
        });
    }
    let status = told(kind::TALOS_STATUS).filter(|_| wait.by == Caller::Talos);
    let said = status.and_then(|seen| seen.data["said"].as_str());
    match said {
        Some(said) => waiting(
            row,
            &format!("{} (it says: {said})", wait.by.awaited()),
            deadline,
        ),
        None => waiting(row, wait.by.awaited(), deadline),
    }
}

/// Begins the next attempt, or waits until it may.
pub(super) fn begin(s: &Snapshot, idx: usize, state: StepState, now: Millis) -> Decision {
    let row = &s.steps[idx];
    if let Some(until) = row.not_before.filter(|at| now < *at) {
        return Decision::Wait(Waiting {
            what: format!("the next attempt at step `{}` ({})", row.name, row.reason),
            since: row.attempt_at.unwrap_or(s.run.created_at),
            until: Some(until),
            look_at: Some(until),
        });
    }
    let mut edit = Edit::of(s);
    edit.begin(s, idx, state, now);
    edit.into()
}

/// Asks the BMC, with a mark before and after. A mark "asked" without "done" is what a killed
/// daemon leaves: if the firmware was seen starting since, the BMC did it; else ask again.
pub(super) fn power_then(
    s: &Snapshot,
    idx: usize,
    act: Act,
    deadline: Millis,
    done: impl FnOnce(&StepRow) -> Decision,
    now: Millis,
) -> Decision {
    let row = &s.steps[idx];
    let mark = |power| {
        let mut edit = Edit::of(s);
        edit.steps[idx].scratch.power = Some(power);
        Decision::from(edit)
    };
    match row.scratch.power {
        None => mark(PowerMark::Asked(now)),
        Some(PowerMark::Asked(at)) if act == Act::Netboot && firmware_since(s, at) => {
            mark(PowerMark::Done(at))
        }
        Some(PowerMark::Asked(_)) => Decision::Act(command(row, act, deadline)),
        Some(PowerMark::Done(_)) => done(row),
    }
}

pub(super) fn command(row: &StepRow, act: Act, deadline: Millis) -> Command {
    Command {
        idx: row.idx,
        attempt: row.attempt,
        act,
        deadline,
    }
}

/// The end of a step that was reached by a fact.
fn arrived(s: &Snapshot, idx: usize, step: &Step, now: Millis) -> Option<Change> {
    let row = &s.steps[idx];
    let begun = row.attempt > row.scratch.base;
    let output = match step.uses {
        Action::Netboot if begun => {
            let boot = booted_since(s, row.attempt_at?)?;
            serde_json::json!({ "boot_id": boot.id })
        }
        Action::WaitPhoneHome => {
            let kind = Wait::of(step)?.by.says();
            said_since(s, kind, installed_at(s, idx))?.data.clone()
        }
        _ => return None,
    };
    let mut edit = Edit::of(s);
    if !begun {
        edit.begin(s, idx, StepState::Waiting, now);
    }
    match other_version(s, idx, step, &output) {
        Some(other) => {
            let mut output = output;
            output[INSTALLED] = other.installed.clone().into();
            edit.steps[idx].output = Some(output);
            edit.fail_step(s, idx, &other.sentence(), now);
        }
        None => edit.succeed(idx, Some(output), now),
    }
    Some(edit.into_change())
}

/// The node called home from another version than this run wrote to its disk.
fn other_version(s: &Snapshot, idx: usize, step: &Step, said: &serde_json::Value) -> Option<Other> {
    let wrote = |row: &StepRow| {
        row.state == StepState::Succeeded && s.action(row.idx) == Some(Action::StreamImage)
    };
    (step.uses == Action::WaitPhoneHome && s.steps[..idx].iter().any(wrote))
        .then(|| Other::of(said, s.plan.image.as_ref()?))
        .flatten()
}

/// Since when a call home counts: since the machine left for its disk in this run.
fn installed_at(s: &Snapshot, idx: usize) -> Millis {
    s.steps[..idx]
        .iter()
        .rev()
        .filter(|row| {
            s.action(row.idx)
                .is_some_and(|a| a.leaves_for_disk() || a == Action::Power)
        })
        .find_map(|row| row.scratch.left_at.or(row.attempt_at))
        .unwrap_or(s.run.created_at)
}

/// The BMC did what a command asked for.
pub(super) fn done(s: &Snapshot, command: Command, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    let idx = command.idx;
    match command.act {
        Act::Netboot => {
            let asked = match edit.steps[idx].scratch.power {
                // The agent's hello must be later than the request, not than its answer.
                Some(PowerMark::Asked(at) | PowerMark::Done(at)) => at,
                None => now,
            };
            edit.steps[idx].scratch.power = Some(PowerMark::Done(asked));
            if edit.steps[idx].state == StepState::Running && !edit.steps[idx].scratch.recovering {
                edit.steps[idx].state = StepState::Waiting;
            }
        }
        Act::Power | Act::BootDevice | Act::LookOff | Act::LookApi => edit.succeed(idx, None, now),
    }
    edit.into_change()
}

fn too_late(step: &Step) -> String {
    let allowed = duration::show(std::time::Duration::from_millis(step.timeout_ms));
    match step.uses {
        Action::Netboot => format!("the agent did not start within {allowed}"),
        Action::WaitPhoneHome => {
            let by = Wait::of(step).map_or(Caller::Token, |wait| wait.by);
            format!("{} within {allowed}", by.missed())
        }
        _ => format!("it did not end within {allowed}"),
    }
}

pub(super) fn waiting(row: &StepRow, what: &str, until: Millis) -> Decision {
    Decision::Wait(Waiting {
        what: what.to_owned(),
        since: row.attempt_at.unwrap_or(until),
        until: Some(until),
        look_at: Some(until),
    })
}

/// How long a booting machine is given before a recovery counts as failed.
pub(super) fn recovery_deadline(asked: Millis) -> Millis {
    const MS: u64 = 10 * 60_000;
    after(asked, MS)
}
