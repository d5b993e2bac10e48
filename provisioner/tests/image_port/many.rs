//! Many connections, and how machines share.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use provisioner::event::kind;
use provisioner::http::blob::{Limits, Patience};

use super::port::{Port, noise};

/// Connections of one client at once that the port takes.
const PER_CLIENT: usize = 32;

fn address(last: u8) -> IpAddr {
    [127, 0, 0, last].into()
}

#[test]
fn many_clients_at_once_get_every_byte() {
    let data = Arc::new(noise(3_000_000));
    let port = Arc::new(Port::start(&data));
    let threads: Vec<_> = (0..64)
        .map(|n: usize| {
            let (port, data) = (port.clone(), data.clone());
            std::thread::spawn(move || {
                let mut client = port.connect_from(address(10 + (n % 8) as u8));
                for round in 0..4 {
                    let first = (n * 7_919 + round * 104_729) % 2_000_000;
                    let last = first + 900_000;
                    client.ask(&format!("Range: bytes={first}-{last}\r\n"));
                    let answer = client.answer();
                    assert_eq!(answer.status, 206);
                    assert!(answer.body == data[first..=last]);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    port.until("image_port_connections", 0);
    assert_eq!(port.metric("image_port_sent_bytes_total"), 64 * 4 * 900_001);
    assert_eq!(port.metric("image_port_refused_total"), 0);
}

#[test]
fn one_client_cannot_take_all_connections() {
    let port = Port::start(b"0123456789");
    let ask = |client: &mut super::port::Client| {
        client.ask("");
        client.answer().status
    };
    let mut held: Vec<_> = (0..PER_CLIENT).map(|_| port.connect()).collect();
    for client in &mut held {
        assert_eq!(ask(client), 200);
    }
    let mut refused = port.connect();
    assert!(
        refused.rest().is_empty(),
        "one too many is ended unanswered"
    );
    assert_eq!(ask(&mut port.connect_from(address(9))), 200);
    drop(held);
    port.until("image_port_connections", 0);
    assert_eq!(ask(&mut port.connect()), 200);
}

#[test]
fn a_machine_with_many_connections_gets_no_more_than_one_with_one() {
    let data = noise(64 << 20);
    let limits = Limits {
        per_machine: None,
        // Little enough to be what is slow, whatever else the host does.
        total: Some(24 << 20),
    };
    let port = Arc::new(Port::with(&data, limits, Patience::default()));
    let counts: Arc<[AtomicU64; 2]> = Arc::default();
    let read = |machine: usize, enough: u64| {
        let mut client = port.connect_from(address(11 + machine as u8));
        client.ask("");
        client.head();
        let counts = counts.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            // Until `lonely` has enough: then all stop.
            while counts[0].load(Ordering::Relaxed) < enough {
                let Ok(read @ 1..) = client.0.read(&mut buffer) else {
                    return;
                };
                counts[machine].fetch_add(read as u64, Ordering::Relaxed);
            }
        })
    };
    let enough = 16 << 20;
    let mut threads: Vec<_> = (0..8).map(|_| read(1, enough)).collect();
    threads.push(read(0, enough));
    for thread in threads {
        thread.join().unwrap();
    }
    let [lonely, many] = [0, 1].map(|n| counts[n].load(Ordering::Relaxed));
    assert!(lonely >= enough, "it was read to the end: {lonely}");
    let ratio = many as f64 / lonely as f64;
    // By connections it would be 8; sockets hold some megabytes besides.
    assert!((0.25..4.0).contains(&ratio), "{many} / {lonely} = {ratio}");
}

#[test]
fn a_thousand_ranges_are_few_facts() {
    let mut port = Port::start(&noise(100_000));
    let mut client = port.connect();
    for n in 0..1_000 {
        client.ask(&format!("Range: bytes={n}-{}\r\n", n + 99));
        assert_eq!(client.answer().body.len(), 100);
    }
    drop(client);
    port.stop();
    let mut bytes = 0;
    let mut facts = 0;
    while bytes < 100_000 {
        let row = port.events.blocking_recv().unwrap();
        assert_eq!(row.event.kind, kind::IMAGE);
        bytes += row.event.data["bytes"].as_u64().unwrap();
        facts += 1;
    }
    assert_eq!(bytes, 100_000);
    assert!(facts <= 3, "{facts} events");
}
