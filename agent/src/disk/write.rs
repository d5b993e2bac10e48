//! Writes a sealed image so that no half of it is ever bootable.
//!
//! Order: look at what is there, if asked; have one verified frame in hand; clear what the disk
//! boots from; zeros and verified frames, in any order, on several threads; read back, if asked;
//! then the frames that make a disk bootable, from memory. [`order`] says in which pieces. Each
//! phase is flushed before the next begins. A power cut anywhere leaves the earlier system, or a
//! disk that no firmware starts, or the whole image.
//!
//! The same holds when only what differs is written: unless the disk is the image already, the
//! first frame is cleared first and written last, whether or not it differs. When it does not, it
//! is read into memory before it is cleared, and not fetched.
//!
//! Knows no network: encoded frames come from a [`Supply`].

mod leave;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anneal_image::{Grow, Grown, Manifest, WritePlan, is_slice};
use anneal_protocol::agent::{Amount, Delta, FailureCode, StepFailure, Verify};

use super::body::{self, Body, First, Held, Supply};
use super::compare::{Survey, Unreadable, compare};
use super::device::{Aligned, Disk};
use super::{grow, order};
use crate::step::fail_for_now;

/// What to do.
#[derive(Debug)]
pub struct Job<'a, D> {
    /// The image.
    pub manifest: &'a Manifest,
    /// Where it goes.
    pub disk: &'a D,
    /// Look at the disk first?
    pub delta: Delta,
    /// Read it back?
    pub verify: Verify,
    /// Threads that decode and write, or read and compare.
    pub workers: usize,
    /// The partition that takes what the disk has beyond the image.
    pub grow: Option<&'a Grow>,
}

impl<D> Clone for Job<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for Job<'_, D> {}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Frames of data written.
    pub written: Amount,
    /// Frames made zero.
    pub zeroed: Amount,
    /// Frames left alone.
    pub unchanged: Amount,
    /// Frames read before the first write.
    pub compared: Amount,
    /// Frames read back.
    pub read_back: Option<Amount>,
    /// Time of looking.
    pub compare_time: Duration,
    /// Time from the first change to the last flush, without reading back.
    pub write_time: Duration,
    /// Time of reading back.
    pub verify_time: Duration,
    /// Bytes of the grown partition.
    pub grown: Option<u64>,
}

/// A failure of the disk at a place.
pub(super) fn failed(what: &str, offset: u64, error: &io::Error) -> StepFailure {
    fail_for_now(
        FailureCode::DiskIo,
        format!("cannot {what} the disk at byte {offset}: {error}"),
    )
}

pub(super) fn flush<D: Disk>(disk: &D) -> Result<(), StepFailure> {
    disk.flush()
        .map_err(|e| fail_for_now(FailureCode::DiskIo, format!("cannot flush the disk: {e}")))
}

fn mismatch(frame: usize) -> StepFailure {
    fail_for_now(
        FailureCode::ReadBackMismatch,
        format!(
            "frame {frame} does not read back as it was written: the disk does not store what is written to it"
        ),
    )
}

fn overlaps(ranges: &[Range<u64>], with: &Range<u64>) -> bool {
    let mut ranges = ranges.iter();
    ranges.any(|range| range.start < with.end && with.start < range.end)
}

/// Called now and then with bytes done, which never become fewer, and in all, which may: an error stops the writing.
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64) -> Result<(), StepFailure>;

/// One write in progress.
struct Writer<'a, D> {
    job: Job<'a, D>,
    plan: WritePlan,
    watch: Watch<'a>,
    /// Bytes of work done and in all, for `watch`.
    done: u64,
    total: u64,
    result: Written,
    /// Frames that are written from memory: those of `plan.last`, and others that are right but
    /// lie where the disk is cleared.
    held: Held,
}

/// Writes the whole image. `begin` is called with the frames that are wanted, one flag each, if
/// there are any. Nothing is changed on the disk before the first of them is verified.
///
/// # Errors
/// `DiskTooSmall`, `DiskIo`, `ReadBackMismatch`, and what the supply and `watch` say. The disk is
/// then as it was, or not bootable; one that lets nothing be taken back is named in the message.
pub fn write_image<D: Disk, S: Supply>(
    job: Job<'_, D>,
    begin: impl FnOnce(Vec<bool>) -> Result<S, StepFailure>,
    watch: Watch<'_>,
) -> Result<(Written, Option<S>), StepFailure> {
    let plan = WritePlan::new(job.manifest, job.disk.size())
        .map_err(|e| crate::step::fail(FailureCode::DiskTooSmall, e.to_string()))?;
    // Comparing, writing, reading back: a pass over the image each.
    let passes = 1 + u64::from(job.delta != Delta::Off) + u64::from(job.verify != Verify::None);
    let mut writer = Writer {
        job,
        plan,
        watch,
        done: 0,
        total: job.manifest.size() * passes,
        result: Written::default(),
        held: Mutex::default(),
    };
    let survey = writer.survey()?;
    if survey.same.iter().all(|same| *same) {
        writer.nothing_to_do(&survey)?;
        return Ok((writer.result, None));
    }
    let supply = writer.change(&survey, begin)?;
    Ok((writer.result, supply))
}

impl<D: Disk> Writer<'_, D> {
    fn survey(&mut self) -> Result<Survey, StepFailure> {
        let mut survey = self.look()?;
        if self.job.grow.is_some() {
            // What is written there is not what the image has.
            survey.same[0] = false;
        }
        Ok(survey)
    }

    fn look(&mut self) -> Result<Survey, StepFailure> {
        let Job { manifest, disk, .. } = self.job;
        if self.job.delta == Delta::Off {
            return Ok(Survey::none(manifest));
        }
        let begin = Instant::now();
        disk.drop_cache()
            .map_err(|e| failed("drop the cache of", 0, &e))?;
        let total = self.total;
        let watch = &mut self.watch;
        let survey = Survey::take(disk, manifest, self.job.workers, &mut |bytes| {
            watch(bytes, total)
        })?;
        for &frame in &survey.looked_at {
            self.result.compared.add(manifest.raw_length(frame) as u64);
        }
        let same = survey.same.iter().enumerate().filter(|(_, same)| **same);
        let kept: u64 = same.map(|(f, _)| manifest.raw_length(f) as u64).sum();
        // The pass is over, also when a sample of the disk was enough: then it was a shorter one.
        let read = self.result.compared.bytes;
        self.total -= manifest.size().saturating_sub(read);
        self.done = read + kept;
        self.result.compare_time = begin.elapsed();
        Ok(survey)
    }

    fn change<S: Supply>(
        &mut self,
        survey: &Survey,
        begin: impl FnOnce(Vec<bool>) -> Result<S, StepFailure>,
    ) -> Result<Option<S>, StepFailure> {
        let kept = self.keep(survey)?;
        // What is right and is not cleared either stays as it is.
        let stays = |index: &usize| survey.same[*index] && !kept.contains(index);
        self.plan.last.retain(|index| !stays(index));
        let frames = self.job.manifest.frames().iter().zip(&survey.same);
        let wanted: Vec<bool> = frames
            .enumerate()
            .map(|(index, (frame, same))| {
                !frame.is_zero() && !same && !self.lock().contains_key(&index)
            })
            .collect();
        let supply = if wanted.contains(&true) {
            Some(begin(wanted)?)
        } else {
            None
        };
        // Without a verified frame, the disk stays as it is.
        let first = match &supply {
            Some(supply) => {
                let (done, total) = (self.done, self.total);
                let watch = &mut self.watch;
                body::first(self.job.manifest, supply, &mut |_| watch(done, total))?
            }
            None => None,
        };
        if self.is_grown(survey, supply.as_ref(), first.as_ref())? {
            return Ok(supply);
        }
        let started = Instant::now();
        self.clear()?;
        self.body(supply.as_ref(), first, &kept, survey)?;
        self.result.write_time = started.elapsed();
        self.count(survey, &kept);
        if self.job.verify != Verify::None {
            let begin = Instant::now();
            self.read_back(survey, &kept)?;
            self.result.verify_time = begin.elapsed();
        }
        let started = Instant::now();
        self.finish()
            .map_err(|failure| order::give_up(self.job.disk, &self.plan.clear, failure))?;
        self.result.write_time += started.elapsed();
        Ok(supply)
    }

    /// Frames that are right but lie where the disk is about to be cleared: into memory.
    fn keep(&mut self, survey: &Survey) -> Result<Vec<usize>, StepFailure> {
        let Job { manifest, disk, .. } = self.job;
        let mut kept = Vec::new();
        for (index, frame) in manifest.frames().iter().enumerate() {
            let range = manifest.raw_range(index);
            let cleared = overlaps(&self.plan.clear, &range);
            if frame.is_zero() || !survey.same[index] || !cleared {
                continue;
            }
            let mut raw = Aligned::new(manifest.raw_length(index));
            disk.read_at(range.start, &mut raw)
                .map_err(|e| failed("read", range.start, &e))?;
            if !is_slice(manifest, index, &raw) {
                let text = format!("frame {index} reads differently each time");
                return Err(fail_for_now(FailureCode::DiskIo, text));
            }
            self.lock().insert(index, raw);
            kept.push(index);
        }
        Ok(kept)
    }

    /// After this the disk boots nothing.
    fn clear(&mut self) -> Result<(), StepFailure> {
        let disk = self.job.disk;
        order::clear_tables(disk)?;
        for range in &self.plan.clear {
            disk.zero(range.clone())
                .map_err(|e| failed("clear", range.start, &e))?;
        }
        self.flush()
    }

    /// Everything but the frames that make it bootable.
    fn body<S: Supply>(
        &mut self,
        supply: Option<&S>,
        first: Option<First>,
        kept: &[usize],
        survey: &Survey,
    ) -> Result<(), StepFailure> {
        for index in kept.iter().filter(|index| !self.plan.last.contains(index)) {
            if let Some(raw) = self.lock().remove(index) {
                self.put(*index, &raw)?;
            }
        }
        if let (Some(first), Some(supply)) = (first, supply) {
            if self.plan.last.contains(&first.index) {
                self.lock().insert(first.index, first.raw);
            } else {
                self.put(first.index, &first.raw)?;
            }
            supply.judge(first.index, first.source, true);
        }
        let body = Body {
            manifest: self.job.manifest,
            disk: self.job.disk,
            supply,
            held: &self.held,
            last: &self.plan.last,
            zeroes: Mutex::new(body::zero_pieces(self.job.manifest, survey)),
        };
        let (done, total) = (self.done, self.total);
        let watch = &mut self.watch;
        let mut latest = 0;
        body.run(self.job.workers, &mut |bytes| {
            latest = bytes;
            watch((done + bytes).min(total), total)
        })?;
        self.done += latest;
        self.flush()
    }

    fn put(&self, index: usize, raw: &[u8]) -> Result<(), StepFailure> {
        let start = self.job.manifest.raw_range(index).start;
        self.job
            .disk
            .write_at(start, raw)
            .map_err(|e| failed("write", start, &e))
    }

    /// Compares what is on the disk with the manifest, but for the frames still held back.
    fn read_back(&mut self, survey: &Survey, kept: &[usize]) -> Result<(), StepFailure> {
        let Job { manifest, disk, .. } = self.job;
        let frames: Vec<usize> = (0..manifest.frames().len())
            .filter(|index| !self.plan.last.contains(index))
            .filter(|index| {
                self.job.verify == Verify::Full || !survey.same[*index] || kept.contains(index)
            })
            .collect();
        disk.drop_cache()
            .map_err(|e| failed("drop the cache of", 0, &e))?;
        // The last pass.
        let (done, total) = (self.total - manifest.size(), self.total);
        let watch = &mut self.watch;
        let same = compare(
            disk,
            manifest,
            &frames,
            self.job.workers,
            Unreadable::Fails,
            &mut |bytes| watch((done + bytes).min(total), total),
        )?;
        let mut amount = Amount::default();
        for (&frame, same) in frames.iter().zip(same) {
            if !same {
                return Err(mismatch(frame));
            }
            amount.add(manifest.raw_length(frame) as u64);
        }
        self.result.read_back = Some(amount);
        Ok(())
    }

    /// Makes the disk bootable: the frames held back, in the pieces that [`order`] names. When it
    /// fails, the disk may boot.
    fn finish(&mut self) -> Result<(), StepFailure> {
        let Job { manifest, disk, .. } = self.job;
        let mut held = std::mem::take(&mut *self.lock());
        let grown = match self.job.grow {
            Some(which) => grow::apply(manifest, disk, which, &mut held)?,
            None => None,
        };
        let groups = order::finish(manifest, &self.plan.last, disk.size(), disk.sector());
        // Its header goes with the other headers, when everything that they lead to is on the disk.
        let mut backup = grown.as_ref().map_or([None, None, None], |grown| {
            let header = grown.backup.len() - disk.sector() as usize;
            let (entries, header) = grown.backup.split_at(header);
            let at = grown.backup_at;
            let header_at = at + entries.len() as u64;
            [Some((at, entries)), Some((header_at, header)), None]
        });
        for (number, group) in groups.into_iter().enumerate() {
            if let Some((at, bytes)) = backup[number].take() {
                disk.write_at(at, bytes)
                    .map_err(|e| failed("write", at, &e))?;
            }
            for part in group {
                let raw = held.get(&part.frame).ok_or_else(|| {
                    let text = format!("frame {} is not in memory", part.frame);
                    fail_for_now(FailureCode::Internal, text)
                })?;
                let start = manifest.raw_range(part.frame).start + part.bytes.start as u64;
                disk.write_at(start, &raw[part.bytes])
                    .map_err(|e| failed("write", start, &e))?;
            }
            self.flush()?;
        }
        self.result.grown = grown.as_ref().map(|grown| grown.size);
        if self.job.verify != Verify::None && !self.plan.last.is_empty() {
            self.read_back_last(grown.as_ref())?;
        }
        self.tell_end();
        Ok(())
    }

    /// Progress at the end. What is finished stays so, also when nobody wants it any more.
    fn tell_end(&mut self) {
        let _ = (self.watch)(self.total, self.total);
    }

    /// The frames that were held back.
    fn read_back_last(&mut self, grown: Option<&Grown>) -> Result<(), StepFailure> {
        let Job { manifest, disk, .. } = self.job;
        disk.drop_cache()
            .map_err(|e| failed("drop the cache of", 0, &e))?;
        let sealed = |frame: &&usize| grown.is_none() || **frame != 0;
        let frames: Vec<usize> = self.plan.last.iter().filter(sealed).copied().collect();
        let same = compare(disk, manifest, &frames, 1, Unreadable::Fails, &mut |_| {
            Ok(())
        })?;
        let mut wrong = same.iter().position(|same| !same).map(|at| frames[at]);
        if let Some(grown) = grown
            && !grow::reads_back(disk, grown)?
        {
            wrong = Some(0);
        }
        if let Some(frame) = wrong {
            return Err(mismatch(frame));
        }
        let amount = self.result.read_back.get_or_insert_default();
        for &frame in &self.plan.last {
            amount.add(manifest.raw_length(frame) as u64);
        }
        Ok(())
    }

    /// What was done to which frame. A frame that was right and had to be written again counts
    /// as written.
    fn count(&mut self, survey: &Survey, kept: &[usize]) {
        let manifest = self.job.manifest;
        for (index, frame) in manifest.frames().iter().enumerate() {
            let amount = match (
                survey.same[index] && !kept.contains(&index),
                frame.is_zero(),
            ) {
                (true, _) => &mut self.result.unchanged,
                (false, true) => &mut self.result.zeroed,
                (false, false) => &mut self.result.written,
            };
            amount.add(manifest.raw_length(index) as u64);
        }
    }

    fn flush(&self) -> Result<(), StepFailure> {
        flush(self.job.disk)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Aligned>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
