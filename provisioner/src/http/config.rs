//! Configuration by URL: `GET /node/v1/config/<token>`, and the documents of a NoCloud seed
//! below it. Each is served once; see [`crate::token::Configs`].
//!
//! On the TLS listener; on the boot listener only when the settings say so, and then only for
//! tokens that were made for it.
//!
//! Not here: what is in a document (`workflow`), and what a second fetch is (`token`).

use anneal_protocol::api::Problem;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Extension, Router};
use tokio_util::sync::CancellationToken;

use super::listener::Peer;
use super::problem::{ApiError, ApiResult};
use super::whose::machine_at;
use crate::app::Shared;
use crate::token::{Fetch, FetchError, Purpose, Refused, TokenRecord};

/// Which listener a request came to.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    tls: bool,
}

impl Wire {
    pub(super) fn new(tls: bool) -> Self {
        Self { tls }
    }

    pub(super) fn tls(self) -> bool {
        self.tls
    }
}

/// The routes on the TLS listener.
pub fn on_tls_listener(shared: &Shared) -> Router {
    router(true).with_state(shared.clone())
}

/// The routes on the boot listener: none, unless the settings say so.
pub fn on_boot_listener(shared: &Shared) -> Router {
    if !shared.settings.plain_config_urls {
        return Router::new();
    }
    router(false).with_state(shared.clone())
}

/// Forgets documents whose grace is over, until `stop`.
///
/// # Errors
/// Never.
pub async fn forget(shared: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    shared.configs.forget(&stop).await;
    Ok(())
}

fn router(tls: bool) -> Router<Shared> {
    let document = || -> MethodRouter<Shared> {
        get(serve).head(probe).fallback(async || {
            let mut refusal = ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "a config URL is fetched with GET",
            )
            .into_response();
            let methods = HeaderValue::from_static("GET, HEAD");
            refusal.headers_mut().insert(ALLOW, methods);
            refusal
        })
    };
    Router::new()
        .route("/node/v1/config/{token}", document())
        .route("/node/v1/config/{token}/", document())
        .route("/node/v1/config/{token}/{document}", document())
        .layer(Extension(Wire { tls }))
}

/// What the path names: the secret, and the document below it.
#[derive(Debug, serde::Deserialize)]
pub struct Place {
    token: String,
    #[serde(default)]
    document: String,
}

/// Serves a document once. The token in the path is the credential. The client that fetched it
/// may do so again for a minute and gets the same bytes; any other fetch is refused with 410, is
/// recorded as an alarm, and fails the run.
#[utoipa::path(get, path = "/node/v1/config/{token}/{document}", tag = "nodes", security(()),
    params(
        ("token" = String, Path, description = "One-use token from a rendered template"),
        ("document" = String, Path, description = "user-data, meta-data, vendor-data or network-config of a NoCloud seed; left out, with its slash, for a URL of one document"),
    ),
    responses(
        (status = 200, description = "The document", body = String),
        (status = 403, description = "No such token, or not this machine's", body = Problem),
        (status = 404, description = "The token has no such document", body = Problem),
        (status = 405, description = "Neither GET nor HEAD", body = Problem),
        (status = 410, description = "Fetched before, expired, or the run is over", body = Problem),
        (status = 416, description = "Ranges are not served", body = Problem),
    ))]
pub async fn serve(
    State(shared): State<Shared>,
    Extension(wire): Extension<Wire>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Path(place): Path<Place>,
) -> ApiResult<Response> {
    no_ranges(&headers)?;
    let (machine, by) = caller(&shared, &peer).await?;
    let fetch = place.fetch(machine.as_deref(), &by, wire);
    let (engine, document) = (shared.engine.clone(), place.document.clone());
    let render =
        move |token: TokenRecord| async move { engine.config_document(&token, &document).await };
    match shared.configs.fetch(fetch, render).await {
        Ok(bytes) => Ok(answer(Body::from(bytes))),
        Err(error) => Err(refuse(&shared, error).await),
    }
}

/// Whether the document is there; uses nothing up, and alarms nobody.
async fn probe(
    State(shared): State<Shared>,
    Extension(wire): Extension<Wire>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Path(place): Path<Place>,
) -> ApiResult<Response> {
    no_ranges(&headers)?;
    let (machine, by) = caller(&shared, &peer).await?;
    let fetch = place.fetch(machine.as_deref(), &by, wire);
    match shared.configs.probe(fetch).await {
        Ok(token) if shared.engine.has_config(&token, &place.document) => Ok(answer(Body::empty())),
        Ok(_) => Err(translate(&FetchError::NoDocument)),
        Err(error) => Err(translate(&error)),
    }
}

impl Place {
    fn fetch<'a>(&'a self, machine: Option<&'a str>, by: &'a str, wire: Wire) -> Fetch<'a> {
        Fetch {
            purpose: Purpose::Config,
            secret: &self.token,
            document: &self.document,
            machine,
            by,
            tls: wire.tls,
        }
    }
}

/// The machine whose address the caller has, and that address. Behind NAT nobody is known by an
/// address: then the token alone says who it is.
async fn caller(shared: &Shared, peer: &Peer) -> ApiResult<(Option<String>, String)> {
    let address = peer.address.ip();
    let machine = machine_at(shared, address).await?;
    Ok((machine, address.to_string()))
}

fn no_ranges(headers: &HeaderMap) -> ApiResult<()> {
    if !headers.contains_key(RANGE) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "range-refused",
        "a document is served whole: leave Range out",
    ))
}

/// No loader looks at the type; people who try it in a browser do.
fn answer(body: Body) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, body).into_response()
}

/// Fails the run of a token that is in two hands, and says what to answer.
pub(super) async fn refuse(shared: &Shared, error: FetchError) -> ApiError {
    if let FetchError::Refused(refused, Some(token)) = &error
        && refused.fails_run()
    {
        let subject = token.subject.as_deref().unwrap_or_default();
        let reason = format!(
            "the config URL of `{subject}` was fetched again, from another address or too late: somebody else may have this machine's configuration"
        );
        if let Err(error) = shared.engine.fail_security(&token.run, &reason).await {
            return ApiError::internal(&error);
        }
    }
    translate(&error)
}

fn translate(error: &FetchError) -> ApiError {
    match error {
        FetchError::Refused(Refused::Expired | Refused::Revoked | Refused::Replayed, _) => {
            ApiError::new(
                StatusCode::GONE,
                "token-spent",
                "this config URL was good once; provision the machine again for a new one",
            )
        }
        FetchError::Refused(..) => ApiError::new(
            StatusCode::FORBIDDEN,
            "token-refused",
            "this is not a config URL of yours",
        ),
        FetchError::NoDocument => ApiError::not_found(
            "document-not-found",
            "this config URL has no document of that name",
        ),
        FetchError::Store(_) | FetchError::Render(_) => ApiError::internal(&chain(error)),
    }
}

fn chain(error: &FetchError) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
