//! The sockets: one that takes requests, one for each transfer.
//!
//! Replies leave from the address that was asked, because both sockets are bound to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::packet::{self, Mode, Options, Packet, Request, code};
use super::transfer::{End, Step, Transfer, grant};
use crate::boot::BootFiles;
use crate::event::{Event, Recorder, kind};
use crate::http::files::{CHUNK, Content};
use crate::machine::Directory;

/// Longest packet that a client sends: a request fits 512 bytes (RFC 2347), some are longer.
const RECEIVE: usize = 2_048;
/// Requests that wait while we are busy, in bytes: a rack that starts at once.
const RECEIVE_BUFFER: usize = 1 << 20;
/// IPv4, UDP and TFTP headers, and the same over IPv6, in bytes.
const HEADERS_V4: u32 = 20 + 8 + 4;
const HEADERS_V6: u32 = 40 + 8 + 4;
/// What fits everywhere, in bytes.
const ETHERNET_MTU: u32 = 1_500;

/// What one server does at once. Requests beyond it are not answered: firmware repeats them.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Transfers to one address.
    pub per_client: usize,
    /// Transfers in total; each needs a socket.
    pub total: usize,
    /// A transfer that takes longer is ended, however lively.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_client: 16,
            total: 512,
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

/// What every transfer needs.
#[derive(Debug)]
struct Shared {
    files: Arc<BootFiles>,
    directory: Directory,
    recorder: Recorder,
    max_block: u16,
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

    /// With other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
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
        if self.repeats(client, &request) || self.full(client) {
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
        if active.request == *request && !active.answered.load(Ordering::Relaxed) {
            active.again.notify_one();
            return true;
        }
        active.stop.cancel();
        self.active.remove(&client);
        false
    }

    fn full(&self, client: SocketAddr) -> bool {
        let of_client = self
            .active
            .keys()
            .filter(|other| other.ip() == client.ip())
            .count();
        let full = self.tasks.len() >= self.limits.total || of_client >= self.limits.per_client;
        if full {
            tracing::debug!(%client, "too many TFTP transfers, request left unanswered");
        }
        full
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
                    tracing::debug!(%client, "TFTP client started over");
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

/// One transfer with its socket.
struct Job {
    shared: Arc<Shared>,
    client: SocketAddr,
    file: String,
    options: Options,
    size: u64,
    reader: Reader,
    answered: Arc<AtomicBool>,
    again: Arc<Notify>,
    give_up_at: Instant,
}

impl Job {
    async fn carry_out(mut self, local: SocketAddr) {
        let started = Instant::now();
        let socket = match open(local) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(client = %self.client, %error, "no socket for a TFTP transfer");
                return;
            }
        };
        let (mut transfer, first) = Transfer::new(self.size, &self.options);
        match self.exchange(&socket, &mut transfer, first).await {
            Ok(end) => self.record(&transfer, end, started.elapsed()),
            Err(error) => {
                tracing::error!(file = self.file, %error, "boot file cannot be read");
                let refusal = packet::error(code::UNDEFINED, "the file cannot be read");
                send(&socket, &refusal, self.client).await;
            }
        }
    }

    /// Sends and receives until the transfer ends. An error means that the file is unreadable.
    async fn exchange(
        &mut self,
        socket: &UdpSocket,
        transfer: &mut Transfer,
        mut step: Step,
    ) -> io::Result<End> {
        let mut buffer = vec![0; RECEIVE];
        let mut deadline = Instant::now();
        loop {
            match step {
                Step::SendOack => {
                    send(socket, &packet::oack(&self.options, self.size), self.client).await;
                }
                Step::SendBlocks { first, last } => {
                    self.send_blocks(socket, transfer, first, last).await?;
                }
                Step::Wait | Step::WaitAgain => {}
                Step::End(end) => return Ok(end),
            }
            if step != Step::Wait {
                deadline = Instant::now() + transfer.patience();
            }
            if Instant::now() >= self.give_up_at {
                return Ok(End::Silent);
            }
            step = tokio::select! {
                () = self.again.notified() => transfer.asked_again(),
                received = tokio::time::timeout_at(deadline, socket.recv_from(&mut buffer)) => {
                    match received {
                        Err(_) => transfer.timed_out(),
                        Ok(Ok((length, from))) if from == self.client => {
                            self.receive(transfer, &buffer[..length])
                        }
                        Ok(Ok((_, stranger))) => {
                            let refusal = packet::error(code::UNKNOWN_TID, "unknown transfer");
                            send(socket, &refusal, stranger).await;
                            Step::Wait
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(client = %self.client, %error, "TFTP receive failed");
                            Step::Wait
                        }
                    }
                }
            };
        }
    }

    fn receive(&self, transfer: &mut Transfer, bytes: &[u8]) -> Step {
        match Packet::parse(bytes) {
            Ok(Packet::Ack(block)) => {
                let step = transfer.ack(block);
                if transfer.has_answered() {
                    self.answered.store(true, Ordering::Relaxed);
                }
                step
            }
            Ok(Packet::Error { code, message }) => {
                tracing::debug!(client = %self.client, file = self.file, code, message, "TFTP client ended the transfer");
                transfer.client_error()
            }
            Ok(_) | Err(_) => Step::Wait,
        }
    }

    async fn send_blocks(
        &mut self,
        socket: &UdpSocket,
        transfer: &Transfer,
        first: u64,
        last: u64,
    ) -> io::Result<()> {
        let mut packet = Vec::new();
        for number in first..=last {
            let (offset, length) = transfer.block(number);
            let bytes = self.reader.read(offset, length).await?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "block numbers wrap (RFC 1350)"
            )]
            packet::data(&mut packet, number as u16, &bytes);
            send(socket, &packet, self.client).await;
        }
        Ok(())
    }

    fn record(&self, transfer: &Transfer, end: End, took: Duration) {
        let address = self.client.ip();
        let (word, outcome) = match end {
            End::Probe => return,
            End::Complete => ("fetched", "complete"),
            End::Aborted => ("stopped fetching", "aborted"),
            End::Silent => ("fell silent while fetching", "silent"),
        };
        let machine = self.shared.directory.snapshot().machine_at(address);
        let who = machine.clone().unwrap_or_else(|| address.to_string());
        let bytes = match end {
            End::Complete => self.size,
            _ => transfer.bytes_acked(),
        };
        let message = format!("{who} {word} {} by TFTP ({bytes} bytes)", self.file);
        let mut event = Event::new(kind::TFTP, message).data(json!({
            "file": self.file,
            "bytes": bytes,
            "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "address": address,
            "outcome": outcome,
            "blksize": self.options.blksize.unwrap_or(packet::DEFAULT_BLOCK),
            "windowsize": self.options.windowsize.unwrap_or(1),
            "repeated_blocks": transfer.repeated(),
        }));
        event.machine = machine;
        self.shared.recorder.record(event);
    }
}

/// Reads a file in pieces that many blocks are cut from.
struct Reader {
    content: Content,
    start: u64,
    piece: Bytes,
}

impl Reader {
    fn new(content: Content) -> Self {
        Self {
            content,
            start: 0,
            piece: Bytes::new(),
        }
    }

    async fn read(&mut self, offset: u64, length: usize) -> io::Result<Bytes> {
        let within = |reader: &Self| {
            let from = usize::try_from(offset.checked_sub(reader.start)?).ok()?;
            let to = from.checked_add(length)?;
            (to <= reader.piece.len()).then(|| reader.piece.slice(from..to))
        };
        if let Some(bytes) = within(self) {
            return Ok(bytes);
        }
        let left = self.content.len().saturating_sub(offset);
        let piece = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        self.piece = self.content.read(offset, piece).await?;
        self.start = offset;
        within(self).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Sends; what cannot be sent counts as lost on the way, and repetition covers it.
async fn send(socket: &UdpSocket, packet: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(packet, to).await {
        tracing::debug!(%to, %error, "TFTP packet not sent");
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM.nonblocking().cloexec(),
        Some(socket2::Protocol::UDP),
    )?;
    // The kernel grants what it may; less is not an error.
    if address.port() != 0 {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
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
