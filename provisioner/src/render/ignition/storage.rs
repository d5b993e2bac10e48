//! Disks, RAID, file systems and LUKS, which our YAML writes in Ignition's own words.

use serde::{Deserialize, Serialize};

use super::spec::Spec;

/// `storage`, without files, directories and links, which have keys of their own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    #[serde(skip_serializing_if = "Option::is_none")]
    disks: Option<Vec<Disk>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filesystems: Option<Vec<Filesystem>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    luks: Option<Vec<Luks>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raid: Option<Vec<Raid>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Disk {
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<Vec<Partition>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wipe_table: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Partition {
    #[serde(skip_serializing_if = "Option::is_none")]
    guid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resize: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    should_exist: Option<bool>,
    #[serde(rename = "sizeMiB", skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(rename = "startMiB", skip_serializing_if = "Option::is_none")]
    start: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    type_guid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wipe_partition_entry: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Filesystem {
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mount_options: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wipe_filesystem: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raid {
    name: String,
    level: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spares: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Luks {
    name: String,
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cex: Option<Cex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clevis: Option<Clevis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    discard: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<KeyFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_options: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wipe_volume: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cex {
    enabled: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clevis {
    #[serde(skip_serializing_if = "Option::is_none")]
    tang: Option<Vec<Tang>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm2: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tang {
    url: String,
    thumbprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertisement: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<Verification>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verification {
    hash: String,
}

impl Storage {
    /// The first word that a version does not have, with the version that brought it.
    pub fn newer_than(&self, spec: Spec) -> Option<(&'static str, Spec)> {
        let disks = self.disks.as_deref().unwrap_or_default();
        let filesystems = self.filesystems.as_deref().unwrap_or_default();
        let luks = self.luks.as_deref().unwrap_or_default();
        let mut partitions = disks
            .iter()
            .flat_map(|d| d.partitions.as_deref().unwrap_or_default());
        let tang = |l: &Luks| {
            let tang = l.clevis.as_ref().and_then(|clevis| clevis.tang.as_deref());
            tang.is_some_and(|all| all.iter().any(|tang| tang.advertisement.is_some()))
        };
        [
            ("luks", Spec::V3_2, !luks.is_empty()),
            ("resize", Spec::V3_2, partitions.any(|p| p.resize.is_some())),
            (
                "mountOptions",
                Spec::V3_1,
                filesystems.iter().any(|f| f.mount_options.is_some()),
            ),
            (
                "discard",
                Spec::V3_4,
                luks.iter().any(|l| l.discard.is_some()),
            ),
            (
                "openOptions",
                Spec::V3_4,
                luks.iter().any(|l| l.open_options.is_some()),
            ),
            ("advertisement", Spec::V3_4, luks.iter().any(tang)),
            ("cex", Spec::V3_5, luks.iter().any(|l| l.cex.is_some())),
        ]
        .into_iter()
        .find(|(_, since, used)| *used && *since > spec)
        .map(|(word, since, _)| (word, since))
    }
}
