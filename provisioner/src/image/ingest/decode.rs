//! Decoders for what publishers compress with, one after the other until the source ends.
//!
//! Invariants: the end of a [`Decoder`] is the end of its source, so that whatever checks the
//! source's bytes has seen them all; a cut, a wrong checksum and bytes that do not belong are
//! errors that say where; memory is bounded by [`MEMORY`] whatever the source asks for, for all
//! decoders together.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use liblzma::stream::Stream;

use super::format::{Format, is_skippable};
use super::memory::{Share, Taken};
use super::{IngestError, window};

/// What decoders may take for their windows: `xz -9` needs 65 MiB, `zstd --long=27` 128 MiB.
pub const MEMORY: u64 = 128 << 20;
const WINDOW_LOG: u32 = 27;
/// What xz may always take: a stream whose later blocks need more than its first is none of xz's.
const LEAST: u64 = 16 << 20;
const BUFFER: usize = 128 << 10;

/// Anything that can be decoded.
pub type Source = Box<dyn Read + Send>;

/// A buffered source that can be looked into, counts, and knows whether it met the end.
struct Input {
    inner: Source,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes taken out of it.
    taken: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Input {
    fn new(inner: Source) -> Self {
        Self {
            inner,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            taken: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// The next bytes without taking them: `count` of them, fewer only at the end.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.start < count {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < count && self.more()? > 0 {}
        Ok(&self.buffer[self.start..self.end.min(self.start + count)])
    }

    fn more(&mut self) -> io::Result<usize> {
        loop {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(read) => {
                    self.end += read;
                    self.ended.store(read == 0, Ordering::Relaxed);
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.more()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// One member, stream or frame.
enum Member {
    Gzip(flate2::bufread::GzDecoder<Input>),
    Xz(liblzma::bufread::XzDecoder<Input>),
    Bzip2(bzip2::bufread::BzDecoder<Input>),
    Zstd(zstd::stream::read::Decoder<'static, Input>),
    Lz4(Box<lz4_flex::frame::FrameDecoder<Input>>),
}

impl Member {
    fn begin(format: Format, input: Input, memory: u64) -> io::Result<Self> {
        Ok(match format {
            Format::Gzip => Self::Gzip(flate2::bufread::GzDecoder::new(input)),
            Format::Xz => {
                let stream = Stream::new_stream_decoder(memory, 0)?;
                Self::Xz(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            Format::Bzip2 => Self::Bzip2(bzip2::bufread::BzDecoder::new(input)),
            Format::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
                decoder.window_log_max(WINDOW_LOG)?;
                Self::Zstd(decoder)
            }
            Format::Lz4 => Self::Lz4(Box::new(lz4_flex::frame::FrameDecoder::new(input))),
            other => {
                return Err(
                    IngestError::Format(format!("{} is not decoded", other.name())).into_io(),
                );
            }
        })
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(member) => member.read(buffer),
            Self::Xz(member) => member.read(buffer),
            Self::Bzip2(member) => member.read(buffer),
            Self::Zstd(member) => member.read(buffer),
            Self::Lz4(member) => member.read(buffer),
        }
    }

    fn end(self) -> Input {
        match self {
            Self::Gzip(member) => member.into_inner(),
            Self::Xz(member) => member.into_inner(),
            Self::Bzip2(member) => member.into_inner(),
            Self::Zstd(member) => member.finish(),
            Self::Lz4(member) => member.into_inner(),
        }
    }
}

enum State {
    /// With the memory that the members before took.
    Between(Input, Option<Taken>),
    /// With the memory that it takes.
    In(Box<Member>, Taken),
    Ended,
}

/// Decodes every member of a compressed source.
pub struct Decoder {
    state: State,
    format: Format,
    share: Share,
    depth: usize,
    taken: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    raw: u64,
}

impl Decoder {
    /// A decoder of `format`, which must be a compression, inside `depth` others. It takes its
    /// memory out of `share`.
    #[must_use]
    pub fn new(format: Format, source: Source, share: Share, depth: usize) -> Self {
        let input = Input::new(source);
        let (taken, ended) = (Arc::clone(&input.taken), Arc::clone(&input.ended));
        Self {
            state: State::Between(input, None),
            format,
            share,
            depth,
            taken,
            ended,
            raw: 0,
        }
    }

    fn at(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn cut_short(&self) -> io::Error {
        let (format, at) = (self.format.name(), self.at());
        IngestError::CutShort { format, at }.into_io()
    }

    /// Says where, unless the error is one of ours already.
    fn explain(&self, error: io::Error) -> io::Error {
        if IngestError::is_in(&error) || error.kind() == io::ErrorKind::Interrupted {
            return error;
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.cut_short();
        }
        let what = match error.to_string() {
            text if text.to_lowercase().contains("memory") => format!(
                "it needs more than the {} MiB that decoding may take, or than its beginning says; compress it with a smaller window",
                MEMORY >> 20
            ),
            text => text,
        };
        let (format, at, raw) = (self.format.name(), self.at(), self.raw);
        IngestError::Damaged {
            format,
            at,
            raw,
            what,
        }
        .into_io()
    }

    /// What comes after a member: another, or the end.
    fn between(&self, mut input: Input, held: Option<Taken>) -> io::Result<State> {
        if self.format == Format::Xz && self.at() > 0 {
            // Stream padding: a multiple of four zero bytes (.xz file format, section 2.2).
            while input.peek(4)? == [0; 4] {
                input.consume(4);
            }
        }
        loop {
            let head = input.peek(8)?;
            if head.is_empty() {
                return Ok(State::Ended);
            }
            if matches!(self.format, Format::Zstd | Format::Lz4) && is_skippable(head) {
                self.skip(&mut input)?;
            } else if begins(self.format, head) {
                let head = match self.format {
                    Format::Zstd | Format::Xz => input.peek(window::PEEK)?,
                    // No window that matters; and how an lz4 frame ends must not be looked at.
                    _ => &[],
                };
                let needed = window::needed(self.format, head);
                let taken = self.share.take_after(held, self.depth, needed);
                let taken = taken.map_err(IngestError::into_io)?;
                let limit = needed.clamp(LEAST, MEMORY);
                let member = Member::begin(self.format, input, limit)?;
                return Ok(State::In(Box::new(member), taken));
            } else {
                let (format, at) = (self.format.name(), self.at());
                return Err(IngestError::Trailing { format, at }.into_io());
            }
        }
    }

    fn skip(&self, input: &mut Input) -> io::Result<()> {
        let mut header = [0; 8];
        input.read_exact(&mut header)?;
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let skipped = io::copy(&mut input.take(length.into()), &mut io::sink())?;
        if skipped < u64::from(length) {
            return Err(self.cut_short());
        }
        Ok(())
    }

    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ended => Ok(Some(0)),
            State::Between(input, held) => {
                self.state = self.between(input, held)?;
                Ok(None)
            }
            State::In(mut member, taken) => {
                let read = member.read(buffer)?;
                if read > 0 {
                    self.state = State::In(member, taken);
                    return Ok(Some(read));
                }
                // lz4_flex takes an end of its source between two blocks for the frame's end.
                if self.format == Format::Lz4 && self.ended.load(Ordering::Relaxed) {
                    return Err(self.cut_short());
                }
                self.state = State::Between(member.end(), Some(taken));
                Ok(None)
            }
        }
    }
}

/// Whether a member of `format` begins here.
fn begins(format: Format, head: &[u8]) -> bool {
    let magic: &[u8] = match format {
        Format::Gzip => b"\x1f\x8b",
        Format::Xz => b"\xfd7zXZ\0",
        Format::Bzip2 => b"BZh",
        Format::Zstd => &[0x28, 0xb5, 0x2f, 0xfd],
        Format::Lz4 => &[0x04, 0x22, 0x4d, 0x18],
        _ => return false,
    };
    // A beginning that is cut is the decoder's to refuse.
    magic.starts_with(&head[..head.len().min(magic.len())])
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.step(buffer) {
                Ok(Some(read)) => {
                    self.raw += read as u64;
                    return Ok(read);
                }
                Ok(None) => {}
                Err(error) => return Err(self.explain(error)),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
