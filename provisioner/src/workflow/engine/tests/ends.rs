//! How runs end and go on, what that means for the machine, and what is said of it.

use super::*;

#[test]
fn a_run_ends_when_its_time_is_up_or_somebody_says_so() {
    let mut late = streaming();
    late.presence.seen = at(3600);
    late.steps[1].deadline = Some(at(9999));
    settle_down(&mut late, at(3600));
    assert_eq!(late.run.state, RunState::Failing, "evidence first");
    assert!(
        late.run.reason.starts_with("the run took longer than 1h"),
        "{}",
        late.run.reason
    );
    let mut cancelled = streaming();
    cancelled.run.cancel = true;
    assert_eq!(settle_down(&mut cancelled, at(40)), Decision::Over);
    assert_eq!(cancelled.run.state, RunState::Cancelled);
    assert!(!wanted(&cancelled, 1, 1, "b1"));
    assert!(!wants_agent(&cancelled));
}

#[test]
fn retry_goes_on_from_the_failed_step_with_new_attempt_numbers() {
    let mut s = streaming();
    let failure = StepFailure {
        code: FailureCode::DiskRefused,
        message: "disk vda is protected".into(),
        retryable: false,
    };
    tell(
        &mut s,
        &result(1, 1, "b1", Outcome::Failed(failure)),
        at(60),
    );
    assert_eq!(s.run.state, RunState::Failing);
    let change = fail_now(&s, "enough", at(61));
    apply(&mut s, change);
    assert_eq!(s.run.state, RunState::Failed);
    s.presence = Presence {
        seen: at(99),
        asked: at(99),
    };
    let change = reopen(&s, at(100)).unwrap();
    let taken = machine_change(&s, &change, at(100)).unwrap();
    assert_eq!(taken.state, MachineState::Provisioning);
    assert!(!taken.void_agents, "it waits for the run to go on");
    let late = machine_change(&s, &change, at(1000)).unwrap();
    assert!(late.void_agents, "nobody heard it for long");
    apply(&mut s, change);
    assert_eq!(s.run.deadline, at(3700));
    assert_eq!(s.steps[0].state, StepState::Succeeded);
    settle_down(&mut s, at(100));
    assert_eq!(
        (s.steps[1].state, s.steps[1].attempt),
        (StepState::Running, 2)
    );
    assert!(!tell(
        &mut s,
        &result(1, 1, "b1", streamed(IMAGE_SIZE)),
        at(101)
    ));
    assert_eq!(give(&mut s, "b1", at(101)), 1);
}

#[test]
fn the_machines_state_says_what_is_true() {
    for (before, wrote, called, after) in [
        (
            MachineState::Registered,
            true,
            true,
            MachineState::Provisioned,
        ),
        (
            MachineState::Provisioned,
            true,
            false,
            MachineState::Registered,
        ),
        (
            MachineState::Provisioned,
            false,
            false,
            MachineState::Provisioned,
        ),
        (MachineState::Failed, false, false, MachineState::Registered),
    ] {
        let mut s = streaming();
        s.plan.state_before = before;
        for row in &mut s.steps {
            row.state = StepState::Skipped;
        }
        s.steps[1].state = if wrote {
            StepState::Succeeded
        } else {
            StepState::Skipped
        };
        s.steps[3].state = if called {
            StepState::Succeeded
        } else {
            StepState::Skipped
        };
        let Decision::Change(change) = decide(&s, at(100)) else {
            panic!("ends");
        };
        assert_eq!(change.run.state, RunState::Succeeded);
        assert_eq!(machine_change(&s, &change, at(100)).unwrap().state, after);
    }
}

#[test]
fn says_in_one_sentence_what_it_waits_for() {
    let mut s = streaming();
    assert_eq!(
        why(&s, at(40)),
        "step 2 `stream-image`, attempt 1 of 3: waits for the agent to finish step `stream-image`, since 00:17:10 UTC, until 00:37:10 UTC"
    );
    s.presence.seen = at(100);
    settle_down(&mut s, at(160));
    assert_eq!(
        why(&s, at(161)),
        "step 2 `stream-image`, attempt 1 of 3: setting one-time network boot and switching the power, until 00:29:20 UTC"
    );
    let change = fail_now(&s, "boot token used twice", at(170));
    apply(&mut s, change);
    assert_eq!(why(&s, at(171)), "boot token used twice");
}
