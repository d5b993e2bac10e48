//! Reads frames from the disk, on several threads, and compares them with the manifest: before a
//! write (what need not be fetched) and after it (what arrived).

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use anneal_image::{Manifest, is_slice};
use anneal_protocol::agent::StepFailure;

use super::crew::{self, Crew, Watch};
use super::device::{Aligned, Disk};
use super::write::failed;

/// Frames with data that are looked at first, spread over the disk. When none of them is right,
/// fewer than one in ten of all is (19 times out of 20), and reading the rest does not pay.
const SAMPLE: usize = 32;

/// What a frame is that the disk cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Not there: writing it may well repair it.
    Differs,
    /// The end.
    Fails,
}

/// Which of these frames are on the disk as the manifest says: one flag for each entry.
///
/// # Errors
/// When the disk cannot be read, unless `unreadable` says that this is only another difference,
/// and what `watch` says.
pub fn compare<D: Disk>(
    disk: &D,
    manifest: &Manifest,
    frames: &[usize],
    threads: usize,
    unreadable: Unreadable,
    watch: Watch<'_>,
) -> Result<Vec<bool>, StepFailure> {
    let next = AtomicUsize::new(0);
    let same = Mutex::new(vec![false; frames.len()]);
    let work = |_, crew: &Crew| {
        let mut memory = Aligned::new(manifest.frame_size() as usize);
        while !crew.stopped() {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&frame) = frames.get(at) else {
                break;
            };
            let range = manifest.raw_range(frame);
            let raw = &mut memory[..manifest.raw_length(frame)];
            let read = disk.read_at(range.start, raw);
            if unreadable == Unreadable::Fails {
                read.as_ref().map_err(|e| failed("read", range.start, e))?;
            }
            if read.is_ok() && is_slice(manifest, frame, raw) {
                same.lock().unwrap_or_else(PoisonError::into_inner)[at] = true;
            }
            crew.done(range.end - range.start);
        }
        Ok(())
    };
    crew::run(threads.min(frames.len()), &work, &|| (), watch)?;
    Ok(same.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What is on the disk already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// One flag a frame: the disk holds it. False also for what was not looked at.
    pub same: Vec<bool>,
    /// Frames that were read.
    pub looked_at: Vec<usize>,
}

impl Survey {
    /// Nothing was looked at.
    #[must_use]
    pub fn none(manifest: &Manifest) -> Self {
        Self {
            same: vec![false; manifest.frames().len()],
            looked_at: Vec::new(),
        }
    }

    /// Looks at the disk: at a sample, and at all of it when the sample says that it can pay.
    /// `watch` hears of the bytes read in both.
    ///
    /// # Errors
    /// As [`compare`].
    pub fn take<D: Disk>(
        disk: &D,
        manifest: &Manifest,
        threads: usize,
        watch: Watch<'_>,
    ) -> Result<Self, StepFailure> {
        let mut survey = Self::none(manifest);
        let first = sample(manifest);
        survey.look(disk, manifest, &first, threads, &mut *watch)?;
        let read: u64 = first.iter().map(|f| manifest.raw_length(*f) as u64).sum();
        let rest: Vec<usize> = (0..manifest.frames().len())
            .filter(|frame| first.binary_search(frame).is_err())
            .collect();
        if first.is_empty() || first.iter().any(|&frame| survey.same[frame]) {
            survey.look(disk, manifest, &rest, threads, &mut |bytes| {
                watch(read + bytes)
            })?;
        }
        Ok(survey)
    }

    fn look<D: Disk>(
        &mut self,
        disk: &D,
        manifest: &Manifest,
        frames: &[usize],
        threads: usize,
        watch: Watch<'_>,
    ) -> Result<(), StepFailure> {
        let same = compare(disk, manifest, frames, threads, Unreadable::Differs, watch)?;
        for (&frame, same) in frames.iter().zip(same) {
            self.same[frame] = same;
        }
        self.looked_at.extend_from_slice(frames);
        Ok(())
    }
}

/// Frames with data, evenly spread; ascending.
fn sample(manifest: &Manifest) -> Vec<usize> {
    let frames = manifest.frames().iter().enumerate();
    let data: Vec<usize> = frames
        .filter(|(_, frame)| !frame.is_zero())
        .map(|(index, _)| index)
        .collect();
    if data.len() <= SAMPLE {
        return data;
    }
    (0..SAMPLE).map(|n| data[n * data.len() / SAMPLE]).collect()
}
