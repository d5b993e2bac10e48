//! The image port: sealed images over plain HTTP/1.1, by sendfile(2), shared fairly.
//!
//! Owns: `GET|HEAD /images/<64 hex>/{data.zst,manifest.json}` with single ranges and strong
//! tags, a thread for each connection, how machines share what the daemon can send, and what was
//! sent to whom. docs/adr/0011 says why it is plain, on its own port, and not hyper.
//!
//! Invariants: nothing secret is served here (an image holds no secrets), nothing is listed, and
//! nothing here decides what a machine installs: the manifest's signature does. The runtime's
//! threads never wait for a disk on account of this port. Threads, connections of one client, the
//! size and time of a head, and stalls are bounded. Every thread is joined.
//!
//! Not here: which images there are (`image`), the agents' endpoints over TLS (`agent`).

mod connection;
pub mod head;
mod metrics;
pub mod share;
mod tally;
mod turns;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::event::Recorder;
use crate::image::Catalog;
use crate::machine::Directory;

use super::clients::{Clients, Place};
use super::listener;
pub use connection::Patience;
use connection::{Connection, cut};
pub use head::Part;
pub use metrics::BlobMetrics;
pub use share::Limits;
use tally::{Client, Tally};
use turns::Turns;

/// Connections at once: each has a thread.
const MAX_CONNECTIONS: usize = 1_024;
/// Connections at once of one client.
const MAX_PER_CLIENT: usize = 32;
/// Stack of a connection's thread, in bytes.
const STACK: usize = 256 * 1024;
/// How long bodies may take after the daemon was asked to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether a machine has finished.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);
/// Turns at once for each processor: enough to keep a disk busy, few enough to be in order.
const TURNS_PER_CORE: usize = 4;

/// Where the files of images are.
pub trait Images: std::fmt::Debug + Send + Sync {
    /// A file of the image with this digest (64 lower-case hex digits), if there is one.
    fn path(&self, hex: &str, part: Part) -> Option<PathBuf>;
}

impl Images for Catalog {
    fn path(&self, hex: &str, part: Part) -> Option<PathBuf> {
        let id = format!("blake3:{hex}");
        match part {
            Part::Data => self.data_path(&id),
            Part::Manifest => self.manifest_path(&id),
        }
    }
}

/// What every connection works with.
struct Context {
    images: Arc<dyn Images>,
    turns: Arc<Turns>,
    tally: Arc<Tally>,
    metrics: BlobMetrics,
    patience: Patience,
    stopping: AtomicBool,
}

/// What a port serves, and how.
#[derive(Debug)]
pub struct Config {
    /// The files.
    pub images: Arc<dyn Images>,
    /// Which machine has which address.
    pub directory: Directory,
    /// Where facts go.
    pub recorder: Recorder,
    /// Where counts go.
    pub metrics: BlobMetrics,
    /// Bandwidth.
    pub limits: Limits,
    /// How long clients may keep us waiting.
    pub patience: Patience,
}

/// A bound image port, ready to serve.
#[derive(Debug)]
pub struct Server {
    socket: TcpListener,
    config: Config,
}

/// The URL of an image's file below the base URL of an image port.
#[must_use]
pub fn url(base: &str, hex: &str, part: Part) -> String {
    format!("{base}/images/{hex}/{}", part.name())
}

impl Server {
    /// Binds.
    ///
    /// # Errors
    /// When the address cannot be bound; the message names it and what to do.
    pub async fn bind(address: SocketAddr, config: Config) -> anyhow::Result<Self> {
        Ok(Self {
            socket: listener::bind(address).await?,
            config,
        })
    }

    /// Where it listens; the real port when bound to port 0.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// Serves until `stop`, then lets bodies finish for a few seconds.
    ///
    /// # Errors
    /// Never on account of a client.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Config {
            images,
            directory,
            recorder,
            metrics,
            limits,
            patience,
        } = self.config;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let context = Arc::new(Context {
            images,
            turns: Arc::new(Turns::new(limits, cores * TURNS_PER_CORE)),
            tally: Arc::new(Tally::new(recorder, metrics.clone())),
            metrics,
            patience,
            stopping: AtomicBool::new(false),
        });
        let mut threads = Threads::new(context.clone(), directory);
        let mut record = tokio::time::interval(RECORD_INTERVAL);
        let pace = context.turns.pace();
        tokio::pin!(pace);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = &mut pace => {}
                _ = record.tick() => context.tally.record(Instant::now(), false),
                Some(ended) = threads.ended.recv() => threads.join(ended),
                accepted = self.socket.accept(), if threads.running.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, address)) => threads.take(stream, address),
                        Err(error) => {
                            // Out of file descriptors, or a client that left early: not a reason
                            // to stop, but a reason not to spin.
                            tracing::warn!(%error, "accepting a connection failed");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            }
        }
        drop(self.socket);
        context.stopping.store(true, Ordering::SeqCst);
        threads.cut(false);
        let drained = async {
            while !threads.running.is_empty() {
                tokio::select! {
                    () = &mut pace => {}
                    ended = threads.ended.recv() => match ended {
                        Some(ended) => threads.join(ended),
                        None => return,
                    },
                }
            }
        };
        let late = tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err();
        context.turns.close();
        if late {
            threads.cut(true);
            while let Some(ended) = threads.last_words().await {
                threads.join(ended);
            }
        }
        context.tally.record(Instant::now(), true);
        Ok(())
    }
}

/// A running connection, as the accept loop sees it.
struct Running {
    thread: JoinHandle<()>,
    stream: Arc<TcpStream>,
    busy: Arc<AtomicBool>,
}

/// The threads of all connections.
struct Threads {
    context: Arc<Context>,
    directory: Directory,
    clients: Clients,
    running: HashMap<u64, Running>,
    serial: u64,
    tell: mpsc::UnboundedSender<u64>,
    ended: mpsc::UnboundedReceiver<u64>,
}

/// Tells that a thread is about to end, however it ends.
struct Farewell {
    serial: u64,
    tell: mpsc::UnboundedSender<u64>,
    metrics: BlobMetrics,
    _place: Place,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.metrics.closed();
        // Nobody listens when the accept loop is gone.
        let _ = self.tell.send(self.serial);
    }
}

impl Threads {
    fn new(context: Arc<Context>, directory: Directory) -> Self {
        let (tell, ended) = mpsc::unbounded_channel();
        Self {
            context,
            directory,
            clients: Clients::new(MAX_PER_CLIENT),
            running: HashMap::new(),
            serial: 0,
            tell,
            ended,
        }
    }

    /// Starts a thread for a connection, unless its client has too many.
    fn take(&mut self, stream: tokio::net::TcpStream, address: SocketAddr) {
        let Some(place) = self.clients.enter(address.ip()) else {
            self.context.metrics.refused();
            tracing::debug!(%address, "one client has too many connections");
            return;
        };
        // It stays non-blocking: the thread polls.
        let stream = match stream.into_std() {
            Ok(stream) => Arc::new(stream),
            Err(error) => {
                tracing::warn!(%address, %error, "taking a connection failed");
                return;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "setting TCP_NODELAY failed");
        }
        self.serial += 1;
        let serial = self.serial;
        self.context.metrics.opened();
        let farewell = Farewell {
            serial,
            tell: self.tell.clone(),
            metrics: self.context.metrics.clone(),
            _place: place,
        };
        let busy = Arc::new(AtomicBool::new(false));
        let machine = self.directory.snapshot().machine_at(address.ip());
        let work = {
            let (context, stream, busy) = (self.context.clone(), stream.clone(), busy.clone());
            move || {
                let _farewell = farewell;
                serve(&context, &stream, &busy, address.ip(), machine);
            }
        };
        let thread = std::thread::Builder::new()
            .name("image-port".to_owned())
            .stack_size(STACK)
            .spawn(work);
        match thread {
            Ok(thread) => {
                self.running.insert(
                    serial,
                    Running {
                        thread,
                        stream,
                        busy,
                    },
                );
            }
            Err(error) => {
                self.context.metrics.refused();
                tracing::warn!(%address, %error, "no thread for a connection");
            }
        }
    }

    /// Joins a thread that has said farewell.
    fn join(&mut self, serial: u64) {
        let Some(running) = self.running.remove(&serial) else {
            return;
        };
        if running.thread.join().is_err() {
            tracing::error!("a connection of the image port panicked");
        }
    }

    /// Shuts the sockets of idle connections, or of all.
    fn cut(&self, all: bool) {
        for running in self.running.values() {
            if all || !running.busy.load(Ordering::SeqCst) {
                cut(&running.stream);
            }
        }
    }

    async fn last_words(&mut self) -> Option<u64> {
        if self.running.is_empty() {
            return None;
        }
        self.ended.recv().await
    }
}

fn serve(
    context: &Context,
    stream: &TcpStream,
    busy: &AtomicBool,
    address: IpAddr,
    machine: Option<String>,
) {
    // Connections of one machine share its part, whichever of its cards they come from.
    let member = machine.clone().unwrap_or_else(|| address.to_string());
    let connection = Connection {
        stream,
        context,
        client: Client { address, machine },
        member: context.turns.join(member),
        busy,
    };
    if let Err(error) = connection.serve() {
        tracing::debug!(%address, %error, "connection ended early");
    }
}
