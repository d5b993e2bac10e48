//! Tables for the decision, in the order of the boot: addressing, leases, relays, boot files.

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

// Addressing.

#[test]
fn an_offer_goes_where_the_client_can_hear_it() {
    let mut world = World::new();
    let cases = [
        (discover(BOOT), Destination::Link(BOOT, HOME)),
        (discover(BOOT).flags(BROADCAST), Destination::Broadcast),
        (discover(FAR).relay(RELAY), Destination::Relay(RELAY)),
        (
            discover(FAR).relay(RELAY).flags(BROADCAST),
            Destination::Relay(RELAY),
        ),
    ];
    for (ask, to) in cases {
        let outcome = world.ask(&ask);
        let (reply, packet) = reply(&outcome);
        assert_eq!(reply.to, to);
        assert_eq!(packet.flags, ask.message.flags);
        assert_eq!(packet.giaddr, ask.message.giaddr);
        assert_eq!(packet.options.address(code::SERVER_ID), Some(US));
    }
}

#[test]
fn an_offer_says_everything_about_the_network() {
    let outcome = World::new().ask(&discover(BOOT).option(55, [12, 28]));
    let (reply, packet) = reply(&outcome);
    assert_eq!(reply.kind, MessageType::Offer);
    assert_eq!(packet.yiaddr, HOME);
    let options = &packet.options;
    assert_eq!(options.u32(code::LEASE_TIME), Some(3600));
    assert_eq!(options.u32(code::RENEWAL), Some(1800));
    assert_eq!(options.u32(code::REBINDING), Some(3150));
    assert_eq!(
        options.address(code::SUBNET_MASK),
        Some(Ipv4Addr::new(255, 255, 255, 0))
    );
    assert_eq!(options.address(code::ROUTER), Some(ROUTER));
    assert_eq!(options.addresses(code::DNS), [US]);
    assert_eq!(text(&packet, code::HOST_NAME), Some("r1n1"));
    assert_eq!(
        options.address(code::BROADCAST_ADDRESS),
        Some(Ipv4Addr::new(10, 77, 0, 255))
    );
}

#[test]
fn a_buggy_ciaddr_in_a_discover_changes_nothing() {
    let mut ask = discover(BOOT);
    ask.message.ciaddr = Ipv4Addr::new(192, 168, 1, 9);
    let outcome = World::new().ask(&ask);
    assert_eq!(reply(&outcome).0.to, Destination::Link(BOOT, HOME));
}

#[test]
fn renewals_are_answered_at_the_client_address_and_port() {
    let mut world = World::new();
    for (source, to) in [
        ((HOME, 68), SocketAddrV4::new(HOME, 68)),
        ((HOME, 4068), SocketAddrV4::new(HOME, 4068)),
        (
            (Ipv4Addr::new(10, 77, 0, 99), 4068),
            SocketAddrV4::new(HOME, 68),
        ),
    ] {
        let mut ask = renew(BOOT, HOME);
        ask.source = source;
        let outcome = world.ask(&ask);
        let (reply, packet) = reply(&outcome);
        assert_eq!(
            (reply.kind, reply.to),
            (MessageType::Ack, Destination::Client(to))
        );
        assert_eq!((packet.ciaddr, packet.yiaddr), (HOME, HOME));
    }
}

#[test]
fn inform_is_answered_without_an_address_or_times() {
    let mut ask = ask(BOOT, MessageType::Inform);
    assert_eq!(silence(&World::new().ask(&ask)), "malformed");
    ask.message.ciaddr = HOME;
    let outcome = World::new().ask(&ask);
    let (reply, packet) = reply(&outcome);
    assert_eq!(reply.to, Destination::Client(SocketAddrV4::new(HOME, 68)));
    assert_eq!(packet.yiaddr, NONE);
    assert_eq!(packet.options.address(code::SERVER_ID), Some(US));
    for absent in [code::LEASE_TIME, code::RENEWAL, code::REBINDING] {
        assert_eq!(packet.options.get(absent), None);
    }
    assert!(outcome.change.is_none());
}

#[test]
fn rapid_commit_is_not_taken() {
    let outcome = World::new().ask(&discover(BOOT).option(code::RAPID_COMMIT, []));
    let (reply, packet) = reply(&outcome);
    assert_eq!(reply.kind, MessageType::Offer);
    assert_eq!(packet.options.get(code::RAPID_COMMIT), None);
}

#[test]
fn answers_fit_the_client() {
    let mut world = World::new();
    world.rules.settings.dns = (1..=200)
        .map(|host| Ipv4Addr::new(10, 0, 0, host))
        .collect();
    let small = world.look(&discover(BOOT), 0);
    assert!(silence(&small).contains("does not fit"));
    let large = world.look(
        &discover(BOOT).option(code::MAX_SIZE, 1472_u16.to_be_bytes()),
        0,
    );
    assert!(reply(&large).0.bytes.len() <= 1444);
    let long = [vec![b'x'; 255], vec![b'y'; 255]].concat();
    let outcome = World::new().ask(&discover(BOOT).option(code::CLIENT_ID, long));
    let (reply, packet) = reply(&outcome);
    assert!((300..=548).contains(&reply.bytes.len()));
    assert_eq!(
        packet.options.get(code::CLIENT_ID),
        None,
        "left out, not cut"
    );
}

// Leases.

#[test]
fn every_stage_gets_the_same_address_and_there_is_one_lease() {
    for mut world in [World::new(), World::with_pool(100, 110)] {
        let mac = if world.rules.settings.pool.is_some() {
            POOLED
        } else {
            BOOT
        };
        let ids: [&[u8]; 4] = [
            b"",
            b"\x01\x52\x54\0\xaa\0\x01",
            b"\xff\0\0\0\x01duid",
            b"\xffother",
        ];
        let mut given = Vec::new();
        for id in ids {
            let with_id = |ask: Ask| {
                if id.is_empty() {
                    ask
                } else {
                    ask.option(61, id)
                }
            };
            let offer = world.ask(&with_id(discover(mac)));
            let address = reply(&offer).1.yiaddr;
            let ack = world.ask(&with_id(select(mac, address, US)));
            let (reply, packet) = reply(&ack);
            assert_eq!((reply.kind, packet.yiaddr), (MessageType::Ack, address));
            assert_eq!(packet.options.get(61).unwrap_or_default(), id);
            given.push(address);
            world.now = world.now.plus(Duration::from_secs(30));
        }
        assert!(
            given.iter().all(|address| *address == given[0]),
            "{given:?}"
        );
        let lease = world.leases.of(mac).unwrap();
        assert_eq!(lease.client_id.as_deref(), Some(ids[3]));
    }
}

#[test]
fn a_grant_is_stored_with_its_end() {
    let mut world = World::new();
    let outcome = world.ask(&select(BOOT, HOME, US).option(12, *b"r1n1\xff\x1b"));
    let Some(Change::Store(LeaseChange::Set(lease))) = outcome.change else {
        panic!("{:?}", outcome.change);
    };
    assert_eq!((lease.address, lease.state), (HOME, LeaseState::Bound));
    assert_eq!(lease.expires_at, world.now.plus(Duration::from_secs(3600)));
    assert_eq!(lease.hostname.as_deref(), Some("r1n1??"));
}

#[test]
fn an_offer_does_not_take_a_grant_back() {
    let mut world = World::new();
    world.ask(&select(BOOT, HOME, US));
    assert_eq!(world.ask(&discover(BOOT)).change, None);
    assert_eq!(world.holds(BOOT), Some((HOME, LeaseState::Bound)));
}

#[test]
fn taking_another_server_frees_our_offer() {
    let mut world = World::with_pool(100, 100);
    world.ask(&discover(POOLED));
    assert!(world.holds(POOLED).is_some());
    let foreign = Ipv4Addr::new(10, 77, 0, 2);
    let outcome = world.ask(&select(POOLED, Ipv4Addr::new(10, 77, 0, 200), foreign));
    assert!(outcome.reply.is_none());
    assert_eq!(world.holds(POOLED), None);
}

#[test]
fn rebooting_and_rebinding_clients() {
    let world = World::new();
    let wrong = Ipv4Addr::new(192, 168, 1, 7);
    let reboot =
        |mac, address: Ipv4Addr| ask(mac, MessageType::Request).option(50, address.octets());
    let rebind = |address| Ask {
        unicast: false,
        ..renew(BOOT, address)
    };
    for (ask, kind) in [
        (reboot(BOOT, HOME), Some(MessageType::Ack)),
        (reboot(BOOT, wrong), Some(MessageType::Nak)),
        (reboot(STRANGER, wrong), None),
        (renew(BOOT, HOME), Some(MessageType::Ack)),
        (renew(BOOT, wrong), Some(MessageType::Nak)),
        (renew(STRANGER, wrong), None),
        (rebind(HOME), Some(MessageType::Ack)),
        (rebind(wrong), Some(MessageType::Nak)),
        (select(BOOT, wrong, US), Some(MessageType::Nak)),
        (ask(BOOT, MessageType::Request), None),
    ] {
        let outcome = world.look(&ask, 0);
        assert_eq!(
            outcome.reply.map(|reply| reply.kind),
            kind,
            "{:?}",
            ask.message
        );
    }
    // Where other servers may answer, an address that we know nothing of may be theirs.
    let mut polite = World::new();
    polite.rules.settings.allow_foreign = true;
    for ask in [reboot(BOOT, wrong), rebind(wrong)] {
        assert!(polite.look(&ask, 0).reply.is_none());
    }
    assert!(polite.look(&renew(BOOT, wrong), 0).reply.is_some());
}

#[test]
fn a_refusal_is_for_everybody_and_through_the_relay_with_the_flag() {
    let wrong = Ipv4Addr::new(192, 168, 1, 7);
    let outcome = World::new().ask(&select(BOOT, wrong, US));
    let (near, packet) = reply(&outcome);
    assert_eq!(near.to, Destination::Broadcast);
    assert_eq!(
        (packet.yiaddr, packet.siaddr, packet.ciaddr),
        (NONE, NONE, NONE)
    );
    assert_eq!(packet.options.get(code::LEASE_TIME), None);
    assert!(outcome.change.is_none());
    let outcome = World::new().ask(&select(FAR, wrong, US).relay(RELAY));
    let (far, packet) = reply(&outcome);
    assert_eq!(far.to, Destination::Relay(RELAY));
    assert_eq!(packet.flags, BROADCAST);
}

#[test]
fn a_declined_address_is_given_to_nobody_for_a_while() {
    for mut world in [World::new(), World::with_pool(100, 100)] {
        let mac = if world.rules.settings.pool.is_some() {
            POOLED
        } else {
            BOOT
        };
        let offer = world.ask(&discover(mac));
        let address = reply(&offer).1.yiaddr;
        world.ask(&select(mac, address, US));
        let decline = |mac, server: Ipv4Addr| {
            ask(mac, MessageType::Decline)
                .option(50, address.octets())
                .option(54, server.octets())
        };
        // Neither another card's word nor one for another server counts.
        for ask in [
            decline(OTHER, US),
            decline(mac, Ipv4Addr::new(10, 77, 0, 2)),
        ] {
            assert_eq!(world.ask(&ask).change, None);
        }
        let outcome = world.ask(&decline(mac, US));
        assert!(outcome.reply.is_none());
        let Some(Note::Event(event)) = outcome.note else {
            panic!("no event");
        };
        assert!(
            event.message.contains("in use by something else"),
            "{}",
            event.message
        );
        assert!(world.look(&discover(mac), 0).reply.is_none());
        assert!(world.look(&select(mac, address, US), 0).reply.is_none());
        world.now = world.now.plus(Duration::from_secs(600));
        let offer = world.ask(&discover(mac));
        assert_eq!(reply(&offer).1.yiaddr, address);
    }
}

#[test]
fn a_released_address_is_free_and_comes_back() {
    let mut world = World::with_pool(100, 101);
    let offer = world.ask(&discover(POOLED));
    let address = reply(&offer).1.yiaddr;
    world.ask(&select(POOLED, address, US));
    let mut release = ask(POOLED, MessageType::Release).option(54, US.octets());
    release.message.ciaddr = address;
    let outcome = world.ask(&release);
    assert!(outcome.reply.is_none());
    assert_eq!(world.holds(POOLED), Some((address, LeaseState::Released)));
    assert_eq!(world.leases.held_by_other(address, BOOT, world.now), None);
    let again = world.ask(&discover(POOLED));
    assert_eq!(reply(&again).1.yiaddr, address);
}

#[test]
fn the_pool_gives_each_client_its_own_until_it_is_empty() {
    let mut world = World::with_pool(11, 13);
    world.rules.settings.serve_unknown = true;
    let card = |n| Mac([2, 0, 0, 0, 0, n]);
    let mut given = Vec::new();
    for n in 0..3 {
        let outcome = world.ask(&discover(card(n)));
        given.push(
            outcome
                .reply
                .map(|r| Packet::parse(&r.bytes).unwrap().yiaddr.octets()[3]),
        );
    }
    // .11 is reserved for r1n1.
    assert_eq!(given, [Some(12), Some(13), None]);
    world.now = world.now.plus(Duration::from_secs(61));
    let late = world.ask(&discover(card(2)));
    assert!(
        late.reply.is_some(),
        "offers that nobody took are free again"
    );
}

#[test]
fn a_reservation_beats_an_older_lease() {
    let mut world = World::new();
    world.leases.apply(&Change::Store(LeaseChange::Set(Lease {
        mac: STRANGER,
        address: HOME,
        state: LeaseState::Bound,
        client_id: None,
        hostname: None,
        expires_at: world.now.plus(Duration::from_secs(60)),
    })));
    let offer = world.ask(&discover(BOOT));
    assert_eq!(reply(&offer).1.yiaddr, HOME);
    assert_eq!(world.holds(STRANGER), None);
}

#[test]
fn whoever_cannot_be_served_is_told_about_not_answered() {
    let mut world = World::new();
    assert!(silence(&world.ask(&discover(STRANGER))).contains("not in the inventory"));
    assert!(silence(&world.ask(&discover(POOLED))).contains("no pool"));
    assert!(silence(&world.ask(&discover(FAR))).contains("not in the subnet of 10.77.0.1"));
    let elsewhere = discover(BOOT).relay(RELAY);
    assert!(silence(&world.ask(&elsewhere)).contains("not in the subnet of 10.88.0.1"));
    for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak] {
        assert_eq!(silence(&world.ask(&ask(BOOT, kind))), "malformed");
    }
}

#[test]
fn garbage_is_counted_and_not_answered() {
    let mut world = World::new();
    for (tag, data) in [(93_u8, &[][..]), (93, &[7]), (97, &[0, 1, 2, 3, 4])] {
        let ask = discover(BOOT).option(60, PXE_EFI).option(tag, data);
        assert_eq!(silence(&world.ask(&ask)), "malformed", "{tag}");
    }
    let mut reply = discover(BOOT);
    reply.message.op = anneal_protocol::dhcpv4::Op::Reply;
    assert_eq!(silence(&world.ask(&reply)), "malformed");
}

// Relays.

#[test]
fn relayed_clients_get_their_own_subnet_and_the_relay_its_information_back() {
    let information: &[u8] = &[1, 4, b'e', b't', b'h', b'1', 2, 2, 9, 9, 1, 1, 7];
    let mut world = World::new();
    let outcome = world.ask(&discover(FAR).relay(RELAY).option(82, information));
    let (reply, packet) = reply(&outcome);
    assert_eq!((packet.yiaddr, packet.giaddr), (AWAY, RELAY));
    assert_eq!(packet.options.get(82), Some(information));
    let (last, _) = packet.options.iter().last().unwrap();
    assert_eq!(last, 82);
    assert!(
        reply
            .bytes
            .windows(information.len())
            .any(|window| window == information)
    );
    // Our router is not in that subnet, so it is not announced there.
    assert_eq!(packet.options.get(code::ROUTER), None);
    // The client later renews without the relay.
    let outcome = world.ask(&renew(FAR, AWAY));
    assert_eq!(
        outcome.reply.map(|reply| reply.kind),
        Some(MessageType::Ack)
    );
}

#[test]
fn link_selection_goes_before_subnet_selection_before_the_relay() {
    let link = |last: u8| vec![5, 4, 10, 88, 0, last];
    let strange = Ipv4Addr::new(172, 16, 0, 1);
    let world = World::new();
    for (ask, offered) in [
        (discover(FAR).relay(strange), false),
        (discover(FAR).relay(strange).option(82, link(0)), true),
        (
            discover(FAR).relay(strange).option(118, AWAY.octets()),
            true,
        ),
        (
            discover(FAR).relay(RELAY).option(118, strange.octets()),
            false,
        ),
        (
            discover(FAR)
                .relay(strange)
                .option(118, strange.octets())
                .option(82, link(0)),
            true,
        ),
    ] {
        assert_eq!(
            world.look(&ask, 0).reply.is_some(),
            offered,
            "{:?}",
            ask.message
        );
    }
}

#[test]
fn the_relay_may_choose_our_identity() {
    let mut world = World::new();
    let other = Ipv4Addr::new(10, 88, 0, 250);
    let information = [&[11, 4][..], &other.octets()].concat();
    let outcome = world.ask(&discover(FAR).relay(RELAY).option(82, information.clone()));
    assert_eq!(reply(&outcome).1.options.address(54), Some(other));
    let outcome = world.ask(
        &select(FAR, AWAY, other)
            .relay(RELAY)
            .option(82, information),
    );
    assert_eq!(
        outcome.reply.map(|reply| reply.kind),
        Some(MessageType::Ack)
    );
    assert!(
        world
            .ask(&select(FAR, AWAY, other).relay(RELAY))
            .reply
            .is_none()
    );
}

// Boot files.

#[test]
fn firmware_gets_its_loader_in_every_field_that_it_may_read() {
    for (class, arch, file) in [
        (PXE_BIOS, 0, "undionly.kpxe"),
        (PXE_EFI, 7, "snponly.efi"),
        (PXE_EFI, 9, "snponly.efi"),
        (PXE_EFI, 11, "ipxe-arm64.efi"),
    ] {
        let ask = discover(BOOT).pxe(class, arch).option(55, [66, 67, 150]);
        let outcome = World::new().ask(&ask);
        let (_, packet) = reply(&outcome);
        assert_eq!(packet.file, file.as_bytes());
        assert_eq!(text(&packet, 67), Some(format!("{file}\0").as_str()));
        assert_eq!(packet.siaddr, US);
        assert_eq!(text(&packet, 66), Some("10.77.0.1\0"));
        assert_eq!(packet.options.address(150), Some(US));
        // Without option 60 nobody looks for a boot server on port 4011.
        assert_eq!(packet.options.get(60), None);
        assert_eq!(packet.options.get(43), None);
        assert_eq!(packet.options.get(175), None);
    }
}

#[test]
fn a_request_gets_the_boot_file_too() {
    let outcome = World::new().ask(&select(BOOT, HOME, US).pxe(PXE_EFI, 7));
    let (_, packet) = reply(&outcome);
    assert_eq!(packet.boot_file(), Some(&b"snponly.efi"[..]));
    let Some(Note::Event(event)) = outcome.note else {
        panic!("no event");
    };
    assert_eq!(event.kind, "dhcp.ack");
    assert_eq!(event.machine.as_deref(), Some("r1n1"));
    assert_eq!(event.data["stage"], "firmware");
    assert_eq!(event.data["address"], "10.77.0.11");
    assert_eq!(event.data["arch"], "efi-x64");
    assert_eq!(event.data["boot_file"], "snponly.efi");
}

#[test]
fn uefi_http_clients_are_answered_in_their_class_with_a_url() {
    let outcome = World::new().ask(&discover(BOOT).pxe(HTTP_EFI, 16));
    let (_, packet) = reply(&outcome);
    assert_eq!(text(&packet, 60), Some("HTTPClient"));
    assert_eq!(
        text(&packet, 67),
        Some("http://10.77.0.1:8080/boot/snponly.efi\0")
    );
}

#[test]
fn ipxe_gets_its_script_and_need_not_wait_for_others() {
    let url = "http://10.77.0.1:8080/boot/script/52-54-00-aa-00-01";
    let mut world = World::new();
    let ask = discover(BOOT).ipxe(&[19, 1, 1]);
    let outcome = world.look(&ask, 0);
    let (_, packet) = reply(&outcome);
    assert_eq!(packet.boot_file(), Some(url.as_bytes()));
    let encapsulated = encapsulated(packet.options.get(175).unwrap(), 176);
    assert_eq!(encapsulated, Some(&[1_u8][..]));
    world.rules.settings.allow_foreign = true;
    assert_eq!(reply(&world.look(&ask, 0)).1.options.get(175), None);
    // iPXE puts its progress into `secs`.
    let mut late = ask;
    late.message.secs = 0xffff;
    assert_eq!(
        reply(&world.look(&late, 0)).1.boot_file(),
        Some(url.as_bytes())
    );
}

#[test]
fn an_ipxe_without_http_is_replaced_but_not_for_ever() {
    let world = World::new();
    let ask = discover(BOOT).ipxe(&[21, 1, 1]);
    for (given, file) in [(0, true), (1, true), (2, false), (9, false)] {
        let outcome = world.look(&ask, given);
        assert_eq!(reply(&outcome).1.boot_file().is_some(), file, "{given}");
        assert_eq!(outcome.gave_loader_to_ipxe, file);
    }
    // With HTTP there is no loop to be broken.
    let outcome = world.look(&discover(BOOT).ipxe(&[19, 1, 1]), 9);
    assert!(reply(&outcome).1.boot_file().is_some());
    assert!(!outcome.gave_loader_to_ipxe);
}

#[test]
fn whoever_has_no_boot_file_still_has_an_address() {
    let mut world = World::with_pool(100, 110);
    world.rules.settings.serve_unknown = true;
    for (ask, why) in [
        (discover(OTHER).pxe(PXE_EFI, 7), "it is not the boot card"),
        (
            discover(STRANGER).pxe(PXE_EFI, 7),
            "it is not in the inventory",
        ),
        (
            discover(BOOT).pxe(PXE_EFI, 27),
            "no boot file for architecture 27 (riscv)",
        ),
        (
            discover(PI).pxe(PXE_BIOS, 0),
            "Raspberry Pi boot loader is not supported",
        ),
    ] {
        let outcome = world.ask(&ask);
        let (_, packet) = reply(&outcome);
        assert_ne!(packet.yiaddr, NONE);
        assert_eq!((packet.boot_file(), packet.siaddr), (None, NONE));
        let Some(Note::Event(event)) = &outcome.note else {
            panic!("no event");
        };
        assert!(event.message.contains(why), "{}", event.message);
    }
}

#[test]
fn systems_and_the_agent_get_no_boot_file() {
    for (class, stage) in [(&b"anneal-agent"[..], "agent"), (b"dhcpcd", "system")] {
        let outcome = World::new().ask(&select(BOOT, HOME, US).option(60, class));
        let (_, packet) = reply(&outcome);
        assert_eq!(packet.boot_file(), None);
        let Some(Note::Event(event)) = &outcome.note else {
            panic!("no event");
        };
        assert_eq!(event.data["stage"], stage);
        assert!(event.data["arch"].is_null());
    }
}
