//! Writes a sealed image so that no half of it is ever bootable.
//!
//! Order: clear what an earlier system boots from; zeros and verified frames; read back, if
//! asked; then the frames that make a disk bootable, from memory, where they were verified and
//! hashed. Each phase is flushed before the next begins. A power cut anywhere leaves a disk that
//! no firmware starts, or the whole image.
//!
//! Knows no network: frames come from a [`FrameSource`], in order. Another transport (several
//! connections, frames already on the disk) is another source.

use std::collections::BTreeMap;
use std::io;

use anneal_image::{Manifest, WritePlan};
use anneal_protocol::agent::{FailureCode, StepFailure, Verify};
use sha2::{Digest as _, Sha256};

use super::device::Disk;
use crate::step::fail_for_now;

/// Verified slices of the raw disk.
pub trait FrameSource {
    /// Puts the next slice into `raw` and returns its index, in ascending order, every frame of
    /// the image that is not zero at least; none after the last.
    ///
    /// # Errors
    /// Whatever keeps it from having a verified frame.
    fn next(&mut self, raw: &mut Vec<u8>) -> Result<Option<usize>, StepFailure>;
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of frames written, zeros not counted.
    pub bytes: u64,
    /// SHA-256 of what is on the disk, if it was read back.
    pub read_back_sha256: Option<String>,
}

/// Called between pieces of work with bytes done and in all; an error stops the writing.
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64) -> Result<(), StepFailure>;

/// One write in progress.
struct Writer<'a, D> {
    manifest: &'a Manifest,
    plan: &'a WritePlan,
    disk: &'a mut D,
    watch: Watch<'a>,
    done: u64,
    total: u64,
    written: u64,
    /// Frames of `plan.last`, until their time comes.
    held: BTreeMap<usize, Vec<u8>>,
}

/// Writes the whole image.
///
/// # Errors
/// `DiskIo`, `ReadBackMismatch`, and what `source` and `watch` say. The disk is then not
/// bootable.
pub fn write_image<D: Disk>(
    manifest: &Manifest,
    plan: &WritePlan,
    source: &mut dyn FrameSource,
    disk: &mut D,
    verify: Verify,
    watch: Watch<'_>,
) -> Result<Written, StepFailure> {
    let passes = if verify == Verify::ReadBack { 2 } else { 1 };
    let mut writer = Writer {
        manifest,
        plan,
        disk,
        watch,
        done: 0,
        total: manifest.size() * passes,
        written: 0,
        held: BTreeMap::new(),
    };
    writer.clear()?;
    writer.body(source)?;
    let sha256 = match verify {
        Verify::ReadBack => Some(writer.read_back()?),
        Verify::None => None,
    };
    writer.finish(verify)?;
    Ok(Written {
        bytes: writer.written,
        read_back_sha256: sha256,
    })
}

impl<D: Disk> Writer<'_, D> {
    /// After this the disk boots nothing.
    fn clear(&mut self) -> Result<(), StepFailure> {
        for range in &self.plan.clear {
            self.disk
                .zero(range.clone())
                .map_err(|e| failed("clear", range.start, &e))?;
        }
        self.flush()
    }

    /// Everything but the frames that make it bootable.
    fn body(&mut self, source: &mut dyn FrameSource) -> Result<(), StepFailure> {
        for range in &self.plan.zeroes {
            (self.watch)(self.done, self.total)?;
            self.disk
                .zero(range.clone())
                .map_err(|e| failed("zero", range.start, &e))?;
            self.done += range.end - range.start;
        }
        let mut raw = Vec::new();
        let mut expected = self.expected();
        while let Some(index) = source.next(&mut raw)? {
            if self.manifest.frames()[index].is_zero() {
                continue;
            }
            (self.watch)(self.done, self.total)?;
            if expected.next() != Some(index) {
                return Err(fail_for_now(
                    FailureCode::Internal,
                    format!("frame {index} came out of order"),
                ));
            }
            if self.plan.last.contains(&index) {
                self.held.insert(index, std::mem::take(&mut raw));
            } else {
                self.put(index, &raw)?;
            }
        }
        match expected.next() {
            None => self.flush(),
            Some(index) => Err(fail_for_now(
                FailureCode::ImageTruncated,
                format!("image data ended before frame {index}"),
            )),
        }
    }

    /// The frames with data, in the order of the disk.
    fn expected(&self) -> impl Iterator<Item = usize> + use<D> {
        let mut frames: Vec<usize> = self.plan.frames().collect();
        frames.sort_unstable();
        frames.into_iter()
    }

    /// Hashes the disk as it will be: what is on it, and the frames still held back. Returns the
    /// SHA-256 when it is the image's.
    fn read_back(&mut self) -> Result<String, StepFailure> {
        let mut hash = Sha256::new();
        let mut raw = vec![0; self.manifest.frame_size() as usize];
        for index in 0..self.manifest.frames().len() {
            (self.watch)(self.done, self.total)?;
            let length = self.manifest.raw_length(index);
            if let Some(held) = self.held.get(&index) {
                hash.update(held);
            } else {
                self.read(index, &mut raw[..length])?;
                hash.update(&raw[..length]);
            }
            self.done += length as u64;
        }
        let found = hex::encode(hash.finalize());
        if found == self.manifest.sha256() {
            return Ok(found);
        }
        Err(fail_for_now(
            FailureCode::ReadBackMismatch,
            format!(
                "the disk holds {found}, the image is {}: it does not store what is written to it",
                self.manifest.sha256()
            ),
        ))
    }

    /// Makes the disk bootable: the last frames, each flushed, each read back.
    fn finish(&mut self, verify: Verify) -> Result<(), StepFailure> {
        for &index in &self.plan.last {
            let Some(raw) = self.held.remove(&index) else {
                continue;
            };
            self.put(index, &raw)?;
            self.flush()?;
            if verify == Verify::None {
                continue;
            }
            let mut found = vec![0; raw.len()];
            self.read(index, &mut found)?;
            if found != raw {
                self.clear()?;
                return Err(fail_for_now(
                    FailureCode::ReadBackMismatch,
                    format!("frame {index} does not read back as it was written"),
                ));
            }
        }
        (self.watch)(self.total, self.total)
    }

    fn put(&mut self, index: usize, raw: &[u8]) -> Result<(), StepFailure> {
        let start = self.manifest.raw_range(index).start;
        self.disk
            .write_at(start, raw)
            .map_err(|e| failed("write", start, &e))?;
        self.written += raw.len() as u64;
        self.done += raw.len() as u64;
        Ok(())
    }

    fn read(&mut self, index: usize, into: &mut [u8]) -> Result<(), StepFailure> {
        let start = self.manifest.raw_range(index).start;
        self.disk
            .read_at(start, into)
            .map_err(|e| failed("read", start, &e))
    }

    fn flush(&mut self) -> Result<(), StepFailure> {
        self.disk
            .flush()
            .map_err(|e| fail_for_now(FailureCode::DiskIo, format!("cannot flush the disk: {e}")))
    }
}

fn failed(what: &str, offset: u64, error: &io::Error) -> StepFailure {
    fail_for_now(
        FailureCode::DiskIo,
        format!("cannot {what} the disk at byte {offset}: {error}"),
    )
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
