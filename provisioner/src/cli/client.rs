//! The daemon's API over TLS, as the commands use it.
//!
//! Invariants: only the context's CA is trusted. Every write has an `Idempotency-Key`, so that
//! it can be sent again when the connection breaks before the answer is here. Failures carry
//! what the daemon said ([`Refused`]) or that it was not reached ([`Unreachable`]).

use std::time::Duration;

use anneal_protocol::api::{Page, Problem};
use anyhow::Context as _;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::Context;

/// How long the daemon may take to answer; streams have no limit.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A daemon whose host is gone is noticed by this, also while it has nothing to say.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long it may take to decode and seal one part of an upload.
const PART_LIMIT: Duration = Duration::from_secs(900);
/// How often a write is sent in all when the connection breaks.
const TRIES: u32 = 3;

/// The daemon said no.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.detail)]
pub struct Refused(pub Problem);

/// The daemon did not answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the daemon at {url}")]
pub struct Unreachable {
    /// Its address.
    pub url: String,
    /// Why.
    #[source]
    pub source: reqwest::Error,
}

/// What to do about a failure, where that is known.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(Refused(problem)) = error.downcast_ref() {
        return match problem.code.as_str() {
            "unauthorized" => {
                Some("this context's key is not valid here; see `anneal context list`".to_owned())
            }
            "forbidden" => {
                Some("use a context whose key has the role; see `anneal api-key list`".to_owned())
            }
            "run-active" => Some(
                "look at it with `anneal run list`, stop it with `anneal run cancel`".to_owned(),
            ),
            "internal" => Some("the daemon's log says more: `journalctl -u anneal`".to_owned()),
            _ => None,
        };
    }
    if error.downcast_ref::<Unreachable>().is_some() {
        return Some("is `anneal serve` running? Choose another daemon with --context".to_owned());
    }
    if let Some(drifted) = error.downcast_ref::<super::audit::Drifted>() {
        return Some(drifted.hint());
    }
    error
        .downcast_ref::<super::follow::RunEnded>()
        .map(super::follow::RunEnded::hint)
}

/// Speaks to one daemon.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Client")
            .field("base", &self.base.as_str())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the daemon of `context`. Connects when first used.
    ///
    /// # Errors
    /// When the context's URL or CA cannot be used.
    pub fn new(context: &Context) -> anyhow::Result<Self> {
        let base = Url::parse(&context.server).context("reading the context's server URL")?;
        if base.scheme() != "https" {
            anyhow::bail!(
                "the context's server {base} is not https: the key would travel in clear"
            );
        }
        let ca = reqwest::Certificate::from_pem_bundle(context.ca.as_bytes())
            .context("reading the context's CA certificate")?;
        let http = reqwest::Client::builder()
            .tls_certs_only(ca)
            // The daemon is on our own network; a proxy for the Internet does not reach it.
            .no_proxy()
            .connect_timeout(CONNECT_LIMIT)
            .tcp_keepalive(KEEPALIVE)
            .user_agent(concat!("anneal/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("setting up TLS")?;
        Ok(Self {
            http,
            base,
            key: context.key.clone(),
        })
    }

    /// `GET`, parsed.
    ///
    /// # Errors
    /// When the daemon cannot be reached, refuses, or answers something else.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let request = self.request(Method::GET, path, query).timeout(ANSWER_LIMIT);
        parse(self.send(request).await?).await
    }

    /// Every item of a paged list, at most `limit`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        limit: usize,
    ) -> anyhow::Result<Vec<T>> {
        let mut items: Vec<T> = Vec::new();
        let mut after: Option<String> = None;
        while items.len() < limit {
            let mut query = query.to_vec();
            if let Some(after) = &after {
                query.retain(|(name, _)| *name != "after");
                query.push(("after", after));
            }
            let page: Page<T> = self.get(path, &query).await?;
            items.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        items.truncate(limit);
        Ok(items)
    }

    /// `POST` of JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &[&str], body: &impl Serialize) -> anyhow::Result<Response> {
        self.write(self.request(Method::POST, path, &[]).json(body))
            .await
    }

    /// `POST` of a file's text; `file` is its name in error messages.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_file(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        content_type: &str,
        file: &str,
        text: String,
    ) -> anyhow::Result<Response> {
        let request = self
            .request(Method::POST, path, query)
            .header("content-type", content_type)
            .header("x-file-name", file.as_bytes())
            .body(text);
        self.write(request).await
    }

    /// `PUT` of a part of an upload, sent once; `range` says which part. The daemon answers when
    /// it has taken all of it, which may need its time.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put(
        &self,
        path: &[&str],
        range: &str,
        part: bytes::Bytes,
    ) -> anyhow::Result<Response> {
        let request = self
            .request(Method::PUT, path, &[])
            .header("content-type", "application/octet-stream")
            .header("content-range", range)
            .timeout(PART_LIMIT);
        self.send(request.body(part)).await
    }

    /// `POST` of JSON whose answer may take as long as it takes; sent once.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_slowly(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> anyhow::Result<Response> {
        self.send(self.request(Method::POST, path, &[]).json(body))
            .await
    }

    /// `GET` of something long, without a limit on its time.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn open(&self, path: &[&str]) -> anyhow::Result<Response> {
        self.send(self.request(Method::GET, path, &[])).await
    }

    /// `PUT` of a text in place of another.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put_text(&self, path: &[&str], text: &str) -> anyhow::Result<Response> {
        let request = self.request(Method::PUT, path, &[]);
        let request = request.header("content-type", "application/yaml");
        self.write(request.body(text.to_owned())).await
    }

    /// `PUT` without a body: sets a mark.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put_mark(&self, path: &[&str]) -> anyhow::Result<Response> {
        self.write(self.request(Method::PUT, path, &[])).await
    }

    /// `DELETE` with a query, whose answer is parsed.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        parse(
            self.write(self.request(Method::DELETE, path, query))
                .await?,
        )
        .await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, path: &[&str]) -> anyhow::Result<()> {
        self.write(self.request(Method::DELETE, path, &[]))
            .await
            .map(drop)
    }

    /// Opens the event stream after event `last`; without it, from now on.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events(
        &self,
        query: &[(&str, &str)],
        last: Option<i64>,
    ) -> anyhow::Result<Response> {
        let mut request = self
            .request(Method::GET, &["events"], query)
            .header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last.to_string());
        }
        self.send(request).await
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url).bearer_auth(&self.key)
    }

    /// Sends a write that may be repeated, because its key makes it one write.
    async fn write(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let request = request
            .header("idempotency-key", uuid::Uuid::now_v7().to_string())
            .timeout(ANSWER_LIMIT);
        for _ in 1..TRIES {
            let Some(copy) = request.try_clone() else {
                break;
            };
            match self.send(copy).await {
                Err(error) if broke(&error) => {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                result => return result,
            }
        }
        self.send(request).await
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let url = self.base.to_string();
        let response = request.send().await.map_err(|source| Unreachable {
            url,
            source: source.without_url(),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Refused(problem(response).await).into())
    }
}

/// Whether the connection was there and broke: then sending again can help.
fn broke(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Unreachable>()
        .is_some_and(|error| !error.source.is_connect() && !error.source.is_timeout())
}

/// Reads an answer's JSON.
///
/// # Errors
/// When it is not what this version of the command expects.
pub async fn parse<T: DeserializeOwned>(response: Response) -> anyhow::Result<T> {
    let bytes = response
        .bytes()
        .await
        .context("reading the daemon's answer")?;
    serde_json::from_slice(&bytes)
        .context("the daemon's answer is not what this version of anneal expects")
}

async fn problem(response: Response) -> Problem {
    let status = response.status();
    let bytes = response.bytes().await.unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_else(|_| Problem {
        kind: "about:blank".to_owned(),
        title: status.to_string(),
        status: status.as_u16(),
        code: "unknown".to_owned(),
        detail: format!("the daemon answered {status}; is this address that of an anneal daemon?"),
    })
}
