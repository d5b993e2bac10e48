//! Leases over time.

use super::*;

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
