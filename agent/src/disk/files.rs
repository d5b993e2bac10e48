//! Files on the installed disk: `write-file`, and reading a kernel for `kexec`.
//!
//! The file system is mounted by the kernel, detached: it has no place in the directory tree and
//! goes away with its descriptor. Paths are resolved inside it (openat2(2), `RESOLVE_IN_ROOT`),
//! so that no link in the image leads out of it. Contents are never logged.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anneal_protocol::agent::{
    AgentAction, FailureCode, PartitionRef, StepFailure, WriteFileResult,
};
use base64::Engine as _;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use sha2::{Digest as _, Sha256};

use super::{Chosen, choose, partition};
use crate::boot;
use crate::cmdline::Options;
use crate::step::{fail, fail_for_now};

/// Directories that have to be made.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Links inside the file system are followed inside it; mounts are not crossed.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What to write, checked.
#[derive(Debug)]
struct NewFile {
    /// Components of the path, parents first; never empty.
    path: Vec<String>,
    contents: Vec<u8>,
    mode: Mode,
    owner: (Uid, Gid),
}

/// Carries out [`AgentAction::WriteFile`].
///
/// # Errors
/// `BadOrder`, what choosing disk and partition says, or `FileSystem`.
pub fn write(options: &Options, action: &AgentAction) -> Result<WriteFileResult, StepFailure> {
    let AgentAction::WriteFile {
        disk,
        partition,
        path,
        contents_base64,
        mode,
        uid,
        gid,
    } = action
    else {
        return Err(fail(FailureCode::Internal, "not a write-file order"));
    };
    let contents = base64::engine::general_purpose::STANDARD
        .decode(contents_base64)
        .map_err(|_| fail(FailureCode::BadOrder, "the contents are not base64"))?;
    let new = NewFile {
        path: components(path)?,
        contents,
        mode: permissions(mode)?,
        owner: (Uid::from_raw(*uid), Gid::from_raw(*gid)),
    };
    write_on(&choose(options, disk)?, partition, path, &new)
}

fn write_on(
    chosen: &Chosen,
    partition: &PartitionRef,
    path: &str,
    new: &NewFile,
) -> Result<WriteFileResult, StepFailure> {
    let (name, root) = mount(chosen, partition, Access::Write)?;
    let failed = |e: io::Error| {
        fail(
            FailureCode::FileSystem,
            format!("cannot write {path} on {name}: {e}"),
        )
    };
    put(&root, new).map_err(failed)?;
    // The mount's own descriptor only names it; flushing needs an open directory.
    make_directories(&root, &[])
        .and_then(|top| Ok(rustix::fs::syncfs(&top)?))
        .map_err(failed)?;
    tracing::info!(
        path,
        partition = name,
        bytes = new.contents.len(),
        "file written"
    );
    Ok(WriteFileResult {
        partition: name,
        bytes: new.contents.len() as u64,
        sha256: hex::encode(Sha256::digest(&new.contents)),
    })
}

/// Carries out the first half of [`AgentAction::Kexec`]: afterwards the kernel is loaded.
///
/// # Errors
/// As [`write()`], and `Kexec`.
pub fn load_kernel(options: &Options, action: &AgentAction) -> Result<(), StepFailure> {
    let AgentAction::Kexec {
        disk,
        partition,
        kernel,
        initramfs,
        cmdline,
    } = action
    else {
        return Err(fail(FailureCode::Internal, "not a kexec order"));
    };
    let (name, root) = mount(&choose(options, disk)?, partition, Access::Read)?;
    let open = |path: &str| {
        let path = components(path)?.join("/");
        rustix::fs::openat2(
            &root,
            &path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
            INSIDE,
        )
        .map(File::from)
        .map_err(|e| {
            fail(
                FailureCode::FileSystem,
                format!("cannot open /{path} on {name}: {e}"),
            )
        })
    };
    let kernel_file = open(kernel)?;
    let initramfs_file = initramfs.as_deref().map(open).transpose()?;
    boot::load(&kernel_file, initramfs_file.as_ref(), cmdline)?;
    tracing::info!(kernel, partition = name, "kernel loaded");
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Mounts a partition of a disk that still is the one chosen; returns its name and the root
/// directory. Unmounted when that is dropped.
fn mount(
    chosen: &Chosen,
    wanted: &PartitionRef,
    access: Access,
) -> Result<(String, OwnedFd), StepFailure> {
    let (partition, node) = partition::locate(&chosen.disk, wanted)?;
    let name = file_name(&node);
    // Names are given out anew when disks come and go; while it is open, this one keeps it.
    let held = File::open(&node).map_err(|e| super::io_failure("open", &node, &e))?;
    let disk = chosen.confirm()?.name;
    if !is_part(&held, &disk, &name) {
        let text = format!("{name} is not a partition of {disk} any more: nothing is written");
        return Err(fail(FailureCode::DiskRefused, text));
    }
    let kind = match partition.file_system.as_ref().map(|f| f.kind) {
        Some(kind @ ("vfat" | "ext4" | "xfs" | "btrfs")) => kind,
        Some(other) => {
            let text = format!("{name} holds {other}, which the agent does not mount");
            return Err(fail(FailureCode::FileSystem, text));
        }
        None => {
            let text = format!("{name} holds no file system that the agent knows");
            return Err(fail(FailureCode::FileSystem, text));
        }
    };
    let root = attach(kind, &node, access).map_err(|e| {
        fail_for_now(
            FailureCode::FileSystem,
            format!("cannot mount {kind} on {name}: {e}"),
        )
    })?;
    Ok((name, root))
}

fn attach(kind: &str, node: &Path, access: Access) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", node)?;
    if access == Access::Read {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    if kind == "vfat" {
        // vfat stores neither owner nor permissions: do not fail on setting them.
        fsconfig_set_flag(context.as_fd(), "quiet")?;
    }
    fsconfig_create(context.as_fd())?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if access == Access::Read {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
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

/// Writes beside the final name and renames, so that the file is there whole or not at all.
fn put(root: &OwnedFd, new: &NewFile) -> io::Result<()> {
    let Some((name, parents)) = new.path.split_last() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = make_directories(root, parents)?;
    let temporary = format!(".anneal-{}.tmp", std::process::id());
    let result = fill(&directory, &temporary, new).and_then(|()| {
        rustix::fs::renameat(&directory, &temporary, &directory, name.as_str())?;
        Ok(rustix::fs::fsync(&directory)?)
    });
    if result.is_err() {
        // The first error is the one to tell.
        let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
    }
    result
}

fn fill(directory: &OwnedFd, temporary: &str, new: &NewFile) -> io::Result<()> {
    // Left over from an earlier attempt that lost power.
    match rustix::fs::unlinkat(directory, temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let private = Mode::RUSR | Mode::WUSR;
    let fd = rustix::fs::openat(directory, temporary, flags, private)?;
    let mut file = File::from(fd);
    file.write_all(&new.contents)?;
    let (uid, gid) = new.owner;
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    // After chown, which may clear bits.
    rustix::fs::fchmod(&file, new.mode)?;
    file.sync_all()
}

/// Opens the directory that these components lead to, making what is missing.
fn make_directories(root: &OwnedFd, components: &[String]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE);
    let mut path = PathBuf::from(".");
    let mut directory = open(&path)?;
    for component in components {
        path.push(component);
        directory = match open(&path) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&directory, component.as_str(), DIRECTORY_MODE)?;
                rustix::fs::fsync(&directory)?;
                open(&path)?
            }
            other => other?,
        };
    }
    Ok(directory)
}

/// An absolute path as names, none of them a way up.
fn components(path: &str) -> Result<Vec<String>, StepFailure> {
    let bad = |why: &str| {
        Err(fail(
            FailureCode::BadOrder,
            format!("path \"{path}\" {why}"),
        ))
    };
    if !path.starts_with('/') || path.ends_with('/') {
        return bad("is not an absolute path of a file");
    }
    let names: Vec<String> = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return bad("names no file");
    }
    if names.iter().any(|name| name == ".." || name.contains('\0')) {
        return bad("has .. or a zero byte in it");
    }
    Ok(names)
}

fn permissions(text: &str) -> Result<Mode, StepFailure> {
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o7777 => Ok(Mode::from_raw_mode(bits)),
        _ => Err(fail(
            FailureCode::BadOrder,
            format!("mode \"{text}\" is not octal permission bits such as 0600"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use anneal_protocol::disk::{DiskHints, DiskSelector};

    use super::*;

    fn new(path: &str, contents: &[u8], mode: u32) -> NewFile {
        NewFile {
            path: components(path).unwrap(),
            contents: contents.to_vec(),
            mode: Mode::from_raw_mode(mode),
            owner: (rustix::process::getuid(), rustix::process::getgid()),
        }
    }

    fn root(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn makes_parents_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let fd = root(dir.path());
        put(&fd, &new("/a/b/file", b"old", 0o644)).unwrap();
        put(&fd, &new("//a/./b/file", b"new", 0o600)).unwrap();
        let file = dir.path().join("a/b/file");
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            std::fs::read_dir(dir.path().join("a/b")).unwrap().count(),
            1
        );
    }

    #[test]
    fn links_do_not_lead_out() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let fd = root(dir.path());
        // Absolute: taken from the root of the file system, where there is no such directory.
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        put(&fd, &new("/absolute/file", b"x", 0o600)).unwrap_err();
        // Upwards: stops at the root.
        symlink("../../../../..", dir.path().join("up")).unwrap();
        put(&fd, &new("/up/file", b"x", 0o600)).unwrap();
        assert!(dir.path().join("file").exists());
        // The file itself is a link: replaced, not followed.
        let target = outside.path().join("target");
        std::fs::write(&target, "untouched").unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        put(&fd, &new("/link", b"x", 0o600)).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"untouched");
        assert_eq!(std::fs::read(dir.path().join("link")).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_inside_are_followed_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("/real", dir.path().join("link")).unwrap();
        put(&root(dir.path()), &new("/link/file", b"x", 0o600)).unwrap();
        assert!(dir.path().join("real/file").exists());
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        for path in ["etc/x", "/", "", "/a/../b", "/a/"] {
            assert_eq!(
                components(path).unwrap_err().code,
                FailureCode::BadOrder,
                "{path}"
            );
        }
        for mode in ["", "0800", "rw", "17777"] {
            assert_eq!(
                permissions(mode).unwrap_err().code,
                FailureCode::BadOrder,
                "{mode}"
            );
        }
        assert_eq!(permissions("0640").unwrap(), Mode::from_raw_mode(0o640));
    }

    /// Runs a tool; a missing one fails the test with the name of its package.
    fn tool(package: &str, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let ran = Command::new(words[0])
            .args(&words[1..])
            .env("PATH", path)
            .output();
        let ran = ran.unwrap_or_else(|e| panic!("{line}: {e}; install the package {package}"));
        let told = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{line}: {told}");
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    }

    /// A loop device; detached when dropped.
    struct Loop(String);

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.0]).status();
        }
    }

    #[test]
    fn a_disk_that_is_another_one_by_now_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("an-agent-files.img");
        File::create(&file).unwrap().set_len(32 << 20).unwrap();
        let shown = file.display().to_string();
        tool("gdisk", &format!("sgdisk -n 1:2048:0 -c 1:root {shown}"));
        tool(
            "e2fsprogs",
            &format!("mkfs.ext4 -q -E offset=1048576 {shown} 30M"),
        );
        let device = Loop(tool("mount", &format!("losetup --show -fP {shown}")));
        let options = Options {
            allow_loop: vec![PathBuf::from(&device.0)],
            ..Options::default()
        };
        let selector = DiskSelector {
            hints: DiskHints {
                serial: Some("an-agent-files.img".into()),
                ..DiskHints::default()
            },
            protected: Vec::new(),
        };
        let partition = PartitionRef {
            label: Some("root".into()),
            ..PartitionRef::default()
        };
        let new = new("/config", b"secret", 0o600);
        let chosen = choose(&options, &selector).unwrap();
        // The same name, but the disk behind it was another one when it was chosen.
        let mut other = chosen.clone();
        other.disk.info.serial = Some("another.img".into());
        let before = std::fs::read(&file).unwrap();
        let failure = write_on(&other, &partition, "/config", &new).unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskRefused, "{failure:?}");
        assert!(
            failure
                .message
                .contains("another.img labels root] when it was chosen"),
            "{failure:?}"
        );
        assert!(
            std::fs::read(&file).unwrap() == before,
            "something was written"
        );
        let written = write_on(&chosen, &partition, "/config", &new).unwrap();
        assert_eq!(written.bytes, 6);
    }
}
