//! Files on the installed disk: `write-file`, and reading a kernel for `kexec`.
//!
//! Paths are resolved inside the mounted file system (openat2(2), `RESOLVE_IN_ROOT`), so that no
//! link in the image leads out of it. A file is there whole or not at all, and on the medium
//! before success is told. Contents are never logged.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anneal_protocol::agent::{
    AgentAction, FailureCode, PartitionRef, StepFailure, WriteFileResult,
};
use base64::Engine as _;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::mount::{Access, INSIDE, mount};
use super::{Chosen, choose};
use crate::boot;
use crate::cmdline::Options;
use crate::step::fail;

/// Directories that have to be made, unless the order says otherwise.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Where SELinux has its labels.
const LABEL: &str = "security.selinux";

/// What to write, checked.
#[derive(Debug)]
pub(super) struct NewFile {
    /// Components of the path, parents first; never empty.
    pub path: Vec<String>,
    /// The bytes.
    pub contents: Vec<u8>,
    /// Permission bits.
    pub mode: Mode,
    /// Those of parents that have to be made.
    pub directory_mode: Mode,
    /// User and group.
    pub owner: (Uid, Gid),
    /// Extended attributes, by name. The SELinux label of a file that is replaced stays in any case.
    pub attributes: Vec<(OsString, Vec<u8>)>,
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
        directory_mode,
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
        directory_mode: directory_mode
            .as_deref()
            .map_or(Ok(DIRECTORY_MODE), permissions)?,
        owner: (Uid::from_raw(*uid), Gid::from_raw(*gid)),
        attributes: Vec::new(),
    };
    write_on(&choose(options, disk)?, partition, path, &new)
}

pub(super) fn write_on(
    chosen: &Chosen,
    partition: &PartitionRef,
    path: &str,
    new: &NewFile,
) -> Result<WriteFileResult, StepFailure> {
    let mounted = mount(chosen, partition, Access::Write)?;
    let name = mounted.name.clone();
    put(mounted.root(), new)
        .and_then(|()| mounted.finish())
        .map_err(|e| {
            let text = match e.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOSPC | Errno::DQUOT) => format!(
                    "{name} is full: {path} with its {} bytes does not fit",
                    new.contents.len()
                ),
                Some(Errno::ROFS) => {
                    format!("the file system on {name} is read-only: {path} cannot be written")
                }
                _ => format!("cannot write {path} on {name}: {e}"),
            };
            fail(FailureCode::FileSystem, text)
        })?;
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
    let mounted = mount(&choose(options, disk)?, partition, Access::Read)?;
    let name = &mounted.name;
    let open = |path: &str| {
        let path = components(path)?.join("/");
        rustix::fs::openat2(
            mounted.root(),
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
    let told = format!("{kernel} on {name}");
    boot::load(&told, &kernel_file, initramfs_file.as_ref(), cmdline)?;
    tracing::info!(kernel, partition = name, "kernel loaded");
    Ok(())
}

/// Writes beside the final name and renames, so that the file is there whole or not at all.
pub(super) fn put(root: &OwnedFd, new: &NewFile) -> io::Result<()> {
    let Some((name, parents)) = new.path.split_last() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = make_directories(root, parents, new.directory_mode)?;
    let temporary = format!(".anneal-{}.tmp", std::process::id());
    let label = label(&directory, name)?;
    let result = fill(&directory, &temporary, new, label.as_deref()).and_then(|()| {
        rustix::fs::renameat(&directory, &temporary, &directory, name.as_str())?;
        Ok(rustix::fs::fsync(&directory)?)
    });
    if result.is_err() {
        // The first error is the one to tell.
        let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
    }
    result
}

/// The label of the file that is there, if it has one. A link is replaced, not followed.
fn label(directory: &OwnedFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        other => other?,
    };
    let mut value = vec![0; 4096];
    match rustix::fs::fgetxattr(&file, LABEL, &mut value[..]) {
        // vfat has none.
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        other => {
            value.truncate(other?);
            Ok(Some(value))
        }
    }
}

fn fill(
    directory: &OwnedFd,
    temporary: &str,
    new: &NewFile,
    label: Option<&[u8]>,
) -> io::Result<()> {
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
    if let Some(label) = label {
        rustix::fs::fsetxattr(&file, LABEL, label, XattrFlags::empty())?;
    }
    for (name, value) in &new.attributes {
        rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty())?;
    }
    file.sync_all()
}

/// Opens the directory that these components lead to, making what is missing.
fn make_directories(root: &OwnedFd, components: &[String], mode: Mode) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &PathBuf| rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE);
    let mut path = PathBuf::from(".");
    let mut directory = open(&path)?;
    for component in components {
        path.push(component);
        directory = match open(&path) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&directory, component.as_str(), mode)?;
                rustix::fs::fsync(&directory)?;
                let made = open(&path)?;
                // Whatever this process's umask says.
                rustix::fs::fchmod(&made, mode)?;
                made
            }
            other => other?,
        };
    }
    Ok(directory)
}

/// An absolute path as names, none of them a way up.
pub(super) fn components(path: &str) -> Result<Vec<String>, StepFailure> {
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
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::path::Path;

    use super::super::loops::{Loop, labelled};
    use super::*;

    fn new(path: &str, contents: &[u8], mode: u32) -> NewFile {
        NewFile {
            path: components(path).unwrap(),
            contents: contents.to_vec(),
            mode: Mode::from_raw_mode(mode),
            directory_mode: DIRECTORY_MODE,
            owner: (rustix::process::getuid(), rustix::process::getgid()),
            attributes: Vec::new(),
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

    #[test]
    fn a_disk_that_is_another_one_by_now_is_left_alone() {
        let device = Loop::new("an-agent-files", 30, "e2fsprogs", "mkfs.ext4 -q FILE");
        let partition = labelled("root");
        let new = new("/config", b"secret", 0o600);
        let chosen = device.chosen();
        // The same name, but the disk behind it was another one when it was chosen.
        let mut other = chosen.clone();
        other.disk.info.serial = Some("another.img".into());
        let before = std::fs::read(&device.file).unwrap();
        let failure = write_on(&other, &partition, "/config", &new).unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskRefused, "{failure:?}");
        assert!(
            failure
                .message
                .contains("another.img labels root] when it was chosen"),
            "{failure:?}"
        );
        assert!(
            std::fs::read(&device.file).unwrap() == before,
            "something was written"
        );
        let written = write_on(&chosen, &partition, "/config", &new).unwrap();
        assert_eq!(written.bytes, 6);
    }
}
