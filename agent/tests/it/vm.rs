//! A virtual machine that starts the kernel and initramfs of `ipxe/initramfs.sh`, under software
//! emulation.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Emulated, on a machine that does other things too.
const BOUND: Duration = Duration::from_secs(600);

/// Where kernel and initramfs are. `ANNEAL_NETBOOT` names a folder in which they are ready: make
/// sets it, because it runs tests as root, who may have no cargo and should own none of its files.
/// Without it they are made (a no-op when nothing changed).
fn netboot() -> PathBuf {
    if let Some(dir) = std::env::var_os("ANNEAL_NETBOOT") {
        let dir = PathBuf::from(dir);
        for name in ["vmlinuz", "initramfs.img"] {
            let file = dir.join(name);
            assert!(file.exists(), "{}: run make netboot", file.display());
        }
        return dir;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = root.join(".cache/netboot");
    let made = Command::new(root.join("ipxe/initramfs.sh"))
        .arg(&dir)
        .env("CARGO", env!("CARGO"))
        .status()
        .unwrap();
    assert!(made.success(), "ipxe/initramfs.sh failed");
    dir
}

/// A disk of the machine, with a cache that loses what was not flushed when it is told so.
pub struct Drive<'a> {
    device: &'static str,
    file: &'a Path,
    serial: &'static str,
    /// Where every write and flush is noted, see [`crate::writelog`].
    log: Option<&'a Path>,
}

impl<'a> Drive<'a> {
    pub fn new(device: &'static str, file: &'a Path, serial: &'static str) -> Self {
        Self {
            device,
            file,
            serial,
            log: None,
        }
    }

    pub fn logged(self, log: &'a Path) -> Self {
        Self {
            log: Some(log),
            ..self
        }
    }

    fn arguments(&self, number: usize) -> [String; 4] {
        let file = |path: &Path| format!("driver=file,filename={}", path.display());
        let nested = |name: &str, path: &Path| {
            let text = file(path);
            text.split(',')
                .map(|option| format!(",{name}.{option}"))
                .collect::<String>()
        };
        let node = match self.log {
            None => format!("driver=raw{}", nested("file", self.file)),
            Some(log) => format!(
                "driver=blklogwrites{}{}",
                nested("file", self.file),
                nested("log", log)
            ),
        };
        [
            "-blockdev".to_owned(),
            format!("node-name=d{number},discard=unmap,{node}"),
            "-device".to_owned(),
            format!("{},drive=d{number},serial={}", self.device, self.serial),
        ]
    }
}

pub struct Machine {
    child: Child,
    lines: mpsc::Receiver<String>,
    pub seen: String,
}

impl Machine {
    pub fn boot(words: &str, drives: &[Drive<'_>]) -> Self {
        let netboot = netboot();
        // It ends with the thread that runs the test, also when that is killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args([
            "-accel",
            "tcg",
            "-m",
            "1024",
            "-nographic",
            "-vga",
            "none",
            "-no-reboot",
            "-monitor",
            "none",
        ])
        .args([
            "-netdev",
            "user,id=n",
            "-device",
            // Its option ROM would only take time.
            "virtio-net-pci,netdev=n,mac=52:54:00:aa:00:01,romfile=",
        ])
        .arg("-kernel")
        .arg(netboot.join("vmlinuz"))
        .arg("-initrd")
        .arg(netboot.join("initramfs.img"))
        // An emulated timer that a busy host holds up is no broken one: Linux would panic.
        .args([
            "-append",
            &format!("console=ttyS0 panic=5 no_timer_check {words}"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
        for (number, drive) in drives.iter().enumerate() {
            qemu.args(drive.arguments(number));
        }
        let mut child = qemu
            .spawn()
            .expect("setpriv: install the packages util-linux and qemu-system-x86");
        let console = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            seen: String::new(),
        }
    }

    /// Waits for a line with all of these in it.
    pub fn expect(&mut self, parts: &[&str]) {
        let deadline = Instant::now() + BOUND;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if parts.iter().all(|part| line.contains(part)) {
                        return;
                    }
                }
                Err(_) => panic!("the console never said {parts:?}:\n{}", self.seen),
            }
        }
    }

    /// Waits for a condition; when it never holds, or the machine ends, shows the console.
    pub fn until<T>(&mut self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(value) = probe() {
                return value;
            }
            let over = self.child.try_wait().unwrap();
            if over.is_some() || Instant::now() > deadline {
                self.seen.extend(self.lines.try_iter().map(|l| l + "\n"));
                panic!("never: {what} ({over:?}):\n{}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                self.seen.extend(self.lines.try_iter().map(|l| l + "\n"));
                panic!("it never ended:\n{}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes its power away, and waits until nothing of it runs any more.
    pub fn cut(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn words(server: &str, ca: &str) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    format!(
        "anneal.server={server} anneal.ca={ca} anneal.token={} anneal.machine=r1n1 anneal.run=run-1 anneal.time={} anneal.mac=52:54:00:aa:00:01",
        "ab".repeat(32),
        now.as_secs()
    )
}

pub fn disk(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}
