//! One connection on its own thread: heads in, bodies out by sendfile(2).
//!
//! The socket is non-blocking and waited for with poll(2), so that every wait has its limit. A
//! body never passes through this process: the kernel sends it from the page cache. When a page is
//! not there, this thread waits for the disk and nobody else does.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Advice, fadvise, sendfile};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::Context;
use super::head::{self, Bad, MAX_HEAD, Part, Request};
use super::tally::Client;
use super::turns::Member;
use crate::http::files;
use crate::http::problem::ApiError;

/// Most that is read of a refused request, so that its sender sees the refusal: a socket that is
/// closed with unread bytes in it is reset.
const LINGER_BYTES: usize = 256 * 1024;
/// And for how long.
const LINGER: Duration = Duration::from_secs(2);

/// How long a connection may keep us waiting.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the first byte of a request.
    pub idle: Duration,
    /// For the rest of its head.
    pub head: Duration,
    /// For the client to take a byte of an answer.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // Agents keep connections while they write to a slow disk.
            idle: Duration::from_secs(75),
            head: Duration::from_secs(10),
            stall: Duration::from_secs(30),
        }
    }
}

/// One connection.
pub(super) struct Connection<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) context: &'a Context,
    pub(super) client: Client,
    pub(super) member: Member,
    /// Whether a request is being answered; at stop, idle connections end at once.
    pub(super) busy: &'a AtomicBool,
}

/// What a head was answered with, when it was not a file.
struct Refusal {
    error: ApiError,
    allow: bool,
}

impl Connection<'_> {
    /// Answers requests until either side has had enough.
    pub(super) fn serve(&self) -> io::Result<()> {
        let patience = self.context.patience;
        let mut buffer = Vec::with_capacity(MAX_HEAD);
        let mut deadline = Instant::now() + patience.idle;
        loop {
            let answered = match head::parse(&buffer) {
                Ok(None) => None,
                Ok(Some((length, request))) => {
                    self.busy.store(true, Ordering::SeqCst);
                    Some((length, self.answer(&request)?))
                }
                Err(bad) => {
                    self.refuse_bad(bad)?;
                    return self.linger();
                }
            };
            match answered {
                Some((_, false)) => return self.linger(),
                Some((length, true)) => {
                    buffer.drain(..length);
                    self.busy.store(false, Ordering::SeqCst);
                    let limit = if buffer.is_empty() {
                        patience.idle
                    } else {
                        patience.head
                    };
                    deadline = Instant::now() + limit;
                    if self.context.stopping.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                }
                None => {
                    let first = buffer.is_empty();
                    if !self.readable(deadline)? {
                        return if first { Ok(()) } else { self.refuse_slow() };
                    }
                    if self.fill(&mut buffer)? == 0 {
                        return Ok(());
                    }
                    if first {
                        deadline = Instant::now() + patience.head;
                    }
                }
            }
        }
    }

    /// Answers a request; whether the connection goes on.
    fn answer(&self, request: &Request<'_>) -> io::Result<bool> {
        let stopping = self.context.stopping.load(Ordering::SeqCst);
        let goes_on = request.keep_alive && !request.has_body && !stopping;
        let connection = match (goes_on, request.old) {
            (false, _) => "connection: close\r\n",
            (true, true) => "connection: keep-alive\r\n",
            (true, false) => "",
        };
        let (method, hex, part, file, len) = match self.find(request) {
            Ok(found) => found,
            Err(refusal) => {
                self.refuse(&refusal, connection, request.method == "HEAD")?;
                return Ok(goes_on);
            }
        };
        let etag = etag(hex, part, &file)?;
        let content_type = match part {
            Part::Data => "application/zstd",
            Part::Manifest => "application/json",
        };
        let answer = files::answer(&headers(request), &etag, content_type, len);
        let cache = match part {
            // The id names the bytes: they never change.
            Part::Data => "public, max-age=31536000, immutable",
            // Signed anew when the daemon's key changes.
            Part::Manifest => "no-cache",
        };
        let mut text = status_line(answer.status);
        for (name, value) in &answer.headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(format!("cache-control: {cache}\r\n{connection}\r\n").as_bytes());
        self.context.metrics.answered(answer.status.as_u16());
        let length = if method == Method::HEAD || !answer.status.is_success() {
            0
        } else {
            answer.length
        };
        self.write(&text, length > 0)?;
        if length > 0 {
            self.send_file(&file, hex, part, answer.first, length)?;
        }
        Ok(goes_on)
    }

    /// The file that a request is for, open, with its length.
    fn find<'r>(
        &self,
        request: &Request<'r>,
    ) -> Result<(Method, &'r str, Part, File, u64), Refusal> {
        let refuse = |error, allow| Refusal { error, allow };
        let not_found = || {
            let detail = "there is nothing at this path; images are at /images/<id>/data.zst and \
                          /images/<id>/manifest.json";
            refuse(ApiError::not_found("not-found", detail), false)
        };
        let (hex, part) = head::route(request.path).ok_or_else(not_found)?;
        let method = match request.method {
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            _ => {
                let error = ApiError::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method-not-allowed",
                    "images are only read here: GET or HEAD",
                );
                return Err(refuse(error, true));
            }
        };
        if request.has_body {
            let error = ApiError::new(
                StatusCode::BAD_REQUEST,
                "body-not-expected",
                "a GET or HEAD with a body is not answered",
            );
            return Err(refuse(error, false));
        }
        let no_image = || {
            let detail = format!("the store has no image {hex}");
            refuse(ApiError::not_found("image-not-found", detail), false)
        };
        let internal = |error: io::Error| refuse(ApiError::internal(&error), false);
        let path = self.context.images.path(hex, part).ok_or_else(no_image)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            // Removed since the catalog looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_image()),
            Err(error) => return Err(internal(error)),
        };
        let len = file.metadata().map_err(internal)?.len();
        Ok((method, hex, part, file, len))
    }

    /// Sends `length` bytes from `first`: turn by turn, from the page cache to the socket.
    fn send_file(
        &self,
        file: &File,
        hex: &str,
        part: Part,
        first: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut transfer = self.context.tally.begin(&self.client, hex, part);
        // Read ahead further than usual: only a hint, so a refusal of it means nothing.
        let _ = fadvise(file, first, None, Advice::Sequential);
        let mut offset = first;
        let end = first + length;
        while offset < end {
            let Some(turn) = self.member.turn(end - offset) else {
                return Err(io::Error::other("the daemon is stopping"));
            };
            let sent = sendfile(self.stream, file, Some(&mut offset), turn as usize);
            let taken = sent.map_or(0, |sent| u32::try_from(sent).unwrap_or(turn));
            self.member.done(taken);
            match sent {
                Ok(0) => {
                    tracing::error!(
                        image = hex,
                        file = part.name(),
                        offset,
                        "file became shorter while it was sent: the image is damaged"
                    );
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(sent) => transfer.add(sent as u64),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if taken < turn && offset < end {
                self.writable()?;
            }
        }
        Ok(())
    }

    fn refuse(&self, refusal: &Refusal, connection: &str, head_only: bool) -> io::Result<()> {
        let problem = refusal.error.problem();
        let body = serde_json::to_vec(&problem)?;
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST);
        self.context.metrics.answered(status.as_u16());
        let mut text = status_line(status);
        let allow = if refusal.allow {
            "allow: GET, HEAD\r\n"
        } else {
            ""
        };
        text.extend_from_slice(
            format!(
                "content-type: application/problem+json\r\ncontent-length: {}\r\n{allow}{connection}\r\n",
                body.len()
            )
            .as_bytes(),
        );
        if !head_only {
            text.extend_from_slice(&body);
        }
        self.write(&text, false)
    }

    fn refuse_bad(&self, bad: Bad) -> io::Result<()> {
        let (status, code) = match bad {
            Bad::TooLong => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head-too-large",
            ),
            Bad::Version => (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "version"),
            Bad::Syntax(_) => (StatusCode::BAD_REQUEST, "malformed"),
        };
        let error = ApiError::new(status, code, bad.to_string());
        let refusal = Refusal {
            error,
            allow: false,
        };
        self.refuse(&refusal, "connection: close\r\n", false)
    }

    fn refuse_slow(&self) -> io::Result<()> {
        let error = ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            "the request head did not arrive in time",
        );
        let refusal = Refusal {
            error,
            allow: false,
        };
        self.refuse(&refusal, "connection: close\r\n", false)
    }

    /// Ends our side and reads what the client still sends, within bounds.
    fn linger(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)?;
        let deadline = Instant::now() + LINGER;
        let mut buffer = Vec::with_capacity(MAX_HEAD);
        let mut left = LINGER_BYTES;
        while left > 0 && self.readable(deadline)? {
            buffer.clear();
            match self.fill(&mut buffer)? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok(())
    }

    fn write(&self, mut bytes: &[u8], more_follows: bool) -> io::Result<()> {
        let flags = if more_follows {
            SendFlags::NOSIGNAL | SendFlags::MORE
        } else {
            SendFlags::NOSIGNAL
        };
        while !bytes.is_empty() {
            match send(self.stream, bytes, flags) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(rustix::io::Errno::AGAIN) => self.writable()?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there into the room that `buffer` has left, at most [`MAX_HEAD`] in all.
    fn fill(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        let room = (MAX_HEAD - buffer.len()).min(chunk.len());
        match recv(self.stream, &mut chunk[..room], RecvFlags::empty()) {
            Ok((read, _)) => {
                buffer.extend_from_slice(&chunk[..read]);
                Ok(read)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until there is something to read (or the end); false when `deadline` has passed.
    fn readable(&self, deadline: Instant) -> io::Result<bool> {
        self.wait(PollFlags::IN, deadline)
    }

    /// Waits until the client has taken something.
    fn writable(&self) -> io::Result<()> {
        let deadline = Instant::now() + self.context.patience.stall;
        match self.wait(PollFlags::OUT, deadline)? {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing",
            )),
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(self.stream, flags)], Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A strong tag. The data of an id is one sequence of bytes; its manifest can be signed anew, and
/// is then another file.
fn etag(hex: &str, part: Part, file: &File) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    match part {
        Part::Data => Ok(hex.to_owned()),
        Part::Manifest => {
            let meta = file.metadata()?;
            let (inode, seconds, nanos) = (meta.ino(), meta.mtime(), meta.mtime_nsec());
            Ok(format!("{hex}-{inode:x}-{seconds:x}-{nanos:x}"))
        }
    }
}

fn status_line(status: StatusCode) -> Vec<u8> {
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    let reason = status.canonical_reason().unwrap_or("");
    format!("HTTP/1.1 {} {reason}\r\ndate: {date}\r\n", status.as_u16()).into_bytes()
}

fn headers(request: &Request<'_>) -> HeaderMap {
    request
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(value).ok()?))
        })
        .collect()
}

/// Shuts a socket so that its thread wakes up; that it is gone already is fine.
pub(super) fn cut(stream: &Arc<TcpStream>) {
    let _ = stream.shutdown(std::net::Shutdown::Both);
}
