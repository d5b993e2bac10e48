//! Who ends a wait for the installed system, and when it is listened to.

use super::*;
use crate::workflow::caller::Caller;

/// The agent has left at 61 s; the run waits as `with` says once the machine is seen.
fn left(with: &str) -> Snapshot {
    let text = INSTALL.replace(
        "wait-phone-home,",
        &format!("wait-phone-home, with: {with},"),
    );
    let mut s = snapshot(&text);
    settle_down(&mut s, at(0));
    for idx in 0..2 {
        s.steps[idx].state = StepState::Succeeded;
    }
    hello(&mut s, "b1", at(10));
    s.steps[2].state = StepState::Leaving;
    s.steps[2].attempt = 1;
    s.steps[2].attempt_at = Some(at(60));
    s.steps[2].scratch.left_at = Some(at(61));
    s.steps[2].deadline = Some(at(360));
    s
}

fn waits(with: &str) -> Snapshot {
    let mut s = left(with);
    see(
        &mut s,
        kind::BOOT_SCRIPT,
        at(70),
        serde_json::json!({ "target": "disk" }),
    );
    settle_down(&mut s, at(70));
    assert_eq!(s.current(), Some(3), "{s:?}");
    s
}

#[test]
fn only_whom_the_step_names_ends_it() {
    let all = [
        ("token", Caller::Token),
        ("talos", Caller::Talos),
        ("kairos", Caller::Kairos),
    ];
    for (word, by) in all {
        for (_, other) in all {
            let mut s = waits(&format!("{{ by: {word} }}"));
            assert_eq!(listens_to(&s), Ok(Some(by)));
            let said = serde_json::json!({ "hostname": "r1n1" });
            see(&mut s, other.says(), at(100), said);
            settle_down(&mut s, at(100));
            assert_eq!(
                s.run.state == RunState::Succeeded,
                by == other,
                "{word} {other:?}"
            );
        }
        let mut s = waits(&format!("{{ by: {word} }}"));
        see(&mut s, by.says(), at(50), serde_json::json!({}));
        settle_down(&mut s, at(100));
        assert_eq!(
            s.run.state,
            RunState::Running,
            "said before it was installed"
        );
        settle_down(&mut s, at(2_000));
        assert!(s.run.reason.contains(by.missed()), "{}", s.run.reason);
    }
}

#[test]
fn listens_from_the_moment_the_machine_leaves() {
    let mut s =
        snapshot(&INSTALL.replace("wait-phone-home,", "wait-phone-home, with: { by: talos },"));
    settle_down(&mut s, at(0));
    assert_eq!(
        listens_to(&s),
        Err(Caller::Talos),
        "an older system may still run"
    );
    assert_eq!(listens_to(&left("{ by: talos }")), Ok(Some(Caller::Talos)));
    let mut over = waits("{ by: talos }");
    over.run.state = RunState::Failed;
    assert_eq!(listens_to(&over), Ok(None));
    // What it says on its way is also a sign that it left.
    let mut s = left("{ by: talos }");
    see(&mut s, kind::TALOS_EVENT, at(90), serde_json::json!({}));
    settle_down(&mut s, at(90));
    assert_eq!(s.steps[2].state, StepState::Succeeded);
}

#[test]
fn the_api_port_is_looked_at_when_half_the_time_went_by_in_silence() {
    let with = "{ by: talos, fallback: api-port }";
    let mut s = waits(with);
    let Decision::Wait(waiting) = settle_down(&mut s, at(71)) else {
        panic!("waits for events first")
    };
    // 15 minutes from the 70th second.
    assert_eq!(waiting.look_at, Some(at(70 + 450)));
    let Decision::Act(command) = settle_down(&mut s, at(70 + 450)) else {
        panic!("looks")
    };
    assert_eq!(command.act, Act::LookApi);
    assert_eq!(settle(&s, command, &Done::NotYet, at(521)), None);
    let mut talks = s.clone();
    let status = serde_json::json!({ "said": "running, not ready: etcd: not healthy" });
    see(&mut talks, kind::TALOS_STATUS, at(530), status);
    let Decision::Wait(waiting) = settle_down(&mut talks, at(540)) else {
        panic!("a sink that works is believed")
    };
    assert!(
        waiting
            .what
            .ends_with("(it says: running, not ready: etcd: not healthy)")
    );
    see(
        &mut s,
        kind::TALOS_READY,
        at(540),
        serde_json::json!({ "evidence": "api-port" }),
    );
    settle_down(&mut s, at(540));
    assert_eq!(s.run.state, RunState::Succeeded);
    let mut without = waits("{ by: talos }");
    assert!(matches!(
        settle_down(&mut without, at(800)),
        Decision::Wait(_)
    ));
}
