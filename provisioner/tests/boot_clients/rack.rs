//! What the tests share: both servers on loopback, their events, and running a client.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anneal_protocol::machine::Mac;
use bytes::Bytes;
use provisioner::boot::{BootFiles, BootSource, Target};
use provisioner::event::{self, Event, Recorder};
use provisioner::http::listener::Listener;
use provisioner::machine::{Cidr, Directory, Reservation, Snapshot};
use provisioner::store::Store;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Card of the one machine in the inventory.
pub const MAC: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
/// Its name.
pub const MACHINE: &str = "r1n1";
/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Both servers.
pub struct Rack {
    pub tftp: SocketAddr,
    pub http: SocketAddr,
    pub dir: tempfile::TempDir,
    events: broadcast::Receiver<Arc<provisioner::store::EventRow>>,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// Says what was asked, and that our machine boots its disk.
#[derive(Default)]
pub struct Source {
    pub asked: Mutex<Vec<(Mac, IpAddr)>>,
}

impl BootSource for Source {
    fn target<'a>(
        &'a self,
        mac: Mac,
        from: IpAddr,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<Target>> + Send + 'a>> {
        self.asked.lock().unwrap().push((mac, from));
        Box::pin(async move {
            Ok(if mac == MAC {
                Target::Disk {
                    machine: MACHINE.into(),
                }
            } else {
                Target::Unknown
            })
        })
    }
}

impl Rack {
    /// Starts both servers on `ip`; `machine` is the address reserved for our machine.
    pub async fn start(
        ip: IpAddr,
        ports: (u16, u16),
        machine: [u8; 4],
        files: Vec<(&'static str, Bytes)>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let (recorder, writer) = event::channel(store);
        let events = recorder.watch();
        let directory = directory(machine);
        let files = Arc::new(BootFiles::from_bytes(files));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run(stop.clone()));

        let tftp = provisioner::tftp::Server::bind(
            (ip, ports.0).into(),
            files.clone(),
            directory.clone(),
            recorder.clone(),
        )
        .unwrap();
        let tftp_address = tftp.local_addr();
        tasks.spawn(tftp.run(stop.clone()));

        let listener = Listener::bind((ip, ports.1).into(), None).await.unwrap();
        let http_address = listener.local_addr().unwrap();
        let router = provisioner::http::boot::router(
            files,
            Arc::new(Source::default()),
            directory,
            recorder,
            &format!("http://{http_address}"),
        );
        tasks.spawn(listener.run(router, stop.clone()));
        Self {
            tftp: tftp_address,
            http: http_address,
            dir,
            events,
            stop,
            tasks,
        }
    }

    /// Both servers on loopback, where our machine is 127.0.0.1.
    pub async fn on_loopback(files: Vec<(&'static str, Bytes)>) -> Self {
        Self::start([127, 0, 0, 1].into(), (0, 0), [127, 0, 0, 1], files).await
    }

    /// The next event of this kind.
    pub async fn event(&mut self, kind: &str) -> Event {
        self.event_within(kind, PATIENCE).await
    }

    /// The next event of this kind.
    pub async fn event_within(&mut self, kind: &str, patience: Duration) -> Event {
        let next = async {
            loop {
                let row = self.events.recv().await.expect("events fell behind");
                if row.event.kind == kind {
                    return row.event.clone();
                }
            }
        };
        match tokio::time::timeout(patience, next).await {
            Ok(event) => event,
            Err(_) => panic!("no {kind} event within {patience:?}"),
        }
    }

    /// A path for what a client fetches.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Stops the servers; fails if one of them failed.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

fn directory(machine: [u8; 4]) -> Directory {
    let directory = Directory::default();
    let reservation = Reservation {
        machine: MACHINE.into(),
        address: Some(Cidr {
            ip: machine.into(),
            prefix: 24,
        }),
        boot: true,
    };
    directory.replace(Snapshot {
        others: Default::default(),
        by_mac: [(MAC, reservation)].into(),
    });
    directory
}

/// A recorder nobody reads, for servers whose events do not matter.
pub async fn quiet_recorder(dir: &Path) -> (Recorder, event::Writer) {
    event::channel(Store::open(&dir.join("quiet.db")).await.unwrap())
}

/// `length` bytes without a short period.
pub fn noise(length: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// What a client program did.
pub struct Ran {
    pub ok: bool,
    pub output: String,
    pub stdout: Vec<u8>,
}

/// Runs a client; `package` is named when it is missing.
pub async fn run(package: &str, program: &str, args: &[&str]) -> Ran {
    let running = tokio::process::Command::new(program)
        .args(args)
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null())
        .output();
    let output = match tokio::time::timeout(PATIENCE, running).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => panic!("{program} ({error}): install the package {package}"),
        Err(_) => panic!("{program} {args:?} hangs"),
    };
    Ran {
        ok: output.status.success(),
        output: format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        stdout: output.stdout,
    }
}
