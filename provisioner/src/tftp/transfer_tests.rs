//! Tables for single decisions, and whole transfers over a network that loses, doubles and
//! delays packets.

use proptest::prelude::*;

use super::*;

fn options(blksize: Option<u16>, windowsize: Option<u16>) -> Options {
    Options {
        blksize,
        windowsize,
        ..Options::default()
    }
}

fn blocks(first: u64, last: u64) -> Step {
    Step::SendBlocks { first, last }
}

#[test]
fn grants_no_more_than_asked_and_fits_the_mtu() {
    let asked = Options {
        blksize: Some(65_464),
        tsize: true,
        timeout: Some(9),
        windowsize: Some(65_535),
    };
    let granted = grant(&asked, 1_468);
    assert_eq!(granted.blksize, Some(1_468));
    assert_eq!(granted.windowsize, Some(MAX_WINDOW));
    assert_eq!(granted.timeout, Some(9));
    assert!(granted.tsize);
    assert_eq!(
        grant(&options(Some(512), Some(4)), 1_468),
        options(Some(512), Some(4))
    );
    assert_eq!(grant(&Options::default(), 1_468), Options::default());
}

#[test]
fn without_options_sends_512_byte_blocks_in_lockstep() {
    let (mut transfer, first) = Transfer::new(1_024, &Options::default());
    assert_eq!(first, blocks(1, 1));
    assert_eq!(transfer.block(1), (0, 512));
    assert_eq!(transfer.ack(1), blocks(2, 2));
    assert_eq!(transfer.ack(1), Step::Wait, "a duplicate sends nothing");
    assert_eq!(transfer.ack(2), blocks(3, 3));
    assert_eq!(
        transfer.block(3),
        (1_024, 0),
        "a multiple ends with an empty block"
    );
    assert_eq!(transfer.ack(3), Step::End(End::Complete));
    assert_eq!(transfer.repeated(), 0);
}

#[test]
fn a_size_probe_is_no_transfer() {
    let probe = Options {
        tsize: true,
        ..options(Some(1_468), Some(4))
    };
    let (mut transfer, first) = Transfer::new(284_672, &probe);
    assert_eq!(first, Step::SendOack);
    assert_eq!(transfer.client_error(), Step::End(End::Probe));
    let (mut transfer, _) = Transfer::new(284_672, &options(Some(1_468), None));
    assert_eq!(transfer.ack(0), blocks(1, 1));
    assert_eq!(transfer.ack(1), blocks(2, 2));
    assert_eq!(transfer.client_error(), Step::End(End::Aborted));
    assert_eq!(transfer.bytes_acked(), 1_468);
}

#[test]
fn a_window_restarts_after_the_last_block_the_client_has() {
    let (mut transfer, _) = Transfer::new(100 * 512, &options(None, Some(4)));
    assert_eq!(transfer.ack(0), blocks(1, 4));
    assert_eq!(transfer.ack(4), blocks(5, 8));
    // Block 6 was lost: 7 and 8 each make EDK2 repeat "I have 5".
    assert_eq!(transfer.ack(5), blocks(6, 9));
    assert_eq!(transfer.ack(5), Step::Wait);
    assert_eq!(transfer.ack(5), Step::Wait);
    assert_eq!(transfer.ack(9), blocks(10, 13));
    assert_eq!(transfer.repeated(), 3);
    // Block 10 was lost: only a repeated ACK says so. One short wait, then one resend.
    assert_eq!(transfer.ack(9), Step::WaitAgain);
    assert_eq!(transfer.patience(), HURRY);
    assert_eq!(transfer.ack(9), Step::Wait);
    assert_eq!(transfer.timed_out(), blocks(10, 13));
    assert_eq!(transfer.ack(9), Step::Wait);
    assert_eq!(transfer.patience(), FIRST_TIMEOUT);
    assert_eq!(transfer.ack(13), blocks(14, 17));
}

#[test]
fn ignores_what_was_never_sent_and_what_is_long_past() {
    let (mut transfer, _) = Transfer::new(100 * 512, &options(None, Some(4)));
    assert_eq!(transfer.ack(3), Step::Wait, "the OACK is answered by ACK 0");
    assert_eq!(transfer.ack(0), blocks(1, 4));
    assert_eq!(transfer.ack(5), Step::Wait);
    assert_eq!(transfer.ack(4), blocks(5, 8));
    assert_eq!(transfer.ack(2), Step::Wait);
    assert_eq!(transfer.ack(40_000), Step::Wait);
}

#[test]
fn block_numbers_wrap_to_zero() {
    let (mut transfer, mut step) = Transfer::new(200_000 * 8, &options(Some(8), Some(3)));
    assert_eq!(step, Step::SendOack);
    step = transfer.ack(0);
    let mut seen = 0;
    while let Step::SendBlocks { first, last } = step {
        assert_eq!(first, seen + 1);
        seen = last;
        step = transfer.ack((last % 65_536) as u16);
    }
    assert_eq!(step, Step::End(End::Complete));
    assert_eq!(seen, 200_001);
    assert_eq!(transfer.repeated(), 0);
}

#[test]
fn gives_up_on_a_silent_client_with_growing_patience() {
    let (mut transfer, first) = Transfer::new(10_000, &options(Some(1_468), None));
    assert_eq!(first, Step::SendOack);
    let mut waits = vec![transfer.patience().as_secs()];
    while transfer.timed_out() == Step::SendOack {
        waits.push(transfer.patience().as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 4, 4, 4, 4]);
    assert_eq!(transfer.timed_out(), Step::End(End::Silent));
    let asked = Options {
        timeout: Some(7),
        ..Options::default()
    };
    let (mut transfer, _) = Transfer::new(10_000, &asked);
    assert_eq!(transfer.patience(), Duration::from_secs(7));
    transfer.timed_out();
    assert_eq!(transfer.patience(), Duration::from_secs(7));
}

#[test]
fn a_missing_last_ack_is_no_failure() {
    let (mut transfer, _) = Transfer::new(600, &Options::default());
    assert_eq!(transfer.ack(1), blocks(2, 2));
    for _ in 0..REPETITIONS {
        assert_eq!(transfer.timed_out(), blocks(2, 2));
    }
    assert_eq!(transfer.timed_out(), Step::End(End::Complete));
}

#[test]
fn a_repeated_request_gets_the_first_answer_again() {
    let (mut transfer, _) = Transfer::new(600, &options(Some(1_468), None));
    assert_eq!(transfer.asked_again(), Step::SendOack);
    assert_eq!(transfer.ack(0), blocks(1, 1));
    assert_eq!(transfer.asked_again(), Step::Wait);
    let (mut transfer, _) = Transfer::new(600, &Options::default());
    assert_eq!(transfer.asked_again(), blocks(1, 1));
}

/// What the network does to each packet in turn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Arrives,
    Lost,
    Doubled,
    /// Overtaken by the next one.
    Late,
}

/// A client by the letter of RFC 7440: takes blocks in order, confirms the end of each window
/// and, once for each unexpected block, the last good one.
struct Client {
    window: u64,
    has: u64,
    in_window: u64,
    last_block: u64,
}

impl Client {
    fn data(&mut self, wire: u16) -> Option<u16> {
        if wire == (self.has + 1) as u16 {
            self.has += 1;
            self.in_window += 1;
            let ends = self.in_window == self.window || self.has == self.last_block;
            if !ends {
                return None;
            }
        }
        self.in_window = 0;
        Some(self.has as u16)
    }
}

/// A network with a memory of its own: the same seed gives the same weather.
struct Network(u64);

impl Network {
    fn fate(&mut self) -> Fate {
        // Knuth's MMIX generator; the high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        match self.0 >> 60 {
            0 | 1 => Fate::Lost,
            2 => Fate::Doubled,
            3 => Fate::Late,
            _ => Fate::Arrives,
        }
    }

    fn carry<T: Clone>(&mut self, packets: Vec<T>) -> Vec<T> {
        let mut out: Vec<T> = Vec::new();
        let mut late = None;
        for packet in packets {
            match self.fate() {
                Fate::Lost => {}
                Fate::Arrives => out.push(packet),
                Fate::Doubled => out.extend([packet.clone(), packet]),
                Fate::Late => {
                    out.extend(late.replace(packet));
                    continue;
                }
            }
            out.extend(late.take());
        }
        out.extend(late);
        out
    }
}

/// Runs a whole transfer; returns how it ended and whether the client has every block.
fn simulate(size: u64, block: u16, window: u16, seed: u64) -> (Transfer, End, bool) {
    let (mut transfer, mut step) = Transfer::new(size, &options(Some(block), Some(window)));
    let last_block = size / u64::from(block) + 1;
    let mut client = Client {
        window: window.into(),
        has: 0,
        in_window: 0,
        last_block,
    };
    let mut network = Network(seed);
    let mut acks = std::collections::VecDeque::new();
    for _ in 0..1_000_000 {
        match step {
            Step::SendOack => acks.extend(network.carry(vec![0_u16])),
            Step::SendBlocks { first, last } => {
                let sent = (first..=last).map(|n| n as u16).collect();
                let answers = network
                    .carry(sent)
                    .into_iter()
                    .filter_map(|wire| client.data(wire))
                    .collect();
                acks.extend(network.carry(answers));
            }
            Step::Wait | Step::WaitAgain => {}
            Step::End(end) => return (transfer, end, client.has == last_block),
        }
        step = match acks.pop_front() {
            Some(ack) => transfer.ack(ack),
            None => transfer.timed_out(),
        };
    }
    panic!("the transfer did not end");
}

#[test]
fn a_bad_network_only_delays() {
    for seed in 0..20 {
        for window in [1, 4, 16] {
            let (transfer, end, whole) = simulate(284_672, 1_468, window, seed);
            assert_eq!((end, whole), (End::Complete, true), "{seed} {window}");
            assert!(transfer.repeated() > 0, "{seed}: nothing was lost");
        }
    }
}

#[test]
fn doubled_packets_do_not_double_the_traffic() {
    let granted = options(Some(512), Some(4));
    let (mut transfer, _) = Transfer::new(400 * 512, &granted);
    let mut sent = 0;
    let mut step = transfer.ack(0);
    while let Step::SendBlocks { first, last } = step {
        sent += last - first + 1;
        step = transfer.ack(last as u16);
        // Every ACK arrives twice; the second finds the next window on its way.
        if let Step::SendBlocks { .. } = step {
            assert_eq!(transfer.ack(last as u16), Step::WaitAgain);
        }
    }
    assert_eq!(sent, 401);
    assert_eq!(transfer.repeated(), 0);
}

proptest! {
    #[test]
    fn never_claims_what_the_client_lacks(
        size in 0_u64..40_000,
        block in 8_u16..1_500,
        window in 1_u16..20,
        seed in any::<u64>(),
    ) {
        let (transfer, end, whole) = simulate(size, block, window, seed);
        // After all repetitions only the client's silence speaks.
        if transfer.silent_for < REPETITIONS {
            prop_assert_eq!((end, whole), (End::Complete, true));
        }
    }

    #[test]
    fn ends_whatever_comes(
        size in 0_u64..3_000_000,
        blksize in proptest::option::of(8_u16..65_000),
        windowsize in proptest::option::of(1_u16..65_535),
        inputs in proptest::collection::vec((0_u8..8, any::<u16>()), 0..400),
    ) {
        let (mut transfer, mut step) = Transfer::new(size, &options(blksize, windowsize));
        for (what, block) in inputs {
            if let Step::SendBlocks { first, last } = step {
                prop_assert!(first <= last);
                let (offset, length) = transfer.block(last);
                prop_assert!(offset + length as u64 <= size);
            }
            if let Step::End(_) = step {
                return Ok(());
            }
            step = match what {
                0..5 => transfer.ack(block % 64),
                5 => transfer.ack(block),
                6 => transfer.asked_again(),
                _ => transfer.timed_out(),
            };
        }
        // Then silence.
        for _ in 0..3 * REPETITIONS {
            if let Step::End(_) = step {
                return Ok(());
            }
            step = transfer.timed_out();
        }
        prop_assert!(matches!(step, Step::End(_)), "{step:?}");
    }
}
