//! Relays and boot files.

use super::*;

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
