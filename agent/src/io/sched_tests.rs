//! The scheduler alone: time is a number, sources are a script.

use proptest::prelude::*;

use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One frame a run.
fn scheduler(tiers: &[u8], slots: usize, frames: usize) -> Scheduler {
    let runs = (0..frames).map(|frame| frame..frame + 1).collect();
    Scheduler::new(Policy::default(), tiers, slots, vec![true; frames], runs)
}

fn fetch(scheduler: &mut Scheduler, slot: usize, now: Duration) -> (usize, Range<usize>) {
    match scheduler.next(slot, now) {
        Step::Fetch { source, frames } => (source, frames),
        other => panic!("{other:?}"),
    }
}

#[test]
fn mirrors_share_the_work_and_the_last_resort_waits() {
    let mut s = scheduler(&[0, 0, 2], 4, 9);
    let sources: Vec<usize> = (0..4).map(|slot| fetch(&mut s, slot, secs(0)).0).collect();
    assert_eq!(sources, [0, 1, 0, 1]);
}

#[test]
fn a_source_that_fails_is_tried_again_later_and_then_comes_last() {
    let mut s = scheduler(&[0, 1], 2, 9);
    let now = secs(1);
    assert_eq!(fetch(&mut s, 0, now), (0, 0..1));
    s.ended(0, Err(Fault::Busy(503)), now);
    // Its frame goes to the other one.
    assert_eq!(fetch(&mut s, 0, now), (1, 0..1));
    assert!(!s.got(0, 0, 10, now));
    s.ended(0, Ok(()), now);
    // After the pause it gets another chance, one connection only.
    let later = now + Policy::default().first_pause;
    assert_eq!(fetch(&mut s, 0, later), (0, 1..2));
    assert_eq!(fetch(&mut s, 1, later), (1, 2..3));
    s.ended(0, Err(Fault::Cut { at: 7 }), later);
    // Twice: last, even when it may be asked again.
    assert_eq!(fetch(&mut s, 0, later + secs(60)), (1, 1..2));
}

#[test]
fn slots_that_fail_together_are_one_failure() {
    let mut s = scheduler(&[0], 4, 9);
    for slot in 0..4 {
        fetch(&mut s, slot, secs(0));
    }
    (0..4).for_each(|slot| s.ended(slot, Err(Fault::Cut { at: 0 }), secs(1)));
    assert_eq!(s.sources()[0].faults, 4);
    let pause = Policy::default().first_pause;
    assert_eq!(s.next(0, secs(1)), Step::Wait(Some(pause)));
    assert_eq!(fetch(&mut s, 0, secs(1) + pause), (0, 3..4));
    // The others wait for the outcome.
    assert_eq!(s.next(1, secs(1) + pause), Step::Wait(None));
}

#[test]
fn wrong_bytes_drop_a_source_at_once() {
    let mut s = scheduler(&[0, 0], 2, 4);
    assert_eq!(fetch(&mut s, 0, secs(0)), (0, 0..1));
    s.got(0, 0, 10, secs(0));
    s.ended(0, Ok(()), secs(0));
    s.wrong(0, 0, secs(0));
    assert!(s.sources()[0].dropped);
    for expected in [0, 1, 2, 3] {
        assert_eq!(fetch(&mut s, 0, secs(99)), (1, expected..expected + 1));
        s.got(0, expected, 10, secs(99));
        s.ended(0, Ok(()), secs(99));
        s.right();
    }
    assert_eq!(s.next(0, secs(99)), Step::Done);
}

#[test]
fn lasting_faults_end_it_soon_and_passing_ones_late() {
    let mut now = secs(0);
    let mut s = scheduler(&[0], 1, 1);
    for _ in 0..3 {
        now += secs(20);
        fetch(&mut s, 0, now);
        s.ended(0, Err(Fault::Refused(404)), now);
    }
    assert_eq!(s.next(0, now), Step::GiveUp);
    assert_eq!(s.culprit(), Some((0, &Fault::Refused(404))));

    let mut s = scheduler(&[0], 1, 1);
    let (mut now, mut tries) = (secs(0), 0);
    loop {
        match s.next(0, now) {
            Step::Fetch { .. } => {
                tries += 1;
                s.ended(0, Err(Fault::Unreachable("no".into())), now);
            }
            Step::Wait(Some(pause)) => now += pause,
            Step::GiveUp => break,
            other => panic!("{other:?}"),
        }
    }
    let patience = Policy::default().patience;
    assert!(tries >= 8 && now >= patience, "{tries} {now:?}");
    assert!(now < patience + secs(30), "{now:?}");
}

#[test]
fn requests_that_overlap_do_not_outlast_the_patience() {
    let patience = Policy::default().patience;
    let mut s = scheduler(&[0, 0], 2, 4);
    // One source or the other is always being asked, and neither answers.
    let lengths = [secs(170), secs(260)];
    let mut ends = [None; 2];
    let mut now = secs(0);
    loop {
        assert!(now < patience + secs(90), "{now:?}");
        for slot in 0..2 {
            if ends[slot].is_some_and(|end| end <= now) {
                s.ended(slot, Err(Fault::Unreachable("no".into())), now);
                ends[slot] = None;
            }
            if ends[slot].is_none() {
                match s.next(slot, now) {
                    Step::Fetch { .. } => ends[slot] = Some(now + lengths[slot]),
                    Step::Wait(_) => {}
                    Step::GiveUp => {
                        assert!(now >= patience, "{now:?}");
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        now += secs(1);
    }
}

#[test]
fn an_idle_slot_takes_half_of_the_longest_run() {
    let mut s = Scheduler::new(
        Policy::default(),
        &[0],
        2,
        vec![true; 10],
        std::iter::once(0..10).collect(),
    );
    assert_eq!(fetch(&mut s, 0, secs(0)), (0, 0..10));
    assert!(s.got(0, 0, 1, secs(0)));
    assert_eq!(fetch(&mut s, 1, secs(0)), (0, 6..10));
    assert!(s.got(0, 1, 1, secs(0)));
    for frame in 2..5 {
        assert!(s.got(0, frame, 1, secs(0)), "{frame}");
    }
    assert!(!s.got(0, 5, 1, secs(0)), "the rest was given away");
}

#[test]
fn a_slow_source_comes_last() {
    let mut s = scheduler(&[0, 1], 1, 20);
    let big = SPEED_SAMPLE;
    assert_eq!(fetch(&mut s, 0, secs(0)).0, 0);
    s.got(0, 0, big, secs(100));
    s.ended(0, Err(Fault::Busy(503)), secs(100));
    assert_eq!(fetch(&mut s, 0, secs(100)).0, 1);
    s.got(0, 1, big, secs(101));
    s.ended(0, Ok(()), secs(101));
    // A hundred times slower, though of the better tier.
    assert_eq!(fetch(&mut s, 0, secs(200)).0, 1);
}

/// What a source does with a request.
#[derive(Debug, Clone, Copy)]
enum Mood {
    Serves,
    Cuts,
    Refuses,
    Lies,
}

proptest! {
    /// Whatever the others do, with one good source every frame comes exactly once and right;
    /// without any, it ends all the same.
    #[test]
    fn every_frame_comes_or_it_is_given_up(
        moods in prop::collection::vec(
            prop::sample::select(vec![Mood::Serves, Mood::Cuts, Mood::Refuses, Mood::Lies]), 1..5),
        tiers in prop::collection::vec(0_u8..3, 5),
        wanted in prop::collection::vec(any::<bool>(), 1..40),
        slots in 1_usize..5,
        run in 1_usize..6,
        choices in prop::collection::vec(any::<u8>(), 64),
    ) {
        let frames = wanted.len();
        let runs: Vec<_> = (0..frames)
            .step_by(run)
            .map(|at| at..(at + run).min(frames))
            .filter(|run| wanted[run.clone()].contains(&true))
            .collect();
        let mut s = Scheduler::new(
            Policy::default(), &tiers[..moods.len()], slots, wanted.clone(), runs,
        );
        let mut busy: Vec<Option<(usize, Range<usize>)>> = vec![None; slots];
        let mut right = vec![0; frames];
        let mut lied = vec![false; moods.len()];
        let (mut now, mut turn) = (Duration::ZERO, 0_usize);
        let gave_up = loop {
            turn += 1;
            prop_assert!(turn < 200_000, "never ends");
            let slot = usize::from(choices[turn % choices.len()]).wrapping_add(turn) % slots;
            let Some((source, range)) = busy[slot].clone() else {
                match s.next(slot, now) {
                    Step::Fetch { source, frames } => {
                        prop_assert!(!lied[source], "a liar was asked again");
                        prop_assert!(!frames.is_empty());
                        busy[slot] = Some((source, frames));
                    }
                    Step::Wait(pause) => {
                        let idle = busy.iter().all(Option::is_none);
                        prop_assert!(!idle || pause.is_some(), "waits for nothing");
                        if idle { now += pause.unwrap_or_default(); }
                    }
                    Step::Done => break false,
                    Step::GiveUp => break true,
                }
                continue;
            };
            let frame = range.start;
            let fault = match moods[source] {
                Mood::Cuts if choices[frame % 64] % 3 != 0 => Some(Fault::Cut { at: 0 }),
                Mood::Refuses => Some(Fault::Refused(404)),
                _ => None,
            };
            if let Some(fault) = fault {
                s.ended(slot, Err(fault), now);
                busy[slot] = None;
                continue;
            }
            let needed = s.needs(frame);
            let more = s.got(slot, frame, 100, now);
            if needed {
                if matches!(moods[source], Mood::Lies) {
                    s.wrong(frame, source, now);
                    lied[source] = true;
                } else {
                    right[frame] += 1;
                    s.right();
                }
            }
            if more && frame + 1 < range.end {
                busy[slot] = Some((source, frame + 1..range.end));
            } else {
                s.ended(slot, Ok(()), now);
                busy[slot] = None;
            }
        };
        let good = moods.iter().any(|mood| matches!(mood, Mood::Serves));
        if good || !gave_up {
            prop_assert!(!gave_up, "a good source was there");
            for (frame, count) in right.iter().enumerate() {
                prop_assert_eq!(*count, u32::from(wanted[frame]), "frame {}", frame);
            }
        }
    }
}
