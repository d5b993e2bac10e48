//! The BMCs: one Redfish service (sushy-emulator of `sushy-tools`) whose systems are the libvirt domains.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::domain;
use super::libvirt;
use super::net;
use super::process::Process;
use super::tool;
use super::wait::wait_for;

/// Its TCP port.
pub const PORT: u16 = 8000;

/// The running service.
#[derive(Debug)]
pub struct Redfish {
    process: Process,
}

impl Redfish {
    /// Starts it for the rack's libvirtd and waits until it lists systems. `venv` is where
    /// `make setup` put sushy-tools.
    ///
    /// # Errors
    /// When it is missing or does not come up: with the end of its log.
    pub fn start(venv: &Path, work: &Path, logs: &Path) -> anyhow::Result<Self> {
        let program = venv.join("bin/sushy-emulator");
        anyhow::ensure!(
            program.is_file(),
            "{} is missing: run `make setup`",
            program.display()
        );
        let (code, vars) = domain::ovmf()?;
        let config = work.join("sushy-emulator.conf");
        let text = format!(
            "SUSHY_EMULATOR_LISTEN_IP = '{}'\n\
             SUSHY_EMULATOR_LISTEN_PORT = {PORT}\n\
             SUSHY_EMULATOR_LIBVIRT_URI = '{}'\n\
             SUSHY_EMULATOR_IGNORE_BOOT_DEVICE = False\n\
             SUSHY_EMULATOR_BOOT_LOADER_MAP = {{'UEFI': {{'x86_64': '{}'}}, 'Legacy': {{'x86_64': None}}}}\n\
             SUSHY_EMULATOR_SECURE_BOOT_DISABLED_NVRAM = '{}'\n",
            net::BMC,
            libvirt::URI,
            code.display(),
            vars.display()
        );
        std::fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let mut command = std::process::Command::new(program);
        command.arg("--config").arg(&config);
        let mut process = Process::start("sushy-emulator", command, &logs.join("redfish.log"))?;
        let url = format!("http://{}:{PORT}/redfish/v1/Systems", net::BMC);
        wait_for(
            Duration::from_secs(60),
            "the Redfish service to answer",
            || {
                process.ensure_running()?;
                let mut curl = tool::command("curl")?;
                curl.args(["-sf", "--max-time", "10", &url]);
                Ok(tool::run(&mut curl).ok())
            },
        )?;
        Ok(Self { process })
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.process.ensure_running()
    }
}
