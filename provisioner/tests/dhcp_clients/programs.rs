//! DHCP client programs, a relay, strangers, garbage, and other servers.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::Ordering;

use crate::netns::{self, Namespace, PATIENCE, Running, attempt, finish, wait_until};
use crate::site::{
    FAR, FAR_ADDRESS, MAC, POOLED, RESERVED, Site, US, ask_store, config, inventory,
};
use anneal_protocol::machine::Mac;
use dhcproto::{Decodable, Decoder, Encodable, v4};
use provisioner::dhcp::probe::{ForeignServer, foreign_server};
use provisioner::dhcp::{DhcpConfig, Server};
use provisioner::event::{self, kind};
use provisioner::store::{LeaseState, Store};

#[test]
fn different_clients_of_one_card_get_one_address() {
    let site = Site::new(MAC);
    let server = site.serve();
    // Client id 01:MAC with a unicast answer, then a broadcast one, then without a client id.
    for arguments in ["-n -q", "-n -q -B", "-n -q -C"] {
        finish(&mut site.udhcpc(arguments));
    }
    // dhclient stays in the foreground.
    let dhclient = Running::start(&mut site.dhclient());
    wait_until("dhclient is bound", || site.log().contains("BOUND"));
    drop(dhclient);
    let log = site.log();
    let granted: Vec<_> = log
        .lines()
        .filter(|line| line.starts_with("bound") || line.starts_with("BOUND"))
        .collect();
    assert_eq!(granted.len(), 4, "{log}");
    for line in granted {
        assert!(line.contains("address=10.77.0.11"), "{line}");
        assert!(line.contains("router=10.77.0.254"), "{line}");
        assert!(line.contains("mask=255.255.255.0"), "{line}");
        assert!(line.contains("name=r1n1"), "{line}");
    }
    let counters = server.counters.clone();
    server.end();
    let leases = site.leases();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_eq!(
        (leases[0].address, leases[0].state),
        (RESERVED, LeaseState::Bound)
    );
    let acks = site.events(kind::DHCP_ACK);
    // A client that was not answered soon enough asks again.
    assert!(acks.len() >= 4, "{acks:?}");
    let sent = counters.acks.load(Ordering::Relaxed);
    assert!(acks.len() as u64 <= sent, "{sent} were sent: {acks:?}");
    for ack in acks {
        assert_eq!(ack.event.machine.as_deref(), Some("r1n1"));
        assert_eq!(ack.event.data["stage"], "system");
    }
}

#[test]
fn a_lease_is_renewed_and_outlives_the_server() {
    let site = Site::new(POOLED);
    let server = site.serve();
    let client = Running::start(&mut site.udhcpc(""));
    wait_until("the client is bound", || site.log().contains("bound"));
    let first = site.leases();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].address, Ipv4Addr::new(10, 77, 0, 100));
    server.end();

    let server = site.serve();
    let before = server.counters.acks.load(Ordering::Relaxed);
    client.signal(libc::SIGUSR1);
    wait_until("the client renewed", || site.log().contains("renew"));
    assert!(server.counters.acks.load(Ordering::Relaxed) > before);
    let renewed = site.leases();
    assert_eq!(renewed[0].address, first[0].address);
    assert!(renewed[0].expires_at > first[0].expires_at);
    server.end();

    // Another client program, another client id, a new server: the same address.
    drop(client);
    site.client.ip("addr flush dev cli0");
    let _server = site.serve();
    let _client = Running::start(&mut site.dhclient());
    wait_until("dhclient is bound", || {
        site.log().contains("BOUND address=10.77.0.100")
    });
}

#[test]
fn a_client_gives_its_address_back() {
    let site = Site::new(POOLED);
    let _server = site.serve();
    let client = Running::start(&mut site.udhcpc(""));
    wait_until("the client is bound", || site.log().contains("bound"));
    client.signal(libc::SIGUSR2);
    wait_until("the lease is released", || {
        let leases = site.leases();
        leases.len() == 1 && leases[0].state == LeaseState::Released
    });
}

#[test]
fn an_address_in_use_is_declined_and_then_avoided() {
    let site = Site::new(POOLED);
    let squatter = Namespace::new();
    // A bridge, so that client, server and squatter share one wire.
    site.wire
        .cable("srv1", &squatter, "sq0", "52:54:00:cc:00:01");
    site.wire.ip("addr flush dev srv0");
    site.wire.ip("link add br0 type bridge");
    site.wire.ip("link set br0 up");
    site.wire.ip("link set srv0 master br0");
    site.wire.ip("link set srv1 master br0");
    site.wire.ip("addr add 10.77.0.1/24 dev br0");
    squatter.ip("addr add 10.77.0.100/24 dev sq0");
    let _server = site.serve_with(|config| config.interface = "br0".to_owned());
    finish(&mut site.udhcpc("-n -q -a -A 1 -t 10"));
    let log = site.log();
    assert!(log.contains("bound address=10.77.0.101"), "{log}");
    let declined = site.events(kind::DHCP);
    assert!(
        declined
            .iter()
            .any(|row| row.event.data["message"] == "decline"),
        "{declined:?}"
    );
    let quarantine = ask_store(&site.path("db"), async |store| {
        store
            .quarantined_addresses(provisioner::clock::now())
            .await
            .unwrap()
    });
    assert_eq!(quarantine.len(), 1);
    assert_eq!(quarantine[0].0, Ipv4Addr::new(10, 77, 0, 100));
}

#[test]
fn an_address_that_cannot_be_stored_is_not_granted() {
    let site = Site::new(MAC);
    let server = site.serve();
    netns::block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(site.path("db"));
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query("ALTER TABLE leases RENAME TO lost")
            .execute(&pool)
            .await
            .unwrap();
    });
    assert!(!attempt(&mut site.udhcpc("-n -q -t 2")).status.success());
    assert!(server.counters.offers.load(Ordering::Relaxed) > 0);
    assert!(server.counters.failed.load(Ordering::Relaxed) > 0);
    assert_eq!(server.counters.acks.load(Ordering::Relaxed), 0);
    assert!(site.events(kind::DHCP_ACK).is_empty());
}

#[test]
fn strangers_and_other_wires_are_left_alone() {
    let site = Site::new("52:54:00:ff:00:01");
    let elsewhere = Namespace::new();
    site.wire.cable("srv1", &elsewhere, "cli0", MAC);
    site.wire.ip("addr add 10.78.0.1/24 dev srv1");
    let server = site.serve();
    let outcome = attempt(&mut site.udhcpc("-n -q -t 2"));
    assert!(!outcome.status.success());
    wait_until("the stranger is recorded", || {
        !site.events(kind::DHCP_IGNORED).is_empty()
    });
    let received = server.counters.received.load(Ordering::Relaxed);
    assert!(received >= 2);
    // A machine of the inventory, but on a wire that we do not serve.
    let mut other = elsewhere.command("udhcpc", "udhcpc");
    other.args([
        "-f",
        "-i",
        "cli0",
        "-n",
        "-q",
        "-t",
        "2",
        "-T",
        "1",
        "-s",
        "/bin/true",
    ]);
    assert!(!attempt(&mut other).status.success());
    assert_eq!(server.counters.received.load(Ordering::Relaxed), received);
    // Repeated questions of one stranger are one event.
    assert_eq!(site.events(kind::DHCP_IGNORED).len(), 1);
}

#[test]
fn strangers_get_an_address_when_the_operator_wants_that() {
    let site = Site::new("52:54:00:ff:00:01");
    let _server = site.serve_with(|config| config.settings.serve_unknown = true);
    finish(&mut site.udhcpc("-n -q"));
    assert!(
        site.log().contains("bound address=10.77.0.100"),
        "{}",
        site.log()
    );
}

#[test]
fn garbage_does_not_stop_the_server() {
    let site = Site::new(MAC);
    let server = site.serve();
    site.client.ip("addr add 10.77.0.200/24 dev cli0");
    let frames: [Vec<u8>; 5] = [
        vec![],
        vec![1; 100],
        vec![0xff; 1400],
        overrun(),
        [&[1, 1, 200, 0][..], &[0; 400]].concat(),
    ];
    site.client.run(async || {
        let socket = UdpSocket::bind((Ipv4Addr::new(10, 77, 0, 200), 0)).unwrap();
        for frame in &frames {
            socket.send_to(frame, (US, 67)).unwrap();
        }
    });
    wait_until("the garbage is counted", || {
        server.counters.malformed.load(Ordering::Relaxed) == 5
    });
    site.client.ip("addr flush dev cli0");
    finish(&mut site.udhcpc("-n -q"));
    assert_eq!(server.counters.malformed.load(Ordering::Relaxed), 5);
}

/// A DISCOVER whose last option runs past the end.
fn overrun() -> Vec<u8> {
    let mut bytes = message(MAC, v4::MessageType::Discover).to_vec().unwrap();
    let end = bytes.iter().rposition(|byte| *byte == 255).unwrap();
    bytes.truncate(end);
    bytes.extend_from_slice(&[61, 250, 1]);
    bytes
}

fn message(mac: &str, kind: v4::MessageType) -> v4::Message {
    let mac: Mac = mac.parse().unwrap();
    let mut message = v4::Message::default();
    message.set_xid(0x5eed).set_chaddr(&mac.0);
    message.opts_mut().insert(v4::DhcpOption::MessageType(kind));
    message
}

#[test]
fn a_relayed_client_is_served_through_its_relay() {
    // The client namespace plays the relay: near side on our wire, far side 10.88.0.1.
    const RELAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
    const INFORMATION: [u8; 10] = [2, 2, 0xbe, 0xef, 1, 4, b'p', b'o', b'r', b't'];
    let site = Site::new("52:54:00:dd:00:01");
    site.client.ip("addr add 10.77.0.2/24 dev cli0");
    site.client.ip("addr add 10.88.0.1/24 dev lo");
    site.wire.ip("route add 10.88.0.0/24 via 10.77.0.2");
    let server = site.serve();
    let relay = |mut message: v4::Message| {
        message.set_giaddr(RELAY).set_hops(1);
        let mut bytes = message.to_vec().unwrap();
        let end = bytes.iter().rposition(|byte| *byte == 255).unwrap();
        bytes.truncate(end);
        bytes.extend_from_slice(&[82, 10]);
        bytes.extend_from_slice(&INFORMATION);
        bytes.push(255);
        site.client.run(async || {
            let socket = UdpSocket::bind((RELAY, 67)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(&bytes, (US, 67)).unwrap();
            let mut answer = vec![0; 1500];
            let (length, from) = socket.recv_from(&mut answer).unwrap();
            assert_eq!(from, SocketAddrV4::new(US, 67).into());
            answer.truncate(length);
            answer
        })
    };
    let offer = relay(message(FAR, v4::MessageType::Discover));
    let read = v4::Message::decode(&mut Decoder::new(&offer)).unwrap();
    assert_eq!(read.opts().msg_type(), Some(v4::MessageType::Offer));
    assert_eq!((read.yiaddr(), read.giaddr()), (FAR_ADDRESS, RELAY));
    assert_eq!(
        read.opts().get(v4::OptionCode::SubnetMask),
        Some(&v4::DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)))
    );
    assert_eq!(read.opts().get(v4::OptionCode::Router), None);
    let end = offer.iter().rposition(|byte| *byte == 255).unwrap();
    assert_eq!(offer[end - 12..end], [&[82, 10][..], &INFORMATION].concat());

    let mut request = message(FAR, v4::MessageType::Request);
    request
        .opts_mut()
        .insert(v4::DhcpOption::RequestedIpAddress(FAR_ADDRESS));
    request
        .opts_mut()
        .insert(v4::DhcpOption::ServerIdentifier(US));
    let ack = relay(request);
    let read = v4::Message::decode(&mut Decoder::new(&ack)).unwrap();
    assert_eq!(read.opts().msg_type(), Some(v4::MessageType::Ack));
    server.end();
    let leases = site.leases();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].address, FAR_ADDRESS);
}

#[test]
fn the_probe_finds_other_servers_and_only_others() {
    let site = Site::new(MAC);
    let mac: Mac = MAC.parse().unwrap();
    let probe = || {
        site.client
            .run(async || foreign_server("cli0", mac).await.unwrap())
    };
    assert_eq!(probe(), None);
    let dnsmasq = |extra: &str| {
        let mut command = site.wire.command("dnsmasq", "dnsmasq-base");
        command
            .args([
                "-k",
                "-p",
                "0",
                "-C",
                "/dev/null",
                "-i",
                "srv0",
                "-u",
                "root",
            ])
            .arg("--bind-interfaces")
            .arg("--pid-file")
            .arg(format!(
                "--dhcp-leasefile={}",
                site.path("dnsmasq.leases").display()
            ))
            .args(extra.split_whitespace());
        let running = Running::start(&mut command);
        let sockets = format!("/proc/{}/net/udp", running.0.id());
        wait_until("dnsmasq listens on port 67", || {
            std::fs::read_to_string(&sockets).is_ok_and(|table| table.contains(":0043 "))
        });
        running
    };
    let foreign = dnsmasq("--dhcp-range=10.77.0.50,10.77.0.60");
    let found = probe().expect("dnsmasq answers");
    assert_eq!(found.server, US);
    assert_eq!(
        found.offered.map(|ip| ip.octets()[..3].to_vec()),
        Some(vec![10, 77, 0])
    );
    drop(foreign);
    // A proxy DHCP server offers boot files only.
    let foreign = dnsmasq("--dhcp-range=10.77.0.0,proxy --pxe-service=x86-64_EFI,lab,boot.efi");
    assert_eq!(
        probe(),
        Some(ForeignServer {
            server: US,
            offered: None
        })
    );
    drop(foreign);
    // Our own server is foreign to somebody else's host.
    let server = site.serve();
    assert_eq!(probe().map(|found| found.offered), Some(Some(RESERVED)));
    server.end();
    let missing = site.client.run(async || {
        foreign_server("nosuch0", mac)
            .await
            .unwrap_err()
            .to_string()
    });
    assert!(
        missing.contains("no network interface \"nosuch0\""),
        "{missing}"
    );
}

#[test]
fn settings_that_do_not_fit_the_wire_are_refused() {
    type Edit = fn(&mut DhcpConfig);
    let site = Site::new(MAC);
    let _server = site.serve();
    let refusal = |edit: Edit| {
        let mut config = config();
        edit(&mut config);
        site.wire.run(async || {
            let store = Store::open(&site.path("db")).await.unwrap();
            let (recorder, _writer) = event::channel(store.clone());
            let error = Server::bind(config, inventory(), store, recorder)
                .await
                .expect_err("refused");
            format!("{error:#}")
        })
    };
    let cases: [(Edit, &str); 5] = [
        (|_| (), "another DHCP server may be running"),
        (
            |c| c.interface = "nosuch0".to_owned(),
            "no network interface \"nosuch0\"",
        ),
        (
            |c| c.address.ip = RESERVED,
            "does not have the address 10.77.0.11",
        ),
        (
            |c| c.settings.pool = Some((US, Ipv4Addr::new(10, 99, 0, 1))),
            "10.99.0.1 is not in the subnet",
        ),
        (
            |c| (c.settings.pool, c.settings.serve_unknown) = (None, true),
            "needs a pool",
        ),
    ];
    for (edit, expected) in cases {
        let error = refusal(edit);
        assert!(error.contains(expected), "{error}");
    }
}
