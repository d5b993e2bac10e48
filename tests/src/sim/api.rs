//! The daemon's HTTP API, spoken by an independent client with the shared types.

use std::path::Path;
use std::time::Duration;

use anneal_protocol::api::{EventView, MachineView, Page, ProvisionRequest, RunView, TokenView};
use anyhow::Context;
use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A caller with an API key.
#[derive(Debug)]
pub struct Api {
    /// Base URL, `https://10.77.0.1:8443`.
    pub server: String,
    /// The daemon's CA, PEM.
    pub ca: String,
    /// The key.
    pub key: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

#[derive(Deserialize)]
struct ContextFile {
    server: String,
    ca: String,
    key: String,
}

/// An answer: status and body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body as text.
    pub body: String,
}

impl Api {
    /// Reads a context file.
    ///
    /// # Errors
    /// When it cannot be read or its CA is no certificate.
    pub fn open(context: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(context)
            .with_context(|| format!("reading {}", context.display()))?;
        let file: ContextFile = serde_json::from_str(&text)
            .with_context(|| format!("parsing {}", context.display()))?;
        // An error means that it is installed already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(file.ca.as_bytes())?])
            .no_proxy()
            // A daemon that was killed takes its connections along.
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(60))
            .build()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            server: file.server,
            ca: file.ca,
            key: file.key,
            client,
            runtime,
        })
    }

    /// Sends one request below `/api/v1`.
    ///
    /// # Errors
    /// When no answer comes; a refusal is an answer.
    pub fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> anyhow::Result<Answer> {
        let mut request = self
            .client
            .request(method, format!("{}/api/v1{path}", self.server))
            .bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.runtime.block_on(async {
            let response = request
                .send()
                .await
                .with_context(|| format!("asking {path}"))?;
            Ok(Answer {
                status: response.status().as_u16(),
                body: response.text().await?,
            })
        })
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// When there is no answer, or it is not the resource.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.call(Method::GET, path, None)?;
        parse(path, &answer)
    }

    /// A machine.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn machine(&self, name: &str) -> anyhow::Result<MachineView> {
        self.get(&format!("/machines/{name}"))
    }

    /// A run.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn run(&self, id: &str) -> anyhow::Result<RunView> {
        self.get(&format!("/runs/{id}"))
    }

    /// Starts a run.
    ///
    /// # Errors
    /// When it is refused.
    pub fn provision(&self, machine: &str, request: &ProvisionRequest) -> anyhow::Result<RunView> {
        let path = format!("/machines/{machine}/provision");
        let body = serde_json::to_value(request)?;
        let answer = self.call(Method::POST, &path, Some(&body))?;
        parse(&path, &answer)
    }

    /// All events of a run, oldest first.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn events_of_run(&self, run: &str) -> anyhow::Result<Vec<EventView>> {
        self.pages(&format!("/event-log?run={run}"))
    }

    /// All events of a machine, oldest first.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn events_of_machine(&self, machine: &str) -> anyhow::Result<Vec<EventView>> {
        self.pages(&format!("/event-log?machine={machine}"))
    }

    /// All events, oldest first.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn events(&self) -> anyhow::Result<Vec<EventView>> {
        self.pages("/event-log?")
    }

    /// All tokens, without their secrets.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn tokens(&self) -> anyhow::Result<Vec<TokenView>> {
        Ok(self.get::<Page<TokenView>>("/tokens")?.items)
    }

    fn pages<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        let mut all = Vec::new();
        let mut after = None::<String>;
        loop {
            let separator = if path.ends_with('?') { "" } else { "&" };
            let page: Page<T> = match &after {
                None => self.get(path)?,
                Some(after) => self.get(&format!("{path}{separator}after={after}"))?,
            };
            all.extend(page.items);
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }
}

fn parse<T: DeserializeOwned>(path: &str, answer: &Answer) -> anyhow::Result<T> {
    anyhow::ensure!(
        (200..300).contains(&answer.status),
        "{path} was answered with {}: {}",
        answer.status,
        answer.body
    );
    serde_json::from_str(&answer.body)
        .with_context(|| format!("reading the answer to {path}: {}", answer.body))
}
