//! Where it is measured: a server's and a client's network namespace with a veth pair between them, and
//! two disks to write to.
//!
//! This process is on the client's side. Servers are started with [`World::on_server`]. Everything is
//! inside the namespaces of [`crate::sim::isolate`] and goes with them; the loop devices, which
//! namespaces do not hold, detach themselves when the last one who has them open is gone.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::sim::tool;

/// The servers' address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// How many addresses the clients have: machines, for the image port.
const CLIENTS: u8 = 8;
/// The servers' end of the wire.
pub const SERVER_LINK: &str = "bench0";
const CLIENT_LINK: &str = "bench1";
const NAMESPACE: &str = "server";

/// The wire.
#[derive(Debug)]
pub struct World {
    /// For files that need not stay.
    pub work: PathBuf,
}

/// A block device to write to.
#[derive(Debug)]
pub struct Target {
    /// What it is, for people.
    pub name: &'static str,
    /// `/dev/loopN`
    pub device: PathBuf,
    size: u64,
    /// Keeps it attached.
    _open: File,
}

fn ip(args: &str) -> anyhow::Result<()> {
    tool::run(tool::command("ip")?.args(args.split(' '))).map(drop)
}

impl World {
    /// Makes the server's namespace and the wire.
    ///
    /// # Errors
    /// When we are not root, or not inside fresh namespaces.
    pub fn make(work: &Path) -> anyhow::Result<Self> {
        ip(&format!("netns add {NAMESPACE}"))?;
        ip(&format!(
            "link add {CLIENT_LINK} type veth peer name {SERVER_LINK} netns {NAMESPACE}"
        ))?;
        let inside = |args: &str| ip(&format!("-n {NAMESPACE} {args}"));
        inside("link set lo up")?;
        inside(&format!("address add {SERVER}/24 dev {SERVER_LINK}"))?;
        inside(&format!("link set {SERVER_LINK} up"))?;
        for address in Self::clients() {
            ip(&format!("address add {address}/24 dev {CLIENT_LINK}"))?;
        }
        ip(&format!("link set {CLIENT_LINK} up"))?;
        let world = Self {
            work: work.to_owned(),
        };
        // What every kernel has, whatever this host was told: pacing (BBR) measures timers, not servers.
        let sysctl = tool::find("sysctl")?;
        let reno = ["-q", "-w", "net.ipv4.tcp_congestion_control=reno"];
        tool::run(Command::new(&sysctl).args(reno))?;
        tool::run(world.on_server(&sysctl)?.args(reno))?;
        Ok(world)
    }

    /// The clients' addresses.
    #[must_use]
    pub fn clients() -> Vec<IpAddr> {
        (0..CLIENTS).map(|n| [10, 99, 0, 11 + n].into()).collect()
    }

    /// A command that will run on the server's side.
    ///
    /// # Errors
    /// When `ip` is missing.
    pub fn on_server(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = tool::command("nsenter")?;
        command
            .arg(format!("--net=/run/netns/{NAMESPACE}"))
            .arg("--")
            .arg(program);
        Ok(command)
    }

    /// Bytes that came over the wire to the client's side so far, headers and all.
    ///
    /// # Errors
    /// When the wire is gone.
    pub fn received(&self) -> anyhow::Result<u64> {
        let path = format!("/sys/class/net/{CLIENT_LINK}/statistics/rx_bytes");
        Ok(std::fs::read_to_string(path)?.trim().parse()?)
    }

    /// A disk in memory, all of whose pages are there already.
    ///
    /// # Errors
    /// When there is no room or no loop device.
    pub fn memory_disk(&self, size: u64) -> anyhow::Result<Target> {
        let dir = self.work.join("memory");
        std::fs::create_dir_all(&dir)?;
        let mut mount = tool::command("mount")?;
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={}", size + (64 << 20)),
            "tmpfs",
        ]);
        tool::run(mount.arg(&dir))?;
        Target::attach("memory (tmpfs)", &dir.join("disk"), size, false)
    }

    /// A disk in a file that is written past the page cache.
    ///
    /// # Errors
    /// When there is no room or no loop device.
    pub fn file_disk(&self, size: u64) -> anyhow::Result<Target> {
        Target::attach("disk (file, direct)", &self.work.join("disk"), size, true)
    }
}

impl Target {
    fn attach(name: &'static str, file: &Path, size: u64, direct: bool) -> anyhow::Result<Self> {
        // Written once, so that no run pays for the first touch.
        let mut dd = tool::command("dd")?;
        dd.arg("if=/dev/zero").arg(format!("of={}", file.display()));
        dd.args(["bs=4M", "status=none", "conv=fsync"]);
        tool::run(dd.arg(format!("count={}", size.div_ceil(4 << 20))))?;
        let direct = if direct { "on" } else { "off" };
        let mut losetup = tool::command("losetup")?;
        losetup.args(["--find", "--show", &format!("--direct-io={direct}")]);
        let device = String::from_utf8(tool::run(losetup.arg(file))?.stdout)?;
        let device = PathBuf::from(device.trim());
        let open = File::open(&device);
        // In use, it is only marked: it goes when the last one closes it.
        tool::run(tool::command("losetup")?.arg("--detach").arg(&device))?;
        let open = open.with_context(|| format!("opening {}", device.display()))?;
        let target = Self {
            name,
            device,
            size,
            _open: open,
        };
        target.dirty()?;
        Ok(target)
    }

    /// Fills it with what no image holds: a program that skips something is found out, and nobody
    /// meets holes that the one before has left, whose pages or blocks would have to be found again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn dirty(&self) -> anyhow::Result<()> {
        let told = || format!("filling {}", self.device.display());
        let mut device = File::options()
            .write(true)
            .open(&self.device)
            .with_context(told)?;
        let bytes = vec![0xaa; 4 << 20];
        let mut left = self.size;
        while left > 0 {
            let count = left.min(bytes.len() as u64);
            // At most 4 MiB.
            device
                .write_all(&bytes[..count as usize])
                .with_context(told)?;
            left -= count;
        }
        device.sync_all().with_context(told)?;
        self.forget()
    }

    /// Waits until everything that was written is on it.
    ///
    /// # Errors
    /// When it fails.
    pub fn flush(&self) -> anyhow::Result<()> {
        File::options()
            .write(true)
            .open(&self.device)?
            .sync_all()
            .with_context(|| format!("flushing {}", self.device.display()))
    }

    /// Forgets what of it is in the page cache.
    ///
    /// # Errors
    /// When it fails.
    pub fn forget(&self) -> anyhow::Result<()> {
        let mut blockdev = tool::command("blockdev")?;
        tool::run(blockdev.arg("--flushbufs").arg(&self.device)).map(drop)
    }
}
