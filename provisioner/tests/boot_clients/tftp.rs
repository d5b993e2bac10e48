//! tftp-hpa, atftp and curl as TFTP clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use provisioner::event::kind;
use serde_json::json;

use super::rack::{MACHINE, Rack, noise, run};

/// More than 65535 blocks of 8 bytes.
const MANY_BLOCKS: usize = 600_001;

#[tokio::test(flavor = "multi_thread")]
async fn tftp_hpa_fetches_files_of_every_length() {
    let files = [
        ("one", 1),
        ("short", 511),
        ("block", 512),
        ("blocks", 1_024),
        ("long", 284_672),
    ];
    let mut rack = Rack::on_loopback(
        files
            .iter()
            .map(|(name, len)| (*name, noise(*len)))
            .collect(),
    )
    .await;
    let port = rack.tftp.port().to_string();
    for (name, length) in files {
        let to = rack.path(name);
        let to = to.to_str().unwrap();
        let ran = run(
            "tftp-hpa",
            "tftp",
            &["-m", "octet", "127.0.0.1", &port, "-c", "get", name, to],
        )
        .await;
        assert!(ran.ok, "{}", ran.output);
        assert!(std::fs::read(to).unwrap() == noise(length), "{name}");
        let event = rack.event(kind::TFTP).await;
        assert_eq!(event.machine.as_deref(), Some(MACHINE));
        assert_eq!(event.data["file"], json!(name));
        assert_eq!(event.data["bytes"], json!(length));
        assert_eq!(event.data["outcome"], json!("complete"));
        assert_eq!(event.data["blksize"], json!(512));
    }
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tftp_hpa_is_told_what_it_may_not_do() {
    let rack = Rack::on_loopback(vec![("a", noise(10))]).await;
    let port = rack.tftp.port().to_string();
    let to = rack.path("fetched");
    let to = to.to_str().unwrap();
    let table: [(&[&str], &str); 4] = [
        (
            &["-m", "octet", "get", "autoexec.ipxe", to],
            "File not found",
        ),
        (&["-m", "octet", "get", "../state.db", to], "File not found"),
        (&["-m", "octet", "put", to, "a"], "read-only"),
        (&["-m", "netascii", "get", "a", to], "octet"),
    ];
    std::fs::write(to, "x").unwrap();
    for (words, expected) in table {
        let mut args = vec![words[0], words[1], "127.0.0.1", &port, "-c"];
        args.extend(&words[2..]);
        let ran = run("tftp-hpa", "tftp", &args).await;
        assert!(
            ran.output.to_lowercase().contains(&expected.to_lowercase()),
            "{words:?}: {}",
            ran.output
        );
    }
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atftp_fetches_with_windows_and_block_sizes() {
    let mut rack = Rack::on_loopback(vec![
        ("ipxe.efi", noise(996_864)),
        ("many", noise(MANY_BLOCKS)),
    ])
    .await;
    let port = rack.tftp.port().to_string();
    // File, options, and what the transfer must have used.
    let table: [(&str, &[&str], u16, u16); 5] = [
        ("ipxe.efi", &[], 512, 1),
        ("ipxe.efi", &["blksize 1468"], 1_468, 1),
        ("ipxe.efi", &["blksize 1468", "windowsize 4"], 1_468, 4),
        ("ipxe.efi", &["blksize 1024", "windowsize 1000"], 1_024, 64),
        ("many", &["blksize 8", "windowsize 16"], 8, 16),
    ];
    for (file, options, blksize, windowsize) in table {
        let to = rack.path("fetched");
        let to = to.to_str().unwrap();
        let mut args = Vec::new();
        for option in options {
            args.extend(["--option", option]);
        }
        args.extend(["-g", "-r", file, "-l", to, "127.0.0.1", &port]);
        let ran = run("atftp", "atftp", &args).await;
        assert!(ran.ok, "{options:?}: {}", ran.output);
        let expected = match file {
            "many" => noise(MANY_BLOCKS),
            _ => noise(996_864),
        };
        assert!(std::fs::read(to).unwrap() == expected, "{options:?}");
        let event = rack.event(kind::TFTP).await;
        assert_eq!(event.data["blksize"], json!(blksize), "{options:?}");
        assert_eq!(event.data["windowsize"], json!(windowsize), "{options:?}");
        assert_eq!(event.data["bytes"], json!(expected.len()));
        std::fs::remove_file(to).unwrap();
    }
    rack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_fetches_by_tftp() {
    let rack = Rack::on_loopback(vec![
        ("x.efi", noise(100_000)),
        ("many", noise(MANY_BLOCKS)),
    ])
    .await;
    let base = format!("tftp://{}", rack.tftp);
    let table: [(&str, &[&str], usize); 4] = [
        ("x.efi", &[], 100_000),
        ("x.efi", &["--tftp-no-options"], 100_000),
        ("x.efi", &["--tftp-blksize", "1468"], 100_000),
        // Lockstep over the wrap of block numbers.
        ("many", &["--tftp-blksize", "8"], MANY_BLOCKS),
    ];
    for (file, options, length) in table {
        // A second slash: the client sends the name with a leading one.
        let url = format!("{base}//{file}");
        let mut args = vec!["--silent", "--show-error", &url];
        args.extend(options);
        let ran = run("curl", "curl", &args).await;
        assert!(ran.ok, "{options:?}: {}", ran.output);
        assert!(ran.stdout == noise(length), "{options:?}");
    }
    // 68 is curl's code for TFTP "file not found".
    let ran = run(
        "curl",
        "curl",
        &["-sS", "-w", "%{exitcode}", &format!("{base}/nothing")],
    )
    .await;
    assert!(ran.output.contains("68"), "{}", ran.output);
    rack.stop().await;
}

/// A read request; with `windowsize` the server answers with an OACK, without it with data.
fn read_request(file: &str, windowsize: bool) -> Vec<u8> {
    let options: &[u8] = if windowsize {
        b"windowsize\x0064\0"
    } else {
        b""
    };
    [b"\0\x01", file.as_bytes(), b"\0octet\0", options].concat()
}

/// Requests from addresses that never answer, as forged ones do, until stopped; a new address
/// each time, and now and then from the address of our machine.
async fn forge(server: std::net::SocketAddr, sent: Arc<AtomicU32>) {
    loop {
        let n = sent.fetch_add(1, Ordering::Relaxed);
        let [_, b, c, d] = n.to_be_bytes();
        let from = match n % 64 {
            0 => [127, 0, 0, 1],
            _ => [127, b + 1, c, d.max(1)],
        };
        let socket = tokio::net::UdpSocket::bind((std::net::IpAddr::from(from), 0))
            .await
            .unwrap();
        let request = read_request("big", n.is_multiple_of(2));
        socket.send_to(&request, server).await.unwrap();
        if n.is_multiple_of(8) {
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_requests_do_not_shut_out_real_clients() {
    let mut rack = Rack::on_loopback(vec![("big", noise(3_000_000))]).await;
    let port = rack.tftp.port().to_string();
    let sent = Arc::new(AtomicU32::new(0));
    let flood = tokio::spawn(forge(rack.tftp, sent.clone()));
    // More than there are places, before the first real client comes.
    let full = async {
        while sent.load(Ordering::Relaxed) < 2_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::rack::PATIENCE, full)
        .await
        .unwrap();
    let to = rack.path("fetched");
    let to = to.to_str().unwrap();
    let hpa: &[&str] = &["-m", "octet", "127.0.0.1", &port, "-c", "get", "big", to];
    let atftp: &[&str] = &[
        "--option",
        "blksize 1468",
        "--option",
        "windowsize 8",
        "-g",
        "-r",
        "big",
        "-l",
        to,
        "127.0.0.1",
        &port,
    ];
    for (package, program, args) in [("tftp-hpa", "tftp", hpa), ("atftp", "atftp", atftp)] {
        let ran = run(package, program, args).await;
        assert!(!flood.is_finished(), "the flood ended early");
        assert!(ran.ok, "{program}: {}", ran.output);
        assert!(std::fs::read(to).unwrap() == noise(3_000_000), "{program}");
        std::fs::remove_file(to).unwrap();
        loop {
            let event = rack.event(kind::TFTP).await;
            if event.data["outcome"] == json!("complete") {
                break;
            }
        }
    }
    flood.abort();
    rack.stop().await;
}
