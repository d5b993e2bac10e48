//! `Idempotency-Key`: a repeated write is answered, not repeated.
//!
//! Invariants: the same key with the same request gets the first answer; with another request it
//! is refused. Only answers below 500 are kept: a failed try may be tried again. Two concurrent
//! requests with one key are served one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anneal_protocol::time::Millis;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::auth::Caller;
use crate::app::Shared;
use crate::clock::now;
use crate::http::problem::ApiError;
use crate::store::StoredAnswer;

const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Bodies and answers of writes are small; images are sent elsewhere.
const LIMIT: usize = 4 << 20;
const HEADER: &str = "idempotency-key";

/// One lock a key in use.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

impl InFlight {
    fn lock_for(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Locks that nobody holds any more are forgotten here.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(key.to_owned()).or_default().clone()
    }
}

/// Answers repeated writes from the record.
pub async fn remember(
    State((shared, in_flight)): State<(Shared, InFlight)>,
    request: Request,
    next: Next,
) -> Response {
    match answer(&shared, &in_flight, request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(
    shared: &Shared,
    in_flight: &InFlight,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = request.headers().get(HEADER).cloned();
    let caller = request.extensions().get::<Caller>().map(|c| c.name.clone());
    let (Some(key), Some(caller)) = (key, caller) else {
        return Ok(next.run(request).await);
    };
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(next.run(request).await);
    }
    let key = key
        .to_str()
        .ok()
        .filter(|k| (1..=255).contains(&k.len()))
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "idempotency-key-invalid",
                "Idempotency-Key must be 1 to 255 printable characters",
            )
        })?
        .to_owned();
    let lock = in_flight.lock_for(&format!("{caller}\n{key}"));
    let _held = lock.lock().await;

    let (parts, body) = request.into_parts();
    let body = to_bytes(body, LIMIT).await.map_err(|_| too_large())?;
    let mut hash = Sha256::new();
    hash.update(parts.method.as_str());
    hash.update(parts.uri.to_string());
    hash.update(&body);
    let digest = hex::encode(hash.finalize());
    if let Some(kept) = shared.store.idempotent_answer(&caller, &key).await? {
        if kept.request != digest {
            return Err(ApiError::invalid(
                "idempotency-key-reused",
                "this Idempotency-Key was used for a different request: use a new one",
            ));
        }
        return Ok(replay(kept));
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if response.status().is_server_error() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, LIMIT).await.map_err(|_| too_large())?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let kept = StoredAnswer {
        request: digest,
        status: parts.status.as_u16(),
        response: text,
    };
    let at = now();
    let forget_before = Millis(at.0 - i64::try_from(KEEP.as_millis()).unwrap_or(0));
    let keep = shared
        .store
        .keep_answer(&caller, &key, &kept, at, forget_before);
    match keep.await {
        // What was asked for is done and stored: saying otherwise would be wrong.
        Err(error) if error.is_out_of_space() => {
            tracing::error!(%error, "an answer was not kept for repeated requests: no room for it");
        }
        kept => kept?,
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn replay(kept: StoredAnswer) -> Response {
    let status = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = if status.is_client_error() {
        "application/problem+json"
    } else {
        "application/json"
    };
    let mut response = (status, kept.response).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("idempotent-replay", HeaderValue::from_static("true"));
    response
}

fn too_large() -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body-too-large",
        "requests with an Idempotency-Key may have 4 MiB at most",
    )
}
