//! Attestations: list, show, and the key that verifies them.

use anneal_protocol::api::{Page, Problem};
use anneal_protocol::audit::{
    AttestationKey, AttestationKeyPage, AttestationPage, AttestationView,
};
use axum::Json;
use axum::extract::{Path, Query, State};

use super::page_size;
use crate::app::Shared;
use crate::attestation::Attestation;
use crate::clock::rfc3339;
use crate::http::problem::{ApiError, ApiResult};

/// Which attestations.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct AttestationQuery {
    /// Only about this machine.
    pub machine: Option<String>,
    /// Only of this run.
    pub run: Option<String>,
    /// Only `provision` or `audit`.
    pub kind: Option<String>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Page size, 1 to 1000; default 100.
    pub limit: Option<u32>,
}

/// Lists attestations, newest first, without their envelopes.
#[utoipa::path(get, path = "/api/v1/attestations", tag = "attestations", params(AttestationQuery),
    responses((status = 200, body = AttestationPage)))]
pub async fn list(
    State(shared): State<Shared>,
    Query(query): Query<AttestationQuery>,
) -> ApiResult<Json<Page<AttestationView>>> {
    let limit = page_size(query.limit);
    let found = shared
        .store
        .attestations(
            query.machine.as_deref(),
            query.run.as_deref(),
            query.kind.as_deref(),
            query.after.as_deref(),
            limit + 1,
        )
        .await?;
    let more = found.len() > limit as usize;
    let items: Vec<_> = found.into_iter().take(limit as usize).map(view).collect();
    let next = items.last().filter(|_| more).map(|item| item.id.clone());
    Ok(Json(Page { items, next }))
}

/// Shows an attestation with its envelope.
#[utoipa::path(get, path = "/api/v1/attestations/{id}", tag = "attestations", params(("id" = String, Path)),
    responses((status = 200, body = AttestationView), (status = 404, body = Problem)))]
pub async fn show(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> ApiResult<Json<AttestationView>> {
    let Some(found) = shared.store.attestation(&id).await? else {
        let text = format!("there is no attestation {id}");
        return Err(ApiError::not_found("attestation-not-found", text));
    };
    let envelope = serde_json::from_str(&found.envelope)
        .map_err(|_| ApiError::internal(&"the stored envelope is not json"))?;
    Ok(Json(AttestationView {
        envelope: Some(envelope),
        ..view(found)
    }))
}

/// The public keys that verify attestations: the one that signs now, then those before it.
#[utoipa::path(get, path = "/api/v1/attestation-keys", tag = "attestations",
    responses((status = 200, body = AttestationKeyPage)))]
pub async fn keys(State(shared): State<Shared>) -> ApiResult<Json<Page<AttestationKey>>> {
    let keys = shared.images.public_keys().into_iter().map(|key| {
        let public_key = key.to_pem().map_err(|error| ApiError::internal(&error))?;
        Ok(AttestationKey {
            id: key.id(),
            public_key,
        })
    });
    let items = keys.collect::<ApiResult<Vec<_>>>()?;
    Ok(Json(Page { items, next: None }))
}

fn view(attestation: Attestation) -> AttestationView {
    AttestationView {
        created_at: rfc3339(attestation.created_at),
        id: attestation.id,
        kind: attestation.kind,
        machine: attestation.machine,
        run: attestation.run,
        image: attestation.image,
        summary: attestation.summary,
        envelope: None,
    }
}
