//! The operator's API, `/api/v1`: who may ask what, and the answers as JSON.
//!
//! Owns: routing, authentication and roles, idempotency, pages, the OpenAPI document.
//! Invariant: nothing here moves a machine from one state to another; handlers store what was
//! asked for, and the engine acts.

pub mod attestations;
pub mod auth;
pub mod body;
pub mod clusters;
pub mod events;
pub mod idempotency;
pub mod image_care;
pub mod images;
pub mod ingests;
pub mod keys;
pub mod machines;
pub mod openapi;
pub mod render;
pub mod runs;
pub mod tokens;
pub mod workflows;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};

use crate::app::Shared;
use crate::http::problem::ApiError;
use crate::metrics::Metrics;

/// Which page of a list.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// `next` of the page before.
    pub after: Option<String>,
    /// Page size, 1 to 1000; default 100.
    pub limit: Option<u32>,
}

/// The page size to use for a wish.
pub(crate) fn page_size(wish: Option<u32>) -> u32 {
    wish.unwrap_or(100).clamp(1, 1_000)
}

/// All routes under `/api/v1`.
pub fn router(shared: &Shared) -> Router {
    let in_flight = idempotency::InFlight::default();
    // Not remembered: an image's answer comes after an upload that cannot be kept, and the answer
    // to a new key holds the key. Both are safe to repeat: the second time is a conflict or the
    // same.
    let unremembered = Router::new()
        .route("/api/v1/api-keys", get(keys::list).post(keys::create))
        .route("/api/v1/api-keys/{name}", delete(keys::remove))
        // What is sent here are secrets: no digest of it is kept.
        .route(
            "/api/v1/clusters/{name}/secrets",
            put(clusters::import).delete(clusters::remove),
        )
        .route("/api/v1/images", get(images::list))
        .route("/api/v1/images/ingests/{id}/data", put(ingests::put))
        .route(
            "/api/v1/images/{name}",
            get(images::show).delete(images::remove),
        )
        .route("/api/v1/images/{name}/verify", post(image_care::verify))
        .route("/api/v1/images/{name}/manifest", get(image_care::manifest))
        .route("/api/v1/images/{name}/data", get(image_care::data));
    let rest = Router::new()
        .route(
            "/api/v1/images/ingests",
            get(ingests::list).post(ingests::create),
        )
        .route(
            "/api/v1/images/ingests/{id}",
            get(ingests::show).delete(ingests::cancel),
        )
        .route("/api/v1/machines", get(machines::list))
        .route(
            "/api/v1/machines/{name}",
            get(machines::show).delete(machines::remove),
        )
        .route("/api/v1/machines/{name}/provision", post(runs::provision))
        .route("/api/v1/machines/{name}/reprovision", post(runs::provision))
        .route("/api/v1/machines/{name}/render", get(render::render))
        .route("/api/v1/machines/{name}/validate", get(render::validate))
        .route("/api/v1/inventory", post(machines::apply))
        .route("/api/v1/runs", get(runs::list))
        .route("/api/v1/runs/{id}", get(runs::show))
        .route("/api/v1/runs/{id}/cancel", post(runs::cancel))
        .route("/api/v1/runs/{id}/retry", post(runs::retry))
        .route("/api/v1/images/gc", post(image_care::collect))
        .route(
            "/api/v1/images/{name}/pin",
            put(image_care::pin).delete(image_care::unpin),
        )
        .route(
            "/api/v1/images/{name}/mirrors",
            post(image_care::add_mirror).delete(image_care::remove_mirror),
        )
        .route(
            "/api/v1/image-keys",
            get(image_care::keys).post(image_care::rotate),
        )
        .route("/api/v1/image-keys/resign", post(image_care::resign))
        .route("/api/v1/workflows", get(workflows::list))
        .route("/api/v1/workflows/validate", post(workflows::validate))
        .route("/api/v1/events", get(events::stream))
        .route("/api/v1/event-log", get(events::log))
        .route("/api/v1/openapi.json", get(openapi::document))
        .route("/api/v1/tokens", get(tokens::list))
        .route("/api/v1/clusters", get(clusters::list))
        .route("/api/v1/clusters/{name}", get(clusters::show))
        .route("/api/v1/attestations", get(attestations::list))
        .route("/api/v1/attestations/{id}", get(attestations::show))
        .route("/api/v1/attestation-keys", get(attestations::keys))
        .route_layer(middleware::from_fn_with_state(
            (shared.clone(), in_flight),
            idempotency::remember,
        ));
    unremembered
        .merge(rest)
        .route_layer(middleware::from_fn_with_state(
            shared.clone(),
            auth::authenticate,
        ))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(shared.clone())
}

/// 404 as a problem document.
pub async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    ApiError::not_found(
        "no-such-path",
        format!("nothing is at {path}; see /api/v1/openapi.json"),
    )
    .into_response()
}

async fn method_not_allowed(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("{method} is not possible on {path}; see /api/v1/openapi.json"),
    )
    .into_response()
}

/// Ready means: the database answers.
pub async fn ready(shared: Shared) -> Response {
    match shared.store.last_event_id().await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the database does not answer\n",
            )
                .into_response()
        }
    }
}

/// The metrics in OpenMetrics text.
pub async fn metrics(metrics: Metrics) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.render()).into_response()
}
