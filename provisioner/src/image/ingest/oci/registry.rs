//! Asking a registry: the OCI distribution API with Basic and Bearer authentication.
//!
//! Invariants: credentials go to the registry and to the token service that it names, over TLS
//! unless plain HTTP was asked for; never to where a blob redirects. Every request, also for a
//! token and after a redirect, passes the guard of [`Web`]; answers that are kept in memory are
//! bounded in size and time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anneal_protocol::api::OciSource;
use base64::Engine as _;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use sha2::Digest as _;

use crate::image::ingest::IngestError;
use crate::image::ingest::digest::ContentDigest;
use crate::image::ingest::fetch::{Trouble, Web, trouble};

/// The distribution specification's own limit for manifests.
const MAX_MANIFEST: usize = 4 << 20;
const MAX_TOKEN: usize = 64 << 10;
const TRIES: u32 = 3;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the registry may take for a manifest or a small blob, logging in included.
const ANSWER: Duration = Duration::from_secs(60);
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// One repository of a registry.
#[derive(Debug)]
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
        reference: &oci_spec::distribution::Reference,
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

    /// `GET` of a path in the repository; logs in when asked to. The caller bounds time and size.
    ///
    /// # Errors
    /// When the registry cannot be reached, or refuses the login.
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
    /// When there is none, it cannot be had, or the bytes are others.
    pub async fn manifest(&self, reference: &str) -> Result<(String, Vec<u8>), IngestError> {
        let found = self.find_manifest(reference).await?;
        found.ok_or_else(|| {
            IngestError::Source(format!("{} has no manifest {reference}", self.name))
        })
    }

    /// As [`Registry::manifest`]; `None` when the registry says that there is none.
    ///
    /// # Errors
    /// When it cannot be had, or the bytes are others.
    pub async fn find_manifest(
        &self,
        reference: &str,
    ) -> Result<Option<(String, Vec<u8>)>, IngestError> {
        let expected = match reference.contains(':') {
            true => Some(ContentDigest::parse(reference)?),
            false => None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let path = format!("manifests/{reference}");
        let Some(bytes) = self.small(&path, &headers, MAX_MANIFEST).await? else {
            return Ok(None);
        };
        let digest = match expected {
            Some(expected) => {
                self.same(expected, &bytes, reference)?;
                reference.to_owned()
            }
            None => format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes))),
        };
        Ok(Some((digest, bytes)))
    }

    /// A blob of at most `most` bytes: they are those of the digest.
    ///
    /// # Errors
    /// When there is none, it cannot be had, is longer, or the bytes are others.
    pub async fn small_blob(&self, digest: &str, most: usize) -> Result<Vec<u8>, IngestError> {
        let expected = ContentDigest::parse(digest)?;
        let path = format!("blobs/{digest}");
        let found = self.small(&path, &HeaderMap::new(), most).await?;
        let bytes = found
            .ok_or_else(|| IngestError::Source(format!("{} has no blob {digest}", self.name)))?;
        self.same(expected, &bytes, digest)?;
        Ok(bytes)
    }

    fn same(
        &self,
        mut expected: ContentDigest,
        bytes: &[u8],
        wanted: &str,
    ) -> Result<(), IngestError> {
        expected.update(bytes);
        expected.check().map_err(|text| {
            IngestError::Digest(format!(
                "what {} sent for {wanted} is not it: {text}",
                self.name
            ))
        })
    }

    /// All of a small answer, tried a few times; none when the registry has no such thing.
    async fn small(
        &self,
        path: &str,
        headers: &HeaderMap,
        most: usize,
    ) -> Result<Option<Vec<u8>>, IngestError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let tried = tokio::time::timeout(ANSWER, self.try_small(path, headers, most)).await;
            let late = || Trouble::Broken(format!("no whole answer in {} s", ANSWER.as_secs()));
            match tried.unwrap_or_else(|_| Err(late())) {
                Ok(found) => return Ok(found),
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Broken(text)) if tries >= TRIES => {
                    return Err(IngestError::Source(format!(
                        "asking {} for {path} failed {tries} times: {text}",
                        self.name
                    )));
                }
                Err(Trouble::Broken(_)) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn try_small(
        &self,
        path: &str,
        headers: &HeaderMap,
        most: usize,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let response = self.get(path, headers.clone()).await?;
        match response.status() {
            StatusCode::OK => body(response, most).await.map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_server_error() => {
                Err(Trouble::Broken(format!("the registry answered {status}")))
            }
            status => Err(Trouble::Fatal(IngestError::Source(format!(
                "{} does not give {path}: the registry answered {status}",
                self.name
            )))),
        }
    }
}

fn secret(text: &str) -> Result<HeaderValue, Trouble> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Trouble::Fatal(IngestError::Source(
            "the registry's token is not one".to_owned(),
        ))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The whole body, unless it is longer than `most` bytes.
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
