//! TFTP packets as the server reads them, and whole transfers driven by arbitrary packets.
//!
//! The input is a list of packets, each with its length (u8) before it. The first one opens the
//! transfer; an empty one stands for a timeout.

use std::process::ExitCode;

use tftp::packet::{self, Packet};
use tftp::transfer::{Step, Transfer, grant};

/// The daemon's own sources: this needs neither its sockets nor its database.
#[path = "../../../provisioner/src/tftp"]
#[allow(dead_code, reason = "the server uses all of it")]
mod tftp {
    pub mod packet;
    pub mod transfer;
}

/// Bytes in the file that is asked for.
const SIZE: u64 = 300_000;
/// Steps after which every transfer to a silent client has ended.
const ENOUGH: usize = 64;

fn main() -> ExitCode {
    let open = |options: &str| format!("\0\x01snponly.efi\0octet\0{options}").into_bytes();
    let ack = |block: u8| vec![0, 4, 0, block];
    let seeds = [
        session(&[open(""), ack(1), ack(1), vec![], ack(2)]),
        session(&[
            open("tsize\x000\0blksize\x001468\0windowsize\x004\0"),
            packet::error(packet::code::OPTION, "User aborted the transfer"),
        ]),
        session(&[
            open("blksize\x001468\0windowsize\x004\0timeout\x003\0"),
            ack(0),
            ack(4),
            ack(5),
            ack(5),
            vec![],
            ack(9),
        ]),
        session(&[b"\0\x02\\boot\\x.efi\0NETASCII\0blksize\x0070000\0".to_vec()]),
    ];
    anneal_fuzz::run(&seeds, look)
}

fn session(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut input = Vec::new();
    for packet in packets {
        input.push(u8::try_from(packet.len()).expect("seeds are short"));
        input.extend_from_slice(packet);
    }
    input
}

fn look(input: &[u8]) {
    // Also as one packet, so that long names and many options occur.
    read(input);
    let mut packets = split(input);
    let Some(Ok(Packet::Read(request))) = packets.next().map(Packet::parse) else {
        return;
    };
    let options = grant(&request.options, 1_468);
    assert!(packet::oack(&options, SIZE).len() < 512);
    let (mut transfer, mut step) = Transfer::new(SIZE, &options);
    for packet in packets.chain(std::iter::repeat_n(&[][..], ENOUGH)) {
        match step {
            Step::End(_) => return,
            Step::SendBlocks { first, last } => check(&transfer, first, last),
            Step::SendOack | Step::Wait | Step::WaitAgain => {}
        }
        step = match Packet::parse(packet) {
            Ok(Packet::Ack(block)) => transfer.ack(block),
            Ok(Packet::Error { .. }) => transfer.client_error(),
            Ok(Packet::Read(_)) => transfer.asked_again(),
            _ => transfer.timed_out(),
        };
    }
    panic!("the transfer does not end");
}

fn read(bytes: &[u8]) {
    if let Ok(Packet::Read(request) | Packet::Write(request)) = Packet::parse(bytes) {
        assert!(!request.file.starts_with('/') && !request.file.contains('\\'));
        assert!(
            request
                .file
                .bytes()
                .all(|byte| byte.is_ascii() && !byte.is_ascii_control())
        );
    }
}

fn check(transfer: &Transfer, first: u64, last: u64) {
    assert!(first <= last && last - first < 64);
    let (offset, length) = transfer.block(last);
    assert!(offset + length as u64 <= SIZE);
    let mut wire = Vec::new();
    packet::data(&mut wire, 0, &vec![0; length]);
    assert_eq!(wire.len(), 4 + length);
}

fn split(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first()?;
        let (packet, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        input = rest;
        Some(packet)
    })
}
