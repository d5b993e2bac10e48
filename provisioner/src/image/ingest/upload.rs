//! Receiving an upload, over as many connections as it takes.
//!
//! Invariants: bytes go on in order and once; what [`Progress::received`] says is what was passed
//! on, so that a sender goes on exactly there. One connection sends at a time: a newer one takes
//! over, because the older one is usually dead and nobody has noticed yet. An upload that nobody
//! continues is given up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use super::IngestError;
use super::pipe::{PIECE, Sender};
use super::progress::Progress;

/// How long a connection may be silent in the middle of a body.
const SILENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether an upload was abandoned.
const LOOK: Duration = Duration::from_millis(250);

/// Which part of the upload a request brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it; its length if that is known.
    Whole(Option<u64>),
    /// Bytes `first` to `last`, of `total` if that is known.
    Range {
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// Nothing but the news that there are so many in all.
    End(u64),
}

/// Why a request with data was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// `Content-Range` is not understood.
    #[error(
        "Content-Range {0:?} is not understood: expected \"bytes FIRST-LAST/TOTAL\", \"bytes FIRST-LAST/*\" or \"bytes */TOTAL\""
    )]
    Range(String),
    /// It begins elsewhere than the upload goes on.
    #[error("the data begins at byte {given}, but the upload goes on at byte {expected}")]
    Offset {
        /// Where it begins.
        given: u64,
        /// Where it should.
        expected: u64,
    },
    /// The total contradicts what was said or came.
    #[error("the upload has {said} bytes in all by an earlier word, and now {now}")]
    Total {
        /// Earlier.
        said: u64,
        /// Now.
        now: u64,
    },
    /// The body is not as long as its range.
    #[error("the body has other bytes than Content-Range says: {0}")]
    Length(String),
    /// The connection broke, was silent, or another took over.
    #[error("the data broke off at byte {0}: go on there")]
    Broken(u64),
    /// The upload is complete or given up already.
    #[error("this upload takes no data any more")]
    Closed,
}

impl Part {
    /// Reads the header `Content-Range`, or goes without.
    ///
    /// # Errors
    /// [`PutError::Range`].
    pub fn parse(range: Option<&str>, length: Option<u64>) -> Result<Self, PutError> {
        let Some(text) = range else {
            return Ok(Self::Whole(length));
        };
        let wrong = || PutError::Range(text.to_owned());
        let (range, total) = text
            .strip_prefix("bytes ")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(wrong)?;
        let total = match total {
            "*" => None,
            total => Some(total.parse::<u64>().map_err(|_| wrong())?),
        };
        if range == "*" {
            return total.map(Self::End).ok_or_else(wrong);
        }
        let (first, last) = range.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last == u64::MAX || total.is_some_and(|total| last >= total) {
            return Err(wrong());
        }
        Ok(Self::Range { first, last, total })
    }

    fn first(self) -> u64 {
        match self {
            Self::Whole(_) => 0,
            Self::Range { first, .. } => first,
            Self::End(total) => total,
        }
    }

    fn total(self) -> Option<u64> {
        match self {
            Self::Whole(total) | Self::Range { total, .. } => total,
            Self::End(total) => Some(total),
        }
    }

    /// Bytes that the body must have, if that is known.
    fn length(self) -> Option<u64> {
        match self {
            Self::Whole(length) => length,
            Self::Range { first, last, .. } => Some(last - first + 1),
            Self::End(_) => Some(0),
        }
    }
}

/// An upload under way.
#[derive(Debug)]
pub struct Upload {
    /// Whoever holds it may send; none once it is complete or given up.
    sender: AsyncMutex<Option<Sender>>,
    /// Cancelled to make the connection that sends now let go.
    turn: Mutex<CancellationToken>,
    progress: Arc<Progress>,
    heard: Mutex<Instant>,
    ended: CancellationToken,
}

impl Upload {
    /// An upload into `sender`.
    #[must_use]
    pub fn new(sender: Sender, progress: Arc<Progress>) -> Self {
        Self {
            sender: AsyncMutex::new(Some(sender)),
            turn: Mutex::default(),
            progress,
            heard: Mutex::new(Instant::now()),
            ended: CancellationToken::new(),
        }
    }

    /// Takes the data of one request. True when the upload is complete.
    ///
    /// # Errors
    /// See [`PutError`]; what came before stays.
    pub async fn put<E>(
        &self,
        part: Part,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<bool, PutError> {
        let mine = CancellationToken::new();
        let before = {
            let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *turn, mine.clone())
        };
        before.cancel();
        let mut sender = self.sender.lock().await;
        if mine.is_cancelled() {
            return Err(PutError::Broken(self.progress.received()));
        }
        let Some(open) = sender.as_ref() else {
            return Err(PutError::Closed);
        };
        self.hear();
        self.check(part)?;
        let passed = self.pass(open, part, body, &mine).await;
        self.hear();
        passed?;
        let received = self.progress.received();
        let complete = matches!(part, Part::Whole(_)) || self.progress.total() == Some(received);
        if complete {
            self.progress.set_total(received);
            if let Some(sender) = sender.take() {
                sender.finish().await;
            }
            self.ended.cancel();
        }
        Ok(complete)
    }

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn check(&self, part: Part) -> Result<(), PutError> {
        let (given, expected) = (part.first(), self.progress.received());
        if given != expected {
            return Err(PutError::Offset { given, expected });
        }
        if let Some(now) = part.total() {
            match self.progress.total() {
                Some(said) if said != now => return Err(PutError::Total { said, now }),
                _ => self.progress.set_total(now),
            }
        }
        Ok(())
    }

    async fn pass<E>(
        &self,
        sender: &Sender,
        part: Part,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        mine: &CancellationToken,
    ) -> Result<(), PutError> {
        let mut left = part.length();
        let broken = || PutError::Broken(self.progress.received());
        loop {
            let next = tokio::select! {
                () = mine.cancelled() => return Err(broken()),
                next = tokio::time::timeout(SILENCE, body.next()) => next,
            };
            let mut bytes = match next {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(None) if left.is_none_or(|left| left == 0) => return Ok(()),
                Ok(None) => {
                    return Err(PutError::Length(format!(
                        "{} are missing",
                        left.unwrap_or(0)
                    )));
                }
                Ok(Some(Err(_))) | Err(_) => return Err(broken()),
            };
            if let Some(left) = &mut left {
                *left = left
                    .checked_sub(bytes.len() as u64)
                    .ok_or_else(|| PutError::Length("there are more".to_owned()))?;
            }
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE));
                let count = piece.len() as u64;
                // Sending one piece either happens or not, also when it is abandoned.
                let sent = tokio::select! {
                    () = mine.cancelled() => return Err(broken()),
                    sent = sender.send(piece) => sent,
                };
                if !sent {
                    return Err(PutError::Closed);
                }
                self.progress.add_received(count);
                self.hear();
            }
        }
    }

    /// Waits until the upload is complete.
    ///
    /// # Errors
    /// When nobody has sent anything for `patience`.
    pub async fn watch(&self, patience: Duration) -> Result<(), IngestError> {
        loop {
            tokio::select! {
                () = self.ended.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            // A connection that waits for us to take its data is not abandoned.
            let idle = self.sender.try_lock().is_ok();
            let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if idle && heard.elapsed() >= patience {
                return Err(IngestError::Cancelled(format!(
                    "the upload was given up: nothing came for {} s",
                    patience.as_secs()
                )));
            }
        }
    }

    /// Whether everything came.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.ended.is_cancelled() && self.progress.total() == Some(self.progress.received())
    }

    /// Takes no more data, and tells the reader that there is no end.
    pub async fn give_up(&self) {
        self.turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancel();
        // Whoever held it lets go now.
        *self.sender.lock().await = None;
        self.ended.cancel();
    }
}

#[cfg(test)]
mod tests;
