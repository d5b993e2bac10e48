//! A daemon in this process and clients for it, in a network namespace of the test's own thread:
//! its `lo` has the addresses of daemon and machines. Needs root.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anneal_protocol::cmdline::Boot;
use provisioner::app::{App, Shared};
use provisioner::image::{Findings, ImageError, SealRequest};
use provisioner::machine::Cidr;
use provisioner::settings::{EventSettings, ImageSettings, JoinSettings, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Two machines without a BMC.
pub const INVENTORY: &str = r#"machines:
  - name: r1n1
    nics:
      - { mac: "52:54:00:aa:00:01", address: 10.77.0.11/24, boot: true }
    disk: { hints: { serial: "DISK1" } }
    image: debian@99
  - name: r1n2
    nics:
      - mac: "52:54:00:aa:00:02"
        address: 10.77.0.12/24
        boot: true
    disk: { hints: { serial: "DISK2" } }
"#;

/// The same machines, but the second one has its address on a VLAN.
pub fn inventory_with_a_vlan() -> String {
    let vlan = "        boot: true\n    vlans: [ { id: 20, parent: \"52:54:00:aa:00:02\", address: 10.77.0.12/24 } ]\n";
    let moved = INVENTORY.replace("        address: 10.77.0.12/24\n        boot: true\n", vlan);
    assert!(moved.contains("vlans"), "{moved}");
    moved
}

pub struct Daemon {
    pub tls: String,
    pub boot: String,
    pub images: String,
    pub key: String,
    pub admin: reqwest::Client,
    pub anonymous: reqwest::Client,
    ca: String,
    shared: Shared,
    task: JoinHandle<anyhow::Result<()>>,
    state: TempDir,
}

pub struct NodeKey {
    pub key_pem: String,
    pub csr: String,
}

impl NodeKey {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        Self {
            key_pem: key.serialize_pem(),
            csr: csr.pem().unwrap(),
        }
    }
}

pub fn settings(state: &Path) -> Settings {
    let netboot = state.join("netboot");
    boot_files(&netboot);
    Settings {
        state_dir: state.join("state"),
        netboot_dir: netboot,
        password_dirs: vec![state.join("passwords")],
        workflows_dir: None,
        templates_dir: None,
        interface: "lo".to_owned(),
        address: Cidr {
            ip: [10, 77, 0, 1].into(),
            prefix: 24,
        },
        boot_port: 0,
        tls_port: 0,
        dhcp: None,
        tftp: false,
        agent_silence: Duration::from_secs(60),
        images: ImageSettings {
            listen: Some(([10, 77, 0, 1], 0).into()),
            ..ImageSettings::default()
        },
        events: EventSettings::default(),
        plain_config_urls: false,
        event_sink: None,
        metadata: None,
        join: JoinSettings::default(),
    }
}

/// Boot files with the right names and no meaning: nothing starts them here.
fn boot_files(dir: &PathBuf) {
    std::fs::create_dir_all(dir).unwrap();
    for name in [
        "undionly.kpxe",
        "snponly.efi",
        "ipxe.efi",
        "ipxe-arm64.efi",
        "vmlinuz",
        "initramfs.img",
    ] {
        std::fs::write(dir.join(name), name).unwrap();
    }
}

/// Moves this thread (and the threads and processes it starts from now on) into a network
/// namespace of its own, which goes away with them.
pub fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("tests of the daemon need root: a network namespace each");
    let ip = |words: &str| {
        let status = std::process::Command::new("ip")
            .args(words.split(' '))
            .status();
        assert!(
            status.expect("`ip` (package iproute2)").success(),
            "ip {words}"
        );
    };
    ip("link set lo up");
    for host in [1, 11, 12] {
        ip(&format!("address add 10.77.0.{host}/24 dev lo"));
    }
}

impl Daemon {
    pub async fn start() -> Self {
        own_network();
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    /// As [`Self::start`], with its files in `state`.
    pub async fn start_on(state: TempDir) -> Self {
        own_network();
        Self::start_in(state).await
    }

    pub async fn with_inventory() -> Self {
        Self::start_with_inventory(|_| {}).await
    }

    /// As [`Self::with_inventory`], with other settings.
    pub async fn start_with_inventory(change: impl FnOnce(&mut Settings)) -> Self {
        own_network();
        let daemon = Self::start_with(tempfile::tempdir().unwrap(), change).await;
        let applied = daemon
            .admin
            .post(daemon.url("/api/v1/inventory"))
            .body(INVENTORY)
            .send()
            .await
            .unwrap();
        let status = applied.status();
        assert_eq!(status, 200, "{}", applied.text().await.unwrap());
        daemon
    }

    pub async fn start_in(state: TempDir) -> Self {
        Self::start_with(state, |_| {}).await
    }

    pub async fn start_with(state: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        // Several tests share the process; the second install is refused and harmless.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut settings = settings(state.path());
        change(&mut settings);
        let app = App::build(settings).await.unwrap();
        let addresses = app.addresses().unwrap();
        let shared = app.shared();
        let context = std::fs::read(state.path().join("state/admin.context.json")).unwrap();
        let context: Value = serde_json::from_slice(&context).unwrap();
        let text = |key: &str| context[key].as_str().unwrap().to_owned();
        let (ca, key) = (text("ca"), text("key"));
        let task = tokio::spawn(app.run(std::future::pending()));
        Self {
            tls: format!("https://{}", addresses.tls),
            boot: format!("http://{}", addresses.boot),
            images: shared.image_url.clone().unwrap(),
            admin: client(&ca, Some(&key), None),
            anonymous: client(&ca, None, None),
            key,
            ca,
            shared,
            task,
            state,
        }
    }

    /// Stops it as SIGTERM would and hands its state over.
    pub async fn stop(self) -> TempDir {
        self.shared.stop.cancel();
        drop(self.shared);
        let ended = tokio::time::timeout(Duration::from_secs(30), self.task).await;
        ended.expect("the daemon stops in time").unwrap().ok();
        self.state
    }

    pub fn state_path(&self) -> &Path {
        self.state.path()
    }

    /// The daemon's authority, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// Puts a raw disk into the catalog, unproven; how images are really added has its own tests.
    pub async fn add_image(&self, reference: &str, raw: Vec<u8>) -> Value {
        self.add_image_of(reference, raw, None).await
    }

    /// [`Self::add_image`] with the version of its OS.
    pub async fn add_image_of(
        &self,
        reference: &str,
        raw: Vec<u8>,
        os_version: Option<&str>,
    ) -> Value {
        let (name, version) = reference.split_once('@').unwrap();
        let request = SealRequest {
            name: name.to_owned(),
            version: version.to_owned(),
            os: Some("debian".to_owned()),
            os_version: os_version.map(str::to_owned),
            ..SealRequest::default()
        };
        let finish = || Ok::<_, ImageError>(Findings::default());
        let source = std::io::Cursor::new(raw);
        let sealed = self.shared.images.seal(request, source, finish, |_| {});
        sealed.await.unwrap();
        self.get(&format!("/api/v1/images/{reference}")).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.tls)
    }

    pub fn client(&self, key: Option<&str>) -> reqwest::Client {
        client(&self.ca, key, None)
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.admin.get(self.url(path)).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert!(status.is_success(), "{path}: {body}");
        body
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self
            .admin
            .post(self.url(path))
            .json(&body)
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    /// Applies an inventory.
    pub async fn apply(&self, inventory: String) {
        let request = self.admin.post(self.url("/api/v1/inventory"));
        let answer = request.body(inventory).send().await.unwrap();
        let status = answer.status();
        assert_eq!(status, 200, "{}", answer.text().await.unwrap());
    }

    /// Asks until the answer satisfies `wanted`, for 20 seconds at most.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let value = self.get(path).await;
            if wanted(&value) {
                return value;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{path} stays {value}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A client at an address, without a key.
    pub fn client_at(&self, from: &str) -> reqwest::Client {
        client(&self.ca, None, Some(from))
    }

    /// The boot script for a MAC, asked for from a loopback address.
    pub async fn script(&self, from: &str, mac: &str) -> String {
        let url = format!("{}/boot/script/{mac}", self.boot);
        client(&self.ca, None, Some(from))
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    pub async fn enroll(&self, from: &str, boot: &Boot, key: &NodeKey) -> (u16, Value) {
        let body = json!({
            "token": boot.token,
            "machine": boot.machine,
            "csr": key.csr,
            "mac": boot.mac,
            "boot_id": "boot-1",
        });
        let request = client(&self.ca, None, Some(from)).post(self.url("/agent/v1/enroll"));
        let answer = request.json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub fn agent_client(&self, key: &NodeKey, certificate: &str) -> reqwest::Client {
        let pem = format!("{certificate}\n{}", key.key_pem);
        builder(&self.ca)
            .identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap())
            .build()
            .unwrap()
    }
}

fn builder(ca: &str) -> reqwest::ClientBuilder {
    let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([ca])
        .timeout(Duration::from_secs(60))
}

fn client(ca: &str, key: Option<&str>, from: Option<&str>) -> reqwest::Client {
    let mut builder = builder(ca);
    if let Some(key) = key {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {key}").parse().unwrap());
        builder = builder.default_headers(headers);
    }
    if let Some(from) = from {
        builder = builder.local_address(from.parse::<std::net::IpAddr>().unwrap());
    }
    builder.build().unwrap()
}
