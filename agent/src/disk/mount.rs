//! A file system of the chosen disk, mounted by the kernel for as long as a step needs it.
//!
//! The mount is detached: it has no place in the directory tree and goes away with its
//! descriptor. What is mounted is a partition of the disk that was chosen, never one that merely
//! has the same label: the table of that disk says where it lies.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anneal_protocol::agent::{FailureCode, PartitionRef, StepFailure};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::partition::Partition;
use super::{Chosen, partition};
use crate::step::{fail, fail_for_now};

/// How paths are resolved: links inside the file system are followed inside it, and mounts are
/// not crossed.
pub(super) const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// File systems that the agent mounts.
pub(super) const KINDS: [&str; 4] = ["vfat", "ext4", "xfs", "btrfs"];

/// A program that is being started holds what this one had open until it has become that program: so long an
/// earlier mount, for reading only, may still be there.
pub(super) const LINGERS: Duration = Duration::from_secs(2);

/// What a mount is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// No file is changed. The kernel may finish what an earlier system began: journals are replayed.
    Read,
    /// Nothing is written. What only a journal holds is not seen. Where the kernel cannot do without replaying a
    /// journal it is as [`Self::Read`].
    Look,
    /// Files are written.
    Write,
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Kernel name of its partition, `vda3`.
    pub name: String,
    root: OwnedFd,
    device: File,
}

impl Mounted {
    /// Its root directory: only good for resolving paths.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Writes everything out, unmounts, and waits until the disk has it.
    ///
    /// # Errors
    /// When the disk does not take it: then nothing is known about what it has.
    pub fn finish(self) -> io::Result<()> {
        // The mount's own descriptor only names it; flushing needs an open directory.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(&self.root, ".", flags, Mode::empty())?;
        rustix::fs::syncfs(&top)?;
        drop(top);
        // The last reference to the mount: unmounted when this returns.
        drop(self.root);
        // What unmounting wrote, and the disk's own cache.
        self.device.sync_all()
    }
}

/// A partition of a disk that still is the one chosen. Names are given out anew when disks come
/// and go; while it is open, this one keeps it.
#[derive(Debug)]
pub(super) struct Held {
    /// Its kernel name, `vda3`.
    pub name: String,
    /// Its device node.
    pub node: PathBuf,
    /// What the disk's table says of it, and what is on it.
    pub partition: Partition,
    /// It, open.
    pub device: File,
}

/// Finds and opens a partition.
///
/// # Errors
/// `Partition`, `DiskIo` when it cannot be opened, `DiskRefused` when it is in use or the disk is
/// another one by now.
pub(super) fn hold(
    chosen: &Chosen,
    wanted: &PartitionRef,
    open: impl FnOnce(&Path) -> io::Result<File>,
) -> Result<Held, StepFailure> {
    let (partition, node) = partition::locate(&chosen.disk, wanted)?;
    let name = file_name(&node);
    let device = open(&node).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => fail(
            FailureCode::DiskRefused,
            format!("{name} is in use: the kernel does not open it exclusively"),
        ),
        _ => super::io_failure("open", &node, &e),
    })?;
    let disk = chosen.confirm()?.name;
    if !is_part(&device, &disk, &name) {
        let text = format!("{name} is not a partition of {disk} any more: nothing is written");
        return Err(fail(FailureCode::DiskRefused, text));
    }
    Ok(Held {
        name,
        node,
        partition,
        device,
    })
}

fn open(node: &Path) -> io::Result<File> {
    File::open(node)
}

/// Mounts a partition of a disk that still is the one chosen.
///
/// # Errors
/// `Partition`, `DiskRefused` when the disk is another one by now, `FileSystem`, `DiskIo` when the disk cannot be
/// read or the file system is busy.
pub(super) fn mount(
    chosen: &Chosen,
    wanted: &PartitionRef,
    access: Access,
) -> Result<Mounted, StepFailure> {
    let Held {
        name,
        node,
        partition,
        device,
    } = hold(chosen, wanted, open)?;
    let kind = match partition.file_system.as_ref().map(|f| f.kind) {
        Some(kind) if KINDS.contains(&kind) => kind,
        Some(other) => {
            let text = format!("{name} holds {other}, which the agent does not mount");
            return Err(fail(FailureCode::FileSystem, text));
        }
        None => {
            let text = format!("{name} holds no file system that the agent knows");
            return Err(fail(FailureCode::FileSystem, text));
        }
    };
    let attached = match access {
        Access::Look => attach_unwritten(kind, &node, &device),
        access => attach(kind, &node, access),
    };
    let root = attached.map_err(|e| refused(kind, &name, e))?;
    Ok(Mounted { name, root, device })
}

fn refused(kind: &str, name: &str, error: Errno) -> StepFailure {
    match error {
        Errno::ROFS | Errno::ACCESS => fail(
            FailureCode::FileSystem,
            format!("{name} can only be mounted read-only: its {kind} does not allow writing"),
        ),
        // Says nothing about the file system: next time it may be mounted.
        Errno::BUSY | Errno::IO | Errno::NOMEM => fail_for_now(
            FailureCode::DiskIo,
            format!("cannot mount {kind} on {name}: {error}"),
        ),
        error => fail_for_now(
            FailureCode::FileSystem,
            format!("cannot mount {kind} on {name}: {error}"),
        ),
    }
}

/// Mounts for [`Access::Look`]. Ext4 truncates deleted files also when it is mounted read-only and without its
/// journal, unless the device cannot be written: so it cannot until that is over.
fn attach_unwritten(kind: &str, node: &Path, device: &File) -> rustix::io::Result<OwnedFd> {
    let Ok(protected) = Protected::new(device) else {
        return attach(kind, node, Access::Read);
    };
    let attached = match attach(kind, node, Access::Look) {
        // An option that this kernel does not have, or only with mount(2), as XFS's once.
        Err(Errno::INVAL) => attach(kind, node, Access::Read),
        other => other,
    };
    drop(protected);
    match attached {
        // It has to be replayed first.
        Err(Errno::ROFS | Errno::ACCESS) => attach(kind, node, Access::Read),
        other => other,
    }
}

/// A device that nothing is written to until this is dropped.
struct Protected<'a>(&'a File);

impl<'a> Protected<'a> {
    fn new(device: &'a File) -> io::Result<Self> {
        set_read_only(device, true)?;
        Ok(Self(device))
    }
}

impl Drop for Protected<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_read_only(self.0, false) {
            tracing::warn!(%error, "a partition stays read-only until the machine restarts");
        }
    }
}

fn set_read_only(device: &File, read_only: bool) -> io::Result<()> {
    /// `_IO(0x12, 93)` of linux/fs.h.
    const BLKROSET: libc::c_ulong = 0x125d;
    let value = libc::c_int::from(read_only);
    // SAFETY: the descriptor is open; the kernel reads one int and keeps no pointer.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKROSET as _, &raw const value) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn attach(kind: &str, node: &Path, access: Access) -> rustix::io::Result<OwnedFd> {
    let begin = Instant::now();
    let mut forgotten = false;
    loop {
        match attach_once(kind, node, access) {
            // Btrfs knows devices by their file system's UUID, which images have in common: it
            // remembers that of another disk, or of an earlier write, as the newer one.
            Err(Errno::EXIST) if kind == "btrfs" && !forgotten => {
                forget_btrfs()?;
                forgotten = true;
            }
            Err(Errno::BUSY) if begin.elapsed() < LINGERS => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn attach_once(kind: &str, node: &Path, access: Access) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", node)?;
    if access != Access::Write {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    if access == Access::Look {
        match kind {
            "ext4" => fsconfig_set_flag(context.as_fd(), "noload")?,
            "xfs" => fsconfig_set_flag(context.as_fd(), "norecovery")?,
            "btrfs" => fsconfig_set_string(context.as_fd(), "rescue", "nologreplay")?,
            // It has no journal.
            _ => {}
        }
    }
    if kind == "vfat" {
        // vfat stores neither owner nor permissions: do not fail on setting them.
        fsconfig_set_flag(context.as_fd(), "quiet")?;
    }
    fsconfig_create(context.as_fd())?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if access != Access::Write {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Lets Btrfs forget every device that is not mounted.
fn forget_btrfs() -> rustix::io::Result<()> {
    /// `_IOW(0x94, 5, struct btrfs_ioctl_vol_args)` of linux/btrfs.h.
    const BTRFS_IOC_FORGET_DEV: libc::c_ulong = 0x5000_9405;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open("/dev/btrfs-control", flags, Mode::empty())?;
    // An empty name means all.
    let all = [0_u8; 4096];
    // SAFETY: the kernel reads struct btrfs_ioctl_vol_args, 4096 bytes, and keeps no pointer.
    let result =
        unsafe { libc::ioctl(control.as_raw_fd(), BTRFS_IOC_FORGET_DEV as _, all.as_ptr()) };
    if result == -1 {
        let error = io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or_default();
        return Err(Errno::from_raw_os_error(error));
    }
    Ok(())
}

/// Whether an open device is what the kernel calls partition `name` of `disk`.
fn is_part(held: &File, disk: &str, name: &str) -> bool {
    let Ok(number) = held.metadata().map(|m| m.rdev()) else {
        return false;
    };
    let number = format!(
        "{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    );
    std::fs::read_to_string(Path::new("/sys/block").join(disk).join(name).join("dev"))
        .is_ok_and(|text| text.trim() == number)
}

fn file_name(node: &Path) -> String {
    node.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
#[path = "mount_tests.rs"]
mod tests;
