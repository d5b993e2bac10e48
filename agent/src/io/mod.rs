//! Bytes on their way from the network to the disk: small pieces that stack.

pub mod fetch;

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anneal_protocol::agent::StepFailure;
use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// Pieces waiting for the disk: a few megabytes at most, whatever the network delivers.
const WAITING: usize = 64;

/// Why the bytes stopped, for whoever only sees an I/O error.
#[derive(Debug, Clone, Default)]
pub struct FailureSlot(Arc<Mutex<Option<StepFailure>>>);

impl FailureSlot {
    /// The reason, if one was given.
    #[must_use]
    pub fn take(&self) -> Option<StepFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, failure: StepFailure) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }
}

/// Reads, on a blocking thread, what an async task sends.
#[derive(Debug)]
pub struct ByteStream {
    receiver: mpsc::Receiver<Result<Bytes, StepFailure>>,
    current: Bytes,
    failure: FailureSlot,
    count: Arc<AtomicU64>,
}

/// The other end of a [`ByteStream`].
pub type ByteSender = mpsc::Sender<Result<Bytes, StepFailure>>;

impl ByteStream {
    /// Both ends.
    #[must_use]
    pub fn channel() -> (ByteSender, Self) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let stream = Self {
            receiver,
            current: Bytes::new(),
            failure: FailureSlot::default(),
            count: Arc::default(),
        };
        (sender, stream)
    }

    /// Where a failure will be found.
    #[must_use]
    pub fn failure(&self) -> FailureSlot {
        self.failure.clone()
    }

    /// Counts the bytes that came.
    #[must_use]
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.count.clone()
    }
}

impl Read for ByteStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(bytes)) => {
                    self.count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    self.current = bytes;
                }
                Some(Err(failure)) => {
                    let error = io::Error::other(failure.message.clone());
                    self.failure.set(failure);
                    return Err(error);
                }
            }
        }
        let count = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}
