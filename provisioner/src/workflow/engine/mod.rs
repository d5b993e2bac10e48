//! Decisions about runs. Pure: a snapshot and the time in, a decision out.
//!
//! [`decide`] looks at everything anew each time. What has to be remembered between looks is in
//! the rows of the snapshot, so the same decision is made by a daemon that was just started.

mod agent;
mod daemon;
mod edit;
mod facts;
mod returned;

use anneal_protocol::time::Millis;

use super::action::RunsOn;
use super::run::{PowerMark, RunRow, RunState, Snapshot, StepRow, StepState};

pub use agent::{ResultVerdict, apply_result, counted, dispatch, leaves, order_ready, wanted};
pub use edit::{cancel, fail_now, later, machine_change, node_report, reopen, unusable};
pub use facts::{listens_to, wants_agent};
pub use returned::returned;

use edit::Edit;

/// What follows from a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Store these rows and look again.
    Change(Box<Change>),
    /// Do this, store how it ended, and look again.
    Act(Command),
    /// Nothing to do until something happens, or until a moment.
    Wait(Waiting),
    /// The run is over.
    Over,
}

/// Rows as they are from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The run.
    pub run: RunRow,
    /// All its steps.
    pub steps: Vec<StepRow>,
}

/// Something to do outside of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Step it is for.
    pub idx: usize,
    /// Attempt it is for.
    pub attempt: u32,
    /// What.
    pub act: Act,
    /// When it must have ended.
    pub deadline: Millis,
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Boot the agent: one-time network boot, power cycle.
    Netboot,
    /// What the step's `power` parameters say.
    Power,
    /// What the step's `boot-device` parameters say.
    BootDevice,
    /// Look whether the machine is off.
    LookOff,
    /// Look whether Talos answers on its API port.
    LookApi,
}

/// What a run waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// For what: completes "waits for …".
    pub what: String,
    /// Since when.
    pub since: Millis,
    /// Until when, before it counts as failed or something else is tried.
    pub until: Option<Millis>,
    /// When to look again at the latest.
    pub look_at: Option<Millis>,
}

/// The next decision about a run.
#[must_use]
pub fn decide(s: &Snapshot, now: Millis) -> Decision {
    if !s.run.state.is_active() {
        return Decision::Over;
    }
    if s.run.cancel {
        return cancel(s, now).into();
    }
    if s.run.state == RunState::Pending {
        let mut edit = Edit::of(s);
        edit.run.state = RunState::Running;
        return edit.into();
    }
    let Some(idx) = s.current() else {
        return edit::finish(s, now).into();
    };
    if s.run.state == RunState::Running && now >= s.run.deadline {
        return edit::time_is_up(s, idx, now).into();
    }
    let Some(step) = s.plan.step(idx) else {
        return fail_now(s, "the stored plan has fewer steps than the run", now).into();
    };
    if s.plan.skip.get(idx).copied().unwrap_or(false) {
        return edit::skip(s, idx, "its condition is false", now).into();
    }
    match step.uses.spec().runs_on {
        RunsOn::Daemon => daemon::decide(s, idx, step, now),
        RunsOn::Agent => agent::decide(s, idx, step, now),
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Done.
    Yes,
    /// Looked, and it is not so yet.
    NotYet,
    /// It did not work.
    Failed {
        /// Why.
        reason: String,
        /// Whether trying again can help.
        retryable: bool,
    },
}

/// Applies the end of a command. `None` when the run has moved on meanwhile.
#[must_use]
pub fn settle(s: &Snapshot, command: Command, done: &Done, now: Millis) -> Option<Change> {
    let row = s.steps.get(command.idx)?;
    // An attempt that ended while the BMC was thinking is not revived by its answer.
    let open = match command.act {
        Act::Netboot | Act::Power => matches!(row.scratch.power, Some(PowerMark::Asked(_))),
        Act::BootDevice | Act::LookOff | Act::LookApi => row.state != StepState::Pending,
    };
    let same = open
        && s.run.state.is_active()
        && s.current() == Some(command.idx)
        && row.attempt == command.attempt
        && !s.run.cancel;
    if !same {
        return None;
    }
    match done {
        Done::NotYet => None,
        Done::Yes => Some(daemon::done(s, command, now)),
        Done::Failed { reason, retryable } => {
            let mut edit = Edit::of(s);
            if row.scratch.recovering {
                // The power action belongs to the attempt that comes next.
                edit.steps[command.idx].attempt += 1;
            }
            edit.fail_attempt(s, command.idx, reason, *retryable, now);
            Some(edit.into_change())
        }
    }
}

impl From<Change> for Decision {
    fn from(change: Change) -> Self {
        Self::Change(Box::new(change))
    }
}

impl From<Edit> for Decision {
    fn from(edit: Edit) -> Self {
        edit.into_change().into()
    }
}

#[cfg(test)]
mod tests;
