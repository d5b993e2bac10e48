//! Accept loops: plain and TLS, each connection a joined task.
//!
//! Owns: TLS handshakes (in the connection's task, bounded in time, so that a silent client
//! holds nobody up), how long a peer may take for each part, who the peer is, and draining at
//! stop. Not here: how many connections there may be (`clients`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::clients::{Seat, Seats};
use super::stall::{Arriving, Watched, opened};
use crate::pki::{AgentIdentity, agent_identity};

/// How long a client may take for what only it can do; then its connection is closed.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the TLS handshake, for the first words of HTTP/2, and for the whole head of a request of
    /// HTTP/1: also for its first byte, so a connection without a request is not kept longer.
    pub head: Duration,
    /// For taking 64 KiB of an answer that waits to be sent, or sending that much of a body that we
    /// wait for. Time in which nobody has anything to say does not count.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(20),
            stall: Duration::from_secs(90),
        }
    }
}

/// How long open requests may take after the daemon was asked to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Connections at once on one listener.
const MAX_CONNECTIONS: usize = 1_024;
/// Connections at once of one client, so that no single one takes them all.
const MAX_PER_CLIENT: usize = 64;
/// Requests at once on one HTTP/2 connection; Talos sends one event after the other.
const MAX_STREAMS: u32 = 8;

/// Who is on the other end; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Its agent certificate, if it showed one.
    pub agent: Option<AgentIdentity>,
}

/// A bound listener, ready to serve.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    patience: Patience,
    version: Version,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    /// Without an upgrade first, as gRPC does in clear.
    Http2,
}

impl Listener {
    /// Binds; with `tls`, every connection must speak it.
    ///
    /// # Errors
    /// When the address cannot be bound; the message names it and what to do.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<rustls::ServerConfig>,
    ) -> anyhow::Result<Self> {
        let socket = bind(address).await?;
        Ok(Self {
            socket,
            tls: tls.map(Arc::new),
            patience: Patience::default(),
            version: Version::Http1,
        })
    }

    /// The same, for gRPC.
    #[must_use]
    pub fn for_grpc(mut self) -> Self {
        self.version = Version::Http2;
        self
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Where it listens; the real port when bound to port 0.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// Serves `router` until `stop`, then lets open requests finish for a few seconds.
    ///
    /// # Errors
    /// Never on account of a client; only when the socket itself fails for good.
    pub async fn run(self, router: Router, stop: CancellationToken) -> anyhow::Result<()> {
        let mut connections = JoinSet::new();
        let acceptor = self.tls.map(TlsAcceptor::from);
        let (socket, seats) = (self.socket, Seats::new(MAX_CONNECTIONS, MAX_PER_CLIENT));
        let streams = TaskTracker::new();
        let terms = Terms {
            patience: self.patience,
            version: self.version,
            streams: streams.clone(),
        };
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = seats.accept(&socket) => accepted,
            };
            match accepted {
                Ok((_, address, None)) => {
                    tracing::debug!(%address, "one client has too many connections");
                }
                Ok((stream, address, Some(seat))) => {
                    connections.spawn(connection(
                        Watched::new(stream, self.patience.stall),
                        (address, seat, terms.clone()),
                        acceptor.clone(),
                        router.clone(),
                        stop.clone(),
                    ));
                }
                Err(error) => {
                    // Out of file descriptors or a client that left early: not a reason to stop,
                    // but a reason not to spin.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(socket);
        streams.close();
        let drained = async {
            while connections.join_next().await.is_some() {}
            streams.wait().await;
        };
        if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
            connections.shutdown().await;
        }
        Ok(())
    }
}

/// Binds a TCP socket.
///
/// # Errors
/// When the address cannot be bound; the message names it and what to do.
pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program has this port: stop it or choose another port"
            }
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 need root or CAP_NET_BIND_SERVICE"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "this host does not have that address: see --address and --interface"
            }
            _ => "check the address",
        };
        anyhow::Error::new(error).context(format!("listening on TCP {address}: {hint}"))
    })
}

/// How a connection is served.
#[derive(Debug, Clone)]
struct Terms {
    patience: Patience,
    version: Version,
    /// Requests of HTTP/2 connections, each a task.
    streams: TaskTracker,
}

impl Terms {
    fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience.head);
        builder
    }

    fn http2(&self) -> http2::Builder<Streams> {
        let mut builder = http2::Builder::new(Streams(self.streams.clone()));
        builder
            .timer(TokioTimer::new())
            // Who is gone without a word is found out.
            .keep_alive_interval(self.patience.stall)
            .keep_alive_timeout(self.patience.head)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(16 * 1024)
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(256 * 1024);
        builder
    }
}

/// Runs what HTTP/2 connections need beside themselves; joined when the listener ends.
#[derive(Debug, Clone)]
struct Streams(TaskTracker);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

async fn connection(
    stream: Watched,
    (address, seat, terms): (SocketAddr, Seat, Terms),
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) {
    let Some(acceptor) = acceptor else {
        let agent = None;
        let peer = Peer { address, agent };
        serve(stream, (peer, seat), terms, router, stop).await;
        return;
    };
    let handshake = tokio::time::timeout(terms.patience.head, acceptor.accept(stream));
    let stream = tokio::select! {
        () = stop.cancelled() => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "TLS handshake failed");
                return;
            }
            Err(_) => return,
        },
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let agent = certificates
        .and_then(|chain| chain.first())
        .and_then(agent_identity);
    let peer = Peer { address, agent };
    serve(stream, (peer, seat), terms, router, stop).await;
}

async fn serve<S>(
    stream: S,
    (peer, seat): (Peer, Seat),
    terms: Terms,
    router: Router,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let address = peer.address;
    let patience = terms.patience;
    let service = router.map_request(move |mut request: hyper::Request<_>| {
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(seat.clone());
        request
    });
    let service = TowerToHyperService::new(service.map_request(
        move |request: hyper::Request<hyper::body::Incoming>| {
            request.map(|body| axum::body::Body::new(Arriving::new(body, patience.stall)))
        },
    ));
    let ended = match terms.version {
        Version::Http1 => {
            let connection = terms.http1();
            let connection = connection.serve_connection(TokioIo::new(stream), service);
            let connection = connection.with_upgrades();
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Version::Http2 => {
            let opened = tokio::select! {
                () = stop.cancelled() => None,
                opened = opened(stream, patience.head) => opened,
            };
            let Some(stream) = opened else {
                tracing::debug!(%address, "nobody who speaks HTTP/2");
                return;
            };
            let connection = terms.http2();
            let connection = connection.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended early");
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
