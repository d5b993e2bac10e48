//! Tables of decisions, and random histories: a run always ends, and never says that something
//! was written without the agent's word for that very attempt.

use std::collections::BTreeMap;

use anneal_protocol::agent::{
    AgentAction, FailureCode, MetaValue, OrderId, Outcome, StepFailure, StepResult,
};
use anneal_protocol::machine::MachineState;
use anneal_protocol::time::Millis;

use super::*;
use crate::event::kind;
use crate::render::Renderer;
use crate::store::Sighting;
use crate::workflow::inputs::Inputs;
use crate::workflow::plan;
use crate::workflow::plan_tests::{image, machine};
use crate::workflow::run::{Boot, Presence, RunPlan, StepState};
use crate::workflow::view::why;

mod any_order;
mod callers;
mod ends;
mod kexec;
mod returned;

const T0: Millis = Millis(1_000_000);
const SILENCE_MS: i64 = 60_000;
/// As `plan_tests::image` says.
const IMAGE_SIZE: u64 = 1 << 30;

const INSTALL: &str = "name: w\ntimeout: 60m\nsteps:\n  - { uses: netboot, timeout: 10m, retries: 1 }\n  - { uses: stream-image, timeout: 20m, retries: 2, retry_delay: 10s }\n  - { uses: reboot, timeout: 5m, retries: 1 }\n  - { uses: wait-phone-home, timeout: 15m }\non_failure:\n  - { uses: collect-evidence }\n";

fn at(seconds: i64) -> Millis {
    Millis(T0.0 + seconds * 1000)
}

fn snapshot(text: &str) -> Snapshot {
    let renderer = Renderer::from_sources(BTreeMap::new()).unwrap();
    let workflow = plan::parse(text, "w.yaml", &renderer).unwrap();
    let plan = RunPlan {
        skip: vec![false; workflow.all_steps().count()],
        machine: machine(),
        image: Some(image()),
        state_before: MachineState::Registered,
        workflow,
    };
    Snapshot {
        run: RunRow {
            id: "run-1".into(),
            machine: "r1n1".into(),
            workflow: "w".into(),
            image: None,
            state: RunState::Pending,
            reason: String::new(),
            requested_by: "test".into(),
            cancel: false,
            version: 0,
            created_at: T0,
            finished_at: None,
            deadline: at(3600),
        },
        steps: plan.rows(),
        plan,
        boots: vec![],
        sightings: vec![],
        presence: Presence {
            seen: T0,
            asked: T0,
        },
        silence_ms: SILENCE_MS,
    }
}

fn apply(s: &mut Snapshot, change: Change) {
    s.run = change.run;
    s.steps = change.steps;
}

/// Stores changes until something else is decided.
fn settle_down(s: &mut Snapshot, now: Millis) -> Decision {
    for _ in 0..100 {
        match decide(s, now) {
            Decision::Change(change) => apply(s, *change),
            other => return other,
        }
    }
    panic!("never comes to rest: {s:?}");
}

fn see(s: &mut Snapshot, kind: &str, at: Millis, data: serde_json::Value) {
    s.sightings.retain(|sighting| sighting.kind != kind);
    s.sightings.push(Sighting {
        kind: kind.into(),
        at,
        run: Some("run-1".into()),
        data,
    });
}

fn hello(s: &mut Snapshot, id: &str, at: Millis) {
    s.boots.push(Boot { id: id.into(), at });
    s.presence = Presence {
        seen: at,
        asked: at,
    };
}

fn result(step: u32, attempt: u32, boot: &str, outcome: Outcome) -> StepResult {
    StepResult {
        order: OrderId {
            run: "run-1".into(),
            step,
            attempt,
        },
        boot_id: boot.into(),
        outcome,
    }
}

/// An image of which so many bytes were read back.
fn streamed(read_back: u64) -> Outcome {
    let amount = |bytes| serde_json::json!({ "frames": 1, "bytes": bytes });
    Outcome::Succeeded {
        output: serde_json::json!({
            "disk": "vda", "serial": null, "image": "blake3:11", "bytes": IMAGE_SIZE,
            "written": amount(IMAGE_SIZE), "zeroed": amount(0), "unchanged": amount(0),
            "compared": amount(0), "read_back": amount(read_back), "transferred": 1,
            "sources": [],
            "times": { "compare_ms": 0, "fetch_ms": 1, "write_ms": 1, "verify_ms": 1 },
            "duration_ms": 1, "peak_memory": 0,
        }),
    }
}

fn order() -> Inputs {
    Inputs::Agent(Box::new(anneal_protocol::agent::AgentAction::StreamImage {
        image: "blake3:11".into(),
        disk: machine().disk_selector(),
        verify: anneal_protocol::agent::Verify::Full,
        stall_timeout_ms: anneal_protocol::agent::stall_timeout_ms(),
        options: anneal_protocol::agent::StreamOptions::default(),
    }))
}

fn tell(s: &mut Snapshot, result: &StepResult, now: Millis) -> bool {
    let inputs = (result.order.step == 1).then(order);
    match apply_result(s, result, inputs.as_ref(), now) {
        ResultVerdict::Apply(change) => {
            apply(s, *change);
            true
        }
        ResultVerdict::Ignore => false,
    }
}

fn give(s: &mut Snapshot, boot: &str, now: Millis) -> usize {
    let idx = order_ready(s, boot, now).expect("an order");
    let change = dispatch(s, idx, boot, "digest", now).expect("same inputs");
    apply(s, *change);
    idx
}

/// A run whose agent `b1` has fetched `stream-image` at second 30.
fn streaming() -> Snapshot {
    let mut s = snapshot(INSTALL);
    let Decision::Act(command) = settle_down(&mut s, at(0)) else {
        panic!("netboot asks the BMC");
    };
    assert_eq!((command.act, command.idx), (Act::Netboot, 0));
    let change = settle(&s, command, &Done::Yes, at(5)).unwrap();
    apply(&mut s, change);
    assert!(matches!(settle_down(&mut s, at(5)), Decision::Wait(_)));
    hello(&mut s, "b1", at(30));
    assert!(matches!(settle_down(&mut s, at(30)), Decision::Wait(_)));
    assert_eq!(give(&mut s, "b1", at(30)), 1);
    s
}

#[test]
fn netboot_repeats_a_power_cycle_that_may_not_have_happened() {
    let mut s = snapshot(INSTALL);
    assert!(matches!(settle_down(&mut s, at(0)), Decision::Act(_)));
    // The daemon died between asking and hearing. Nothing was seen: ask again.
    assert!(matches!(settle_down(&mut s, at(9)), Decision::Act(_)));
    // An installed system renewing its lease is no sign of a start.
    see(
        &mut s,
        kind::DHCP_ACK,
        at(10),
        serde_json::json!({ "stage": "system" }),
    );
    assert!(matches!(settle_down(&mut s, at(10)), Decision::Act(_)));
    see(
        &mut s,
        kind::DHCP_ACK,
        at(11),
        serde_json::json!({ "stage": "firmware" }),
    );
    let Decision::Wait(waiting) = settle_down(&mut s, at(11)) else {
        panic!("the firmware was seen");
    };
    assert_eq!(waiting.until, Some(at(600)));
}

#[test]
fn netboot_fails_after_its_retries_and_evidence_needs_an_agent() {
    let mut s = snapshot(INSTALL);
    settle_down(&mut s, at(0));
    assert!(matches!(settle_down(&mut s, at(600)), Decision::Wait(_)));
    assert_eq!(s.steps[0].state, StepState::Pending);
    // A hello that comes between two attempts counts.
    let mut lucky = s.clone();
    hello(&mut lucky, "b1", at(601));
    settle_down(&mut lucky, at(601));
    assert_eq!(lucky.steps[0].state, StepState::Succeeded);
    assert!(matches!(settle_down(&mut s, at(605)), Decision::Act(_)));
    assert_eq!(settle_down(&mut s, at(1205)), Decision::Over);
    assert_eq!(s.run.state, RunState::Failed);
    assert_eq!(
        s.run.reason,
        "step `netboot` failed: the agent did not start within 10m (after 2 attempts)"
    );
    assert_eq!(s.steps[4].state, StepState::Skipped);
}

#[test]
fn a_bmc_failure_is_retried_only_if_that_can_help() {
    for (retryable, state) in [(true, RunState::Running), (false, RunState::Failed)] {
        let mut s = snapshot(INSTALL);
        let Decision::Act(command) = settle_down(&mut s, at(0)) else {
            panic!("netboot asks the BMC");
        };
        let failed = Done::Failed {
            reason: "BMC: 401".into(),
            retryable,
        };
        let change = settle(&s, command, &failed, at(1)).unwrap();
        apply(&mut s, change);
        settle_down(&mut s, at(1));
        assert_eq!(s.run.state, state);
        assert_eq!(settle(&s, command, &Done::Yes, at(2)), None, "too late");
    }
}

#[test]
fn a_restart_in_the_middle_loses_the_attempt_and_its_result() {
    let mut s = streaming();
    hello(&mut s, "b2", at(60));
    assert!(matches!(settle_down(&mut s, at(60)), Decision::Wait(_)));
    assert_eq!(
        (s.steps[1].attempt, s.steps[1].state),
        (2, StepState::Running)
    );
    assert!(!tell(
        &mut s,
        &result(1, 1, "b1", streamed(IMAGE_SIZE)),
        at(61)
    ));
    assert_eq!(order_ready(&s, "b1", at(61)), None);
    assert_eq!(give(&mut s, "b2", at(62)), 1);
    assert!(!wanted(&s, 1, 1, "b1"));
    assert!(tell(
        &mut s,
        &result(1, 2, "b2", streamed(IMAGE_SIZE)),
        at(90)
    ));
    assert_eq!(s.steps[1].state, StepState::Succeeded);
}

#[test]
fn a_silent_agent_is_booted_again() {
    let mut s = streaming();
    s.presence.seen = at(100);
    assert!(matches!(settle_down(&mut s, at(159)), Decision::Wait(_)));
    let Decision::Act(command) = settle_down(&mut s, at(160)) else {
        panic!("power: {s:?}");
    };
    assert_eq!((command.act, command.idx), (Act::Netboot, 1));
    assert!(wants_agent(&s));
    let change = settle(&s, command, &Done::Yes, at(165)).unwrap();
    apply(&mut s, change);
    let Decision::Wait(waiting) = settle_down(&mut s, at(165)) else {
        panic!("waits");
    };
    assert_eq!(waiting.what, "the agent to start again");
    hello(&mut s, "b2", at(190));
    settle_down(&mut s, at(190));
    assert_eq!(
        (s.steps[1].attempt, s.steps[1].state),
        (2, StepState::Running)
    );
    assert_eq!(give(&mut s, "b2", at(190)), 1);
}

#[test]
fn an_agent_that_never_comes_back_ends_the_run() {
    let mut s = streaming();
    let mut now = 30;
    while s.run.state.is_active() {
        now += 30;
        assert!(now < 3700, "does not end");
        if let Decision::Act(command) = settle_down(&mut s, at(now))
            && let Some(change) = settle(&s, command, &Done::Yes, at(now))
        {
            apply(&mut s, change);
        }
    }
    assert_eq!(s.run.state, RunState::Failed);
    assert!(
        s.run.reason.contains("did not start again"),
        "{}",
        s.run.reason
    );
}

#[test]
fn a_success_that_cannot_be_right_is_none() {
    for outcome in [
        streamed(IMAGE_SIZE - 1),
        Outcome::Succeeded {
            output: serde_json::json!({}),
        },
        Outcome::Leaving,
    ] {
        let mut s = streaming();
        tell(&mut s, &result(1, 1, "b1", outcome), at(60));
        assert_ne!(s.steps[1].state, StepState::Succeeded);
    }
}

#[test]
fn other_inputs_are_refused() {
    let mut s = streaming();
    hello(&mut s, "b2", at(60));
    settle_down(&mut s, at(60));
    let idx = order_ready(&s, "b2", at(60)).unwrap();
    let change = dispatch(&s, idx, "b2", "other", at(60)).unwrap_err();
    assert_eq!(change.steps[1].state, StepState::Failed);
    assert!(
        change.run.reason.contains("inputs are not those"),
        "{}",
        change.run.reason
    );
}

#[test]
fn keys_of_meta_that_nobody_ordered_are_not_believed() {
    let ordered = Inputs::Agent(Box::new(AgentAction::WriteTalosMeta {
        disk: machine().disk_selector(),
        values: vec![MetaValue {
            key: 0xa,
            contents_base64: "eA==".into(),
        }],
    }));
    for (set, state) in [
        (serde_json::json!([10]), StepState::Succeeded),
        (serde_json::json!([10, 11]), StepState::Pending),
        (serde_json::json!([]), StepState::Pending),
    ] {
        let mut s = streaming();
        let output = serde_json::json!({
            "partition": "vda4", "set": set, "kept": [17], "fresh": false,
        });
        let told = result(1, 1, "b1", Outcome::Succeeded { output });
        let verdict = apply_result(&s, &told, Some(&ordered), at(60));
        let ResultVerdict::Apply(change) = verdict else {
            panic!("the attempt is under way");
        };
        apply(&mut s, *change);
        assert_eq!(s.steps[1].state, state, "{}", s.steps[1].reason);
    }
}

#[test]
fn reboot_succeeds_at_the_next_sign_of_life_only() {
    let left = || {
        let mut s = streaming();
        tell(&mut s, &result(1, 1, "b1", streamed(IMAGE_SIZE)), at(60));
        settle_down(&mut s, at(60));
        assert!(wants_agent(&s));
        assert_eq!(give(&mut s, "b1", at(60)), 2);
        assert!(wants_agent(&s), "until it leaves");
        assert!(tell(&mut s, &result(2, 1, "b1", Outcome::Leaving), at(61)));
        assert!(
            !tell(&mut s, &result(2, 1, "b1", Outcome::Leaving), at(61)),
            "told before"
        );
        assert!(
            counted(&s, &result(2, 1, "b1", Outcome::Leaving)),
            "it may go"
        );
        assert!(!counted(&s, &result(2, 1, "b0", Outcome::Leaving)));
        assert!(!counted(&s, &result(2, 0, "b1", Outcome::Leaving)));
        let mut cancelled = s.clone();
        apply(&mut cancelled, cancel(&s, at(61)));
        assert!(!counted(&cancelled, &result(2, 1, "b1", Outcome::Leaving)));
        assert!(!wants_agent(&s));
        settle_down(&mut s, at(61));
        assert_eq!(s.steps[2].state, StepState::Leaving);
        s
    };
    for (kind, data) in [
        (kind::BOOT_SCRIPT, serde_json::json!({ "target": "disk" })),
        (kind::DHCP_ACK, serde_json::json!({ "stage": "firmware" })),
        (kind::DHCP, serde_json::json!({ "stage": "system" })),
        (kind::PHONE_HOME, serde_json::json!({})),
    ] {
        let mut s = left();
        see(&mut s, kind, at(70), data);
        settle_down(&mut s, at(70));
        assert_eq!(s.steps[2].state, StepState::Succeeded, "{kind}");
        assert!(!wants_agent(&s));
    }
    let mut agent_again = left();
    see(
        &mut agent_again,
        kind::BOOT_SCRIPT,
        at(70),
        serde_json::json!({ "target": "agent" }),
    );
    hello(&mut agent_again, "b2", at(75));
    settle_down(&mut agent_again, at(75));
    assert_eq!(agent_again.steps[2].state, StepState::Pending);
    assert!(
        agent_again.steps[2]
            .reason
            .contains("came back to the agent")
    );
    let mut gone = left();
    let Decision::Act(command) = settle_down(&mut gone, at(361)) else {
        panic!("boots the agent to try again");
    };
    assert_eq!((command.act, command.idx), (Act::Netboot, 2));
    assert!(wants_agent(&gone));
}
