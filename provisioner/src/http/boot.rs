//! The boot endpoints, on plain HTTP because firmware cannot do better: `/boot/<file>` and
//! `/boot/script/<mac>`.
//!
//! Owns: what goes out under `/boot`, and the record of it. Nothing secret but the boot token in
//! a script is served here. Unknown names are answered at once: newer iPXE asks for
//! `autoexec.ipxe` first and waits for the answer.
//!
//! Not here: what a machine boots (`boot`), and how a file is sent (`files`).

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use anneal_protocol::machine::Mac;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Extension, Path, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::json;

use super::files;
use super::listener::Peer;
use crate::boot::{BootFiles, BootSource, Target, script};
use crate::event::{Event, Recorder, kind};
use crate::machine::Directory;

#[derive(Clone)]
struct Boot {
    files: Arc<BootFiles>,
    source: Arc<dyn BootSource>,
    directory: Directory,
    recorder: Recorder,
    base_url: Arc<str>,
}

/// The routes; `base_url` is this listener as machines reach it, `http://10.77.0.1:8080`. The
/// listener must add [`Peer`] to every request.
pub fn router(
    files: Arc<BootFiles>,
    source: Arc<dyn BootSource>,
    directory: Directory,
    recorder: Recorder,
    base_url: &str,
) -> Router {
    Router::new()
        .route("/boot/script/{mac}", get(send_script))
        .route("/boot/{file}", get(send_file))
        .with_state(Boot {
            files,
            source,
            directory,
            recorder,
            base_url: base_url.into(),
        })
}

async fn send_script(
    State(boot): State<Boot>,
    Extension(peer): Extension<Peer>,
    method: Method,
    Path(mac): Path<String>,
) -> Response {
    // A script holds a token made for the one who reads it; asking for its length makes none.
    if method != Method::GET {
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET")]).into_response();
    }
    let Ok(mac) = mac.parse::<Mac>() else {
        return (StatusCode::NOT_FOUND, "no such script\n").into_response();
    };
    let rendered = match boot.source.target(mac, peer.address.ip()).await {
        Ok(target) => script::render(mac, &target, &boot.base_url)
            .map(|text| (target, text))
            .map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    let (target, text) = match rendered {
        Ok(rendered) => rendered,
        Err(error) => {
            tracing::error!(%mac, error = format!("{error:#}"), "no boot script");
            // iPXE gives up on this script, and the firmware boots the disk.
            return (StatusCode::SERVICE_UNAVAILABLE, "no script, see the log\n").into_response();
        }
    };
    let event = script_event(mac, peer.address.ip(), &target);
    match target {
        Target::Unknown => boot.recorder.record_stranger(event),
        Target::Agent(_) | Target::Disk { .. } => boot.recorder.record(event),
    }
    let headers = [(CONTENT_TYPE, "text/plain"), (CACHE_CONTROL, "no-store")];
    (headers, text).into_response()
}

fn script_event(mac: Mac, from: IpAddr, target: &Target) -> Event {
    let data = |word: &str| json!({ "target": word, "mac": mac, "address": from });
    match target {
        Target::Agent(boot) => Event::new(
            kind::BOOT_SCRIPT,
            format!("{} was told to boot the agent", boot.machine),
        )
        .machine(&boot.machine)
        .run(&boot.run)
        .data(data("agent")),
        Target::Disk { machine } => Event::new(
            kind::BOOT_SCRIPT,
            format!("{machine} was told to boot its own disk"),
        )
        .machine(machine)
        .data(data("disk")),
        Target::Unknown => Event::new(
            kind::BOOT_SCRIPT,
            format!("{mac} is not in the inventory and was told to go on with its next device"),
        )
        .data(data("none")),
    }
}

async fn send_file(
    State(boot): State<Boot>,
    Extension(peer): Extension<Peer>,
    method: Method,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    let Some(blob) = boot.files.get(&name) else {
        tracing::debug!(file = name, address = %peer.address, "no such boot file");
        return (StatusCode::NOT_FOUND, "no such boot file\n").into_response();
    };
    let response = files::respond(&headers, &method, blob);
    if method != Method::GET || !response.status().is_success() {
        return response;
    }
    let address = peer.address.ip();
    let transfer = Transfer {
        machine: boot.directory.snapshot().machine_at(address),
        recorder: boot.recorder,
        file: name,
        address,
        started: Instant::now(),
        sent: 0,
    };
    response.map(|inner| {
        let length = inner.size_hint().exact();
        Body::new(Recorded {
            inner,
            length,
            transfer,
        })
    })
}

/// One transfer; records itself when it is dropped, whole or cut short.
struct Transfer {
    recorder: Recorder,
    machine: Option<String>,
    file: String,
    address: IpAddr,
    started: Instant,
    sent: u64,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Self { file, sent, .. } = self;
        let who = self.machine.clone();
        let message = format!(
            "{} fetched {sent} bytes of {file} by HTTP",
            who.clone().unwrap_or_else(|| self.address.to_string())
        );
        let mut event = Event::new(kind::HTTP, message).data(json!({
            "file": file,
            "bytes": sent,
            "duration_ms": u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "address": self.address,
        }));
        if who.is_none() {
            self.recorder.record_stranger(event);
            return;
        }
        event.machine = who;
        self.recorder.record(event);
    }
}

/// A body that counts what is handed to the connection.
struct Recorded {
    inner: Body,
    length: Option<u64>,
    transfer: Transfer,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.transfer.sent += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self.length {
            Some(length) => {
                hyper::body::SizeHint::with_exact(length.saturating_sub(self.transfer.sent))
            }
            None => self.inner.size_hint(),
        }
    }
}
