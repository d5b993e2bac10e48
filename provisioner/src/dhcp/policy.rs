//! The decision: a request and what we know, in; an answer or silence, and what changes, out.
//!
//! Pure: packets, inventory, leases and the time come in as values. RFC 2131 section 4.3 is the
//! frame; where real clients and the RFC disagree, the comment says so.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anneal_protocol::dhcpv4::{BROADCAST, CLIENT_PORT, Message, MessageType, Op, Packet, code};
use anneal_protocol::machine::Mac;
use anneal_protocol::time::Millis;

use super::BootUrls;
use super::client::{self, Client};
use super::leases::{Change, Leases};
use super::reply;
use super::subnet::contains;
use crate::event::Event;
use crate::machine::{Cidr, Reservation, Snapshot};
use crate::settings::DhcpSettings;
use crate::store::{Lease, LeaseChange, LeaseState};

/// How long an offered address is held for the client.
const OFFER_HOLD: Duration = Duration::from_secs(60);
/// How long an address that a client found in use is given to nobody.
const QUARANTINE: Duration = Duration::from_secs(600);

/// What does not change while the server runs.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Our address on the interface, with the prefix of its subnet.
    pub address: Cidr,
    /// What the operator set.
    pub settings: DhcpSettings,
    /// Where boot files are.
    pub boot: BootUrls,
}

/// What is known when a packet arrives.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Rules of this server.
    pub rules: &'a Rules,
    /// The inventory.
    pub inventory: &'a Snapshot,
    /// The leases.
    pub leases: &'a Leases,
    /// How often this card's iPXE was given our iPXE lately, in other transactions.
    pub loaders_given: usize,
    /// Now.
    pub now: Millis,
}

/// How a packet arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// From where.
    pub source: SocketAddrV4,
    /// To our address rather than to everybody.
    pub unicast: bool,
}

/// What follows from a packet.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answer; none is silence.
    pub reply: Option<Reply>,
    /// Change of the leases, to be made (and stored) before the answer leaves.
    pub change: Option<Change>,
    /// What to record.
    pub note: Option<Note>,
    /// An iPXE was given our iPXE: to be counted against loops.
    pub gave_loader_to_ipxe: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its type.
    pub kind: MessageType,
    /// UDP payload.
    pub bytes: Vec<u8>,
    /// Where it goes.
    pub to: Destination,
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A relay, port 67.
    Relay(Ipv4Addr),
    /// A client that has its address.
    Client(SocketAddrV4),
    /// A client that cannot answer ARP yet: its card, at the address it is about to get.
    Link(Mac, Ipv4Addr),
    /// Everybody on the wire.
    Broadcast,
}

/// What is worth recording about a packet.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// Something happened with a machine.
    Event(Event),
    /// A packet went unanswered for a reason that an operator may want to know.
    Ignored {
        /// Who asked.
        mac: Mac,
        /// Its machine, if it is in the inventory.
        machine: Option<String>,
        /// Why there is no answer.
        reason: String,
    },
    /// The packet made no sense.
    Malformed,
}

/// One packet and everything known about it.
pub(super) struct Case<'a> {
    pub packet: &'a Packet,
    pub mac: Mac,
    pub arrival: Arrival,
    pub reservation: Option<&'a Reservation>,
    pub client: Client,
    pub view: &'a View<'a>,
}

/// Decides about one packet of `mac`.
#[must_use]
pub fn decide(packet: &Packet, mac: Mac, arrival: Arrival, view: &View<'_>) -> Outcome {
    let Some(kind) = packet.message_type().filter(|_| packet.op == Op::Request) else {
        return note(Note::Malformed);
    };
    let reservation = view.inventory.by_mac.get(&mac);
    if reservation.is_none() && !view.rules.settings.serve_unknown {
        return note(Note::Ignored {
            mac,
            machine: None,
            reason: "it is not in the inventory".to_owned(),
        });
    }
    let Ok(client) = client::recognise(packet, mac) else {
        return note(Note::Malformed);
    };
    let case = Case {
        packet,
        mac,
        arrival,
        reservation,
        client,
        view,
    };
    match kind {
        MessageType::Discover => case.discover(),
        MessageType::Request => case.request(),
        MessageType::Decline => case.decline(),
        MessageType::Release => case.release(),
        MessageType::Inform => case.inform(),
        MessageType::Offer | MessageType::Ack | MessageType::Nak => note(Note::Malformed),
    }
}

fn note(note: Note) -> Outcome {
    Outcome {
        note: Some(note),
        ..Outcome::default()
    }
}

impl Case<'_> {
    fn discover(&self) -> Outcome {
        let wish = self.packet.options.address(code::REQUESTED_ADDRESS);
        let address = match self.address(wish) {
            Ok(address) => address,
            Err(reason) => return self.ignored(reason),
        };
        let keeps = self.view.leases.of(self.mac).is_some_and(|lease| {
            lease.address == address.ip
                && lease.state == LeaseState::Bound
                && lease.expires_at > self.view.now
        });
        let hold = self.view.now.plus(OFFER_HOLD);
        let offer = || Change::Offer(self.lease(address.ip, LeaseState::Offered, hold));
        self.give(MessageType::Offer, address, (!keeps).then(offer))
    }

    fn request(&self) -> Outcome {
        let options = &self.packet.options;
        if let Some(server) = options.address(code::SERVER_ID)
            && !self.is_us(server)
        {
            return Outcome {
                change: Some(Change::Withdraw(self.mac)),
                ..Outcome::default()
            };
        }
        let selecting = options.address(code::SERVER_ID).is_some();
        let wanted = match options.address(code::REQUESTED_ADDRESS) {
            // Some clients name the address in both places while they renew.
            Some(address) if self.packet.ciaddr.is_unspecified() => address,
            _ => self.packet.ciaddr,
        };
        if wanted.is_unspecified() {
            return note(Note::Malformed);
        }
        match self.address(Some(wanted)) {
            Ok(address) if address.ip == wanted => {
                let expires = self.view.now.plus(self.view.rules.settings.lease);
                let lease = self.lease(wanted, LeaseState::Bound, expires);
                let change = Change::Store(LeaseChange::Set(lease));
                self.give(MessageType::Ack, address, Some(change))
            }
            Ok(address) => self.refuse(wanted, address.ip, selecting),
            Err(reason) => self.ignored(reason),
        }
    }

    /// The client wants an address that is not its own.
    fn refuse(&self, wanted: Ipv4Addr, own: Ipv4Addr, selecting: bool) -> Outcome {
        // Not chosen by the client, not sent to us: it may be another server's lease.
        if self.view.rules.settings.allow_foreign && !selecting && !self.arrival.unicast {
            return Outcome::default();
        }
        let text = format!("{wanted} is not yours, ask again");
        let mut message = Message::reply_to(self.packet, MessageType::Nak);
        if !self.packet.giaddr.is_unspecified() {
            // The client cannot be reached by unicast any more (RFC 2131 section 4.3.2).
            message.flags |= BROADCAST;
        }
        message
            .address(code::SERVER_ID, self.server_id())
            .optional(code::MESSAGE, text.as_bytes());
        let event = self.event(
            crate::event::kind::DHCP,
            format!("refused {wanted}: its address is {own}"),
            serde_json::json!({ "message": "nak", "stage": self.client.stage.word(), "address": wanted }),
        );
        self.answer(MessageType::Nak, &message, event)
    }

    fn decline(&self) -> Outcome {
        let Some(address) = self.own_address(self.packet.options.address(code::REQUESTED_ADDRESS))
        else {
            return Outcome::default();
        };
        Outcome {
            change: Some(Change::Store(LeaseChange::Quarantine {
                address,
                mac: self.mac,
                until: self.view.now.plus(QUARANTINE),
            })),
            note: Some(Note::Event(self.event(
                crate::event::kind::DHCP,
                format!(
                    "found {address} in use by something else; it is given to nobody for {} minutes",
                    QUARANTINE.as_secs() / 60
                ),
                serde_json::json!({ "message": "decline", "address": address }),
            ))),
            ..Outcome::default()
        }
    }

    fn release(&self) -> Outcome {
        let Some(address) = self.own_address(Some(self.packet.ciaddr)) else {
            return Outcome::default();
        };
        let lease = self.lease(address, LeaseState::Released, self.view.now);
        Outcome {
            change: Some(Change::Store(LeaseChange::Set(lease))),
            note: Some(Note::Event(self.event(
                crate::event::kind::DHCP,
                format!("released {address}"),
                serde_json::json!({ "message": "release", "address": address }),
            ))),
            ..Outcome::default()
        }
    }

    fn inform(&self) -> Outcome {
        if self.packet.ciaddr.is_unspecified() {
            return note(Note::Malformed);
        }
        let subnet = self
            .reservation
            .and_then(|reservation| reservation.address)
            .filter(|address| contains(*address, self.packet.ciaddr))
            .unwrap_or(self.view.rules.address);
        let mut message = Message::reply_to(self.packet, MessageType::Ack);
        message.ciaddr = self.packet.ciaddr;
        message.address(code::SERVER_ID, self.server_id());
        reply::network(&mut message, self, subnet);
        let event = self.event(
            crate::event::kind::DHCP,
            format!("asked for settings at {}", self.packet.ciaddr),
            serde_json::json!({ "message": "inform", "stage": self.client.stage.word(), "address": self.packet.ciaddr }),
        );
        self.answer(MessageType::Ack, &message, event)
    }

    /// Offers or grants an address, with everything that goes with it.
    fn give(&self, kind: MessageType, address: Cidr, change: Option<Change>) -> Outcome {
        let mut message = Message::reply_to(self.packet, kind);
        message.yiaddr = address.ip;
        if kind == MessageType::Ack {
            message.ciaddr = self.packet.ciaddr;
        }
        message.address(code::SERVER_ID, self.server_id());
        reply::times(&mut message, self.view.rules.settings.lease);
        reply::network(&mut message, self, address);
        let boot = reply::boot(&mut message, self);
        let event_kind = match kind {
            MessageType::Ack => crate::event::kind::DHCP_ACK,
            _ => crate::event::kind::DHCP,
        };
        let event = self.event(
            event_kind,
            reply::sentence(kind, address.ip, &self.client, &boot),
            serde_json::json!({
                "message": kind.name(),
                "stage": self.client.stage.word(),
                "address": address.ip,
                "arch": self.client.arch.map(client::arch_name),
                "boot_file": boot.file,
                "relay": Some(self.packet.giaddr).filter(|relay| !relay.is_unspecified()),
            }),
        );
        let mut outcome = self.answer(kind, &message, event);
        if outcome.reply.is_some() {
            outcome.change = change;
            outcome.gave_loader_to_ipxe = boot.loader_for_ipxe;
        }
        outcome
    }

    fn answer(&self, kind: MessageType, message: &Message, event: Event) -> Outcome {
        match message.encode_within(Message::limit_for(self.packet)) {
            Ok(bytes) => Outcome {
                reply: Some(Reply {
                    kind,
                    bytes,
                    to: self.destination(kind, message.yiaddr),
                }),
                note: Some(Note::Event(event)),
                ..Outcome::default()
            },
            Err(error) => self.ignored(error.to_string()),
        }
    }

    /// RFC 2131 section 4.1; NAKs go to everybody.
    fn destination(&self, kind: MessageType, given: Ipv4Addr) -> Destination {
        let packet = self.packet;
        let discover = packet.message_type() == Some(MessageType::Discover);
        if !packet.giaddr.is_unspecified() {
            Destination::Relay(packet.giaddr)
        } else if kind == MessageType::Nak {
            Destination::Broadcast
        } else if !packet.ciaddr.is_unspecified() && !discover {
            let source = self.arrival.source;
            let port = if *source.ip() == packet.ciaddr {
                source.port()
            } else {
                CLIENT_PORT
            };
            Destination::Client(SocketAddrV4::new(packet.ciaddr, port))
        } else if packet.flags & BROADCAST != 0 || given.is_unspecified() {
            Destination::Broadcast
        } else {
            Destination::Link(self.mac, given)
        }
    }

    /// `address`, if the client speaks to us and has it from us.
    fn own_address(&self, address: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let server = self.packet.options.address(code::SERVER_ID)?;
        let lease = self.view.leases.of(self.mac)?;
        let holds = lease.state != LeaseState::Released;
        (self.is_us(server) && holds && Some(lease.address) == address).then_some(lease.address)
    }

    fn lease(&self, address: Ipv4Addr, state: LeaseState, expires_at: Millis) -> Lease {
        let options = &self.packet.options;
        Lease {
            mac: self.mac,
            address,
            state,
            client_id: options.get(code::CLIENT_ID).map(<[u8]>::to_vec),
            hostname: options.get(code::HOST_NAME).map(printable),
            expires_at,
        }
    }

    fn event(&self, kind: &str, message: String, mut data: serde_json::Value) -> Event {
        data["mac"] = self.mac.to_string().into();
        let event = Event::new(kind, format!("{}: {message}", self.mac)).data(data);
        match self.reservation {
            Some(reservation) => event.machine(&reservation.machine),
            None => event,
        }
    }

    fn ignored(&self, reason: String) -> Outcome {
        note(Note::Ignored {
            mac: self.mac,
            machine: self.reservation.map(|r| r.machine.clone()),
            reason,
        })
    }
}

/// Text from the wire, fit for a database and a terminal.
fn printable(data: &[u8]) -> String {
    data.iter()
        .take(64)
        .take_while(|byte| **byte != 0)
        .map(|byte| {
            if byte.is_ascii_graphic() {
                char::from(*byte)
            } else {
                '?'
            }
        })
        .collect()
}
