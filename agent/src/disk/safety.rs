//! Is the chosen disk free to be overwritten, and large enough?
//!
//! The last gate before the first write. The order of the checks is the order of what people
//! want to read first; the exclusive open at the end is the kernel's own word.

use std::io;
use std::path::Path;

use anneal_protocol::agent::{FailureCode, StepFailure};

use super::Chosen;
use super::device::{self, BlockDevice};
use crate::step::fail;

/// Opens the disk for writing if nothing on it is in use and it still is the one chosen.
///
/// # Errors
/// `DiskRefused` with what uses it or how it differs, `DiskTooSmall`, or `DiskIo`.
pub fn open(chosen: &Chosen, needed: u64) -> Result<BlockDevice, StepFailure> {
    let disk = &chosen.disk;
    let name = &disk.info.name;
    large_enough(name, disk.info.size, needed)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let block = Path::new("/sys/block").join(name);
    if let Some(user) = user(&block, &mounts, &swaps) {
        return Err(fail(
            FailureCode::DiskRefused,
            format!("{name} is in use: {user}"),
        ));
    }
    let file = device::open_exclusive(&disk.node).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => fail(
            FailureCode::DiskRefused,
            format!("{name} is in use: the kernel does not open it exclusively"),
        ),
        Some(libc::EROFS | libc::EACCES | libc::EPERM) => fail(
            FailureCode::DiskRefused,
            format!("{name} is read-only: {error}"),
        ),
        _ => super::io_failure("open", &disk.node, &error),
    })?;
    // Names are given out anew when disks come and go; from here on the open file keeps it.
    let now = chosen.confirm()?;
    large_enough(name, now.size, needed)?;
    Ok(BlockDevice::new(
        file,
        &disk.node,
        now.size,
        now.sector_size,
    ))
}

fn large_enough(name: &str, size: u64, needed: u64) -> Result<(), StepFailure> {
    if size >= needed {
        return Ok(());
    }
    Err(fail(
        FailureCode::DiskTooSmall,
        format!("{name} has {size} bytes, the image needs {needed}"),
    ))
}

/// Who uses a disk or one of its partitions.
fn user(block: &Path, mountinfo: &str, swaps: &str) -> Option<String> {
    let mut devices = vec![block.to_owned()];
    let entries = std::fs::read_dir(block).into_iter().flatten().flatten();
    devices.extend(
        entries
            .map(|entry| entry.path())
            .filter(|path| path.join("partition").exists()),
    );
    devices.iter().find_map(|device| {
        let name = device.file_name()?.to_string_lossy().into_owned();
        mounted(device, mountinfo)
            .ok()
            .flatten()
            .map(|at| format!("{name} is mounted on {at}"))
            .or_else(|| held(device).map(|by| format!("{name} belongs to {by}")))
            .or_else(|| is_swap(&name, swaps).then(|| format!("{name} is swap space")))
    })
}

/// Mount point of a device, by its number (proc(5), mountinfo: third and fifth field).
fn mounted(device: &Path, mountinfo: &str) -> io::Result<Option<String>> {
    let number = std::fs::read_to_string(device.join("dev"))?;
    Ok(mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let found = fields.next()?;
        let at = fields.nth(1)?;
        (found == number.trim()).then(|| at.to_owned())
    }))
}

fn held(device: &Path) -> Option<String> {
    let mut holders = std::fs::read_dir(device.join("holders")).ok()?.flatten();
    Some(holders.next()?.file_name().to_string_lossy().into_owned())
}

fn is_swap(name: &str, swaps: &str) -> bool {
    let node = format!("/dev/{name}");
    swaps
        .lines()
        .any(|line| line.split_whitespace().next() == Some(node.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Two lines of a Linux 6.1 /proc/self/mountinfo.
    const MOUNTINFO: &str = "\
22 1 0:20 / /proc rw,nosuid - proc proc rw
30 1 8:2 / /mnt/data rw,relatime shared:1 - ext4 /dev/sda2 rw
";
    const SWAPS: &str = "Filename\tType\tSize\tUsed\tPriority\n/dev/sda3  partition\t1\t0\t-2\n";

    fn disk() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let sda = dir.path().join("sda");
        for (name, number) in [("sda1", "8:1"), ("sda2", "8:2"), ("sda3", "8:3")] {
            let part = sda.join(name);
            std::fs::create_dir_all(part.join("holders")).unwrap();
            std::fs::write(part.join("partition"), "1\n").unwrap();
            std::fs::write(part.join("dev"), format!("{number}\n")).unwrap();
        }
        std::fs::write(sda.join("dev"), "8:0\n").unwrap();
        std::fs::create_dir_all(sda.join("queue")).unwrap();
        dir
    }

    #[test]
    fn finds_who_uses_a_disk() {
        let dir = disk();
        let sda = dir.path().join("sda");
        assert_eq!(user(&sda, "", ""), None);
        assert_eq!(
            user(&sda, MOUNTINFO, "").as_deref(),
            Some("sda2 is mounted on /mnt/data")
        );
        assert_eq!(user(&sda, "", SWAPS).as_deref(), Some("sda3 is swap space"));
        std::fs::create_dir(sda.join("sda1/holders/dm-0")).unwrap();
        assert_eq!(user(&sda, "", "").as_deref(), Some("sda1 belongs to dm-0"));
    }
}
