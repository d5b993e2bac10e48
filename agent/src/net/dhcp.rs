//! A DHCPv4 client in its smallest useful form: get a lease, keep it.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anneal_protocol::cmdline::Address;
use anneal_protocol::dhcpv4::client::{Answer, Client, Lease};
use anneal_protocol::dhcpv4::{AGENT_VENDOR_CLASS, CLIENT_PORT, SERVER_PORT};
use anneal_protocol::machine::Mac;
use anyhow::Context as _;

/// Long enough for a switch port that forwards late and a daemon that is restarting.
const PATIENCE: Duration = Duration::from_secs(300);

/// Gets a lease and keeps renewing it until the process ends. Blocks until there is one.
///
/// # Errors
/// When no server grants an address for five minutes.
pub fn acquire(nic: &str, mac: Mac) -> anyhow::Result<Address> {
    let socket = open(nic).with_context(|| format!("cannot open a DHCP socket on {nic}"))?;
    let client = Client {
        mac,
        xid: u32::from_be_bytes(super::random()?),
        vendor_class: AGENT_VENDOR_CLASS,
    };
    let lease =
        negotiate(&socket, &client).with_context(|| format!("no DHCP lease on {nic} ({mac})"))?;
    let address = Address {
        ip: lease.address,
        prefix: lease.prefix,
        gateway: lease.router,
    };
    if lease.renew_secs != u32::MAX {
        std::thread::Builder::new()
            .name("dhcp".to_owned())
            .spawn(move || keep(&socket, mac, lease))
            .context("cannot start the thread that renews the lease")?;
    }
    Ok(address)
}

fn open(nic: &str) -> std::io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let fd = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_broadcast(&fd, true)?;
    // Without an address there is no route: the interface must be named.
    let name = std::ffi::CString::new(nic)?;
    bind_to_device(&fd, &name)?;
    rustix::net::bind(
        &fd,
        &std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT),
    )?;
    Ok(UdpSocket::from(fd))
}

fn bind_to_device(fd: &impl std::os::fd::AsRawFd, name: &std::ffi::CStr) -> std::io::Result<()> {
    let bytes = name.to_bytes_with_nul();
    // SAFETY: SO_BINDTODEVICE reads `len` bytes of a name that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            bytes.as_ptr().cast(),
            bytes.len() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// DISCOVER until there is an offer, REQUEST it, begin again when that goes wrong.
fn negotiate(socket: &UdpSocket, client: &Client<'_>) -> anyhow::Result<Lease> {
    let begin = Instant::now();
    let mut pause = Duration::from_secs(1);
    while begin.elapsed() < PATIENCE {
        let secs = u16::try_from(begin.elapsed().as_secs()).unwrap_or(u16::MAX);
        let discover = client.discover(secs);
        if let Some(Answer::Offer(offer)) = ask(socket, client, &discover, pause)? {
            let request = client.request(&offer, secs);
            for _ in 0..3 {
                match ask(socket, client, &request, Duration::from_secs(2))? {
                    Some(Answer::Ack(lease)) => return Ok(lease),
                    Some(Answer::Nak) => break,
                    _ => {}
                }
            }
        }
        pause = (pause * 2).min(Duration::from_secs(16));
    }
    anyhow::bail!("no server answered for {} s", PATIENCE.as_secs())
}

/// Broadcasts one message and takes the first answer of interest within `wait`.
fn ask(
    socket: &UdpSocket,
    client: &Client<'_>,
    message: &[u8],
    wait: Duration,
) -> anyhow::Result<Option<Answer>> {
    if let Err(error) = socket.send_to(message, (Ipv4Addr::BROADCAST, SERVER_PORT)) {
        // The link may be flapping; the next round tries again.
        tracing::warn!(%error, "cannot send to the DHCP server");
    }
    let deadline = Instant::now() + wait;
    let mut frame = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        if let Ok((length, _)) = socket.recv_from(&mut frame)
            && let Some(answer) = client.read(&frame[..length])
        {
            return Ok(Some(answer));
        }
    }
}

/// Renews at T1 and keeps trying; a lease that runs out is only warned about, because a machine
/// that keeps working on its old address is better than one that stops in the middle.
fn keep(socket: &UdpSocket, mac: Mac, mut lease: Lease) {
    let mut wait = Duration::from_secs(u64::from(lease.renew_secs.max(10)));
    loop {
        std::thread::sleep(wait);
        let Ok(xid) = super::random() else { continue };
        let client = Client {
            mac,
            xid: u32::from_be_bytes(xid),
            vendor_class: AGENT_VENDOR_CLASS,
        };
        match ask(
            socket,
            &client,
            &client.renew(&lease),
            Duration::from_secs(5),
        ) {
            Ok(Some(Answer::Ack(renewed))) => {
                wait = Duration::from_secs(u64::from(renewed.renew_secs.max(10)));
                lease = renewed;
            }
            other => {
                let refused = matches!(other, Ok(Some(Answer::Nak)));
                tracing::warn!(address = %lease.address, refused, "the DHCP lease was not renewed");
                wait = Duration::from_secs(30);
            }
        }
    }
}
