//! The three machines, as `hardware/lab.yaml` describes them.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::sim::domain::{Disk, Kind, Machine};

/// Name, firmware, number.
const MACHINES: &[(&str, Kind, u8)] = &[
    ("r1n1", Kind::UefiPxe, 1),
    ("r1n2", Kind::BiosPxe, 2),
    ("r1n3", Kind::UefiHttp, 3),
];

/// RAM of each.
const MEMORY_MIB: u32 = 1024;
/// Size of the disk that nobody may touch.
const PROTECTED_BYTES: usize = 32 << 20;
/// Its serial number, named in the inventory.
pub const PROTECTED_SERIAL: &str = "KEEP-R1N3";

/// Makes the machines' disks and describes the machines.
///
/// # Errors
/// When a disk cannot be made.
pub fn create(work: &Path, logs: &Path, disk_bytes: u64) -> anyhow::Result<Vec<Machine>> {
    let disks = work.join("disks");
    std::fs::create_dir_all(&disks).with_context(|| format!("making {}", disks.display()))?;
    MACHINES
        .iter()
        .map(|&(name, kind, number)| {
            let protected = match kind {
                Kind::UefiHttp => Some(protected_disk(&disks, name)?),
                _ => None,
            };
            Ok(Machine {
                name: name.to_owned(),
                uuid: uuid_of(number),
                mac: mac_of(number),
                kind,
                disk: Disk::create(
                    disks.join(format!("{name}.raw")),
                    &format!("DISK-{name}"),
                    disk_bytes,
                )?,
                protected,
                nvram: work.join(format!("{name}.vars.fd")),
                console: logs.join(format!("{name}.console.log")),
                memory_mib: MEMORY_MIB,
            })
        })
        .collect()
}

/// MAC of the machine with that number.
#[must_use]
pub fn mac_of(number: u8) -> String {
    format!("52:54:00:aa:00:{number:02x}")
}

/// Redfish system id of the machine with that number.
#[must_use]
pub fn uuid_of(number: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{number:02x}")
}

/// A disk full of bytes that are no accident: a changed one shows in the digest.
fn protected_disk(disks: &Path, machine: &str) -> anyhow::Result<Disk> {
    let file = disks.join(format!("{machine}-protected.raw"));
    let mut out =
        std::fs::File::create(&file).with_context(|| format!("making {}", file.display()))?;
    let mut block = Sha256::digest(PROTECTED_SERIAL);
    let mut bytes = Vec::with_capacity(PROTECTED_BYTES);
    while bytes.len() < PROTECTED_BYTES {
        bytes.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    out.write_all(&bytes)?;
    Ok(Disk {
        file,
        serial: PROTECTED_SERIAL.to_owned(),
    })
}

/// SHA-256 of a whole file, hex.
///
/// # Errors
/// When it cannot be read.
pub fn digest_of(file: &Path) -> anyhow::Result<String> {
    let mut source =
        std::fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut source, &mut hasher)
        .with_context(|| format!("reading {}", file.display()))?;
    Ok(hex::encode(hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_changes_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let disk = protected_disk(dir.path(), "r1n3").unwrap();
        let before = digest_of(&disk.file).unwrap();
        assert_eq!(before, digest_of(&disk.file).unwrap());
        let mut bytes = std::fs::read(&disk.file).unwrap();
        assert_eq!(bytes.len(), PROTECTED_BYTES);
        bytes[PROTECTED_BYTES - 1] ^= 1;
        std::fs::write(&disk.file, bytes).unwrap();
        assert_ne!(before, digest_of(&disk.file).unwrap());
    }
}
