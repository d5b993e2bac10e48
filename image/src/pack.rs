//! From a raw disk to `data.zst` and its manifest: one pass, bounded memory.
//!
//! While the frames of one batch are compressed, one thread each, the next batch is read. So
//! memory is two batches, and the output does not depend on the number of threads.

use std::io::{ErrorKind, Read, Write};
use std::thread;

use sha2::{Digest, Sha256};

use crate::decode::is_zero;
use crate::manifest::{DEFAULT_FRAME_SIZE, Frame, MAX_FRAMES, Manifest, ManifestError, SECTOR};

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// Family of the operating system, see [`Manifest::os`].
    pub os: String,
    /// Bytes of the disk in a frame.
    pub frame_size: u32,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Threads that compress, and frames in a batch.
    pub threads: usize,
}

impl PackOptions {
    /// What is good for most: 4 MiB frames, level 3, a thread for each processor.
    #[must_use]
    pub fn new(os: impl Into<String>) -> Self {
        Self {
            os: os.into(),
            frame_size: DEFAULT_FRAME_SIZE,
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
    /// Too many frames.
    #[error("the source has more than the {0} bytes that an image of this frame size can have")]
    TooLarge(u64),
    /// The options are wrong.
    #[error("the image cannot be described")]
    Manifest(#[source] ManifestError),
}

struct Slice {
    raw: Vec<u8>,
    digest: Option<[u8; 32]>,
    encoded: Vec<u8>,
}

/// Packs the raw disk that comes out of `reader` into `writer`. `progress` is told how many raw
/// bytes are packed. Syncing the writer is the caller's work.
///
/// # Errors
/// When the source or the store fails, or the source is not a disk. What was written is then
/// not an image.
pub fn pack(
    reader: &mut dyn Read,
    writer: &mut dyn Write,
    options: &PackOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Manifest, PackError> {
    // Refuse wrong options before reading gigabytes.
    Manifest::new(
        options.os.clone(),
        SECTOR,
        options.frame_size,
        [0; 32],
        vec![Frame {
            offset: 0,
            length: 1,
            digest: None,
        }],
    )
    .map_err(PackError::Manifest)?;
    let mut source = Source {
        reader,
        sha256: Sha256::new(),
        frame_size: options.frame_size as usize,
        size: 0,
    };
    let mut frames = Vec::new();
    let mut offset = 0;
    let mut packed = 0;
    let mut batch = source.batch(options.threads)?;
    while !batch.is_empty() {
        let next = thread::scope(|scope| {
            let workers: Vec<_> = batch
                .iter_mut()
                .map(|slice| scope.spawn(|| encode(slice, options.level)))
                .collect();
            let next = source.batch(options.threads);
            for worker in workers {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    .map_err(PackError::Compress)?;
            }
            next
        })?;
        for slice in &batch {
            writer
                .write_all(&slice.encoded)
                .map_err(|source| PackError::Write { at: offset, source })?;
            frames.push(Frame {
                offset,
                // Bounded by zstd's bound for MAX_FRAME_SIZE.
                length: u32::try_from(slice.encoded.len()).unwrap_or(u32::MAX),
                digest: slice.digest,
            });
            offset += slice.encoded.len() as u64;
            packed += slice.raw.len() as u64;
        }
        progress(packed);
        batch = next;
    }
    if source.size == 0 {
        return Err(PackError::Empty);
    }
    if !source.size.is_multiple_of(SECTOR) {
        return Err(PackError::NotSectors(source.size));
    }
    writer
        .flush()
        .map_err(|source| PackError::Write { at: offset, source })?;
    Manifest::new(
        options.os.clone(),
        source.size,
        options.frame_size,
        source.sha256.finalize().into(),
        frames,
    )
    .map_err(PackError::Manifest)
}

fn encode(slice: &mut Slice, level: i32) -> std::io::Result<()> {
    slice.digest = (!is_zero(&slice.raw)).then(|| blake3::hash(&slice.raw).into());
    slice.encoded = zstd::bulk::compress(&slice.raw, level)?;
    Ok(())
}

struct Source<'r> {
    reader: &'r mut dyn Read,
    sha256: Sha256,
    frame_size: usize,
    size: u64,
}

impl Source<'_> {
    fn batch(&mut self, count: usize) -> Result<Vec<Slice>, PackError> {
        let mut batch = Vec::new();
        while batch.len() < count.max(1) {
            let raw = self.slice()?;
            if raw.is_empty() {
                break;
            }
            batch.push(Slice {
                raw,
                digest: None,
                encoded: Vec::new(),
            });
        }
        Ok(batch)
    }

    /// The next slice: full, or the last one, or empty at the end.
    fn slice(&mut self) -> Result<Vec<u8>, PackError> {
        let mut raw = vec![0; self.frame_size];
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
            return Err(PackError::TooLarge(most));
        }
        Ok(raw)
    }
}
