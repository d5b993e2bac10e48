//! Looks for other DHCP servers on the wire before we start to answer there.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anneal_protocol::dhcpv4::{
    BROADCAST, CLIENT_PORT, Message, MessageType, Op, Packet, SERVER_PORT, code,
};
use anneal_protocol::machine::Mac;
use anyhow::Context;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use tokio::time::{Instant, timeout_at};

use super::socket::{Frames, Interface, udp_frame};

/// How long servers have to answer: some look for the address on the wire first, for up to three
/// seconds.
const WAIT: Duration = Duration::from_millis(4_500);
/// The question is asked again after this time: switches drop frames while a port comes up.
const AGAIN: Duration = Duration::from_millis(1_500);
const ETHERTYPE_IPV4: u16 = 0x0800;

/// Another server that answers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignServer {
    /// Who it says it is (option 54), else where the packet came from.
    pub server: Ipv4Addr,
    /// Address it offered; none from a proxy DHCP server, which offers boot files only.
    pub offered: Option<Ipv4Addr>,
}

/// Asks on `interface`, as the client `mac`, who else serves DHCP or PXE there. Needs neither an
/// address on the interface nor a free port. Answers of this host are not foreign.
///
/// # Errors
/// When the interface does not exist or frames cannot be sent on it.
pub async fn foreign_server(interface: &str, mac: Mac) -> anyhow::Result<Option<ForeignServer>> {
    let ours = own_addresses()?;
    let interface = Interface::find(interface)?;
    let frames = Frames::open(&interface, ETHERTYPE_IPV4)?;
    let xid = u32::from_be_bytes(random()?);
    let questions = [plain(mac, xid), pxe(mac, xid.wrapping_add(1))];
    let end = Instant::now() + WAIT;
    let mut ask_at = Instant::now();
    loop {
        if Instant::now() >= ask_at {
            for question in &questions {
                ask(&frames, &interface, question)
                    .with_context(|| format!("asking for DHCP servers on {}", interface.name))?;
            }
            ask_at = Instant::now() + AGAIN;
        }
        match timeout_at(ask_at.min(end), frames.receive()).await {
            Ok(frame) => {
                let frame = frame.with_context(|| format!("listening on {}", interface.name))?;
                if let Some(found) = offer(&frame, mac, xid)
                    && !ours.contains(&found.server)
                {
                    return Ok(Some(found));
                }
            }
            Err(_) if Instant::now() >= end => return Ok(None),
            Err(_) => (),
        }
    }
}

fn own_addresses() -> anyhow::Result<HashSet<Ipv4Addr>> {
    Ok(nix::ifaddrs::getifaddrs()
        .context("listing network interfaces")?
        .filter_map(|entry| Some(entry.address?.as_sockaddr_in()?.ip()))
        .collect())
}

fn random() -> anyhow::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(bytes)
}

/// What any client would ask.
fn plain(mac: Mac, xid: u32) -> Vec<u8> {
    discover(mac, xid).encode()
}

/// What firmware would ask: proxy DHCP servers answer nothing else.
fn pxe(mac: Mac, xid: u32) -> Vec<u8> {
    let mut message = discover(mac, xid);
    message
        .option(code::VENDOR_CLASS, *b"PXEClient:Arch:00007:UNDI:003016")
        .option(code::ARCHITECTURE, [0, 7])
        .option(94, [1, 3, 16])
        .option(code::MACHINE_ID, [0; 17]);
    message.encode()
}

fn discover(mac: Mac, xid: u32) -> Message {
    let mut message = Message::request(MessageType::Discover, mac, xid);
    message.flags = BROADCAST;
    message.option(
        code::PARAMETERS,
        [
            code::SUBNET_MASK,
            code::ROUTER,
            code::SERVER_ID,
            code::BOOT_FILE,
        ],
    );
    message
}

fn ask(frames: &Frames, interface: &Interface, question: &[u8]) -> io::Result<()> {
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    // From the card's own address: a switch may refuse another one.
    let frame = udp_frame((interface.mac, from), (Mac([0xff; 6]), to), question)?;
    frames.send(&frame)
}

/// Reads a frame as an answer to one of the two questions.
fn offer(frame: &[u8], mac: Mac, xid: u32) -> Option<ForeignServer> {
    let parts = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (parts.net, parts.transport)
    else {
        return None;
    };
    if udp.destination_port() != CLIENT_PORT {
        return None;
    }
    let packet = Packet::parse(udp.payload()).ok()?;
    let ours = packet.xid == xid || packet.xid == xid.wrapping_add(1);
    if packet.op != Op::Reply || !ours || packet.mac() != Some(mac) {
        return None;
    }
    let source = ip.header().source_addr();
    Some(ForeignServer {
        server: packet.options.address(code::SERVER_ID).unwrap_or(source),
        offered: Some(packet.yiaddr).filter(|address| !address.is_unspecified()),
    })
}
