//! Images: list, show, remove. How they are added: `ingests`.

use anneal_protocol::api::{ImagePage, ImageView, Page, Problem, Role};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::auth::Caller;
use crate::app::Shared;
use crate::clock::rfc3339;
use crate::event::Event;
use crate::http::problem::{ApiError, ApiResult};
use crate::image::{self, ImageError, ImageRecord};

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
            ImageError::Mirror(_) => Self::invalid("mirror-refused", detail),
            ImageError::Partition(_) => Self::invalid("partition-unknown", detail),
            ImageError::InUse { .. } => Self::conflict("image-in-use", detail),
            ImageError::CutShort { .. } => Self::invalid("image-cut-short", detail),
            ImageError::Pack(cause) => {
                let cause = anyhow::Error::new(cause);
                tracing::warn!(error = format!("{cause:#}"), "an image was not added");
                Self::invalid("image-not-added", format!("{detail}: {cause:#}"))
            }
            ImageError::Store(cause) => cause.into(),
            ImageError::FilesMissing { .. } | ImageError::Io { .. } | ImageError::Key(_) => {
                Self::internal(&format!("{:#}", anyhow::Error::new(error)))
            }
        }
    }
}
