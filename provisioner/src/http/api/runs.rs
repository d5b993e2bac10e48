//! Runs: start, look, cancel, retry.

use anneal_protocol::api::{Page, Plan, Problem, ProvisionRequest, Role, RunPage, RunView};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::auth::Caller;
use super::body::JsonBody;
use super::page_size;
use crate::app::Shared;
use crate::event::Event;
use crate::http::problem::{ApiError, ApiResult};
use crate::store::StoreError;
use crate::workflow::{EngineError, LibraryError, StartError, StartRun};

/// Which runs.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RunQuery {
    /// Only of this machine.
    pub machine: Option<String>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Page size, 1 to 1000; default 100.
    pub limit: Option<u32>,
}

/// Provisions a machine, or with `plan: true` only says what that would do. `/reprovision` is
/// the same call: a machine is always rebuilt from its sealed image.
#[utoipa::path(post, path = "/api/v1/machines/{name}/provision", tag = "runs",
    params(("name" = String, Path)), request_body = ProvisionRequest,
    responses((status = 201, body = RunView), (status = 200, body = Plan), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn provision(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<ProvisionRequest>,
) -> ApiResult<Response> {
    // A plan changes nothing, so whoever may look may ask for it.
    caller.must_be(if request.plan {
        Role::Viewer
    } else {
        Role::Operator
    })?;
    let start = StartRun {
        machine: name,
        workflow: request.workflow,
        image: request.image,
        requested_by: caller.name,
    };
    if request.plan {
        let plan = shared.engine.plan(&start).await?;
        return Ok(Json(plan).into_response());
    }
    let id = shared.engine.start(&start).await?;
    let view = shared.engine.view(&id).await?;
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

/// Lists runs, newest first.
#[utoipa::path(get, path = "/api/v1/runs", tag = "runs", params(RunQuery), responses((status = 200, body = RunPage)))]
pub async fn list(
    State(shared): State<Shared>,
    Query(query): Query<RunQuery>,
) -> ApiResult<Json<Page<RunView>>> {
    let limit = page_size(query.limit);
    let page = shared
        .engine
        .list(query.machine.as_deref(), query.after.as_deref(), limit)
        .await?;
    Ok(Json(page))
}

/// Shows a run with its steps and the time spent in each phase.
#[utoipa::path(get, path = "/api/v1/runs/{id}", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = RunView), (status = 404, body = Problem)))]
pub async fn show(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> ApiResult<Json<RunView>> {
    Ok(Json(shared.engine.view(&id).await?))
}

/// Cancels a run; the step under way is abandoned.
#[utoipa::path(post, path = "/api/v1/runs/{id}/cancel", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = RunView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn cancel(
    State(shared): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<RunView>> {
    caller.must_be(Role::Operator)?;
    shared.engine.cancel(&id).await?;
    said(&shared, &caller, &id, "cancelled");
    Ok(Json(shared.engine.view(&id).await?))
}

/// Goes on with a failed or cancelled run from the step that failed.
#[utoipa::path(post, path = "/api/v1/runs/{id}/retry", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = RunView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn retry(
    State(shared): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<RunView>> {
    caller.must_be(Role::Operator)?;
    shared.engine.retry(&id).await?;
    said(&shared, &caller, &id, "retried");
    Ok(Json(shared.engine.view(&id).await?))
}

/// Records who asked.
fn said(shared: &Shared, caller: &Caller, run: &str, what: &str) {
    let message = format!("{} {what} the run", caller.name);
    shared
        .recorder
        .record(Event::new("request.run", message).run(run));
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let detail = error.to_string();
        match error {
            StartError::MachineNotFound(_) => Self::not_found("machine-not-found", detail),
            StartError::Workflow(LibraryError::NotFound { .. }) => {
                Self::not_found("workflow-not-found", detail)
            }
            StartError::Workflow(LibraryError::Read { .. }) => {
                Self::internal(&format!("{:#}", anyhow::Error::new(error)))
            }
            StartError::Workflow(LibraryError::Invalid(_)) => {
                Self::invalid("workflow-invalid", detail)
            }
            StartError::ImageMissing(_) => Self::not_found("image-not-found", detail),
            StartError::Refused(_) => Self::invalid("plan-refused", detail),
            StartError::Conflict(_) => Self::conflict("run-active", detail),
            StartError::Stale(_) => Self::conflict("machine-changed", detail),
            StartError::Internal(cause)
                if cause
                    .downcast_ref::<StoreError>()
                    .is_some_and(StoreError::is_out_of_space) =>
            {
                Self::not_stored()
            }
            StartError::Internal(cause) => Self::internal(&format!("{cause:#}")),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(cause) => cause.into(),
            EngineError::NotNow(detail) => Self::conflict("run-state", detail),
            EngineError::Issuer(error) => Self::new(
                StatusCode::BAD_GATEWAY,
                "join-token-failed",
                error.to_string(),
            ),
            EngineError::Internal(cause) => Self::internal(&format!("{cause:#}")),
        }
    }
}
