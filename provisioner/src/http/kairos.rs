//! The Kairos agent's phone-home API: `POST /api/v1/nodes/register`, then a WebSocket at
//! `/api/v1/ws`, as `kairos-agent phone-home` speaks them.
//!
//! Owns: the credential that a registration gets, the sockets that are open, and what of the
//! agent's reports is kept. The registration token is the run's one-use phone-home token; the key
//! that it buys is good for the socket of that machine and run, from the address that registered,
//! until the run is over.
//!
//! The protocol also lets a server command nodes: upgrade, reboot, run a shell. This server never
//! sends a command, and there is no way to make it: what runs on a machine is what its run wrote.
//! Artefacts (`/api/v1/artifacts/…`) are not served.
//!
//! Not here: what a report means for the run (`workflow::engine`), what it says (`kairos_report`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anneal_protocol::api::Problem;
use anneal_protocol::time::Millis;
use axum::extract::{Query, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::body::JsonBody;
use super::clients::Seat;
use super::kairos_report::{Register, Registered, Report, heartbeat};
use super::listener::Peer;
use super::node::redeem;
use super::problem::{ApiError, ApiResult};
use super::whose::machine_at;
use crate::app::Shared;
use crate::clock::now;
use crate::dhcp::guard::Limiter;
use crate::event::{Event, kind};
use crate::token::{Claim, KAIROS, Mint, Purpose, TokenRecord};

/// The largest message of an agent; a heartbeat is a few kilobytes.
const MESSAGE: usize = 64 * 1024;
/// How long a socket may be silent: twenty heartbeats of the usual interval.
const SILENCE: Duration = Duration::from_secs(600);
/// How often an open socket is looked at beside what happens.
const LOOK: Duration = Duration::from_secs(5);
/// How long a closing socket may take.
const CLOSING: Duration = Duration::from_secs(2);
/// Registrations that are taken for one run, and reports that are kept, in a [`DAY`].
const KEPT: u32 = 50;
/// Longer than any run.
const DAY: Duration = Duration::from_secs(86_400);

/// What a node may tell us only so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Said {
    Registration,
    Report,
}

/// Sockets of nodes: joined when the daemon stops, at most one open for a run.
#[derive(Debug)]
pub struct Sockets {
    tasks: TaskTracker,
    /// By run.
    open: Mutex<HashMap<String, CancellationToken>>,
    kept: Mutex<Limiter<(String, Said)>>,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            tasks: TaskTracker::new(),
            open: Mutex::default(),
            kept: Mutex::new(Limiter::new(KEPT, DAY)),
        }
    }
}

impl Sockets {
    /// Waits until `stop` and then for every socket.
    ///
    /// # Errors
    /// Never.
    pub async fn run(shared: Shared, stop: CancellationToken) -> anyhow::Result<()> {
        stop.cancelled().await;
        shared.sockets.tasks.close();
        shared.sockets.tasks.wait().await;
        Ok(())
    }

    /// Takes the place of the socket that the run's node had.
    fn replace(&self, run: &str) -> CancellationToken {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, socket| !socket.is_cancelled());
        let own = CancellationToken::new();
        if let Some(before) = open.insert(run.to_owned(), own.clone()) {
            before.cancel();
        }
        own
    }

    /// Counts what a run's node says; whether it may be kept.
    fn may_say(&self, run: &str, said: Said) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.allow((run.to_owned(), said), now())
    }
}

/// The routes, on the TLS listener.
pub fn router() -> Router<Shared> {
    Router::new()
        .route("/api/v1/nodes/register", post(register))
        .route("/api/v1/ws", get(socket))
}

/// Registers a Kairos node: its `registrationToken` is the one-use phone-home token of its run.
/// The key in the answer opens the node's socket, `/api/v1/ws?token=KEY`, until the run is over or
/// the node registers again.
#[utoipa::path(post, path = "/api/v1/nodes/register", tag = "nodes", security(()),
    request_body = Register,
    responses(
        (status = 201, description = "Registered", body = Registered),
        (status = 403, description = "Not a phone-home token of this machine", body = Problem),
        (status = 410, description = "The token is spent, expired, or its run is over", body = Problem),
        (status = 422, description = "A field is not what it should be", body = Problem),
        (status = 429, description = "Registered too often", body = Problem),
    ))]
pub async fn register(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<Register>,
) -> ApiResult<(StatusCode, Json<Registered>)> {
    let report = request.report()?;
    let token = redeem(&shared, &request.registration_token, &peer).await?;
    let run = shared.store.run_row(&token.run).await?;
    if !run.state.is_active() {
        return Err(super::node::gone());
    }
    if !shared.sockets.may_say(&token.run, Said::Registration) {
        return Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "registered-too-often",
            "this node has registered again and again: have it keep the key that it got",
        ));
    }
    let message = format!("the Kairos agent registered, {}", report.said());
    record(&shared, &token, message, &report).await?;
    let session = Mint {
        purpose: Purpose::Session,
        machine: &token.machine,
        run: &token.run,
        ttl: run.deadline.since(now()) + Duration::from_secs(300),
        subject: Some(KAIROS),
        plain: false,
    };
    let key = shared.tokens.mint(session).await;
    let api_key = key.map_err(|e| ApiError::internal(&e))?;
    let id = token.machine;
    Ok((StatusCode::CREATED, Json(Registered { id, api_key })))
}

async fn record(
    shared: &Shared,
    token: &TokenRecord,
    message: String,
    report: &Report,
) -> ApiResult<()> {
    let about = |kind: &'static str, message: String| {
        let event = Event::new(kind, message).machine(&token.machine);
        event.run(&token.run).data(report.data())
    };
    let stored = shared
        .recorder
        .record_durably(about(kind::KAIROS_REPORT, message))
        .await;
    stored.map_err(|_| ApiError::not_stored())?;
    if !report.is_ready() {
        return Ok(());
    }
    let message = format!(
        "the Kairos agent reports from its active image: {}",
        report.os()
    );
    let stored = shared
        .recorder
        .record_durably(about(kind::KAIROS_READY, message))
        .await;
    stored.map_err(|_| ApiError::not_stored())
}

#[derive(serde::Deserialize)]
struct Key {
    #[serde(default)]
    token: String,
}

async fn socket(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Extension(seat): Extension<Seat>,
    Query(key): Query<Key>,
    mut request: Request,
) -> ApiResult<Response> {
    let address = peer.address.ip();
    let machine = machine_at(&shared, address).await?;
    let by = address.to_string();
    let claim = Claim {
        purpose: Purpose::Session,
        machine: machine.as_deref(),
        by: &by,
    };
    let of_kairos = |token: &TokenRecord| token.subject.as_deref() == Some(KAIROS);
    let session = super::session::known(&shared, claim, &key.token, of_kairos).await?;
    let Some(session) = session else {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "session-over",
            "this key is not good, not yours, or its run is over",
        ));
    };
    let Some(accept) = accept_key(request.headers()) else {
        return Err(ApiError::new(
            StatusCode::UPGRADE_REQUIRED,
            "websocket-only",
            "expected a WebSocket handshake, version 13",
        ));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let open = Socket {
        closed: shared.sockets.replace(&session.run),
        session,
        report: None,
        shared: shared.clone(),
    };
    shared.sockets.tasks.spawn(async move {
        match upgrade.await {
            Ok(stream) => open.serve(TokioIo::new(stream)).await,
            Err(error) => {
                tracing::debug!(%error, "a node's socket did not open");
                open.closed.cancel();
            }
        }
        // HTTP has long done with the connection: it counts until here.
        drop(seat);
    });
    let mut answer = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&accept).map_err(|e| ApiError::internal(&e))?;
    headers.insert("sec-websocket-accept", accept);
    Ok(answer)
}

/// What a handshake is answered with; `None` when it is none.
fn accept_key(headers: &HeaderMap) -> Option<String> {
    let has = |name: &str, word: &str| {
        let value = headers.get(name).and_then(|v| v.to_str().ok());
        let mut words = value.unwrap_or_default().split(',');
        words.any(|w| w.trim().eq_ignore_ascii_case(word))
    };
    let wanted = has("connection", "upgrade")
        && has("upgrade", "websocket")
        && has("sec-websocket-version", "13");
    let key = headers.get("sec-websocket-key").filter(|_| wanted)?;
    Some(derive_accept_key(key.as_bytes()))
}

/// One open socket.
struct Socket {
    shared: Shared,
    session: TokenRecord,
    /// Another socket took this one's place.
    closed: CancellationToken,
    /// The last report that was kept.
    report: Option<Report>,
}

impl Socket {
    async fn serve<S>(mut self, stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE))
            .max_frame_size(Some(MESSAGE));
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits)).await;
        let why = self.listen(&mut socket).await;
        let goodbye = async {
            if let Some((code, reason)) = why {
                let reason = reason.into();
                socket
                    .send(Message::Close(Some(CloseFrame { code, reason })))
                    .await?;
                while socket.next().await.is_some_and(|message| message.is_ok()) {}
            }
            Ok::<_, tokio_tungstenite::tungstenite::Error>(())
        };
        // Who does not say goodbye is not waited for.
        let _ = tokio::time::timeout(CLOSING, goodbye).await;
        self.closed.cancel();
    }

    /// Takes messages until there is a reason to stop; `None` when the agent is gone.
    async fn listen<S>(
        &mut self,
        socket: &mut WebSocketStream<S>,
    ) -> Option<(CloseCode, &'static str)>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let mut heard = now();
        let stop = self.shared.stop.clone();
        loop {
            let changed = self.shared.engine.changed();
            let message = tokio::select! {
                () = stop.cancelled() => return Some((CloseCode::Away, "the daemon stops")),
                () = self.closed.cancelled() => return Some((CloseCode::Normal, "another socket took its place")),
                () = changed.notified() => None,
                () = tokio::time::sleep(LOOK) => None,
                message = socket.next() => Some(message?),
            };
            match message {
                None if now().since(heard) > SILENCE => {
                    return Some((CloseCode::Normal, "nothing was heard for ten minutes"));
                }
                None => {
                    if self.is_over(now()).await {
                        return Some((CloseCode::Normal, "the run is over"));
                    }
                }
                Some(Ok(Message::Text(text))) => {
                    heard = now();
                    if !self.hear(&text).await {
                        return Some((CloseCode::Error, "the report could not be stored"));
                    }
                }
                Some(Ok(Message::Binary(_))) => {
                    return Some((CloseCode::Unsupported, "expected text"));
                }
                Some(Ok(_)) => heard = now(),
                Some(Err(error)) => {
                    tracing::debug!(machine = self.session.machine, %error, "a node's socket broke");
                    return None;
                }
            }
        }
    }

    async fn is_over(&self, at: Millis) -> bool {
        if self.session.expires_at <= at {
            return true;
        }
        match self.shared.store.run_row(&self.session.run).await {
            Ok(run) => !run.state.is_active(),
            Err(error) => {
                tracing::warn!(%error, "looking after a node's socket");
                false
            }
        }
    }

    /// Keeps what a message says, if it is news. False when it could not be stored: the agent
    /// then connects and says it again.
    async fn hear(&mut self, text: &str) -> bool {
        let Some(mut report) = heartbeat(text) else {
            return true;
        };
        let known = self.shared.store.sightings(&self.session.machine).await;
        let known = known.unwrap_or_default();
        let run = Some(self.session.run.as_str());
        let of_run = |kind: &str| {
            let found = known
                .iter()
                .find(|s| s.kind == kind && s.run.as_deref() == run);
            found.map(|s| &s.data)
        };
        report.complete(of_run(kind::KAIROS_REPORT));
        // That the system is up is kept however much was said before.
        let is_first = report.is_ready() && of_run(kind::KAIROS_READY).is_none();
        let is_news = self.report.as_ref() != Some(&report);
        let sockets = &self.shared.sockets;
        let is_kept = is_first || (is_news && sockets.may_say(&self.session.run, Said::Report));
        if !is_kept {
            return true;
        }
        let message = format!("the Kairos agent reports {}", report.said());
        let stored = record(&self.shared, &self.session, message, &report).await;
        if stored.is_ok() {
            self.report = Some(report);
        }
        stored.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_one_socket_and_a_bound_on_what_is_kept() {
        let sockets = Sockets::default();
        let first = sockets.replace("run-1");
        let other = sockets.replace("run-2");
        let second = sockets.replace("run-1");
        assert!(first.is_cancelled() && !second.is_cancelled() && !other.is_cancelled());
        let kept = |run: &str| {
            let said = (0..=KEPT).filter(|_| sockets.may_say(run, Said::Report));
            said.count()
        };
        assert_eq!([kept("run-1"), kept("run-1"), kept("run-2")], [50, 0, 50]);
        assert!(sockets.may_say("run-1", Said::Registration));
    }
}
