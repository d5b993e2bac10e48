//! One transfer with its socket: carries out what [`Transfer`] says, and records how it ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::packet::{self, Options, Packet, code};
use super::transfer::{End, Step, Transfer};
use crate::boot::BootFiles;
use crate::event::{Event, Recorder, kind};
use crate::http::files::Content;
use crate::machine::Directory;

/// Longest packet that a client sends: a request fits 512 bytes (RFC 2347), some are longer.
pub(super) const RECEIVE: usize = 2_048;
/// How much of a file is read at once for a client that has answered, in bytes. Every transfer can
/// hold that much.
const AHEAD: usize = 128 << 10;
/// Requests that wait while we are busy, in bytes: a rack that starts at once.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What every transfer needs.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) files: Arc<BootFiles>,
    pub(super) directory: Directory,
    pub(super) recorder: Recorder,
    /// Largest block that fits the interface, in bytes.
    pub(super) max_block: u16,
}

/// One transfer with its socket.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) client: SocketAddr,
    pub(super) file: String,
    pub(super) options: Options,
    pub(super) size: u64,
    pub(super) reader: Reader,
    pub(super) answered: Arc<AtomicBool>,
    pub(super) again: Arc<Notify>,
    pub(super) give_up_at: Instant,
}

impl Job {
    /// Sends the file; returns when the transfer has ended.
    pub(super) async fn carry_out(mut self, local: SocketAddr) {
        let started = Instant::now();
        let socket = match open(local) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(client = %self.client, %error, "no socket for a TFTP transfer");
                return;
            }
        };
        let (mut transfer, first) = Transfer::new(self.size, &self.options);
        match self.exchange(&socket, &mut transfer, first).await {
            Ok(end) => self.record(&transfer, end, started.elapsed()),
            Err(error) => {
                tracing::error!(file = self.file, %error, "boot file cannot be read");
                let refusal = packet::error(code::UNDEFINED, "the file cannot be read");
                send(&socket, &refusal, self.client).await;
            }
        }
    }

    /// Sends and receives until the transfer ends. An error means that the file is unreadable.
    async fn exchange(
        &mut self,
        socket: &UdpSocket,
        transfer: &mut Transfer,
        mut step: Step,
    ) -> io::Result<End> {
        let mut buffer = vec![0; RECEIVE];
        let mut deadline = Instant::now();
        loop {
            match step {
                Step::SendOack => {
                    send(socket, &packet::oack(&self.options, self.size), self.client).await;
                }
                Step::SendBlocks { first, last } => {
                    self.send_blocks(socket, transfer, first, last).await?;
                }
                Step::Wait | Step::WaitAgain => {}
                Step::End(end) => return Ok(end),
            }
            if step != Step::Wait {
                deadline = Instant::now() + transfer.patience();
            }
            if Instant::now() >= self.give_up_at {
                return Ok(End::Silent);
            }
            step = tokio::select! {
                () = self.again.notified() => transfer.asked_again(),
                received = tokio::time::timeout_at(deadline, socket.recv_from(&mut buffer)) => {
                    match received {
                        Err(_) => transfer.timed_out(),
                        Ok(Ok((length, from))) if from == self.client => {
                            self.receive(transfer, &buffer[..length])
                        }
                        Ok(Ok((_, stranger))) => {
                            let refusal = packet::error(code::UNKNOWN_TID, "unknown transfer");
                            send(socket, &refusal, stranger).await;
                            Step::Wait
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(client = %self.client, %error, "TFTP receive failed");
                            Step::Wait
                        }
                    }
                }
            };
        }
    }

    fn receive(&self, transfer: &mut Transfer, bytes: &[u8]) -> Step {
        match Packet::parse(bytes) {
            Ok(Packet::Ack(block)) => {
                let step = transfer.ack(block);
                if transfer.has_answered() {
                    self.answered.store(true, Ordering::Relaxed);
                }
                step
            }
            Ok(Packet::Error { code, message }) => {
                tracing::debug!(client = %self.client, file = self.file, code, message, "TFTP client ended the transfer");
                transfer.client_error()
            }
            Ok(_) | Err(_) => Step::Wait,
        }
    }

    async fn send_blocks(
        &mut self,
        socket: &UdpSocket,
        transfer: &Transfer,
        first: u64,
        last: u64,
    ) -> io::Result<()> {
        let mut packet = Vec::new();
        // Until something came back, the address may be forged: one block is read, no more. (With
        // options nothing is: the OACK goes first.)
        let ahead = if transfer.has_answered() { AHEAD } else { 0 };
        for number in first..=last {
            let (offset, length) = transfer.block(number);
            let bytes = self.reader.read(offset, length, ahead).await?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "block numbers wrap (RFC 1350)"
            )]
            packet::data(&mut packet, number as u16, &bytes);
            send(socket, &packet, self.client).await;
        }
        Ok(())
    }

    fn record(&self, transfer: &Transfer, end: End, took: Duration) {
        let address = self.client.ip();
        let (word, outcome) = match end {
            End::Probe => return,
            End::Complete => ("fetched", "complete"),
            End::Aborted => ("stopped fetching", "aborted"),
            End::Silent => ("fell silent while fetching", "silent"),
        };
        let machine = self.shared.directory.snapshot().machine_at(address);
        let who = machine.clone().unwrap_or_else(|| address.to_string());
        let bytes = match end {
            End::Complete => self.size,
            _ => transfer.bytes_acked(),
        };
        let message = format!("{who} {word} {} by TFTP ({bytes} bytes)", self.file);
        let mut event = Event::new(kind::TFTP, message).data(json!({
            "file": self.file,
            "bytes": bytes,
            "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "address": address,
            "outcome": outcome,
            "blksize": self.options.blksize.unwrap_or(packet::DEFAULT_BLOCK),
            "windowsize": self.options.windowsize.unwrap_or(1),
            "repeated_blocks": transfer.repeated(),
        }));
        if machine.is_none() || !transfer.has_answered() {
            event.machine = machine;
            self.shared.recorder.record_stranger(event);
            return;
        }
        event.machine = machine;
        self.shared.recorder.record(event);
    }
}

/// Reads a file in pieces that many blocks are cut from.
pub(super) struct Reader {
    content: Content,
    start: u64,
    piece: Bytes,
}

impl Reader {
    pub(super) fn new(content: Content) -> Self {
        Self {
            content,
            start: 0,
            piece: Bytes::new(),
        }
    }

    /// `length` bytes from `offset`; what is missing is read with what follows it, `ahead` bytes
    /// in all.
    async fn read(&mut self, offset: u64, length: usize, ahead: usize) -> io::Result<Bytes> {
        let within = |reader: &Self| {
            let from = usize::try_from(offset.checked_sub(reader.start)?).ok()?;
            let to = from.checked_add(length)?;
            (to <= reader.piece.len()).then(|| reader.piece.slice(from..to))
        };
        if let Some(bytes) = within(self) {
            return Ok(bytes);
        }
        let left = self.content.len().saturating_sub(offset);
        let wish = ahead.max(length);
        let piece = usize::try_from(left).map_or(wish, |left| left.min(wish));
        self.piece = self.content.read(offset, piece).await?;
        self.start = offset;
        within(self).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Sends; what cannot be sent counts as lost on the way, and repetition covers it.
pub(super) async fn send(socket: &UdpSocket, packet: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(packet, to).await {
        tracing::debug!(%to, %error, "TFTP packet not sent");
    }
}

/// A socket bound to `address`; the well-known one gets a larger buffer.
pub(super) fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM.nonblocking().cloexec(),
        Some(socket2::Protocol::UDP),
    )?;
    // The kernel grants what it may; less is not an error.
    if address.port() != 0 {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn no_more_is_held_than_was_asked_to_be_read() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&bytes).unwrap();
        let mut reader = Reader::new(Content::Disk {
            file: Arc::new(file),
            len: bytes.len() as u64,
        });
        let got = reader.read(0, 512, 0).await.unwrap();
        assert_eq!((&got[..], reader.piece.len()), (&bytes[..512], 512));
        let got = reader.read(512, 512, AHEAD).await.unwrap();
        assert_eq!((&got[..], reader.piece.len()), (&bytes[512..1024], AHEAD));
        // The next block comes from the same piece; the last one ends with the file.
        reader.read(1024, 512, AHEAD).await.unwrap();
        assert_eq!(reader.start, 512);
        let got = reader.read(3_999_900, 100, AHEAD).await.unwrap();
        assert_eq!((&got[..], reader.piece.len()), (&bytes[3_999_900..], 100));
    }
}
