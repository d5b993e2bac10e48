//! Ingests: images on their way into the store.

use std::sync::Arc;

use anneal_protocol::api::{
    IngestPage, IngestRequest, IngestState, IngestView, Page, Problem, Role,
};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};

use super::auth::Caller;
use super::body::JsonBody;
use super::images;
use crate::app::Shared;
use crate::clock::rfc3339;
use crate::http::problem::{ApiError, ApiResult};
use crate::image::ingest::{Job, Part, PutError};

/// Begins to add an image. An uploaded one is sent to `PUT …/data` afterwards; others the daemon
/// fetches. Needs the role operator with a proof of the publisher, admin without.
#[utoipa::path(post, path = "/api/v1/images/ingests", tag = "images", request_body = IngestRequest,
    responses((status = 201, body = IngestView), (status = 403, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem), (status = 429, body = Problem)))]
pub async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    JsonBody(request): JsonBody<IngestRequest>,
) -> ApiResult<(StatusCode, Json<IngestView>)> {
    caller.must_be(Role::Operator)?;
    let job = shared.ingests.begin(request, &caller.name, caller.role)?;
    Ok((StatusCode::CREATED, Json(view(&job))))
}

/// Lists ingests that go on, and the last that ended.
#[utoipa::path(get, path = "/api/v1/images/ingests", tag = "images",
    responses((status = 200, body = IngestPage)))]
pub async fn list(State(shared): State<Shared>) -> Json<Page<IngestView>> {
    let items = shared.ingests.list().iter().map(|job| view(job)).collect();
    Json(Page { items, next: None })
}

/// Shows an ingest: how far it is, and where an upload goes on.
#[utoipa::path(get, path = "/api/v1/images/ingests/{id}", tag = "images", params(("id" = String, Path)),
    responses((status = 200, body = IngestView), (status = 404, body = Problem)))]
pub async fn show(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> ApiResult<Json<IngestView>> {
    let job = find(&shared, &id)?;
    Ok(Json(view(&job)))
}

/// Takes data of an upload. Without `Content-Range` the body is all of it; with it, the part that
/// begins where the upload goes on (`received` of the ingest). `bytes */TOTAL` says that so many
/// were all. Only the API key that began the ingest may send.
#[utoipa::path(put, path = "/api/v1/images/ingests/{id}/data", tag = "images", params(("id" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = IngestView), (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn put(
    State(shared): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Json<IngestView>> {
    caller.must_be(Role::Operator)?;
    let job = find(&shared, &id)?;
    if caller.name != job.author {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("ingest {id} belongs to the API key \"{}\"", job.author),
        ));
    }
    let Some(upload) = &job.upload else {
        return Err(ApiError::conflict(
            "ingest-not-an-upload",
            format!("ingest {id} is fetched by the daemon and takes no data"),
        ));
    };
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let length = text(header::CONTENT_LENGTH).and_then(|value| value.parse().ok());
    let part = match headers.contains_key(header::CONTENT_RANGE) {
        true => Part::parse(text(header::CONTENT_RANGE).or(Some("")), length),
        false => Part::parse(None, length),
    };
    let taken = match part {
        Ok(part) => upload.put(part, body.into_data_stream()).await,
        Err(error) => Err(error),
    };
    match taken {
        Ok(_) => Ok(Json(view(&job))),
        // Repeating the last part, whose answer was lost, is no mistake.
        Err(PutError::Closed) if upload.is_complete() => Ok(Json(view(&job))),
        // Why it takes no more is the ingest's own problem.
        Err(PutError::Closed) => match job.end().await {
            Some(Err(problem)) => Err(ApiError::again(problem)),
            _ => Err(PutError::Closed.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Cancels an ingest, and nothing of it stays; forgets one that has ended.
#[utoipa::path(delete, path = "/api/v1/images/ingests/{id}", tag = "images", params(("id" = String, Path)),
    responses((status = 204), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn cancel(
    State(shared): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Operator)?;
    let job = find(&shared, &id)?;
    if caller.name != job.author {
        caller.must_be(Role::Admin)?;
    }
    shared.ingests.cancel(&job, &caller.name);
    // So that whoever asked may add the same name at once.
    if job.ended().is_none() {
        job.end().await;
    }
    Ok(StatusCode::NO_CONTENT)
}

fn find(shared: &Shared, id: &str) -> ApiResult<Arc<Job>> {
    shared.ingests.get(id).ok_or_else(|| {
        ApiError::not_found(
            "ingest-not-found",
            format!(
                "there is no ingest {id}: it ended long ago, or the daemon was restarted since"
            ),
        )
    })
}

fn view(job: &Job) -> IngestView {
    let ended = job.ended();
    let (received, waits) = (job.progress.received(), job.upload.is_some());
    let state = match &ended {
        Some(Ok(_)) => IngestState::Done,
        Some(Err(_)) => IngestState::Failed,
        None if waits && received == 0 => IngestState::Waiting,
        None => IngestState::Running,
    };
    let (image, problem) = match ended {
        Some(Ok(record)) => (Some(images::view(record)), None),
        Some(Err(problem)) => (None, Some(problem)),
        None => (None, None),
    };
    IngestView {
        id: job.id.clone(),
        name: job.reference(),
        source: job.source.clone(),
        requested_by: job.author.clone(),
        state,
        received,
        total: job.progress.total(),
        written: job.progress.written(),
        format: job.format(),
        created_at: rfc3339(job.created_at),
        image,
        problem,
    }
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        let detail = error.to_string();
        match error {
            PutError::Range(_) | PutError::Length(_) => {
                Self::invalid("upload-range-invalid", detail)
            }
            PutError::Offset { .. } => Self::conflict("upload-offset", detail),
            PutError::Total { .. } => Self::conflict("upload-total", detail),
            PutError::Broken(_) => Self::new(StatusCode::REQUEST_TIMEOUT, "upload-broken", detail),
            PutError::Closed => Self::conflict("upload-closed", detail),
        }
    }
}
