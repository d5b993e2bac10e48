//! Transitions: a working copy of a run's rows and the few ways in which they change.

use anneal_protocol::machine::MachineState;
use anneal_protocol::time::Millis;

use super::Change;
use super::facts::agent_is_there;
use crate::store::MachineChange;
use crate::workflow::action::Action;
use crate::workflow::duration;
use crate::workflow::run::{Phase, RunRow, RunState, Scratch, Snapshot, StepRow, StepState};

/// Longest pause between two attempts, milliseconds.
const MAX_BACKOFF_MS: u64 = 5 * 60_000;

/// A working copy.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) run: RunRow,
    pub(super) steps: Vec<StepRow>,
}

impl Edit {
    pub(super) fn of(s: &Snapshot) -> Self {
        Self {
            run: s.run.clone(),
            steps: s.steps.clone(),
        }
    }

    pub(super) fn into_change(self) -> Change {
        Change {
            run: self.run,
            steps: self.steps,
        }
    }

    /// A new attempt begins now.
    pub(super) fn begin(&mut self, s: &Snapshot, idx: usize, state: StepState, now: Millis) {
        let timeout = s.plan.step(idx).map_or(0, |step| step.timeout_ms);
        let row = &mut self.steps[idx];
        row.attempt += 1;
        row.state = state;
        row.boot_id = None;
        row.not_before = None;
        row.started_at.get_or_insert(now);
        row.attempt_at = Some(now);
        row.deadline = Some(after(now, timeout));
        row.reason.clear();
        row.scratch = Scratch {
            base: row.scratch.base,
            ..Scratch::default()
        };
    }

    pub(super) fn succeed(&mut self, idx: usize, output: Option<serde_json::Value>, now: Millis) {
        let row = &mut self.steps[idx];
        row.output = output;
        row.reason.clear();
        self.end(idx, StepState::Succeeded, now);
    }

    fn end(&mut self, idx: usize, state: StepState, now: Millis) {
        let row = &mut self.steps[idx];
        row.state = state;
        row.started_at.get_or_insert(now);
        row.finished_at = Some(now);
        row.deadline = None;
        row.not_before = None;
        row.scratch.recovering = false;
    }

    /// The current attempt did not work: another one later, or the step fails.
    pub(super) fn fail_attempt(
        &mut self,
        s: &Snapshot,
        idx: usize,
        reason: &str,
        retryable: bool,
        now: Millis,
    ) {
        let Some(step) = s.plan.step(idx) else {
            return;
        };
        let row = &mut self.steps[idx];
        let attempts = row.attempt.saturating_sub(row.scratch.base);
        if !retryable || attempts > step.retries {
            let tried = match attempts {
                0 | 1 => String::new(),
                n => format!(" (after {n} attempts)"),
            };
            self.fail_step(s, idx, &format!("{reason}{tried}"), now);
            return;
        }
        row.state = StepState::Pending;
        row.boot_id = None;
        row.deadline = None;
        row.reason = reason.to_owned();
        row.scratch.power = None;
        row.scratch.left_at = None;
        let doubled = step
            .retry_delay_ms
            .saturating_mul(1 << attempts.saturating_sub(1).min(16));
        row.not_before = Some(after(now, doubled.min(MAX_BACKOFF_MS)));
    }

    /// The step fails, and with it the run, unless it may go on.
    pub(super) fn fail_step(&mut self, s: &Snapshot, idx: usize, reason: &str, now: Millis) {
        self.steps[idx].reason = reason.to_owned();
        self.end(idx, StepState::Failed, now);
        let goes_on = s.plan.step(idx).is_some_and(|step| step.continue_on_error);
        if goes_on || self.steps[idx].phase == Phase::OnFailure {
            return;
        }
        let name = self.steps[idx].name.clone();
        self.fail_run(&format!("step `{name}` failed: {reason}"), now);
    }

    /// The main part is over without success: on-failure steps, if any, else the end.
    fn fail_run(&mut self, reason: &str, now: Millis) {
        self.run.reason = reason.to_owned();
        for row in &mut self.steps {
            if row.phase == Phase::Main && !row.state.is_over() {
                row.state = StepState::Skipped;
                row.reason = "an earlier step failed".to_owned();
                row.finished_at = Some(now);
            }
        }
        let more = self
            .steps
            .iter()
            .any(|row| row.phase == Phase::OnFailure && !row.state.is_over());
        if more {
            self.run.state = RunState::Failing;
        } else {
            self.end_run(RunState::Failed, now);
        }
    }

    fn end_run(&mut self, state: RunState, now: Millis) {
        self.run.state = state;
        self.run.finished_at = Some(now);
    }

    fn stop_steps(&mut self, reason: &str, now: Millis) {
        for row in &mut self.steps {
            if row.state.is_over() {
                continue;
            }
            let begun = row.attempt > row.scratch.base;
            row.state = if begun {
                StepState::Cancelled
            } else {
                StepState::Skipped
            };
            row.reason = reason.to_owned();
            row.deadline = None;
            row.not_before = None;
            row.finished_at = Some(now);
        }
    }
}

/// A moment `ms` milliseconds later.
pub(super) fn after(at: Millis, ms: u64) -> Millis {
    at.plus(std::time::Duration::from_millis(ms))
}

/// All steps of the phase are over.
pub(super) fn finish(s: &Snapshot, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    if s.run.state == RunState::Failing {
        edit.end_run(RunState::Failed, now);
        return edit.into_change();
    }
    edit.stop_steps("the run succeeded", now);
    let allowed = s.steps.iter().filter(|r| r.state == StepState::Failed);
    let failed: Vec<_> = allowed
        .map(|row| format!("step `{}` failed, which it may: {}", row.name, row.reason))
        .collect();
    edit.run.reason = failed.join("; ");
    edit.end_run(RunState::Succeeded, now);
    edit.into_change()
}

/// The whole run took too long.
pub(super) fn time_is_up(s: &Snapshot, idx: usize, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    let allowed = duration::show(s.run.deadline.since(s.run.created_at));
    let reason = format!("the run took longer than {allowed}");
    edit.steps[idx].reason = reason.clone();
    edit.end(idx, StepState::Failed, now);
    let name = edit.steps[idx].name.clone();
    edit.fail_run(&format!("{reason}, at step `{name}`"), now);
    edit.into_change()
}

/// A step is not needed.
pub(super) fn skip(s: &Snapshot, idx: usize, reason: &str, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    edit.steps[idx].reason = reason.to_owned();
    edit.end(idx, StepState::Skipped, now);
    edit.into_change()
}

/// Somebody asked for the run to stop.
#[must_use]
pub fn cancel(s: &Snapshot, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    edit.stop_steps("the run was cancelled", now);
    edit.run.reason = "cancelled on request".to_owned();
    edit.end_run(RunState::Cancelled, now);
    edit.into_change()
}

/// A step cannot be carried out as it is written, however often it is tried.
#[must_use]
pub fn unusable(s: &Snapshot, idx: usize, reason: &str, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    edit.fail_step(s, idx, reason, now);
    edit.into_change()
}

/// A step cannot be carried out now: its rules say whether there is another attempt.
#[must_use]
pub fn later(s: &Snapshot, idx: usize, reason: &str, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    edit.fail_attempt(s, idx, reason, true, now);
    edit.into_change()
}

/// The run ends as failed at once, without on-failure steps: nothing on the machine can be
/// trusted any more.
#[must_use]
pub fn fail_now(s: &Snapshot, reason: &str, now: Millis) -> Change {
    let mut edit = Edit::of(s);
    if let Some(idx) = s.current() {
        edit.steps[idx].reason = reason.to_owned();
        edit.end(idx, StepState::Failed, now);
    }
    edit.stop_steps("the run was stopped", now);
    edit.run.reason = reason.to_owned();
    edit.end_run(RunState::Failed, now);
    edit.into_change()
}

/// The run goes on from the step that failed, with a new deadline and a fresh count of attempts.
/// Attempt numbers go on, so that answers to old attempts stay recognisable. `None` when nothing
/// is left to do.
#[must_use]
pub fn reopen(s: &Snapshot, now: Millis) -> Option<Change> {
    let mut edit = Edit::of(s);
    let done = |row: &StepRow| match row.state {
        StepState::Succeeded => true,
        StepState::Failed => s
            .plan
            .step(row.idx)
            .is_some_and(|step| step.continue_on_error),
        _ => s.plan.skip.get(row.idx).copied().unwrap_or(false),
    };
    let first = edit
        .steps
        .iter()
        .position(|row| row.phase == Phase::Main && !done(row))?;
    for row in &mut edit.steps[first..] {
        row.state = StepState::Pending;
        row.boot_id = None;
        row.not_before = None;
        row.deadline = None;
        row.finished_at = None;
        row.reason.clear();
        row.output = None;
        row.scratch = Scratch {
            base: row.attempt,
            ..Scratch::default()
        };
    }
    edit.run.state = RunState::Running;
    edit.run.reason.clear();
    edit.run.cancel = false;
    edit.run.finished_at = None;
    edit.run.deadline = after(now, s.plan.workflow.timeout_ms);
    Some(edit.into_change())
}

/// The step in which the installed system was heard, whoever was to speak for it.
fn heard_in<'a>(s: &Snapshot, change: &'a Change) -> Option<&'a StepRow> {
    change.steps.iter().find(|row| {
        // One that failed although the node called home heard of another version than was installed.
        let heard = row.state == StepState::Succeeded || row.output.is_some();
        heard && s.action(row.idx) == Some(Action::WaitPhoneHome)
    })
}

/// What the installed system said when it ended the wait for it. What others say of it, before or
/// after, is not among it.
#[must_use]
pub fn node_report<'a>(s: &Snapshot, change: &'a Change) -> Option<&'a serde_json::Value> {
    heard_in(s, change)?.output.as_ref()
}

/// What a change of a run means for its machine, if anything.
#[must_use]
pub fn machine_change(s: &Snapshot, change: &Change, now: Millis) -> Option<MachineChange> {
    let (before, after) = (s.run.state, change.run.state);
    if before.is_active() == after.is_active() {
        return None;
    }
    let because = |text: String| match change.run.reason.as_str() {
        "" => text,
        reason => format!("{text}: {reason}"),
    };
    if after.is_active() {
        return Some(MachineChange {
            state: MachineState::Provisioning,
            reason: format!("run {} goes on", change.run.id),
            active: true,
            planned: Some(Box::new(s.plan.machine.clone())),
            node: None,
            // The agent that waits for the run to go on is known; one that comes out of the past
            // may be anybody's.
            void_agents: !agent_is_there(s, now),
        });
    }
    let wrote = change.steps.iter().any(|row| {
        let destructive = s.action(row.idx).is_some_and(|a| a.spec().destructive);
        row.state == StepState::Succeeded && destructive
    });
    let heard = heard_in(s, change).is_some();
    let state = match after {
        RunState::Succeeded if heard => MachineState::Provisioned,
        RunState::Succeeded if !wrote && s.plan.state_before == MachineState::Provisioned => {
            MachineState::Provisioned
        }
        RunState::Succeeded => MachineState::Registered,
        _ => MachineState::Failed,
    };
    Some(MachineChange {
        state,
        reason: because(format!("run {} {}", change.run.id, after.as_str())),
        active: false,
        planned: None,
        node: node_report(s, change).cloned(),
        void_agents: false,
    })
}
