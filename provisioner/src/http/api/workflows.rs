//! Workflows: which there are, and whether a text is one.

use anneal_protocol::api::{Page, Problem, Role, WorkflowPage, WorkflowView};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};

use super::auth::Caller;
use crate::app::Shared;
use crate::http::problem::{ApiError, ApiResult};
use crate::workflow::plan::Step;

fn title(step: &Step) -> String {
    format!("{} ({})", step.name, step.uses.spec().name)
}

/// Lists the workflows.
#[utoipa::path(get, path = "/api/v1/workflows", tag = "workflows", responses((status = 200, body = WorkflowPage)))]
pub async fn list(State(shared): State<Shared>) -> ApiResult<Json<Page<WorkflowView>>> {
    let workflows = shared.engine.workflows();
    let items = workflows
        .into_iter()
        .map(|(name, workflow)| match workflow {
            Ok(workflow) => WorkflowView {
                name,
                steps: workflow.all_steps().map(title).collect(),
                error: None,
            },
            Err(error) => WorkflowView {
                name,
                steps: Vec::new(),
                error: Some(error.to_string()),
            },
        })
        .collect();
    Ok(Json(Page { items, next: None }))
}

/// Checks a workflow. 204 means that it can be used; 422 says where it is wrong. `X-File-Name`
/// is the name to use in the message.
#[utoipa::path(post, path = "/api/v1/workflows/validate", tag = "workflows", request_body(content = String, content_type = "application/yaml"),
    responses((status = 204), (status = 422, body = Problem)))]
pub async fn validate(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    text: String,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Viewer)?;
    let file = super::machines::file_name(&headers, "workflow.yaml");
    shared
        .engine
        .validate(&text, &file)
        .map_err(|error| ApiError::invalid("workflow-invalid", error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}
