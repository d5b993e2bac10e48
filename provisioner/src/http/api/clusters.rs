//! Clusters that machines may join, and their imported secrets (in only, never out).

use anneal_protocol::api::{ClusterPage, ClusterView, Page, Problem, Role};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use zeroize::Zeroizing;

use super::auth::Caller;
use crate::app::Shared;
use crate::clock::rfc3339;
use crate::event::Event;
use crate::http::problem::{ApiError, ApiResult};
use crate::settings::ClusterSettings;
use crate::token::issuer::ImportError;

/// Lists the clusters of the settings.
#[utoipa::path(get, path = "/api/v1/clusters", tag = "clusters", responses((status = 200, body = ClusterPage)))]
pub async fn list(State(shared): State<Shared>) -> ApiResult<Json<Page<ClusterView>>> {
    let mut items = Vec::new();
    for cluster in shared.issuers.clusters() {
        items.push(view(&shared, cluster).await?);
    }
    Ok(Json(Page { items, next: None }))
}

/// Shows a cluster, and whether its issuer could be asked now.
#[utoipa::path(get, path = "/api/v1/clusters/{name}", tag = "clusters", params(("name" = String, Path)),
    responses((status = 200, body = ClusterView), (status = 404, body = Problem)))]
pub async fn show(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> ApiResult<Json<ClusterView>> {
    let cluster = shared.issuers.cluster(&name).map_err(missing)?;
    Ok(Json(view(&shared, cluster).await?))
}

/// Imports the secrets of a Talos cluster, as `talosctl gen secrets` writes them. They are stored
/// encrypted, and replace those before.
#[utoipa::path(put, path = "/api/v1/clusters/{name}/secrets", tag = "clusters", params(("name" = String, Path)),
    request_body(content((String = "application/yaml"))),
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub async fn import(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    text: String,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Admin)?;
    let text = Zeroizing::new(text);
    let imported = shared.issuers.import(&name, &text, &caller.name).await;
    let replaced = imported.map_err(|error| match error {
        ImportError::Unknown(told) => missing(told),
        ImportError::Refused(told) => ApiError::invalid("cluster-secrets-invalid", told),
        ImportError::Vault(error) => ApiError::internal(&format!("{error:#}")),
        ImportError::Store(error) => error.into(),
    })?;
    let what = if replaced { "replaced" } else { "imported" };
    let message = format!("{} {what} the secrets of cluster {name}", caller.name);
    shared
        .recorder
        .record(Event::new(format!("cluster.secrets-{what}"), message));
    Ok(StatusCode::NO_CONTENT)
}

/// Removes imported secrets. Machines that have joined keep theirs.
#[utoipa::path(delete, path = "/api/v1/clusters/{name}/secrets", tag = "clusters", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub async fn remove(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Admin)?;
    // Also those of a cluster that is not in the settings any more.
    if !shared.store.remove_cluster_secrets(&name).await? {
        return Err(ApiError::not_found(
            "cluster-secrets-not-found",
            format!("no secrets were imported for cluster `{name}`"),
        ));
    }
    let message = format!("{} removed the secrets of cluster {name}", caller.name);
    shared
        .recorder
        .record(Event::new("cluster.secrets-removed", message));
    Ok(StatusCode::NO_CONTENT)
}

fn missing(told: String) -> ApiError {
    ApiError::not_found("cluster-not-found", told)
}

async fn view(shared: &Shared, cluster: &ClusterSettings) -> ApiResult<ClusterView> {
    let stored = shared.store.cluster_secrets(&cluster.name).await?;
    let ready = shared.issuers.ready(&cluster.name).await;
    let expires = cluster.issuer.expires();
    Ok(ClusterView {
        name: cluster.name.clone(),
        endpoint: cluster.endpoint.clone(),
        issuer: cluster.issuer.as_str().to_owned(),
        ttl_secs: expires.then_some(cluster.ttl.as_secs()),
        state: ready.err().unwrap_or_else(|| "ready".to_owned()),
        imported_at: stored.as_ref().map(|s| rfc3339(s.imported_at)),
        imported_by: stored.map(|s| s.imported_by),
    })
}
