//! The writer against disks in memory that lose power, lie, or hold something else already.

use anneal_image::MIN_FRAME_SIZE;
use anneal_protocol::agent::{Delta, FailureCode, StepFailure, Verify};

use super::{Job, Written, write_image};
use crate::disk::testing::{
    Canned, Memory, Random, half_a_table, partition, raw, recognised, sealed, whole,
};

const F: usize = MIN_FRAME_SIZE as usize;

/// An image to write, in every shape that matters.
struct Image {
    raw: Vec<u8>,
    manifest: anneal_image::Manifest,
    data: Vec<u8>,
}

fn image(shape: &str, sector: usize) -> Image {
    let raw = raw(shape, sector);
    let (manifest, data) = sealed(&raw);
    Image {
        raw,
        manifest,
        data,
    }
}

/// A disk on which another system was installed.
fn used(size: usize, sector: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; size];
    partition(&mut bytes, sector);
    bytes
}

/// What is written, and which frames were fetched.
fn write(
    image: &Image,
    disk: &Memory,
    delta: Delta,
    verify: Verify,
    seed: u64,
) -> Result<(Written, Vec<usize>), StepFailure> {
    let job = Job {
        manifest: &image.manifest,
        disk,
        delta,
        verify,
        workers: 1 + (seed % 3) as usize,
        grow: None,
    };
    let mut last = 0;
    let (written, supply) = write_image(
        job,
        |wanted| Ok(Canned::new(&image.manifest, &image.data, &wanted, seed)),
        &mut |done, total| {
            assert!(done >= last && done <= total, "{last} -> {done} of {total}");
            last = done;
            Ok(())
        },
    )?;
    Ok((written, supply.map(|s| s.wanted).unwrap_or_default()))
}

/// Bytes done and in all when frames are first asked for, and at the end.
fn progress(image: &Image, bytes: Vec<u8>) -> [(u64, u64); 2] {
    let disk = Memory::of(bytes, 512);
    let job = Job {
        manifest: &image.manifest,
        disk: &disk,
        delta: Delta::Auto,
        verify: Verify::Changed,
        workers: 1,
        grow: None,
    };
    let seen = std::cell::Cell::new((0, 0));
    let mut asked = (0, 0);
    write_image(
        job,
        |wanted| {
            asked = seen.get();
            Ok(Canned::new(&image.manifest, &image.data, &wanted, 1))
        },
        &mut |done, total| {
            let (before, of) = seen.get();
            assert!(done >= before, "{before} -> {done}");
            assert!(of == 0 || total <= of, "{of} -> {total}");
            seen.set((done, total));
            Ok(())
        },
    )
    .unwrap();
    [asked, seen.get()]
}

#[test]
fn comparing_is_progress_too() {
    let image = image("dddddddd", 512);
    let size = image.manifest.size();
    let mut bytes = image.raw.clone();
    bytes[4 * F] ^= 1;
    let [asked, end] = progress(&image, bytes);
    assert_eq!(asked, (size, 3 * size), "one pass of three is over");
    assert_eq!(end, (3 * size, 3 * size));
}

/// A sample is looked at, nothing of it is right, and no more is: that is no progress either.
#[test]
fn what_is_not_compared_is_not_counted() {
    let image = image(&"d".repeat(40), 512);
    let size = image.manifest.size();
    let sample = 32 * F as u64;
    assert!(sample < size);
    let [asked, end] = progress(&image, used(image.raw.len(), 512));
    assert_eq!(asked, (sample, 3 * size));
    assert_eq!(end, (sample + 2 * size, sample + 2 * size));
}

#[test]
fn the_disk_is_the_image_and_the_result_says_what_was_done() {
    for shape in ["dd0d00dd", "dd", "d0000d", "dddddddddddddddddddd"] {
        for sector in [512, 4096] {
            for verify in [Verify::None, Verify::Changed, Verify::Full] {
                let image = image(shape, sector);
                let size = (image.raw.len() + 19 * F).next_multiple_of(sector);
                let disk = Memory::of(used(size, sector), sector);
                let (written, fetched) = write(&image, &disk, Delta::Auto, verify, 3).unwrap();
                assert!(disk.everything_flushed(), "{shape}");
                let now = disk.now();
                assert!(now[..image.raw.len()] == image.raw, "{shape} differs");
                // The earlier system's backup GPT is gone too.
                assert!(now[size - (1 << 20)..].iter().all(|b| *b == 0), "{shape}");
                let data = shape.bytes().filter(|c| *c == b'd').count();
                assert_eq!(fetched.len(), data, "{shape}");
                assert_eq!(written.written.frames, data as u64);
                let all = written.written.bytes + written.zeroed.bytes + written.unchanged.bytes;
                assert_eq!(all, image.raw.len() as u64);
                assert_eq!(written.unchanged.frames, 0);
                let read = written.read_back.map(|amount| amount.bytes);
                let expected = (verify != Verify::None).then_some(image.raw.len() as u64);
                assert_eq!(read, expected, "{shape} {verify:?}");
            }
        }
    }
}

/// The same again, a changed frame, an older version: only what differs is fetched.
#[test]
fn a_delta_moves_what_differs() {
    let image = image("dddddddd0dddddddddddddddddd0dddd", 512);
    let size = image.raw.len() + 40 * F;
    let mut bytes = image.raw.clone();
    bytes.resize(size, 0);

    let disk = Memory::of(bytes.clone(), 512);
    let (written, fetched) = write(&image, &disk, Delta::Auto, Verify::Full, 1).unwrap();
    assert!(fetched.is_empty());
    assert_eq!(disk.operations(), 0, "a right disk was touched");
    assert_eq!(written.unchanged.bytes, image.raw.len() as u64);
    assert_eq!(written.read_back, Some(written.compared));

    // One frame drifted, a zero frame is not zero.
    bytes[5 * F + 100] ^= 1;
    bytes[8 * F + 7] = 1;
    let disk = Memory::of(bytes.clone(), 512);
    let (written, fetched) = write(&image, &disk, Delta::Auto, Verify::Changed, 1).unwrap();
    assert_eq!(fetched, [5]);
    assert!(disk.now()[..image.raw.len()] == image.raw);
    // The first frame was right, but is cleared first and written last.
    assert_eq!((written.written.frames, written.zeroed.frames), (2, 1));
    assert_eq!(written.read_back.unwrap().frames, 3);
    assert!(disk.bytes_written() < 30 * F as u64);

    let disk = Memory::of(bytes, 512);
    let (written, fetched) = write(&image, &disk, Delta::Off, Verify::None, 1).unwrap();
    assert_eq!((fetched.len(), written.compared.frames), (30, 0));
    assert!(disk.now()[..image.raw.len()] == image.raw);
}

/// What cannot be read is written: that may repair it.
#[test]
fn an_unreadable_sector_is_a_difference() {
    let image = image("dddd0dd", 512);
    let disk = Memory::of(image.raw.clone(), 512).unreadable_at(2 * F + 9);
    let (_, fetched) = write(&image, &disk, Delta::Auto, Verify::Full, 1).unwrap();
    assert_eq!(fetched, [2]);
    assert!(disk.now() == image.raw);
}

/// What an earlier system left behind the image goes, and nothing else is touched.
#[test]
fn a_right_image_with_rubbish_behind_it() {
    let image = image("dd0d", 512);
    let size = image.raw.len() + 40 * F;
    let mut bytes = used(size, 512);
    bytes[..image.raw.len()].copy_from_slice(&image.raw);
    let disk = Memory::of(bytes, 512);
    let (written, _) = write(&image, &disk, Delta::Auto, Verify::None, 1).unwrap();
    assert_eq!(written.unchanged.frames, 4);
    let now = disk.now();
    assert!(now[..image.raw.len()] == image.raw);
    assert!(now[size - 512..].iter().all(|byte| *byte == 0));
}

/// A disk with something else on it is not read to its end.
#[test]
fn looking_stops_when_it_cannot_pay() {
    let image = image(&"d".repeat(100), 512);
    let disk = Memory::of(used(image.raw.len(), 512), 512);
    let (written, _) = write(&image, &disk, Delta::Auto, Verify::None, 1).unwrap();
    assert_eq!(written.compared.frames, 32);
    assert_eq!(disk.bytes_read(), 32 * F as u64);
}

/// The power goes at a random point of a full write, of a delta, and of the run after a cut;
/// every unflushed sector survives or not. The disk is the earlier system, or nothing takes it
/// for a disk with partitions, or it is the whole image; and the next run completes.
#[test]
fn a_power_cut_never_leaves_half_an_image_bootable() {
    let mut seen = [0; 3];
    for seed in 0..50 {
        let mut random = Random(seed);
        let sector = [512, 4096][random.below(2) as usize];
        let tail = [0, 16 * F, 3 * F][random.below(3) as usize];
        let new = image("dd0dddd0dddddddddddddd0ddd", sector);
        let mut older = raw("dd0dxdd00ddddddydddd0d0ddd", sector);
        let mut foreign = used(new.raw.len() + tail, sector);
        older.resize(new.raw.len() + tail, 0);
        if random.below(2) == 0 {
            // The first frame differs as well.
            older[3 * F / 2] ^= 1;
            foreign[F] ^= 1;
        }
        for start in [foreign, older] {
            let mut platter = start.clone();
            for round in 0..2 {
                let total = Memory::of(platter.clone(), sector);
                write(&new, &total, Delta::Auto, Verify::Changed, seed).unwrap();
                let left = random.below(total.operations() as u64 + 1) as usize;
                let disk = Memory::of(platter.clone(), sector).dies_after(left);
                let done = write(&new, &disk, Delta::Auto, Verify::Changed, seed).is_ok();
                let after = disk.after_cut(&mut random);
                let is_new = whole(&after, &new.raw, sector);
                let untouched = whole(&after, &start, sector);
                assert!(!done || is_new, "seed {seed}, cut {left}");
                assert!(
                    !recognised(&after, sector) || is_new || untouched,
                    "seed {seed}, round {round}, cut after {left} operations: half an image boots"
                );
                assert!(
                    !half_a_table(&after, sector),
                    "seed {seed}: refused for ever"
                );
                let what = if is_new {
                    0
                } else {
                    1 + usize::from(untouched)
                };
                seen[what] += 1;
                platter = after;
            }
            let disk = Memory::of(platter, sector);
            write(&new, &disk, Delta::Auto, Verify::Full, seed).unwrap();
            assert!(disk.now()[..new.raw.len()] == new.raw, "seed {seed}");
            assert!(recognised(&disk.now(), sector));
        }
    }
    assert!(
        seen.iter().all(|count| *count > 5),
        "cuts missed a phase: {seen:?}"
    );
}

/// Also when the image's first or last slice is empty or the only one.
#[test]
fn every_cut_of_small_images() {
    for shape in ["d", "dd", "d0", "0d", "ddd"] {
        let new = image(shape, 512);
        let start = used(new.raw.len() + 2 * F, 512);
        for left in 0.. {
            let mut random = Random(left as u64);
            let disk = Memory::of(start.clone(), 512).dies_after(left);
            let done = write(&new, &disk, Delta::Off, Verify::None, 0).is_ok();
            let after = disk.after_cut(&mut random);
            let is_new = whole(&after, &new.raw, 512);
            let allowed = is_new || whole(&after, &start, 512);
            assert!(!recognised(&after, 512) || allowed, "{shape} {left}");
            if done {
                assert!(after[..new.raw.len()] == new.raw);
                break;
            }
        }
    }
}

/// A frame that is not right never reaches the disk; it comes again from elsewhere.
#[test]
fn a_wrong_frame_is_fetched_again() {
    let image = image("dddd0dd", 512);
    let disk = Memory::of(used(image.raw.len(), 512), 512);
    let job = Job {
        manifest: &image.manifest,
        disk: &disk,
        delta: Delta::Off,
        verify: Verify::None,
        workers: 2,
        grow: None,
    };
    let begin = |wanted: Vec<bool>| {
        Ok(Canned::new(&image.manifest, &image.data, &wanted, 7).flipping(0..9))
    };
    write_image(job, begin, &mut |_, _| Ok(())).unwrap();
    assert!(disk.now() == image.raw);
}

/// Nothing right comes at all: the earlier system stays. It ends half-way: nothing boots.
#[test]
fn a_supply_that_ends() {
    let image = image("dddd0dd", 512);
    for frames in 0..5 {
        let start = used(image.raw.len(), 512);
        let disk = Memory::of(start.clone(), 512);
        let job = Job {
            manifest: &image.manifest,
            disk: &disk,
            delta: Delta::Off,
            verify: Verify::None,
            workers: 1,
            grow: None,
        };
        let begin = |wanted: Vec<bool>| {
            Ok(Canned::new(&image.manifest, &image.data, &wanted, 7).ending_after(frames))
        };
        let outcome = write_image(job, begin, &mut |_, _| Ok(()));
        assert_eq!(
            outcome.map(|_| ()).unwrap_err().code,
            FailureCode::ImageTruncated
        );
        match frames {
            0 => assert!(disk.now() == start, "touched without need"),
            _ => assert!(!recognised(&disk.now(), 512)),
        }
    }
}

/// A disk that does not keep what it is given is found out before it can boot, wherever it lies.
#[test]
fn read_back_finds_a_lying_disk() {
    let image = image("dd0dd", 512);
    for verify in [Verify::Changed, Verify::Full] {
        for lies_at in [100, 512, 3000, F + 5, 3 * F + 7, image.raw.len() - 1] {
            let disk = Memory::of(used(image.raw.len() + 17 * F, 512), 512).lies_at(lies_at);
            let failure = write(&image, &disk, Delta::Auto, verify, 1).unwrap_err();
            assert_eq!(failure.code, FailureCode::ReadBackMismatch, "{lies_at}");
            assert!(
                !recognised(&disk.now(), 512),
                "boots with a lie at {lies_at}"
            );
        }
    }
}

/// Any one write or flush fails and all others succeed: the disk is as it was, or does not boot.
#[test]
fn one_failure_never_leaves_a_disk_that_boots() {
    let image = image("dd0dd", 512);
    for tail in [0, 17 * F] {
        let start = used(image.raw.len() + tail, 512);
        for verify in [Verify::None, Verify::Full] {
            let disk = Memory::of(start.clone(), 512);
            write(&image, &disk, Delta::Auto, verify, 0).unwrap();
            for operation in 0..disk.operations() {
                let disk = Memory::of(start.clone(), 512).fails_once_at(operation);
                let failure = write(&image, &disk, Delta::Auto, verify, 0).unwrap_err();
                assert_eq!(failure.code, FailureCode::DiskIo, "{operation}");
                assert!(!failure.message.contains("may boot"), "{failure:?}");
                let now = disk.now();
                assert!(
                    !recognised(&now, 512) || whole(&now, &start, 512),
                    "boots although operation {operation} failed"
                );
            }
        }
    }
}

/// A disk that takes what makes it bootable and cannot give it back; and one that then takes
/// nothing any more, so that what is on it cannot be taken back.
#[test]
fn what_cannot_be_read_back_does_not_boot() {
    let image = image("dd0dd", 512);
    let start = used(image.raw.len(), 512);
    for breaks_at in [100, 512, 3000, image.raw.len() - 1] {
        let disk = Memory::of(start.clone(), 512).breaks_at(breaks_at);
        let failure = write(&image, &disk, Delta::Auto, Verify::Full, 1).unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskIo, "{breaks_at}");
        assert!(!recognised(&disk.now(), 512), "boots, {breaks_at}");
    }
    let disk = Memory::of(start.clone(), 512);
    write(&image, &disk, Delta::Auto, Verify::None, 0).unwrap();
    let disk = Memory::of(start, 512).dies_after(disk.operations() - 1);
    let failure = write(&image, &disk, Delta::Auto, Verify::None, 0).unwrap_err();
    assert!(failure.message.contains("may boot"), "{failure:?}");
}

/// The end of the time that a write has, when it is done already.
#[test]
fn a_finished_write_is_not_abandoned() {
    let image = image("dd0dd", 512);
    let disk = Memory::of(used(image.raw.len(), 512), 512);
    let job = Job {
        manifest: &image.manifest,
        disk: &disk,
        delta: Delta::Off,
        verify: Verify::None,
        workers: 1,
        grow: None,
    };
    let mut too_late = 0;
    write_image(
        job,
        |wanted| Ok(Canned::new(&image.manifest, &image.data, &wanted, 7)),
        &mut |_, _| {
            if disk.now() == image.raw {
                too_late += 1;
                return Err(crate::step::abandoned());
            }
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(too_late, 1);
    assert!(disk.now() == image.raw);
}

#[test]
fn a_disk_that_is_too_small_is_left_alone() {
    let image = image("dddd", 512);
    let start = used(image.raw.len() - 512, 512);
    let disk = Memory::of(start.clone(), 512);
    let failure = write(&image, &disk, Delta::Auto, Verify::None, 1).unwrap_err();
    assert_eq!(failure.code, FailureCode::DiskTooSmall);
    assert!(disk.now() == start);
}

#[test]
fn an_abandoned_write_leaves_nothing_bootable() {
    let image = image("dddddd", 512);
    for looks in 0..4 {
        let disk = Memory::of(used(image.raw.len(), 512), 512);
        let job = Job {
            manifest: &image.manifest,
            disk: &disk,
            delta: Delta::Off,
            verify: Verify::None,
            workers: 2,
            grow: None,
        };
        let mut seen = 0;
        let outcome = write_image(
            job,
            |wanted| Ok(Canned::new(&image.manifest, &image.data, &wanted, 7)),
            &mut |_, _| {
                seen += 1;
                if seen > looks {
                    return Err(crate::step::abandoned());
                }
                Ok(())
            },
        );
        match outcome {
            Ok(_) => assert!(disk.now() == image.raw),
            Err(failure) => assert_eq!(failure.code, FailureCode::Abandoned),
        }
        let now = disk.now();
        assert!(!recognised(&now, 512) || now == image.raw || now == used(now.len(), 512));
    }
}
