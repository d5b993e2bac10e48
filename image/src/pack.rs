//! From a raw disk to `data.zst` and what its manifest needs: one pass, bounded memory.
//!
//! The calling thread reads, hashes the whole and writes; workers compress and hash slices. A
//! fixed number of buffers goes round between them, so memory is `(threads + 2)` times two
//! frames, at most [`MEMORY`], and the output does not depend on the number of threads.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

use crate::decode::is_zero;
use crate::manifest::{
    DEFAULT_FRAME_SIZE, Frame, MAX_FRAME_SIZE, MAX_FRAMES, Manifest, ManifestError, SECTOR,
    check_frame_size,
};
use crate::proof::Proof;
use crate::seek;
use crate::table::{self, Found, Table};

/// Most memory for buffers, unless two threads need more.
const MEMORY: u64 = 128 << 20;

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// Bytes of the disk in a frame; a disk that would have too many of them gets larger ones.
    pub frame_size: u32,
    /// Bytes of the raw disk, where they are known before it is read. A GPT says it as well.
    pub size: Option<u64>,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Threads that compress.
    pub threads: usize,
}

impl Default for PackOptions {
    /// What is good for most: [`DEFAULT_FRAME_SIZE`], level 3, a thread for each processor.
    fn default() -> Self {
        Self {
            frame_size: DEFAULT_FRAME_SIZE,
            size: None,
            level: 3,
            threads: thread::available_parallelism()
                .map_or(1, std::num::NonZero::get)
                .min(16),
        }
    }
}

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The source failed.
    #[error("reading the raw disk at byte {at}")]
    Read {
        /// How much had been read.
        at: u64,
        /// Its word.
        #[source]
        source: std::io::Error,
    },
    /// The store failed (disk full).
    #[error("writing the image data at byte {at}")]
    Write {
        /// How much had been written.
        at: u64,
        /// Its word.
        #[source]
        source: std::io::Error,
    },
    /// The compressor failed.
    #[error("compressing a frame")]
    Compress(#[source] std::io::Error),
    /// Nothing came.
    #[error("the source is empty, a raw disk was expected")]
    Empty,
    /// Not a disk.
    #[error(
        "the source has {0} bytes, which is not a multiple of {SECTOR}: it is not a raw disk or was cut short"
    )]
    NotSectors(u64),
    /// Too many frames of any size.
    #[error("the raw disk has {size} bytes, an image can have {most}")]
    TooLarge {
        /// Bytes of the disk.
        size: u64,
        /// Bytes an image can have.
        most: u64,
    },
    /// Too many frames, when it is too late for larger ones.
    #[error(
        "the raw disk goes on after {0} bytes, and nothing said so before it was read: a disk this large must have a GPT or come as a raw file"
    )]
    Unforeseen(u64),
    /// The options are wrong.
    #[error("the image cannot be packed: {0}")]
    Options(String),
}

/// What is known of an image beside its bytes.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Family of the operating system, see [`Manifest::os`].
    pub os: String,
    /// Its version.
    pub os_version: Option<String>,
    /// Partitions that are expected to change on a machine that runs: label, number or UUID.
    pub mutable: Vec<String>,
    /// The publisher's proof.
    pub proof: Option<Proof>,
}

/// A raw disk that has been packed; lacks the [`Facts`] to be a manifest.
#[derive(Debug, Clone)]
pub struct Packed {
    size: u64,
    frame_size: u32,
    sha256: [u8; 32],
    frames: Vec<Frame>,
    found: Found,
}

impl Packed {
    /// Bytes of the raw disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// SHA-256 of the raw disk, lower-case hex.
    #[must_use]
    pub fn sha256(&self) -> String {
        hex::encode(self.sha256)
    }

    /// The partition table that was found.
    #[must_use]
    pub fn table(&self) -> Option<&Table> {
        self.found.table.as_ref()
    }

    /// Why there is no table although there seemed to be one.
    #[must_use]
    pub fn table_problem(&self) -> Option<&str> {
        self.found.problem.as_deref()
    }

    /// How many bytes the disk must have by its GPT, whose backup is in the last sector: more
    /// than [`Packed::size`] means that it was cut short.
    #[must_use]
    pub fn table_end(&self) -> Option<u64> {
        self.found.end
    }

    /// The manifest.
    ///
    /// # Errors
    /// When a partition of [`Facts::mutable`] does not exist, or a fact breaks a rule of the
    /// format.
    pub fn into_manifest(self, facts: Facts) -> Result<Manifest, ManifestError> {
        let mut table = self.found.table;
        match (&mut table, facts.mutable.first()) {
            (_, None) => {}
            (Some(table), Some(_)) => table
                .mark_mutable(&facts.mutable)
                .map_err(ManifestError::Mutable)?,
            (None, Some(name)) => {
                let reason = self.found.problem;
                let reason = reason.unwrap_or_else(|| "the disk has no partition table".to_owned());
                return Err(ManifestError::Mutable(format!(
                    "partition {name:?} cannot be found: {reason}"
                )));
            }
        }
        Manifest {
            os: facts.os,
            os_version: facts.os_version,
            size: self.size,
            frame_size: self.frame_size,
            sha256: self.sha256,
            table,
            proof: facts.proof,
            frames: self.frames,
        }
        .checked()
    }
}

/// Packs the raw disk that comes out of `reader` into `writer`, which holds all of `data.zst`
/// in the end. `progress` is told how many raw bytes are packed. Syncing the writer is the
/// caller's work.
///
/// # Errors
/// When the source or the store fails, or the source is not a disk. What was written is then
/// not an image.
pub fn pack(
    reader: &mut dyn Read,
    writer: &mut dyn Write,
    options: &PackOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Packed, PackError> {
    // Refuse wrong options before reading gigabytes.
    check_frame_size(options.frame_size).map_err(PackError::Options)?;
    let mut head = Vec::new();
    let read = (&mut *reader)
        .take(table::HEAD as u64)
        .read_to_end(&mut head);
    let at = head.len() as u64;
    read.map_err(|source| PackError::Read { at, source })?;
    let told = table::read(&head, u64::MAX).end;
    let size = options.size.max(told).unwrap_or(0);
    let frame_size = frame_size_for(size, options.frame_size)?;
    let threads = threads_for(frame_size, options.threads);
    let mut source = Source {
        reader: (&head[..]).chain(reader),
        sha256: Sha256::new(),
        frame_size: frame_size as usize,
        size: 0,
    };
    let mut sink = Sink {
        writer,
        progress,
        frames: Vec::new(),
        offset: 0,
        packed: 0,
    };
    let (todo, work) = channel();
    let work = Mutex::new(work);
    let (finished, done) = channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (work, finished) = (&work, finished.clone());
            scope.spawn(move || compress(work, &finished, options.level));
        }
        drop(finished);
        circulate(&mut source, &mut sink, todo, &done, threads)
    })?;
    if source.size == 0 {
        return Err(PackError::Empty);
    }
    if !source.size.is_multiple_of(SECTOR) {
        return Err(PackError::NotSectors(source.size));
    }
    sink.finish(source.size, frame_size)?;
    Ok(Packed {
        size: source.size,
        frame_size,
        sha256: source.sha256.finalize().into(),
        found: table::read(&head, source.size),
        frames: sink.frames,
    })
}

/// The smallest frames, from `least` on, of which a disk of `size` bytes does not have too many.
fn frame_size_for(size: u64, least: u32) -> Result<u32, PackError> {
    let most = MAX_FRAMES * u64::from(MAX_FRAME_SIZE);
    if size > most {
        return Err(PackError::TooLarge { size, most });
    }
    let mut frame_size = least;
    while size.div_ceil(frame_size.into()) > MAX_FRAMES {
        frame_size *= 2;
    }
    Ok(frame_size)
}

/// As many threads as asked for, if their buffers fit into [`MEMORY`].
fn threads_for(frame_size: u32, wanted: usize) -> usize {
    let fit = MEMORY / (2 * u64::from(frame_size));
    let fit = usize::try_from(fit.saturating_sub(2)).unwrap_or(usize::MAX);
    wanted.min(fit).max(1)
}

/// A buffer for one slice on its way round.
#[derive(Default)]
struct Slice {
    index: usize,
    raw: Vec<u8>,
    digest: Option<[u8; 32]>,
    encoded: Vec<u8>,
}

type Finished = std::io::Result<Slice>;

/// Reads slices, hands them to the workers, and writes what they return in order. Returning
/// drops `todo`, which ends the workers.
fn circulate(
    source: &mut Source<impl Read>,
    sink: &mut Sink<'_>,
    todo: Sender<Slice>,
    done: &Receiver<Finished>,
    threads: usize,
) -> Result<(), PackError> {
    let stopped = || PackError::Compress(std::io::Error::other("a worker has stopped"));
    let mut free: Vec<Slice> = (0..threads + 2).map(|_| Slice::default()).collect();
    let mut early = BTreeMap::new();
    let (mut sent, mut written) = (0, 0);
    let mut at_end = false;
    while !at_end || written < sent {
        if !at_end && let Some(mut slice) = free.pop() {
            source.fill(&mut slice.raw)?;
            if slice.raw.is_empty() {
                at_end = true;
            } else {
                slice.index = sent;
                sent += 1;
                todo.send(slice).map_err(|_| stopped())?;
            }
            continue;
        }
        let slice = done
            .recv()
            .map_err(|_| stopped())?
            .map_err(PackError::Compress)?;
        early.insert(slice.index, slice);
        while let Some(slice) = early.remove(&written) {
            sink.write(&slice)?;
            written += 1;
            free.push(slice);
        }
    }
    Ok(())
}

fn compress(work: &Mutex<Receiver<Slice>>, finished: &Sender<Finished>, level: i32) {
    let mut zstd = match zstd::bulk::Compressor::new(level) {
        Ok(zstd) => zstd,
        Err(error) => {
            // Nobody listens when another worker has failed before.
            let _ = finished.send(Err(error));
            return;
        }
    };
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut slice) = next else { return };
        slice.digest = (!is_zero(&slice.raw)).then(|| blake3::hash(&slice.raw).into());
        slice.encoded.clear();
        let bound = zstd::zstd_safe::compress_bound(slice.raw.len());
        slice.encoded.reserve(bound);
        let result = zstd
            .compress_to_buffer(&slice.raw, &mut slice.encoded)
            .map(|_| slice);
        if finished.send(result).is_err() {
            return;
        }
    }
}

struct Source<R> {
    reader: R,
    sha256: Sha256,
    frame_size: usize,
    size: u64,
}

impl<R: Read> Source<R> {
    /// The next slice: full, or the last one, or empty at the end.
    fn fill(&mut self, raw: &mut Vec<u8>) -> Result<(), PackError> {
        raw.resize(self.frame_size, 0);
        let mut filled = 0;
        while filled < raw.len() {
            match self.reader.read(&mut raw[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(PackError::Read {
                        at: self.size + filled as u64,
                        source,
                    });
                }
            }
        }
        raw.truncate(filled);
        self.sha256.update(&raw);
        self.size += filled as u64;
        let most = MAX_FRAMES * self.frame_size as u64;
        if self.size > most {
            return Err(PackError::Unforeseen(most));
        }
        Ok(())
    }
}

struct Sink<'w> {
    writer: &'w mut dyn Write,
    progress: &'w mut dyn FnMut(u64),
    frames: Vec<Frame>,
    offset: u64,
    packed: u64,
}

impl Sink<'_> {
    fn write(&mut self, slice: &Slice) -> Result<(), PackError> {
        let at = self.offset;
        self.writer
            .write_all(&slice.encoded)
            .map_err(|source| PackError::Write { at, source })?;
        self.frames.push(Frame {
            offset: at,
            // Bounded by zstd's bound for MAX_FRAME_SIZE.
            length: u32::try_from(slice.encoded.len()).unwrap_or(u32::MAX),
            digest: slice.digest,
        });
        self.offset += slice.encoded.len() as u64;
        self.packed += slice.raw.len() as u64;
        (self.progress)(self.packed);
        Ok(())
    }

    /// Writes the seek table.
    fn finish(&mut self, size: u64, frame_size: u32) -> Result<(), PackError> {
        let table = seek::table(&self.frames, size, frame_size);
        self.writer
            .write_all(&table)
            .and_then(|()| self.writer.flush())
            .map_err(|source| PackError::Write {
                at: self.offset,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::MIN_FRAME_SIZE;

    const MIB: u64 = 1 << 20;

    #[test]
    fn large_disks_get_large_frames() {
        let default = u64::from(DEFAULT_FRAME_SIZE);
        let most = MAX_FRAMES * u64::from(MAX_FRAME_SIZE);
        for (size, frame) in [
            (0, MIB),
            (MAX_FRAMES * default, MIB),
            (MAX_FRAMES * default + 1, 2 * MIB),
            (1 << 40, 4 * MIB),
            (most, 16 * MIB),
        ] {
            let found = frame_size_for(size, DEFAULT_FRAME_SIZE).unwrap();
            assert_eq!(u64::from(found), frame, "{size}");
        }
        let error = frame_size_for(most + 1, MIN_FRAME_SIZE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the raw disk has 4398046511105 bytes, an image can have 4398046511104"
        );
        assert!(frame_size_for(u64::MAX, MIN_FRAME_SIZE).is_err());
    }

    #[test]
    fn buffers_are_bounded() {
        for (frame, wanted, threads) in [
            (DEFAULT_FRAME_SIZE, 16, 16),
            (4 << 20, 16, 14),
            (MAX_FRAME_SIZE, 16, 2),
            (DEFAULT_FRAME_SIZE, 0, 1),
        ] {
            assert_eq!(threads_for(frame, wanted), threads);
        }
    }

    /// The source is not read beyond what tells its size.
    #[test]
    fn what_is_too_large_is_refused_before_it_is_read() {
        struct Counting(u64);
        impl Read for Counting {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                buffer.fill(0);
                self.0 += buffer.len() as u64;
                Ok(buffer.len())
            }
        }
        let mut endless = Counting(0);
        let options = PackOptions {
            size: Some(u64::MAX),
            ..PackOptions::default()
        };
        let error = pack(&mut endless, &mut std::io::sink(), &options, &mut |_| ());
        assert!(matches!(error, Err(PackError::TooLarge { .. })));
        assert!(endless.0 <= 2 * MIB, "{} bytes were read", endless.0);
    }
}
