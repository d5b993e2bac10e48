//! What installed systems say: the phone-home, once, with the token from their configuration.
//!
//! As JSON with the token in a header, or as the form that cloud-init's own module posts, with the
//! token in the path ([`super::cloud_init`]).

use anneal_protocol::api::{NodeReport, Problem};
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;

use super::api::auth::bearer;
use super::api::body::{self, JsonBody};
use super::cloud_init;
use super::listener::Peer;
use super::problem::{ApiError, ApiResult};
use super::whose::machine_at;
use crate::app::Shared;
use crate::event::{Event, kind};
use crate::token::{Claim, Purpose, Refused, TokenError, TokenRecord};

/// What a node may say in one field; a host name or an OS version is far shorter.
const FIELD_LIMIT: usize = 256;

/// The routes under `/node/v1`.
pub fn router() -> Router<Shared> {
    Router::new()
        .route("/node/v1/phone-home", post(phone_home))
        .route("/node/v1/phone-home/{token}", post(phone_home_form))
}

async fn phone_home(
    State(shared): State<Shared>,
    axum::Extension(peer): axum::Extension<Peer>,
    headers: HeaderMap,
    JsonBody(mut report): JsonBody<NodeReport>,
) -> ApiResult<StatusCode> {
    report.installed_version = None;
    for version in [&mut report.version, &mut report.image_version] {
        // A release without one is read as an empty text by scripts.
        *version = version.take().filter(|version| !version.is_empty());
    }
    let secret = bearer(&headers).ok_or_else(|| {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "token-required",
            "send the phone-home token as \"Authorization: Bearer TOKEN\"",
        )
    })?;
    called_home(&shared, secret, &peer, &report, serde_json::json!({})).await
}

/// Takes what cloud-init's `phone_home` module posts: a form, and the one-use phone-home token in
/// the path, for which `phone_home.url` of its configuration has room.
#[utoipa::path(post, path = "/node/v1/phone-home/{token}", tag = "nodes", security(()),
    params(("token" = String, Path, description = "One-use phone-home token of a run")),
    request_body(content = String, content_type = "application/x-www-form-urlencoded",
        description = "`instance_id`, `hostname`, `fqdn`, `pub_key_rsa`, `pub_key_ecdsa`, `pub_key_ed25519`; `N/A` for what is not known"),
    responses(
        (status = 204, description = "Taken"),
        (status = 403, description = "Not a phone-home token, or not this machine's", body = Problem),
        (status = 410, description = "Used before, expired, or the run is over", body = Problem),
        (status = 415, description = "Not a form", body = Problem),
        (status = 422, description = "A field is not what it should be", body = Problem),
    ))]
pub async fn phone_home_form(
    State(shared): State<Shared>,
    axum::Extension(peer): axum::Extension<Peer>,
    Path(secret): Path<String>,
    request: Request,
) -> ApiResult<StatusCode> {
    let kind = request.headers().get(CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(cloud_init::FORM.as_bytes())) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "form-expected",
            format!(
                "expected the form of cloud-init's phone_home, {}",
                cloud_init::FORM
            ),
        ));
    }
    let said = cloud_init::read(&body::bytes(request).await?);
    called_home(&shared, &secret, &peer, &said.report, said.more).await
}

/// Takes a report that came with a phone-home token; `more` is recorded with it.
async fn called_home(
    shared: &Shared,
    secret: &str,
    peer: &Peer,
    report: &NodeReport,
    more: serde_json::Value,
) -> ApiResult<StatusCode> {
    check(report)?;
    let token = redeem(shared, secret, peer).await?;
    let mut data = serde_json::to_value(report).map_err(|e| ApiError::internal(&e))?;
    data["address"] = peer.address.ip().to_string().into();
    if let (Some(data), serde_json::Value::Object(more)) = (data.as_object_mut(), more) {
        data.extend(more);
    }
    shared.store.set_node_report(&token.machine, report).await?;
    let unnamed = "a system that does not say its version";
    let os = report.os.as_deref().unwrap_or(unnamed);
    shared
        .recorder
        .record_durably(
            Event::new(kind::PHONE_HOME, format!("the node called home: {os}"))
                .machine(&token.machine)
                .run(&token.run)
                .data(data),
        )
        .await
        .map_err(|_| ApiError::not_stored())?;
    Ok(StatusCode::NO_CONTENT)
}

/// Redeems a phone-home token for whoever shows it. In two hands, it fails its run.
///
/// # Errors
/// With what to answer.
pub(super) async fn redeem(shared: &Shared, secret: &str, peer: &Peer) -> ApiResult<TokenRecord> {
    let by = peer.address.ip().to_string();
    // Whoever has a machine's address, reserved or leased, is that machine; behind NAT or with
    // another address of its own, nobody is known by it, and the token alone says who it is.
    let seen = machine_at(shared, peer.address.ip()).await?;
    let claim = Claim {
        purpose: Purpose::PhoneHome,
        machine: seen.as_deref(),
        by: &by,
    };
    match shared.tokens.redeem(secret, claim).await {
        // A repeat from the same address is a node whose answer was lost. The first report
        // stands, unless the daemon died between taking the token and storing the report.
        Ok(token) if token.used_at.is_some() && reported(shared, &token).await? => Err(gone()),
        Ok(token) => Ok(token),
        Err((TokenError::Refused(Refused::Replayed), Some(token))) => {
            let reason = "the phone-home token was used twice, from two addresses";
            let failed = shared.engine.fail_security(&token.run, reason).await;
            failed.map_err(|error| ApiError::internal(&error))?;
            Err(gone())
        }
        Err((TokenError::Refused(Refused::Expired | Refused::Revoked), _)) => Err(gone()),
        Err((TokenError::Refused(_), _)) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "token-refused",
            "this is not a phone-home token of ours",
        )),
        Err((error, _)) => Err(ApiError::internal(&error)),
    }
}
async fn reported(shared: &Shared, token: &TokenRecord) -> ApiResult<bool> {
    let sightings = shared.store.sightings(&token.machine).await?;
    let run = Some(&token.run);
    Ok(sightings
        .iter()
        .any(|s| s.kind == kind::PHONE_HOME && s.run.as_ref() == run))
}

pub(super) fn gone() -> ApiError {
    ApiError::new(
        StatusCode::GONE,
        "token-spent",
        "this phone-home token was good once",
    )
}

/// Whether a report is made of short printable texts.
///
/// # Errors
/// Names the field that is not.
pub(super) fn check(report: &NodeReport) -> ApiResult<()> {
    let fields = [
        ("machine_id", &report.machine_id),
        ("os", &report.os),
        ("version", &report.version),
        ("image_version", &report.image_version),
        ("hostname", &report.hostname),
        ("kernel", &report.kernel),
        ("image", &report.image),
    ];
    for (name, value) in fields {
        let bad = value
            .as_ref()
            .is_some_and(|v| v.len() > FIELD_LIMIT || v.contains(char::is_control));
        if bad {
            return Err(ApiError::invalid(
                "report-invalid",
                format!("{name} must be printable text of at most {FIELD_LIMIT} bytes"),
            ));
        }
    }
    Ok(())
}
