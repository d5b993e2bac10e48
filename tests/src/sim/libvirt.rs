//! A libvirtd of the rack's own, started by hand inside its namespaces.
//!
//! Needs no systemd, no D-Bus and no cgroups. Its directories are private ([`super::isolate`]),
//! so its default paths are used and a libvirtd of the host is not disturbed.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::process::Process;
use super::tool;
use super::wait::wait_for;

/// Where it is reached.
pub const URI: &str = "qemu+unix:///system?socket=/run/libvirt/libvirt-sock";

const LIBVIRTD_CONF: &str = "\
# One user, root, inside a namespace: the socket needs no authentication.
unix_sock_dir = \"/run/libvirt\"
auth_unix_ro = \"none\"
auth_unix_rw = \"none\"
";

const QEMU_CONF: &str = "\
user = \"root\"
group = \"root\"
dynamic_ownership = 0
remember_owner = 0
security_driver = \"none\"
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 0
# Consoles are written by QEMU itself, so virtlogd is not needed.
stdio_handler = \"file\"
";

/// The running libvirtd. Dropping it stops the daemon; the machines stop with the namespace.
#[derive(Debug)]
pub struct Libvirtd {
    process: Process,
}

impl Libvirtd {
    /// Writes its configuration, starts it and waits until it answers.
    ///
    /// # Errors
    /// When it is missing or does not come up: with the end of its log.
    pub fn start(logs: &Path) -> anyhow::Result<Self> {
        std::fs::write("/etc/libvirt/libvirtd.conf", LIBVIRTD_CONF)
            .context("writing libvirtd.conf")?;
        std::fs::write("/etc/libvirt/qemu.conf", QEMU_CONF).context("writing qemu.conf")?;
        let mut command = tool::command("libvirtd")?;
        command.args(["--config", "/etc/libvirt/libvirtd.conf"]);
        let mut process = Process::start("libvirtd", command, &logs.join("libvirtd.log"))?;
        wait_for(Duration::from_secs(60), "libvirtd to answer", || {
            process.ensure_running()?;
            Ok(virsh(&["version"]).ok())
        })?;
        Ok(Self { process })
    }

    /// Defines a machine; it stays off.
    ///
    /// # Errors
    /// When libvirt does not accept it.
    pub fn define(&self, xml: &str, file: &Path) -> anyhow::Result<()> {
        std::fs::write(file, xml).with_context(|| format!("writing {}", file.display()))?;
        let path = file.to_string_lossy();
        virsh(&["define", "--validate", &path]).map(drop)
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.process.ensure_running()
    }
}

/// Runs one virsh command against the rack's libvirtd; what it printed.
///
/// # Errors
/// When it fails.
pub fn virsh(args: &[&str]) -> anyhow::Result<String> {
    let output = tool::run(
        tool::command("virsh")?
            .args(["--quiet", "--connect", URI])
            .args(args),
    )?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
