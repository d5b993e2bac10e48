//! The event sink: where Talos says how it is, `events.EventSinkService/Publish` over plain gRPC.
//!
//! Owns: the gRPC answer to one call, who may be believed, and which events are kept.
//! Listening, limits of connections and draining are the listener's ([`super::listener`]).
//!
//! Events are not authenticated: Talos knows no credential for its sink. So nothing is believed
//! but from the address that a machine has (reserved or leased), for a run that waits for Talos
//! right then; the rest is acknowledged and dropped (docs/adr/0020). Nothing said here changes a
//! state by itself: it is recorded, and the engine looks.
//!
//! Not here: what a run makes of it (`workflow::engine`).

mod grpc;
mod message;
mod news;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Response};
use axum::routing::post;
use axum::{Router, http};
use prost::Message as _;

use self::grpc::{Code, Refusal};
use self::message::EventRequest;
use self::news::News;
use super::listener::Peer;
use super::whose::machine_at;
use crate::app::Shared;
use crate::clock::now;
use crate::dhcp::guard::Limiter;
use crate::event::{Event, kind};
use crate::store::Sighting;
use crate::workflow::{Caller, Ear};

/// Calls of one address in each [`WINDOW`]: a whole boot replayed is a few hundred.
const CALLS: u32 = 1_000;
/// See [`CALLS`].
const WINDOW: Duration = Duration::from_secs(10);
/// Events of each sort that are kept for one run.
const KEPT: u32 = 300;
/// Longer than any run.
const A_RUN: Duration = Duration::from_secs(30 * 86_400);

/// The sink.
#[derive(Clone)]
struct Sink(Arc<Parts>);

struct Parts {
    shared: Shared,
    calls: Mutex<Limiter<IpAddr>>,
    /// By run and kind.
    kept: Mutex<Limiter<(String, &'static str)>>,
}

/// The routes of the sink's own listener.
pub fn router(shared: &Shared) -> Router {
    let sink = Sink(Arc::new(Parts {
        shared: shared.clone(),
        calls: Mutex::new(Limiter::new(CALLS, WINDOW)),
        kept: Mutex::new(Limiter::new(KEPT, A_RUN)),
    }));
    Router::new()
        .route("/events.EventSinkService/Publish", post(publish))
        .fallback(unimplemented)
        .with_state(sink)
}

async fn unimplemented(body: Body) -> Response<Body> {
    // Some clients take an answer that comes before they have said everything for an error.
    let _ = grpc::message(body).await;
    Refusal::new(Code::Unimplemented, "this is an event sink for Talos").answer()
}

async fn publish(
    State(sink): State<Sink>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    if !grpc::is_grpc(&headers) {
        let _ = grpc::message(body).await;
        let mut answer = Response::new(Body::from("this port speaks gRPC\n"));
        *answer.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return answer;
    }
    match sink.hear(peer.address.ip(), body).await {
        // EventResponse has no fields.
        Ok(()) => grpc::answer(b""),
        Err(refusal) => {
            tracing::debug!(address = %peer.address, ?refusal, "an event was not taken");
            refusal.answer()
        }
    }
}

impl Sink {
    async fn hear(&self, from: IpAddr, body: Body) -> Result<(), Refusal> {
        let parts = &self.0;
        if !lock(&parts.calls).allow(from, now()) {
            return Err(Refusal::new(
                Code::ResourceExhausted,
                "too many events at once",
            ));
        }
        let machine = machine_at(&parts.shared, from).await;
        let Some(machine) = machine.map_err(|e| Refusal::internal(&e))? else {
            let message = format!("{from} sent events of Talos, and no machine has that address");
            let event = Event::new(kind::TALOS_EVENT, message);
            parts.shared.recorder.record_stranger(event);
            return Err(Refusal::new(
                Code::PermissionDenied,
                "no machine has your address",
            ));
        };
        let Some(bytes) = grpc::message(body).await? else {
            // Refused, it would come again and again, and everything after it never.
            tracing::warn!(machine, "an event of Talos is too large and was dropped");
            return Ok(());
        };
        let request = EventRequest::decode(bytes)
            .map_err(|_| Refusal::new(Code::InvalidArgument, "this is not an EventRequest"))?;
        let news = request.data.as_ref().and_then(news::read);
        let Some(news) = news else { return Ok(()) };
        let ear = parts.shared.engine.listens(&machine, Caller::Talos).await;
        match ear.map_err(|e| Refusal::internal(&e))? {
            Ear::Open(run) => self.keep(&machine, &run, news, from).await,
            // Talos keeps its events and sends them again: nothing is lost.
            Ear::NotYet => Err(Refusal::new(
                Code::Unavailable,
                "the machine's run does not wait for Talos yet",
            )),
            Ear::Closed => Ok(()),
        }
    }

    async fn keep(
        &self,
        machine: &str,
        run: &str,
        news: News,
        from: IpAddr,
    ) -> Result<(), Refusal> {
        let recorder = &self.0.shared.recorder;
        let about = |kind, message| Event::new(kind, message).machine(machine).run(run);
        let may_keep = |kind: &'static str| lock(&self.0.kept).allow((run.to_owned(), kind), now());
        match news {
            News::Ready => {
                let known = self.0.shared.store.sightings(machine).await;
                let known = known.map_err(|e| Refusal::internal(&e))?;
                let mut data = report(&known, run);
                data["address"] = from.to_string().into();
                let ready = about(kind::TALOS_READY, "Talos is running and ready".to_owned());
                let stored = recorder.record_durably(ready.data(data)).await;
                stored.map_err(|e| Refusal::new(Code::Unavailable, e.to_string()))
            }
            News::Status(status) => {
                if may_keep(kind::TALOS_STATUS) {
                    let event = about(kind::TALOS_STATUS, format!("Talos: {}", status.said()));
                    recorder.record(event.data(status.data()));
                }
                Ok(())
            }
            News::Address { message, data } => {
                if may_keep(kind::TALOS_ADDRESS) {
                    recorder.record(about(kind::TALOS_ADDRESS, message).data(data));
                }
                Ok(())
            }
            News::Said { message, data } => {
                if may_keep(kind::TALOS_EVENT) {
                    recorder.record(about(kind::TALOS_EVENT, message).data(data));
                }
                Ok(())
            }
        }
    }
}

/// A node's report, of what Talos has said of itself in this run. Its version it never says.
fn report(known: &[Sighting], run: &str) -> serde_json::Value {
    let address = known
        .iter()
        .find(|s| s.kind == kind::TALOS_ADDRESS && s.run.as_deref() == Some(run));
    let mut report = serde_json::json!({
        "os": "Talos Linux",
        "by": "talos",
        "evidence": "event-sink",
    });
    if let Some(said) = address {
        report["hostname"] = said.data["hostname"].clone();
        report["addresses"] = said.data["addresses"].clone();
    }
    report
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
