//! What agents ask: enrolment by boot token, then orders, reports and results over mutual TLS.
//!
//! Invariants: after enrolment an agent speaks for the machine and the run in its certificate
//! and for nothing else. Nothing is decided here: tokens decide who enrols, the engine decides
//! what is next.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anneal_image::PublicKey;
use anneal_protocol::agent::{
    EnrollRequest, EnrollResponse, Next, NextRequest, Outcome, Report, ReportAck, StepResult,
};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use sha2::{Digest, Sha256};

use super::api::body::JsonBody;
use super::files::{self, Blob, Content};
use super::listener::Peer;
use super::problem::{ApiError, ApiResult};
use crate::app::Shared;
use crate::event::{Event, kind};
use crate::pki::AgentIdentity;
use crate::token::{Claim, Enrolment, Purpose, Refused, TokenError};

/// How long `next` is held when there is nothing to do; below usual proxy limits.
const LONG_POLL: Duration = Duration::from_secs(25);

/// The routes under `/agent/v1`.
pub fn router() -> Router<Shared> {
    Router::new()
        .route("/agent/v1/enroll", post(enroll))
        .route("/agent/v1/next", post(next))
        .route("/agent/v1/report", post(report))
        .route("/agent/v1/result", post(result))
        .route("/agent/v1/images/{id}/manifest", get(manifest))
        .route("/agent/v1/images/{id}/data", get(data))
}

/// The agent that a request's certificate names: the latest that enrolled for its run.
struct Agent(AgentIdentity);

impl FromRequestParts<Shared> for Agent {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, ApiError> {
        let peer = parts.extensions.get::<Peer>();
        let Some((agent, by)) = peer.and_then(|p| Some((p.agent.clone()?, p.address.ip()))) else {
            return Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "agent-certificate-required",
                "this needs the client certificate that /agent/v1/enroll gives",
            ));
        };
        must_be_latest(shared, &agent, by).await?;
        Ok(Self(agent))
    }
}

/// Refuses an agent that another one has followed. It is asked once for each request, when it
/// comes in: a machine that restarted sends nothing more, so whoever still speaks is alive beside
/// the later agent. One of the two is not the machine, and the run must not go on.
async fn must_be_latest(shared: &Shared, agent: &AgentIdentity, by: IpAddr) -> ApiResult<()> {
    let AgentIdentity {
        machine,
        run,
        enrolment,
    } = agent;
    let worth = shared.tokens.enrolment(run, enrolment).await;
    match worth.map_err(internal)? {
        Enrolment::Good => return Ok(()),
        Enrolment::Void => {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "enrolment-void",
                "the run was taken up again while this agent was silent: boot again",
            ));
        }
        Enrolment::Followed => {}
    }
    let wanted = shared.engine.wants_agent(machine).await.map_err(internal)?;
    if wanted.is_some_and(|(active, _)| active == *run) {
        shared
            .tokens
            .alarm_two_agents(machine, run, &by.to_string());
        let reason = format!(
            "two agents speak for {machine}: one enrolled after the other, and the first is still alive; somebody else on the boot network fetched its boot script"
        );
        let failed = shared.engine.fail_security(run, &reason).await;
        failed.map_err(internal)?;
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "superseded",
        "another agent has enrolled for this run since: boot again",
    ))
}

impl Agent {
    /// Refuses what is about a run other than the one in the certificate.
    fn must_own(&self, run: &str) -> ApiResult<()> {
        if self.0.run == run {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "other-run",
            "this agent's certificate is for another run: boot again",
        ))
    }
}

async fn enroll(
    State(shared): State<Shared>,
    axum::Extension(peer): axum::Extension<Peer>,
    JsonBody(request): JsonBody<EnrollRequest>,
) -> ApiResult<Json<EnrollResponse>> {
    let by = key_digest(&request.csr)?;
    let seen = seen_machine(&shared, &request, peer.address.ip());
    // A name that is not the seen machine's fits no token: names have no blanks.
    let machine = if seen == request.machine {
        seen
    } else {
        format!("{seen} calling itself {}", request.machine)
    };
    let claim = Claim {
        purpose: Purpose::Boot,
        machine: Some(&machine),
        by: &by,
    };
    let token = match shared.tokens.redeem(&request.token, claim).await {
        Ok(token) => token,
        Err((TokenError::Refused(refused), token)) => {
            if let Some(token) = token.filter(|_| refused.fails_run()) {
                let failed = shared
                    .engine
                    .fail_security(&token.run, &boot_alarm(refused, &token.machine))
                    .await;
                failed.map_err(internal)?;
            }
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "token-refused",
                "the boot token was refused; the machine gets a new one at its next boot",
            ));
        }
        Err((error, _)) => return Err(internal(error)),
    };
    let identity = AgentIdentity {
        machine: token.machine.clone(),
        run: token.run.clone(),
        enrolment: token.id.clone(),
    };
    // A repeat by an agent that another one has followed.
    must_be_latest(&shared, &identity, peer.address.ip()).await?;
    let wanted = shared
        .engine
        .wants_agent(&identity.machine)
        .await
        .map_err(internal)?;
    if !wanted.is_some_and(|(run, wanted)| wanted && run == identity.run) {
        return Err(ApiError::conflict(
            "run-over",
            "the run this machine booted for does not want an agent any more",
        ));
    }
    let certificate = shared
        .pki
        .sign_agent(&request.csr, &identity)
        .map_err(|error| ApiError::invalid("csr-invalid", format!("{error:#}")))?;
    shared
        .recorder
        .record_durably(
            Event::new(kind::AGENT_ENROLLED, "the agent redeemed its boot token")
                .machine(&identity.machine)
                .run(&identity.run)
                .data(serde_json::json!({
                    "boot_id": request.boot_id,
                    "mac": request.mac,
                    "uuid": request.uuid,
                    "address": peer.address.ip(),
                })),
        )
        .await
        .map_err(|error| ApiError::internal(&error))?;
    let image_keys = shared.images.public_keys();
    Ok(Json(EnrollResponse {
        certificate,
        ca: shared.pki.ca_pem().to_owned(),
        image_keys: image_keys.iter().map(PublicKey::to_hex).collect(),
        run: identity.run,
    }))
}

/// Why a run ends when its boot token is in two hands.
fn boot_alarm(refused: Refused, machine: &str) -> String {
    match refused {
        Refused::Superseded => format!(
            "an agent of {machine} booted with one script, but a newer one was fetched since: somebody else on the boot network asked for its boot script"
        ),
        _ => "the boot token was redeemed twice, by two different keys".to_owned(),
    }
}

/// Which machine the request comes from: the owner of its address if that is reserved, else the
/// owner of the MAC it gives, else the name it gives (which the token must then bear out).
fn seen_machine(shared: &Shared, request: &EnrollRequest, from: IpAddr) -> String {
    let snapshot = shared.directory.snapshot();
    let by_address = snapshot.by_mac.values().find(|reservation| {
        reservation
            .address
            .is_some_and(|address| IpAddr::V4(address.ip) == from)
    });
    let by_mac = snapshot.by_mac.get(&request.mac);
    by_address
        .or(by_mac)
        .map_or_else(|| request.machine.clone(), |r| r.machine.clone())
}

/// SHA-256 of the public key in a request: who redeems, across repeats.
fn key_digest(csr_pem: &str) -> ApiResult<String> {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let invalid = || ApiError::invalid("csr-invalid", "csr must be a PKCS#10 request in PEM");
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr_pem.as_bytes()).map_err(|_| invalid())?;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| invalid())?;
    Ok(hex::encode(Sha256::digest(
        csr.certification_request_info.subject_pki.raw,
    )))
}

async fn next(
    State(shared): State<Shared>,
    agent: Agent,
    JsonBody(request): JsonBody<NextRequest>,
) -> ApiResult<Json<Next>> {
    agent.must_own(&request.run)?;
    let machine = &agent.0.machine;
    tokio::select! {
        next = shared.engine.next_or_wait(machine, &request, LONG_POLL) => {
            Ok(Json(next.map_err(internal)?))
        }
        () = shared.stop.cancelled() => Ok(Json(Next::Wait { after_ms: 1_000 })),
    }
}

async fn report(
    State(shared): State<Shared>,
    agent: Agent,
    JsonBody(report): JsonBody<Report>,
) -> ApiResult<Json<ReportAck>> {
    agent.must_own(&report.order.run)?;
    Ok(Json(
        shared
            .engine
            .report(&agent.0.machine, &report)
            .await
            .map_err(internal)?,
    ))
}

async fn result(
    State(shared): State<Shared>,
    agent: Agent,
    JsonBody(result): JsonBody<StepResult>,
) -> ApiResult<StatusCode> {
    agent.must_own(&result.order.run)?;
    let told = shared.engine.result(&agent.0.machine, &result).await;
    let counts = told.map_err(internal)?;
    if !counts && result.outcome == Outcome::Leaving {
        return Err(ApiError::conflict(
            "attempt-over",
            "this attempt is over: the machine stays with the agent",
        ));
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn manifest(
    State(shared): State<Shared>,
    _: Agent,
    method: Method,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    send_manifest(&shared, &method, &headers, &id).await
}

/// The signed manifest of the image `id`.
pub(crate) async fn send_manifest(
    shared: &Shared,
    method: &Method,
    headers: &HeaderMap,
    id: &str,
) -> ApiResult<Response> {
    let path = shared.images.manifest_path(id);
    let path = path.ok_or_else(|| no_image(id))?;
    serve(&path, method, headers, "application/json", id).await
}

async fn data(
    State(shared): State<Shared>,
    _: Agent,
    method: Method,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    send_data(&shared, &method, &headers, &id).await
}

/// The data of the image `id`, with ranges.
pub(crate) async fn send_data(
    shared: &Shared,
    method: &Method,
    headers: &HeaderMap,
    id: &str,
) -> ApiResult<Response> {
    let path = shared.images.data_path(id).ok_or_else(|| no_image(id))?;
    serve(&path, method, headers, "application/zstd", id).await
}

async fn serve(
    path: &std::path::Path,
    method: &Method,
    headers: &HeaderMap,
    content_type: &'static str,
    id: &str,
) -> ApiResult<Response> {
    let open = async {
        let file = tokio::fs::File::open(path).await?.into_std().await;
        let len = file.metadata()?.len();
        Ok::<_, std::io::Error>(Content::Disk {
            file: Arc::new(file),
            len,
        })
    };
    let content = open.await.map_err(|e| ApiError::internal(&e))?;
    // Both files never change under one id: the id is their strong validator.
    let blob = Blob {
        content,
        content_type,
        etag: id.to_owned(),
    };
    Ok(files::respond(headers, method, &blob))
}

fn no_image(id: &str) -> ApiError {
    ApiError::not_found("image-not-found", format!("the store has no image {id}"))
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> ApiError {
    ApiError::internal(&format!("{:#}", anyhow::Error::new(error)))
}
