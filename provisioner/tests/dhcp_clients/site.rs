//! A DHCP server on a wire, and clients to put on it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use provisioner::dhcp::{BootUrls, Counters, DhcpConfig, Server};
use provisioner::event;
use provisioner::machine::{Cidr, Directory, Reservation, Snapshot};
use provisioner::settings::DhcpSettings;
use provisioner::store::{EventRow, Lease, Store};
use tokio_util::sync::CancellationToken;

use crate::executable;
use crate::netns::{self, Namespace, PATIENCE};

pub const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const RESERVED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub const POOLED: &str = "52:54:00:aa:00:02";
pub const MAC: &str = "52:54:00:aa:00:01";
pub const FAR: &str = "52:54:00:bb:00:01";
pub const FAR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);

/// A server's namespace with one wire, and the database that outlives servers.
pub struct Site {
    pub wire: Namespace,
    pub client: Namespace,
    pub dir: tempfile::TempDir,
}

/// A running server.
pub struct Serving {
    pub stop: CancellationToken,
    pub counters: Arc<Counters>,
    pub thread: Option<std::thread::JoinHandle<()>>,
}

impl Site {
    /// A client with this MAC on the wire.
    pub fn new(mac: &str) -> Self {
        let (wire, client) = (Namespace::new(), Namespace::new());
        wire.cable("srv0", &client, "cli0", mac);
        wire.ip("addr add 10.77.0.1/24 dev srv0");
        let dir = tempfile::tempdir().unwrap();
        let site = Self { wire, client, dir };
        site.write_scripts();
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The scripts that clients call: they set the address and write down what they were told.
    pub fn write_scripts(&self) {
        let log = self.path("log");
        let body = format!(
            "#!/bin/sh\n\
             case \"${{1:-$reason}}\" in\n\
             bound|renew|BOUND|RENEW|REBOOT) ip addr replace \"${{ip:-$new_ip_address}}/24\" dev cli0;;\n\
             esac\n\
             echo \"${{1:-$reason}} address=${{ip:-$new_ip_address}} \
             router=${{router:-$new_routers}} mask=${{subnet:-$new_subnet_mask}} \
             name=${{hostname:-$new_host_name}} file=${{boot_file:-$new_filename}}\" >> {log}\n",
            log = log.display()
        );
        executable::write(&self.path("script"), &body);
        std::fs::write(self.path("dhclient.conf"), "").unwrap();
    }

    /// What clients were told so far, a line a time.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn serve(&self) -> Serving {
        self.serve_with(|_| ())
    }

    pub fn serve_with(&self, edit: impl FnOnce(&mut DhcpConfig)) -> Serving {
        let mut config = config();
        edit(&mut config);
        let (wire, database) = (self.wire.again(), self.path("db"));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (ready, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            wire.enter();
            netns::block_on(async {
                let store = Store::open(&database).await.unwrap();
                let (recorder, writer) = event::channel(store.clone());
                let writing = tokio::spawn(writer.run(stopped.clone()));
                let server = Server::bind(config, inventory(), store, recorder)
                    .await
                    .unwrap();
                ready.send(server.counters()).unwrap();
                server.run(stopped).await.unwrap();
                writing.await.unwrap().unwrap();
            });
        });
        Serving {
            stop,
            counters: wait.recv_timeout(PATIENCE).expect("the server starts"),
            thread: Some(thread),
        }
    }

    /// busybox udhcpc, in the foreground. Every answer waits for the disk, so it is patient: a question
    /// that is asked again may be answered twice.
    pub fn udhcpc(&self, arguments: &str) -> std::process::Command {
        let mut command = self.client.command("udhcpc", "udhcpc");
        command
            .args(["-f", "-i", "cli0", "-t", "30", "-T", "3", "-s"])
            .arg(self.path("script"))
            .args(arguments.split_whitespace());
        command
    }

    /// ISC dhclient, until it has an address.
    pub fn dhclient(&self) -> std::process::Command {
        let mut command = self.client.command("dhclient", "isc-dhcp-client");
        command.args(["-4", "-1", "-d", "--no-pid", "-cf"]);
        command.arg(self.path("dhclient.conf"));
        command.arg("-lf").arg(self.path("dhclient.leases"));
        command.arg("-sf").arg(self.path("script")).arg("cli0");
        command
    }

    pub fn leases(&self) -> Vec<Lease> {
        ask_store(&self.path("db"), async |store| {
            store.leases().await.unwrap()
        })
    }

    pub fn events(&self, wanted: &str) -> Vec<EventRow> {
        ask_store(&self.path("db"), async |store| {
            let mut rows = store.events_after(0, 1_000, None, None).await.unwrap();
            rows.retain(|row| row.event.kind == wanted);
            rows
        })
    }
}

impl Serving {
    pub fn end(mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn ask_store<T>(path: &Path, question: impl AsyncFnOnce(Store) -> T) -> T {
    netns::block_on(async { question(Store::open(path).await.unwrap()).await })
}

pub fn config() -> DhcpConfig {
    DhcpConfig {
        interface: "srv0".to_owned(),
        address: Cidr { ip: US, prefix: 24 },
        settings: DhcpSettings {
            pool: Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 120))),
            serve_unknown: false,
            router: Some(Ipv4Addr::new(10, 77, 0, 254)),
            dns: vec![US],
            lease: Duration::from_secs(600),
            allow_foreign: false,
        },
        boot: BootUrls {
            tftp: US,
            boot_http: "http://10.77.0.1:8080".to_owned(),
        },
    }
}

pub fn inventory() -> Directory {
    let mut snapshot = Snapshot::default();
    for (mac, machine, address) in [
        (MAC, "r1n1", Some(RESERVED)),
        (POOLED, "r1n2", None),
        (FAR, "r2n1", Some(FAR_ADDRESS)),
    ] {
        snapshot.by_mac.insert(
            mac.parse().unwrap(),
            Reservation {
                machine: machine.to_owned(),
                address: address.map(|ip| Cidr { ip, prefix: 24 }),
                boot: true,
            },
        );
    }
    let directory = Directory::default();
    directory.replace(snapshot);
    directory
}
