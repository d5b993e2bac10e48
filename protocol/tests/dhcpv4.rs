//! The codec beside an independent one (dhcproto), and against arbitrary bytes.

use std::net::Ipv4Addr;

use anneal_protocol::dhcpv4::client::Client;
use anneal_protocol::dhcpv4::{Message, MessageType, Packet, encapsulated, user_classes};
use anneal_protocol::machine::Mac;
use dhcproto::v4;
use dhcproto::{Decodable, Decoder, Encodable};
use proptest::prelude::*;

const MAC: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);

/// Looks at everything a packet offers to look at.
fn touch(frame: &[u8]) {
    let Ok(packet) = Packet::parse(frame) else {
        return;
    };
    let _ = (packet.message_type(), packet.mac(), packet.boot_file());
    let _ = packet.options.architectures();
    for (code, data) in packet.options.iter() {
        let _ = (user_classes(data), encapsulated(data, code));
        let _ = (packet.options.u8(code), packet.options.u16(code));
        let _ = (packet.options.u32(code), packet.options.addresses(code));
    }
    let reply = Message::reply_to(&packet, MessageType::Offer);
    let limit = Message::limit_for(&packet);
    if let Ok(bytes) = reply.encode_within(limit) {
        assert!(bytes.len() >= 300 && bytes.len() <= limit);
        let again = Packet::parse(&bytes).expect("what we write is well-formed");
        assert_eq!(again.options.get(82), packet.options.get(82));
    }
}

fn well_formed_header(mut frame: Vec<u8>) -> Vec<u8> {
    frame[0] = 1;
    frame[2] %= 17;
    frame[236..240].copy_from_slice(&[99, 130, 83, 99]);
    frame
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(frame in prop::collection::vec(any::<u8>(), 0..2000)) {
        touch(&frame);
    }

    #[test]
    fn arbitrary_options_never_panic(frame in prop::collection::vec(any::<u8>(), 240..1500)) {
        touch(&well_formed_header(frame));
    }

    #[test]
    fn small_lengths_reach_deep(
        header in prop::collection::vec(any::<u8>(), 240),
        options in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..9)), 0..60),
        overload in 0_u8..5,
    ) {
        let mut frame = well_formed_header(header);
        frame.extend_from_slice(&[52, 1, overload]);
        for (code, data) in options {
            frame.push(code);
            frame.push(u8::try_from(data.len()).unwrap());
            frame.extend_from_slice(&data);
        }
        touch(&frame);
    }

    #[test]
    fn written_options_read_back(
        options in prop::collection::btree_map(1_u8..255, prop::collection::vec(any::<u8>(), 0..700), 0..12),
    ) {
        let mut message = Message::request(MessageType::Discover, MAC, 9);
        let options: Vec<_> = options
            .into_iter()
            .filter(|(code, _)| !matches!(code, 52 | 53))
            .collect();
        for (code, data) in &options {
            message.option(*code, data.clone());
        }
        let packet = Packet::parse(&message.encode()).unwrap();
        for (code, data) in &options {
            prop_assert_eq!(packet.options.get(*code), Some(data.as_slice()));
        }
    }

    #[test]
    fn what_the_other_codec_writes_we_read(
        xid in any::<u32>(), secs in any::<u16>(), broadcast in any::<bool>(),
        ciaddr in any::<u32>(), giaddr in any::<u32>(),
        arch in any::<u16>(), size in any::<u16>(), class in "[ -~]{1,60}",
    ) {
        let mut message = v4::Message::default();
        message
            .set_xid(xid)
            .set_secs(secs)
            .set_flags(if broadcast { v4::Flags::default().set_broadcast() } else { v4::Flags::default() })
            .set_ciaddr(ciaddr)
            .set_giaddr(giaddr)
            .set_chaddr(&MAC.0);
        message.opts_mut().insert(v4::DhcpOption::MessageType(v4::MessageType::Discover));
        message.opts_mut().insert(v4::DhcpOption::ClientSystemArchitecture(arch.into()));
        message.opts_mut().insert(v4::DhcpOption::MaxMessageSize(size));
        message.opts_mut().insert(v4::DhcpOption::ClassIdentifier(class.clone().into_bytes()));
        let packet = Packet::parse(&message.to_vec().unwrap()).unwrap();
        prop_assert_eq!(packet.message_type(), Some(MessageType::Discover));
        prop_assert_eq!((packet.xid, packet.secs), (xid, secs));
        prop_assert_eq!(packet.flags, if broadcast { 0x8000 } else { 0 });
        prop_assert_eq!(u32::from(packet.ciaddr), ciaddr);
        prop_assert_eq!(u32::from(packet.giaddr), giaddr);
        prop_assert_eq!(packet.mac(), Some(MAC));
        prop_assert_eq!(packet.options.architectures(), Some(vec![arch]));
        prop_assert_eq!(packet.options.u16(57), Some(size));
        prop_assert_eq!(packet.options.get(60), Some(class.as_bytes()));
    }
}

#[test]
fn the_other_codec_reads_what_we_write() {
    let client = Client {
        mac: MAC,
        xid: 0xdead_beef,
        vendor_class: "anneal-agent",
    };
    let packet = Packet::parse(&client.discover(3)).unwrap();
    let mut reply = Message::reply_to(&packet, MessageType::Offer);
    reply.yiaddr = Ipv4Addr::new(10, 77, 0, 11);
    reply.siaddr = Ipv4Addr::new(10, 77, 0, 1);
    reply
        .address(54, Ipv4Addr::new(10, 77, 0, 1))
        .u32(51, 600)
        .address(1, Ipv4Addr::new(255, 255, 255, 0))
        .address(3, Ipv4Addr::new(10, 77, 0, 254))
        .boot_file("snponly.efi")
        .option(43, [6, 1, 8, 255]);
    let read = v4::Message::decode(&mut Decoder::new(&reply.encode())).unwrap();
    assert_eq!(read.opcode(), v4::Opcode::BootReply);
    assert_eq!(read.xid(), 0xdead_beef);
    assert!(read.flags().broadcast());
    assert_eq!(read.yiaddr(), Ipv4Addr::new(10, 77, 0, 11));
    assert_eq!(read.siaddr(), Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!(read.chaddr(), MAC.0);
    assert_eq!(
        read.fname()
            .map(|name| name.strip_suffix(b"\0").unwrap_or(name)),
        Some(&b"snponly.efi"[..])
    );
    let options = read.opts();
    assert_eq!(options.msg_type(), Some(v4::MessageType::Offer));
    for (code, expected) in [
        (
            v4::OptionCode::AddressLeaseTime,
            v4::DhcpOption::AddressLeaseTime(600),
        ),
        (
            v4::OptionCode::ServerIdentifier,
            v4::DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 77, 0, 1)),
        ),
        (
            v4::OptionCode::Router,
            v4::DhcpOption::Router(vec![Ipv4Addr::new(10, 77, 0, 254)]),
        ),
        (
            v4::OptionCode::BootfileName,
            v4::DhcpOption::BootfileName(b"snponly.efi\0".to_vec()),
        ),
        (
            v4::OptionCode::VendorExtensions,
            v4::DhcpOption::VendorExtensions(vec![6, 1, 8, 255]),
        ),
    ] {
        assert_eq!(options.get(code), Some(&expected), "{code:?}");
    }
    let discover = v4::Message::decode(&mut Decoder::new(&client.discover(3))).unwrap();
    assert_eq!(discover.secs(), 3);
    assert_eq!(
        discover.opts().get(v4::OptionCode::ClassIdentifier),
        Some(&v4::DhcpOption::ClassIdentifier(b"anneal-agent".to_vec()))
    );
}
