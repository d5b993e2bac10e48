//! Whole disks as sysfs shows them. Stacked and virtual devices are no disks.

use std::path::{Path, PathBuf};

use anneal_protocol::disk::{DiskInfo, DiskType};

/// Sizes in sysfs are in these, whatever the disk's own sector.
const SYSFS_SECTOR: u64 = 512;

/// Reads every disk below `/sys/block` (or a folder that looks like it), by name. Loop devices
/// count only when `loops` names them. Labels are left empty: reading them needs the disk.
#[must_use]
pub fn read(block: &Path, loops: &[PathBuf]) -> Vec<DiskInfo> {
    let Ok(entries) = std::fs::read_dir(block) else {
        return Vec::new();
    };
    let mut disks: Vec<DiskInfo> = entries
        .flatten()
        .filter_map(|entry| disk(&entry.path(), loops))
        .collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// The names of CD and DVD drives, a BMC's virtual ones too: nothing to write to, but what is in
/// them may have a label that somebody looks for.
#[must_use]
pub fn discs(block: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(block).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| number(&entry.path(), "size").is_some_and(|size| size > 0))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_numbered(name, "sr"))
        .collect();
    names.sort();
    names
}

/// Reads one disk, given its folder; none when it is gone or no disk to write to.
#[must_use]
pub fn disk(dir: &Path, loops: &[PathBuf]) -> Option<DiskInfo> {
    let name = dir.file_name()?.to_string_lossy().into_owned();
    let is_loop = name.starts_with("loop");
    let named = loops.contains(&Path::new("/dev").join(&name));
    let wanted = if is_loop { named } else { is_disk(dir, &name) };
    let size = number(dir, "size")? * SYSFS_SECTOR;
    if !wanted || size == 0 {
        return None;
    }
    let place = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let kind = kind(&name, &place.to_string_lossy());
    Some(DiskInfo {
        kind,
        size,
        sector_size: number(dir, "queue/logical_block_size")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(512),
        rotational: number(dir, "queue/rotational") == Some(1),
        read_only: number(dir, "ro") == Some(1),
        removable: number(dir, "removable") == Some(1),
        serial: if is_loop {
            backing_file(dir)
        } else {
            serial(dir)
        },
        wwn: text(dir, "wwid").or_else(|| text(dir, "device/wwid")),
        model: model(dir, kind),
        path: bus_path(&place),
        labels: Vec::new(),
        labels_unreadable: false,
        name,
    })
}

/// Has hardware behind it, and is the whole of it.
fn is_disk(dir: &Path, name: &str) -> bool {
    const NO_DISKS: [&str; 6] = ["sr", "fd", "ram", "zram", "dm-", "md"];
    let boot_area = name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb"));
    dir.join("device").exists()
        && !boot_area
        // NVMe multipath: one path of a disk that is listed under its own name.
        && number(dir, "hidden") != Some(1)
        && !NO_DISKS.iter().any(|prefix| name.starts_with(prefix))
}

fn kind(name: &str, place: &str) -> DiskType {
    match name {
        _ if name.starts_with("nvme") => DiskType::Nvme,
        _ if name.starts_with("mmcblk") => DiskType::Mmc,
        _ if name.starts_with("vd") => DiskType::Virtio,
        _ if !name.starts_with("sd") => DiskType::Other,
        _ if place.contains("/usb") => DiskType::Usb,
        _ if place.contains("/ata") => DiskType::Sata,
        _ => DiskType::Scsi,
    }
}

fn serial(dir: &Path) -> Option<String> {
    text(dir, "serial")
        .or_else(|| text(dir, "device/serial"))
        .or_else(|| vpd_serial(&std::fs::read(dir.join("device/vpd_pg80")).ok()?))
}

/// SCSI "unit serial number" page (SPC-4, 7.8.14): four bytes of header, then the text.
fn vpd_serial(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let bytes = page.get(4..)?.iter().take(length);
    let text: String = bytes
        .filter(|b| b.is_ascii_graphic() || **b == b' ')
        .map(|b| char::from(*b))
        .collect();
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// virtio-blk has a vendor id there, which is no model.
fn model(dir: &Path, kind: DiskType) -> Option<String> {
    match kind {
        DiskType::Virtio => None,
        DiskType::Mmc => text(dir, "device/name"),
        _ => text(dir, "device/model"),
    }
}

/// A loop device is recognised by its file's name.
fn backing_file(dir: &Path) -> Option<String> {
    let path = text(dir, "loop/backing_file")?;
    Some(Path::new(&path).file_name()?.to_string_lossy().into_owned())
}

/// Where it is plugged in: the last PCI function on the way, then what distinguishes disks
/// behind it: ATA port, SCSI target, or nothing.
fn bus_path(place: &Path) -> Option<String> {
    let parts: Vec<String> = place
        .components()
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect();
    let pci = parts.iter().rev().find(|part| is_pci_function(part))?;
    let mut path = format!("pci-{pci}");
    if let Some(port) = parts.iter().find(|p| is_numbered(p, "ata")) {
        path = format!("{path}-{port}");
    }
    // SCSI address H:C:T:L; the host number depends on probing order.
    let scsi = parts.iter().rev().find(|part| {
        part.split(':').count() == 4 && part.bytes().all(|b| b.is_ascii_digit() || b == b':')
    });
    if let Some((_, target)) = scsi.and_then(|address| address.split_once(':')) {
        path = format!("{path}-scsi-{target}");
    }
    Some(path)
}

/// `0000:00:1f.2`
fn is_pci_function(part: &str) -> bool {
    part.len() == 12
        && part.char_indices().all(|(i, c)| match i {
            4 | 7 => c == ':',
            10 => c == '.',
            _ => c.is_ascii_hexdigit(),
        })
}

fn is_numbered(part: &str, prefix: &str) -> bool {
    part.strip_prefix(prefix)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn text(dir: &Path, name: &str) -> Option<String> {
    let text = std::fs::read(dir.join(name)).ok()?;
    let text = String::from_utf8_lossy(&text).replace('\0', "");
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

fn number(dir: &Path, name: &str) -> Option<u64> {
    text(dir, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, content: &[u8]) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Lays out a disk as Linux 6.1 does: the entry in `block` is a link into `devices`.
    fn lay(root: &Path, place: &str, name: &str, files: &[(&str, &[u8])]) {
        let real = root.join("devices").join(place).join("block").join(name);
        std::fs::create_dir_all(&real).unwrap();
        for (file, content) in files {
            write(&real, file, content);
        }
        std::fs::create_dir_all(root.join("block")).unwrap();
        std::os::unix::fs::symlink(&real, root.join("block").join(name)).unwrap();
    }

    #[test]
    fn reads_the_disks_of_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        lay(
            root,
            "pci0000:00/0000:00:04.0/virtio1",
            "vda",
            &[
                ("size", b"41943040\n"),
                ("serial", b"r1n1-root\n"),
                ("device/vendor", b"0x1af4\n"),
                ("queue/logical_block_size", b"512\n"),
                ("queue/rotational", b"1\n"),
            ],
        );
        lay(
            root,
            "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0",
            "sda",
            &[
                ("size", b"976773168\n"),
                ("device/model", b"ACME SSD        \n"),
                ("device/vpd_pg80", b"\x00\x80\x00\x08  S5XN\x000"),
                ("device/wwid", b"naa.5002538e40a3d5f1\n"),
                ("removable", b"0\n"),
            ],
        );
        lay(
            root,
            "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host6/target6:0:0/6:0:0:0",
            "sdb",
            &[
                ("size", b"15728640\n"),
                ("device/model", b"Stick\n"),
                ("removable", b"1\n"),
            ],
        );
        lay(
            root,
            "pci0000:00/0000:03:00.0/nvme/nvme0",
            "nvme0n1",
            &[
                ("size", b"1000215216\n"),
                ("wwid", b"eui.0025385b01406c33\n"),
                ("device/serial", b"S4EW      \n"),
                ("queue/logical_block_size", b"4096\n"),
            ],
        );
        // None of these is a disk to write to.
        lay(
            root,
            "virtual/a",
            "dm-0",
            &[("size", b"100\n"), ("device/x", b"")],
        );
        lay(
            root,
            "virtual/b",
            "loop0",
            &[("size", b"100\n"), ("loop/backing_file", b"/x/a.img\n")],
        );
        lay(
            root,
            "pci0000:00/0000:00:01.1/ata1",
            "sr0",
            &[("size", b"100\n"), ("device/x", b"")],
        );
        lay(
            root,
            "pci0000:00/0000:00:05.0/x",
            "sdz",
            &[("size", b"0\n"), ("device/x", b"")],
        );
        lay(
            root,
            "virtual/c",
            "nvme1c0n1",
            &[("size", b"9\n"), ("hidden", b"1\n"), ("device/x", b"")],
        );
        lay(
            root,
            "platform/mmc0",
            "mmcblk0boot0",
            &[("size", b"9\n"), ("device/x", b"")],
        );

        let disks = read(&root.join("block"), &[]);
        let names: Vec<_> = disks.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["nvme0n1", "sda", "sdb", "vda"]);
        assert_eq!(discs(&root.join("block")), ["sr0"]);
        let [nvme, sata, usb, virtio] = &disks[..] else {
            panic!()
        };
        assert_eq!((nvme.kind, nvme.sector_size), (DiskType::Nvme, 4096));
        assert_eq!(nvme.serial.as_deref(), Some("S4EW"));
        assert_eq!(nvme.wwn.as_deref(), Some("eui.0025385b01406c33"));
        assert_eq!(nvme.path.as_deref(), Some("pci-0000:03:00.0"));
        assert_eq!(sata.kind, DiskType::Sata);
        assert_eq!(sata.serial.as_deref(), Some("S5XN0"));
        assert_eq!(sata.model.as_deref(), Some("ACME SSD"));
        assert_eq!(
            sata.path.as_deref(),
            Some("pci-0000:00:1f.2-ata3-scsi-0:0:0")
        );
        assert_eq!((usb.kind, usb.removable), (DiskType::Usb, true));
        assert_eq!(virtio.kind, DiskType::Virtio);
        assert_eq!((virtio.size, virtio.rotational), (20 << 30, true));
        assert_eq!(virtio.serial.as_deref(), Some("r1n1-root"));
        assert_eq!(virtio.model, None);
    }

    #[test]
    fn a_loop_device_counts_only_when_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["loop0", "loop1"] {
            lay(
                dir.path(),
                "virtual",
                name,
                &[
                    ("size", b"100\n"),
                    ("loop/backing_file", b"/tmp/some/disk-a.img\n"),
                ],
            );
        }
        let disks = read(&dir.path().join("block"), &["/dev/loop1".into()]);
        assert_eq!(disks.len(), 1);
        assert_eq!(disks[0].name, "loop1");
        assert_eq!(disks[0].kind, DiskType::Other);
        assert_eq!(disks[0].serial.as_deref(), Some("disk-a.img"));
    }
}
