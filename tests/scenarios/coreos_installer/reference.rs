//! `coreos-installer` on a loop device.
//!
//! It asks udevd which partition is labelled `boot`. There is none here, and the kernel of the host
//! may not even read partition tables: a script in the place of `udevadm settle` hands partx(8)'s
//! partitions to the kernel, and what blkid(8) says of them to lsblk(8).

use std::path::{Path, PathBuf};
use std::process::Command;

use anneal_tests::sim::tool;
use anyhow::Context as _;

/// Names the program.
const VARIABLE: &str = "ANNEAL_COREOS_INSTALLER";

const UDEVADM: &str = r#"#!/bin/sh
set -eu
partx --update "$DISK"
for node in "$DISK"p*; do
  number=$(cat "/sys/class/block/${node##*/}/dev")
  blkid -p -o udev "$node" | sed 's/^/E:/' >"/run/udev/data/b$number"
done
"#;

/// What it is asked for.
pub struct Order<'a> {
    /// The image, compressed.
    pub image: &'a Path,
    /// Ignition.
    pub ignition: &'a Path,
    /// Kernel arguments to append.
    pub arguments: &'a [&'a str],
    /// Those of the first boot, if any.
    pub first_boot: Option<&'a str>,
}

/// The program, or how to get it.
pub fn program() -> anyhow::Result<PathBuf> {
    std::env::var_os(VARIABLE)
        .map(PathBuf::from)
        .filter(|program| program.is_file())
        .with_context(|| {
            format!("{VARIABLE} names no program: run this by `make test-coreos-installer`")
        })
}

/// Makes a disk of this size and installs onto it; returns the disk's file.
pub fn install(
    program: &Path,
    order: &Order<'_>,
    bytes: u64,
    work: &Path,
) -> anyhow::Result<PathBuf> {
    let disk = work.join("reference.raw");
    std::fs::File::create(&disk)?.set_len(bytes)?;
    let mut losetup = tool::command("losetup")?;
    losetup.args(["--find", "--show", "--partscan"]).arg(&disk);
    let node = String::from_utf8(tool::run(&mut losetup)?.stdout)?;
    let node = node.trim();
    let held = std::fs::File::open(node).with_context(|| format!("opening {node}"))?;
    // Detached when nobody has it open any more, however this process ends.
    tool::run(tool::command("losetup")?.args(["--detach", node]))?;

    let mut install = Command::new(program);
    install.args(["install", "--insecure", "--image-file"]);
    install
        .arg(order.image)
        .arg("--ignition-file")
        .arg(order.ignition);
    for argument in order.arguments {
        install.arg(format!("--append-karg={argument}"));
    }
    if let Some(arguments) = order.first_boot {
        install.arg(format!("--firstboot-args={arguments}"));
    }
    let path = std::env::var("PATH").unwrap_or_default();
    install
        .arg(node)
        .env("DISK", node)
        .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", udev(work)?));
    let said = tool::run(&mut install)?;
    println!("{}", String::from_utf8_lossy(&said.stderr));
    held.sync_all()?;
    Ok(disk)
}

/// Puts the script in the place of udevd; returns the folder it is in.
fn udev(work: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = work.join("udev");
    // `/run` is this scenario's own.
    std::fs::create_dir_all("/run/udev/data")?;
    std::fs::write("/run/udev/control", "")?;
    std::fs::create_dir_all(&folder)?;
    let script = folder.join("udevadm");
    std::fs::write(&script, UDEVADM)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(folder.display().to_string())
}
