//! Tables for the decision, and the little world they are asked in.

mod address;
mod boot;
mod lease;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anneal_protocol::dhcpv4::{BROADCAST, Message, MessageType, Packet, code, encapsulated};
use anneal_protocol::machine::Mac;
use anneal_protocol::time::Millis;

use super::BootUrls;
use super::leases::{Change, Leases};
use super::policy::{Arrival, Destination, Note, Outcome, Reply, Rules, View, decide};
use crate::machine::{Cidr, Reservation, Snapshot};
use crate::settings::DhcpSettings;
use crate::store::{Lease, LeaseChange, LeaseState};

/// r1n1's boot card.
const BOOT: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
/// r1n1's other card, with an address.
const OTHER: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 2]);
/// r2n1's boot card, behind a relay.
const FAR: Mac = Mac([0x52, 0x54, 0, 0xbb, 0, 1]);
/// r1n2's boot card, without a reserved address.
const POOLED: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 3]);
/// In nobody's inventory.
const STRANGER: Mac = Mac([0x52, 0x54, 0, 0xff, 0, 9]);
/// A Raspberry Pi's card.
const PI: Mac = Mac([0xdc, 0xa6, 0x32, 0, 0, 1]);

const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const HOME: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const AWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

const PXE_BIOS: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";
const PXE_EFI: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";
const HTTP_EFI: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";

/// A server with its inventory and leases, at a moment.
struct World {
    rules: Rules,
    inventory: Snapshot,
    leases: Leases,
    now: Millis,
}

impl World {
    fn new() -> Self {
        let mut inventory = Snapshot::default();
        for (mac, machine, address, boot) in [
            (BOOT, "r1n1", Some(HOME), true),
            (OTHER, "r1n1", Some(Ipv4Addr::new(10, 77, 0, 21)), false),
            (FAR, "r2n1", Some(AWAY), true),
            (POOLED, "r1n2", None, true),
            (PI, "pi", Some(Ipv4Addr::new(10, 77, 0, 31)), true),
        ] {
            let address = address.map(|ip| Cidr { ip, prefix: 24 });
            inventory.by_mac.insert(
                mac,
                Reservation {
                    machine: machine.to_owned(),
                    address,
                    boot,
                },
            );
        }
        Self {
            rules: Rules {
                address: Cidr { ip: US, prefix: 24 },
                settings: DhcpSettings {
                    pool: None,
                    serve_unknown: false,
                    router: Some(ROUTER),
                    dns: vec![US],
                    lease: Duration::from_secs(3600),
                    allow_foreign: false,
                },
                boot: BootUrls {
                    tftp: US,
                    boot_http: "http://10.77.0.1:8080".to_owned(),
                },
            },
            inventory,
            leases: Leases::default(),
            now: Millis(1_000_000),
        }
    }

    fn with_pool(first: u8, last: u8) -> Self {
        let mut world = Self::new();
        let end = |host| Ipv4Addr::new(10, 77, 0, host);
        world.rules.settings.pool = Some((end(first), end(last)));
        world
    }

    /// What the server would do, without doing it.
    fn look(&self, ask: &Ask, loaders_given: usize) -> Outcome {
        let packet = Packet::parse(&ask.message.encode()).unwrap();
        let view = View {
            rules: &self.rules,
            inventory: &self.inventory,
            leases: &self.leases,
            loaders_given,
            now: self.now,
        };
        let arrival = Arrival {
            source: SocketAddrV4::new(ask.source.0, ask.source.1),
            unicast: ask.unicast,
        };
        decide(&packet, ask.mac, arrival, &view)
    }

    /// Decides and carries the change out.
    fn ask(&mut self, ask: &Ask) -> Outcome {
        let outcome = self.look(ask, 0);
        if let Some(change) = &outcome.change {
            self.leases.apply(change);
        }
        outcome
    }

    fn holds(&self, mac: Mac) -> Option<(Ipv4Addr, LeaseState)> {
        self.leases
            .of(mac)
            .map(|lease| (lease.address, lease.state))
    }
}

/// A packet to be asked.
#[derive(Clone)]
struct Ask {
    mac: Mac,
    message: Message,
    source: (Ipv4Addr, u16),
    unicast: bool,
}

fn ask(mac: Mac, kind: MessageType) -> Ask {
    Ask {
        mac,
        message: Message::request(kind, mac, 77),
        source: (NONE, 68),
        unicast: false,
    }
}

fn discover(mac: Mac) -> Ask {
    ask(mac, MessageType::Discover)
}

/// A REQUEST that takes an offer of `server`.
fn select(mac: Mac, address: Ipv4Addr, server: Ipv4Addr) -> Ask {
    ask(mac, MessageType::Request)
        .option(50, address.octets())
        .option(54, server.octets())
}

fn renew(mac: Mac, address: Ipv4Addr) -> Ask {
    let mut ask = ask(mac, MessageType::Request);
    ask.message.ciaddr = address;
    ask.source = (address, 68);
    ask.unicast = true;
    ask
}

impl Ask {
    fn option(mut self, code: u8, data: impl Into<Vec<u8>>) -> Self {
        self.message.option(code, data);
        self
    }

    fn flags(mut self, flags: u16) -> Self {
        self.message.flags = flags;
        self
    }

    fn relay(mut self, relay: Ipv4Addr) -> Self {
        self.message.giaddr = relay;
        self.source = (relay, 67);
        self.unicast = true;
        self
    }

    fn pxe(self, class: &[u8], arch: u16) -> Self {
        self.option(60, class)
            .option(93, arch.to_be_bytes())
            .option(97, [0; 17])
    }

    fn ipxe(self, features: &[u8]) -> Self {
        self.pxe(PXE_EFI, 7)
            .option(77, *b"iPXE")
            .option(175, features)
    }
}

fn reply(outcome: &Outcome) -> (&Reply, Packet) {
    let reply = outcome.reply.as_ref().expect("a reply");
    (reply, Packet::parse(&reply.bytes).unwrap())
}

/// Silence, and why.
fn silence(outcome: &Outcome) -> String {
    assert!(outcome.reply.is_none(), "{outcome:?}");
    match &outcome.note {
        Some(Note::Ignored { reason, .. }) => reason.clone(),
        Some(Note::Malformed) => "malformed".to_owned(),
        other => format!("{other:?}"),
    }
}

fn text(packet: &Packet, tag: u8) -> Option<&str> {
    packet
        .options
        .get(tag)
        .map(|data| std::str::from_utf8(data).unwrap())
}
