//! An agent that was taken for lost and speaks again.

use super::*;

/// A run of a machine without a BMC whose agent `b1` was taken for lost at 160 s.
fn lost_by_hand() -> Snapshot {
    let mut s = streaming();
    s.plan.machine.bmc = None;
    s.presence.seen = at(100);
    let Decision::Wait(waiting) = settle_down(&mut s, at(160)) else {
        panic!("waits for a person: {s:?}");
    };
    assert!(waiting.what.contains("by hand"), "{}", waiting.what);
    assert!(!wanted(&s, 1, 1, "b1"));
    s
}

fn welcome(s: &mut Snapshot, boot: &str, asks: bool, now: Millis) -> bool {
    let change = returned(s, boot, asks, now);
    let taken = change.is_some();
    if let Some(change) = change {
        apply(s, change);
        s.presence.seen = now;
        s.presence.asked = if asks { now } else { s.presence.asked };
    }
    taken
}

#[test]
fn a_silent_agent_that_speaks_again_goes_on_with_its_attempt() {
    let mut s = lost_by_hand();
    assert!(welcome(&mut s, "b1", false, at(200)));
    assert!(matches!(settle_down(&mut s, at(200)), Decision::Wait(_)));
    assert!(wanted(&s, 1, 1, "b1"));
    assert!(tell(
        &mut s,
        &result(1, 1, "b1", streamed(IMAGE_SIZE)),
        at(210)
    ));
    assert_eq!(
        (s.steps[1].attempt, s.steps[1].state),
        (1, StepState::Succeeded)
    );
    // It may also ask again for what it had: its order was lost on the way.
    let mut s = lost_by_hand();
    assert!(welcome(&mut s, "b1", true, at(200)));
    assert_eq!(order_ready(&s, "b1", at(200)), Some(1));
    assert_eq!(s.steps[1].attempt, 1);
}

#[test]
fn a_silent_agent_is_not_taken_back_when_anything_happened() {
    let mut other = lost_by_hand();
    hello(&mut other, "b2", at(190));
    assert!(!welcome(&mut other, "b1", true, at(200)), "another boot");
    let mut restarted = lost_by_hand();
    let script = serde_json::json!({ "target": "agent" });
    see(&mut restarted, kind::BOOT_SCRIPT, at(170), script);
    assert!(
        !welcome(&mut restarted, "b1", true, at(200)),
        "a boot script"
    );
    let mut stranger = lost_by_hand();
    assert!(
        !welcome(&mut stranger, "b9", true, at(200)),
        "an unknown boot"
    );
    let mut reopened = lost_by_hand();
    let change = fail_now(&reopened, "by the test", at(180));
    apply(&mut reopened, change);
    let change = reopen(&reopened, at(190)).unwrap();
    apply(&mut reopened, change);
    assert!(!welcome(&mut reopened, "b1", false, at(200)), "reopened");
    let mut cycled = streaming();
    cycled.presence.seen = at(100);
    assert!(matches!(
        settle_down(&mut cycled, at(160)),
        Decision::Act(_)
    ));
    assert!(!welcome(&mut cycled, "b1", true, at(161)), "power cycle");
    // Too late for the attempt, but not for the next one.
    let mut late = lost_by_hand();
    let after = late.steps[1].scratch.lost.clone().unwrap().deadline;
    let after = Millis(after.0.min(at(700).0));
    late.steps[1].scratch.lost.as_mut().unwrap().deadline = after;
    assert!(
        !welcome(&mut late, "b1", false, after),
        "the attempt is over"
    );
    assert!(welcome(&mut late, "b1", true, after));
    settle_down(&mut late, after);
    assert_eq!(
        (late.steps[1].attempt, late.steps[1].state),
        (2, StepState::Running)
    );
    assert_eq!(give(&mut late, "b1", after), 1);
}

/// It did not hear that it may leave, and is told later that it may not.
#[test]
fn an_agent_that_did_not_leave_is_taken_back_for_the_next_attempt() {
    let mut s = streaming();
    s.plan.machine.bmc = None;
    assert!(tell(
        &mut s,
        &result(1, 1, "b1", streamed(IMAGE_SIZE)),
        at(60)
    ));
    settle_down(&mut s, at(60));
    assert_eq!(give(&mut s, "b1", at(60)), 2);
    let leaving = result(2, 1, "b1", Outcome::Leaving);
    assert!(tell(&mut s, &leaving, at(61)));
    let Decision::Wait(waiting) = settle_down(&mut s, at(361)) else {
        panic!("waits for a person: {s:?}");
    };
    assert!(waiting.what.contains("by hand"), "{}", waiting.what);
    // The attempt is over for it.
    assert!(!welcome(&mut s, "b1", false, at(400)));
    assert!(!tell(&mut s, &leaving, at(400)));
    assert!(!counted(&s, &leaving));
    // One that went through its firmware meanwhile is another boot.
    let mut gone = s.clone();
    let stage = serde_json::json!({ "stage": "firmware" });
    see(&mut gone, kind::DHCP_ACK, at(390), stage);
    assert!(!welcome(&mut gone, "b1", true, at(401)));
    assert!(welcome(&mut s, "b1", true, at(401)));
    settle_down(&mut s, at(401));
    assert_eq!(
        (s.steps[2].attempt, s.steps[2].state),
        (2, StepState::Running)
    );
    assert_eq!(give(&mut s, "b1", at(401)), 2);
}

#[test]
fn only_a_step_that_leaves_lets_the_agent_leave() {
    let verdict = |s: &Snapshot, told: &StepResult, inputs: Option<&Inputs>| {
        let ResultVerdict::Apply(change) = apply_result(s, told, inputs, at(61)) else {
            panic!("the attempt is under way");
        };
        (leaves(&change, told), change)
    };
    let mut s = streaming();
    let told = result(1, 1, "b1", Outcome::Leaving);
    assert!(!verdict(&s, &told, Some(&order())).0);
    let written = result(1, 1, "b1", streamed(IMAGE_SIZE));
    assert!(tell(&mut s, &written, at(60)));
    settle_down(&mut s, at(60));
    assert_eq!(give(&mut s, "b1", at(60)), 2);
    let told = result(2, 1, "b1", Outcome::Leaving);
    let (may_leave, change) = verdict(&s, &told, None);
    assert!(may_leave);
    apply(&mut s, *change);
    assert!(counted(&s, &told));
}
