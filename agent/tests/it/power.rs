//! The power goes while a virtual machine is being written: kernel, agent, disk and cache are
//! real; where it happens comes from a seed.
//!
//! One boot a seed: it first completes what the seed before left behind, then begins to write
//! another image and is killed. QEMU notes every write and flush, so two disks are looked at: the
//! one that a reset leaves, and the one that a disk leaves whose cache lost what was not flushed.
//! The latter is what the next boot finds. The same notes say what other cuts would have left:
//! some of those are looked at too.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use anneal_protocol::agent::{AgentAction, Outcome, StreamOptions, StreamResult, Verify};
use anneal_protocol::disk::ProtectedDisk;

use crate::daemon::{Daemon, Images, MIB, Sealed, by_serial, daemon, output, seal_frames};
use crate::mirror::{Mirror, Mood};
use crate::random::Random;
use crate::support::{Answer, QEMU_HOST};
use crate::vm::{Drive, Machine, words};
use crate::writelog::{Entry, Log};

const IMAGE: u64 = 64 * MIB;
const DISK: u64 = 80 * MIB;
const FRAME: usize = 256 << 10;
const SECTOR: usize = 512;
/// Which seeds, as `FIRST..LAST`; all of them take a quarter of an hour.
const SEEDS: &str = "ANNEAL_POWER_CUT_SEEDS";
/// These go off in the clearing, in the bulk and in the finish: see [`Cut::draw`].
const FEW: Range<u64> = 49..52;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var(SEEDS) else {
        return FEW;
    };
    let parsed = text.split_once("..").and_then(|(first, last)| {
        let range = first.parse().ok()?..last.parse().ok()?;
        (!range.is_empty()).then_some(range)
    });
    parsed.unwrap_or_else(|| panic!("{SEEDS}={text}: expected FIRST..LAST, such as 0..50"))
}

/// What else is looked at for each write that was noted: so many cuts by flushes, and so many anywhere
/// or in the finish.
const MORE_CUTS: usize = 15;

/// Where the power goes: after so many flushes and then so many writes.
#[derive(Debug, Clone, Copy)]
struct Cut {
    flushes: usize,
    writes: usize,
}

impl Cut {
    /// The bulk is one flush of eight, and nearly all of the time.
    const BULK: usize = 3;

    fn draw(random: &mut Random) -> Self {
        let flushes = match random.below(12) as usize {
            early_or_late @ 0..8 => early_or_late,
            _ => Self::BULK,
        };
        let writes = if flushes == Self::BULK { 200 } else { 4 };
        Self {
            flushes,
            writes: random.below(writes) as usize,
        }
    }

    /// How many entries are done then; none: not yet. The next flush is as late as it gets.
    fn reached(self, entries: &[Entry]) -> Option<usize> {
        let (mut flushes, mut writes) = (0, 0);
        for (index, entry) in entries.iter().enumerate() {
            if flushes == self.flushes && writes == self.writes {
                return Some(index);
            }
            match entry {
                Entry::Write { .. } => writes += 1,
                // Nothing to flush.
                Entry::Flush if writes == 0 => {}
                Entry::Flush if flushes == self.flushes => return Some(index),
                Entry::Flush => (flushes, writes) = (flushes + 1, 0),
            }
        }
        None
    }
}

/// What a disk is after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The earlier system, though perhaps nothing boots it any more.
    Earlier,
    /// No table of partitions.
    Nothing,
    /// The image, though perhaps nothing boots it yet.
    Whole,
}

/// Three sectors decide whether a disk boots, see the agent's `disk::order`.
fn judge(before: &[u8], after: &[u8], image: &[u8]) -> Option<State> {
    let header = |at: usize| after[at..at + 8] == *b"EFI PART";
    // A backup that is not at the very end is only found through the first header.
    let recognised =
        after[510..512] == [0x55, 0xaa] || header(SECTOR) || header(after.len() - SECTOR);
    let same = |with: &[u8]| {
        let end = with.len() - SECTOR;
        after[2 * SECTOR..end] == with[2 * SECTOR..end]
    };
    if same(image) {
        Some(State::Whole)
    } else if !recognised {
        Some(State::Nothing)
    } else {
        same(before).then_some(State::Earlier)
    }
}

/// A GPT with a partition, holes, and noise; a third of it is the same in every version.
fn raw(version: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = crate::vm::disk(dir.path(), "raw", IMAGE);
    let made = Command::new("/usr/sbin/sgdisk")
        .args(["-n", "1:2048:0", "-c", "1:system"])
        .args(["-U", &format!("{version:08}-0000-4000-8000-000000000000")])
        .args(["-u", &format!("1:{version:08}-0000-4000-8000-000000000001")])
        .arg(&path)
        .stdout(Stdio::null())
        .status();
    assert!(made.expect("sgdisk: install the package gdisk").success());
    let mut raw = std::fs::read(&path).unwrap();
    let frames = raw.len() / FRAME;
    for (index, frame) in raw.chunks_mut(FRAME).enumerate() {
        if index % 16 == 7 || (100..120).contains(&index) {
            continue;
        }
        let own = if index % 3 == 0 { 0 } else { version + 1 };
        let mut random = Random(own << 32 | index as u64);
        let (skip, end) = match index {
            0 => (64 << 10, FRAME),
            _ if index + 1 == frames => (0, FRAME - (64 << 10)),
            _ => (0, FRAME),
        };
        for word in frame[skip..end].chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    }
    raw
}

struct Image {
    sealed: Sealed,
    raw: Vec<u8>,
    mirror: Mirror,
}

impl Image {
    fn new(version: u64) -> Self {
        let raw = raw(version);
        let sealed = seal_frames(&raw, FRAME as u32);
        let mirror = Mirror::start(sealed.data.clone(), Mood::Good);
        Self {
            sealed,
            raw,
            mirror,
        }
    }

    /// The disk when nothing but this was ever on it.
    fn disk(&self) -> Vec<u8> {
        let mut disk = self.raw.clone();
        disk.resize(DISK as usize, 0);
        disk
    }

    fn action(&self, verify: Verify) -> AgentAction {
        let port = self.mirror.address.port();
        let mut disk = by_serial("ROOT-1");
        // So that a disk of which nobody can tell what is on it is refused.
        disk.protected.push(ProtectedDisk {
            label: Some("KEEP".into()),
            ..ProtectedDisk::default()
        });
        AgentAction::StreamImage {
            image: self.sealed.id.clone(),
            disk,
            verify,
            stall_timeout_ms: 120_000,
            options: StreamOptions {
                sources: vec![format!("http://{QEMU_HOST}:{port}/images/x/")],
                ..StreamOptions::default()
            },
        }
    }
}

/// Holds an answer back until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// What stays from boot to boot.
struct Lab {
    images: [Image; 2],
    file: PathBuf,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

/// What one boot is to write.
struct Work<'a> {
    /// This one to its end, over what an earlier boot left.
    complete: Option<&'a Image>,
    /// This one until the power goes.
    begin: Option<&'a Image>,
    gate: Arc<Gate>,
}

impl<'a> Work<'a> {
    fn new(complete: Option<&'a Image>, begin: Option<&'a Image>) -> Self {
        Self {
            complete,
            begin,
            gate: Arc::default(),
        }
    }

    /// Hands out both; the manifest of the second when the gate is open.
    fn daemon(&self) -> Daemon {
        let manifests = [self.complete, self.begin].map(|image| {
            image.map(|image| (image.sealed.id.clone(), image.sealed.manifest.clone()))
        });
        let key = self.complete.or(self.begin).unwrap().sealed.key.clone();
        // What was completed is compared by us.
        let complete = self.complete.map(|image| image.action(Verify::None));
        let begin = self.begin.map(|image| image.action(Verify::Changed));
        let actions = [complete, begin].into_iter().flatten().collect();
        let gate = self.gate.clone();
        let images: Images = Box::new(move |request| {
            for (number, manifest) in manifests.iter().enumerate() {
                let Some((id, text)) = manifest else { continue };
                let hex = id.strip_prefix("blake3:").unwrap();
                if request.path.contains(hex) && request.path.ends_with("/manifest") {
                    if number == 1 {
                        gate.pass();
                    }
                    return Answer::Bytes(text.clone());
                }
            }
            panic!("nobody should ask for {}", request.path)
        });
        daemon(actions, key, images)
    }
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            images: [0, 1].map(Image::new),
            file: dir.path().join("disk"),
            log: dir.path().join("log"),
            _dir: dir,
        }
    }

    /// One boot from a disk with these contents, until the power goes.
    fn boot(&self, start: Vec<u8>, work: &Work<'_>, cut: Cut) -> Booted {
        std::fs::write(&self.file, &start).unwrap();
        let mut log = Log::create(&self.log);
        let daemon = work.daemon();
        let url = format!("https://{QEMU_HOST}:{}", daemon.server.address.port());
        let drive = Drive::new("virtio-blk-pci", &self.file, "ROOT-1").logged(&self.log);
        let mut machine = Machine::boot(&words(&url, &daemon.ca), &[drive]);
        let done = || daemon.outcomes.lock().unwrap().clone();
        if let Some(image) = work.complete {
            let outcome = machine.until("the next run completes", || done().first().cloned());
            let _: StreamResult = output(&outcome);
            self.expect_whole(&mut log, &start, image);
        }
        log.read();
        let from = log.entries.len();
        work.gate.open();
        let all = [work.complete, work.begin].iter().flatten().count();
        let at = machine.until("the power goes", || {
            log.read();
            let reached = cut.reached(&log.entries[from..]);
            reached.map(|count| from + count).or_else(|| {
                let outcomes = done();
                let over = outcomes.len() == all;
                over.then(|| expect_succeeded(&outcomes));
                // All of it was logged before the agent said so.
                over.then(|| log.read());
                over.then_some(log.entries.len())
            })
        });
        machine.cut();
        Booted {
            start,
            log,
            from,
            at,
        }
    }

    /// Every byte, and that the log tells the same.
    fn expect_whole(&self, log: &mut Log, start: &[u8], image: &Image) {
        let whole = image.disk();
        assert!(std::fs::read(&self.file).unwrap() == whole, "not the image");
        log.read();
        let mut replayed = start.to_vec();
        log.replay(&mut replayed, log.entries.len());
        assert!(replayed == whole, "the log is not what the disk was told");
    }
}

/// What a boot did to its disk.
struct Booted {
    start: Vec<u8>,
    log: Log,
    /// So many entries belong to the write that was completed.
    from: usize,
    /// After so many the power went.
    at: usize,
}

impl Booted {
    /// The disk when the power goes after so many entries, and the cache is lost.
    fn lost(&self, cut: usize, random: &mut Random) -> Vec<u8> {
        let mut disk = self.start.clone();
        self.log.cut(&mut disk, cut, random);
        disk
    }

    /// What other cuts of these entries, which wrote an image over `before`, leave.
    fn more(
        &self,
        entries: Range<usize>,
        before: &[u8],
        image: &Image,
        random: &mut Random,
        seen: &mut Vec<State>,
    ) {
        for _ in 0..MORE_CUTS {
            let reached = Cut::draw(random).reached(&self.log.entries[entries.clone()]);
            let disk = self.lost(entries.start + reached.unwrap_or(entries.len()), random);
            seen.push(expect_safe(before, &disk, image));
        }
        // An agent that does not flush as it should is not spared because it never flushes that often.
        let all = entries.len() as u64;
        let mut other = Random(all);
        for number in 0..MORE_CUTS as u64 {
            let missing = match number % 2 {
                0 => other.below(all + 1),
                _ => other.below(12).min(all),
            };
            let disk = self.lost(entries.start + (all - missing) as usize, &mut other);
            seen.push(expect_safe(before, &disk, image));
        }
    }
}

fn expect_safe(before: &[u8], after: &[u8], image: &Image) -> State {
    judge(before, after, &image.raw).unwrap_or_else(|| {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("power-cut.raw");
        std::fs::write(&kept, after).unwrap();
        panic!("half an image boots; the disk is in {}", kept.display())
    })
}

fn expect_succeeded(outcomes: &[Outcome]) {
    for outcome in outcomes {
        assert!(matches!(outcome, Outcome::Succeeded { .. }), "{outcome:?}");
    }
}

/// Tells the seed when a test panics.
struct Seed(u64, Cut);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(seed, cut) = *self;
            eprintln!(
                "power cut with seed {seed} ({cut:?}); again: {SEEDS}={}..{}",
                seed.saturating_sub(1),
                seed + 1
            );
        }
    }
}

/// The disk is the earlier system, or nothing takes it for a disk with partitions, or it is the
/// whole image; and the next run completes, though a rule by label forbids to write to a disk
/// that nobody can read.
#[test]
fn a_machine_that_loses_power_boots_no_half_image_and_completes_next_time() {
    let lab = Lab::new();
    let seeds = seeds();
    let image = |seed: u64| &lab.images[(seed % 2) as usize];
    let mut platter = image(seeds.start + 1).disk();
    let mut left = None;
    let mut seen = Vec::new();
    for seed in seeds.clone() {
        let mut random = Random(seed);
        let cut = Cut::draw(&mut random);
        let told = Seed(seed, cut);
        // Now and then a cut hits the disk that a cut left.
        let again = random.below(5) == 0;
        let complete = left.filter(|_| !again);
        let before = complete.map_or_else(|| platter.clone(), Image::disk);
        let begun = image(seed);
        let booted = lab.boot(platter.clone(), &Work::new(complete, Some(begun)), cut);
        let reset = expect_safe(&before, &std::fs::read(&lab.file).unwrap(), begun);
        let lost = booted.lost(booted.at, &mut random);
        let state = expect_safe(&before, &lost, begun);
        println!("seed {seed}: {cut:?}: after a reset {reset:?}, without the cache {state:?}");
        seen.push(state);
        if let Some(image) = complete {
            booted.more(0..booted.from, &platter, image, &mut random, &mut seen);
        }
        booted.more(
            booted.from..booted.at,
            &before,
            begun,
            &mut random,
            &mut seen,
        );
        platter = lost;
        left = Some(begun);
        drop(told);
    }
    let never = Cut {
        flushes: usize::MAX,
        writes: 0,
    };
    let told = Seed(seeds.end, never);
    lab.boot(platter, &Work::new(left, None), never);
    drop(told);
    let of = |state| seen.iter().filter(|seen| **seen == state).count();
    let counts = [State::Earlier, State::Nothing, State::Whole].map(of);
    println!("earlier system, nothing, whole image: {counts:?}");
    assert!(
        counts.iter().all(|count| *count > 0),
        "the cuts missed a phase: {counts:?}"
    );
}
