//! A small fuzzer for the stable toolchain: mutates seeds until the time is up and reports the
//! first input that panics.
//!
//! Owns: the mutations and the reporting. Each parser is a binary in `src/bin/`, which gives seeds
//! and a closure: `cargo run --bin dhcpv4 -- 60` runs one for 60 seconds, a second argument
//! repeats the random numbers of an earlier run.
//!
//! Not here: coverage guidance. Inputs that are found go into a test of the parser.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest input that mutations make.
const LONGEST: usize = 4096;
/// Values at which parsers go wrong.
const EDGES: [u8; 8] = [0, 1, 4, 16, 17, 127, 254, 255];

/// Runs `parse` on mutations of `seeds` for as many seconds as the first argument says (10).
pub fn run(seeds: &[Vec<u8>], mut parse: impl FnMut(&[u8])) -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let (Ok(seconds), Ok(start)) = (
        arguments.next().unwrap_or(Ok(10)),
        arguments.next().unwrap_or_else(|| Ok(clock())),
    ) else {
        eprintln!("usage: <target> [SECONDS [RANDOM-START]]");
        return ExitCode::from(2);
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random(start | 1);
    let mut runs = 0_u64;
    while Instant::now() < end {
        for _ in 0..1_000 {
            let mut input = random.pick(seeds).clone();
            for _ in 0..=random.below(6) {
                mutate(&mut input, seeds, &mut random);
            }
            input.truncate(LONGEST);
            runs += 1;
            if catch_unwind(AssertUnwindSafe(|| parse(&input))).is_err() {
                let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
                eprintln!("panic in run {runs} from random start {start}; input:\n{hex}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{runs} inputs in {seconds} s, no panic");
    ExitCode::SUCCESS
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.push(random.byte());
    }
    let at = random.below(input.len());
    match random.below(8) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.byte(),
        2 => input[at] = *random.pick(&EDGES),
        3 => input.truncate(at),
        4 => {
            input.remove(at);
        }
        5 => {
            let extra: Vec<u8> = (0..random.below(40)).map(|_| random.byte()).collect();
            input.splice(at..at, extra);
        }
        6 => {
            let piece = input[at..].to_vec();
            input.extend_from_slice(&piece);
        }
        _ => {
            let other = random.pick(seeds);
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

fn clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
}

/// xorshift64: small, fast, repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}
