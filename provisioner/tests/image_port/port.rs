//! An image port on loopback with one image, and raw clients for it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use provisioner::event;
use provisioner::http::blob::{BlobMetrics, Config, Images, Limits, Part, Patience, Server};
use provisioner::machine::Directory;
use provisioner::store::{EventRow, Store};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The digest of the one image.
pub const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Images in a folder, one sub-folder each.
#[derive(Debug)]
struct Dir(PathBuf);

impl Images for Dir {
    fn path(&self, hex: &str, part: Part) -> Option<PathBuf> {
        Some(self.0.join(hex).join(part.name())).filter(|path| path.is_file())
    }
}

/// A running port.
pub struct Port {
    pub address: SocketAddr,
    pub dir: TempDir,
    pub events: broadcast::Receiver<Arc<EventRow>>,
    registry: Registry,
    runtime: Option<Runtime>,
    stop: CancellationToken,
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

/// Bytes that repeat at no power of two.
pub fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251 + n / 65_521) as u8).collect()
}

impl Port {
    pub fn start(data: &[u8]) -> Self {
        Self::with(data, Limits::default(), Patience::default())
    }

    pub fn with(data: &[u8], limits: Limits, patience: Patience) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join(HEX);
        std::fs::create_dir(&image).unwrap();
        std::fs::write(image.join("data.zst"), data).unwrap();
        std::fs::write(image.join("manifest.json"), b"{}").unwrap();
        let runtime = Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let mut registry = Registry::default();
        let metrics = BlobMetrics::register(&mut registry);
        let images = Arc::new(Dir(dir.path().to_owned()));
        let (address, events, task) = runtime.block_on(async {
            let store = Store::open(&dir.path().join("db")).await.unwrap();
            let (recorder, writer) = event::channel(store);
            let events = recorder.watch();
            tokio::spawn(writer.run(CancellationToken::new()));
            let config = Config {
                images,
                directory: Directory::default(),
                recorder,
                metrics,
                limits,
                patience,
            };
            let server = Server::bind("127.0.0.1:0".parse().unwrap(), config)
                .await
                .unwrap();
            let address = server.local_addr().unwrap();
            (address, events, tokio::spawn(server.run(stop.clone())))
        });
        Self {
            address,
            dir,
            events,
            registry,
            runtime: Some(runtime),
            stop,
            task: Some(task),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/images/{HEX}/data.zst", self.address)
    }

    pub fn image_dir(&self) -> PathBuf {
        self.dir.path().join(HEX)
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until a metric has a value.
    pub fn until(&self, name: &str, wanted: u64) {
        let begin = Instant::now();
        while self.metric(name) != wanted {
            assert!(
                begin.elapsed() < PATIENCE,
                "{name} stays {} and not {wanted}",
                self.metric(name)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn connect(&self) -> Client {
        self.connect_from([127, 0, 0, 1].into())
    }

    /// A connection from another loopback address: another machine.
    pub fn connect_from(&self, from: IpAddr) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    /// Tells it to stop and waits for its end.
    pub fn stop(&mut self) {
        self.stop.cancel();
        let (Some(runtime), Some(task)) = (&self.runtime, self.task.take()) else {
            return;
        };
        let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, task).await });
        ended.expect("the port stops in time").unwrap().unwrap();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(has, _)| has.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value)
    }
}

/// A connection that says exactly what it is told to.
pub struct Client(pub TcpStream);

impl Client {
    pub fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Asks for the image's data with more headers.
    pub fn ask(&mut self, headers: &str) {
        self.say(&format!(
            "GET /images/{HEX}/data.zst HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
        ));
    }

    /// The head of the next answer.
    pub fn head(&mut self) -> Answer {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&head))
            });
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: Vec::new(),
        }
    }

    /// The next answer to a GET.
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let length = answer.header("content-length").parse().unwrap_or(0);
        answer.body = vec![0; length];
        self.0.read_exact(&mut answer.body).unwrap();
        answer
    }

    /// Whatever comes until the other side ends the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = self.0.read_to_end(&mut rest);
        rest
    }
}
