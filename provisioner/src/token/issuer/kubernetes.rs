//! The `kubernetes` issuer: bootstrap tokens as Secrets of `kube-system`, by the API.
//!
//! Three calls, and no more rights than they need: create and delete Secrets in `kube-system`,
//! read the ConfigMap `cluster-info` in `kube-public`. Nothing is read back: a Secret of ours is
//! known by the random id that we chose for it.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::kubeconfig::{self, Connection};
use super::{Failure, JoinToken, exec};
use crate::bmc::PasswordDirs;
use crate::clock::rfc3339;
use crate::settings::Access;
use crate::token::TokenError;

/// For a connection, and for one answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// Largest answer that is read: a refusal has some 300 bytes.
const LONGEST_ANSWER: usize = 256 * 1024;
/// Where Kubernetes puts what a pod needs to speak to the API.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A bootstrap token: six characters that name it, and sixteen that are secret.
pub struct BootstrapToken {
    /// The public half.
    pub id: String,
    secret: Zeroizing<String>,
}

// Not derived: it would print the secret.
impl std::fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BootstrapToken({})", self.id)
    }
}

impl BootstrapToken {
    /// A new one.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn random() -> Result<Self, TokenError> {
        Ok(Self {
            id: word(6)?,
            secret: Zeroizing::new(word(16)?),
        })
    }

    /// Both halves, as kubeadm takes them.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}.{}", self.id, self.secret.as_str()))
    }
}

/// Random characters, each as likely as any other.
fn word(length: usize) -> Result<String, TokenError> {
    let mut text = String::with_capacity(length);
    let mut bytes = Zeroizing::new([0_u8; 32]);
    while text.len() < length {
        getrandom::fill(&mut *bytes).map_err(|_| TokenError::Random)?;
        // 252 is the largest multiple of 36 that a byte can exceed.
        let fair = bytes.iter().filter(|byte| **byte < 252);
        for byte in fair.take(length - text.len()) {
            text.push(char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
        }
    }
    Ok(text)
}

/// How to reach a cluster's API, read at the moment it is needed: what was rotated counts.
pub(super) async fn connection(
    access: &Access,
    files: &PasswordDirs,
) -> Result<Connection, Failure> {
    match access {
        Access::Kubeconfig { file, context } => {
            kubeconfig::read(file, context.as_deref(), files).await
        }
        Access::InCluster => {
            let host = std::env::var("KUBERNETES_SERVICE_HOST");
            let port = std::env::var("KUBERNETES_SERVICE_PORT");
            in_cluster(Path::new(SERVICE_ACCOUNT), host.ok(), port.ok()).await
        }
    }
}

async fn in_cluster(
    directory: &Path,
    host: Option<String>,
    port: Option<String>,
) -> Result<Connection, Failure> {
    let (Some(host), Some(port)) = (host, port) else {
        return Err(Failure::lasting(
            "the daemon does not run in a cluster: KUBERNETES_SERVICE_HOST and _PORT are not set",
        ));
    };
    let read = async |name: &str| {
        let path = directory.join(name);
        let text = tokio::fs::read_to_string(&path).await;
        text.map_err(|e| Failure::lasting(format!("reading {}: {e}", path.display())))
    };
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host,
    };
    Ok(Connection {
        server: format!("https://{host}:{port}"),
        ca_pem: read("ca.crt").await?,
        identity: None,
        token: Some(Zeroizing::new(read("token").await?.trim().to_owned())),
    })
}

/// A cluster's API.
pub(super) struct Api {
    http: Client,
    connection: Connection,
}

impl Api {
    pub(super) async fn open(access: &Access, files: &PasswordDirs) -> Result<Self, Failure> {
        Self::new(connection(access, files).await?)
    }

    fn new(connection: Connection) -> Result<Self, Failure> {
        let wrong = |what: &str, error: reqwest::Error| {
            Failure::lasting(format!("{what}: {}", chain(&error)))
        };
        let ca = reqwest::Certificate::from_pem_bundle(connection.ca_pem.as_bytes())
            .map_err(|e| wrong("the certificate authority", e))?;
        if ca.is_empty() {
            return Err(Failure::lasting(
                "the certificate authority is not a certificate in PEM",
            ));
        }
        let mut builder = Client::builder()
            .tls_certs_only(ca)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .user_agent(concat!("anneal/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &connection.identity {
            let identity = reqwest::Identity::from_pem(pem.as_bytes());
            builder = builder.identity(identity.map_err(|e| wrong("the client certificate", e))?);
        }
        let http = builder.build().map_err(|e| wrong("setting up TLS", e))?;
        Ok(Self { http, connection })
    }

    /// Creates a token's Secret. False when there is one of this id.
    pub(super) async fn create(
        &self,
        token: &BootstrapToken,
        record: &JoinToken,
        groups: &[String],
    ) -> Result<bool, Failure> {
        let body = secret(token, record, groups);
        let request = self.request(Method::POST, SECRETS).json(&body);
        // Sent, and then silence: it may be there.
        let answer = self.send(request).await.map_err(|failure| Failure {
            maybe_made: failure.retryable,
            ..failure
        })?;
        match answer.status {
            StatusCode::CREATED => Ok(true),
            StatusCode::CONFLICT => Ok(false),
            _ => Err(answer.refusal("creating the bootstrap token")),
        }
    }

    /// Deletes a token's Secret; gone already is as good.
    pub(super) async fn delete(&self, token_id: &str) -> Result<(), Failure> {
        let path = format!("{SECRETS}/bootstrap-token-{token_id}");
        let answer = self.send(self.request(Method::DELETE, &path)).await?;
        match answer.status {
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(answer.refusal("deleting the bootstrap token")),
        }
    }

    /// The authority that joining nodes are to trust: what the cluster says of itself, or else
    /// what we trust.
    pub(super) async fn ca(&self) -> Result<String, Failure> {
        let answer = self.send(self.request(Method::GET, CLUSTER_INFO)).await?;
        match answer.status {
            StatusCode::OK => {
                let document = answer.document();
                let told = document["data"]["kubeconfig"].as_str();
                let told = told.and_then(kubeconfig::authority);
                Ok(told.unwrap_or_else(|| self.connection.ca_pem.clone()))
            }
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Ok(self.connection.ca_pem.clone()),
            _ => Err(answer.refusal("reading cluster-info")),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.connection.server);
        let request = self.http.request(method, url);
        match &self.connection.token {
            Some(token) => request.bearer_auth(token.as_str()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let server = &self.connection.server;
        let failed = |error: reqwest::Error| {
            let told = format!("{server}: {}", chain(&error));
            match error.is_builder() {
                true => Failure::lasting(told),
                false => Failure::away(told),
            }
        };
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST_ANSWER {
                return Err(Failure::passing(format!(
                    "{server}: its answer is too long"
                )));
            }
        }
        Ok(Answer {
            server: server.clone(),
            status,
            body,
        })
    }
}

/// What the API answered.
struct Answer {
    server: String,
    status: StatusCode,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    fn document(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A failure that says what the API said; what looks like a token is hidden.
    fn refusal(&self, doing: &str) -> Failure {
        let document = self.document();
        let message = document["message"].as_str().unwrap_or("no reason given");
        let told = format!(
            "{}: {doing}: {}: {}",
            self.server,
            self.status,
            exec::masked(message)
        );
        let status = self.status;
        let again = status.is_server_error()
            || status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT;
        Failure {
            // An error of the server's own may have come after the deed.
            maybe_made: status.is_server_error(),
            retryable: again,
            away: false,
            reason: told,
        }
    }
}

/// The Secret of a token, as kubeadm writes it.
fn secret(token: &BootstrapToken, record: &JoinToken, groups: &[String]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "bootstrap.kubernetes.io/token",
        "metadata": {
            "name": format!("bootstrap-token-{}", token.id),
            "namespace": "kube-system",
            "labels": { "app.kubernetes.io/managed-by": "anneal" },
        },
        "stringData": {
            "token-id": token.id,
            "token-secret": token.secret.as_str(),
            "expiration": record.expires_at.map(rfc3339),
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": groups.join(","),
            "description": record.description(),
        },
    })
}

/// An error with its causes; URLs hold no secret here.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
