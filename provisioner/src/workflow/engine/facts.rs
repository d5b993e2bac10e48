//! Reading facts: is the agent there, did the machine start, does it want the agent?

use anneal_protocol::time::Millis;

use crate::event::kind;
use crate::store::Sighting;
use crate::workflow::action::Action;
use crate::workflow::caller::{Caller, SIGNS_OF_LIFE, Wait};
use crate::workflow::run::{Boot, Phase, Snapshot, StepState};

fn millis(ms: i64) -> std::time::Duration {
    std::time::Duration::from_millis(ms.max(0).unsigned_abs())
}

/// The agent's latest boot, if it is later than a moment.
pub(super) fn booted_since(s: &Snapshot, since: Millis) -> Option<&Boot> {
    s.boot().filter(|boot| boot.at > since)
}

fn stage(sighting: &Sighting) -> &str {
    sighting.data["stage"].as_str().unwrap_or_default()
}

/// The machine's firmware was seen starting after a moment.
pub(super) fn firmware_since(s: &Snapshot, since: Millis) -> bool {
    [kind::DHCP, kind::DHCP_ACK].iter().any(|kind| {
        s.sighting(kind)
            .is_some_and(|seen| seen.at > since && stage(seen) == "firmware")
    }) || s
        .sighting(kind::BOOT_SCRIPT)
        .is_some_and(|seen| seen.at > since)
}

/// The machine was seen on its way to its own disk, or its system was, since a moment.
pub(super) fn left_since(s: &Snapshot, since: Millis) -> bool {
    let by_script = s
        .sighting(kind::BOOT_SCRIPT)
        .is_some_and(|seen| seen.at >= since && seen.data["target"] == "disk");
    let by_dhcp = [kind::DHCP, kind::DHCP_ACK].iter().any(|kind| {
        s.sighting(kind)
            .is_some_and(|seen| seen.at >= since && matches!(stage(seen), "firmware" | "system"))
    });
    by_script || by_dhcp || any_said_since(s, SIGNS_OF_LIFE, since)
}

/// The installed system was seen or heard since a moment. Its way through the firmware says nothing here.
pub(super) fn started_since(s: &Snapshot, since: Millis) -> bool {
    [kind::DHCP, kind::DHCP_ACK].iter().any(|kind| {
        s.sighting(kind)
            .is_some_and(|seen| seen.at >= since && stage(seen) == "system")
    }) || any_said_since(s, SIGNS_OF_LIFE, since)
}

/// The machine left into a kernel that the agent had loaded, and went through its firmware all the same: that kernel
/// did not start, or did not stay up. What the installed system says outweighs it.
pub(super) fn fell_back_since(s: &Snapshot, since: Millis) -> bool {
    firmware_since(s, since) && !any_said_since(s, SIGNS_OF_LIFE, since)
}

/// What was said for this run, after a moment.
pub(super) fn said_since<'a>(s: &'a Snapshot, kind: &str, since: Millis) -> Option<&'a Sighting> {
    s.sighting(kind)
        .filter(|seen| seen.at >= since && seen.run.as_deref() == Some(s.run.id.as_str()))
}

/// Any of these was said for this run, after a moment.
pub(super) fn any_said_since(s: &Snapshot, kinds: &[&str], since: Millis) -> bool {
    kinds
        .iter()
        .any(|kind| said_since(s, kind, since).is_some())
}

/// Who may say now that the installed system is up: while a `wait-phone-home` waits, and while
/// the machine is on its way to it. `Err`: somebody may, later in this run.
///
/// # Errors
/// Who may speak later.
pub fn listens_to(s: &Snapshot) -> Result<Option<Caller>, Caller> {
    let Some(current) = s.current().filter(|_| s.run.state.is_active()) else {
        return Ok(None);
    };
    let next = s.steps[current..]
        .iter()
        .filter(|row| row.phase == Phase::Main)
        .find_map(|row| Some((row.idx, Wait::of(s.plan.step(row.idx)?)?.by)));
    match next {
        None => Ok(None),
        Some((idx, by)) if idx == current => Ok(Some(by)),
        Some((_, by)) if s.steps[current].state == StepState::Leaving => Ok(Some(by)),
        // A kernel that seems not to have started may have.
        Some((_, by)) if recovers_from_kexec(s, current) => Ok(Some(by)),
        Some((_, by)) => Err(by),
    }
}

/// An attempt at a `kexec` was lost: the agent is awaited, or the word of the system that runs all the same.
pub(super) fn recovers_from_kexec(s: &Snapshot, idx: usize) -> bool {
    let row = &s.steps[idx];
    s.action(idx) == Some(Action::Kexec)
        && row.state == StepState::Pending
        && row.scratch.recovering
        && row.attempt > row.scratch.base
}

/// When the agent counts as lost if it does not ask for work, and if it does not speak at all.
pub(super) fn lost_at(s: &Snapshot, heard: Millis) -> Millis {
    heard.plus(millis(s.silence_ms))
}

/// Whether the agent's latest boot is alive. Whether it also takes work shows when work is
/// waiting: see `running` in `agent`.
pub(super) fn agent_is_there(s: &Snapshot, now: Millis) -> bool {
    s.boot()
        .is_some_and(|boot| now < lost_at(s, boot.at.max(s.presence.seen)))
}

/// Whether the machine, if it asks over the network now, is to start the agent: from the start
/// of the run until it left for its disk, and again when a later step needs the agent.
/// False without an active run.
#[must_use]
pub fn wants_agent(s: &Snapshot) -> bool {
    if !s.run.state.is_active() || s.run.cancel {
        return false;
    }
    let mut wants = true;
    for row in &s.steps {
        let begun = row.attempt > row.scratch.base;
        match s.action(row.idx) {
            Some(Action::Netboot) if begun || row.state == StepState::Succeeded => wants = true,
            Some(Action::Reboot | Action::Kexec | Action::Power | Action::PowerOff)
                if matches!(row.state, StepState::Leaving | StepState::Succeeded) =>
            {
                wants = false;
            }
            _ => {}
        }
        // A step that left and then failed did leave: only another netboot brings the agent back.
        if row.scratch.left_at.is_some() && row.state == StepState::Failed {
            wants = false;
        }
    }
    let needs = s.current().is_some_and(|idx| {
        let row = &s.steps[idx];
        row.phase == Phase::Main
            && row.state != StepState::Leaving
            && s.action(idx).is_some_and(Action::on_agent)
    });
    wants || needs
}
