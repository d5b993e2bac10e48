//! Whatever happens, in whatever order: nothing is claimed that was not done, and it ends.

use proptest::prelude::*;

use super::*;

/// Something that happens to a run.
#[derive(Debug, Clone)]
enum Happening {
    Time(i64),
    Hello,
    Speaks,
    BmcSays(bool),
    Fetch,
    Tells { old: bool, outcome: u8 },
    Seen(u8),
    Killed,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (1..400_i64).prop_map(Happening::Time),
        Just(Happening::Hello),
        Just(Happening::Speaks),
        any::<bool>().prop_map(Happening::BmcSays),
        Just(Happening::Fetch),
        Just(Happening::Fetch),
        (any::<bool>(), 0..4_u8).prop_map(|(old, outcome)| Happening::Tells { old, outcome }),
        (0..4_u8).prop_map(Happening::Seen),
        Just(Happening::Killed),
    ]
}

/// Lets one thing happen. Returns the attempt of step 1 that honestly succeeded, if one did.
fn happen(s: &mut Snapshot, what: &Happening, now: &mut i64, boots: &mut u32) -> Option<u32> {
    let decision = settle_down(s, at(*now));
    match what {
        Happening::Time(seconds) => *now += seconds,
        Happening::Hello => {
            *boots += 1;
            *now += 1;
            hello(s, &format!("b{boots}"), at(*now));
        }
        Happening::Speaks => {
            s.presence = Presence {
                seen: at(*now),
                asked: at(*now),
            }
        }
        Happening::BmcSays(yes) => {
            if let Decision::Act(command) = decision {
                let failed = Done::Failed {
                    reason: "500".into(),
                    retryable: true,
                };
                let done = if *yes { Done::Yes } else { failed };
                if let Some(change) = settle(s, command, &done, at(*now)) {
                    apply(s, change);
                }
            }
        }
        Happening::Fetch => {
            let boot = format!("b{boots}");
            if let Some(idx) = order_ready(s, &boot, at(*now)) {
                let change = dispatch(s, idx, &boot, "digest", at(*now)).expect("same inputs");
                apply(s, *change);
            }
        }
        Happening::Tells { old, outcome } => {
            let idx = s.current()?;
            let attempt = s.steps[idx].attempt;
            let told = if *old {
                attempt.saturating_sub(1)
            } else {
                attempt
            };
            let outcome = match outcome {
                0 => streamed(IMAGE_SIZE),
                1 => streamed(IMAGE_SIZE - 1),
                2 => Outcome::Leaving,
                _ => Outcome::Failed(StepFailure {
                    code: FailureCode::Internal,
                    message: "no".into(),
                    retryable: true,
                }),
            };
            let honest = idx == 1 && outcome == streamed(IMAGE_SIZE);
            let step = u32::try_from(idx).expect("small");
            let taken = tell(
                s,
                &result(step, told, &format!("b{boots}"), outcome),
                at(*now),
            );
            return (taken && honest).then_some(told);
        }
        Happening::Seen(which) => {
            *now += 1;
            let (kind, data) = match which {
                0 => (kind::BOOT_SCRIPT, serde_json::json!({ "target": "disk" })),
                1 => (kind::DHCP_ACK, serde_json::json!({ "stage": "firmware" })),
                2 => (kind::DHCP_ACK, serde_json::json!({ "stage": "system" })),
                _ => (kind::PHONE_HOME, serde_json::json!({})),
            };
            see(s, kind, at(*now), data);
        }
        Happening::Killed => {
            s.presence = Presence {
                seen: at(*now),
                asked: at(*now),
            };
        }
    }
    None
}

proptest! {
    #[test]
    fn never_claims_a_write_and_always_ends(history in prop::collection::vec(happening(), 1..120)) {
        let mut s = snapshot(INSTALL);
        let (mut now, mut boots) = (0, 0);
        let mut honest = Vec::new();
        for what in &history {
            honest.extend(happen(&mut s, what, &mut now, &mut boots));
            if s.steps[1].state == StepState::Succeeded {
                prop_assert!(honest.contains(&s.steps[1].attempt), "{:?}", s.steps[1]);
            }
            prop_assert!(s.run.state.is_active() || !wants_agent(&s));
            if s.run.state == RunState::Succeeded {
                prop_assert_eq!(s.steps[1].state, StepState::Succeeded);
                prop_assert_eq!(s.steps[3].state, StepState::Succeeded);
            }
        }
        // Left alone, it ends: the whole run has a deadline, and so has everything after it.
        for _ in 0..500 {
            now += 60;
            if let Decision::Act(command) = settle_down(&mut s, at(now))
    && let Some(change) = settle(&s, command, &Done::Yes, at(now))
{
    apply(&mut s, change);
            }
        }
        prop_assert!(!s.run.state.is_active(), "{:?}", s);
    }
}
