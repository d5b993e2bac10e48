//! A daemon process, disks, and the command line.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Our address in the namespace.
pub const ADDRESS: &str = "10.77.0.1";

pub struct Lab {
    pub dir: TempDir,
    daemon: Child,
}

impl Lab {
    /// A daemon that fetches from this host as well, with more settings of images.
    pub fn new(images: &str) -> Self {
        own_network();
        let dir = tempfile::tempdir().unwrap();
        let netboot = dir.path().join("netboot");
        std::fs::create_dir(&netboot).unwrap();
        for name in [
            "undionly.kpxe",
            "snponly.efi",
            "ipxe.efi",
            "ipxe-arm64.efi",
            "vmlinuz",
            "initramfs.img",
        ] {
            std::fs::write(netboot.join(name), name).unwrap();
        }
        let settings = format!("images:\n  allow_local_sources: true\n{images}");
        let lines: Vec<&str> = settings.lines().collect();
        // A later word wins over the first line's.
        let settings = match images.contains("allow_local_sources") {
            true => format!("images:\n{images}"),
            false => lines.join("\n"),
        };
        std::fs::write(dir.path().join("anneal.yaml"), settings + "\n").unwrap();
        let daemon = start(dir.path());
        Self { dir, daemon }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with these bytes; its path as text.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn context(&self) -> PathBuf {
        self.path("state/admin.context.json")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anneal"));
        command
            .args(args)
            .env_clear()
            .env("ANNEAL_CONTEXT", self.context())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn anneal(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// `image add … -o json`, unproven; what it printed.
    pub fn add(&self, reference: &str, source: &str, args: &[&str]) -> Value {
        self.add_with(reference, source, &[&["--unproven"], args].concat())
    }

    /// `image add … -o json`; what it printed.
    pub fn add_with(&self, reference: &str, source: &str, args: &[&str]) -> Value {
        let words = ["image", "add", reference, source, "-o", "json"];
        let output = self.anneal(&[&words[..], args].concat());
        let told = text(&output.stderr);
        assert!(output.status.success(), "{reference}: {told}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `image add x@1 …`, unproven, to be begun.
    pub fn adding(&self, source: &str) -> Command {
        let words = ["image", "add", "x@1", source, "--os", "debian"];
        self.command(&[&words[..], &["--unproven"]].concat())
    }

    /// The same when it must fail: exit code 1 and nothing on standard output; what it said.
    pub fn add_fails(&self, reference: &str, source: &str, args: &[&str]) -> String {
        let words = ["image", "add", reference, source];
        let output = self.anneal(&[&words[..], args].concat());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{reference}: {told}");
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
        told
    }

    /// What the daemon says by its API.
    pub fn get(&self, path: &str) -> Value {
        let output = self.curl(&[], path);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{path}: {}", text(&output.stdout)))
    }

    pub fn curl(&self, args: &[&str], path: &str) -> Output {
        let context: Value =
            serde_json::from_slice(&std::fs::read(self.context()).unwrap()).unwrap();
        let header = format!("Authorization: Bearer {}", context["key"].as_str().unwrap());
        let url = format!("{}/api/v1/{path}", context["server"].as_str().unwrap());
        let ca = self.path("state/ca.pem");
        let output = Command::new("curl")
            .args(["-sS", "-H", &header, "--cacert", ca.to_str().unwrap()])
            .args(args)
            .arg(url)
            .output();
        output.expect("curl (package curl)")
    }

    /// What lies in the store: images by their digest, and what should not be there.
    pub fn stored(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("state/images")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Waits until the only ingest is as wanted.
    pub fn until_ingest(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        until("the ingest to be as wanted", || {
            let list = self.get("images/ingests");
            list["items"]
                .as_array()?
                .last()
                .filter(|ingest| wanted(ingest))
                .cloned()
        })
    }

    /// SIGKILL, and a new one on the same state.
    pub fn kill_and_restart(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = start(self.dir.path());
    }

    /// The most memory that the daemon ever had resident, bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Starts a daemon that ends with this thread, and waits until it serves.
fn start(dir: &Path) -> Child {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_anneal"), "serve"])
        .args(["--interface", "rack0", "--no-dhcp", "--no-tftp"])
        .args([
            "--config",
            &path("anneal.yaml"),
            "--state-dir",
            &path("state"),
        ])
        .args(["--netboot-dir", &path("netboot")])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(path("daemon.log")).unwrap())
        .spawn()
        .expect("setpriv (package util-linux)");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let serves = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("admin context"));
    let log = std::fs::read_to_string(path("daemon.log")).unwrap();
    assert!(serves, "the daemon did not start: {log}");
    // It may go on writing.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// Moves this thread and what it starts into a network of its own, and mounts of its own.
fn own_network() {
    let own = nix::sched::CloneFlags::CLONE_NEWNET | nix::sched::CloneFlags::CLONE_NEWNS;
    nix::sched::unshare(own).expect("tests of the daemon need root: namespaces of their own");
    let private = Command::new("mount")
        .args(["--make-rprivate", "/"])
        .status();
    assert!(private.expect("mount (package mount)").success());
    for words in [
        "link set lo up",
        "link add rack0 type veth peer name rack1",
        "link set rack1 up",
        "address add 10.77.0.1/24 dev rack0",
        "link set rack0 up",
    ] {
        let status = Command::new("ip").args(words.split(' ')).status();
        assert!(
            status.expect("ip (package iproute2)").success(),
            "ip {words}"
        );
    }
}

/// Asks until there is an answer, for a minute at most.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A disk of so many MiB: half noise, half holes, with a GPT of these labels.
pub fn disk(lab: &Lab, name: &str, mib: usize, labels: &[&str]) -> Vec<u8> {
    let mut raw = vec![0_u8; mib << 20];
    let mut state = 7_u64;
    for chunk in raw[1 << 20..][..(mib << 20) / 2].chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        chunk.copy_from_slice(&(state ^ (state >> 33)).to_le_bytes());
    }
    let path = lab.file(name, &raw);
    if !labels.is_empty() {
        let mut sgdisk = Command::new("sgdisk");
        for (index, label) in labels.iter().enumerate() {
            let number = index + 1;
            sgdisk
                .arg(format!("--new={number}:0:+1M"))
                .arg(format!("--change-name={number}:{label}"));
        }
        let output = sgdisk.arg(&path).output().expect("sgdisk (package gdisk)");
        assert!(output.status.success(), "{output:?}");
    }
    std::fs::read(path).unwrap()
}

/// What a tool writes to its standard output.
pub fn made(tool: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(tool).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{tool} (see scripts/setup.sh): {error}"));
    assert!(output.status.success(), "{tool}: {output:?}");
    output.stdout
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// Everything a child process wrote.
pub fn drained(child: &mut Child) -> String {
    let mut told = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    told
}
