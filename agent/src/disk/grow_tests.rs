use super::*;
use crate::disk::testing::{
    Canned, Memory, Random, partition, raw, recognised, reseal, sealed, whole as is_whole,
};
use crate::disk::write::{Job, Written, write_image};
use anneal_image::Table;
use anneal_protocol::agent::{Delta, Verify};

/// What is beyond the image, in bytes.
const MORE: usize = 3 << 20;

struct Case {
    manifest: Manifest,
    data: Vec<u8>,
    /// What the disk holds before.
    start: Vec<u8>,
    sector: usize,
}

fn case(sector: usize) -> Case {
    let raw = raw("dd0d00dd", sector);
    let (manifest, data) = sealed(&raw);
    let mut start = vec![0xa5; raw.len() + MORE];
    partition(&mut start, sector);
    Case {
        manifest,
        data,
        start,
        sector,
    }
}

fn write(case: &Case, disk: &Memory, verify: Verify) -> Result<Written, StepFailure> {
    let job = Job {
        manifest: &case.manifest,
        disk,
        delta: Delta::Auto,
        verify,
        workers: 2,
        grow: Some(&Grow::Last),
    };
    let begin = |wanted: Vec<bool>| Ok(Canned::new(&case.manifest, &case.data, &wanted, 3));
    write_image(job, begin, &mut |_, _| Ok(())).map(|(written, _)| written)
}

#[test]
fn the_last_partition_takes_the_rest_of_the_disk() {
    for sector in [512, 4096] {
        for verify in [Verify::None, Verify::Changed, Verify::Full] {
            let case = case(sector);
            let disk = Memory::of(case.start.clone(), sector);
            let written = write(&case, &disk, verify).unwrap();
            let now = disk.now();
            let before = case.manifest.table().unwrap();
            let after = Table::read(&now, now.len() as u64).unwrap();
            let last = |table: &Table| {
                let last = table.partitions.iter().max_by_key(|p| p.start);
                last.unwrap().clone()
            };
            assert!(last(&after).size > last(before).size + (2 << 20));
            assert_eq!(written.grown, Some(last(&after).size));
            // The rest is the image.
            let first = case.manifest.raw_length(0);
            let size = case.manifest.size() as usize;
            assert!(now[first..size] == raw("dd0d00dd", sector)[first..]);
            // The second time nothing is written, unless the table is not there as a whole.
            let before = disk.operations();
            let again = write(&case, &disk, verify).unwrap();
            assert_eq!((again.unchanged.frames, again.grown), (8, written.grown));
            assert_eq!(again.read_back.is_some(), verify != Verify::None);
            assert_eq!(disk.operations(), before);
            let mut damaged = now.clone();
            damaged[now.len() - sector] ^= 1;
            let disk = Memory::of(damaged, sector);
            let again = write(&case, &disk, verify).unwrap();
            assert_eq!((again.written.frames, again.grown), (1, written.grown));
            assert!(disk.now() == now);
        }
    }
}

#[test]
fn a_power_cut_leaves_the_earlier_system_or_nothing_or_the_whole_grown_image() {
    let case = case(512);
    let disk = Memory::of(case.start.clone(), case.sector);
    write(&case, &disk, Verify::None).unwrap();
    let (whole, operations) = (disk.now(), disk.operations());
    // What survives of a cut is drawn; the order of the writes is the threads'.
    for (seed, dies_after) in (1..7).flat_map(|seed| (0..operations).map(move |n| (seed, n))) {
        let mut random = Random(seed);
        let disk = Memory::of(case.start.clone(), case.sector).dies_after(dies_after);
        write(&case, &disk, Verify::None).unwrap_err();
        let cut = disk.after_cut(&mut random);
        assert!(
            is_whole(&cut, &case.start, 512)
                || is_whole(&cut, &whole, 512)
                || !recognised(&cut, 512),
            "boots half an image after {dies_after} of {operations} operations"
        );
        let disk = Memory::of(cut, case.sector);
        write(&case, &disk, Verify::Full).unwrap();
        assert!(disk.now() == whole, "{dies_after}");
    }
}

#[test]
fn one_failure_leaves_nothing_that_boots() {
    let case = case(512);
    let disk = Memory::of(case.start.clone(), 512);
    write(&case, &disk, Verify::Full).unwrap();
    for operation in 0..disk.operations() {
        let disk = Memory::of(case.start.clone(), 512).fails_once_at(operation);
        write(&case, &disk, Verify::Full).unwrap_err();
        let now = disk.now();
        assert!(
            is_whole(&now, &case.start, 512) || !recognised(&now, 512),
            "boots although operation {operation} failed"
        );
    }
}

#[test]
fn a_lie_about_the_table_is_found_out() {
    let case = case(512);
    let end = case.start.len();
    for lies_at in [520, end - 500, end - 600] {
        let disk = Memory::of(case.start.clone(), 512).lies_at(lies_at);
        let outcome = write(&case, &disk, Verify::Changed);
        let Err(failure) = outcome else {
            panic!("a lie at {lies_at} is believed");
        };
        assert_eq!(failure.code, FailureCode::ReadBackMismatch, "{lies_at}");
        assert!(!recognised(&disk.now(), 512), "{lies_at}");
    }
}

#[test]
fn refuses_before_anything_is_changed() {
    let case = case(512);
    let refused = |sector, which: Option<&str>| {
        let which = which.map(Grow::parse);
        check(&case.manifest, sector, which.as_ref()).unwrap_err()
    };
    assert_eq!(refused(4096, None).code, FailureCode::DiskRefused);
    assert_eq!(refused(512, Some("NOBODY")).code, FailureCode::BadOrder);
    assert!(check(&case.manifest, 512, Some(&Grow::Last)).is_ok());
    assert!(check(&case.manifest, 512, None).is_ok());
}

/// Entries that lie behind the first frame: refused as long as nothing is changed, else a failure
/// that does not deny it.
#[test]
fn a_table_that_cannot_be_grown_is_refused_or_fails() {
    let mut raw = raw("dd0d00dd", 512);
    let (from, to) = (2 * 512, 200 * 512);
    raw.copy_within(from..from + 512, to);
    raw[512 + 72..512 + 80].copy_from_slice(&200_u64.to_le_bytes());
    reseal(&mut raw, 512, 1);
    let (manifest, data) = sealed(&raw);
    let mut start = vec![0xa5; raw.len() + MORE];
    partition(&mut start, 512);
    check(&manifest, 512, Some(&Grow::Last)).unwrap();
    let mut seen = [0; 2];
    for seed in 0..60 {
        let disk = Memory::of(start.clone(), 512);
        let job = Job {
            manifest: &manifest,
            disk: &disk,
            delta: Delta::Auto,
            verify: Verify::None,
            workers: 1,
            grow: Some(&Grow::Last),
        };
        let begin = |wanted: Vec<bool>| Ok(Canned::new(&manifest, &data, &wanted, seed));
        let outcome = write_image(job, begin, &mut |_, _| Ok(()));
        let failure = outcome.map(|_| ()).unwrap_err();
        assert!(failure.message.contains("cannot be grown"), "{failure:?}");
        match failure.code {
            FailureCode::BadOrder => assert_eq!(disk.operations(), 0),
            FailureCode::Internal => assert!(!recognised(&disk.now(), 512)),
            other => panic!("{other:?}"),
        }
        seen[usize::from(failure.code == FailureCode::BadOrder)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn a_disk_of_the_image_s_own_size_stays_as_it_is() {
    let case = case(512);
    let size = case.manifest.size() as usize;
    let disk = Memory::of(vec![0; size], 512);
    let written = write(&case, &disk, Verify::Full).unwrap();
    assert_eq!(written.grown, None);
    assert!(disk.now() == raw("dd0d00dd", 512));
    let before = disk.operations();
    let again = write(&case, &disk, Verify::Full).unwrap();
    assert_eq!((again.unchanged.frames, again.grown), (8, None));
    assert_eq!(disk.operations(), before);
}
