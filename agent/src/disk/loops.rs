//! For tests: disks with a real file system in a partition, as loop devices.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anneal_protocol::agent::PartitionRef;
use anneal_protocol::disk::{DiskHints, DiskSelector};

use super::{Chosen, choose};
use crate::cmdline::Options;
use attached::Attached;

#[path = "../../tests/it/attached.rs"]
mod attached;

/// Each: its kernel name, size in MiB, package, and how `FILE` is made one with the label `L`.
pub const FILE_SYSTEMS: [(&str, u64, &str, &str); 4] = [
    ("vfat", 16, "dosfstools", "mkfs.vfat -n L FILE"),
    ("ext4", 16, "e2fsprogs", "mkfs.ext4 -q -L L FILE"),
    ("xfs", 300, "xfsprogs", "mkfs.xfs -q -L L FILE"),
    ("btrfs", 112, "btrfs-progs", "mkfs.btrfs -q -L L FILE"),
];

/// Those that this machine's kernel has. Only vfat may be missing, as in kernels made for virtual
/// machines, and that is told: `tests/it/netboot.rs` writes all four with the kernel that machines
/// get.
pub fn known() -> impl Iterator<Item = (&'static str, u64, &'static str, &'static str)> {
    // Loads the module where there is one.
    let _ = rustix::mount::fsopen("vfat", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
    let list = std::fs::read_to_string("/proc/filesystems").unwrap();
    let vfat = list.lines().any(|line| line.trim() == "vfat");
    if !vfat {
        // Not by a macro: what these print is shown for tests that fail only.
        let told = b"SKIPPED: the cases for vfat, which this kernel does not have\n";
        std::io::stderr().write_all(told).unwrap();
    }
    FILE_SYSTEMS
        .into_iter()
        .filter(move |(kind, ..)| *kind != "vfat" || vfat)
}

/// Runs a tool; a missing one fails the test with the name of its package.
pub fn tool(package: &str, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    run(package, Command::new(words[0]).args(&words[1..]), line)
}

/// Runs a script with file systems mounted for it alone; `$1` is the device.
pub fn script(device: &Path, text: &str) -> String {
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "sh", "-euc", text, "sh"])
        .arg(device);
    run("util-linux", &mut unshare, text)
}

fn run(package: &str, command: &mut Command, line: &str) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let ran = command.env("PATH", path).output();
    let ran = ran.unwrap_or_else(|e| panic!("{line}: {e}; install the package {package}"));
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{line}: {told}");
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

/// A disk as a loop device.
#[derive(Debug)]
pub struct Loop {
    pub node: PathBuf,
    /// The file behind it; its name is the serial of the disk.
    pub file: PathBuf,
    serial: String,
    _attached: Attached,
    _dir: tempfile::TempDir,
}

impl Loop {
    /// A disk with a GPT and one partition, named `root`, that `mkfs FILE` was run on.
    pub fn new(name: &str, mib: u64, package: &str, mkfs: &str) -> Self {
        Self::named(name, "root", mib, package, mkfs)
    }

    /// With another name of the partition.
    pub fn named(name: &str, partition: &str, mib: u64, package: &str, mkfs: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let part = made(&dir, "part", mib, package, mkfs);
        Self::of(name, dir, &[(partition, part)])
    }

    /// With a second partition, named `second`; each is given by size in MiB, package and how it is made.
    pub fn two(name: &str, first: (u64, &str, &str), second: (u64, &str, &str)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = made(&dir, "part", first.0, first.1, first.2);
        let second = made(&dir, "part2", second.0, second.1, second.2);
        Self::of(name, dir, &[("root", first), ("second", second)])
    }

    /// Another disk with the same bytes.
    pub fn copy(&self, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("part");
        let (from, to) = (self.file.display(), part.display());
        tool(
            "coreutils",
            &format!("dd if={from} of={to} bs=1M skip=1 conv=sparse status=none"),
        );
        Self::of(name, dir, &[("root", part)])
    }

    /// A disk with these partitions, each a name and a file with its bytes.
    fn of(name: &str, dir: tempfile::TempDir, parts: &[(&str, PathBuf)]) -> Self {
        let serial = format!("{name}.img");
        let file = dir.path().join(&serial);
        let to = file.display();
        let mib = |part: &Path| std::fs::metadata(part).unwrap().len() >> 20;
        let all: u64 = parts.iter().map(|(_, part)| mib(part)).sum();
        std::fs::File::create(&file)
            .unwrap()
            .set_len((all + 2) << 20)
            .unwrap();
        let mut at = 1;
        let mut table = vec!["sgdisk".to_owned()];
        for (number, (label, part)) in (1..).zip(parts) {
            let (from, length) = (part.display(), mib(part));
            tool(
                "coreutils",
                &format!("dd if={from} of={to} bs=1M seek={at} conv=sparse,notrunc status=none"),
            );
            let (start, sectors) = (at * 2048, length * 2048);
            table.push(format!(
                "-n {number}:{start}:+{sectors} -t {number}:8300 -c {number}:{label}"
            ));
            std::fs::remove_file(part).unwrap();
            at += length;
        }
        tool("gdisk", &format!("{} {to}", table.join(" ")));
        let attached = Attached::new(&file, &["-P"]);
        Self {
            node: PathBuf::from(&attached.node),
            file,
            serial,
            _attached: attached,
            _dir: dir,
        }
    }

    /// It, chosen by its serial.
    pub fn chosen(&self) -> Chosen {
        let options = Options {
            allow_loop: vec![self.node.clone()],
            ..Options::default()
        };
        let selector = DiskSelector {
            hints: DiskHints {
                serial: Some(self.serial.clone()),
                ..DiskHints::default()
            },
            protected: Vec::new(),
        };
        choose(&options, &selector).unwrap()
    }

    /// The device of its partition, made by the kernel when it is first looked for.
    pub fn partition(&self) -> PathBuf {
        self.located("root")
    }

    /// The device of the partition with this label.
    pub fn located(&self, label: &str) -> PathBuf {
        let disk = self.chosen().disk;
        super::partition::locate(&disk, &labelled(label)).unwrap().1
    }
}

/// A file that `mkfs FILE` was run on.
fn made(dir: &tempfile::TempDir, name: &str, mib: u64, package: &str, mkfs: &str) -> PathBuf {
    let part = dir.path().join(name);
    let file = std::fs::File::create(&part).unwrap();
    file.set_len(mib << 20).unwrap();
    tool(package, &mkfs.replace("FILE", &part.display().to_string()));
    part
}

/// A partition by label.
pub fn labelled(label: &str) -> PartitionRef {
    PartitionRef {
        label: Some(label.to_owned()),
        ..PartitionRef::default()
    }
}
