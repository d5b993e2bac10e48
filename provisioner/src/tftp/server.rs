//! The socket that takes requests, and which transfers run.
//!
//! Replies leave from the address that was asked, because every socket is bound to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job::{Job, RECEIVE, Reader, Shared, open, send};
use super::packet::{self, Mode, Packet, Request, code};
use super::transfer::grant;
use crate::boot::BootFiles;
use crate::event::Recorder;
use crate::http::files::Content;
use crate::machine::Directory;

/// IPv4, UDP and TFTP headers, and the same over IPv6, in bytes.
const HEADERS_V4: u32 = 20 + 8 + 4;
const HEADERS_V6: u32 = 40 + 8 + 4;
/// What fits everywhere, in bytes.
const ETHERNET_MTU: u32 = 1_500;

/// What one server does at once. A request beyond it takes the place of the oldest transfer whose
/// client has not answered yet; if every client has, it is left alone: firmware repeats it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Transfers to one address.
    pub per_client: usize,
    /// Transfers in total; each needs a socket.
    pub total: usize,
    /// Transfers to one address that nothing came back from yet. Real clients answer at once;
    /// requests with forged addresses are never answered.
    pub unanswered_per_client: usize,
    /// Transfers in total that nothing came back from yet.
    pub unanswered: usize,
    /// A transfer that takes longer is ended, however lively.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_client: 16,
            total: 512,
            unanswered_per_client: 8,
            // A rack that is switched on asks all at once, and answers when it comes to it.
            unanswered: 512,
            longest: Duration::from_secs(30 * 60),
        }
    }
}

/// A bound TFTP server.
#[derive(Debug)]
pub struct Server {
    socket: UdpSocket,
    address: SocketAddr,
    shared: Arc<Shared>,
    limits: Limits,
}

/// A running transfer, as the request loop sees it.
struct Active {
    serial: u64,
    request: Request,
    /// The client has taken up our answer.
    answered: Arc<AtomicBool>,
    again: Arc<Notify>,
    stop: CancellationToken,
}

impl Active {
    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Server {
    /// Binds to `address`, which must be one of this host's own: replies leave from it.
    ///
    /// # Errors
    /// When the address is unspecified or cannot be bound; the message says what to do.
    pub fn bind(
        address: SocketAddr,
        files: Arc<BootFiles>,
        directory: Directory,
        recorder: Recorder,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !address.ip().is_unspecified(),
            "TFTP on {address}: name the address that machines use, replies must leave from it"
        );
        let socket = open(address).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another TFTP server has this port: stop it, or switch ours off with `tftp: false`"
                }
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need root or CAP_NET_BIND_SERVICE"
                }
                io::ErrorKind::AddrNotAvailable => {
                    "this host does not have that address: check address and interface"
                }
                _ => "check the address",
            };
            anyhow::Error::new(error).context(format!("listening on UDP {address}: {hint}"))
        })?;
        let address = socket.local_addr()?;
        let max_block = max_block(address.ip());
        tracing::debug!(%address, max_block, "TFTP socket bound");
        Ok(Self {
            socket,
            address,
            shared: Arc::new(Shared {
                files,
                directory,
                recorder,
                max_block,
            }),
            limits: Limits::default(),
        })
    }

    /// Where it listens; the real port when bound to port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; transfers that still run are then ended.
    ///
    /// # Errors
    /// Never on account of a client.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut requests = Requests {
            shared: self.shared,
            local: self.address.ip(),
            limits: self.limits,
            active: HashMap::new(),
            tasks: JoinSet::new(),
            serial: 0,
        };
        let mut buffer = vec![0; RECEIVE];
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = requests.tasks.join_next(), if !requests.tasks.is_empty() => {
                    let (client, serial) = ended.context("a TFTP transfer panicked")?;
                    requests.forget(client, serial);
                }
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((length, client)) => {
                        if let Some(refusal) = requests.take(client, &buffer[..length]) {
                            send(&self.socket, &refusal, client).await;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "receiving TFTP requests failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        requests.tasks.shutdown().await;
        Ok(())
    }
}

/// The request loop's state.
struct Requests {
    shared: Arc<Shared>,
    local: IpAddr,
    limits: Limits,
    active: HashMap<SocketAddr, Active>,
    tasks: JoinSet<(SocketAddr, u64)>,
    serial: u64,
}

impl Requests {
    /// Acts on one packet to the well-known port; returns an ERROR to send back.
    fn take(&mut self, client: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let request = match Packet::parse(bytes) {
            Ok(Packet::Read(request)) => request,
            Ok(Packet::Write(_)) => {
                return Some(packet::error(code::ACCESS, "this server is read-only"));
            }
            Ok(other) => {
                tracing::debug!(%client, packet = ?other, "TFTP packet outside a transfer");
                return None;
            }
            Err(error) => {
                tracing::debug!(%client, %error, "TFTP packet dropped");
                return None;
            }
        };
        if request.mode != Mode::Octet {
            return Some(packet::error(
                code::ILLEGAL,
                "only octet (binary) mode is served",
            ));
        }
        let Some(blob) = self.shared.files.get(&request.file) else {
            tracing::debug!(%client, file = request.file, "no such boot file");
            return Some(packet::error(code::NOT_FOUND, "file not found"));
        };
        let content = blob.content.clone();
        if self.repeats(client, &request) || !self.make_room(client) {
            return None;
        }
        self.begin(client, request, content);
        None
    }

    /// Whether `client` only repeats a request that it has seen no answer to. Anything else from
    /// a port with a running transfer ends that transfer: the client has started over.
    fn repeats(&mut self, client: SocketAddr, request: &Request) -> bool {
        let Some(active) = self.active.get(&client) else {
            return false;
        };
        if active.request == *request && !active.is_answered() {
            active.again.notify_one();
            return true;
        }
        active.stop.cancel();
        self.active.remove(&client);
        false
    }

    /// Whether there is a place for one more transfer to `client`; unanswered ones give way.
    fn make_room(&mut self, client: SocketAddr) -> bool {
        let of_client = |other: &SocketAddr| other.ip() == client.ip();
        let anybody = |_: &SocketAddr| true;
        let limits = self.limits;
        let (all, unanswered) = self.count(of_client);
        let crowded = all >= limits.per_client || unanswered >= limits.unanswered_per_client;
        let mut room = !crowded || self.evict(of_client);
        if room {
            let (all, unanswered) = self.count(anybody);
            let crowded = all >= limits.total || unanswered >= limits.unanswered;
            // Evicted transfers need a moment to end; they must not pile up either.
            room = (!crowded || self.evict(anybody)) && self.tasks.len() < 2 * limits.total;
        }
        if !room {
            tracing::debug!(%client, "too many TFTP transfers, request left unanswered");
        }
        room
    }

    /// How many transfers there are to the clients that are meant, and how many of them are
    /// unanswered.
    fn count(&self, meant: impl Fn(&SocketAddr) -> bool) -> (usize, usize) {
        let meant = self.active.iter().filter(|(client, _)| meant(client));
        meant.fold((0, 0), |(all, unanswered), (_, active)| {
            (all + 1, unanswered + usize::from(!active.is_answered()))
        })
    }

    /// Ends the oldest unanswered transfer to the clients that are meant, if there is one.
    fn evict(&mut self, meant: impl Fn(&SocketAddr) -> bool) -> bool {
        let unanswered = self
            .active
            .iter()
            .filter(|(client, active)| meant(client) && !active.is_answered());
        let oldest = unanswered.min_by_key(|(_, active)| active.serial);
        let Some(client) = oldest.map(|(client, _)| *client) else {
            return false;
        };
        tracing::debug!(%client, "an unanswered TFTP transfer makes room");
        if let Some(active) = self.active.remove(&client) {
            active.stop.cancel();
        }
        true
    }

    fn begin(&mut self, client: SocketAddr, request: Request, content: Content) {
        self.serial += 1;
        let serial = self.serial;
        let answered = Arc::new(AtomicBool::new(false));
        let again = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let job = Job {
            shared: self.shared.clone(),
            client,
            file: request.file.clone(),
            options: grant(&request.options, self.shared.max_block),
            size: content.len(),
            reader: Reader::new(content),
            answered: answered.clone(),
            again: again.clone(),
            give_up_at: Instant::now() + self.limits.longest,
        };
        let local = SocketAddr::new(self.local, 0);
        let cancelled = stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancelled.cancelled() => {
                    tracing::debug!(%client, "TFTP transfer cut off");
                }
                () = job.carry_out(local) => {}
            }
            (client, serial)
        });
        self.active.insert(
            client,
            Active {
                serial,
                request,
                answered,
                again,
                stop,
            },
        );
    }

    fn forget(&mut self, client: SocketAddr, serial: u64) {
        if self
            .active
            .get(&client)
            .is_some_and(|active| active.serial == serial)
        {
            self.active.remove(&client);
        }
    }
}

/// The largest block whose packet is not cut up on the interface that has `address`.
fn max_block(address: IpAddr) -> u16 {
    let headers = if address.is_ipv4() {
        HEADERS_V4
    } else {
        HEADERS_V6
    };
    let mtu = interface_mtu(address).unwrap_or(ETHERNET_MTU);
    let fits = mtu.saturating_sub(headers).clamp(512, 65_464);
    u16::try_from(fits).unwrap_or(packet::DEFAULT_BLOCK)
}

fn interface_mtu(address: IpAddr) -> Option<u32> {
    let interface = nix::ifaddrs::getifaddrs().ok()?.find(|interface| {
        let Some(has) = interface.address else {
            return false;
        };
        match address {
            IpAddr::V4(ip) => has.as_sockaddr_in().is_some_and(|a| a.ip() == ip),
            IpAddr::V6(ip) => has.as_sockaddr_in6().is_some_and(|a| a.ip() == ip),
        }
    })?;
    let path = format!("/sys/class/net/{}/mtu", interface.interface_name);
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
