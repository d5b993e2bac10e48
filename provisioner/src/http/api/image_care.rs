//! What is done with images that are there: reading them again, taking them out, pins, mirrors,
//! garbage collection, and the keys that sign them.

use std::time::Duration;

use anneal_protocol::api::{
    AddMirror, AddedMirror, CollectRequest, CollectView, CollectedImage, ImageKeyPage,
    ImageKeyView, ImageView, Page, Problem, ResignView, Role, VerifyView,
};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;

use super::auth::Caller;
use super::body::JsonBody;
use super::images::view;
use crate::app::Shared;
use crate::event::Event;
use crate::http::agent;
use crate::http::problem::ApiResult;
use crate::image::{ImageRecord, KeyUse};

/// Reads an image again, all of it, and compares it with its manifest. Takes as long as reading
/// takes; stops when the caller goes away.
#[utoipa::path(post, path = "/api/v1/images/{name}/verify", tag = "images", params(("name" = String, Path)),
    responses((status = 200, body = VerifyView), (status = 404, body = Problem)))]
pub async fn verify(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> ApiResult<Json<VerifyView>> {
    let result = shared.images.verify(&name).await?;
    if let Some(problem) = &result.problem {
        let message = format!("the image {name} is damaged in the store: {problem}");
        let event = Event::new("image.damaged", message);
        shared.recorder.record(
            event.data(serde_json::json!({ "id": result.image.id, "frame": result.frame })),
        );
    }
    Ok(Json(VerifyView {
        name,
        id: result.image.id,
        intact: result.problem.is_none(),
        verified: result.verified,
        size: result.image.size,
        problem: result.problem,
        frame: result.frame,
    }))
}

/// The signed manifest as it is stored.
#[utoipa::path(get, path = "/api/v1/images/{name}/manifest", tag = "images", params(("name" = String, Path)),
    responses((status = 200, content_type = "application/json"), (status = 404, body = Problem)))]
pub async fn manifest(
    State(shared): State<Shared>,
    method: Method,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> ApiResult<Response> {
    let image = shared.images.resolve(&name).await?;
    agent::send_manifest(&shared, &method, &headers, &image.id).await
}

/// `data.zst` as it is stored, with ranges.
#[utoipa::path(get, path = "/api/v1/images/{name}/data", tag = "images", params(("name" = String, Path)),
    responses((status = 200, content_type = "application/zstd"), (status = 404, body = Problem)))]
pub async fn data(
    State(shared): State<Shared>,
    method: Method,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> ApiResult<Response> {
    let image = shared.images.resolve(&name).await?;
    agent::send_data(&shared, &method, &headers, &image.id).await
}

/// Keeps an image from garbage collection.
#[utoipa::path(put, path = "/api/v1/images/{name}/pin", tag = "images", params(("name" = String, Path)),
    responses((status = 200, body = ImageView), (status = 404, body = Problem)))]
pub async fn pin(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> ApiResult<Json<ImageView>> {
    caller.must_be(Role::Operator)?;
    let image = shared.images.pin(&name, true).await?;
    say(&shared, &caller, "image.pinned", "pinned the image", &image);
    Ok(Json(view(image)))
}

/// Leaves an image to garbage collection again.
#[utoipa::path(delete, path = "/api/v1/images/{name}/pin", tag = "images", params(("name" = String, Path)),
    responses((status = 200, body = ImageView), (status = 404, body = Problem)))]
pub async fn unpin(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> ApiResult<Json<ImageView>> {
    caller.must_be(Role::Operator)?;
    let image = shared.images.pin(&name, false).await?;
    let done = "took the pin off the image";
    say(&shared, &caller, "image.unpinned", done, &image);
    Ok(Json(view(image)))
}

/// Adds a mirror, after asking it for the first and the last frame.
#[utoipa::path(post, path = "/api/v1/images/{name}/mirrors", tag = "images", params(("name" = String, Path)),
    request_body = AddMirror,
    responses((status = 200, body = AddedMirror), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub async fn add_mirror(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<AddMirror>,
) -> ApiResult<Json<AddedMirror>> {
    caller.must_be(Role::Operator)?;
    let (image, url) = shared.images.add_mirror(&name, &body.url).await?;
    let done = format!("added the mirror {url} to the image");
    say(&shared, &caller, "image.mirror-added", &done, &image);
    Ok(Json(AddedMirror {
        url,
        image: view(image),
    }))
}

/// Which mirror.
#[derive(Debug, Clone, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct MirrorQuery {
    /// As the image shows it.
    pub url: String,
}

/// Forgets a mirror.
#[utoipa::path(delete, path = "/api/v1/images/{name}/mirrors", tag = "images", params(("name" = String, Path), MirrorQuery),
    responses((status = 200, body = ImageView), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub async fn remove_mirror(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<MirrorQuery>,
) -> ApiResult<Json<ImageView>> {
    caller.must_be(Role::Operator)?;
    let image = shared.images.remove_mirror(&name, &query.url).await?;
    let done = format!("removed the mirror {} from the image", query.url);
    say(&shared, &caller, "image.mirror-removed", &done, &image);
    Ok(Json(view(image)))
}

/// Removes images that nobody needs: not pinned, named by no machine, installed by no active run,
/// no machine's last installation, and older than asked for.
#[utoipa::path(post, path = "/api/v1/images/gc", tag = "images", request_body = CollectRequest,
    responses((status = 200, body = CollectView)))]
pub async fn collect(
    State(shared): State<Shared>,
    caller: Caller,
    JsonBody(request): JsonBody<CollectRequest>,
) -> ApiResult<Json<CollectView>> {
    caller.must_be(Role::Admin)?;
    let grace = Duration::from_millis(request.older_than_ms);
    let collected = shared.images.gc(grace, request.dry_run).await?;
    if !request.dry_run {
        for item in &collected {
            let kind = "image.collected";
            say(&shared, &caller, kind, "collected the image", &item.image);
        }
    }
    Ok(Json(CollectView {
        dry_run: request.dry_run,
        freed: collected.iter().map(|item| item.freed).sum(),
        images: collected
            .into_iter()
            .map(|item| CollectedImage {
                freed: item.freed,
                image: view(item.image),
            })
            .collect(),
    }))
}

/// The keys that sign images, or did.
#[utoipa::path(get, path = "/api/v1/image-keys", tag = "images", responses((status = 200, body = ImageKeyPage)))]
pub async fn keys(State(shared): State<Shared>) -> ApiResult<Json<Page<ImageKeyView>>> {
    let keys = shared.images.keys().await?;
    Ok(Json(Page {
        items: keys.into_iter().map(key_view).collect(),
        next: None,
    }))
}

/// Makes a new key sign from now on. What earlier keys signed stays valid.
#[utoipa::path(post, path = "/api/v1/image-keys", tag = "images", responses((status = 201, body = ImageKeyView)))]
pub async fn rotate(
    State(shared): State<Shared>,
    caller: Caller,
) -> ApiResult<(StatusCode, Json<ImageKeyView>)> {
    caller.must_be(Role::Admin)?;
    let key = shared.images.rotate_key().await?;
    let message = format!("{} made the image key {}", caller.name, key.id());
    let event = Event::new("image-key.rotated", message);
    shared
        .recorder
        .record(event.data(serde_json::json!({ "key": key.to_hex() })));
    let created = ImageKeyView {
        id: key.id(),
        key: key.to_hex(),
        signs: true,
        images: Vec::new(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Signs with the signing key what earlier keys have signed, and retires keys that nothing needs.
#[utoipa::path(post, path = "/api/v1/image-keys/resign", tag = "images", responses((status = 200, body = ResignView)))]
pub async fn resign(State(shared): State<Shared>, caller: Caller) -> ApiResult<Json<ResignView>> {
    caller.must_be(Role::Admin)?;
    let done = shared.images.resign().await?;
    let view = ResignView {
        images: done.images,
        kept: done
            .kept
            .into_iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect(),
        retired: done
            .retired
            .iter()
            .map(anneal_image::PublicKey::id)
            .collect(),
    };
    let message = format!("{} signed {} images again", caller.name, view.images.len());
    shared.recorder.record(
        Event::new("image-key.resigned", message).data(serde_json::json!({
            "images": view.images, "kept": view.kept, "retired": view.retired,
        })),
    );
    Ok(Json(view))
}

fn key_view(used: KeyUse) -> ImageKeyView {
    ImageKeyView {
        id: used.key.id(),
        key: used.key.to_hex(),
        signs: used.signs,
        images: used.images,
    }
}

/// Records who did what to an image.
fn say(shared: &Shared, caller: &Caller, kind: &str, done: &str, image: &ImageRecord) {
    let message = format!("{} {done} {}", caller.name, image.reference());
    let data = serde_json::json!({ "id": image.id });
    shared.recorder.record(Event::new(kind, message).data(data));
}
