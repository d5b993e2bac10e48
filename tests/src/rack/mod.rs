//! The virtual rack: three machines that differ as real ones do, their BMCs and the wire.
//!
//! Owns: which machines there are ([`machines`]), bringing them up ([`Rack::start`]), the daemon with
//! image and inventory beside them ([`stage`]), what is shown with them ([`demo`], [`lab`],
//! [`progress`], [`report`]) and where files are ([`paths`]).
//!
//! Not here: the parts themselves (`sim`).

pub mod demo;
pub mod lab;
pub mod machines;
pub mod paths;
pub mod progress;
pub mod report;
pub mod stage;

use std::path::Path;

use anyhow::Context;

use crate::sim::accel::{self, Accel};
use crate::sim::domain::Machine;
use crate::sim::libvirt::Libvirtd;
use crate::sim::net;
use crate::sim::redfish::Redfish;
use paths::Paths;

/// A rack that is up: everything is there, all machines are off.
#[derive(Debug)]
pub struct Rack {
    /// Its machines.
    pub machines: Vec<Machine>,
    /// How they are run.
    pub accel: Accel,
    libvirtd: Libvirtd,
    redfish: Redfish,
}

impl Rack {
    /// Makes wire, machines and BMCs. Must run inside the namespaces of
    /// [`crate::sim::isolate`]; `work` is the directory given there.
    ///
    /// # Errors
    /// Names what is missing or does not come up.
    pub fn start(paths: &Paths, work: &Path, disk_bytes: u64) -> anyhow::Result<Self> {
        let logs = paths::logs(work)?;
        let accel = accel::detect(&paths.netboot.join("vmlinuz"))?;
        net::make_bridge()?;
        let libvirtd = Libvirtd::start(&logs)?;
        let machines = machines::create(work, &logs, disk_bytes)?;
        for machine in &machines {
            net::make_tap(&machine.name)?;
            let file = work.join(format!("{}.xml", machine.name));
            libvirtd.define(&machine.xml(accel)?, &file)?;
        }
        let password = std::fs::read_to_string(paths.root.join("hardware/lab-bmc-password"))
            .context("reading hardware/lab-bmc-password")?;
        let redfish = Redfish::start(&paths.venv, password.trim(), work, &logs)?;
        Ok(Self {
            machines,
            accel,
            libvirtd,
            redfish,
        })
    }

    /// Fails when a part of the rack itself has died.
    ///
    /// # Errors
    /// With the end of that part's log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.libvirtd.ensure_running()?;
        self.redfish.ensure_running()
    }
}
