//! What installed systems say: the phone-home, once, with the token from their configuration.

use std::net::IpAddr;

use anneal_protocol::api::NodeReport;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;

use super::api::auth::bearer;
use super::api::body::JsonBody;
use super::listener::Peer;
use super::problem::{ApiError, ApiResult};
use crate::app::Shared;
use crate::event::{Event, kind};
use crate::token::{Claim, Purpose, Refused, TokenError, TokenRecord};

/// What a node may say in one field; a host name or an OS version is far shorter.
const FIELD_LIMIT: usize = 256;

/// The routes under `/node/v1`.
pub fn router() -> Router<Shared> {
    Router::new().route("/node/v1/phone-home", post(phone_home))
}

async fn phone_home(
    State(shared): State<Shared>,
    axum::Extension(peer): axum::Extension<Peer>,
    headers: HeaderMap,
    JsonBody(report): JsonBody<NodeReport>,
) -> ApiResult<StatusCode> {
    let secret = bearer(&headers).ok_or_else(|| {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "token-required",
            "send the phone-home token as \"Authorization: Bearer TOKEN\"",
        )
    })?;
    check(&report)?;
    let by = peer.address.ip().to_string();
    // A node with a reserved address must call from it; behind NAT or with another address of
    // its own, nobody is known by that address, and the token alone says who it is.
    let snapshot = shared.directory.snapshot();
    let seen = snapshot.by_mac.values().find(|reservation| {
        let address = reservation.address.map(|address| IpAddr::V4(address.ip));
        address == Some(peer.address.ip())
    });
    let claim = Claim {
        purpose: Purpose::PhoneHome,
        machine: seen.map(|reservation| reservation.machine.as_str()),
        by: &by,
    };
    let token = match shared.tokens.redeem(secret, claim).await {
        // A repeat from the same address is a node whose answer was lost. The first report
        // stands, unless the daemon died between taking the token and storing the report.
        Ok(token) if token.used_at.is_some() && reported(&shared, &token).await? => {
            return Err(gone());
        }
        Ok(token) => token,
        Err((TokenError::Refused(Refused::Replayed), Some(token))) => {
            let reason = "the phone-home token was used twice, from two addresses";
            let failed = shared.engine.fail_security(&token.run, reason).await;
            failed.map_err(|error| ApiError::internal(&error))?;
            return Err(gone());
        }
        Err((TokenError::Refused(Refused::Expired | Refused::Revoked), _)) => return Err(gone()),
        Err((TokenError::Refused(_), _)) => {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "token-refused",
                "this is not a phone-home token of ours",
            ));
        }
        Err((error, _)) => return Err(ApiError::internal(&error)),
    };
    let data = serde_json::to_value(&report).map_err(|e| ApiError::internal(&e))?;
    shared
        .store
        .set_node_report(&token.machine, &report)
        .await?;
    let os = report
        .os
        .as_deref()
        .unwrap_or("a system that does not say its version");
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

async fn reported(shared: &Shared, token: &TokenRecord) -> ApiResult<bool> {
    let sightings = shared.store.sightings(&token.machine).await?;
    let run = Some(&token.run);
    Ok(sightings
        .iter()
        .any(|s| s.kind == kind::PHONE_HOME && s.run.as_ref() == run))
}

fn gone() -> ApiError {
    ApiError::new(
        StatusCode::GONE,
        "token-spent",
        "this phone-home token was good once",
    )
}

fn check(report: &NodeReport) -> ApiResult<()> {
    let fields = [
        ("machine_id", &report.machine_id),
        ("os", &report.os),
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
