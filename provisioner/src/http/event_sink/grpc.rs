//! As much of gRPC as one unary call needs: a message in, a message and a status out.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Response};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};

/// The largest message; the events that we read are a few hundred bytes.
const LIMIT: usize = 64 * 1024;
/// Flag and length before a message.
const PREFIX: usize = 5;
/// How long a message may take.
const PATIENCE: Duration = Duration::from_secs(10);
const GRPC: &str = "application/grpc";

/// Status codes of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// A call that is not answered with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    code: Code,
    message: String,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }

    /// Our own failure: logged, and not told to the caller.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "an event could not be looked at");
        Self::new(Code::Internal, "the daemon failed")
    }

    /// The status alone, in the headers.
    pub(super) fn answer(&self) -> Response<Body> {
        let mut answer = Response::new(Body::empty());
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        headers.insert("grpc-status", HeaderValue::from(self.code as u16));
        // Ours are plain ASCII without `%`, which gRPC would want escaped.
        if let Ok(message) = HeaderValue::from_str(&self.message) {
            headers.insert("grpc-message", message);
        }
        answer
    }
}

/// Whether a request says that it is gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    value.is_some_and(|value| value == GRPC || value.starts_with("application/grpc+proto"))
}

/// A message and the status that all is well.
pub(super) fn answer(message: &[u8]) -> Response<Body> {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    let trailers = async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let body = Full::new(framed.freeze()).with_trailers(trailers);
    let mut answer = Response::new(Body::new(body));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    answer
}

/// The message of a request; `None` when it is larger than any that we want.
pub(super) async fn message(body: Body) -> Result<Option<Bytes>, Refusal> {
    let read = Limited::new(body, PREFIX + LIMIT).collect();
    let late = |_| Refusal::new(Code::DeadlineExceeded, "the message did not arrive in time");
    match tokio::time::timeout(PATIENCE, read).await.map_err(late)? {
        Ok(read) => unframe(read.to_bytes()).map(Some),
        Err(error) if error.is::<LengthLimitError>() => Ok(None),
        Err(_) => Err(Refusal::new(Code::Internal, "the message did not arrive")),
    }
}

fn unframe(mut framed: Bytes) -> Result<Bytes, Refusal> {
    let bad = |what| Refusal::new(Code::InvalidArgument, what);
    if framed.len() < PREFIX {
        return Err(bad("expected one message"));
    }
    let prefix = framed.split_to(PREFIX);
    if prefix[0] != 0 {
        let what = "compressed messages are not understood";
        return Err(Refusal::new(Code::Unimplemented, what));
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if usize::try_from(length) != Ok(framed.len()) {
        return Err(bad("expected one whole message"));
    }
    Ok(framed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_whole_uncompressed_message() {
        let unframed = |bytes: &'static [u8]| unframe(Bytes::from_static(bytes));
        assert_eq!(unframed(b"\0\0\0\0\x02hi").unwrap(), "hi");
        assert_eq!(unframed(b"\0\0\0\0\0").unwrap(), "");
        for (bytes, code) in [
            (&b""[..], Code::InvalidArgument),
            (b"\0\0\0\0", Code::InvalidArgument),
            (b"\0\0\0\0\x03hi", Code::InvalidArgument),
            (b"\0\0\0\0\x01hi", Code::InvalidArgument),
            (b"\0\xff\xff\xff\xffhi", Code::InvalidArgument),
            (b"\x01\0\0\0\x02hi", Code::Unimplemented),
        ] {
            assert_eq!(unframed(bytes).unwrap_err().code, code, "{bytes:?}");
        }
    }
}
