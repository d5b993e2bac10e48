//! The head of a request, read purely (RFC 9112): bytes in, a request or a refusal out.
//!
//! Invariants: a head is at most [`MAX_HEAD`] bytes with [`MAX_HEADERS`] headers. Whatever could
//! make two readers disagree about where a request ends (a body, two `Host` headers, a
//! `Transfer-Encoding`) is refused, and the connection is not used again.
//!
//! Not here: what is behind a path, ranges and preconditions (`files`), sockets.

/// Longest head that is read, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// Most headers of a request.
pub const MAX_HEADERS: usize = 48;

/// A request whose head is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Method, as sent.
    pub method: &'a str,
    /// Path, as sent: not decoded, with its query if there is one.
    pub path: &'a str,
    /// Headers, in their order.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Whether the client wants to go on with this connection.
    pub keep_alive: bool,
    /// HTTP/1.0, whose clients must be told that the connection stays.
    pub old: bool,
    /// A body was announced: it is not read, so the connection cannot be used again.
    pub has_body: bool,
}

/// Why a head is not a request that we read. The connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Longer than [`MAX_HEAD`], or more headers than [`MAX_HEADERS`].
    #[error("the request head is longer than 8 KiB or has more than 48 headers")]
    TooLong,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("this port speaks HTTP/1.1 without TLS")]
    Version,
    /// Anything else; says what.
    #[error("{0}")]
    Syntax(&'static str),
}

/// Which file of an image is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// `data.zst`
    Data,
    /// `manifest.json`
    Manifest,
}

impl Part {
    /// Its file name, on the wire and in the store.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data.zst",
            Self::Manifest => "manifest.json",
        }
    }
}

/// Reads a head from the beginning of `bytes`: none while it is incomplete, else how long it is
/// and what it says.
///
/// # Errors
/// When no more bytes can make it a request that we read.
pub fn parse(bytes: &[u8]) -> Result<Option<(usize, Request<'_>)>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => return Err(Bad::TooLong),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Bad::TooLong),
        Err(httparse::Error::Version) => return Err(Bad::Version),
        Err(_) => return Err(Bad::Syntax("the request is not HTTP")),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Bad::Syntax("the request line is incomplete"));
    };
    let headers: Vec<(&str, &[u8])> = parsed.headers.iter().map(|h| (h.name, h.value)).collect();
    let old = version == 0;
    check_host(&headers, old)?;
    let request = Request {
        method,
        path: origin_form(target),
        keep_alive: keeps_alive(&headers, old),
        has_body: has_body(&headers)?,
        old,
        headers,
    };
    Ok(Some((length, request)))
}

/// The image (64 lower-case hex digits) and the file that a path names; none for any other path.
#[must_use]
pub fn route(path: &str) -> Option<(&str, Part)> {
    let (hex, file) = path.strip_prefix("/images/")?.split_once('/')?;
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if hex.len() != 64 || !hex.bytes().all(digit) {
        return None;
    }
    [Part::Data, Part::Manifest]
        .into_iter()
        .find(|part| part.name() == file)
        .map(|part| (hex, part))
}

/// RFC 9112, section 3.2: one `Host`, which HTTP/1.0 may leave out.
fn check_host(headers: &[(&str, &[u8])], old: bool) -> Result<(), Bad> {
    match values(headers, "host").count() {
        0 if old => Ok(()),
        1 => Ok(()),
        0 => Err(Bad::Syntax("the request has no Host header")),
        _ => Err(Bad::Syntax("the request has several Host headers")),
    }
}

/// RFC 9112, section 3.2.2: a server accepts the absolute form too.
fn origin_form(target: &str) -> &str {
    let Some(rest) = target
        .get(..7)
        .filter(|scheme| scheme.eq_ignore_ascii_case("http://"))
        .and_then(|_| target.get(7..))
    else {
        return target;
    };
    rest.find('/').map_or("/", |slash| &rest[slash..])
}

fn keeps_alive(headers: &[(&str, &[u8])], old: bool) -> bool {
    let says = |word: &str| {
        values(headers, "connection")
            .flat_map(|value| value.split(|c| *c == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    };
    !says("close") && (!old || says("keep-alive"))
}

/// RFC 9112, section 6.3. A length that two readers could read differently is refused.
fn has_body(headers: &[(&str, &[u8])]) -> Result<bool, Bad> {
    if values(headers, "transfer-encoding").next().is_some() {
        return Ok(true);
    }
    let mut lengths = values(headers, "content-length");
    let Some(length) = lengths.next() else {
        return Ok(false);
    };
    if lengths.next().is_some() {
        return Err(Bad::Syntax(
            "the request has several Content-Length headers",
        ));
    }
    if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(Bad::Syntax("Content-Length is not a number"));
    }
    Ok(length.iter().any(|digit| *digit != b'0'))
}

fn values<'h, 'a>(
    headers: &'h [(&'a str, &'a [u8])],
    name: &'h str,
) -> impl Iterator<Item = &'a [u8]> + use<'h, 'a> {
    headers
        .iter()
        .filter(move |(has, _)| has.eq_ignore_ascii_case(name))
        .map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ok(text: &str) -> Request<'_> {
        let (length, request) = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        request
    }

    #[test]
    fn reads_a_request() {
        let request = ok("GET /images/ab/data.zst HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n");
        assert_eq!(request.method, "GET");
        assert_eq!(request.path, "/images/ab/data.zst");
        assert_eq!(request.headers[1], ("Range", &b"bytes=0-1"[..]));
        assert!(request.keep_alive && !request.old && !request.has_body);
    }

    #[test]
    fn knows_which_connections_go_on() {
        for (text, keep) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", true),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: te , Close\r\n\r\n",
                false,
            ),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ] {
            assert_eq!(ok(text).keep_alive, keep, "{text}");
        }
    }

    #[test]
    fn the_absolute_form_names_the_same_path() {
        for (target, path) in [
            ("http://10.77.0.1:8081/images/a", "/images/a"),
            ("HTTP://h/images/a", "/images/a"),
            ("http://h", "/"),
            ("*", "*"),
            ("/http://h/", "/http://h/"),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(ok(&text).path, path, "{target}");
        }
    }

    #[test]
    fn a_head_is_incomplete_until_its_last_byte() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for length in 0..text.len() {
            assert_eq!(parse(&text[..length]), Ok(None), "{length}");
        }
        let mut pipelined = text.to_vec();
        pipelined.extend_from_slice(b"GET /next HTTP/1.1\r\n");
        assert_eq!(parse(&pipelined).unwrap().unwrap().0, text.len());
    }

    #[test]
    fn refuses_what_readers_could_disagree_about() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(MAX_HEAD));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_HEADERS + 1)
        );
        let syntax = |text| Err(Bad::Syntax(text));
        let cases: [(&str, Result<bool, Bad>); 13] = [
            (&long, Err(Bad::TooLong)),
            (&many, Err(Bad::TooLong)),
            ("\x16\x03\x01\x02", syntax("the request is not HTTP")),
            ("GET / HTTP/2.0\r\n\r\n", Err(Bad::Version)),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(Bad::Version)),
            (
                "GET / HTTP/1.1\r\n\r\n",
                syntax("the request has no Host header"),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                syntax("the request has several Host headers"),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
                syntax("the request is not HTTP"),
            ),
            (
                "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
                syntax("the request is not HTTP"),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
                syntax("Content-Length is not a number"),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
                syntax("the request has several Content-Length headers"),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                Ok(true),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n",
                Ok(false),
            ),
        ];
        for (text, expected) in cases {
            let got = parse(text.as_bytes()).map(|head| head.is_some_and(|(_, r)| r.has_body));
            assert_eq!(got, expected, "{text:.60}");
        }
    }

    #[test]
    fn names_only_the_two_files_of_an_image() {
        let hex = "0123456789abcdef".repeat(4);
        let route_of = |path: String| route(&path).map(|(hex, part)| (hex.to_owned(), part));
        assert_eq!(
            route_of(format!("/images/{hex}/data.zst")),
            Some((hex.clone(), Part::Data))
        );
        assert_eq!(
            route_of(format!("/images/{hex}/manifest.json")),
            Some((hex.clone(), Part::Manifest))
        );
        for path in [
            format!("/images/{hex}/"),
            format!("/images/{hex}"),
            "/images/".to_owned(),
            "/".to_owned(),
            format!("/images/{hex}/data.zst/"),
            format!("/images/{hex}/data.zst?x"),
            format!("/images/{hex}/../{hex}/data.zst"),
            format!("/images/{}/data.zst", hex.to_uppercase()),
            format!("/images/{}/data.zst", &hex[1..]),
            format!("/images/../../{}/data.zst", &hex[6..]),
            format!("//images/{hex}/data.zst"),
        ] {
            assert_eq!(route_of(path.clone()), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(Some((length, request))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
                let _ = route(request.path);
            }
        }

        #[test]
        fn what_follows_a_head_does_not_change_it(
            path in "/[!-~]{0,40}",
            value in "[ -~]{0,40}",
            more in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let text = format!("GET {path} HTTP/1.1\r\nHost: a\r\nX: {value}\r\n\r\n");
            let alone = parse(text.as_bytes());
            let mut bytes = text.clone().into_bytes();
            bytes.extend(more);
            prop_assert_eq!(parse(&bytes), alone);
        }
    }
}
