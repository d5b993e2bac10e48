//! What the machine has: read from sysfs and procfs, which a test can replace by a folder.

pub mod disks;

use std::path::Path;

use anneal_protocol::agent::{Inventory, NicInfo};

use crate::cmdline::Options;
use crate::{disk, init};

/// Everything the daemon wants to know.
#[must_use]
pub fn collect(options: &Options) -> Inventory {
    let dmi = Path::new("/sys/class/dmi/id");
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Inventory {
        manufacturer: smbios(dmi, "sys_vendor"),
        product: smbios(dmi, "product_name"),
        serial: smbios(dmi, "product_serial"),
        uuid: smbios_uuid(),
        firmware: if init::booted_by_uefi() {
            "uefi"
        } else {
            "bios"
        }
        .to_owned(),
        cpu_model: cpu_model(&cpuinfo),
        cpus: cpu_count(&cpuinfo),
        memory: memory(&meminfo),
        nics: nics(Path::new("/sys/class/net")),
        disks: disk::list(options).into_iter().map(|d| d.info).collect(),
    }
}

/// The same for people at the console, one line an item.
#[must_use]
pub fn describe(options: &Options) -> Vec<String> {
    let found = collect(options);
    let text = |t: &Option<String>| t.clone().unwrap_or_else(|| "?".to_owned());
    let mut lines = vec![format!(
        "machine: {} {}, {} CPUs, {} MiB, {}",
        text(&found.manufacturer),
        text(&found.product),
        found.cpus,
        found.memory >> 20,
        found.firmware
    )];
    lines.extend(found.nics.iter().map(|nic| {
        format!(
            "nic: {} {} driver {}{}",
            nic.name,
            nic.mac,
            text(&nic.driver),
            if nic.carrier { ", link up" } else { "" }
        )
    }));
    lines.extend(
        found
            .disks
            .iter()
            .map(|d| format!("disk: {}", disk::select::describe(d))),
    );
    if found.disks.is_empty() {
        lines.push("disk: none".to_owned());
    }
    lines
}

/// SMBIOS system UUID; none when unreadable or all the same digit, as on boards nobody set up.
#[must_use]
pub fn smbios_uuid() -> Option<String> {
    smbios(Path::new("/sys/class/dmi/id"), "product_uuid")
        .map(|text| text.to_lowercase())
        .filter(|text| {
            let mut digits = text.bytes().filter(u8::is_ascii_hexdigit);
            let first = digits.next();
            digits.any(|d| Some(d) != first)
        })
}

/// One value, without the words vendors write when they write nothing.
fn smbios(dir: &Path, name: &str) -> Option<String> {
    const FILLERS: [&str; 6] = [
        "to be filled by o.e.m.",
        "not specified",
        "default string",
        "none",
        "system serial number",
        "0123456789",
    ];
    let text = std::fs::read_to_string(dir.join(name)).ok()?;
    let text = text.trim();
    let filler = FILLERS.contains(&text.to_lowercase().as_str());
    (!text.is_empty() && !filler).then(|| text.to_owned())
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim().to_owned())
}

fn cpu_count(cpuinfo: &str) -> u32 {
    let count = cpuinfo
        .lines()
        .filter(|l| l.starts_with("processor"))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn memory(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// NICs with a device behind them, by name.
fn nics(class: &Path) -> Vec<NicInfo> {
    let Ok(entries) = std::fs::read_dir(class) else {
        return Vec::new();
    };
    let mut found: Vec<NicInfo> = entries
        .flatten()
        .filter_map(|entry| nic(&entry.path()))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn nic(dir: &Path) -> Option<NicInfo> {
    let device = dir.join("device");
    if !device.exists() {
        return None;
    }
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    Some(NicInfo {
        name: dir.file_name()?.to_string_lossy().into_owned(),
        mac: read("address")?.trim().parse().ok()?,
        driver: std::fs::read_link(device.join("driver"))
            .ok()
            .and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned())),
        carrier: read("carrier").is_some_and(|text| text.trim() == "1"),
        // -1: unknown.
        speed: read("speed").and_then(|text| text.trim().parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cpu_and_memory() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\n\nprocessor\t: 1\nmodel name\t: x\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("Some CPU @ 2GHz"));
        assert_eq!(cpu_count(cpuinfo), 2);
        assert_eq!(
            memory("MemTotal:        1014528 kB\nMemFree: 1 kB\n"),
            1_038_876_672
        );
        assert_eq!(memory(""), 0);
    }

    #[test]
    fn reads_nics_from_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let nic = dir.path().join("eth0");
        std::fs::create_dir_all(nic.join("device")).unwrap();
        std::os::unix::fs::symlink(
            "../../bus/virtio/drivers/virtio_net",
            nic.join("device/driver"),
        )
        .unwrap();
        std::fs::write(nic.join("address"), "52:54:00:aa:00:01\n").unwrap();
        std::fs::write(nic.join("carrier"), "1\n").unwrap();
        std::fs::write(nic.join("speed"), "-1\n").unwrap();
        std::fs::create_dir(dir.path().join("lo")).unwrap();
        let found = nics(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "eth0");
        assert_eq!(found[0].driver.as_deref(), Some("virtio_net"));
        assert!(found[0].carrier);
        assert_eq!(found[0].speed, None);
    }

    #[test]
    fn fillers_are_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "To Be Filled By O.E.M.\n").unwrap();
        std::fs::write(dir.path().join("b"), "  QEMU \n").unwrap();
        assert_eq!(smbios(dir.path(), "a"), None);
        assert_eq!(smbios(dir.path(), "b").as_deref(), Some("QEMU"));
        assert_eq!(smbios(dir.path(), "c"), None);
    }
}
