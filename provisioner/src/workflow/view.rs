//! A run as people and programs see it: why it is where it is, and where its time went.
//!
//! Pure: rows and events in, views out.

use std::collections::HashMap;

use anneal_protocol::agent::Progress;
use anneal_protocol::api::{PhaseView, RunView, StepView};
use anneal_protocol::time::Millis;

use super::engine::{Act, Decision, decide};
use super::run::{RunState, Snapshot, StepRow};
use crate::clock::rfc3339;
use crate::event::kind;
use crate::store::EventRow;

/// One sentence: what the run waits for, since when, until when; or how it ended.
#[must_use]
pub fn why(s: &Snapshot, now: Millis) -> String {
    let run = &s.run;
    match run.state {
        RunState::Succeeded => {
            let ended = clock_time(run.finished_at.unwrap_or(now));
            return match run.reason.as_str() {
                "" => format!("succeeded at {ended}"),
                reason => format!("succeeded at {ended}: {reason}"),
            };
        }
        RunState::Failed | RunState::Cancelled => return run.reason.clone(),
        RunState::Pending | RunState::Running | RunState::Failing => {}
    }
    let what = match decide(s, now) {
        Decision::Wait(waiting) => {
            let until = waiting
                .until
                .map(|at| format!(", until {}", clock_time(at)))
                .unwrap_or_default();
            let since = clock_time(waiting.since);
            format!("waits for {}, since {since}{until}", waiting.what)
        }
        Decision::Act(command) => {
            let doing = match command.act {
                Act::Netboot => "setting one-time network boot and switching the power",
                Act::Power => "switching the power",
                Act::BootDevice => "setting the boot device",
                Act::LookOff => "looking whether the machine is off",
                Act::LookApi => "nothing was heard of Talos: looking whether its API port answers",
            };
            format!("{doing}, until {}", clock_time(command.deadline))
        }
        Decision::Change(_) | Decision::Over => "about to go on".to_owned(),
    };
    let at = s.current().map(|idx| {
        let row = &s.steps[idx];
        let attempts = row.attempt.saturating_sub(row.scratch.base).max(1);
        let allowed = s.plan.step(idx).map_or(1, |step| step.retries + 1);
        format!(
            "step {} `{}`, attempt {attempts} of {allowed}: ",
            idx + 1,
            row.name
        )
    });
    let failing = match run.state {
        RunState::Failing => format!(" (failing: {})", run.reason),
        _ => String::new(),
    };
    format!("{}{what}{failing}", at.unwrap_or_default())
}

/// `10:31:04 UTC`.
fn clock_time(at: Millis) -> String {
    let text = rfc3339(at);
    match text.get(11..19) {
        Some(time) => format!("{time} UTC"),
        None => text,
    }
}

/// The run for the API.
#[must_use]
pub fn run_view(
    s: &Snapshot,
    progress: &HashMap<usize, Progress>,
    timeline: &[EventRow],
    now: Millis,
) -> RunView {
    RunView {
        id: s.run.id.clone(),
        machine: s.run.machine.clone(),
        workflow: s.run.workflow.clone(),
        image: s.run.image.clone(),
        state: s.run.state.as_str().to_owned(),
        why: why(s, now),
        requested_by: s.run.requested_by.clone(),
        created_at: rfc3339(s.run.created_at),
        finished_at: s.run.finished_at.map(rfc3339),
        deadline: rfc3339(s.run.deadline),
        steps: s
            .steps
            .iter()
            .map(|row| step_view(row, progress.get(&row.idx).copied()))
            .collect(),
        phases: phases(timeline, &s.run.id),
    }
}

fn step_view(row: &StepRow, progress: Option<Progress>) -> StepView {
    StepView {
        index: u32::try_from(row.idx).unwrap_or(u32::MAX),
        phase: row.phase.as_str().to_owned(),
        name: row.name.clone(),
        uses: row.uses.clone(),
        state: row.state.as_str().to_owned(),
        attempts: row.attempt,
        reason: (!row.reason.is_empty()).then(|| row.reason.clone()),
        started_at: row.started_at.map(rfc3339),
        finished_at: row.finished_at.map(rfc3339),
        progress,
        output: row.output.clone(),
    }
}

/// The phases of an installation, in their order.
const PHASES: &[&str] = &[
    "power",
    "dhcp",
    "bootloader",
    "agent",
    "write",
    "config",
    "first-boot",
];

/// Time spent in each phase, in order of occurrence. A phase that comes again (a lost agent is
/// booted again) adds to its first entry.
#[must_use]
pub fn phases(events: &[EventRow], run: &str) -> Vec<PhaseView> {
    let mut spent: Vec<PhaseView> = Vec::new();
    let mut current: Option<(usize, Millis)> = None;
    for row in events {
        let next = match phase_after(row, run, current.map(|(phase, _)| phase)) {
            Some(next) => next,
            None => continue,
        };
        if let Some((phase, since)) = current {
            let ms = u64::try_from(row.at.since(since).as_millis()).unwrap_or(u64::MAX);
            let name = PHASES[phase];
            match spent.iter_mut().find(|view| view.name == name) {
                Some(view) => view.duration_ms += ms,
                None => spent.push(PhaseView {
                    name: name.to_owned(),
                    duration_ms: ms,
                }),
            }
        }
        current = next.map(|phase| (phase, row.at));
    }
    spent
}

/// The phase that begins with an event: `None` when it changes nothing, `Some(None)` when the
/// last phase ends.
fn phase_after(row: &EventRow, run: &str, current: Option<usize>) -> Option<Option<usize>> {
    const POWER: usize = 0;
    const DHCP: usize = 1;
    const BOOTLOADER: usize = 2;
    const AGENT: usize = 3;
    const WRITE: usize = 4;
    const CONFIG: usize = 5;
    const FIRST_BOOT: usize = 6;
    let event = &row.event;
    let uses = event.data["uses"].as_str().unwrap_or_default();
    let own = event.run.as_deref() == Some(run);
    let next = match (event.kind.as_str(), current) {
        ("run.succeeded" | "run.failed" | "run.cancelled", Some(_)) if own => return Some(None),
        ("run.pending" | "run.running", None) if own => POWER,
        (_, None) => return None,
        (kind::POWER, Some(phase)) if phase != POWER => POWER,
        (kind::DHCP | kind::DHCP_ACK, Some(POWER)) => DHCP,
        (kind::TFTP | kind::HTTP | kind::BOOT_SCRIPT, Some(POWER | DHCP)) => BOOTLOADER,
        (kind::AGENT_ENROLLED | kind::AGENT_HELLO, Some(phase)) if phase < AGENT => AGENT,
        ("step.running", Some(phase)) if own && uses == "stream-image" && phase != WRITE => WRITE,
        ("step.succeeded", Some(WRITE)) if own && uses == "stream-image" => CONFIG,
        ("step.leaving", Some(phase)) if own && phase != FIRST_BOOT => FIRST_BOOT,
        (kind::PHONE_HOME | kind::TALOS_READY | kind::KAIROS_READY, Some(_)) if own => {
            return Some(None);
        }
        _ => return None,
    };
    Some(Some(next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn time_is_counted_to_the_phase_it_was_spent_in() {
        let none = serde_json::Value::Null;
        let stream = serde_json::json!({ "uses": "stream-image" });
        let history = [
            (0, "run.pending", none.clone()),
            (5, kind::POWER, none.clone()),
            (10, kind::DHCP_ACK, none.clone()),
            (12, kind::TFTP, none.clone()),
            (20, kind::AGENT_ENROLLED, none.clone()),
            (21, kind::AGENT_HELLO, none.clone()),
            (22, "step.running", stream.clone()),
            // The agent is lost and booted again.
            (52, kind::POWER, none.clone()),
            (60, kind::DHCP, none.clone()),
            (61, kind::BOOT_SCRIPT, none.clone()),
            (70, kind::AGENT_HELLO, none.clone()),
            (71, "step.running", stream.clone()),
            (100, "step.succeeded", stream),
            (103, "step.leaving", none.clone()),
            (110, kind::DHCP, none.clone()),
            (111, kind::BOOT_SCRIPT, none.clone()),
            (160, kind::PHONE_HOME, none.clone()),
            (161, "run.succeeded", none),
        ];
        let rows: Vec<_> = (1_i64..)
            .zip(history)
            .map(|(id, (at, kind, data))| EventRow {
                id,
                at: Millis(at),
                event: Event::new(kind, "").machine("r1n1").run("run-1").data(data),
            })
            .collect();
        let spent: Vec<_> = phases(&rows, "run-1")
            .into_iter()
            .map(|view| (view.name, view.duration_ms))
            .collect();
        let expected = [
            ("power", 10 + 8),
            ("dhcp", 2 + 1),
            ("bootloader", 8 + 9),
            ("agent", 2 + 1),
            ("write", 30 + 29),
            ("config", 3),
            ("first-boot", 57),
        ];
        assert_eq!(spent, expected.map(|(name, ms)| (name.to_owned(), ms)));
        assert_eq!(phases(&rows, "another run"), vec![]);
    }
}
