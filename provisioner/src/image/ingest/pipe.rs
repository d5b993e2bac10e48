//! A bounded pipe of bytes between the network's tasks and the threads that decode and pack.
//!
//! Invariant: the reader's end of file comes only after [`Sender::finish`]. A sender that goes
//! away before is an error: something cut is never taken for something whole.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::IngestError;

/// Pieces in a pipe: the writer waits when the reader is behind.
const DEPTH: usize = 16;
/// The most bytes that one piece holds, so that a pipe is bounded in bytes as well.
pub const PIECE: usize = 256 << 10;

/// A new pipe.
#[must_use]
pub fn pipe() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    let receiver = Receiver {
        receiver,
        current: Bytes::new(),
        finished: false,
    };
    (Sender { sender }, receiver)
}

/// The end that bytes go into.
#[derive(Debug)]
pub struct Sender {
    sender: mpsc::Sender<Option<Bytes>>,
}

impl Sender {
    /// Passes bytes on; waits while the other side is busy. False when nobody reads any more:
    /// the other side has failed and says why.
    pub async fn send(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            if self.sender.send(Some(piece)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// As [`Sender::send`], on a thread that may block; one piece of [`PIECE`] bytes at most.
    #[must_use]
    pub fn send_blocking(&self, piece: Bytes) -> bool {
        self.sender.blocking_send(Some(piece)).is_ok()
    }

    /// Everything was sent.
    pub async fn finish(self) {
        // Nobody there: the other side has failed and says why.
        let _ = self.sender.send(None).await;
    }

    /// As [`Sender::finish`], on a thread that may block.
    pub fn finish_blocking(self) {
        let _ = self.sender.blocking_send(None);
    }
}

/// The end that bytes come out of. Must not be read on an async thread.
#[derive(Debug)]
pub struct Receiver {
    receiver: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    finished: bool,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.finished {
            match self.receiver.blocking_recv() {
                Some(Some(bytes)) => self.current = bytes,
                Some(None) => self.finished = true,
                None => return Err(IngestError::Broken.into_io()),
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
    fn an_interrupted_sender_is_not_an_end_of_file() {
        let (sender, mut receiver) = pipe();
        assert!(sender.send_blocking(Bytes::from_static(b"ab")));
        drop(sender);
        let mut all = Vec::new();
        let error = receiver.read_to_end(&mut all).unwrap_err();
        assert_eq!(error.to_string(), "the source broke off before its end");

        let (sender, mut receiver) = pipe();
        assert!(sender.send_blocking(Bytes::from_static(b"ab")));
        sender.finish_blocking();
        let mut all = Vec::new();
        receiver.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"ab");
        assert_eq!(
            receiver.read(&mut [0; 4]).unwrap(),
            0,
            "and stays at its end"
        );
    }
}
