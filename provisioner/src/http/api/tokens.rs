//! Tokens, as metadata only.

use anneal_protocol::api::{Page, TokenPage, TokenView};
use axum::Json;
use axum::extract::{Query, State};

use super::{ListQuery, page_size};
use crate::app::Shared;
use crate::clock::{now, rfc3339};
use crate::http::problem::ApiResult;

/// Lists tokens, newest first.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(ListQuery), responses((status = 200, body = TokenPage)))]
pub async fn list(
    State(shared): State<Shared>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<TokenView>>> {
    let limit = page_size(query.limit);
    let tokens = shared
        .store
        .list_tokens(query.after.as_deref(), limit + 1)
        .await?;
    let more = tokens.len() > limit as usize;
    let at = now();
    let items: Vec<TokenView> = tokens
        .into_iter()
        .take(limit as usize)
        .map(|token| TokenView {
            state: token.state(at).to_owned(),
            purpose: token.purpose.as_str().to_owned(),
            created_at: rfc3339(token.created_at),
            expires_at: rfc3339(token.expires_at),
            used_at: token.used_at.map(rfc3339),
            id: token.id,
            machine: token.machine,
            run: token.run,
            subject: token.subject,
        })
        .collect();
    let next = items.last().filter(|_| more).map(|t| t.id.clone());
    Ok(Json(Page { items, next }))
}
