//! The rack with a daemon that knows its machines and has the image: where demo and lab begin.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Rack;
use super::paths::{self, Paths};
use crate::sim::daemon::{Daemon, Settings};

/// The image as the inventory names it.
pub const IMAGE: &str = "debian@12";
/// Its family of configuration templates.
const IMAGE_OS: &str = "debian";
/// A machine's disk: more than the image, sparse.
const DISK_BYTES: u64 = 6 << 30;

/// Rack and daemon, ready to provision.
#[derive(Debug)]
pub struct Stage {
    /// Machines, BMCs, wire.
    pub rack: Rack,
    /// The daemon.
    pub daemon: Daemon,
    /// Working directory.
    pub work: PathBuf,
}

impl Stage {
    /// Brings everything up, says what it does.
    ///
    /// # Errors
    /// Names what is missing or fails.
    pub fn set(paths: &Paths, work: &Path) -> anyhow::Result<Self> {
        paths.ensure(&[
            (&paths.anneal, "build"),
            (&paths.venv, "setup"),
            (&paths.netboot.join("vmlinuz"), "netboot"),
            (&paths.netboot.join("initramfs.img"), "netboot"),
            (&paths.image, "image"),
        ])?;
        let rack = Rack::start(paths, work, DISK_BYTES)?;
        println!(
            "rack: {} machines under libvirt ({}), Redfish on {}:{}",
            rack.machines.len(),
            rack.accel.describe(),
            crate::sim::net::BMC,
            crate::sim::redfish::PORT
        );
        let daemon = Daemon::start(Settings {
            program: paths.anneal.clone(),
            netboot: paths.netboot.clone(),
            state: work.join("state"),
            log: paths::logs(work)?.join("daemon.log"),
            // The lab's inventory has its BMC password beside it.
            more: vec![
                "--password-dir".to_owned(),
                paths.root.join("hardware").to_string_lossy().into_owned(),
            ],
        })?;
        println!(
            "$ anneal image add {IMAGE} {0} --os {IMAGE_OS} --sha256 $(sha256sum {0} | cut -c-64)",
            shown(paths, &paths.image)
        );
        daemon.add_image(IMAGE, &paths.image, IMAGE_OS)?;
        let inventory = paths.root.join("hardware/lab.yaml");
        println!("$ anneal apply -f {}", shown(paths, &inventory));
        let said = daemon
            .anneal(&["apply", "-f", &inventory.to_string_lossy()])
            .context("applying the inventory")?;
        print!("{said}");
        Ok(Self {
            rack,
            daemon,
            work: work.to_owned(),
        })
    }
}

/// A path as one types it from the top of the source tree.
#[must_use]
pub fn shown(paths: &Paths, path: &Path) -> String {
    path.strip_prefix(&paths.root)
        .unwrap_or(path)
        .display()
        .to_string()
}
