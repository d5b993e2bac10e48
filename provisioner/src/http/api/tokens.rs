//! Tokens, as metadata only: our own, and those with which machines join clusters.

use anneal_protocol::api::{JoinTokenView, Page, TokenPage, TokenView};
use anneal_protocol::time::Millis;
use axum::Json;
use axum::extract::{Query, State};

use super::{ListQuery, page_size};
use crate::app::Shared;
use crate::clock::{now, rfc3339};
use crate::http::problem::ApiResult;
use crate::token::TokenRecord;
use crate::token::issuer::JoinToken;

/// Lists tokens, newest first.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(ListQuery), responses((status = 200, body = TokenPage)))]
pub async fn list(
    State(shared): State<Shared>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<TokenView>>> {
    let limit = page_size(query.limit);
    let after = query.after.as_deref();
    let own = shared.store.list_tokens(after, limit + 1).await?;
    let join = shared.store.list_join_tokens(after, limit + 1).await?;
    let at = now();
    let own = own.into_iter().map(|token| own_view(token, at));
    let mut items: Vec<TokenView> = own
        .chain(join.into_iter().map(|token| join_view(token, at)))
        .collect();
    // Ids grow with time, whichever table they are from.
    items.sort_by(|a, b| b.id.cmp(&a.id));
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| more).map(|t| t.id.clone());
    Ok(Json(Page { items, next }))
}

fn own_view(token: TokenRecord, at: Millis) -> TokenView {
    TokenView {
        state: token.state(at).to_owned(),
        purpose: token.purpose.as_str().to_owned(),
        created_at: rfc3339(token.created_at),
        expires_at: Some(rfc3339(token.expires_at)),
        used_at: token.used_at.map(rfc3339),
        id: token.id,
        machine: token.machine,
        run: token.run,
        subject: token.subject,
        join: None,
    }
}

fn join_view(token: JoinToken, at: Millis) -> TokenView {
    TokenView {
        state: token.state(at).to_owned(),
        purpose: "join".to_owned(),
        created_at: rfc3339(token.created_at),
        expires_at: token.expires_at.map(rfc3339),
        used_at: None,
        id: token.id,
        machine: token.machine,
        run: token.run,
        subject: None,
        join: Some(JoinTokenView {
            cluster: token.cluster,
            issuer: token.issuer,
            token_id: token.token_id,
            why: token.why,
            revoked_at: token.revoked_at.map(rfc3339),
            problem: token.problem,
        }),
    }
}
