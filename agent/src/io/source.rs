//! Where image data comes from, and one request for a range of it.
//!
//! Transport is not trusted: whoever answers, with whatever certificate, the manifest decides
//! what is right. So nothing secret is ever sent to a mirror, but what its URL says.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use anneal_protocol::agent::{FailureCode, StepFailure};
use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};

use super::fault::Fault;
use crate::client::Client;
use crate::client::tls::{self, Trust};
use crate::step::fail;

/// Redirects that a mirror may answer with.
const REDIRECTS: usize = 5;
const CONNECT: Duration = Duration::from_secs(10);

/// Addresses of names that need not be looked up.
pub type Hosts = BTreeMap<String, Vec<IpAddr>>;

/// One place that has the image's data.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Where, without credentials: for logs and results.
    pub name: String,
    /// Lower is preferred.
    pub tier: u8,
    url: reqwest::Url,
    daemon: Option<Client>,
}

impl Origin {
    /// Any HTTP server. A URL that ends with `/` is that of the folder.
    ///
    /// # Errors
    /// `BadOrder` when it is not an `http://` or `https://` URL.
    pub fn mirror(url: &str, tier: u8) -> Result<Self, StepFailure> {
        let bad = |why: String| fail(FailureCode::BadOrder, format!("source {url}: {why}"));
        let mut parsed = reqwest::Url::parse(url).map_err(|e| bad(e.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad("expected an http:// or https:// URL".to_owned()));
        }
        if parsed.path().ends_with('/') {
            parsed = parsed.join("data.zst").map_err(|e| bad(e.to_string()))?;
        }
        Ok(Self {
            name: shown(&parsed),
            tier,
            url: parsed,
            daemon: None,
        })
    }

    /// The daemon's own endpoint, under this boot's identity.
    ///
    /// # Errors
    /// `Internal` when its URL makes no sense.
    pub fn daemon(client: &Client, image: &str, tier: u8) -> Result<Self, StepFailure> {
        let url = client.image_url(image);
        let parsed = reqwest::Url::parse(&url)
            .map_err(|e| fail(FailureCode::Internal, format!("{url}: {e}")))?;
        Ok(Self {
            name: shown(&parsed),
            tier,
            url: parsed,
            daemon: Some(client.clone()),
        })
    }
}

impl Origin {
    /// Name or address of the server.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.url.host_str()
    }
}

/// Without user, password and query: they may be secrets.
fn shown(url: &reqwest::Url) -> String {
    let mut url = url.clone();
    // Both only fail for URLs that cannot have any.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// The HTTP clients of one thread: connections belong to the runtime that opened them.
#[derive(Debug)]
pub struct Clients {
    of: Vec<reqwest::Client>,
}

impl Clients {
    /// One for each origin; mirrors share theirs. The names in `hosts` are not looked up.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(origins: &[Origin], hosts: &Hosts) -> anyhow::Result<Self> {
        let anybody = anybody(hosts)?;
        let of = origins
            .iter()
            .map(|origin| match &origin.daemon {
                Some(client) => client.separate().map(|client| client.http()),
                None => Ok(anybody.clone()),
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { of })
    }

    /// Asks origin `index` for bytes of the data. The answer is checked as far as it can be
    /// before its body.
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub async fn open(
        &self,
        origins: &[Origin],
        index: usize,
        bytes: Range<u64>,
        data_size: u64,
        stall: Duration,
    ) -> Result<Body, Fault> {
        let request = self.of[index]
            .get(origins[index].url.clone())
            .header(RANGE, format!("bytes={}-{}", bytes.start, bytes.end - 1));
        let response = tokio::time::timeout(stall, request.send())
            .await
            .map_err(|_| Fault::Stalled {
                seconds: stall.as_secs(),
                at: bytes.start,
            })?
            .map_err(|e| Fault::Unreachable(cause(&e)))?;
        check(&response, &bytes, data_size)?;
        Ok(Body {
            response,
            at: bytes.start,
            end: bytes.end,
            rest: Bytes::new(),
            stall,
        })
    }
}

/// The body of an answer: exactly the bytes asked for.
#[derive(Debug)]
pub struct Body {
    response: reqwest::Response,
    at: u64,
    end: u64,
    rest: Bytes,
    stall: Duration,
}

impl Body {
    /// Appends exactly `length` bytes. Within each stall timeout, enough must come.
    ///
    /// # Errors
    /// `Cut` or `Stalled`.
    pub async fn read(&mut self, length: usize, into: &mut Vec<u8>) -> Result<(), Fault> {
        /// Less than this within the stall timeout is as good as nothing.
        const LEAST: usize = 64 << 10;
        let full = into.len() + length;
        while into.len() < full {
            let window = tokio::time::Instant::now() + self.stall;
            let goal = full.min(into.len() + LEAST);
            while into.len() < goal {
                if self.rest.is_empty() {
                    self.rest = tokio::time::timeout_at(window, self.response.chunk())
                        .await
                        .map_err(|_| Fault::Stalled {
                            seconds: self.stall.as_secs(),
                            at: self.at,
                        })?
                        .ok()
                        .flatten()
                        .filter(|_| self.at < self.end)
                        .ok_or(Fault::Cut { at: self.at })?;
                }
                let part = self.rest.split_to(self.rest.len().min(full - into.len()));
                self.at += part.len() as u64;
                into.extend_from_slice(&part);
            }
        }
        Ok(())
    }
}

/// The answer must be the range asked for, of a file that is long enough.
fn check(response: &reqwest::Response, bytes: &Range<u64>, data_size: u64) -> Result<(), Fault> {
    let status = response.status();
    let short = |there| Fault::Short {
        there,
        expected: data_size,
    };
    match status {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::RANGE_NOT_SATISFIABLE => return Err(short(None)),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            return Err(Fault::Busy(status.as_u16()));
        }
        _ if status.is_server_error() => return Err(Fault::Busy(status.as_u16())),
        _ if status.is_success() => {
            return Err(Fault::NoRange(format!("{}", status.as_u16())));
        }
        _ => return Err(Fault::Refused(status.as_u16())),
    }
    let header = response.headers().get(CONTENT_RANGE);
    let text = header.and_then(|value| value.to_str().ok()).unwrap_or("");
    let Some((first, last, total)) = content_range(text) else {
        return Err(Fault::NoRange(format!("Content-Range {text:?}")));
    };
    if let Some(total) = total.filter(|total| *total < data_size) {
        return Err(short(Some(total)));
    }
    if first != bytes.start || last + 1 > bytes.end {
        return Err(Fault::NoRange(format!("Content-Range {text:?}")));
    }
    let asked = bytes.end - bytes.start;
    let promised = response.content_length().unwrap_or(asked);
    if last + 1 != bytes.end || promised != asked {
        return Err(Fault::Length {
            asked,
            promised: promised.min(last + 1 - first),
        });
    }
    Ok(())
}

/// `bytes 5-9/10` -> 5, 9 and 10 (RFC 9110, 14.4).
fn content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < u64::MAX).then(|| (first, last, total.parse().ok()))
}

/// reqwest's own text stops at the surface.
fn cause(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// A client that speaks to anybody: HTTP/2 where a TLS server offers it.
fn anybody(hosts: &Hosts) -> anyhow::Result<reqwest::Client> {
    let mut tls = tls::config(Trust::Anybody)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut builder = reqwest::Client::builder();
    for (name, addresses) in hosts {
        // The port is the URL's.
        let addresses: Vec<SocketAddr> = addresses.iter().map(|ip| (*ip, 0).into()).collect();
        builder = builder.resolve_to_addrs(name, &addresses);
    }
    Ok(builder
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
        .connect_timeout(CONNECT)
        .tcp_keepalive(Duration::from_secs(15))
        // What may be in memory unread, per stream and per connection.
        .http2_initial_stream_window_size(1 << 20)
        .http2_initial_connection_window_size(4 << 20)
        .user_agent(concat!("anneal-agent/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        assert_eq!(content_range("bytes 9-5/10"), None);
        assert_eq!(content_range("bytes */10"), None);
        assert_eq!(content_range("lines 1-2/3"), None);
    }

    #[test]
    fn a_folder_holds_the_data_and_secrets_are_not_shown() {
        for (url, name) in [
            ("http://h:81/images/ab/", "http://h:81/images/ab/data.zst"),
            ("https://u:p@h/x.zst?token=1", "https://h/x.zst"),
            ("http://h", "http://h/data.zst"),
        ] {
            assert_eq!(Origin::mirror(url, 0).unwrap().name, name);
        }
        for url in ["ftp://h/x", "/data.zst", "h:81/x"] {
            let failure = Origin::mirror(url, 0).unwrap_err();
            assert_eq!(failure.code, FailureCode::BadOrder);
            assert!(failure.message.contains(url), "{failure:?}");
        }
    }
}
