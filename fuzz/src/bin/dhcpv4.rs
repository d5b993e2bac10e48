//! DHCPv4 frames, as a server and as a client would read them.

use std::process::ExitCode;

use anneal_protocol::dhcpv4::client::Client;
use anneal_protocol::dhcpv4::{Message, MessageType, Packet, encapsulated, user_classes};
use anneal_protocol::machine::Mac;

const CLIENT: Client<'static> = Client {
    mac: Mac([0x52, 0x54, 0, 0xaa, 0, 1]),
    xid: 7,
    vendor_class: "anneal-agent",
};

fn main() -> ExitCode {
    let seeds = [
        CLIENT.discover(0),
        message(MessageType::Discover, |message| {
            message
                .option(60, *b"PXEClient:Arch:00007:UNDI:003016")
                .option(93, [0, 7])
                .option(97, [0; 17])
                .option(77, *b"\x04iPXE")
                .option(175, [19, 1, 1, 177, 5, 1, 2, 3, 4, 5]);
        }),
        message(MessageType::Request, |message| {
            message
                .option(50, [10, 0, 0, 2])
                .option(54, [10, 0, 0, 1])
                .option(82, [1, 3, 1, 2, 3, 5, 4, 10, 0, 0, 0, 11, 4, 10, 0, 0, 9]);
        }),
        message(MessageType::Discover, |message| {
            message.option(52, [3]).option(61, vec![9; 600]);
        }),
        message(MessageType::Ack, |message| {
            message
                .address(54, [10, 0, 0, 1].into())
                .u32(51, 3600)
                .address(1, [255, 255, 255, 0].into())
                .boot_file("snponly.efi");
        }),
    ];
    anneal_fuzz::run(&seeds, look)
}

fn message(kind: MessageType, edit: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::request(kind, CLIENT.mac, CLIENT.xid);
    edit(&mut message);
    message.encode()
}

/// Looks at everything there is to look at, and answers.
fn look(frame: &[u8]) {
    let _ = CLIENT.read(frame);
    let Ok(packet) = Packet::parse(frame) else {
        return;
    };
    let _ = (packet.message_type(), packet.mac(), packet.boot_file());
    let _ = packet.options.architectures();
    for (code, data) in packet.options.iter() {
        let _ = (user_classes(data), encapsulated(data, code));
        let _ = packet.options.addresses(code);
    }
    let limit = Message::limit_for(&packet);
    if let Ok(bytes) = Message::reply_to(&packet, MessageType::Offer).encode_within(limit) {
        assert!(bytes.len() >= 300 && bytes.len() <= limit);
        let again = Packet::parse(&bytes).expect("what we write is well-formed");
        assert_eq!(again.options.get(82), packet.options.get(82));
    }
}
