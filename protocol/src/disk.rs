//! Disks: what the agent reports, how the inventory chooses one, which are protected.
//!
//! A disk is never chosen by a device name: names change between boots.

use serde::{Deserialize, Serialize};

/// How a disk is attached or built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskType {
    /// NVM Express.
    Nvme,
    /// SATA or PATA behind libata.
    Sata,
    /// SAS, SCSI, or a RAID controller's logical volume.
    Scsi,
    /// virtio-blk.
    Virtio,
    /// USB mass storage.
    Usb,
    /// eMMC or SD card.
    Mmc,
    /// Anything else (loop devices in tests, vendor drivers).
    Other,
}

/// One whole disk as the agent sees it. Text fields are trimmed; empty ones are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskInfo {
    /// Kernel name at this boot (`vda`): for people reading logs, never for choosing.
    pub name: String,
    /// How it is attached.
    #[serde(rename = "type")]
    pub kind: DiskType,
    /// Size in bytes.
    pub size: u64,
    /// Logical sector size in bytes (512 or 4096).
    pub sector_size: u32,
    /// Spins.
    pub rotational: bool,
    /// Write-protected.
    pub read_only: bool,
    /// Removable medium.
    pub removable: bool,
    /// Serial number.
    pub serial: Option<String>,
    /// World Wide Name, `eui.…`/`naa.…`/`0x…` as the kernel prints it.
    pub wwn: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Where it is plugged in (PCI or other bus path), stable across boots.
    pub path: Option<String>,
    /// Labels of the file systems and partitions found on it, to recognise a disk in use.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Reading the labels failed: that `labels` lacks one does not mean that the disk does.
    #[serde(default)]
    pub labels_unreadable: bool,
}

/// Whether two World Wide Names are the same: the kernel, `lsblk` and labels on drives write
/// the same digits with different prefixes and in either case.
#[must_use]
pub fn same_wwn(a: &str, b: &str) -> bool {
    wwn_digits(a) == wwn_digits(b)
}

fn wwn_digits(wwn: &str) -> String {
    let wwn = wwn.trim().to_ascii_lowercase();
    let digits = ["naa.", "eui.", "0x"]
        .iter()
        .find_map(|prefix| wwn.strip_prefix(prefix));
    digits.unwrap_or(&wwn).to_owned()
}

/// What the inventory says about the disk to install to. All given hints must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskHints {
    /// Attachment.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<DiskType>,
    /// Smallest size in bytes (inventory files write `100GiB`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_size: Option<u64>,
    /// Largest size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// Exact serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Exact World Wide Name; prefix and case do not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Text that the model contains, case ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Spins or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
}

/// A disk that anneal must never write to. Every given field must match for a disk to be
/// protected; at least one must be given. A field that cannot be read on a disk counts as a
/// match: such a disk may be the one that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ProtectedDisk {
    /// Exact serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Exact World Wide Name; prefix and case do not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// A file-system or partition label found on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Which disk a step may write to: travels with every step that writes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskSelector {
    /// How to choose.
    pub hints: DiskHints,
    /// What must not be chosen, whatever the hints say.
    pub protected: Vec<ProtectedDisk>,
}

#[cfg(test)]
mod tests {
    use super::same_wwn;

    #[test]
    fn a_wwn_is_the_same_whatever_its_prefix() {
        for (a, b, same) in [
            ("naa.5002538e40a3d5f1", "0x5002538E40A3D5F1", true),
            ("EUI.0025385b01406c33", "0025385b01406c33", true),
            ("naa.5002538e40a3d5f1", "naa.5002538e40a3d5f2", false),
            ("t10.ATA X", "t10.ata x", true),
        ] {
            assert_eq!(same_wwn(a, b), same, "{a} {b}");
        }
    }
}
