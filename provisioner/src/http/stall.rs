//! Peers that stop in the middle: connections that take nothing more, bodies that do not go on.
//!
//! Owns: the limit on how long a peer may keep us waiting for [`LEAST`] bytes. A slow link is never
//! cut, one on which next to nothing moves is, whether it is dead or somebody holds us up on purpose.
//! Waiting for something to say (long polls, event streams) is no stall: only bytes that are ready
//! and not taken, or announced and not sent, count.
//!
//! Not here: how many connections there may be, and how long a request's head may take
//! (`listener`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Bytes that the kernel may hold of a connection beyond those on their way, so that progress is
/// seen in small pieces and a peer that reads nothing costs little memory.
const UNSENT: u32 = 128 << 10;

/// What must move while we wait for the peer as long as it may keep us waiting: with 90 seconds,
/// 728 bytes a second.
const LEAST: u64 = 64 << 10;

/// What a client of HTTP/2 says first: RFC 9113, 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The connection, once its client has said that it speaks HTTP/2; `None` when it did not within
/// `limit`. For what follows the server's pings are limit enough, but they begin after that.
pub(super) async fn opened<S>(
    mut stream: S,
    limit: Duration,
) -> Option<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut said = [0; PREFACE.len()];
    let saying = tokio::time::timeout(limit, stream.read_exact(&mut said));
    saying.await.ok()?.ok()?;
    if said.as_slice() != PREFACE {
        return None;
    }
    // Whoever serves it wants to read that too.
    let (read, write) = tokio::io::split(stream);
    Some(tokio::io::join(PREFACE.chain(read), write))
}

/// How long the peer has kept us waiting, and what moved meanwhile.
#[derive(Debug)]
struct Stall {
    limit: Duration,
    /// Since when we wait, and until when we do.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    /// How long we waited before, since [`LEAST`] bytes had moved the last time.
    waited: Duration,
    moved: u64,
}

impl Stall {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            waiting: None,
            waited: Duration::ZERO,
            moved: 0,
        }
    }

    /// Passes on what a poll said; an error when too little has moved for too long. `bytes` tells
    /// how many a value is.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<T>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(value) = polled {
            if let Some((since, _)) = self.waiting.take() {
                self.waited += since.elapsed();
            }
            self.moved += bytes(&value) as u64;
            if self.moved >= LEAST {
                (self.moved, self.waited) = (0, Duration::ZERO);
            }
            return Poll::Ready(Ok(value));
        }
        let left = self.limit.saturating_sub(self.waited);
        let (_, end) = self
            .waiting
            .get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        ready!(end.as_mut().poll(context));
        // Whoever polls again all the same gets another chance, not a panic.
        *self = Self::new(self.limit);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer makes too little progress",
        )))
    }
}

/// A connection whose peer must take what it is sent.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    write: Stall,
}

impl Watched {
    /// Watches a connection; `limit` is how long the peer may keep us waiting for [`LEAST`] bytes.
    pub(super) fn new(stream: TcpStream, limit: Duration) -> Self {
        let socket = socket2::SockRef::from(&stream);
        // What the kernel cannot do, our own timer does later.
        let set = socket
            .set_tcp_notsent_lowat(UNSENT)
            .and_then(|()| socket.set_tcp_user_timeout(Some(limit)))
            .and_then(|()| socket.set_tcp_nodelay(true));
        if let Err(error) = set {
            tracing::debug!(%error, "setting TCP options failed");
        }
        Self {
            stream,
            write: Stall::new(limit),
        }
    }

    fn write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = poll(Pin::new(&mut this.stream), context);
        let bytes = |written: &io::Result<usize>| *written.as_ref().unwrap_or(&0);
        let watched = this.write.watch(context, polled, bytes);
        watched.map(|done| done.flatten())
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| {
            stream.poll_write_vectored(context, bytes)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// The body of a request, whose sender must go on with it while somebody waits for it.
pub(super) struct Arriving {
    body: hyper::body::Incoming,
    stall: Stall,
}

impl Arriving {
    /// Watches a body; `limit` is how long its sender may keep us waiting for [`LEAST`] bytes.
    pub(super) fn new(body: hyper::body::Incoming, limit: Duration) -> Self {
        Self {
            body,
            stall: Stall::new(limit),
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        let bytes = |frame: &Option<Result<Frame<Bytes>, _>>| match frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        Poll::Ready(match ready!(this.stall.watch(context, polled, bytes)) {
            Ok(frame) => frame.map(|frame| frame.map_err(Into::into)),
            Err(stalled) => Some(Err(stalled.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
