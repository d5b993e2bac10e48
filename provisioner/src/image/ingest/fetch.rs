//! Downloads over HTTP that go on where they broke off, and never end early unnoticed.
//!
//! Invariants: bytes are passed on in order and once; the end is reported only when as many came
//! as the server had announced; when a download goes on, what was already passed on is still
//! what the server has: by `If-Range` with its validator, or else by reading the beginning again
//! and comparing its digest. Proxies from the environment are not used: the addresses that a
//! proxy connects to could not be checked.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::guard::{Guard, GuardError, shown};
use super::oci::Blob;
use super::pipe::Sender;
use super::progress::Progress;
use super::{ContentDigest, IngestError};

/// How patient downloads are.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a connection may take.
    pub connect: Duration,
    /// How long nothing may come.
    pub stall: Duration,
    /// The first pause before another try; it doubles.
    pub pause: Duration,
    /// Tries without progress.
    pub tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            pause: Duration::from_secs(1),
            tries: 6,
        }
    }
}

/// A try that got so far counts as progress.
const PROGRESS: u64 = 1 << 20;

/// An HTTP client that goes nowhere but where its guard allows. Every request begins with
/// [`Web::get`]: addresses in URLs are never resolved, so the resolver cannot check them.
#[derive(Debug, Clone)]
pub struct Web {
    client: Client,
    guard: Guard,
}

impl Web {
    /// Begins a request.
    ///
    /// # Errors
    /// When the guard does not allow the URL.
    pub fn get(&self, url: Url) -> Result<RequestBuilder, Trouble> {
        match self.guard.url(&url) {
            Ok(()) => Ok(self.client.get(url)),
            Err(error) => Err(Trouble::Fatal(IngestError::Refused(error.to_string()))),
        }
    }
}

/// Makes a client that keeps to `guard`; with `ca` (PEM) it trusts only that, else what the
/// daemon's host trusts.
///
/// # Errors
/// When `ca` is not PEM, or TLS cannot be set up.
pub fn client(guard: Guard, patience: Patience, ca: Option<&str>) -> Result<Web, IngestError> {
    let mut builder = Client::builder()
        .redirect(guard.redirects())
        .dns_resolver(guard.resolver())
        .no_proxy()
        .connect_timeout(patience.connect)
        .user_agent(concat!("anneal/", env!("CARGO_PKG_VERSION")));
    if let Some(pem) = ca {
        let wrong =
            || IngestError::Invalid("the CA is not one or more certificates in PEM".to_owned());
        let bundle = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(|_| wrong())?;
        if bundle.is_empty() {
            return Err(wrong());
        }
        builder = builder.tls_certs_only(bundle);
    }
    let client = builder.build();
    client
        .map(|client| Web { client, guard })
        .map_err(|error| IngestError::Source(format!("setting up TLS: {}", chain(&error))))
}

/// What is downloaded.
pub enum Target {
    /// A file.
    Url {
        /// With which client.
        web: Web,
        /// Its place.
        url: Url,
    },
    /// A blob of a registry.
    Blob(Box<Blob>),
}

impl Target {
    fn name(&self) -> String {
        match self {
            Self::Url { url, .. } => shown(url),
            Self::Blob(blob) => blob.name(),
        }
    }

    async fn open(&self, headers: HeaderMap) -> Result<Response, Trouble> {
        match self {
            Self::Url { web, url } => {
                let request = web.get(url.clone())?.headers(headers);
                request.send().await.map_err(trouble)
            }
            Self::Blob(blob) => blob.open(headers).await,
        }
    }
}

/// Why a try ended.
#[derive(Debug)]
pub enum Trouble {
    /// Another try can help.
    Broken(String),
    /// It cannot.
    Fatal(IngestError),
}

/// What a failed request means.
pub fn trouble(error: reqwest::Error) -> Trouble {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(next) = cause {
        if let Some(refused) = next.downcast_ref::<GuardError>() {
            return Trouble::Fatal(IngestError::Refused(refused.to_string()));
        }
        cause = next.source();
    }
    let error = error.without_url();
    match chain(&error) {
        // No later try makes a certificate valid.
        text if text.contains("certificate") => Trouble::Fatal(IngestError::Source(format!(
            "TLS to the source failed: {text}; for a private mirror, name its CA with `--ca FILE`"
        ))),
        text => Trouble::Broken(text),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let word = next.to_string();
        if !text.contains(&word) {
            text.push_str(": ");
            text.push_str(&word);
        }
        cause = next.source();
    }
    text
}

/// A download under way.
pub struct Download<'a> {
    target: &'a Target,
    patience: Patience,
    /// What the bytes must have as digest, if that is known beforehand.
    expected: Option<ContentDigest>,
    progress: &'a Progress,
    out: &'a Sender,
    done: u64,
    total: Option<u64>,
    validator: Option<HeaderValue>,
    seen: blake3::Hasher,
}

/// What became of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was passed on.
    Complete,
    /// The reader wants no more; it says why.
    Unwanted,
}

impl<'a> Download<'a> {
    /// Begins nothing yet. `size` is how much must come, where that is known beforehand.
    #[must_use]
    pub fn new(
        target: &'a Target,
        patience: Patience,
        out: &'a Sender,
        progress: &'a Progress,
    ) -> Self {
        Self {
            target,
            patience,
            expected: None,
            progress,
            out,
            done: 0,
            total: None,
            validator: None,
            seen: blake3::Hasher::new(),
        }
    }

    /// The same, of content whose size and digest are known.
    #[must_use]
    pub fn expecting(mut self, size: u64, digest: ContentDigest) -> Self {
        self.total = Some(size);
        self.progress.set_total(size);
        self.expected = Some(digest);
        self
    }

    /// Downloads everything into the pipe, without finishing it.
    ///
    /// # Errors
    /// When it fails for good; nothing that was passed on may then be used.
    pub async fn run(mut self) -> Result<Outcome, IngestError> {
        let (mut tries, mut mark) = (0, 0);
        loop {
            let text = match self.attempt().await {
                Ok(Outcome::Complete) => break,
                Ok(Outcome::Unwanted) => return Ok(Outcome::Unwanted),
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Broken(text)) => text,
            };
            if self.done >= mark + PROGRESS {
                tries = 0;
            }
            mark = self.done;
            tries += 1;
            let name = self.target.name();
            tracing::info!(
                source = name,
                at = self.done,
                tries,
                error = text,
                "download broke off"
            );
            if tries >= self.patience.tries {
                return Err(IngestError::Source(format!(
                    "downloading {name} failed {tries} times at byte {}: {text}",
                    self.done
                )));
            }
            tokio::time::sleep(self.patience.pause * 2_u32.pow(tries.min(5) - 1)).await;
        }
        match self.expected.take().map(ContentDigest::check) {
            Some(Err(text)) => Err(IngestError::Digest(format!(
                "{}: {text}: the registry sent other bytes than its manifest names",
                self.target.name()
            ))),
            _ => Ok(Outcome::Complete),
        }
    }

    async fn attempt(&mut self) -> Result<Outcome, Trouble> {
        let ranged = self.done > 0 && self.validator.is_some();
        let mut headers = HeaderMap::new();
        if let (true, Some(validator)) = (ranged, &self.validator) {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.done));
            headers.insert(
                header::RANGE,
                range.map_err(|error| Trouble::Broken(error.to_string()))?,
            );
            headers.insert(header::IF_RANGE, validator.clone());
        }
        let opened = tokio::time::timeout(self.patience.stall, self.target.open(headers)).await;
        let response = opened.map_err(|_| Trouble::Broken(self.silent()))??;
        let again = self.accept(&response, ranged)?;
        self.copy(response, again).await
    }

    fn silent(&self) -> String {
        format!("nothing came for {} s", self.patience.stall.as_secs_f32())
    }

    fn changed(&self) -> Trouble {
        Trouble::Fatal(IngestError::Changed(self.target.name()))
    }

    /// Checks an answer's head; says how many bytes of it came already.
    fn accept(&mut self, response: &Response, ranged: bool) -> Result<u64, Trouble> {
        let status = response.status();
        let name = self.target.name();
        let fatal = |text: String| Trouble::Fatal(IngestError::Source(text));
        let again = match status {
            StatusCode::OK => self.done,
            StatusCode::PARTIAL_CONTENT if ranged => 0,
            StatusCode::RANGE_NOT_SATISFIABLE if ranged => return Err(self.changed()),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                return Err(Trouble::Broken(format!("the server answered {status}")));
            }
            status => {
                return Err(fatal(format!(
                    "{name} cannot be had: the server answered {status}"
                )));
            }
        };
        let announced = match status {
            StatusCode::PARTIAL_CONTENT => match content_range(response.headers()) {
                Some((start, total)) if start == self.done => Some(total),
                _ => {
                    return Err(fatal(format!(
                        "{name}: the server answered a request for a range with another one"
                    )));
                }
            },
            _ => content_length(response.headers()),
        };
        let chunked = response.headers().contains_key(header::TRANSFER_ENCODING);
        if announced.is_none() && self.total.is_none() && !chunked {
            return Err(fatal(format!(
                "{name}: the server does not say how much it sends, so that a cut download would look whole: use a server that sends Content-Length"
            )));
        }
        if let (Some(total), Some(announced)) = (self.total, announced)
            && total != announced
        {
            return Err(match self.done {
                0 => fatal(format!(
                    "{name} has {announced} bytes, {total} were expected"
                )),
                _ => self.changed(),
            });
        }
        let validator = validator(response.headers());
        if let (true, Some(was), Some(is)) = (self.done > 0, &self.validator, &validator)
            && was != is
        {
            return Err(self.changed());
        }
        if self.done == 0 {
            self.validator = validator;
        }
        self.total = self.total.or(announced);
        if let Some(total) = self.total {
            self.progress.set_total(total);
        }
        Ok(again)
    }

    /// Passes on what comes, except the `again` bytes that came before: those must be the same.
    async fn copy(&mut self, mut response: Response, again: u64) -> Result<Outcome, Trouble> {
        let mut before = blake3::Hasher::new();
        let mut repeated = 0;
        loop {
            let next = tokio::time::timeout(self.patience.stall, response.chunk()).await;
            let next = next.map_err(|_| Trouble::Broken(self.silent()))?;
            let Some(mut chunk) = next.map_err(trouble)? else {
                break;
            };
            if repeated < again {
                let count = usize::try_from(again - repeated).unwrap_or(usize::MAX);
                let old = chunk.split_to(chunk.len().min(count));
                before.update(&old);
                repeated += old.len() as u64;
                if repeated == again && before.finalize() != self.seen.finalize() {
                    return Err(self.changed());
                }
            }
            if !chunk.is_empty() && !self.pass(chunk).await? {
                return Ok(Outcome::Unwanted);
            }
        }
        if repeated < again || self.total.is_some_and(|total| self.done < total) {
            return Err(Trouble::Broken("the connection ended early".to_owned()));
        }
        Ok(Outcome::Complete)
    }

    async fn pass(&mut self, chunk: Bytes) -> Result<bool, Trouble> {
        self.done += chunk.len() as u64;
        if self.total.is_some_and(|total| self.done > total) {
            let text = format!("{} sends more than it announced", self.target.name());
            return Err(Trouble::Fatal(IngestError::Source(text)));
        }
        self.seen.update(&chunk);
        if let Some(expected) = &mut self.expected {
            expected.update(&chunk);
        }
        self.progress.add_received(chunk.len() as u64);
        Ok(self.out.send(chunk).await)
    }
}

/// A validator that is fit for `If-Range`: a strong ETag, or else a date (RFC 9110, 13.1.5).
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let strong = headers
        .get(header::ETAG)
        .filter(|tag| tag.as_bytes().starts_with(b"\""));
    strong
        .or_else(|| headers.get(header::LAST_MODIFIED))
        .cloned()
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// First byte and total of `bytes first-last/total`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last.checked_add(1)? == total).then_some((first, total))
}

#[cfg(test)]
mod tests;
