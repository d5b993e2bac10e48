//! Clients that no package provides: two-faced, broken, or five hundred at once.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use provisioner::boot::BootFiles;
use provisioner::event::kind;
use provisioner::machine::Directory;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::rack::{PATIENCE, Rack, noise, quiet_recorder};

struct Client {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Client {
    async fn new(server: SocketAddr) -> Self {
        Self::at([127, 0, 0, 1], server).await
    }

    async fn at(ip: [u8; 4], server: SocketAddr) -> Self {
        let socket = UdpSocket::bind(SocketAddr::from((ip, 0))).await.unwrap();
        Self { socket, server }
    }

    async fn send(&self, bytes: &[u8], to: SocketAddr) {
        self.socket.send_to(bytes, to).await.unwrap();
    }

    /// Asks for `file` with options as they stand in the packet.
    async fn ask(&self, file: &str, options: &str) {
        let packet = format!("\0\x01{file}\0octet\0{options}");
        self.send(packet.as_bytes(), self.server).await;
    }

    async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 70_000];
        let received = tokio::time::timeout(PATIENCE, self.socket.recv_from(&mut buffer));
        let (length, from) = received.await.expect("no answer").unwrap();
        buffer.truncate(length);
        (buffer, from)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_probe_is_answered_and_leaves_no_trace() {
    let mut rack = Rack::on_loopback(vec![("snponly.efi", noise(284_672))]).await;
    let edk2 = Client::new(rack.tftp).await;
    edk2.ask(
        "snponly.efi",
        "tsize\x000\0blksize\x001468\0windowsize\x004\0",
    )
    .await;
    let (oack, tid) = edk2.receive().await;
    assert_eq!(
        oack,
        b"\0\x06blksize\x001468\0tsize\x00284672\0windowsize\x004\0"
    );
    edk2.send(b"\0\x05\0\x08User aborted the transfer\0", tid)
        .await;
    // The same port asks again, now for the file, as ROMs do that keep their port.
    edk2.ask("snponly.efi", "blksize\x001468\0windowsize\x004\0")
        .await;
    let (oack, tid) = edk2.receive().await;
    assert_eq!(oack, b"\0\x06blksize\x001468\0windowsize\x004\0");
    let mut fetched = Vec::new();
    edk2.send(&[0, 4, 0, 0], tid).await;
    let mut block = 0_u16;
    loop {
        let (data, from) = edk2.receive().await;
        assert_eq!(from, tid);
        block += 1;
        assert_eq!(data[..4], [&[0, 3][..], &block.to_be_bytes()].concat());
        fetched.extend_from_slice(&data[4..]);
        let last = data.len() < 4 + 1_468;
        if last || block.is_multiple_of(4) {
            edk2.send(&[&[0, 4][..], &block.to_be_bytes()].concat(), tid)
                .await;
        }
        if last {
            break;
        }
    }
    assert!(fetched == noise(284_672));
    let event = rack.event(kind::TFTP).await;
    assert_eq!(
        event.data["outcome"],
        json!("complete"),
        "the probe is no event"
    );
    assert_eq!(event.data["windowsize"], json!(4));
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_off_and_the_transfer_goes_on() {
    let rack = Rack::on_loopback(vec![("a", noise(700))]).await;
    let client = Client::new(rack.tftp).await;
    client.ask("a", "").await;
    let (first, tid) = client.receive().await;
    assert_eq!(first.len(), 516);
    let stranger = Client::new(rack.tftp).await;
    stranger.send(&[0, 4, 0, 1], tid).await;
    let (refusal, from) = stranger.receive().await;
    assert_eq!((&refusal[..4], from), (&[0, 5, 0, 5][..], tid));
    client.send(&[0, 4, 0, 1], tid).await;
    let (second, _) = client.receive().await;
    assert_eq!(second.len(), 4 + 188);
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_keeps_the_transfer_and_a_new_one_restarts_it() {
    let rack = Rack::on_loopback(vec![("a", noise(700)), ("b", noise(3))]).await;
    let client = Client::new(rack.tftp).await;
    client.ask("a", "blksize\x00512\0").await;
    let (oack, tid) = client.receive().await;
    client.ask("a", "blksize\x00512\0").await;
    assert_eq!(
        client.receive().await,
        (oack, tid),
        "same answer, same port"
    );
    client.send(&[0, 4, 0, 0], tid).await;
    assert_eq!(client.receive().await.0.len(), 516);
    client.ask("b", "").await;
    let (data, other) = client.receive().await;
    assert_eq!(data, [&[0, 3, 0, 1][..], &noise(3)].concat());
    assert_ne!(tid, other);
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_stops_nothing() {
    let rack = Rack::on_loopback(vec![("a", noise(3))]).await;
    let vandal = Client::new(rack.tftp).await;
    let rubbish = noise(200_000);
    for length in 0..600 {
        vandal
            .send(&rubbish[length * 7..length * 8], rack.tftp)
            .await;
    }
    for start in [
        b"\0\x01".as_slice(),
        b"\0\x02",
        b"\0\x04",
        b"\0\x05",
        b"\0\x06",
    ] {
        for length in (0..1_400).step_by(97) {
            let packet = [start, &rubbish[length..length * 2]].concat();
            vandal.send(&packet, rack.tftp).await;
        }
    }
    let client = Client::new(rack.tftp).await;
    client.ask("a", "").await;
    assert_eq!(
        client.receive().await.0,
        [&[0, 3, 0, 1][..], &noise(3)].concat()
    );
    rack.stop().await;
}

/// Fetches like EDK2, repeating what gets no answer; returns the bytes.
async fn fetch(client: Client, file: &str) -> Vec<u8> {
    let wait = std::time::Duration::from_millis(500);
    let mut buffer = vec![0; 2_000];
    let mut tid = None;
    let (mut has, mut fetched) = (0_u16, Vec::new());
    for _ in 0..1_000 {
        match tid {
            None => client.ask(file, "blksize\x001468\0windowsize\x004\0").await,
            Some(tid) => {
                client
                    .send(&[&[0, 4][..], &has.to_be_bytes()].concat(), tid)
                    .await;
            }
        }
        // One window; silence in the middle of it repeats the ACK.
        for _ in 0..4 {
            let received = client.socket.recv_from(&mut buffer);
            let Ok(received) = tokio::time::timeout(wait, received).await else {
                break;
            };
            let (length, from) = received.unwrap();
            if buffer[1] == 6 {
                tid = Some(from);
                break;
            }
            if buffer[2..4] == (has + 1).to_be_bytes() {
                has += 1;
                fetched.extend_from_slice(&buffer[4..length]);
                if length < 4 + 1_468 {
                    let ack = [&[0, 4][..], &has.to_be_bytes()].concat();
                    client.send(&ack, from).await;
                    return fetched;
                }
            }
        }
    }
    panic!("the transfer does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_at_once_get_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let (recorder, writer) = quiet_recorder(dir.path()).await;
    let stop = CancellationToken::new();
    let file: Bytes = noise(300_000);
    let server = provisioner::tftp::Server::bind(
        "127.0.0.1:0".parse().unwrap(),
        Arc::new(BootFiles::from_bytes([("ipxe.efi", file.clone())])),
        Directory::default(),
        recorder,
    )
    .unwrap();
    let address = server.local_addr();
    let mut servers = JoinSet::new();
    servers.spawn(server.run(stop.clone()));
    servers.spawn(writer.run(stop.clone()));
    let mut clients = JoinSet::new();
    for n in 0..500_u16 {
        let [high, low] = n.to_be_bytes();
        clients.spawn(async move {
            fetch(Client::at([127, 9, high, low], address).await, "ipxe.efi").await
        });
    }
    let mut done = 0;
    while let Some(fetched) = clients.join_next().await {
        assert!(fetched.unwrap() == file);
        done += 1;
    }
    assert_eq!(done, 500);
    stop.cancel();
    while let Some(ended) = servers.join_next().await {
        ended.unwrap().unwrap();
    }
}
