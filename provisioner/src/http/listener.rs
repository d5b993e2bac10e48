//! Accept loops: plain and TLS, each connection a joined task.
//!
//! Owns: TLS handshakes (in the connection's task, bounded in time, so that a silent client
//! holds nobody up), who the peer is, and draining at stop.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::pki::{AgentIdentity, agent_identity};

/// A client that has not finished its handshake or request head by then is cut off.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);
/// How long open requests may take after the daemon was asked to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Connections at once on one listener.
const MAX_CONNECTIONS: usize = 1_024;
/// Connections at once of one client, so that no single one takes them all.
const MAX_PER_CLIENT: usize = 64;

/// How many connections each client has.
#[derive(Debug, Clone, Default)]
struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of a client; leaving it out of scope gives it back.
struct Place(Clients, IpAddr);

impl Clients {
    fn enter(&self, client: IpAddr) -> Option<Place> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= MAX_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), client))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.1);
            }
        }
    }
}

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
        let socket = TcpListener::bind(address).await.map_err(|error| {
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
        })?;
        Ok(Self {
            socket,
            tls: tls.map(Arc::new),
        })
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
        let clients = Clients::default();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = self.socket.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let Some(place) = clients.enter(address.ip()) else {
                        tracing::debug!(%address, "one client has too many connections");
                        continue;
                    };
                    let served = connection(
                        stream,
                        address,
                        acceptor.clone(),
                        router.clone(),
                        stop.clone(),
                    );
                    connections.spawn(async move {
                        served.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors or a client that left early: not a reason to stop,
                    // but a reason not to spin.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(self.socket);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
            connections.shutdown().await;
        }
        Ok(())
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%address, %error, "setting TCP_NODELAY failed");
    }
    let Some(acceptor) = acceptor else {
        serve(
            stream,
            Peer {
                address,
                agent: None,
            },
            router,
            stop,
        )
        .await;
        return;
    };
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream));
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
    serve(stream, Peer { address, agent }, router, stop).await;
}

async fn serve<S>(stream: S, peer: Peer, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let address = peer.address;
    let service = router.map_request(move |mut request: hyper::Request<_>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
    let service = TowerToHyperService::new(service.map_request(
        |request: hyper::Request<hyper::body::Incoming>| request.map(axum::body::Body::new),
    ));
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_LIMIT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended early");
    }
}
