//! A registry that wants the daemon to go where it must not, or to take more than it can hold.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::lab::{ADDRESS, Lab, disk, sha256};
use super::proofs::cosign_keys;

/// What the registry does when it is asked for one path.
#[derive(Debug, Clone)]
enum Trick {
    /// Sends to another place.
    Redirect(String),
    /// Wants a token from there.
    Login(String),
    /// Sends without end.
    Endless,
    /// Sends this.
    Answer(Vec<u8>),
}

/// The end of a path, and what is done with it; the first that fits counts.
type Tricks = Vec<(&'static str, Trick)>;

#[derive(Clone)]
struct Registry {
    address: String,
    tricks: Arc<Mutex<Tricks>>,
}

impl Registry {
    fn start() -> Self {
        let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap().to_string(),
            tricks: Arc::default(),
        };
        let served = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let registry = served.clone();
                // The client goes away when it has had enough: that is what is tested.
                std::thread::spawn(move || registry.answer(stream?));
            }
        });
        registry
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let path = first.split(' ').nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default().to_owned();
        while lines
            .next()
            .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
        {}
        let tricks = self.tricks.lock().unwrap().clone();
        let trick = tricks.into_iter().find(|(end, _)| path.ends_with(end));
        let close = "Connection: close\r\n";
        match trick.map(|(_, trick)| trick) {
            None => write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n{close}\r\n"
            ),
            Some(Trick::Redirect(to)) => write!(
                stream,
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\n{close}\r\n"
            ),
            Some(Trick::Login(realm)) => write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{realm}\",service=\"x\"\r\nContent-Length: 0\r\n{close}\r\n"
            ),
            Some(Trick::Answer(bytes)) => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{close}\r\n",
                    bytes.len()
                )?;
                stream.write_all(&bytes)
            }
            Some(Trick::Endless) => {
                write!(stream, "HTTP/1.1 200 OK\r\n{close}\r\n")?;
                loop {
                    stream.write_all(&[b' '; 1 << 14])?;
                }
            }
        }
    }

    /// Does these tricks besides the honest answers.
    fn play(&self, honest: &Tricks, tricks: Tricks) {
        *self.tricks.lock().unwrap() = [tricks, honest.clone()].concat();
    }
}

#[test]
fn a_registry_leads_the_daemon_neither_astray_nor_out_of_memory() {
    let lab = Lab::new("  allow_local_sources: false\n");
    let registry = Registry::start();
    // What only the daemon's own host should reach.
    let inner = TcpListener::bind("127.0.0.1:0").unwrap();
    inner.set_nonblocking(true).unwrap();
    let trap = format!("http://{}/secret", inner.local_addr().unwrap());

    let raw = disk(&lab, "raw", 4, &[]);
    let disk_digest = format!("sha256:{}", sha256(&raw));
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "layers": [{ "mediaType": "application/vnd.example.raw", "digest": disk_digest, "size": raw.len() }],
    }))
    .unwrap();
    let payload = b"{}".to_vec();
    let signature = serde_json::to_vec(&json!({ "layers": [{
        "digest": format!("sha256:{}", sha256(&payload)), "size": payload.len(),
        "annotations": { "dev.cosignproject.cosign/signature": "MEUC" },
    }] }))
    .unwrap();
    let answer = |bytes: &[u8]| Trick::Answer(bytes.to_vec());
    let name = |text: String| -> &'static str { text.leak() };
    let disk_blob = name(format!("/blobs/{disk_digest}"));
    let signed_blob = name(format!("/blobs/sha256:{}", sha256(&payload)));
    let honest = vec![
        ("/manifests/1", answer(&manifest)),
        (disk_blob, answer(&raw)),
        (".sig", answer(&signature)),
        (signed_blob, answer(&payload)),
    ];
    let (_, public) = cosign_keys(&lab, "publisher");
    let proven = ["--cosign-key", public.as_str()];
    let redirect = || Trick::Redirect(trap.clone());
    let login = || Trick::Login(trap.clone());
    let own_token = || Trick::Login(format!("http://{}/token", registry.address));
    let astray = "images.allow_local_sources";
    let (long, longer) = ("more than 65536 bytes", "more than 4194304 bytes");
    let cases: Vec<(Tricks, &str)> = vec![
        (vec![("/manifests/1", redirect())], astray),
        (vec![("/manifests/1", login())], astray),
        (vec![("/manifests/1", Trick::Endless)], longer),
        (vec![(disk_blob, redirect())], astray),
        (vec![(".sig", redirect())], astray),
        (vec![(".sig", login())], astray),
        (vec![(".sig", Trick::Endless)], longer),
        (
            vec![(".sig", own_token()), ("/token", Trick::Endless)],
            long,
        ),
        (vec![(".sig", own_token()), ("/token", redirect())], astray),
        (vec![(signed_blob, redirect())], astray),
        (vec![(signed_blob, Trick::Endless)], long),
        (vec![], "not by the key"),
    ];
    let source = format!("oci://{}/os/test:1", registry.address);
    for (tricks, word) in cases {
        let case = format!("{tricks:?}");
        // The disk is fetched only when its proof holds: here, without one.
        let of_disk = tricks.first().is_some_and(|(path, _)| *path == disk_blob);
        let proof = if of_disk {
            &["--unproven"][..]
        } else {
            &proven
        };
        registry.play(&honest, tricks);
        let args = [&["--plain-http", "--os", "debian"][..], proof].concat();
        let told = lab.add_fails("x@1", &source, &args);
        assert!(told.contains(word), "{case}: {told}");
        assert_eq!(lab.stored(), [""; 0], "{case}");
    }
    let reached = inner.accept().map(|(_, from)| from);
    assert!(reached.is_err(), "somebody came to the trap: {reached:?}");
    // And the honest one is no trap itself.
    registry.play(&honest, vec![]);
    let image = lab.add("x@1", &source, &["--plain-http", "--os", "debian"]);
    assert_eq!(image["sha256"], sha256(&raw));
}
