//! A daemon for tests: TLS with a fresh authority, one thread a connection, answers by script.
//!
//! Speaks just enough HTTP/1.1 to be able to misbehave below it: cut, stall, flip.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest as _, Sha256};

use crate::attached::Attached;

/// The host, as a guest behind QEMU's user network sees it.
pub const QEMU_HOST: &str = "10.0.2.2";

pub struct Authority {
    pub pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        Self {
            pem: cert.pem(),
            der: cert.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.der))
    }

    /// Signs a request as the daemon does.
    pub fn sign(&self, csr: &str) -> String {
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.signed_by(&self.issuer).unwrap().pem()
    }

    fn server_config(&self) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), QEMU_HOST.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .unwrap();
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![leaf.der().clone(), self.der.clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap()
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    /// First byte of a `Range` header.
    pub from: u64,
    /// One after the last byte of it.
    pub to: Option<u64>,
    pub body: Vec<u8>,
    /// A client certificate was shown and verified.
    pub authenticated: bool,
}

impl Request {
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What to answer.
pub enum Answer {
    Json(u16, serde_json::Value),
    Bytes(Vec<u8>),
    /// The data from the byte asked for, as 206; after so many bytes, what `then` says.
    Data {
        data: Arc<Vec<u8>>,
        after: u64,
        then: Then,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Closes the connection.
    Cut,
    /// Says nothing more, but keeps the connection.
    Stall,
}

pub type Script = dyn Fn(&Request) -> Answer + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    pub log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves until the test process ends.
    pub fn start(authority: &Authority, script: Box<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(authority.server_config());
        let script: Arc<Script> = script.into();
        let log = Arc::new(Mutex::new(Vec::new()));
        let shared = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, script, log) = (config.clone(), script.clone(), shared.clone());
                // A connection that fails is the client's to notice.
                std::thread::spawn(move || serve(stream, config, &script, &log));
            }
        });
        Self { address, log }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn requests(&self, suffix: &str) -> Vec<Request> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|r| r.path.ends_with(suffix))
            .cloned()
            .collect()
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    script: &Arc<Script>,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let tls = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(tls, stream));
    loop {
        let Some(request) = read_request(&mut reader)? else {
            return Ok(());
        };
        log.lock().unwrap().push(request.clone());
        let stream = reader.get_mut();
        match script(&request) {
            Answer::Json(status, value) => {
                let body = serde_json::to_vec(&value)?;
                let reason = if status < 300 { "OK" } else { "No" };
                write!(
                    stream,
                    "HTTP/1.1 {status} {reason}\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                )?;
                stream.write_all(&body)?;
            }
            Answer::Bytes(body) => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                )?;
                stream.write_all(&body)?;
            }
            Answer::Data { data, after, then } => {
                let (from, total) = (request.from, data.len() as u64);
                if from >= total {
                    write!(stream, "HTTP/1.1 416 No\r\ncontent-length: 0\r\n\r\n")?;
                    continue;
                }
                let to = request.to.unwrap_or(total).min(total);
                write!(
                    stream,
                    "HTTP/1.1 206 Partial\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{total}\r\n\r\n",
                    to - from,
                    to - 1
                )?;
                let end = to.min(from.saturating_add(after));
                stream.write_all(&data[from as usize..end as usize])?;
                stream.flush()?;
                if end < to {
                    if then == Then::Stall {
                        // Until the client gives up on us.
                        let _ = stream.read(&mut [0]);
                    }
                    return Ok(());
                }
            }
        }
        reader.get_mut().flush()?;
    }
}

fn read_request(
    reader: &mut BufReader<StreamOwned<ServerConnection, TcpStream>>,
) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let path = words.nth(1).unwrap();
    let (mut length, mut from, mut to) = (0, 0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim().to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if let Some(value) = header.strip_prefix("range: bytes=") {
            let (first, last) = value.split_once('-').unwrap();
            from = first.parse().unwrap();
            to = last.parse::<u64>().ok().map(|last| last + 1);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request {
        path,
        from,
        to,
        body,
        authenticated: reader.get_ref().conn.peer_certificates().is_some(),
    }))
}

/// Waits for a condition, with a bound.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Moves this thread, and what it starts, among mounts of its own: what it mounts goes with them,
/// however they end.
pub fn own_mounts() {
    // SAFETY: only which mounts this thread sees changes, no descriptors.
    let own = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    own.expect("tests that mount need root");
    let private = Command::new("mount")
        .args(["--make-rprivate", "/"])
        .status();
    assert!(private.expect("mount: install the package mount").success());
}

/// A loop device over a file.
pub struct Loop {
    pub node: String,
    pub file: PathBuf,
    _attached: Attached,
    _dir: Option<tempfile::TempDir>,
}

impl Loop {
    /// Over a new file of this size.
    pub fn new(name: &str, size: u64) -> Self {
        Self::with_sector(name, size, 512)
    }

    /// A disk with logical sectors of this size.
    pub fn with_sector(name: &str, size: u64, sector: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        let mut disk = Self::attach(&file, &["-P", "--sector-size", &sector.to_string()]);
        disk._dir = Some(dir);
        disk
    }

    /// Over a file that is there.
    pub fn over(file: &Path) -> Self {
        Self::attach(file, &[])
    }

    fn attach(file: &Path, more: &[&str]) -> Self {
        let attached = Attached::new(file, more);
        Self {
            node: attached.node.clone(),
            file: file.to_owned(),
            _attached: attached,
            _dir: None,
        }
    }
}
