//! Steps that the agent carries out: attempts, results, lost agents and how to get them back.

use std::collections::BTreeSet;

use anneal_protocol::agent::{
    AgentAction, BootArgumentsResult, MetaValue, Outcome, StepResult, StreamResult,
    TalosMetaResult, Verify, WipeResult, WriteFileResult,
};
use anneal_protocol::time::Millis;

use super::edit::{self, Edit};
use super::facts::{
    agent_is_there, any_said_since, booted_since, fell_back_since, left_since, lost_at,
    recovers_from_kexec, started_since, wants_agent,
};
use super::{Act, Change, Decision, Waiting, daemon, returned};
use crate::workflow::action::Action;
use crate::workflow::caller::SIGNS_OF_LIFE;
use crate::workflow::duration;
use crate::workflow::inputs::Inputs;
use crate::workflow::plan::Step;
use crate::workflow::run::{Phase, PowerMark, Snapshot, StepRow, StepState};

pub(super) fn decide(s: &Snapshot, idx: usize, step: &Step, now: Millis) -> Decision {
    let row = &s.steps[idx];
    match row.state {
        StepState::Leaving => leaving(s, idx, step, now),
        StepState::Running => running(s, idx, step, now),
        _ => pending(s, idx, now),
    }
}

/// Between attempts: is there an agent to give the step to?
fn pending(s: &Snapshot, idx: usize, now: Millis) -> Decision {
    let row = &s.steps[idx];
    let there = agent_is_there(s, now);
    if row.phase == Phase::OnFailure && !(there && wants_agent(s)) {
        // Booting the agent again would destroy what the step is to look at.
        return edit::skip(s, idx, "the agent is not running any more", now).into();
    }
    if row.scratch.recovering {
        return recover(s, idx, now);
    }
    if !there {
        let mut edit = Edit::of(s);
        edit.steps[idx].scratch.recovering = true;
        edit.steps[idx].scratch.power = None;
        return edit.into();
    }
    daemon::begin(s, idx, StepState::Running, now)
}

/// The agent is lost: boot it again, then go on with the next attempt.
fn recover(s: &Snapshot, idx: usize, now: Millis) -> Decision {
    let row = &s.steps[idx];
    let asked = match row.scratch.power {
        Some(PowerMark::Asked(at) | PowerMark::Done(at)) => at,
        None => now,
    };
    if row.scratch.power.is_some() && booted_since(s, asked).is_some() {
        let mut edit = Edit::of(s);
        edit.steps[idx].scratch.recovering = false;
        edit.steps[idx].scratch.power = None;
        edit.steps[idx].not_before = None;
        return edit.into();
    }
    if kernel_started_after_all(s, idx) {
        let mut edit = Edit::of(s);
        edit.succeed(idx, None, now);
        return edit.into();
    }
    let deadline = daemon::recovery_deadline(asked);
    if now >= deadline {
        let mut edit = Edit::of(s);
        edit.steps[idx].attempt += 1;
        edit.fail_attempt(
            s,
            idx,
            "the agent was lost and did not start again",
            true,
            now,
        );
        return edit.into();
    }
    if let Some(until) = row
        .not_before
        .filter(|at| row.scratch.power.is_none() && now < *at)
    {
        return wait_since(
            now,
            &format!("the next attempt to start the agent ({})", row.reason),
            until,
        );
    }
    if s.plan.machine.bmc.is_none() {
        if row.scratch.power.is_none() {
            let mut edit = Edit::of(s);
            edit.steps[idx].scratch.power = Some(PowerMark::Done(now));
            return edit.into();
        }
        return wait_since(
            asked,
            &format!(
                "somebody to power {} off and on by hand, booting from the network, because its agent was lost",
                s.run.machine
            ),
            deadline,
        );
    }
    let again = |_: &StepRow| wait_since(asked, "the agent to start again", deadline);
    daemon::power_then(s, idx, Act::Netboot, deadline, again, now)
}

/// Firmware was seen after a `kexec`, and yet the installed system runs: it says so.
fn kernel_started_after_all(s: &Snapshot, idx: usize) -> bool {
    let began = s.steps[idx].attempt_at;
    recovers_from_kexec(s, idx)
        && began.is_some_and(|began| any_said_since(s, SIGNS_OF_LIFE, began))
}

fn wait_since(since: Millis, what: &str, until: Millis) -> Decision {
    Decision::Wait(Waiting {
        what: what.to_owned(),
        since,
        until: Some(until),
        look_at: Some(until),
    })
}

/// An attempt is under way, handed out or about to be.
fn running(s: &Snapshot, idx: usize, step: &Step, now: Millis) -> Decision {
    let row = &s.steps[idx];
    let deadline = row.deadline.unwrap_or(now);
    let holder_is_gone = match (&row.boot_id, s.boot()) {
        (Some(holder), Some(current)) => current.id != *holder,
        _ => false,
    };
    if holder_is_gone {
        let mut edit = Edit::of(s);
        edit.fail_attempt(
            s,
            idx,
            "the machine restarted in the middle of it",
            true,
            now,
        );
        // A fresh agent is there: nothing to wait for.
        edit.steps[idx].not_before = None;
        return edit.into();
    }
    if now >= deadline {
        let mut edit = Edit::of(s);
        let allowed = duration::show(std::time::Duration::from_millis(step.timeout_ms));
        edit.fail_attempt(
            s,
            idx,
            &format!("it did not end within {allowed}"),
            true,
            now,
        );
        return edit.into();
    }
    let began = row.attempt_at.unwrap_or(now);
    let (heard, what) = match row.boot_id {
        Some(_) => (
            s.presence.seen,
            format!("the agent to finish step `{}`", row.name),
        ),
        None => (
            s.presence.asked,
            format!("the agent to fetch step `{}`", row.name),
        ),
    };
    let lost = lost_at(s, heard.max(began));
    if now >= lost {
        let silent = duration::show(now.since(heard.max(began)));
        return lose(s, idx, &format!("the agent was silent for {silent}"), now);
    }
    Decision::Wait(Waiting {
        what,
        since: began,
        until: Some(deadline),
        look_at: Some(deadline.min(lost)),
    })
}

/// The attempt failed because the agent is gone: the next one begins with booting it again.
fn lose(s: &Snapshot, idx: usize, reason: &str, now: Millis) -> Decision {
    let lost = returned::remember(s, &s.steps[idx], now);
    let mut edit = Edit::of(s);
    edit.fail_attempt(s, idx, reason, true, now);
    if edit.steps[idx].state == StepState::Pending {
        edit.steps[idx].scratch.recovering = true;
        edit.steps[idx].scratch.lost = lost;
        edit.steps[idx].not_before = None;
    }
    edit.into()
}

/// The agent said that it leaves: the next sign of life decides.
fn leaving(s: &Snapshot, idx: usize, step: &Step, now: Millis) -> Decision {
    let row = &s.steps[idx];
    let left = row.scratch.left_at.unwrap_or(now);
    let deadline = row.deadline.unwrap_or(now);
    let succeed = || {
        let mut edit = Edit::of(s);
        edit.succeed(idx, None, now);
        Decision::from(edit)
    };
    if step.uses == Action::PowerOff {
        if s.plan.machine.bmc.is_none() {
            return succeed();
        }
        if now < deadline {
            return Decision::Act(daemon::command(row, Act::LookOff, deadline));
        }
    } else if step.uses == Action::Kexec && fell_back_since(s, left) {
        let reason = "the machine went through its firmware: the kernel that was loaded did not start, or did not stay up";
        return lose(s, idx, reason, now);
    } else if arrived(s, step, left) {
        return succeed();
    }
    if booted_since(s, left).is_some() {
        let mut edit = Edit::of(s);
        edit.fail_attempt(
            s,
            idx,
            "the machine came back to the agent instead of its disk",
            true,
            now,
        );
        return edit.into();
    }
    if now >= deadline {
        let allowed = duration::show(std::time::Duration::from_millis(step.timeout_ms));
        return lose(
            s,
            idx,
            &format!("the machine left and was not seen again within {allowed}"),
            now,
        );
    }
    Decision::Wait(Waiting {
        what: match step.uses {
            Action::Kexec => format!("{} to start the kernel that was loaded", s.run.machine),
            _ => format!("{} to start from its disk", s.run.machine),
        },
        since: left,
        until: Some(deadline),
        look_at: Some(deadline),
    })
}

/// What ends a step that left for the disk. A firmware is on the way to it, but not after a `kexec`.
fn arrived(s: &Snapshot, step: &Step, left: Millis) -> bool {
    match step.uses {
        Action::Kexec => started_since(s, left),
        _ => left_since(s, left),
    }
}

/// The step to hand to this boot of the agent, if there is one: an attempt that nobody holds, or
/// that this boot holds already (its answer was lost on the way).
#[must_use]
pub fn order_ready(s: &Snapshot, boot_id: &str, now: Millis) -> Option<usize> {
    let idx = s.current()?;
    let row = &s.steps[idx];
    let current = s.boot().is_some_and(|boot| boot.id == boot_id);
    let free = row
        .boot_id
        .as_deref()
        .is_none_or(|holder| holder == boot_id);
    let ready = current
        && free
        && !s.run.cancel
        && row.state == StepState::Running
        && row.deadline.is_some_and(|deadline| now < deadline)
        && s.action(idx).is_some_and(Action::on_agent);
    ready.then_some(idx)
}

/// Hands the current attempt to a boot of the agent.
///
/// # Errors
/// The change that fails the step, when its inputs are not those of its first attempt.
pub fn dispatch(
    s: &Snapshot,
    idx: usize,
    boot_id: &str,
    digest: &str,
    now: Millis,
) -> Result<Box<Change>, Box<Change>> {
    let mut edit = Edit::of(s);
    let row = &mut edit.steps[idx];
    match &row.inputs_digest {
        Some(first) if first != digest => {
            edit.fail_step(s, idx, "its inputs are not those of its first attempt (a template or setting changed); start a new run", now);
            return Err(Box::new(edit.into_change()));
        }
        _ => row.inputs_digest = Some(digest.to_owned()),
    }
    row.boot_id = Some(boot_id.to_owned());
    Ok(Box::new(edit.into_change()))
}

/// Whether the daemon still wants what an agent works on.
#[must_use]
pub fn wanted(s: &Snapshot, step: u32, attempt: u32, boot_id: &str) -> bool {
    let Some(idx) = s.current().filter(|_| !s.run.cancel) else {
        return false;
    };
    let row = &s.steps[idx];
    u32::try_from(idx) == Ok(step)
        && row.attempt == attempt
        && row.boot_id.as_deref() == Some(boot_id)
        && matches!(row.state, StepState::Running | StepState::Leaving)
}

/// Whether a result that changes nothing any more was told before and counted: an answer of ours was lost.
#[must_use]
pub fn counted(s: &Snapshot, result: &StepResult) -> bool {
    let row = s.steps.get(result.order.step as usize);
    row.is_some_and(|row| {
        row.attempt == result.order.attempt
            && row.boot_id.as_deref() == Some(&*result.boot_id)
            && matches!(row.state, StepState::Leaving | StepState::Succeeded)
    })
}

/// Whether a change lets the agent leave that says that it does.
#[must_use]
pub fn leaves(change: &Change, result: &StepResult) -> bool {
    let row = change.steps.get(result.order.step as usize);
    row.is_some_and(|row| row.state == StepState::Leaving)
}

/// What a result means.
#[derive(Debug, Clone, PartialEq)]
pub enum ResultVerdict {
    /// Store this.
    Apply(Box<Change>),
    /// It is about an attempt that is over, or was told before.
    Ignore,
}

/// Applies the agent's result. `inputs` are those of the step, redacted; they say what a success
/// must look like.
#[must_use]
pub fn apply_result(
    s: &Snapshot,
    result: &StepResult,
    inputs: Option<&Inputs>,
    now: Millis,
) -> ResultVerdict {
    if !wanted(s, result.order.step, result.order.attempt, &result.boot_id) {
        return ResultVerdict::Ignore;
    }
    let idx = result.order.step as usize;
    if s.steps[idx].state == StepState::Leaving {
        return ResultVerdict::Ignore;
    }
    let leaves = s.action(idx).is_some_and(Action::leaves_agent);
    let mut edit = Edit::of(s);
    match &result.outcome {
        Outcome::Leaving if leaves => {
            let row = &mut edit.steps[idx];
            row.state = StepState::Leaving;
            row.scratch.left_at = Some(now);
        }
        Outcome::Succeeded { output } if !leaves => match believable(s, inputs, output) {
            Ok(()) => edit.succeed(idx, Some(output.clone()), now),
            Err(why) => edit.fail_attempt(
                s,
                idx,
                &format!("the agent's result cannot be right: {why}"),
                true,
                now,
            ),
        },
        Outcome::Failed(failure) => {
            edit.fail_attempt(s, idx, &failure.message, failure.retryable, now);
        }
        Outcome::Leaving => edit.fail_attempt(
            s,
            idx,
            "the agent wants to leave, but the step does not",
            false,
            now,
        ),
        Outcome::Succeeded { .. } => {
            edit.fail_attempt(
                s,
                idx,
                "the agent says that it is done, but it has not left",
                true,
                now,
            );
        }
    }
    ResultVerdict::Apply(Box::new(edit.into_change()))
}

/// Whether the keys of META that were set are those that were ordered.
fn all_keys(ordered: &[MetaValue], result: &TalosMetaResult) -> Result<(), String> {
    let ordered: BTreeSet<u8> = ordered.iter().map(|value| value.key).collect();
    match ordered.iter().eq(&result.set) {
        true => Ok(()),
        false => Err(format!("it set the keys {:?} of META", result.set)),
    }
}

/// Whether a success has the shape and content that its order calls for.
fn believable(
    s: &Snapshot,
    inputs: Option<&Inputs>,
    output: &serde_json::Value,
) -> Result<(), String> {
    fn read<T: serde::de::DeserializeOwned>(output: &serde_json::Value) -> Result<T, String> {
        serde_json::from_value(output.clone()).map_err(|e| e.to_string())
    }
    let Some(Inputs::Agent(action)) = inputs else {
        return Err("the daemon cannot tell what was ordered".to_owned());
    };
    match action.as_ref() {
        AgentAction::StreamImage { image, verify, .. } => {
            let result: StreamResult = read(output)?;
            if result.image != *image {
                return Err(format!("it wrote image {}", result.image));
            }
            let size = s.plan.image.as_ref().map(|image| image.size);
            let accounted = [result.written, result.zeroed, result.unchanged];
            let accounted: u64 = accounted.iter().map(|amount| amount.bytes).sum();
            if size.is_some_and(|size| accounted != size) {
                return Err(format!("it accounts for {accounted} bytes of the image"));
            }
            match (verify, result.read_back.map(|amount| amount.bytes)) {
                (Verify::None, _) => Ok(()),
                (_, None) => Err("nothing was read back".to_owned()),
                (Verify::Full, Some(bytes)) if Some(bytes) != size => {
                    Err(format!("it read back {bytes} bytes of the image"))
                }
                (Verify::Changed, Some(bytes))
                    if bytes < result.written.bytes + result.zeroed.bytes =>
                {
                    Err(format!("it read back {bytes} bytes, less than it changed"))
                }
                (Verify::Full | Verify::Changed, Some(_)) => Ok(()),
            }
        }
        AgentAction::AuditDisk { image, .. } => {
            let result: anneal_protocol::audit::AuditResult = read(output)?;
            let drifted = result.regions.iter().any(|region| region.drifted);
            if result.image != *image {
                return Err(format!("it audited image {}", result.image));
            }
            match drifted == result.drifted {
                true => Ok(()),
                false => Err("its verdict is not what its regions say".to_owned()),
            }
        }
        AgentAction::WipeDisk { .. } => read::<WipeResult>(output).map(|_| ()),
        AgentAction::WriteFile { .. } => read::<WriteFileResult>(output).map(|_| ()),
        AgentAction::BootArguments { .. } => read::<BootArgumentsResult>(output).map(|_| ()),
        AgentAction::WriteTalosMeta { values, .. } => all_keys(values, &read(output)?),
        AgentAction::Inventory => read::<anneal_protocol::agent::Inventory>(output).map(|_| ()),
        AgentAction::CollectEvidence => {
            read::<anneal_protocol::agent::Evidence>(output).map(|_| ())
        }
        AgentAction::Kexec { .. } | AgentAction::Reboot | AgentAction::PowerOff => {
            Err("the step has no result".to_owned())
        }
    }
}
