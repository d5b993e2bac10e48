//! One HTTP exchange with a BMC, and the rule for when another one is worth it.
//!
//! Connections are not reused: BMCs drop idle ones without a word and reset the next request.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    IF_MATCH, RETRY_AFTER,
};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::Value;

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::quirks;
use crate::tls::{self, PinnedCertificate};
use crate::view::Complaint;

/// How long to wait for what. The defaults suit slow BMCs; tests shorten them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// For a connection.
    pub connect: Duration,
    /// For one answer, body included.
    pub request: Duration,
    /// How often one request is sent before its failure counts.
    pub attempts: u32,
    /// Pause after the first failure; doubles each time.
    pub backoff: Duration,
    /// Longest pause, also when the BMC asks for a longer one.
    pub longest_backoff: Duration,
    /// Pause between two looks at a state that must change.
    pub poll: Duration,
    /// For a power state to follow its command.
    pub power: Duration,
    /// After a restart command, before the power state means anything.
    pub settle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            request: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_secs(1),
            longest_backoff: Duration::from_secs(20),
            poll: Duration::from_secs(1),
            power: Duration::from_secs(120),
            settle: Duration::from_secs(15),
        }
    }
}

impl Timing {
    /// The pause after failure number `failed` (1 for the first).
    pub(crate) fn pause(&self, failed: u32, asked_for: Option<Duration>) -> Duration {
        let doubled = self
            .backoff
            .saturating_mul(1 << failed.saturating_sub(1).min(16));
        asked_for.unwrap_or(doubled).min(self.longest_backoff)
    }
}

/// Largest body that is read: a system resource has some 10 KB.
const LARGEST_BODY: usize = 4 << 20;
const MOST_REDIRECTS: usize = 5;
const ODATA_VERSION: HeaderName = HeaderName::from_static("odata-version");

/// A request, without its authorisation.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    pub method: Method,
    pub path: &'a str,
    pub body: Option<&'a Value>,
    pub if_match: Option<&'a str>,
}

impl<'a> Request<'a> {
    pub(crate) fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            body: None,
            if_match: None,
        }
    }

    pub(crate) fn post(path: &'a str, body: &'a Value) -> Self {
        Self {
            method: Method::POST,
            body: Some(body),
            ..Self::get(path)
        }
    }
}

/// An answer of any status.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// JSON; null when there was none.
    pub body: Value,
    /// Path that answered, after redirects.
    pub path: String,
}

impl Reply {
    pub(crate) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether this refusal is of the kind that passes.
    pub(crate) fn busy(&self) -> bool {
        let passing = matches!(
            self.status.as_u16(),
            408 | 409 | 425 | 429 | 500 | 502..=504
        );
        let complaint = || Complaint::of(&self.body);
        passing
            || (self.status.is_client_error()
                && complaint().ids.iter().any(|id| quirks::means_busy(id)))
    }

    fn retry_after(&self) -> Option<Duration> {
        let seconds = self.header(RETRY_AFTER)?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// The error for a refused request.
    pub(crate) fn refusal(&self, request: &Request<'_>) -> Error {
        let complaint = Complaint::of(&self.body);
        if self.status == StatusCode::FORBIDDEN && complaint.has("PasswordChangeRequired") {
            return Error::PasswordChange;
        }
        Error::Refused {
            method: request.method.to_string(),
            path: request.path.to_owned(),
            status: self.status.as_u16(),
            busy: self.busy(),
            message: complaint.line,
        }
    }
}

/// The HTTP side of one BMC.
#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    base: Url,
    pin: Option<Arc<PinnedCertificate>>,
    timing: Timing,
}

impl Transport {
    pub(crate) fn new(endpoint: &Endpoint, timing: Timing) -> Result<Self> {
        // The HTTP client needs one even for plain HTTP.
        tls::provider()?;
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .pool_max_idle_per_host(0)
            .connect_timeout(timing.connect)
            .timeout(timing.request)
            .redirect(Policy::custom(same_service))
            .default_headers(default_headers());
        let mut pin = None;
        if let Some(expected) = endpoint.pin {
            let (config, verifier) = tls::pinned(expected)?;
            builder = builder.tls_backend_preconfigured(config);
            pin = Some(verifier);
        }
        Ok(Self {
            http: builder
                .build()
                .map_err(|error| Error::Setup(error.to_string()))?,
            base: endpoint.base.clone(),
            pin,
            timing,
        })
    }

    /// Sends a request until it gets an answer that is not "busy", at most as often as
    /// [`Timing::attempts`] says. Every request of this crate may be repeated: it reads, or sets
    /// what it set before.
    pub(crate) async fn send(&self, request: &Request<'_>, auth: HeaderMap) -> Result<Reply> {
        let mut failed = 0;
        loop {
            let outcome = self.once(request, auth.clone()).await;
            failed += 1;
            let asked_for = match &outcome {
                Ok(reply) if !reply.busy() => return outcome,
                Err(error) if !error.retryable() => return outcome,
                Ok(reply) => reply.retry_after(),
                Err(_) => None,
            };
            if failed >= self.timing.attempts {
                return outcome;
            }
            let pause = self.timing.pause(failed, asked_for);
            tracing::debug!(
                host = self.base.host_str(), method = %request.method, path = request.path, failed,
                status = outcome.as_ref().ok().map(|reply| reply.status.as_u16()),
                error = outcome.as_ref().err().map(tracing::field::display),
                pause_ms = pause.as_millis(), "BMC request failed, trying again",
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends a request once.
    pub(crate) async fn once(&self, request: &Request<'_>, auth: HeaderMap) -> Result<Reply> {
        let url = self.url(request.path)?;
        let mut builder = self.http.request(request.method.clone(), url).headers(auth);
        if let Some(tag) = request.if_match {
            builder = builder.header(IF_MATCH, tag);
        }
        if let Some(body) = request.body {
            builder = builder
                .header(CONTENT_TYPE, "application/json")
                .body(body.to_string());
        }
        let response = builder
            .send()
            .await
            .map_err(|error| self.failure(request, error))?;
        self.read(request, response).await
    }

    async fn read(&self, request: &Request<'_>, mut response: Response) -> Result<Reply> {
        let mut bytes = Vec::new();
        let chunk = |error| self.failure(request, error);
        while let Some(chunk) = response.chunk().await.map_err(chunk)? {
            if bytes.len() + chunk.len() > LARGEST_BODY {
                return Err(malformed(request, "the answer is larger than 4 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        let status = response.status();
        let body = match serde_json::from_slice(&bytes) {
            Ok(body) => body,
            // Only a successful GET must be JSON: errors may be HTML, actions may answer anything.
            Err(error) if status.is_success() && request.method == Method::GET => {
                return Err(malformed(request, &format!("not JSON: {error}")));
            }
            Err(_) => Value::Null,
        };
        Ok(Reply {
            status,
            body,
            path: response.url().path().to_owned(),
            headers: std::mem::take(response.headers_mut()),
        })
    }

    /// A link of the BMC as a URL on the same BMC: credentials go nowhere else.
    fn url(&self, path: &str) -> Result<Url> {
        let malformed = |reason: &str| Error::Malformed {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let url = self
            .base
            .join(path)
            .map_err(|_| malformed("not a usable link"))?;
        if url.origin() == self.base.origin() {
            Ok(url)
        } else {
            Err(malformed(
                "the BMC links to another host, which is not followed",
            ))
        }
    }

    fn failure(&self, request: &Request<'_>, error: reqwest::Error) -> Error {
        if let Some(refusal) = self.pin.as_ref().and_then(|pin| pin.take_refusal()) {
            return refusal;
        }
        let method = request.method.to_string();
        let path = request.path.to_owned();
        if error.is_timeout() && !error.is_connect() {
            return Error::Timeout {
                method,
                path,
                after: self.timing.request,
            };
        }
        Error::Unreachable {
            method,
            path,
            source: error.without_url(),
        }
    }
}

fn malformed(request: &Request<'_>, reason: &str) -> Error {
    Error::Malformed {
        path: request.path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Follows a BMC's own redirects (with and without trailing slash, old to new paths), to itself
/// only.
fn same_service(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let same = attempt
        .previous()
        .first()
        .is_some_and(|first| first.origin() == attempt.url().origin());
    if same && attempt.previous().len() <= MOST_REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

fn default_headers() -> HeaderMap {
    HeaderMap::from_iter([
        (ODATA_VERSION, HeaderValue::from_static("4.0")),
        (ACCEPT, HeaderValue::from_static("application/json")),
        // Asked for compression, some BMCs return entity tags that they refuse later.
        (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        (CONNECTION, HeaderValue::from_static("close")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_that_also_binds_the_bmc() {
        let timing = Timing::default();
        let seconds = |failed| timing.pause(failed, None).as_secs();
        assert_eq!([1, 2, 3, 4, 5, 6].map(seconds), [1, 2, 4, 8, 16, 20]);
        assert_eq!(seconds(1000), 20);
        let asked = |s| timing.pause(1, Some(Duration::from_secs(s))).as_secs();
        assert_eq!([asked(0), asked(7), asked(86_400)], [0, 7, 20]);
    }
}
