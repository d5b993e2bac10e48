//! Files on their way into the daemon: connections that break, and people who change their mind.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::kill;
use super::lab::{ADDRESS, Lab, disk, drained, sha256};

/// Stands between the command and the daemon, and breaks connections.
struct Cutter {
    /// Bytes that went towards the daemon.
    sent: Arc<AtomicU64>,
    port: u16,
}

impl Cutter {
    /// Each connection that carries `most` bytes towards the daemon breaks there, `cuts` times.
    fn before(daemon: SocketAddr, most: u64, cuts: u64) -> Self {
        let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(AtomicU64::new(0));
        let (count, left) = (sent.clone(), Arc::new(AtomicU64::new(cuts)));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (count, left) = (count.clone(), left.clone());
                std::thread::spawn(move || pass(client?, daemon, most, &count, &left));
            }
        });
        Self { sent, port }
    }
}

fn pass(
    client: TcpStream,
    daemon: SocketAddr,
    most: u64,
    count: &AtomicU64,
    left: &AtomicU64,
) -> std::io::Result<()> {
    let server = TcpStream::connect(daemon)?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    let back = std::thread::spawn(move || {
        // Broken on purpose.
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (client, server);
    let mut buffer = [0; 1 << 16];
    let mut carried = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read])?;
        carried += read as u64;
        count.fetch_add(read as u64, Ordering::SeqCst);
        let cut = |left: u64| left.checked_sub(1);
        if carried >= most
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, cut)
                .is_ok()
        {
            break;
        }
    }
    for stream in [&from, &to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
    let _ = back.join();
    Ok(())
}

/// `anneal image add x@1 …` by way of the cutter.
fn adding(lab: &Lab, cutter: &Cutter, source: &str) -> std::process::Command {
    let mut context: serde_json::Value =
        serde_json::from_slice(&std::fs::read(lab.context()).unwrap()).unwrap();
    context["server"] = format!("https://{ADDRESS}:{}", cutter.port).into();
    let path = lab.path("cut.context.json");
    let mut file = std::fs::OpenOptions::new();
    let mut file = file
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    file.write_all(context.to_string().as_bytes()).unwrap();
    let mut command = lab.adding(source);
    command.env("ANNEAL_CONTEXT", path);
    command
}

fn server(lab: &Lab) -> SocketAddr {
    let context: serde_json::Value =
        serde_json::from_slice(&std::fs::read(lab.context()).unwrap()).unwrap();
    let server = context["server"].as_str().unwrap();
    server.trim_start_matches("https://").parse().unwrap()
}

#[test]
fn an_upload_goes_on_where_its_connection_broke() {
    let lab = Lab::new("");
    let raw = disk(&lab, "raw", 40, &[]);
    let file = lab.path("raw").to_str().unwrap().to_owned();
    const CUTS: u64 = 3;
    // In the middle of a part: the command sends 8 MiB at once.
    let cutter = Cutter::before(server(&lab), 11 << 20, CUTS);
    let mut child = adding(&lab, &cutter, &file).spawn().unwrap();
    let status = child.wait().unwrap();
    let told = drained(&mut child);
    assert!(status.success(), "{told}");
    let image = &lab.get("images")["items"][0];
    assert_eq!(image["sha256"], sha256(&raw));
    assert_eq!(image["size"], raw.len() as u64);
    let sent = cutter.sent.load(Ordering::SeqCst);
    let whole = raw.len() as u64;
    assert!(
        sent >= whole,
        "{sent} of {whole} bytes went through the cutter"
    );
    // What was on its way at a cut may be sent again, the rest is not.
    let again = sent - whole;
    assert!(again < (CUTS * 4) << 20, "{again} bytes were sent again");
}

#[test]
fn whoever_presses_ctrl_c_in_an_upload_leaves_nothing_behind() {
    let lab = Lab::new("");
    for signal in ["-INT", "-TERM"] {
        let mut command = lab.adding("-");
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // More than a part, so that it is sent; there is no end, so that it goes on.
        stdin.write_all(&vec![1; 9 << 20]).unwrap();
        lab.until_ingest(|ingest| {
            ingest["received"].as_u64() > Some(0) && ingest["problem"].is_null()
        });
        kill(signal, child.id());
        assert_eq!(child.wait().unwrap().code(), Some(1));
        let told = drained(&mut child);
        assert!(told.contains("cancelled, nothing was kept"), "{told}");
        let ingest = lab.until_ingest(|ingest| ingest["state"] == "failed");
        assert_eq!(ingest["problem"]["code"], "ingest-cancelled");
        assert_eq!(lab.stored(), [""; 0]);
    }
}
