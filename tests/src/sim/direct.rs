//! Quick machines: QEMU, mostly without firmware. They ask the daemon for their boot script as iPXE
//! would, take the kernel command line from it, and start the agent at once.
//!
//! What they leave out (DHCP of firmware, TFTP, boot order) is what the rack is for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::accel::Accel;
use super::domain::ovmf;
use super::net;
use super::process::Process;
use super::tool;

/// A machine with one disk and one NIC.
#[derive(Debug)]
pub struct DirectMachine {
    /// Name, for its tap and files.
    pub name: String,
    /// MAC.
    pub mac: String,
    /// Raw file of its disk.
    pub disk: PathBuf,
    /// What its serial console prints.
    pub console: PathBuf,
    accel: Accel,
    netboot: PathBuf,
    running: Option<Process>,
}

impl DirectMachine {
    /// A machine that is off, with an empty disk, plugged into the wire.
    ///
    /// # Errors
    /// When disk or tap cannot be made.
    pub fn new(
        name: &str,
        mac: &str,
        disk_bytes: u64,
        accel: Accel,
        netboot: &Path,
        work: &Path,
    ) -> anyhow::Result<Self> {
        net::make_tap(name)?;
        let disk = work.join(format!("{name}.raw"));
        std::fs::File::create(&disk)?.set_len(disk_bytes)?;
        Ok(Self {
            name: name.to_owned(),
            mac: mac.to_owned(),
            disk,
            console: work.join(format!("{name}.console.log")),
            accel,
            netboot: netboot.to_owned(),
            running: None,
        })
    }

    /// Starts the agent with this kernel command line, whatever the daemon says now.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start(&mut self, arguments: &str) -> anyhow::Result<()> {
        let mut qemu = self.qemu()?;
        // An emulated timer that a busy host holds up is no broken one: Linux would panic.
        let check = match self.accel {
            Accel::Tcg => " no_timer_check",
            Accel::Kvm => "",
        };
        qemu.arg("-kernel")
            .arg(self.netboot.join("vmlinuz"))
            .arg("-initrd")
            .arg(self.netboot.join("initramfs.img"))
            .args(["-append", &format!("{arguments}{check}")]);
        self.spawn(qemu)
    }

    /// Starts it by BIOS and network, as a machine does that nobody prepared.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start_firmware(&mut self) -> anyhow::Result<()> {
        let mut qemu = self.qemu()?;
        qemu.args(["-boot", "n", "-machine", "graphics=off"]);
        self.spawn(qemu)
    }

    /// Starts what is installed on its disk, by BIOS.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start_disk(&mut self) -> anyhow::Result<()> {
        let mut qemu = self.qemu()?;
        qemu.args(["-boot", "c", "-machine", "graphics=off", "-m", "1024"]);
        self.spawn(qemu)
    }

    /// Starts what is installed on its disk, by UEFI firmware that remembers nothing. Unlike those that
    /// are started otherwise, it may restart.
    ///
    /// # Errors
    /// When the firmware is missing or QEMU does not start.
    pub fn start_uefi_disk(&mut self) -> anyhow::Result<()> {
        let (code, vars) = ovmf()?;
        let own = self.disk.with_extension("vars.fd");
        std::fs::copy(&vars, &own).with_context(|| format!("copying {}", vars.display()))?;
        let mut qemu = self.qemu()?;
        qemu.args(["-machine", "graphics=off", "-m", "1024"])
            // The last word on `-no-reboot`.
            .args(["-action", "reboot=reset"])
            .args(["-set", "device.disk0.bootindex=1", "-drive"])
            .arg(format!(
                "if=pflash,format=raw,readonly=on,file={}",
                code.display()
            ))
            .arg("-drive")
            .arg(format!("if=pflash,format=raw,file={}", own.display()));
        self.spawn(qemu)
    }

    fn qemu(&self) -> anyhow::Result<Command> {
        let mut qemu = tool::command("qemu-system-x86_64")?;
        let netdev = format!(
            "tap,id=n0,ifname={},script=no,downscript=no",
            net::tap_of(&self.name)
        );
        let nic = format!("virtio-net-pci,netdev=n0,mac={}", self.mac);
        let drive = format!(
            "file={},format=raw,if=none,id=d0,cache=unsafe,discard=unmap",
            self.disk.display()
        );
        let disk = format!("virtio-blk-pci,id=disk0,drive=d0,serial=DISK-{}", self.name);
        qemu.args([
            "-machine",
            "q35",
            "-accel",
            self.accel.qemu(),
            "-cpu",
            self.accel.cpu(),
        ])
        .args(["-m", "512", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-netdev", &netdev, "-device", &nic])
        .args(["-drive", &drive, "-device", &disk])
        .args(["-device", "virtio-rng-pci", "-chardev"])
        .arg(format!(
            "file,id=c0,path={},append=on",
            self.console.display()
        ))
        .args(["-serial", "chardev:c0"]);
        Ok(qemu)
    }

    fn spawn(&mut self, qemu: Command) -> anyhow::Result<()> {
        anyhow::ensure!(self.running.is_none(), "{} is on already", self.name);
        let log = self.console.with_extension("qemu.log");
        self.running = Some(Process::start(&self.name, qemu, &log)?);
        Ok(())
    }

    /// Pulls the plug.
    pub fn power_off(&mut self) {
        self.running = None;
    }

    /// Whether it is on. A machine that restarts or switches itself off is off afterwards.
    pub fn is_on(&mut self) -> bool {
        let on = self
            .running
            .as_mut()
            .is_some_and(|process| process.ensure_running().is_ok());
        if !on {
            self.running = None;
        }
        on
    }

    /// Lets it run for a moment and freezes it: what it does can then be looked at step by step.
    ///
    /// # Errors
    /// When it is off, or ended in that moment.
    pub fn run_for(&mut self, moment: std::time::Duration) -> anyhow::Result<()> {
        let process = self.running.as_mut().context("the machine is off")?;
        process.freeze(false)?;
        std::thread::sleep(moment);
        process.freeze(true)
    }

    /// The beginning of its disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn disk_head(&self, bytes: usize) -> anyhow::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt as _;
        let mut head = vec![0; bytes];
        std::fs::File::open(&self.disk)
            .and_then(|file| file.read_exact_at(&mut head, 0))
            .with_context(|| format!("reading {}", self.disk.display()))?;
        Ok(head)
    }
}

/// The boot script for a MAC, as iPXE gets it: asked for from the machine's own address, because
/// the daemon tells nobody else. The machine must be off.
///
/// # Errors
/// When the daemon does not answer with one.
pub fn fetch_script(mac: &str, address: &str) -> anyhow::Result<String> {
    let url = format!(
        "http://{}:8080/boot/script/{}",
        net::DAEMON,
        mac.replace(':', "-")
    );
    let mut curl = tool::command("curl")?;
    curl.args([
        "-sS",
        "--fail",
        "--max-time",
        "10",
        "--interface",
        address,
        &url,
    ]);
    let output = net::as_machine(address, || tool::run(&mut curl))?;
    let script = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(
        script.starts_with("#!ipxe"),
        "{url} is not an iPXE script: {script}"
    );
    Ok(script)
}

/// The kernel's arguments from a script that starts the agent.
///
/// # Errors
/// When the script starts something else.
pub fn kernel_arguments(script: &str) -> anyhow::Result<String> {
    script
        .lines()
        .find(|line| line.trim_start().starts_with("kernel "))
        .map(|line| {
            line.split_ascii_whitespace()
                .take_while(|word| *word != "||")
                .filter(|word| word.contains('=') && !word.starts_with("initrd="))
                .collect::<Vec<_>>()
                .join(" ")
        })
        .with_context(|| format!("the boot script does not start the agent: {script}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_arguments_of_a_script() {
        let script = "#!ipxe\n:load\nkernel --name vmlinuz http://10.77.0.1:8080/boot/vmlinuz \
                      initrd=initramfs.img console=ttyS0 anneal.token=ab || goto again\n";
        assert_eq!(
            kernel_arguments(script).unwrap(),
            "console=ttyS0 anneal.token=ab"
        );
        let disk = kernel_arguments("#!ipxe\nexit 1\n").unwrap_err();
        assert!(disk.to_string().contains("does not start the agent"));
    }
}
