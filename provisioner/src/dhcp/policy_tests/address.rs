//! Addresses and where answers go.

use super::*;

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
