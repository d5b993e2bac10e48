//! Clients that are slow, rude or gone, and files that change under us.

use std::io::Read;
use std::net::Shutdown;
use std::time::Duration;

use provisioner::http::blob::{Limits, Patience};

use super::port::{HEX, Port, noise};

/// Longer than a client's thread waits for a processor on a busy host.
const SHORT: Duration = Duration::from_millis(1500);

fn impatient() -> Patience {
    Patience {
        idle: SHORT,
        head: SHORT,
        stall: SHORT,
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let data = noise(300_000);
    let port = Port::start(&data);
    let mut client = port.connect();
    let ask = |range: &str| {
        format!("GET /images/{HEX}/data.zst HTTP/1.1\r\nHost: x\r\nRange: bytes={range}\r\n\r\n")
    };
    client.say(
        &[
            ask("0-9"),
            ask("100000-299999"),
            ask("5-5"),
            "GET /x HTTP/1.1\r\n".into(),
        ]
        .concat(),
    );
    assert_eq!(client.answer().body, data[..10]);
    assert!(client.answer().body == data[100_000..]);
    assert_eq!(client.answer().body, data[5..6]);
    client.say("Host: x\r\n\r\n");
    assert_eq!(client.answer().status, 404);
    // A head has no body, so the next answer follows at once.
    client.say(&ask("0-9").replacen("GET", "HEAD", 1));
    assert_eq!(client.head().header("content-length"), "10");
    client.ask("Range: bytes=7-8\r\nConnection: close\r\n");
    let last = client.answer();
    assert_eq!(
        (last.header("connection"), &last.body[..]),
        ("close", &data[7..9])
    );
    assert!(client.rest().is_empty());
}

#[test]
fn http_1_0_is_answered_and_ended() {
    let port = Port::start(b"0123456789");
    let mut client = port.connect();
    client.say(&format!("GET /images/{HEX}/data.zst HTTP/1.0\r\n\r\n"));
    assert_eq!(client.answer().body, b"0123456789");
    assert!(client.rest().is_empty());
    let mut client = port.connect();
    for _ in 0..2 {
        client.say(&format!(
            "GET /images/{HEX}/data.zst HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        ));
        let answer = client.answer();
        assert_eq!(answer.header("connection"), "keep-alive");
    }
}

#[test]
fn what_is_not_a_request_is_refused_and_the_connection_ended() {
    let port = Port::start(b"0123456789");
    let path = format!("/images/{HEX}/data.zst");
    let cases = [
        (
            "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned(),
            400,
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        (format!("GET {path} HTTP/1.1\r\n\r\n"), 400),
        (
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
            400,
        ),
        (
            format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n",
                "a".repeat(9_000)
            ),
            431,
        ),
        (
            format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\n{}\r\n",
                "A: b\r\n".repeat(100)
            ),
            431,
        ),
        (
            format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET {path} HTTP/1.1\r\nHost: x\r\n\r\n"
            ),
            400,
        ),
        (
            format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n{}",
                "x".repeat(200_000)
            ),
            405,
        ),
    ];
    for (text, status) in cases {
        let mut client = port.connect();
        client.say(&text);
        let answer = client.answer();
        assert_eq!(answer.status, status, "{text:.80}");
        assert_eq!(answer.header("connection"), "close", "{text:.80}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert!(client.rest().is_empty(), "one answer: {text:.80}");
    }
    // The port still serves.
    let mut client = port.connect();
    client.ask("");
    assert_eq!(client.answer().body, b"0123456789");
}

#[test]
fn a_head_that_does_not_end_and_a_silent_client_are_cut_off() {
    let port = Port::with(b"data", Limits::default(), impatient());
    let mut slow = port.connect();
    slow.say("GET /images");
    assert_eq!(slow.answer().status, 408);
    let mut silent = port.connect();
    assert!(silent.rest().is_empty());
    port.until("image_port_connections", 0);
}

#[test]
fn a_client_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
    let data = noise(24 << 20);
    let patience = Patience {
        stall: SHORT,
        ..Patience::default()
    };
    let port = Port::with(&data, Limits::default(), patience);
    let mut stuck = port.connect();
    stuck.ask("");
    stuck.head();
    port.until("image_port_connections", 0);
    drop(stuck);

    let mut slow = port.connect();
    slow.ask("");
    let answer = slow.head();
    let mut got = vec![0; answer.header("content-length").parse().unwrap()];
    for piece in got.chunks_mut(64 * 1024) {
        slow.0.read_exact(piece).unwrap();
        std::thread::yield_now();
    }
    assert!(got == data);
}

#[test]
fn clients_that_leave_are_forgotten() {
    let port = Port::start(&noise(24 << 20));
    for how in [Shutdown::Read, Shutdown::Both] {
        let mut client = port.connect();
        client.ask("");
        client.head();
        client.0.shutdown(how).unwrap();
        drop(client);
    }
    port.until("image_port_connections", 0);
}

#[test]
fn a_removed_image_is_sent_to_its_end_and_then_gone() {
    let data = noise(24 << 20);
    let port = Port::start(&data);
    let mut client = port.connect();
    client.ask("");
    let answer = client.head();
    std::fs::remove_dir_all(port.image_dir()).unwrap();
    let mut got = vec![0; answer.header("content-length").parse().unwrap()];
    client.0.read_exact(&mut got).unwrap();
    assert!(got == data);
    client.ask("");
    assert_eq!(client.answer().status, 404);
}

#[test]
fn a_file_that_shrinks_ends_the_connection_short() {
    let data = noise(24 << 20);
    let port = Port::start(&data);
    let mut client = port.connect();
    client.ask("");
    client.head();
    let path = port.image_dir().join("data.zst");
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(1)
        .unwrap();
    let got = client.rest();
    assert!(got.len() < data.len(), "a short body must not look whole");
}

#[test]
fn stopping_lets_a_body_finish_and_ends_idle_connections() {
    let data = noise(24 << 20);
    let mut port = Port::start(&data);
    let mut idle = port.connect();
    idle.ask("Range: bytes=0-0\r\n");
    idle.answer();
    let mut busy = port.connect();
    busy.ask("");
    let answer = busy.head();
    let length = answer.header("content-length").parse().unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; length];
        assert!(idle.rest().is_empty(), "the idle connection ends first");
        busy.0.read_exact(&mut got).unwrap();
        got
    });
    port.stop();
    assert!(reader.join().unwrap() == data);
}
