//! Machines with firmware, as libvirt domains. They differ as real ones do.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::accel::Accel;
use super::net::tap_of;

/// How a machine starts, and with which hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UEFI (OVMF), PXE over a virtio NIC by EDK2's own drivers, virtio disk.
    UefiPxe,
    /// BIOS (SeaBIOS), PXE by QEMU's network boot ROM, e1000 NIC, SATA disk.
    BiosPxe,
    /// UEFI (OVMF), HTTP boot without TFTP, virtio NIC, NVMe disk.
    UefiHttp,
}

impl Kind {
    /// As shown to people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::UefiPxe => "UEFI PXE",
            Self::BiosPxe => "BIOS PXE",
            Self::UefiHttp => "UEFI HTTP",
        }
    }
}

/// Everything a machine is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Name, `r1n1`.
    pub name: String,
    /// Its Redfish system id.
    pub uuid: String,
    /// Address of its one NIC.
    pub mac: String,
    /// Kind.
    pub kind: Kind,
    /// The disk to install to.
    pub disk: Disk,
    /// A second disk with data that nobody may touch.
    pub protected: Option<Disk>,
    /// Copy of the UEFI variables (UEFI only).
    pub nvram: PathBuf,
    /// What the serial console prints.
    pub console: PathBuf,
    /// RAM in MiB.
    pub memory_mib: u32,
}

/// A disk: a raw file.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The file.
    pub file: PathBuf,
    /// Serial number the machine sees.
    pub serial: String,
}

impl Disk {
    /// Makes an empty, sparse disk.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(file: PathBuf, serial: &str, bytes: u64) -> anyhow::Result<Self> {
        std::fs::File::create(&file)
            .and_then(|made| made.set_len(bytes))
            .with_context(|| format!("making {}", file.display()))?;
        Ok(Self {
            file,
            serial: serial.to_owned(),
        })
    }
}

/// Where firmware images are: Debian and Ubuntu name them alike.
const OVMF_DIR: &str = "/usr/share/OVMF";

/// The UEFI firmware and its empty variables.
///
/// # Errors
/// Names the package when they are missing.
pub fn ovmf() -> anyhow::Result<(PathBuf, PathBuf)> {
    let pair = (
        Path::new(OVMF_DIR).join("OVMF_CODE_4M.fd"),
        Path::new(OVMF_DIR).join("OVMF_VARS_4M.fd"),
    );
    anyhow::ensure!(
        pair.0.is_file() && pair.1.is_file(),
        "{OVMF_DIR} has no OVMF_CODE_4M.fd: run `make setup`, or install the package ovmf"
    );
    Ok(pair)
}

impl Machine {
    /// The domain in libvirt's XML. Boot order: network, then disk, as set by the Redfish service.
    ///
    /// # Errors
    /// When UEFI firmware is needed and missing.
    pub fn xml(&self, accel: Accel) -> anyhow::Result<String> {
        let mut xml = String::new();
        self.write_xml(&mut xml, accel)?;
        Ok(xml)
    }

    fn write_xml(&self, xml: &mut String, accel: Accel) -> anyhow::Result<()> {
        writeln!(
            xml,
            "<domain type='{}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n\
             <name>{}</name><uuid>{}</uuid>\n\
             <memory unit='MiB'>{}</memory><vcpu>1</vcpu>\n\
             <features><acpi/><apic/></features>\n\
             {}\n\
             <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>\
             <on_crash>destroy</on_crash>",
            accel.domain_type(),
            self.name,
            self.uuid,
            self.memory_mib,
            accel.domain_cpu()
        )?;
        self.write_firmware(xml)?;
        writeln!(xml, "<devices>")?;
        self.write_disks(xml)?;
        self.write_nic(xml)?;
        writeln!(
            xml,
            "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n\
             <serial type='file'><source path='{}' append='on'/></serial>\n\
             <memballoon model='none'/>\n\
             </devices>",
            self.console.display()
        )?;
        if self.kind == Kind::UefiHttp {
            // libvirt knows NVMe disks since 11.5 only. The boot index is the one after the NIC's, and
            // the slot one that libvirt leaves alone.
            writeln!(
                xml,
                "<qemu:commandline>\n\
                 <qemu:arg value='-drive'/><qemu:arg value='file={},format=raw,if=none,id=nvm0,cache=unsafe,discard=unmap'/>\n\
                 <qemu:arg value='-device'/><qemu:arg value='nvme,serial={},drive=nvm0,bootindex=2,bus=pcie.0,addr=0x10'/>\n\
                 </qemu:commandline>",
                self.disk.file.display(),
                self.disk.serial
            )?;
        }
        writeln!(xml, "</domain>")?;
        Ok(())
    }

    fn write_firmware(&self, xml: &mut String) -> anyhow::Result<()> {
        if self.kind == Kind::BiosPxe {
            writeln!(
                xml,
                "<os><type arch='x86_64' machine='q35'>hvm</type><bios useserial='yes'/></os>"
            )?;
            return Ok(());
        }
        let (code, vars) = ovmf()?;
        // The wire has no IPv6. And OVMF tries PXE for minutes before HTTP unless it is told not to.
        writeln!(
            xml,
            "<sysinfo type='fwcfg'>\n\
             <entry name='opt/org.tianocore/IPv6PXESupport'>n</entry>\n\
             <entry name='opt/org.tianocore/IPv4PXESupport'>{}</entry>\n\
             </sysinfo>",
            if self.kind == Kind::UefiHttp {
                "n"
            } else {
                "y"
            }
        )?;
        writeln!(
            xml,
            "<os><type arch='x86_64' machine='q35'>hvm</type>\n\
             <loader readonly='yes' type='pflash'>{}</loader>\n\
             <nvram template='{}'>{}</nvram></os>",
            code.display(),
            vars.display(),
            self.nvram.display()
        )?;
        Ok(())
    }

    fn write_disks(&self, xml: &mut String) -> anyhow::Result<()> {
        match self.kind {
            Kind::UefiPxe => write_disk(xml, &self.disk, "vda", "virtio", true)?,
            Kind::BiosPxe => write_disk(xml, &self.disk, "sda", "sata", true)?,
            Kind::UefiHttp => {}
        }
        if let Some(protected) = &self.protected {
            write_disk(xml, protected, "vdz", "virtio", false)?;
        }
        Ok(())
    }

    fn write_nic(&self, xml: &mut String) -> anyhow::Result<()> {
        let (model, rom) = match self.kind {
            // Without QEMU's ROM it is EDK2's own driver and PXE client that boot.
            Kind::UefiPxe | Kind::UefiHttp => ("virtio", "<rom enabled='no'/>"),
            Kind::BiosPxe => ("e1000", ""),
        };
        writeln!(
            xml,
            "<interface type='ethernet'><mac address='{}'/>\
             <target dev='{}' managed='no'/><model type='{model}'/>{rom}\
             <boot order='1'/></interface>",
            self.mac,
            tap_of(&self.name)
        )?;
        Ok(())
    }
}

fn write_disk(
    xml: &mut String,
    disk: &Disk,
    target: &str,
    bus: &str,
    boot: bool,
) -> anyhow::Result<()> {
    writeln!(
        xml,
        "<disk type='file' device='disk'>\
         <driver name='qemu' type='raw' cache='unsafe' discard='unmap'/>\
         <source file='{}'/><target dev='{target}' bus='{bus}'/><serial>{}</serial>{}</disk>",
        disk.file.display(),
        disk.serial,
        if boot { "<boot order='2'/>" } else { "" }
    )?;
    Ok(())
}
