//! Sends a file over HTTP the way firmware, iPXE and agents need it (RFC 9110, sections 13, 14).
//!
//! Owns: HEAD, single and suffix ranges, strong entity tags with `If-Match`, `If-None-Match` and
//! `If-Range`, and the streaming of large files in large pieces.
//!
//! Invariants: every reply carries `Content-Length` and is never chunked (EDK2 gives up on large
//! chunked replies); `Content-Type` is exactly the word asked for, without parameters (EDK2
//! compares it whole); tags are strong (EDK2 resumes with `If-Match` only then).
//!
//! Not here: which file a path means, and who may read it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;

/// How much of a file is read and handed to the socket at once, in bytes.
pub const CHUNK: usize = 1 << 20;

/// Bytes that can be sent: in memory, or an open file of known length.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Memory(Bytes),
    /// On disk; read as it is sent. The file must not shrink while it is open: replace it by
    /// renaming another one over it.
    Disk {
        /// The open file; its position is never used.
        file: Arc<File>,
        /// Length in bytes.
        len: u64,
    },
}

impl Content {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Disk { len, .. } => *len,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` bytes from `offset`. Both must lie within the content.
    ///
    /// # Errors
    /// When the file cannot be read or has become shorter.
    pub async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let end = start
                    .checked_add(len)
                    .filter(|end| *end <= bytes.len())
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(bytes.slice(start..end))
            }
            Self::Disk { file, .. } => {
                let file = file.clone();
                tokio::task::spawn_blocking(move || {
                    let mut buffer = vec![0; len];
                    file.read_exact_at(&mut buffer, offset)?;
                    Ok(Bytes::from(buffer))
                })
                .await
                .map_err(io::Error::other)?
            }
        }
    }
}

/// Something to send, with what HTTP says about it.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The bytes.
    pub content: Content,
    /// Media type, sent as it is.
    pub content_type: &'static str,
    /// What identifies exactly these bytes, without quotes: a digest. Letters, digits, `-`, `:`.
    pub etag: String,
}

/// Which part of a blob a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// 200, everything.
    Whole,
    /// 206, from the first to the last byte, both included.
    Part(u64, u64),
    /// 304: the client has it.
    NotModified,
    /// 412: the client wants the rest of something else.
    PreconditionFailed,
    /// 416: no byte of the range exists.
    Unsatisfiable,
}

/// The answer to a GET or HEAD for `blob`. Other methods get 405.
#[must_use]
pub fn respond(headers: &HeaderMap, method: &Method, blob: &Blob) -> Response {
    if method != Method::GET && method != Method::HEAD {
        let mut refused = Response::new(Body::empty());
        *refused.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        set(
            refused.headers_mut(),
            axum::http::header::ALLOW,
            "GET, HEAD",
        );
        return refused;
    }
    let total = blob.content.len();
    let answer = answer(headers, &blob.etag, blob.content_type, total);
    let body = if method == Method::HEAD || answer.length == 0 {
        Body::empty()
    } else {
        stream(blob.content.clone(), answer.first, answer.length)
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

/// The head of an answer, and which bytes follow it.
#[derive(Debug)]
pub struct Answered {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// First byte of the content that is sent.
    pub first: u64,
    /// How many are sent (to a GET).
    pub length: u64,
}

/// Answers a GET or HEAD for `total` bytes of content with the tag `etag` (without quotes).
#[must_use]
pub fn answer(headers: &HeaderMap, etag: &str, content_type: &'static str, total: u64) -> Answered {
    let tag = format!("\"{etag}\"");
    let answer = decide(headers, &tag, total);
    let (status, first, length) = match answer {
        Answer::Whole => (StatusCode::OK, 0, total),
        Answer::Part(first, last) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Answer::NotModified => (StatusCode::NOT_MODIFIED, 0, 0),
        Answer::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, 0, 0),
        Answer::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
    };
    let mut out = HeaderMap::new();
    set(&mut out, ETAG, &tag);
    set(&mut out, ACCEPT_RANGES, "bytes");
    if answer != Answer::NotModified {
        set(&mut out, CONTENT_LENGTH, &length.to_string());
    }
    match answer {
        Answer::Whole => set(&mut out, CONTENT_TYPE, content_type),
        Answer::Part(first, last) => {
            set(&mut out, CONTENT_TYPE, content_type);
            let range = format!("bytes {first}-{last}/{total}");
            set(&mut out, CONTENT_RANGE, &range);
        }
        Answer::Unsatisfiable => set(&mut out, CONTENT_RANGE, &format!("bytes */{total}")),
        Answer::NotModified | Answer::PreconditionFailed => {}
    }
    Answered {
        status,
        headers: out,
        first,
        length,
    }
}

/// Sets a header; a value that HTTP cannot carry (never one of ours) is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// RFC 9110, section 13.2.2: preconditions in their order, then the range.
fn decide(headers: &HeaderMap, tag: &str, total: u64) -> Answer {
    if let Some(wanted) = text(headers, &IF_MATCH)
        && !lists(wanted, tag, Comparison::Strong)
    {
        return Answer::PreconditionFailed;
    }
    if let Some(known) = text(headers, &IF_NONE_MATCH)
        && lists(known, tag, Comparison::Weak)
    {
        return Answer::NotModified;
    }
    let Some(range) = text(headers, &RANGE) else {
        return Answer::Whole;
    };
    // A date in If-Range never matches: we give out no dates.
    if text(headers, &IF_RANGE).is_some_and(|wanted| wanted.trim() != tag) {
        return Answer::Whole;
    }
    part(range, total)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags (or `*`) holds `tag`. Our tags hold no commas.
fn lists(list: &str, tag: &str, comparison: Comparison) -> bool {
    list.split(',').map(str::trim).any(|entry| {
        entry == "*"
            || entry == tag
            || (comparison == Comparison::Weak && entry.strip_prefix("W/") == Some(tag))
    })
}

/// One range of bytes. Several ranges, other units and nonsense are answered with everything,
/// as the RFC allows.
fn part(range: &str, total: u64) -> Answer {
    let Some(spec) = range
        .trim()
        .split_once('=')
        .filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"))
        .map(|(_, spec)| spec.trim())
    else {
        return Answer::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Answer::Whole;
    };
    match (number(first), number(last)) {
        // The last n bytes.
        (Number::None, Number::Some(0)) => Answer::Unsatisfiable,
        (Number::None, Number::Some(_)) if total == 0 => Answer::Unsatisfiable,
        (Number::None, Number::Some(n)) => Answer::Part(total.saturating_sub(n), total - 1),
        (Number::Some(first), Number::Some(last)) if last < first => Answer::Whole,
        (Number::Some(first), Number::Some(_) | Number::None) if first >= total => {
            Answer::Unsatisfiable
        }
        (Number::Some(first), Number::Some(last)) => Answer::Part(first, last.min(total - 1)),
        (Number::Some(first), Number::None) => Answer::Part(first, total - 1),
        _ => Answer::Whole,
    }
}

enum Number {
    None,
    Some(u64),
    Invalid,
}

fn number(text: &str) -> Number {
    match text {
        "" => Number::None,
        // More digits than fit are "beyond the end", not nonsense.
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Number::Some(digits.parse().unwrap_or(u64::MAX))
        }
        _ => Number::Invalid,
    }
}

/// `length` bytes from `first` as a body; files are read in pieces of [`CHUNK`].
fn stream(content: Content, first: u64, length: u64) -> Body {
    if let Content::Memory(bytes) = &content {
        // The range was checked against this length.
        let start = usize::try_from(first).unwrap_or(usize::MAX);
        let end = usize::try_from(first + length).unwrap_or(usize::MAX);
        return Body::from(bytes.slice(start..end));
    }
    let pieces = futures_util::stream::try_unfold(
        (content, first, length),
        |(content, offset, left)| async move {
            if left == 0 {
                return Ok::<_, io::Error>(None);
            }
            let piece = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let bytes = content.read(offset, piece).await?;
            let read = piece as u64;
            Ok(Some((bytes, (content, offset + read, left - read))))
        },
    );
    Body::from_stream(pieces)
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    fn ask(method: Method, headers: &[(&str, &str)], blob: &Blob) -> Response {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        respond(&map, &method, blob)
    }

    fn blob(content: Content) -> Blob {
        Blob {
            content,
            content_type: "application/efi",
            etag: "abc".into(),
        }
    }

    fn ten() -> Blob {
        blob(Content::Memory(Bytes::from_static(b"0123456789")))
    }

    fn header(response: &Response, name: &str) -> String {
        response
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap().to_owned())
            .unwrap_or_default()
    }

    #[tokio::test]
    async fn answers_ranges_as_rfc_9110_says() {
        // Range, status, Content-Range, body.
        let table = [
            ("bytes=0-3", 206, "bytes 0-3/10", "0123"),
            ("bytes=7-", 206, "bytes 7-9/10", "789"),
            ("bytes=-2", 206, "bytes 8-9/10", "89"),
            ("bytes=-99", 206, "bytes 0-9/10", "0123456789"),
            (
                "bytes=5-99999999999999999999999",
                206,
                "bytes 5-9/10",
                "56789",
            ),
            ("bytes=9-9", 206, "bytes 9-9/10", "9"),
            ("bytes=10-", 416, "bytes */10", ""),
            ("bytes=10-12", 416, "bytes */10", ""),
            ("bytes=-0", 416, "bytes */10", ""),
            ("bytes=4-2", 200, "", "0123456789"),
            ("bytes=0-1,4-5", 200, "", "0123456789"),
            ("bytes=x-y", 200, "", "0123456789"),
            ("bytes=-", 200, "", "0123456789"),
            ("bytes", 200, "", "0123456789"),
            ("lines=0-1", 200, "", "0123456789"),
        ];
        for (range, status, content_range, body) in table {
            let response = ask(Method::GET, &[("range", range)], &ten());
            assert_eq!(response.status().as_u16(), status, "{range}");
            assert_eq!(header(&response, "content-range"), content_range, "{range}");
            assert_eq!(
                header(&response, "content-length"),
                body.len().to_string(),
                "{range}"
            );
            let got = to_bytes(response.into_body(), 100).await.unwrap();
            assert_eq!(got, body.as_bytes(), "{range}");
        }
    }

    #[test]
    fn checks_preconditions_before_the_range() {
        let table: [(&[(&str, &str)], u16); 9] = [
            (&[("if-match", "\"abc\""), ("range", "bytes=2-")], 206),
            (&[("if-match", "*")], 200),
            (&[("if-match", "\"x\", \"abc\"")], 200),
            (&[("if-match", "\"old\""), ("range", "bytes=2-")], 412),
            (&[("if-match", "W/\"abc\"")], 412),
            (&[("if-none-match", "W/\"abc\"")], 304),
            (&[("if-none-match", "\"old\"")], 200),
            (&[("if-range", "\"abc\""), ("range", "bytes=2-")], 206),
            (&[("if-range", "\"old\""), ("range", "bytes=2-")], 200),
        ];
        for (headers, status) in table {
            let response = ask(Method::GET, headers, &ten());
            assert_eq!(response.status().as_u16(), status, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn head_says_what_get_would_send() {
        let response = ask(Method::HEAD, &[], &ten());
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "content-length"), "10");
        assert_eq!(header(&response, "content-type"), "application/efi");
        assert_eq!(header(&response, "etag"), "\"abc\"");
        assert_eq!(header(&response, "accept-ranges"), "bytes");
        assert!(
            to_bytes(response.into_body(), 100)
                .await
                .unwrap()
                .is_empty()
        );
        let refused = ask(Method::PUT, &[], &ten());
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn streams_files_and_fails_when_one_shrinks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..3 * CHUNK + 5).map(|n| (n % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let open = Arc::new(File::open(file.path()).unwrap());
        let disk = blob(Content::Disk {
            file: open,
            len: bytes.len() as u64,
        });
        let response = ask(Method::GET, &[], &disk);
        let got = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert!(got == bytes);
        let response = ask(Method::GET, &[("range", "bytes=1048570-2097160")], &disk);
        let got = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert!(got == bytes[1_048_570..=2_097_160]);
        std::fs::write(file.path(), b"short").unwrap();
        let response = ask(Method::GET, &[], &disk);
        assert!(to_bytes(response.into_body(), usize::MAX).await.is_err());
    }
}
