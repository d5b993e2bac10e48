//! `boot-arguments`: kernel arguments in the boot loader entries of the installed disk.
//!
//! All entries are read and edited before the first is written; each is replaced whole, with the
//! owner, mode and extended attributes that it had.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;

use anneal_protocol::agent::{AgentAction, BootArgumentsResult, FailureCode, StepFailure};
use rustix::fs::{Dir, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::bls::Change;
use super::files::{self, NewFile};
use super::mount::{Access, INSIDE, mount};
use super::{Chosen, choose};
use crate::cmdline::Options;
use crate::step::fail;

/// Where entries are: on a file system of the boot loader's own, or in `/boot` of the root file
/// system (bootc). The first that has any counts.
const FOLDERS: [&str; 2] = ["loader/entries", "boot/loader/entries"];
/// No entry that a person or a program wrote is larger.
const LARGEST: u64 = 64 << 10;

/// Carries out [`AgentAction::BootArguments`].
///
/// # Errors
/// `BadOrder`, what choosing disk and partition says, or `FileSystem`: when there is no entry, or
/// one cannot be read or written.
pub fn edit(options: &Options, action: &AgentAction) -> Result<BootArgumentsResult, StepFailure> {
    let AgentAction::BootArguments {
        disk,
        partition,
        add,
        remove,
    } = action
    else {
        return Err(fail(FailureCode::Internal, "not a boot-arguments order"));
    };
    let change = Change::new(add, remove).map_err(|text| fail(FailureCode::BadOrder, text))?;
    edit_on(&choose(options, disk)?, partition, &change)
}

fn edit_on(
    chosen: &Chosen,
    partition: &anneal_protocol::agent::PartitionRef,
    change: &Change,
) -> Result<BootArgumentsResult, StepFailure> {
    let mounted = mount(chosen, partition, Access::Write)?;
    let name = mounted.name.clone();
    let failed = |what: &str, e: &io::Error| {
        let text = format!("cannot {what} on {name}: {e}");
        fail(FailureCode::FileSystem, text)
    };
    let mut found = None;
    for folder in FOLDERS {
        let names =
            names(mounted.root(), folder).map_err(|e| failed(&format!("list {folder}"), &e))?;
        if !names.is_empty() {
            found = Some((folder, names));
            break;
        }
    }
    let Some((folder, entries)) = found else {
        let text = format!(
            "{name} has no boot loader entries ({}, *.conf): give the partition that the boot loader reads, or put the arguments where this system has them",
            FOLDERS.join(" or ")
        );
        return Err(fail(FailureCode::FileSystem, text));
    };
    let (mut new, mut unchanged) = (Vec::new(), Vec::new());
    for entry in entries {
        let edited = read(mounted.root(), folder, &entry, change);
        match edited.map_err(|e| failed(&format!("read {folder}/{entry}"), &e))? {
            Some(file) => new.push(file),
            None => unchanged.push(entry),
        }
    }
    let mut changed = Vec::new();
    for file in &new {
        let entry = file.path.last().cloned().unwrap_or_default();
        files::put(mounted.root(), file)
            .map_err(|e| failed(&format!("write {folder}/{entry}"), &e))?;
        changed.push(entry);
    }
    mounted
        .finish()
        .map_err(|e| failed("flush what was written", &e))?;
    tracing::info!(
        partition = name,
        changed = changed.len(),
        unchanged = unchanged.len(),
        "kernel arguments edited"
    );
    Ok(BootArgumentsResult {
        partition: name,
        changed,
        unchanged,
    })
}

/// The names of the entries, in order; none when there is no folder for them.
fn names(root: &OwnedFd, folder: &str) -> io::Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match rustix::fs::openat2(root, folder, flags, Mode::empty(), INSIDE) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for item in Dir::read_from(&folder)? {
        let name = item?.file_name().to_bytes().to_vec();
        // What is no text is no entry that a boot loader reads.
        match String::from_utf8(name) {
            Ok(name) if name.ends_with(".conf") => names.push(name),
            _ => {}
        }
    }
    names.sort();
    Ok(names)
}

/// The entry as it shall be; none when it is right already.
fn read(root: &OwnedFd, folder: &str, name: &str, change: &Change) -> io::Result<Option<NewFile>> {
    let path: Vec<String> = folder.split('/').chain([name]).map(str::to_owned).collect();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(root, path.join("/"), flags, Mode::empty(), INSIDE)?;
    let file = File::from(file);
    let known = file.metadata()?;
    let odd = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    if !known.is_file() || known.len() > LARGEST {
        return odd("it is not a file of at most 64 KiB");
    }
    let mut text = String::new();
    // Bounded also for a file that says a wrong length.
    (&file).take(LARGEST).read_to_string(&mut text)?;
    let edited = change
        .apply(&text)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    let Some(edited) = edited else {
        return Ok(None);
    };
    Ok(Some(NewFile {
        path,
        contents: edited.into_bytes(),
        mode: Mode::from_raw_mode(known.mode() & 0o7777),
        // There is nothing to make: the entry is there.
        directory_mode: Mode::empty(),
        owner: (Uid::from_raw(known.uid()), Gid::from_raw(known.gid())),
        attributes: attributes(&file)?,
    }))
}

/// Extended attributes of a file: the security label of systems that have one.
fn attributes(file: &File) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    // `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of linux/limits.h.
    let mut names = vec![0_u8; 1 << 16];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        // vfat has none.
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut all = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|n| !n.is_empty())
    {
        let mut value = vec![0_u8; 1 << 16];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        value.truncate(length);
        all.push((OsString::from_vec(name.to_vec()), value));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::loops::{FILE_SYSTEMS, Loop, known, labelled, script};
    use super::*;

    fn change(add: &str, remove: &str) -> Change {
        Change::new(&[add.to_owned()], &[remove.to_owned()]).unwrap()
    }

    /// As ostree has it: `loader` is a link to the folder in use.
    const PLANT: &str =
        "mount \"$1\" /mnt; cd /mnt; mkdir -p loader.0/entries; ln -s loader.0 loader
        printf 'title a\\noptions quiet rw\\nlinux /v\\n' >loader/entries/a+3.conf
        printf 'title b\\noptions rw x=1\\n' >loader/entries/b.conf
        printf 'options rw' >loader/entries/readme.txt
        chmod 600 loader/entries/a+3.conf; chown 12:34 loader/entries/a+3.conf
        setfattr -n security.selinux -v boot_t loader/entries/a+3.conf";

    #[test]
    fn edits_the_entries_of_a_real_file_system_once() {
        for (kind, mib, package, mkfs) in &FILE_SYSTEMS[1..] {
            let disk = Loop::new(&format!("anneal-bls-{kind}"), *mib, package, mkfs);
            let node = disk.partition();
            script(&node, PLANT);
            let edit = || edit_on(&disk.chosen(), &labelled("L"), &change("x=1", "quiet"));
            let first = edit().unwrap();
            assert_eq!(first.changed, ["a+3.conf"], "{kind}");
            assert_eq!(first.unchanged, ["b.conf"]);
            let again = edit().unwrap();
            assert_eq!((again.changed.len(), again.unchanged.len()), (0, 2));
            let seen = script(
                &node,
                "mount -o ro \"$1\" /mnt; cd /mnt/loader/entries; cat *; ls; stat -c %a:%u:%g a*; getfattr --only-values -n security.selinux a*",
            );
            let expected = "title a\noptions rw x=1\nlinux /v\ntitle b\noptions rw x=1\noptions rwa+3.conf\nb.conf\nreadme.txt\n600:12:34\nboot_t";
            assert_eq!(seen, expected, "{kind}");
        }
    }

    /// systemd-boot's entries are on vfat, which has no links, owners or attributes.
    #[test]
    fn edits_the_entries_of_vfat_once() {
        for (kind, mib, package, mkfs) in known().filter(|(kind, ..)| *kind == "vfat") {
            let disk = Loop::new("anneal-bls-vfat", mib, package, mkfs);
            let node = disk.partition();
            script(
                &node,
                "mount \"$1\" /mnt; mkdir -p /mnt/loader/entries; cd /mnt/loader/entries
                printf 'title a\\noptions quiet rw\\n' >a+3.conf; printf 'options x=1\\n' >b.conf",
            );
            let edit = || edit_on(&disk.chosen(), &labelled("L"), &change("x=1", "quiet"));
            let first = edit().unwrap();
            assert_eq!(
                (first.changed, first.unchanged.len()),
                (vec!["a+3.conf".into()], 1)
            );
            assert_eq!(edit().unwrap().changed.len(), 0, "{kind}");
            let seen = script(
                &node,
                "mount -o ro \"$1\" /mnt; cd /mnt/loader/entries; cat *; ls; cd /; umount /mnt; fsck.vfat -n \"$1\" >&2",
            );
            let expected = "title a\noptions rw x=1\noptions x=1\na+3.conf\nb.conf";
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn refuses_a_partition_without_entries() {
        let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
        let disk = Loop::new("anneal-bls-none", mib, package, mkfs);
        let failure = edit_on(&disk.chosen(), &labelled("L"), &change("a", "b")).unwrap_err();
        assert_eq!(failure.code, FailureCode::FileSystem);
        assert!(
            failure.message.contains("has no boot loader entries"),
            "{failure:?}"
        );
        script(
            &disk.partition(),
            "mount \"$1\" /mnt; mkdir -p /mnt/loader/entries; echo options c b >/mnt/loader/entries/x.conf",
        );
        let done = edit_on(&disk.chosen(), &labelled("L"), &change("a", "b")).unwrap();
        assert_eq!(done.changed, ["x.conf"]);
        let seen = script(
            &disk.partition(),
            "mount \"$1\" /mnt; cat /mnt/loader/entries/*",
        );
        assert_eq!(seen, "options c a");
    }
}
