//! The record in memory that loses power, and in a partition of a loop device.

use super::super::loops::Loop;
use super::super::testing::{Memory, Random};
use super::*;

const MIB: usize = 1 << 20;

fn values(values: &[(u8, &str)]) -> Values {
    let owned = values.iter();
    owned
        .map(|(key, text)| (*key, text.as_bytes().to_vec()))
        .collect()
}

fn record(tags: &[(u8, &str)]) -> Record {
    let mut record = Record::default();
    for (key, contents) in values(tags) {
        record.set(key, contents);
    }
    record
}

/// A partition with these copies; behind them something that is not ours.
fn partition(copies: [&[u8]; 2]) -> Vec<u8> {
    let mut bytes = copies.concat();
    bytes.resize(MIB, 0xa7);
    bytes
}

/// What Talos would read from a partition.
fn seen(bytes: &[u8]) -> Option<Record> {
    let copy = |index: usize| bytes[index * COPY..(index + 1) * COPY].to_vec();
    adv::read(&[copy(0), copy(1)]).map(|(_, record)| record)
}

const OLD: &[(u8, &str)] = &[(0xa, "old"), (0x11, "sd-boot")];
const NEW: &[(u8, &str)] = &[(0xa, "new"), (0xb, "code"), (0x11, "sd-boot")];

fn wanted() -> Values {
    values(&[(0xa, "new"), (0xb, "code")])
}

#[test]
fn a_power_cut_at_any_moment_leaves_the_old_keys_or_the_new_ones() {
    let (old, new) = (record(OLD), record(NEW));
    let (good, done) = (old.encode().unwrap(), new.encode().unwrap());
    let mut torn = good.clone();
    torn[20] ^= 1;
    let finished = partition([&done, &done]);
    for (state, copies) in [
        ("both", [&good, &good]),
        ("first", [&good, &torn]),
        ("second", [&torn, &good]),
        ("half done", [&good, &done]),
    ] {
        let before = partition([copies[0], copies[1]]);
        let whole = Memory::of(before.clone(), 512);
        let result = update(&whole, &wanted(), "vda4").unwrap();
        assert_eq!((result.kept, result.fresh), (vec![0x11], false), "{state}");
        assert!(
            whole.everything_flushed() && whole.now() == finished,
            "{state}"
        );
        for cut in 0..whole.operations() {
            for seed in 0..6 {
                let disk = Memory::of(before.clone(), 512).dies_after(cut);
                update(&disk, &wanted(), "vda4").unwrap_err();
                let after = disk.after_cut(&mut Random(seed));
                let left = seen(&after);
                assert!(
                    left.as_ref() == Some(&old) || left.as_ref() == Some(&new),
                    "{state} cut at {cut}, {seed}: {left:?}"
                );
                let again = Memory::of(after, 512);
                update(&again, &wanted(), "vda4").unwrap();
                assert!(again.now() == finished, "{state} cut at {cut}, {seed}");
            }
        }
    }
}

#[test]
fn what_was_never_written_begins_with_an_empty_record() {
    let zeros = vec![0; COPY];
    for before in [partition([&zeros, &zeros]), vec![0x5a; MIB]] {
        let disk = Memory::of(before.clone(), 4096);
        let done = update(&disk, &wanted(), "vda4").unwrap();
        assert_eq!((done.kept, done.fresh), (Vec::new(), true));
        let now = disk.now();
        assert_eq!(seen(&now), Some(record(&[(0xa, "new"), (0xb, "code")])));
        assert!(now[2 * COPY..] == before[2 * COPY..]);
    }
}

#[test]
fn what_is_right_already_is_not_written_again() {
    let good = record(NEW).encode().unwrap();
    let disk = Memory::of(partition([&good, &good]), 512);
    update(&disk, &wanted(), "vda4").unwrap();
    assert_eq!(disk.bytes_written(), 0);
}

#[test]
fn keys_that_do_not_fit_and_disks_that_lie_are_told() {
    let good = record(OLD).encode().unwrap();
    let before = partition([&good, &good]);
    let disk = Memory::of(before.clone(), 512);
    // With its head it would just fit, were the image's own key not there.
    let long = Values::from([(0xa, vec![b'x'; COPY - 48])]);
    let failure = update(&disk, &long, "vda4").unwrap_err();
    assert_eq!(failure.code, FailureCode::BadOrder);
    assert!(
        failure.message.contains(": 15 bytes too many"),
        "{failure:?}"
    );
    assert!(!failure.retryable && disk.now() == before);
    let lying = Memory::of(before, 512).lies_at(COPY + 30);
    let failure = update(&lying, &wanted(), "vda4").unwrap_err();
    assert_eq!(failure.code, FailureCode::ReadBackMismatch);
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let value = |key, contents: &str| MetaValue {
        key,
        contents_base64: contents.to_owned(),
    };
    for (values, expected) in [
        (vec![], "no key of META is given"),
        (vec![value(0, "eA==")], "no key 0"),
        (vec![value(1, "?")], "key 0x1 are not base64"),
        (
            vec![value(0xa, "eA=="), value(0xa, "eA==")],
            "key 0xa is given twice",
        ),
    ] {
        let failure = decoded(&values).unwrap_err();
        assert_eq!(failure.code, FailureCode::BadOrder);
        assert!(failure.message.contains(expected), "{failure:?}");
    }
    let decoded = decoded(&[value(0xa, "eA==")]).unwrap();
    assert_eq!(decoded, values(&[(0xa, "x")]));
}

/// A partition of a real table, through the kernel.
#[test]
fn writes_the_partition_of_a_disk() {
    let disk = Loop::named("anneal-meta", "META", 1, "coreutils", "true FILE");
    let first = write_on(&disk.chosen(), &values(&[(0x11, "sd-boot")])).unwrap();
    assert_eq!(
        (first.set, first.kept, first.fresh),
        (vec![0x11], vec![], true)
    );
    let second = write_on(&disk.chosen(), &wanted()).unwrap();
    assert_eq!((second.set, second.kept), (vec![0xa, 0xb], vec![0x11]));
    assert!(
        !second.fresh && second.partition.ends_with("p1"),
        "{}",
        second.partition
    );
    let bytes = std::fs::read(&disk.file).unwrap();
    let copy = record(NEW).encode().unwrap();
    let expected = [copy.clone(), copy, vec![0; 2 * COPY]].concat();
    assert!(bytes[MIB..2 * MIB] == expected);
}

#[test]
fn partitions_that_talos_would_not_take_are_left_alone() {
    for (name, partition, mib, mkfs, expected) in [
        (
            "anneal-meta-none",
            "OTHER",
            1,
            "true FILE",
            "if there is none, write an image of Talos before",
        ),
        (
            "anneal-meta-long",
            "META",
            2,
            "true FILE",
            "it has 2097152 bytes",
        ),
        (
            "anneal-meta-fs",
            "META",
            1,
            "mkfs.ext4 -q FILE",
            "it holds ext4",
        ),
        (
            "anneal-meta-label",
            "OTHER",
            1,
            "mkfs.ext4 -q -L META FILE",
            "wants the partition (GPT) to have that name",
        ),
    ] {
        let disk = Loop::named(name, partition, mib, "e2fsprogs", mkfs);
        let before = std::fs::read(&disk.file).unwrap();
        let failure = write_on(&disk.chosen(), &wanted()).unwrap_err();
        assert_eq!(failure.code, FailureCode::Partition, "{failure:?}");
        assert!(failure.message.contains(expected), "{failure:?}");
        assert!(!failure.retryable);
        assert!(std::fs::read(&disk.file).unwrap() == before, "{name}");
    }
}

#[test]
fn several_partitions_that_could_be_meant_are_told() {
    let one = (1, "e2fsprogs", "mkfs.ext4 -q -L META FILE");
    let disk = Loop::two("anneal-meta-two", one, one);
    let failure = write_on(&disk.chosen(), &wanted()).unwrap_err();
    assert_eq!(failure.code, FailureCode::Partition);
    assert!(
        failure.message.contains("has more than one partition")
            && failure
                .message
                .contains("exactly one partition named META: if there is none"),
        "{failure:?}"
    );
}

#[test]
fn a_partition_in_use_is_waited_for_and_then_refused() {
    let disk = Loop::named("anneal-meta-busy", "META", 1, "coreutils", "true FILE");
    let node = disk.located("META");
    let before = std::fs::read(&disk.file).unwrap();
    let user = open_patiently(&node).unwrap();
    let failure = write_on(&disk.chosen(), &wanted()).unwrap_err();
    assert_eq!(failure.code, FailureCode::DiskRefused, "{failure:?}");
    assert!(failure.message.contains("is in use"), "{failure:?}");
    assert!(std::fs::read(&disk.file).unwrap() == before);
    let begin = Instant::now();
    let release = std::thread::spawn(move || {
        std::thread::sleep(LINGERS / 4);
        drop(user);
    });
    open_patiently(&node).unwrap();
    assert!(begin.elapsed() >= LINGERS / 8, "it was not in use");
    release.join().unwrap();
    write_on(&disk.chosen(), &wanted()).unwrap();
}

#[test]
fn an_order_that_is_no_longer_wanted_writes_nothing() {
    let disk = Loop::named("anneal-meta-late", "META", 1, "coreutils", "true FILE");
    let chosen = disk.chosen();
    let options = Options {
        allow_loop: chosen.loops.clone(),
        ..Options::default()
    };
    let action = AgentAction::WriteTalosMeta {
        disk: chosen.selector.clone(),
        values: vec![MetaValue {
            key: 0xa,
            contents_base64: "eA==".to_owned(),
        }],
    };
    let before = std::fs::read(&disk.file).unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let failure = write(&options, &action, &cancel).unwrap_err();
    assert_eq!(failure.code, FailureCode::Abandoned);
    assert!(std::fs::read(&disk.file).unwrap() == before);
    let done = write(&options, &action, &CancellationToken::new()).unwrap();
    assert_eq!(done.set, [0xa]);
}
