//! A machine that leaves into a loaded kernel: what says that it started, and what says that it did not.

use super::*;
use crate::workflow::caller::Caller;

/// The agent has left at 61 s, in this attempt.
fn left(attempt: u32) -> Snapshot {
    let mut s = snapshot(&INSTALL.replace(
        "{ uses: reboot,",
        "{ uses: kexec, with: { partition: { label: ESP }, kernel: /vmlinuz, cmdline: quiet },",
    ));
    settle_down(&mut s, at(0));
    for idx in 0..2 {
        s.steps[idx].state = StepState::Succeeded;
    }
    hello(&mut s, "b1", at(10));
    let row = &mut s.steps[2];
    row.state = StepState::Leaving;
    row.attempt = attempt;
    row.attempt_at = Some(at(60));
    row.scratch.left_at = Some(at(61));
    row.deadline = Some(at(360));
    s
}

fn firmware(s: &mut Snapshot, when: Millis) {
    let stage = serde_json::json!({ "stage": "firmware" });
    see(s, kind::DHCP_ACK, when, stage);
}

#[test]
fn the_started_system_ends_the_step() {
    let mut s = left(1);
    // How the machine came to the agent says nothing of what followed.
    firmware(&mut s, at(5));
    let Decision::Wait(waiting) = settle_down(&mut s, at(62)) else {
        panic!("nothing was seen yet")
    };
    assert_eq!(waiting.what, "r1n1 to start the kernel that was loaded");
    for (kind, data) in [
        (kind::DHCP, serde_json::json!({ "stage": "system" })),
        (kind::PHONE_HOME, serde_json::json!({})),
    ] {
        let mut s = left(1);
        see(&mut s, kind, at(70), data);
        settle_down(&mut s, at(70));
        assert_eq!(s.steps[2].state, StepState::Succeeded, "{kind}");
        assert!(!wants_agent(&s));
    }
}

#[test]
fn firmware_says_that_the_kernel_did_not_start() {
    for (kind, data) in [
        (kind::DHCP_ACK, serde_json::json!({ "stage": "firmware" })),
        (kind::BOOT_SCRIPT, serde_json::json!({ "target": "disk" })),
    ] {
        let mut s = left(1);
        see(&mut s, kind, at(70), data);
        let Decision::Act(command) = settle_down(&mut s, at(70)) else {
            panic!("{kind}: boots the agent to try again: {s:?}");
        };
        assert_eq!((command.act, command.idx), (Act::Netboot, 2));
        assert!(wants_agent(&s));
        let reason = &s.steps[2].reason;
        assert!(reason.contains("went through its firmware"), "{reason}");
    }
    let mut last = left(2);
    firmware(&mut last, at(70));
    settle_down(&mut last, at(70));
    assert_eq!(last.run.state, RunState::Failed);
    assert_eq!(
        last.run.reason,
        "step `kexec` failed: the machine went through its firmware: the kernel that was loaded did not start, or did not stay up (after 2 attempts)"
    );
    assert!(!wants_agent(&last));
}

#[test]
fn a_system_that_calls_home_is_believed_whatever_else_was_seen() {
    let mut s = left(1);
    firmware(&mut s, at(70));
    see(&mut s, kind::PHONE_HOME, at(80), serde_json::json!({}));
    settle_down(&mut s, at(80));
    assert_eq!(s.run.state, RunState::Succeeded, "{}", s.run.reason);
}

#[test]
fn a_system_that_calls_home_later_is_believed_too() {
    for by_hand in [false, true] {
        let mut s = left(1);
        if by_hand {
            s.plan.machine.bmc = None;
        }
        firmware(&mut s, at(70));
        settle_down(&mut s, at(70));
        assert_eq!(s.steps[2].state, StepState::Pending);
        assert_eq!(listens_to(&s), Ok(Some(Caller::Token)));
        // What was said before this attempt is about an earlier system.
        see(&mut s, kind::PHONE_HOME, at(50), serde_json::json!({}));
        settle_down(&mut s, at(199));
        assert_eq!(s.steps[2].state, StepState::Pending);
        see(&mut s, kind::PHONE_HOME, at(200), serde_json::json!({}));
        settle_down(&mut s, at(200));
        assert_eq!(s.steps[2].state, StepState::Succeeded, "{by_hand}");
        assert!(!wants_agent(&s));
        assert_eq!(s.run.state, RunState::Succeeded, "{}", s.run.reason);
    }
}

#[test]
fn firmware_never_ends_the_step() {
    let mut s = left(1);
    // In the very moment in which the agent left.
    firmware(&mut s, at(61));
    let decision = settle_down(&mut s, at(62));
    assert!(matches!(decision, Decision::Wait(_)), "{decision:?}");
    assert_eq!(s.steps[2].state, StepState::Leaving);
}
