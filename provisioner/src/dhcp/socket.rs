//! Sockets: UDP on one interface, and whole Ethernet frames for clients that have no address yet.
//!
//! The UDP socket is bound to the interface, so nothing is heard from or said to any other. Frames
//! need no ARP: the client cannot answer one before it has its address.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use anneal_protocol::dhcpv4::{CLIENT_PORT, SERVER_PORT};
use anneal_protocol::machine::Mac;
use anyhow::Context;
use etherparse::PacketBuilder;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt::Ipv4PacketInfo,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;

use super::policy::{Arrival, Destination};

/// Longest datagram we look at: more than any MTU a client may use to ask.
const LONGEST: usize = 4096;

/// A network interface of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    pub addresses: Vec<Ipv4Addr>,
}

impl Interface {
    /// Looks an interface up.
    pub fn find(name: &str) -> anyhow::Result<Self> {
        let mut link = None;
        let mut addresses = Vec::new();
        for entry in nix::ifaddrs::getifaddrs().context("listing network interfaces")? {
            if entry.interface_name != name {
                continue;
            }
            let Some(address) = entry.address else {
                continue;
            };
            if let Some(found) = address.as_link_addr() {
                link = Some((u32::try_from(found.ifindex())?, found.addr()));
            }
            if let Some(ip) = address.as_sockaddr_in() {
                addresses.push(ip.ip());
            }
        }
        let (index, mac) = link.with_context(|| {
            format!("there is no network interface \"{name}\"; check `interface` in the settings")
        })?;
        let mac = mac.with_context(|| format!("interface \"{name}\" is not Ethernet"))?;
        Ok(Self {
            name: name.to_owned(),
            index,
            mac: Mac(mac),
            addresses,
        })
    }
}

/// A datagram and how it came.
pub(super) struct Datagram {
    pub bytes: Vec<u8>,
    pub arrival: Arrival,
}

/// The server's two sockets.
#[derive(Debug)]
pub(super) struct ServerSocket {
    udp: UdpSocket,
    frames: Frames,
    interface: Interface,
    address: Ipv4Addr,
}

impl ServerSocket {
    /// Opens both sockets on the interface; answers come from `address`.
    pub fn bind(interface: Interface, address: Ipv4Addr) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
            .context("opening the DHCP socket")?;
        socket.set_nonblocking(true)?;
        socket
            .bind_device(Some(interface.name.as_bytes()))
            .with_context(|| {
                format!("binding to interface {} needs CAP_NET_RAW", interface.name)
            })?;
        setsockopt(&socket, Ipv4PacketInfo, &true).context("asking for packet addresses")?;
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT));
        socket.bind(&any.into()).with_context(|| {
            format!(
                "opening UDP port {SERVER_PORT} on {}: another DHCP server may be running on this \
                 host, or CAP_NET_BIND_SERVICE is missing",
                interface.name
            )
        })?;
        let udp = UdpSocket::from_std(socket.into())?;
        let frames = Frames::open(&interface, 0)?;
        Ok(Self {
            udp,
            frames,
            interface,
            address,
        })
    }

    /// Waits for datagrams and takes those that are there, at most `most`.
    pub async fn receive(&self, most: usize) -> io::Result<Vec<Datagram>> {
        loop {
            self.udp.readable().await?;
            let mut batch = Vec::new();
            while batch.len() < most {
                match self.udp.try_io(Interest::READABLE, || self.receive_one()) {
                    Ok(datagram) => batch.push(datagram),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if batch.is_empty() => return Err(error),
                    Err(_) => break,
                }
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn receive_one(&self) -> io::Result<Datagram> {
        let mut buffer = [0; LONGEST];
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        let (length, source, destination) = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = recvmsg::<SockaddrIn>(
                self.udp.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            )?;
            let destination = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)))
                }
                _ => None,
            });
            (message.bytes, message.address, destination)
        };
        let source = source.map_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), |address| {
            SocketAddrV4::new(address.ip(), address.port())
        });
        Ok(Datagram {
            bytes: buffer[..length].to_vec(),
            arrival: Arrival {
                source,
                unicast: destination == Some(self.address),
            },
        })
    }

    /// Sends an answer. A full queue is an error like any other: clients ask again.
    pub fn send(&self, payload: &[u8], to: Destination) -> io::Result<()> {
        let frame = |mac: Mac, address: Ipv4Addr| {
            let from = SocketAddrV4::new(self.address, SERVER_PORT);
            let to = SocketAddrV4::new(address, CLIENT_PORT);
            udp_frame((self.interface.mac, from), (mac, to), payload)
        };
        match to {
            Destination::Relay(relay) => {
                self.send_udp(payload, SocketAddrV4::new(relay, SERVER_PORT))
            }
            Destination::Client(address) => self.send_udp(payload, address),
            Destination::Link(mac, address) => self.frames.send(&frame(mac, address)?),
            Destination::Broadcast => self
                .frames
                .send(&frame(Mac([0xff; 6]), Ipv4Addr::BROADCAST)?),
        }
    }

    fn send_udp(&self, payload: &[u8], to: SocketAddrV4) -> io::Result<()> {
        let info = libc::in_pktinfo {
            ipi_ifindex: i32::try_from(self.interface.index).map_err(io::Error::other)?,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from(self.address).to_be(),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        self.udp.try_io(Interest::WRITABLE, || {
            sendmsg(
                self.udp.as_raw_fd(),
                &[IoSlice::new(payload)],
                &[ControlMessage::Ipv4PacketInfo(&info)],
                MsgFlags::MSG_DONTWAIT,
                Some(&SockaddrIn::from(to)),
            )
            .map(drop)
            .map_err(io::Error::from)
        })
    }
}

/// Whole Ethernet frames on one interface.
#[derive(Debug)]
pub(super) struct Frames {
    socket: AsyncFd<Socket>,
}

impl Frames {
    /// Opens a packet socket that hears frames of `ether_type`; 0 hears none.
    pub fn open(interface: &Interface, ether_type: u16) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))
            .context("opening a packet socket needs CAP_NET_RAW")?;
        socket.set_nonblocking(true)?;
        socket
            .bind(&link_address(interface, ether_type)?)
            .with_context(|| format!("binding a packet socket to {}", interface.name))?;
        // SAFETY: a `Socket` owns its descriptor and keeps it open and the same until it is dropped,
        // and nothing takes it out of the `AsyncFd`.
        let socket = unsafe { AsyncFd::register(socket) }
            .map_err(io::Error::from)
            .context("watching a packet socket")?;
        Ok(Self { socket })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(frame).map(drop)
    }

    /// Waits for one frame.
    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        self.socket
            .async_io(Interest::READABLE, |mut socket| {
                let mut buffer = [0; LONGEST];
                let length = io::Read::read(&mut socket, &mut buffer)?;
                Ok(buffer[..length].to_vec())
            })
            .await
    }
}

fn link_address(interface: &Interface, ether_type: u16) -> anyhow::Result<SockAddr> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: i32::try_from(interface.index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the closure writes one whole `sockaddr_ll` into storage that is large and aligned
    // enough for every kind of socket address, and sets its exact length.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
}

/// An Ethernet frame that holds one UDP datagram.
pub(super) fn udp_frame(
    from: (Mac, SocketAddrV4),
    to: (Mac, SocketAddrV4),
    payload: &[u8],
) -> io::Result<Vec<u8>> {
    const HOPS: u8 = 64;
    let builder = PacketBuilder::ethernet2(from.0.0, to.0.0)
        .ipv4(from.1.ip().octets(), to.1.ip().octets(), HOPS)
        .udp(from.1.port(), to.1.port());
    let mut frame = vec![0; builder.size(payload.len())];
    builder
        .write_to_slice(&mut frame, payload)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
    Ok(frame)
}
