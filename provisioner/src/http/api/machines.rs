//! Machines: look, apply an inventory file, remove.

use anneal_protocol::api::{
    ApplyResult, InventoryFile, InventoryFiles, MachinePage, MachineView, Page, Problem, Role,
};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};

use super::auth::Caller;
use super::{ListQuery, page_size};
use crate::app::Shared;
use crate::clock::now;
use crate::event::{Event, kind};
use crate::http::problem::{ApiError, ApiResult};
use crate::machine::file;
use crate::store::{ApplyError, MachineRow};

/// How to apply.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ApplyQuery {
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// Lists machines by name.
#[utoipa::path(get, path = "/api/v1/machines", tag = "machines", params(ListQuery), responses((status = 200, body = MachinePage)))]
pub async fn list(
    State(shared): State<Shared>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<MachineView>>> {
    let limit = page_size(query.limit);
    let rows = shared
        .store
        .machines(query.after.as_deref(), limit + 1)
        .await?;
    let more = rows.len() > limit as usize;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows.into_iter().take(limit as usize) {
        items.push(view(&shared, row).await?);
    }
    let next = items.last().filter(|_| more).map(|m| m.name.clone());
    Ok(Json(Page { items, next }))
}

/// Shows a machine, with one sentence on what it waits for.
#[utoipa::path(get, path = "/api/v1/machines/{name}", tag = "machines", params(("name" = String, Path)),
    responses((status = 200, body = MachineView), (status = 404, body = Problem)))]
pub async fn show(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> ApiResult<Json<MachineView>> {
    let row = shared.store.machine(&name).await?.ok_or_else(|| {
        ApiError::not_found(
            "machine-not-found",
            format!("no machine is named \"{name}\": see `anneal machine list`"),
        )
    })?;
    Ok(Json(view(&shared, row).await?))
}

/// Removes a machine from the inventory. Its disk is not touched.
#[utoipa::path(delete, path = "/api/v1/machines/{name}", tag = "machines", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn remove(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Admin)?;
    let changing = shared.inventory.lock().await;
    shared.store.remove_machine(&name, now()).await?;
    shared
        .directory
        .replace(shared.store.machine_snapshot().await?);
    drop(changing);
    let message = format!("{} removed {name} from the inventory", caller.name);
    shared
        .recorder
        .record(Event::new(kind::MACHINE_REMOVED, message).machine(&name));
    Ok(StatusCode::NO_CONTENT)
}

/// Applies inventory files: all of them or nothing. One is sent as it is, with its name for messages
/// in `X-File-Name`; several as JSON.
#[utoipa::path(post, path = "/api/v1/inventory", tag = "machines", params(ApplyQuery),
    request_body(content((String = "application/yaml"), (InventoryFiles = "application/json"))),
    responses((status = 200, body = ApplyResult), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn apply(
    State(shared): State<Shared>,
    caller: Caller,
    Query(query): Query<ApplyQuery>,
    headers: HeaderMap,
    text: String,
) -> ApiResult<Json<ApplyResult>> {
    caller.must_be(if query.dry_run {
        Role::Viewer
    } else {
        Role::Operator
    })?;
    let inventory = read(&headers, text)?
        .iter()
        .map(|sent| file::parse(&sent.text, &sent.name))
        .collect::<Result<Vec<_>, _>>()
        .and_then(file::Inventory::together)
        .and_then(|inventory| {
            inventory.check_password_files(|path| shared.passwords.check(path))?;
            inventory.check_clusters(|name| shared.issuers.cluster(name).map(drop))?;
            Ok(inventory)
        })
        .map_err(|error| ApiError::invalid("inventory-invalid", error.to_string()))?;
    let changing = shared.inventory.lock().await;
    let changes = shared
        .store
        .apply_inventory(&inventory, query.dry_run, now())
        .await?;
    if !query.dry_run {
        shared
            .directory
            .replace(shared.store.machine_snapshot().await?);
        drop(changing);
        for change in changes.iter().filter(|change| change.action != "unchanged") {
            let message = format!(
                "{} applied {}: {}",
                caller.name, change.machine, change.action
            );
            let event = Event::new(kind::MACHINE_APPLIED, message).machine(&change.machine);
            let fields: Vec<&str> = change.fields.iter().map(|f| f.field.as_str()).collect();
            shared
                .recorder
                .record(event.data(serde_json::json!({ "fields": fields })));
        }
    }
    Ok(Json(ApplyResult {
        dry_run: query.dry_run,
        changes,
    }))
}

/// The files of a request: its whole body, or several in JSON.
fn read(headers: &HeaderMap, text: String) -> ApiResult<Vec<InventoryFile>> {
    let kind = headers.get("content-type").and_then(|v| v.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/json")) {
        let name = file_name(headers, "inventory.yaml");
        return Ok(vec![InventoryFile { name, text }]);
    }
    let sent: InventoryFiles = serde_json::from_str(&text).map_err(|error| {
        ApiError::invalid("body-invalid", format!("the JSON body is wrong: {error}"))
    })?;
    if sent.files.is_empty() {
        return Err(ApiError::invalid("body-invalid", "`files` names no file"));
    }
    Ok(sent.files)
}

/// The name of the file a body came from, as its sender calls it.
pub(crate) fn file_name(headers: &HeaderMap, default: &str) -> String {
    headers
        .get("x-file-name")
        .and_then(|value| value.to_str().ok())
        .filter(|name| !name.is_empty() && name.len() <= 1024)
        .unwrap_or(default)
        .to_owned()
}

async fn view(shared: &Shared, row: MachineRow) -> ApiResult<MachineView> {
    let why = shared.engine.why(&row.machine.name).await?;
    let unproven = unproven(shared, &row).await?;
    Ok(row.view(why, unproven))
}

/// The machine's images without proof of their publisher: the one it should run, and the one
/// that was last written to its disk, known even when it was removed since.
async fn unproven(shared: &Shared, row: &MachineRow) -> ApiResult<Vec<String>> {
    let mut found = Vec::new();
    let assigned = row.machine.image.as_deref();
    if let Some((name, version)) = assigned.and_then(|image| image.split_once('@')) {
        let image = shared.store.image(name, version).await?;
        let image = image.filter(|image| image.proof.is_none());
        found.extend(image.map(|image| image.reference()));
    }
    let written = shared.store.image_on_disk(&row.machine.name).await?;
    let written = written.filter(|image| image.unproven);
    found.extend(written.map(|image| image.reference));
    found.dedup();
    Ok(found)
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Invalid(error) => Self::invalid("inventory-invalid", error.to_string()),
            ApplyError::Busy(error) => Self::conflict("run-active", error.to_string()),
            ApplyError::Store(error) => error.into(),
        }
    }
}
