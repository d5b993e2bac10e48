//! Speaks to the daemon: every call, its time limit, and the one retry policy.
//!
//! A call either succeeds, is refused (4xx: asking again gives the same answer) or finds the
//! daemon unavailable (no connection, no answer in time, 5xx, 429): then [`insist`] asks again.
//!
//! Bodies are never logged: they hold tokens and rendered secrets.

mod identity;
pub(crate) mod tls;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anneal_protocol::agent::{
    EnrollRequest, EnrollResponse, Next, NextRequest, Report, ReportAck, StepResult,
};
use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use identity::Identity;

/// Time to open a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Time for an ordinary call.
const CALL: Duration = Duration::from_secs(30);
/// Time for `next`, which the daemon holds for up to 25 s.
const LONG_POLL: Duration = Duration::from_secs(60);
/// Most of an answer that is read into memory, manifests apart.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Pauses between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon said no; it would say so again.
    #[error("the server refused with {status}: {reason}")]
    Refused {
        /// HTTP status, 4xx.
        status: u16,
        /// What the problem document says.
        reason: String,
    },
    /// Nobody answered, or not sensibly.
    #[error("the server is unavailable: {0}")]
    Unavailable(String),
}

/// One daemon, under one identity. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    tls: Arc<rustls::ClientConfig>,
}

impl Client {
    /// For `enroll`: the server must present a chain that leads to the certificate authority
    /// with this fingerprint.
    ///
    /// # Errors
    /// When the fingerprint is not 64 hex digits or the server is not an `https://` URL.
    pub fn pinned(server: &str, ca_sha256: &str) -> anyhow::Result<Self> {
        let authority = tls::fingerprint(ca_sha256)?;
        Self::new(server, tls::config(tls::Trust::Authority(authority))?)
    }

    /// For everything else: the authority is known, and so are we.
    ///
    /// # Errors
    /// When the certificates in the answer cannot be used.
    pub fn enrolled(
        server: &str,
        ca_sha256: &str,
        identity: &Identity,
        answer: &EnrollResponse,
    ) -> anyhow::Result<Self> {
        Self::new(server, identity.config(ca_sha256, answer)?)
    }

    fn new(server: &str, tls: rustls::ClientConfig) -> anyhow::Result<Self> {
        anyhow::ensure!(
            server.starts_with("https://"),
            "anneal.server={server}: expected an https:// URL"
        );
        let tls = Arc::new(tls);
        Ok(Self {
            http: http(&tls)?,
            base: format!("{}/agent/v1", server.trim_end_matches('/')),
            tls,
        })
    }

    /// The same identity on connections of its own: for a thread with another runtime.
    ///
    /// # Errors
    /// As for the first client.
    pub fn separate(&self) -> anyhow::Result<Self> {
        Ok(Self {
            http: http(&self.tls)?,
            base: self.base.clone(),
            tls: self.tls.clone(),
        })
    }

    /// Trades the boot token for a certificate.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn enroll(&self, body: &EnrollRequest) -> Result<EnrollResponse, CallError> {
        self.post("enroll", body, CALL).await
    }

    /// Asks what to do.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn next(&self, body: &NextRequest) -> Result<Next, CallError> {
        self.post("next", body, LONG_POLL).await
    }

    /// Sends progress and log lines.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn report(&self, body: &Report) -> Result<ReportAck, CallError> {
        self.post("report", body, CALL).await
    }

    /// Says how an order ended.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn result(&self, body: &StepResult) -> Result<(), CallError> {
        self.send("result", body, CALL).await.map(drop)
    }

    /// Fetches the signed manifest of an image, unchecked.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn manifest(&self, image: &str) -> Result<Vec<u8>, CallError> {
        let request = self
            .http
            .get(format!("{}/images/{image}/manifest", self.base))
            .timeout(CALL);
        let limit = usize::try_from(anneal_image::MAX_MANIFEST_BYTES).unwrap_or(usize::MAX);
        read(answer(request).await?, limit).await
    }

    /// URL of the data of an image.
    #[must_use]
    pub fn image_url(&self, image: &str) -> String {
        format!("{}/images/{image}/data", self.base)
    }

    /// What speaks HTTP under this identity.
    #[must_use]
    pub fn http(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// Fetches a range of an image's data, all of it or nothing.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn image_range(&self, image: &str, range: Range<u64>) -> Result<Vec<u8>, CallError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let request = self
            .http
            .get(format!("{}/images/{image}/data", self.base))
            .header(
                reqwest::header::RANGE,
                format!("bytes={}-{}", range.start, range.end - 1),
            )
            .timeout(CALL);
        let bytes = read(answer(request).await?, length).await?;
        if bytes.len() != length {
            let text = format!("{} of {length} bytes of image data came", bytes.len());
            return Err(CallError::Unavailable(text));
        }
        Ok(bytes)
    }

    async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        limit: Duration,
    ) -> Result<T, CallError> {
        let bytes = self.send(path, body, limit).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| CallError::Unavailable(format!("answer to {path} cannot be read: {e}")))
    }

    async fn send<B: Serialize>(
        &self,
        path: &str,
        body: &B,
        limit: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let request = self
            .http
            .post(format!("{}/{path}", self.base))
            .json(body)
            .timeout(limit);
        read(answer(request).await?, MAX_ANSWER).await
    }
}

fn http(tls: &Arc<rustls::ClientConfig>) -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured((**tls).clone())
        .no_proxy()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .tcp_keepalive(Duration::from_secs(15))
        .user_agent(concat!("anneal-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("cannot set up the HTTP client")
}

/// Sends, and sorts what is not 2xx.
async fn answer(request: reqwest::RequestBuilder) -> Result<reqwest::Response, CallError> {
    let response = request.send().await.map_err(|e| unavailable(&e))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = read(response, 64 * 1024).await.unwrap_or_default();
    let reason = problem(&text).unwrap_or_else(|| "no reason given".to_owned());
    if status.is_client_error() && status.as_u16() != 429 && status.as_u16() != 408 {
        return Err(CallError::Refused {
            status: status.as_u16(),
            reason,
        });
    }
    Err(CallError::Unavailable(format!("{status}: {reason}")))
}

/// The sentence of an RFC 9457 problem document.
fn problem(body: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    ["detail", "title"]
        .iter()
        .find_map(|key| document.get(key)?.as_str().map(str::to_owned))
}

async fn read(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| unavailable(&e))? {
        if body.len() + chunk.len() > limit {
            return Err(CallError::Unavailable(format!(
                "answer is longer than {limit} bytes"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// reqwest's own text stops at the surface; the cause ("connection refused") is underneath.
fn unavailable(error: &reqwest::Error) -> CallError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    CallError::Unavailable(text)
}

/// The retry policy: asks again, with growing pauses, while the daemon is unavailable. Gives up
/// after `patience` (never, without one) or when refused.
///
/// # Errors
/// The last error.
pub async fn insist<T>(
    what: &str,
    patience: Option<Duration>,
    mut call: impl AsyncFnMut() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let begin = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match call().await {
            Err(CallError::Unavailable(reason))
                if patience.is_none_or(|p| begin.elapsed() + pause < p) =>
            {
                tracing::warn!(
                    reason,
                    again_in_ms = pause.as_millis() as u64,
                    "cannot {what}"
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn insists_while_unavailable_and_stops_when_refused() {
        let mut calls = 0;
        let outcome = insist("test", None, async || {
            calls += 1;
            match calls {
                1..=20 => Err(CallError::Unavailable("down".into())),
                _ => Err::<(), _>(CallError::Refused {
                    status: 403,
                    reason: "token was used".into(),
                }),
            }
        })
        .await;
        assert_eq!(calls, 21);
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "the server refused with 403: token was used"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let mut calls = 0;
        let outcome = insist("test", Some(Duration::ZERO), async || {
            calls += 1;
            Err::<(), _>(CallError::Unavailable("down".into()))
        })
        .await;
        assert_eq!(calls, 1);
        assert!(outcome.unwrap_err().to_string().ends_with("down"));
    }

    #[test]
    fn reads_problem_documents() {
        assert_eq!(
            problem(br#"{"title":"gone","detail":"token was used at 10:00"}"#).as_deref(),
            Some("token was used at 10:00")
        );
        assert_eq!(problem(b"<html>"), None);
    }
}
