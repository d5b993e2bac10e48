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

/// Its user, as the inventory names it.
pub const USER: &str = "admin";

/// The running service.
#[derive(Debug)]
pub struct Redfish {
    process: Process,
}

impl Redfish {
    /// Starts it for the rack's libvirtd and waits until it lists systems. `venv` is where
    /// `make setup` put sushy-tools; its user is [`USER`] with `password`.
    ///
    /// # Errors
    /// When it is missing or does not come up: with the end of its log.
    pub fn start(venv: &Path, password: &str, work: &Path, logs: &Path) -> anyhow::Result<Self> {
        let program = venv.join("bin/sushy-emulator");
        anyhow::ensure!(
            program.is_file(),
            "{} is missing: run `make setup`",
            program.display()
        );
        let (code, vars) = domain::ovmf()?;
        let users = work.join("bmc-users");
        std::fs::write(&users, user_line(venv, password)?)
            .with_context(|| format!("writing {}", users.display()))?;
        let config = work.join("sushy-emulator.conf");
        let text = format!(
            "SUSHY_EMULATOR_LISTEN_IP = '{}'\n\
             SUSHY_EMULATOR_LISTEN_PORT = {PORT}\n\
             SUSHY_EMULATOR_LIBVIRT_URI = '{}'\n\
             SUSHY_EMULATOR_IGNORE_BOOT_DEVICE = False\n\
             SUSHY_EMULATOR_AUTH_FILE = '{}'\n\
             SUSHY_EMULATOR_BOOT_LOADER_MAP = {{'UEFI': {{'x86_64': '{}'}}, 'Legacy': {{'x86_64': None}}}}\n\
             SUSHY_EMULATOR_SECURE_BOOT_DISABLED_NVRAM = '{}'\n",
            net::BMC,
            libvirt::URI,
            users.display(),
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
                curl.args(["-sf", "--max-time", "10", "--user"]);
                curl.args([&format!("{USER}:{password}"), &url]);
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

/// The line of a password file for [`USER`], hashed as the emulator wants it.
fn user_line(venv: &Path, password: &str) -> anyhow::Result<String> {
    const HASH: &str = "import bcrypt, sys\n\
        print(bcrypt.hashpw(sys.argv[1].encode(), bcrypt.gensalt(4)).decode())";
    let mut python = std::process::Command::new(venv.join("bin/python"));
    let output = tool::run(python.args(["-c", HASH, password]))?;
    let hash = String::from_utf8_lossy(&output.stdout);
    Ok(format!("{USER}:{}\n", hash.trim()))
}
