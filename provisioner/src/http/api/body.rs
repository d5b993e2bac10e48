//! JSON bodies whose errors are problem documents.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::http::problem::ApiError;

const LIMIT: usize = 1 << 20;
/// How long a body may take; those who must wait are unauthenticated callers too.
const PATIENCE: Duration = Duration::from_secs(30);

/// A whole body, of a size and in a time that a body may have.
///
/// # Errors
/// When it is larger or slower.
pub(crate) async fn bytes(request: Request) -> Result<Bytes, ApiError> {
    let read = axum::body::to_bytes(request.into_body(), LIMIT);
    tokio::time::timeout(PATIENCE, read)
        .await
        .map_err(|_| {
            ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body-too-slow",
                "the body did not arrive in time",
            )
        })?
        .map_err(|_| {
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "the body may have 1 MiB at most",
            )
        })
}

/// A JSON body. An empty one reads as `{}` so that `curl -X POST` without a body works.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = bytes(request).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| {
            ApiError::invalid("body-invalid", format!("the JSON body is wrong: {error}"))
        })
    }
}
