//! The bulk of a write: frames decoded, verified and written, and zeros, on several threads.
//!
//! Each thread decodes into memory of its own and writes from there: while some wait for the
//! disk, others decode, and the disk always has as much queued as there are threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anneal_image::{FrameDecoder, Manifest};
use anneal_protocol::agent::{FailureCode, StepFailure};

use super::compare::Survey;
use super::crew::{self, Crew, Watch};
use super::device::{Aligned, Disk};
use super::write::failed;
use crate::step::fail_for_now;

/// Zeroing is handed out in pieces of this, so that several threads can share it.
const ZERO_PIECE: u64 = 64 << 20;

/// Encoded frames, in any order.
pub trait Supply: Sync {
    /// The bytes of one frame.
    type Bytes: AsRef<[u8]>;
    /// The next frame: its index, who sent it, its bytes; waits for it. None when every wanted
    /// frame was judged right, or after [`Supply::stop`].
    ///
    /// # Errors
    /// Why no more will come.
    fn next(&self) -> Result<Option<(usize, usize, Self::Bytes)>, StepFailure>;
    /// Says whether a frame had the right digest; one that had not comes again.
    fn judge(&self, frame: usize, source: usize, right: bool);
    /// Nothing more is wanted.
    fn stop(&self);
}

/// Frames in memory, until their time comes.
pub type Held = Mutex<BTreeMap<usize, Aligned>>;

/// The first verified frame, not judged yet: the supply ends with the last one that is.
#[derive(Debug)]
pub struct First {
    /// Index.
    pub index: usize,
    /// Who sent it.
    pub source: usize,
    /// The slice of the disk.
    pub raw: Aligned,
}

/// Waits for a frame that is right.
///
/// # Errors
/// What the supply and `watch` say.
pub fn first<S: Supply>(
    manifest: &Manifest,
    supply: &S,
    watch: Watch<'_>,
) -> Result<Option<First>, StepFailure> {
    let found = Mutex::new(None);
    let work = |_, _: &Crew| {
        let mut decoder = decoder()?;
        while let Some((index, source, bytes)) = supply.next()? {
            let mut raw = Aligned::new(manifest.raw_length(index));
            let decoded = decoder.decode(manifest, index, bytes.as_ref(), &mut raw);
            if decoded.is_ok() {
                *found.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(First { index, source, raw });
                break;
            }
            supply.judge(index, source, false);
        }
        Ok(())
    };
    crew::run(1, &work, &|| supply.stop(), watch)?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What the threads share.
pub struct Body<'a, D, S> {
    /// The image.
    pub manifest: &'a Manifest,
    /// Where it goes.
    pub disk: &'a D,
    /// Where frames come from, if any are wanted.
    pub supply: Option<&'a S>,
    /// Where the frames of `last` are put.
    pub held: &'a Held,
    /// Frames that are not written now.
    pub last: &'a [usize],
    /// Ranges to make zero, the first one last.
    pub zeroes: Mutex<Vec<Range<u64>>>,
}

impl<D: Disk, S: Supply> Body<'_, D, S> {
    /// Writes until the supply ends and all ranges are zero.
    ///
    /// # Errors
    /// `DiskIo`, and what the supply and `watch` say.
    pub fn run(&self, threads: usize, watch: Watch<'_>) -> Result<(), StepFailure> {
        let work = |number: usize, crew: &Crew| {
            // One thread begins with the zeros; the others join in when no more frames come.
            if number == 0 {
                self.zero(crew)?;
            }
            self.frames(crew)?;
            self.zero(crew)
        };
        let stop = || {
            if let Some(supply) = self.supply {
                supply.stop();
            }
        };
        crew::run(threads, &work, &stop, watch)
    }

    fn frames(&self, crew: &Crew) -> Result<(), StepFailure> {
        let Some(supply) = self.supply else {
            return Ok(());
        };
        let mut decoder = decoder()?;
        let mut memory = Aligned::new(self.manifest.frame_size() as usize);
        while !crew.stopped()
            && let Some((index, source, bytes)) = supply.next()?
        {
            let decoded = decoder.decode(self.manifest, index, bytes.as_ref(), &mut memory);
            let right = decoded.is_ok();
            if let Ok(raw) = decoded {
                drop(bytes);
                self.put(index, raw)?;
                crew.done(raw.len() as u64);
            }
            supply.judge(index, source, right);
        }
        Ok(())
    }

    fn put(&self, index: usize, raw: &[u8]) -> Result<(), StepFailure> {
        if self.last.contains(&index) {
            let mut kept = Aligned::new(raw.len());
            kept.copy_from_slice(raw);
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert(index, kept);
            return Ok(());
        }
        let start = self.manifest.raw_range(index).start;
        self.disk
            .write_at(start, raw)
            .map_err(|e| failed("write", start, &e))
    }

    fn zero(&self, crew: &Crew) -> Result<(), StepFailure> {
        while !crew.stopped() {
            let piece = self
                .zeroes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let Some(piece) = piece else {
                break;
            };
            self.disk
                .zero(piece.clone())
                .map_err(|e| failed("zero", piece.start, &e))?;
            crew.done(piece.end - piece.start);
        }
        Ok(())
    }
}

/// Zero ranges that are not zero yet, in pieces, the first one last.
#[must_use]
pub fn zero_pieces(manifest: &Manifest, survey: &Survey) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (index, frame) in manifest.frames().iter().enumerate() {
        if !frame.is_zero() || survey.same[index] {
            continue;
        }
        let raw = manifest.raw_range(index);
        match ranges.last_mut() {
            Some(range) if range.end == raw.start && raw.end - range.start <= ZERO_PIECE => {
                range.end = raw.end;
            }
            _ => ranges.push(raw),
        }
    }
    ranges.reverse();
    ranges
}

fn decoder() -> Result<FrameDecoder, StepFailure> {
    FrameDecoder::new().map_err(|e| {
        let text = format!("cannot set up the decoder: {e}");
        fail_for_now(FailureCode::Internal, text)
    })
}
