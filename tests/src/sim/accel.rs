//! Whether KVM really runs guests here. An openable `/dev/kvm` proves nothing: nested
//! virtualisation can fail at the first privileged instruction.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::tool;

/// How machines are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// In hardware.
    Kvm,
    /// By software emulation.
    Tcg,
}

impl Accel {
    /// The `type` of a libvirt domain.
    #[must_use]
    pub fn domain_type(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "qemu",
        }
    }

    /// As shown to people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "software emulation",
        }
    }

    /// The processor for QEMU's `-cpu`: all that can be had, but emulated without the instruction (ERMS) that
    /// makes Linux copy memory byte by byte, which is fast in hardware only.
    #[must_use]
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "max",
            Self::Tcg => "max,erms=off",
        }
    }

    /// The same for libvirt.
    #[must_use]
    pub fn domain_cpu(self) -> &'static str {
        match self {
            Self::Kvm => "<cpu mode='maximum'/>",
            Self::Tcg => "<cpu mode='maximum'><feature policy='disable' name='erms'/></cpu>",
        }
    }

    /// The argument of QEMU's `-accel`.
    #[must_use]
    pub fn qemu(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// A kernel that KVM runs comes to its panic in a second; one that it cannot run, never.
const PATIENCE: Duration = Duration::from_secs(6);

/// The environment variable that decides without a try.
pub const VARIABLE: &str = "ANNEAL_ACCEL";

/// Starts `kernel` under KVM without anything to run and looks whether it comes as far as its
/// panic. [`VARIABLE`], `tcg` or `kvm`, decides without a try.
///
/// # Errors
/// When QEMU is missing or the variable says something else.
pub fn detect(kernel: &Path) -> anyhow::Result<Accel> {
    match std::env::var(VARIABLE).ok().as_deref() {
        Some("kvm") => return Ok(Accel::Kvm),
        Some("tcg") => return Ok(Accel::Tcg),
        Some(other) => anyhow::bail!("{VARIABLE} is \"{other}\", expected tcg or kvm"),
        None => {}
    }
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accel::Tcg);
    }
    let mut child = tool::command("qemu-system-x86_64")?
        .args([
            "-accel", "kvm", "-cpu", "host", "-m", "128", "-display", "none",
        ])
        .args(["-nodefaults", "-no-reboot", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(if text.contains("Kernel panic") {
        Accel::Kvm
    } else {
        Accel::Tcg
    })
}
