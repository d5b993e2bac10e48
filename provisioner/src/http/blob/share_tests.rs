//! Who gets the next turn: shares, limits, and that nobody is forgotten.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// Every waiter asks again as soon as its turn is over; the turns of one round end together.
struct Race {
    scheduler: Scheduler,
    now: Instant,
    began: Instant,
    sent: HashMap<&'static str, u64>,
    owner: HashMap<Ticket, &'static str>,
}

impl Race {
    fn new(limits: Limits, turns: usize, crowd: &[(&'static str, u64)]) -> Self {
        let began = Instant::now();
        let mut race = Self {
            scheduler: Scheduler::new(limits, turns, began),
            now: began,
            began,
            sent: HashMap::new(),
            owner: HashMap::new(),
        };
        for (machine, connections) in crowd {
            for _ in 0..*connections {
                let ticket = race.owner.len() as Ticket;
                race.owner.insert(ticket, machine);
                race.scheduler.join(machine, began);
                race.scheduler.ask(machine, ticket, u64::MAX);
            }
        }
        race
    }

    /// Lets `rounds` of turns pass. `takes` says how much of its turn a machine's socket takes.
    fn run(&mut self, rounds: usize, takes: impl Fn(&str, u32) -> u32) {
        for _ in 0..rounds {
            let mut turns = Vec::new();
            loop {
                match self.scheduler.next(self.now) {
                    Next::Turn(ticket, bytes) => turns.push((ticket, bytes)),
                    Next::At(at) if turns.is_empty() => {
                        assert!(at > self.now, "time must pass");
                        self.now = at;
                    }
                    Next::At(_) | Next::Nothing => break,
                }
            }
            assert!(!turns.is_empty(), "somebody is always next");
            for (ticket, bytes) in turns {
                let machine = self.owner[&ticket];
                let sent = takes(machine, bytes);
                *self.sent.entry(machine).or_default() += u64::from(sent);
                self.scheduler.done(ticket, sent);
                self.scheduler.ask(machine, ticket, u64::MAX);
            }
        }
    }

    fn rate(&self, machine: &str) -> f64 {
        self.sent[machine] as f64 / (self.now - self.began).as_secs_f64()
    }
}

fn all(_: &str, bytes: u32) -> u32 {
    bytes
}

#[test]
fn machines_share_alike_however_many_connections_they_have() {
    for turns in [1, 3, 8] {
        let mut race = Race::new(Limits::default(), turns, &[("one", 1), ("many", 40)]);
        race.run(1_000, all);
        let (one, many) = (race.sent["one"], race.sent["many"]);
        // With its one connection, `one` can have one turn at a time and has it in every round.
        let fair = one * (turns as u64 - 1).max(1);
        assert!(
            many.abs_diff(fair) <= 2 * u64::from(SLICE),
            "{turns}: {one} {many}"
        );
    }
}

#[test]
fn the_measure_is_bytes_not_turns() {
    let small = |machine: &str, bytes: u32| {
        if machine == "small" {
            bytes / 16
        } else {
            bytes
        }
    };
    let mut race = Race::new(Limits::default(), 1, &[("small", 1), ("large", 1)]);
    race.run(10_000, small);
    let (small, large) = (race.sent["small"], race.sent["large"]);
    assert!(
        small.abs_diff(large) <= 2 * u64::from(SLICE),
        "{small} {large}"
    );
}

#[test]
fn limits_hold_and_are_used_up() {
    let limits = Limits {
        per_machine: Some(10 * MIB),
        total: None,
    };
    let mut race = Race::new(limits, 8, &[("a", 1), ("b", 12)]);
    race.run(2_000, all);
    for machine in ["a", "b"] {
        let rate = race.rate(machine) / (10 * MIB) as f64;
        assert!((0.95..1.05).contains(&rate), "{machine}: {rate}");
    }
    let limits = Limits {
        per_machine: Some(90 * MIB),
        total: Some(100 * MIB),
    };
    let mut race = Race::new(limits, 8, &[("a", 1), ("b", 12)]);
    race.run(2_000, all);
    for machine in ["a", "b"] {
        let rate = race.rate(machine) / (50 * MIB) as f64;
        assert!((0.9..1.1).contains(&rate), "{machine}: {rate}");
    }
}

#[test]
fn what_one_machine_cannot_use_goes_to_the_others() {
    let limits = Limits {
        per_machine: None,
        total: Some(100 * MIB),
    };
    // `slow` takes a hundredth of what it is given.
    let takes = |machine: &str, bytes: u32| {
        if machine == "slow" {
            bytes / 100
        } else {
            bytes
        }
    };
    let mut race = Race::new(limits, 4, &[("slow", 1), ("quick", 1)]);
    race.run(40_000, takes);
    let rate = (race.rate("slow") + race.rate("quick")) / (100 * MIB) as f64;
    assert!((0.95..1.05).contains(&rate), "{rate}");
}

#[test]
fn who_wants_little_does_not_keep_others_waiting_for_ever() {
    let now = Instant::now();
    let limits = Limits {
        per_machine: None,
        total: Some(MIB),
    };
    let mut scheduler = Scheduler::new(limits, 4, now);
    scheduler.join("large", now);
    scheduler.join("little", now);
    // Empties the bucket.
    scheduler.ask("little", 1, u64::MAX);
    let Next::Turn(1, bytes) = scheduler.next(now) else {
        panic!("the bucket is full")
    };
    scheduler.done(1, bytes);
    scheduler.ask("large", 2, u64::MAX);
    scheduler.ask("little", 1, 1);
    let Next::At(at) = scheduler.next(now + Duration::from_millis(1)) else {
        panic!("`large` is next and must wait")
    };
    assert!(matches!(scheduler.next(at), Next::Turn(2, _)));
}

#[test]
fn an_idle_machine_saves_up_little() {
    let mut race = Race::new(Limits::default(), 1, &[("busy", 1)]);
    race.run(1_000, all);
    let now = race.now;
    race.scheduler.join("late", now);
    race.owner.insert(99, "late");
    race.scheduler.ask("late", 99, u64::MAX);
    race.sent.insert("busy", 0);
    race.run(1_000, all);
    let (busy, late) = (race.sent["busy"], race.sent["late"]);
    assert!(
        late.abs_diff(busy) <= CREDIT + 2 * u64::from(SLICE),
        "{busy} {late}"
    );
}

#[test]
fn the_number_of_turns_is_bounded_and_withdrawals_free_them() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(Limits::default(), 2, now);
    scheduler.join("a", now);
    for ticket in 0..4 {
        scheduler.ask("a", ticket, 5);
    }
    assert_eq!(scheduler.next(now), Next::Turn(0, 5));
    assert_eq!(scheduler.next(now), Next::Turn(1, 5));
    assert_eq!(scheduler.next(now), Next::Nothing);
    scheduler.withdraw("a", 2);
    scheduler.withdraw("a", 1);
    assert_eq!(scheduler.next(now), Next::Turn(3, 5));
    scheduler.done(0, 5);
    scheduler.done(3, 5);
    assert_eq!(scheduler.next(now), Next::Nothing);
    scheduler.leave("a");
    assert!(scheduler.machines.is_empty() && scheduler.out.is_empty());
}

proptest! {
    #[test]
    fn nobody_is_forgotten(
        crowd in proptest::collection::vec(1_u64..6, 1..5),
        rates in (proptest::option::of(100_000_u64..1 << 32), proptest::option::of(100_000_u64..1 << 32)),
        turns in 1_usize..9,
        part in 1_u32..5,
    ) {
        const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
        let crowd: Vec<_> = NAMES.into_iter().zip(crowd).collect();
        let limits = Limits { per_machine: rates.0, total: rates.1 };
        let mut race = Race::new(limits, turns, &crowd);
        race.run(300, |_, bytes| (bytes / part).max(1));
        for (machine, _) in crowd {
            prop_assert!(race.sent.contains_key(machine), "{} never had a turn", machine);
        }
        let sent: u64 = race.sent.values().sum();
        if let Some(total) = limits.total {
            let burst = (total / BURST_PARTS).max(SMALLEST_BURST);
            let bound = (race.now - race.began).as_secs_f64() * total as f64 + burst as f64;
            prop_assert!(sent as f64 <= bound + 1.0, "{} > {}", sent, bound);
        }
    }
}
