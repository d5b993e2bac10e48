//! Asking a registry: the OCI distribution API with Basic and Bearer authentication.
//!
//! Invariant: credentials go to the registry and to the token service that it names, over TLS
//! unless plain HTTP was asked for; never to where a blob redirects.

use std::sync::Mutex;
use std::sync::PoisonError;

use anneal_protocol::api::OciSource;
use base64::Engine as _;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};

use crate::image::ingest::IngestError;
use crate::image::ingest::digest::ContentDigest;
use crate::image::ingest::fetch::{Trouble, Web, trouble};

/// The distribution specification's own limit for manifests.
const MAX_MANIFEST: usize = 4 << 20;
const MAX_TOKEN: usize = 64 << 10;
const TRIES: u32 = 3;
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// One repository of a registry.
pub struct Registry {
    web: Web,
    base: Url,
    name: String,
    repository: String,
    login: Option<String>,
    plain: bool,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Registry {
    /// The repository of a reference. Asks nothing yet.
    ///
    /// # Errors
    /// When the registry's name is not one.
    pub fn new(
        web: Web,
        reference: &oci_client::Reference,
        source: &OciSource,
    ) -> Result<Self, IngestError> {
        let host = reference.resolve_registry();
        let scheme = if source.plain_http { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|error| {
            IngestError::Invalid(format!("{host:?} is not a registry: {error}"))
        })?;
        let login = match (&source.username, &source.password) {
            (Some(user), Some(password)) => {
                let encoder = base64::engine::general_purpose::STANDARD;
                Some(encoder.encode(format!("{user}:{password}")))
            }
            (None, None) => None,
            _ => {
                return Err(IngestError::Invalid(
                    "a registry login needs a user and a password".to_owned(),
                ));
            }
        };
        Ok(Self {
            web,
            base,
            name: format!("{}/{}", reference.registry(), reference.repository()),
            repository: reference.repository().to_owned(),
            login,
            plain: source.plain_http,
            authorization: Mutex::new(None),
        })
    }

    /// Registry and repository.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// `GET` of a path in the repository; logs in when asked to.
    pub async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response, Trouble> {
        let fatal = |text: String| Trouble::Fatal(IngestError::Source(text));
        let url = self
            .base
            .join(&format!("{}/{path}", self.repository))
            .map_err(|error| fatal(format!("{path}: {error}")))?;
        for login in [false, true] {
            let mut request = self.web.get(url.clone())?.headers(headers.clone());
            let known = self
                .authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Some(value) = known {
                request = request.header(header::AUTHORIZATION, value);
            }
            let response = request.send().await.map_err(trouble)?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            if login {
                break;
            }
            let value = self.login(response.headers()).await?;
            *self
                .authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(value);
        }
        Err(fatal(format!(
            "the registry refuses access to {}: give a login with `--registry-user` and `--registry-password-file`, or check it",
            self.name
        )))
    }

    async fn login(&self, headers: &HeaderMap) -> Result<HeaderValue, Trouble> {
        let fatal = |text: String| Trouble::Fatal(IngestError::Source(text));
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let challenge = challenges
            .filter_map(|value| value.to_str().ok())
            .find_map(Challenge::parse)
            .ok_or_else(|| {
                fatal(format!(
                    "{} asks for a login of a kind that is not known",
                    self.name
                ))
            })?;
        let (realm, service, scope) = match challenge {
            Challenge::Basic => {
                let login = self.login.as_ref().ok_or_else(|| {
                    fatal(format!(
                        "{} asks for a login: give one with `--registry-user` and `--registry-password-file`",
                        self.name
                    ))
                })?;
                return secret(&format!("Basic {login}"));
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => (realm, service, scope),
        };
        let mut url = Url::parse(&realm).map_err(|error| fatal(format!("{realm:?}: {error}")))?;
        if url.scheme() != "https" && !self.plain {
            return Err(fatal(format!(
                "{} wants the login sent to {realm} in clear",
                self.name
            )));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", &service);
        }
        let mut request = self.web.get(url)?;
        if let Some(login) = &self.login {
            request = request.header(header::AUTHORIZATION, secret(&format!("Basic {login}"))?);
        }
        let response = request.send().await.map_err(trouble)?;
        let status = response.status();
        if !status.is_success() {
            return Err(fatal(format!(
                "{realm} refuses a token for {}: {status}",
                self.name
            )));
        }
        let bytes = body(response, MAX_TOKEN).await?;
        let token: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| fatal(format!("{realm}: {error}")))?;
        let token = token["token"]
            .as_str()
            .or_else(|| token["access_token"].as_str());
        let token = token.ok_or_else(|| fatal(format!("{realm} gave no token")))?;
        secret(&format!("Bearer {token}"))
    }

    /// A manifest and its digest: the bytes are those of the digest.
    ///
    /// # Errors
    /// When it cannot be had, or the bytes are others.
    pub async fn manifest(&self, reference: &str) -> Result<(String, Vec<u8>), IngestError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_manifest(reference).await {
                Ok(found) => return Ok(found),
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Broken(text)) if tries >= TRIES => {
                    return Err(IngestError::Source(format!(
                        "asking {} for {reference} failed {tries} times: {text}",
                        self.name
                    )));
                }
                Err(Trouble::Broken(_)) => {
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                }
            }
        }
    }

    async fn try_manifest(&self, reference: &str) -> Result<(String, Vec<u8>), Trouble> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let response = self.get(&format!("manifests/{reference}"), headers).await?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_server_error() => {
                return Err(Trouble::Broken(format!("the registry answered {status}")));
            }
            status => {
                return Err(Trouble::Fatal(IngestError::Source(format!(
                    "{} has no manifest {reference}: the registry answered {status}",
                    self.name
                ))));
            }
        }
        let bytes = body(response, MAX_MANIFEST).await?;
        let own = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes)));
        if !reference.contains(':') {
            return Ok((own, bytes));
        }
        let mut expected = ContentDigest::parse(reference).map_err(Trouble::Fatal)?;
        expected.update(&bytes);
        expected.check().map_err(|text| {
            Trouble::Fatal(IngestError::Digest(format!(
                "the manifest that {} sent for {reference} is not it: {text}",
                self.name
            )))
        })?;
        Ok((reference.to_owned(), bytes))
    }
}

use sha2::Digest as _;

fn secret(text: &str) -> Result<HeaderValue, Trouble> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Trouble::Fatal(IngestError::Source(
            "the registry's token is not one".to_owned(),
        ))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

async fn body(mut response: Response, most: usize) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(trouble)? {
        if bytes.len() + chunk.len() > most {
            let text = format!("the registry answered with more than {most} bytes");
            return Err(Trouble::Fatal(IngestError::Source(text)));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// How a registry wants to be logged in to (RFC 9110, section 11.6.1).
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = rest.trim();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                "scope" => scope = Some(value.to_owned()),
                _ => {}
            }
            rest = next.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let text = r#"Bearer realm="https://auth.example.org/token",service="registry.example.org",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(text),
            Some(Challenge::Bearer {
                realm: "https://auth.example.org/token".to_owned(),
                service: Some("registry.example.org".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
    }
}
