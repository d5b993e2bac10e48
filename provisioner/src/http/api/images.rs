//! Images: list, add by upload, remove.

use anneal_protocol::api::{ImagePage, ImageView, Page, Problem, Role};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;

use super::auth::Caller;
use crate::app::Shared;
use crate::clock::rfc3339;
use crate::event::Event;
use crate::http::problem::{ApiError, ApiResult};
use crate::image::{self, ImageError, ImageRecord};

/// What an upload is.
#[derive(Debug, Clone, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct AddQuery {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// OS family, `debian`: which templates may configure it.
    pub os: String,
}

/// Lists the images.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", responses((status = 200, body = ImagePage)))]
pub async fn list(State(shared): State<Shared>) -> ApiResult<Json<Page<ImageView>>> {
    let items = shared.images.list().await?.into_iter().map(view).collect();
    Ok(Json(Page { items, next: None }))
}

/// Shows an image, `name@version`.
#[utoipa::path(get, path = "/api/v1/images/{name}", tag = "images", params(("name" = String, Path)),
    responses((status = 200, body = ImageView), (status = 404, body = Problem)))]
pub async fn show(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> ApiResult<Json<ImageView>> {
    Ok(Json(view(shared.images.resolve(&name).await?)))
}

/// Adds an image: the body is the raw disk, or one compressed with zstd. It is sealed as it
/// arrives; when the upload breaks off, nothing is kept. Repeating an upload is harmless: the
/// same content under the same name is one image, so no `Idempotency-Key` is taken.
#[utoipa::path(post, path = "/api/v1/images", tag = "images", params(AddQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = ImageView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn add(
    State(shared): State<Shared>,
    caller: Caller,
    Query(query): Query<AddQuery>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<(StatusCode, Json<ImageView>)> {
    caller.must_be(Role::Admin)?;
    if headers.contains_key("idempotency-key") {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "idempotency-key-not-needed",
            "uploads take no Idempotency-Key: repeating one is harmless",
        ));
    }
    let (sender, reader) = image::body();
    let feed = async move {
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            // Dropping the sender unfinished tells the packer that the upload broke off; a
            // packer that takes no more says itself why.
            let Ok(bytes) = chunk else { return };
            if !sender.send(bytes).await {
                return;
            }
        }
        sender.finish().await;
    };
    let sealed = shared
        .images
        .add(&query.name, &query.version, &query.os, reader, |_| {});
    let ((), record) = tokio::join!(feed, sealed);
    let record = record?;
    let message = format!("{} added the image {}", caller.name, record.reference());
    shared.recorder.record(
        Event::new("image.added", message)
            .data(serde_json::json!({ "id": record.id, "sha256": record.sha256 })),
    );
    Ok((StatusCode::CREATED, Json(view(record))))
}

/// Removes an image that nobody needs.
#[utoipa::path(delete, path = "/api/v1/images/{name}", tag = "images", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn remove(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Admin)?;
    let record = shared.images.remove(&name).await?;
    let message = format!("{} removed the image {name}", caller.name);
    let event = Event::new("image.removed", message);
    shared
        .recorder
        .record(event.data(serde_json::json!({ "id": record.id })));
    Ok(StatusCode::NO_CONTENT)
}

/// An image as the API shows it.
pub(crate) fn view(image: ImageRecord) -> ImageView {
    ImageView {
        name: image.reference(),
        id: image.id,
        size: image.size,
        stored: image.stored,
        sha256: image.sha256,
        os: image.os,
        os_version: image.os_version,
        proof: image.proof.as_ref().map(image::proof::view),
        pinned: image.pinned,
        mirrors: image.mirrors,
        added_at: rfc3339(image.added_at),
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let detail = format!("{error}");
        match error {
            ImageError::Invalid(_) => Self::invalid("image-name-invalid", detail),
            ImageError::NotFound(_) => Self::not_found("image-not-found", detail),
            ImageError::Exists(_) | ImageError::ExistsOtherwise(_) => {
                Self::conflict("image-exists", detail)
            }
            ImageError::Partition(_) => Self::invalid("partition-unknown", detail),
            ImageError::InUse { .. } => Self::conflict("image-in-use", detail),
            ImageError::Unsupported { .. } => Self::invalid("image-format", detail),
            ImageError::CutShort { .. } => Self::invalid("image-cut-short", detail),
            ImageError::Pack(cause) => {
                let cause = anyhow::Error::new(cause);
                tracing::warn!(error = format!("{cause:#}"), "an image was not added");
                Self::invalid("image-not-added", format!("{detail}: {cause:#}"))
            }
            ImageError::Store(cause) => cause.into(),
            ImageError::FilesMissing { .. } | ImageError::Io { .. } => {
                Self::internal(&format!("{:#}", anyhow::Error::new(error)))
            }
        }
    }
}
