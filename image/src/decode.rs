//! From bytes of `data.zst` to raw slices of the disk, verified before they are handed out.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use crate::manifest::Manifest;

/// Why a frame could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes ended early: the transport failed, trying again can help.
    #[error("image data ends in frame {frame}, {missing} bytes early")]
    Truncated {
        /// Index of the frame.
        frame: usize,
        /// How many of its bytes did not come.
        missing: usize,
    },
    /// The bytes are not those of the image.
    #[error("image data of frame {frame} does not match the manifest")]
    Corrupt {
        /// Index of the frame.
        frame: usize,
    },
    /// More bytes came than the frames have.
    #[error("image data goes on after frame {frame}, the last one expected")]
    TooLong {
        /// Index of the last frame.
        frame: usize,
    },
    /// The source failed.
    #[error("reading the image data of frame {frame}")]
    Read {
        /// Index of the frame.
        frame: usize,
        /// Its word.
        #[source]
        source: std::io::Error,
    },
}

/// Decodes one frame and verifies it. On success `raw` holds exactly the slice of the disk;
/// on failure it is empty. Independent of other frames: call it on as many threads as you like.
///
/// # Errors
/// [`FrameError::Corrupt`] when the bytes are not those of the image.
///
/// # Panics
/// When there is no frame `index`.
pub fn decode_frame(
    manifest: &Manifest,
    index: usize,
    encoded: &[u8],
    raw: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let length = manifest.raw_length(index);
    raw.resize(length, 0);
    let decoded = FrameDecoder::new()
        .map_err(|_| FrameError::Corrupt { frame: index })
        .and_then(|mut decoder| decoder.decode(manifest, index, encoded, raw).map(|_| ()));
    if decoded.is_err() {
        raw.clear();
    }
    decoded
}

/// Decodes frames, one after the other, into memory of the caller's. Keeps its working memory:
/// one for each thread.
pub struct FrameDecoder(zstd::bulk::Decompressor<'static>);

impl std::fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameDecoder")
    }
}

impl FrameDecoder {
    /// A decoder.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> std::io::Result<Self> {
        zstd::bulk::Decompressor::new().map(Self)
    }

    /// Decodes one frame and verifies it; returns the slice of the disk, which begins where
    /// `memory` begins. On failure what is in `memory` must not be used.
    ///
    /// # Errors
    /// [`FrameError::Corrupt`] when the bytes are not those of the image, or `memory` is smaller
    /// than the slice.
    ///
    /// # Panics
    /// When there is no frame `index`.
    pub fn decode<'a>(
        &mut self,
        manifest: &Manifest,
        index: usize,
        encoded: &[u8],
        memory: &'a mut [u8],
    ) -> Result<&'a mut [u8], FrameError> {
        let length = manifest.raw_length(index).min(memory.len());
        let memory = &mut memory[..length];
        match self.0.decompress_to_buffer(encoded, memory) {
            Ok(decoded) if decoded == length && is_slice(manifest, index, memory) => Ok(memory),
            _ => Err(FrameError::Corrupt { frame: index }),
        }
    }
}

/// Whether `raw` is what the manifest says of slice `index` of the disk.
///
/// # Panics
/// When there is no frame `index`.
#[must_use]
pub fn is_slice(manifest: &Manifest, index: usize, raw: &[u8]) -> bool {
    raw.len() == manifest.raw_length(index)
        && match manifest.frames()[index].digest {
            Some(digest) => blake3::hash(raw) == digest,
            None => is_zero(raw),
        }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| chunk == &ZEROS[..chunk.len()])
}

/// A frame as it travels, not verified: feed it to [`decode_frame`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Index of the frame.
    pub index: usize,
    /// Its zstd frame.
    pub bytes: Vec<u8>,
}

/// Cuts a stream of `data.zst` (all of it, or the range [`Manifest::data_range`] of some
/// consecutive frames) into frames.
#[derive(Debug)]
pub struct FrameReader<'m, R> {
    manifest: &'m Manifest,
    frames: Range<usize>,
    reader: R,
}

impl<'m, R: Read> FrameReader<'m, R> {
    /// Reads these frames from `reader`, which begins with the first byte of the first one.
    ///
    /// # Panics
    /// When the range is empty or reaches beyond the last frame.
    pub fn new(manifest: &'m Manifest, frames: Range<usize>, reader: R) -> Self {
        assert!(
            !frames.is_empty() && frames.end <= manifest.frames().len(),
            "frames {frames:?} of {}",
            manifest.frames().len()
        );
        Self {
            manifest,
            frames,
            reader,
        }
    }

    /// Index of the frame that comes next; where to resume after a failure.
    #[must_use]
    pub fn position(&self) -> usize {
        self.frames.start
    }

    /// The next frame as it travels, zero frames too; none after the last one, when the stream
    /// has ended as it should.
    ///
    /// # Errors
    /// When the stream ends early, goes on too long or fails.
    pub fn next_encoded(&mut self) -> Result<Option<Encoded>, FrameError> {
        let index = self.frames.start;
        if self.frames.is_empty() {
            return self.expect_end(index - 1).map(|()| None);
        }
        let length = self.manifest.frames()[index].length as usize;
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.reader.read(&mut bytes[filled..]) {
                Ok(0) => {
                    return Err(FrameError::Truncated {
                        frame: index,
                        missing: length - filled,
                    });
                }
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(FrameError::Read {
                        frame: index,
                        source,
                    });
                }
            }
        }
        self.frames.start += 1;
        Ok(Some(Encoded { index, bytes }))
    }

    /// The next frame, decoded and verified into `raw`; returns its index. Zero frames come out
    /// as zeros. None after the last one.
    ///
    /// # Errors
    /// As [`Self::next_encoded`], and when the bytes are not those of the image.
    pub fn next_raw(&mut self, raw: &mut Vec<u8>) -> Result<Option<usize>, FrameError> {
        raw.clear();
        let Some(encoded) = self.next_encoded()? else {
            return Ok(None);
        };
        decode_frame(self.manifest, encoded.index, &encoded.bytes, raw)?;
        Ok(Some(encoded.index))
    }

    fn expect_end(&mut self, frame: usize) -> Result<(), FrameError> {
        loop {
            match self.reader.read(&mut [0]) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(FrameError::TooLong { frame }),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(FrameError::Read { frame, source }),
            }
        }
    }
}
