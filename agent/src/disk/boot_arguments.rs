//! `boot-arguments`: the kernel arguments that the boot loader of the installed disk gives.
//!
//! All files are read and edited before the first is written; each is replaced whole, with the
//! owner, mode and extended attributes that it had.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;

use anneal_protocol::agent::{
    AgentAction, BootArgumentsResult, FailureCode, PartitionRef, StepFailure,
};
use rustix::fs::{Dir, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::bls::Change;
use super::files::{self, NewFile};
use super::mount::{Access, INSIDE, KINDS, mount};
use super::{Chosen, choose, grub};
use crate::cmdline::Options;
use crate::step::{fail, fail_for_now, still_wanted};

/// Where entries are: on a file system of the boot loader's own, or in `/boot` of the root file
/// system (bootc). The first that has any counts.
const ENTRIES: [&str; 2] = ["loader/entries", "boot/loader/entries"];
/// Where GRUB's own configuration is, if there are no entries: on a file system for `/boot`, or in
/// `/boot` of the root file system.
const GRUB: [&str; 2] = ["grub", "boot/grub"];
const GRUB_FILE: &str = "grub.cfg";

/// How a boot loader is told what it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// By entries of the Boot Loader Specification.
    Entries,
    /// By a script of GRUB's.
    Script,
}

impl Form {
    /// No file that a person or a program wrote is larger.
    fn largest(self) -> u64 {
        match self {
            Self::Entries => 64 << 10,
            Self::Script => 1 << 20,
        }
    }

    fn apply(self, change: &Change, text: &str) -> Result<Option<String>, String> {
        match self {
            Self::Entries => change.apply(text),
            Self::Script => grub::apply(change, text),
        }
    }
}

/// What a boot loader reads on a file system.
#[derive(Debug)]
struct Loader {
    form: Form,
    folder: &'static str,
    /// Names of the files in it, in order; never empty.
    files: Vec<String>,
}

/// Carries out [`AgentAction::BootArguments`].
///
/// # Errors
/// `BadOrder`, what choosing disk and partition says, `FileSystem` when a boot loader has nothing
/// there to edit, or it cannot be read or written, `DiskIo`, or `Abandoned` before anything is written.
pub fn edit(
    options: &Options,
    action: &AgentAction,
    cancel: &CancellationToken,
) -> Result<BootArgumentsResult, StepFailure> {
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
    let chosen = choose(options, disk)?;
    let partition = match partition {
        Some(partition) => partition.clone(),
        None => search(&chosen)?,
    };
    // Finding it may have taken long.
    still_wanted(cancel)?;
    edit_on(&chosen, &partition, &change)
}

/// The partition that the boot loader reads: the only one with something to edit. Nothing is
/// written meanwhile, but for what [`Access::Look`] says.
fn search(chosen: &Chosen) -> Result<PartitionRef, StepFailure> {
    let disk = &chosen.disk.info.name;
    let contents = chosen.disk.contents.as_ref().map_err(|e| {
        let text = format!("cannot look for the boot loader's files on {disk}: {e}");
        fail(FailureCode::FileSystem, text)
    })?;
    let (mut found, mut passed_over) = (Vec::new(), Vec::new());
    for (number, file_system) in contents.file_systems() {
        let Some(number) = number.filter(|_| KINDS.contains(&file_system.kind)) else {
            continue;
        };
        let partition = PartitionRef {
            number: Some(number),
            ..PartitionRef::default()
        };
        let mounted = match mount(chosen, &partition, Access::Look) {
            // No boot loader's, if the kernel cannot read it.
            Err(failure) if failure.code == FailureCode::FileSystem => {
                tracing::warn!(number, why = failure.message, "partition not looked into");
                passed_over.push(failure.message);
                continue;
            }
            // It may be the one: nobody can say yet.
            Err(failure) if failure.code == FailureCode::DiskIo => {
                return Err(StepFailure {
                    message: format!(
                        "{}; if the boot loader reads another partition, name that as `partition`",
                        failure.message
                    ),
                    ..failure
                });
            }
            other => other?,
        };
        let loader = look(mounted.root()).map_err(|e| {
            let text = format!("cannot look into {}: {e}", mounted.name);
            fail(FailureCode::FileSystem, text)
        })?;
        if let Some(loader) = loader {
            found.push((partition, format!("{} ({})", mounted.name, loader.folder)));
        }
    }
    only(disk, found, &passed_over)
}

/// The one that was found; `passed_over` says why others were not looked into. Pure.
fn only(
    disk: &str,
    mut found: Vec<(PartitionRef, String)>,
    passed_over: &[String],
) -> Result<PartitionRef, StepFailure> {
    if found.len() > 1 {
        let places: Vec<&str> = found.iter().map(|(_, place)| place.as_str()).collect();
        let text = format!(
            "{disk} has boot loader files on several partitions: {}; name the one that counts as `partition`",
            places.join(", ")
        );
        return Err(fail(FailureCode::Partition, text));
    }
    match found.pop() {
        Some((partition, _)) => Ok(partition),
        None if passed_over.is_empty() => Err(fail(FailureCode::FileSystem, nothing(disk))),
        None => {
            let passed_over = passed_over.join("; ");
            let text = format!("{}; not looked into: {passed_over}", nothing(disk));
            Err(fail_for_now(FailureCode::FileSystem, text))
        }
    }
}

/// What to say of a place where nothing can be edited.
fn nothing(place: &str) -> String {
    format!(
        "{place} has no boot loader entries ({}, *.conf) and no {GRUB_FILE} ({}): give the partition that the boot loader reads, or put the arguments where this system has them",
        ENTRIES.join(" or "),
        GRUB.join(" or ")
    )
}

fn edit_on(
    chosen: &Chosen,
    partition: &PartitionRef,
    change: &Change,
) -> Result<BootArgumentsResult, StepFailure> {
    let mounted = mount(chosen, partition, Access::Write)?;
    let name = mounted.name.clone();
    let failed = |what: &str, e: &io::Error| {
        let text = format!("cannot {what} on {name}: {e}");
        fail(FailureCode::FileSystem, text)
    };
    let loader = look(mounted.root()).map_err(|e| failed("look for boot loader entries", &e))?;
    let Some(loader) = loader else {
        return Err(fail(FailureCode::FileSystem, nothing(&name)));
    };
    let folder = loader.folder;
    let (mut new, mut unchanged) = (Vec::new(), Vec::new());
    for file in &loader.files {
        let edited = read(mounted.root(), &loader, file, change);
        match edited.map_err(|e| failed(&format!("edit {folder}/{file}"), &e))? {
            Some(edited) => new.push(edited),
            None => unchanged.push(file.clone()),
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
        folder,
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

/// What a boot loader reads on this file system, if it does.
fn look(root: &OwnedFd) -> io::Result<Option<Loader>> {
    for folder in ENTRIES {
        let files = names(root, folder)?;
        if !files.is_empty() {
            return Ok(Some(Loader {
                form: Form::Entries,
                folder,
                files,
            }));
        }
    }
    for folder in GRUB {
        // Whatever it is: a link is refused when it is read.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = format!("{folder}/{GRUB_FILE}");
        match rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            other => {
                other?;
                return Ok(Some(Loader {
                    form: Form::Script,
                    folder,
                    files: vec![GRUB_FILE.to_owned()],
                }));
            }
        }
    }
    Ok(None)
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

/// The file as it shall be; none when it is right already.
fn read(
    root: &OwnedFd,
    loader: &Loader,
    name: &str,
    change: &Change,
) -> io::Result<Option<NewFile>> {
    let parents = loader.folder.split('/');
    let path: Vec<String> = parents.chain([name]).map(str::to_owned).collect();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(root, path.join("/"), flags, Mode::empty(), INSIDE)?;
    let file = File::from(file);
    let known = file.metadata()?;
    let odd = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let largest = loader.form.largest();
    if !known.is_file() || known.len() > largest {
        let why = format!("it is not a file of at most {} KiB", largest >> 10);
        return Err(odd(why));
    }
    let mut text = String::new();
    // Bounded also for a file that says a wrong length.
    let taken = (&file).take(largest).read_to_string(&mut text);
    taken.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => odd(
            "it is not UTF-8: write what is not ASCII in it, such as the title of an entry, in UTF-8"
                .to_owned(),
        ),
        _ => e,
    })?;
    let Some(edited) = loader.form.apply(change, &text).map_err(odd)? else {
        return Ok(None);
    };
    Ok(Some(NewFile {
        path,
        contents: edited.into_bytes(),
        mode: Mode::from_raw_mode(known.mode() & 0o7777),
        // There is nothing to make: the file is there.
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
#[path = "boot_arguments_tests.rs"]
mod tests;
