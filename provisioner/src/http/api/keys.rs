//! API keys.

use anneal_protocol::api::{ApiKeyPage, ApiKeyView, CreateApiKey, CreatedApiKey, Page, Role};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::auth::Caller;
use super::body::JsonBody;
use crate::app::Shared;
use crate::clock::{now, rfc3339};
use crate::event::Event;
use crate::http::problem::{ApiError, ApiResult};
use crate::store::ApiKeyRecord;
use crate::token;

/// Lists the keys, without the keys.
#[utoipa::path(get, path = "/api/v1/api-keys", tag = "api-keys", responses((status = 200, body = ApiKeyPage)))]
pub async fn list(
    State(shared): State<Shared>,
    caller: Caller,
) -> ApiResult<Json<Page<ApiKeyView>>> {
    caller.must_be(Role::Admin)?;
    let keys = shared.store.list_api_keys().await?;
    let items = keys
        .into_iter()
        .map(|key| ApiKeyView {
            name: key.name,
            role: key.role,
            created_at: rfc3339(key.created_at),
        })
        .collect();
    Ok(Json(Page { items, next: None }))
}

/// Makes a key. The answer is the only time it is shown.
#[utoipa::path(post, path = "/api/v1/api-keys", tag = "api-keys", request_body = CreateApiKey,
    responses((status = 201, body = CreatedApiKey), (status = 409, body = anneal_protocol::api::Problem)))]
pub async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateApiKey>,
) -> ApiResult<(StatusCode, Json<CreatedApiKey>)> {
    caller.must_be(Role::Admin)?;
    let name = request.name.trim().to_owned();
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(ApiError::invalid(
            "api-key-name",
            "a key's name has 1 to 64 characters",
        ));
    }
    let key = token::random_secret().map_err(|e| ApiError::internal(&e))?;
    let record = ApiKeyRecord {
        name: name.clone(),
        role: request.role,
        created_at: now(),
    };
    shared
        .store
        .insert_api_key(&record, &token::digest(&key))
        .await?;
    shared.recorder.record(
        Event::new(
            "api-key.created",
            format!("{} created the API key \"{name}\"", caller.name),
        )
        .data(serde_json::json!({ "role": request.role })),
    );
    Ok((
        StatusCode::CREATED,
        Json(CreatedApiKey {
            name,
            role: request.role,
            key,
        }),
    ))
}

/// Removes a key; requests with it are refused from then on.
#[utoipa::path(delete, path = "/api/v1/api-keys/{name}", tag = "api-keys", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = anneal_protocol::api::Problem)))]
pub async fn remove(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Admin)?;
    shared.store.remove_api_key(&name).await?;
    shared.recorder.record(Event::new(
        "api-key.removed",
        format!("{} removed the API key \"{name}\"", caller.name),
    ));
    Ok(StatusCode::NO_CONTENT)
}
