//! From what an operator has to a raw disk: which format is it, and did it come whole?

pub mod decode;
pub mod detect;
mod digest;
mod error;
pub mod fetch;
pub mod format;
pub mod guard;
pub mod oci;
pub mod pipe;
pub mod progress;
pub mod qcow2;
pub mod raw;
pub mod tar;

pub use digest::ContentDigest;
pub use error::IngestError;

use std::io::{self, Cursor, Read};

use anneal_image::PackError;
use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::ImageError;

/// How much of the source is looked at to tell its format.
const PEEK: usize = 8;

/// Formats that are recognised in order to refuse them with advice.
const OTHERS: &[(&[u8], &str, &str)] = &[
    (
        b"\x1f\x8b",
        "gzip-compressed",
        "use `gunzip -c FILE | anneal image add NAME@VERSION -`",
    ),
    (
        b"\xfd7zXZ\0",
        "xz-compressed",
        "use `xz -dc FILE | anneal image add NAME@VERSION -`",
    ),
    (
        b"BZh",
        "bzip2-compressed",
        "use `bzip2 -dc FILE | anneal image add NAME@VERSION -`",
    ),
    (
        b"QFI\xfb",
        "a qcow2 image",
        "use `qemu-img convert -O raw FILE disk.raw` and add disk.raw",
    ),
    (
        b"KDMV",
        "a vmdk image",
        "use `qemu-img convert -O raw FILE disk.raw` and add disk.raw",
    ),
    (
        b"vhdxfile",
        "a vhdx image",
        "use `qemu-img convert -O raw FILE disk.raw` and add disk.raw",
    ),
    (
        b"PK\x03\x04",
        "a zip archive",
        "unpack it and add the raw disk in it",
    ),
];

/// The raw disk in a source.
pub fn open<'r>(mut reader: impl Read + 'r) -> Result<Box<dyn Read + 'r>, ImageError> {
    let mut peek = Vec::with_capacity(PEEK);
    let reading = |source| ImageError::Pack(PackError::Read { at: 0, source });
    reader
        .by_ref()
        .take(PEEK as u64)
        .read_to_end(&mut peek)
        .map_err(reading)?;
    if let Some((_, format, convert)) = OTHERS.iter().find(|(magic, ..)| peek.starts_with(magic)) {
        return Err(ImageError::Unsupported { format, convert });
    }
    let is_zstd = is_zstd(&peek);
    let whole = Read::chain(Cursor::new(peek), reader);
    Ok(if is_zstd {
        Box::new(zstd::stream::read::Decoder::new(whole).map_err(reading)?)
    } else {
        Box::new(whole)
    })
}

/// A zstd frame, or a skippable frame before one (RFC 8878, sections 3.1.1 and 3.1.2).
fn is_zstd(peek: &[u8]) -> bool {
    peek.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (peek.len() >= 4 && peek[0] & 0xf0 == 0x50 && peek[1..4] == [0x2a, 0x4d, 0x18])
}

/// A pipe from an HTTP body to the thread that packs it. The reader's end of file comes only
/// after [`BodySender::finish`]: a client that goes away is an error, never a short image.
#[must_use]
pub fn body() -> (BodySender, BodyReader) {
    let (sender, receiver) = mpsc::channel(16);
    let reader = BodyReader {
        receiver,
        current: Bytes::new(),
        finished: false,
    };
    (BodySender { sender }, reader)
}

/// The async end of [`body`].
#[derive(Debug)]
pub struct BodySender {
    sender: mpsc::Sender<Option<Bytes>>,
}

impl BodySender {
    /// Passes bytes on; waits while the other side is busy. False when nobody reads any more:
    /// the addition has failed and says why.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.sender.send(Some(bytes)).await.is_ok()
    }

    /// The body is complete.
    pub async fn finish(self) {
        // Nobody there: the addition has failed and says why.
        let _ = self.sender.send(None).await;
    }
}

/// The blocking end of [`body`]. Must not be read on an async thread.
#[derive(Debug)]
pub struct BodyReader {
    receiver: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    finished: bool,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.finished {
            match self.receiver.blocking_recv() {
                Some(Some(bytes)) => self.current = bytes,
                Some(None) => self.finished = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the upload was interrupted",
                    ));
                }
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_body_is_not_an_end_of_file() {
        let (sender, mut reader) = body();
        sender
            .sender
            .blocking_send(Some(Bytes::from_static(b"ab")))
            .unwrap();
        drop(sender);
        let mut all = Vec::new();
        let error = reader.read_to_end(&mut all).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

        let (sender, mut reader) = body();
        sender
            .sender
            .blocking_send(Some(Bytes::from_static(b"ab")))
            .unwrap();
        sender.sender.blocking_send(None).unwrap();
        drop(sender);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"ab");
    }
}
