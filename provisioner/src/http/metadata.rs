//! The metadata service of a machine, in the manner of EC2's second version: a session token by
//! `PUT`, then documents by `GET` with that token in a header. On a port of its own, off unless
//! set.
//!
//! On EC2 the address is the credential: whoever can ask gets a token. Here a session is given
//! only for the machine's one-use token (`metadata_url('os/')` in a template makes one, which is no
//! config URL's), in the path or in a header, and is bound to the address that asked. Everything that ADR 0013 says
//! of config URLs holds: served once with a grace, in clear only when setting and template say
//! so, and a second party is an alarm that fails the run.
//!
//! Not here: what the documents say (templates; [`machine_facts`] for what is not a template).

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Extension, Router};

use super::config::{Wire, refuse};
use super::listener::Peer;
use super::metadata_facts::{Entry, machine_facts};
use super::problem::ApiError;
use super::whose::machine_at;
use crate::app::Shared;
use crate::token::{Fetch, FetchError, Purpose, TokenRecord};

/// Header that asks how long a session is to live, in seconds.
const TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// Header that a session's token is shown in.
const SESSION: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
/// Header that the one-use token may be shown in, instead of the path.
const SECRET: HeaderName = HeaderName::from_static("x-anneal-metadata-token");
/// The longest session that EC2 gives, seconds.
const LONGEST: u64 = 21_600;
/// The document that stands for the session in the record of what was served.
pub const TOKEN_DOCUMENT: &str = "api/token";

/// The routes of the service's own listener.
pub fn router(shared: &Shared, tls: bool) -> Router {
    Router::new()
        .route("/{*path}", any(serve))
        .layer(Extension(Wire::new(tls)))
        .fallback(async || not_there())
        .with_state(shared.clone())
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    /// A session.
    Token,
    /// The machine's user data.
    UserData,
    /// Something below `meta-data`; empty: what there is.
    MetaData(&'a str),
}

/// Reads a path: the secret, if it is in it, and what is asked for.
fn read(path: &str) -> (Option<&str>, Option<Asked<'_>>) {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let is_secret = first.len() == 64 && first.bytes().all(|b| b.is_ascii_hexdigit());
    let (secret, path) = match is_secret {
        true => (Some(first), rest),
        false => (None, path),
    };
    let (version, wanted) = path.split_once('/').unwrap_or((path, ""));
    let asked = match wanted {
        "api/token" if version == "latest" => Some(Asked::Token),
        _ if !is_version(version) => None,
        "user-data" => Some(Asked::UserData),
        "meta-data" => Some(Asked::MetaData("")),
        other => other.strip_prefix("meta-data/").map(Asked::MetaData),
    };
    (secret, asked)
}

/// `latest`, or a date; all of them are the same.
fn is_version(word: &str) -> bool {
    let date = |w: &str| {
        let shape = w.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
        w.len() == 10 && shape
    };
    word == "latest" || date(word)
}

async fn serve(
    State(shared): State<Shared>,
    Extension(wire): Extension<Wire>,
    Extension(peer): Extension<Peer>,
    Path(path): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let (secret, asked) = read(&path);
    let Some(asked) = asked else {
        return not_there();
    };
    let wanted = if asked == Asked::Token {
        Method::PUT
    } else {
        Method::GET
    };
    if method != wanted {
        return not_allowed(&wanted);
    }
    let address = peer.address.ip();
    let machine = match machine_at(&shared, address).await {
        Ok(machine) => machine,
        Err(error) => return ApiError::internal(&error).into_response(),
    };
    let caller = Caller {
        shared: &shared,
        machine: machine.as_deref(),
        by: &address.to_string(),
        tls: wire.tls(),
    };
    let answer = match asked {
        Asked::Token => {
            caller
                .session(secret.or_else(|| text(&headers, &SECRET)), &headers)
                .await
        }
        Asked::UserData => caller.user_data(text(&headers, &SESSION)).await,
        Asked::MetaData(path) => caller.meta_data(text(&headers, &SESSION), path).await,
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

struct Caller<'a> {
    shared: &'a Shared,
    /// Machine whose address it comes from.
    machine: Option<&'a str>,
    by: &'a str,
    tls: bool,
}

impl Caller<'_> {
    fn fetch<'b>(&'b self, purpose: Purpose, secret: &'b str, document: &'b str) -> Fetch<'b> {
        Fetch {
            purpose,
            secret,
            document,
            machine: self.machine,
            by: self.by,
            tls: self.tls,
        }
    }

    /// `PUT /latest/api/token`.
    async fn session(
        &self,
        secret: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Response, ApiError> {
        if headers.contains_key("x-forwarded-for") {
            let text = "a session is for who asks, not for whom a proxy asks";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "proxied", text));
        }
        let asked = text(headers, &TTL).and_then(|t| t.parse().ok());
        let Some(asked) = asked.filter(|seconds| (1..=LONGEST).contains(seconds)) else {
            let text = format!("{TTL} must be a number of seconds from 1 to {LONGEST}");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "ttl-invalid", text));
        };
        let Some(secret) = secret else {
            let text = format!("show the machine's one-use token, in the path or as {SECRET}");
            return Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "token-required",
                text,
            ));
        };
        let engine = self.shared.engine.clone();
        let make = move |token: TokenRecord| async move {
            engine
                .metadata_session(&token, std::time::Duration::from_secs(asked))
                .await
        };
        let fetch = self.fetch(Purpose::Metadata, secret, TOKEN_DOCUMENT);
        match self.shared.configs.fetch(fetch, make).await {
            Ok(session) => {
                let mut answer = plain(Body::from(session));
                answer.headers_mut().insert(TTL, HeaderValue::from(asked));
                Ok(answer)
            }
            Err(error) => Err(refuse(self.shared, error).await),
        }
    }

    /// Serves the template `user-data` once, as a config URL would.
    async fn user_data(&self, session: Option<&str>) -> Result<Response, ApiError> {
        let secret = session.ok_or_else(no_session)?;
        self.known(secret).await?;
        let engine = self.shared.engine.clone();
        let render = move |token: TokenRecord| async move {
            engine.config_document(&token, "user-data").await
        };
        let fetch = self.fetch(Purpose::Session, secret, "user-data");
        match self.shared.configs.fetch(fetch, render).await {
            Ok(bytes) => Ok(plain(Body::from(bytes))),
            Err(FetchError::NoDocument) => Ok(not_there()),
            Err(error) => Err(refuse(self.shared, error).await),
        }
    }

    async fn meta_data(&self, session: Option<&str>, path: &str) -> Result<Response, ApiError> {
        let token = self.known(session.ok_or_else(no_session)?).await?;
        let machine = self.shared.engine.machine_in(&token.run).await;
        let machine = machine.map_err(|e| ApiError::internal(&e))?;
        let machine = machine.ok_or_else(no_session)?;
        let facts = machine_facts(&machine, &token.run);
        Ok(match facts.find(path).map(Entry::text) {
            Some(text) => plain(Body::from(text)),
            None => not_there(),
        })
    }

    /// The session with this token, if it is the caller's.
    async fn known(&self, secret: &str) -> Result<TokenRecord, ApiError> {
        let fetch = self.fetch(Purpose::Session, secret, "");
        let known = super::session::known(self.shared, fetch.claim(), secret, |token| {
            token.subject.as_deref().is_some_and(|s| s.ends_with('/'))
        });
        let token = known.await?.ok_or_else(no_session)?;
        if !self.tls && !token.plain {
            return Err(no_session());
        }
        Ok(token)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What EC2 answers to a missing, wrong or old session token.
fn no_session() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "session-required",
        format!(
            "show a session's token as {SESSION}; PUT /latest/api/token gives one for the machine's one-use token"
        ),
    )
}

fn not_there() -> Response {
    let text = "expected /latest/api/token, /latest/user-data or /latest/meta-data/";
    ApiError::not_found("no-such-path", text).into_response()
}

fn not_allowed(wanted: &Method) -> Response {
    let text = format!("this is asked for with {wanted}");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut answer = ApiError::new(status, "method-not-allowed", text).into_response();
    if let Ok(value) = HeaderValue::from_str(wanted.as_str()) {
        answer.headers_mut().insert(ALLOW, value);
    }
    answer
}

fn plain(body: Body) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_ec2_below_an_optional_secret() {
        let secret = "0123456789abcdef".repeat(4);
        let paths = [
            ("latest/api/token", Some(Asked::Token)),
            ("2021-03-23/api/token", None),
            ("latest/user-data", Some(Asked::UserData)),
            ("2009-04-04/meta-data", Some(Asked::MetaData(""))),
            ("latest/meta-data/", Some(Asked::MetaData(""))),
            (
                "latest/meta-data/public-keys/0",
                Some(Asked::MetaData("public-keys/0")),
            ),
            ("latest/dynamic/instance-identity/document", None),
            ("1.0/user-data", None),
            ("2009-04-0x/user-data", None),
            ("latest", None),
            ("", None),
        ];
        for (path, asked) in paths {
            assert_eq!(read(path), (None, asked), "{path}");
        }
        let with = format!("{secret}/latest/api/token");
        assert_eq!(read(&with), (Some(secret.as_str()), Some(Asked::Token)));
    }
}
