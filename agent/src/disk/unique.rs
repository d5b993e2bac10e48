//! Labels that no other disk may have.
//!
//! An installed system that finds its partitions by label takes those of any disk: with a second
//! file system of the same label it does not boot (Fedora CoreOS, `boot`), or reads what an
//! earlier installation left there. So this is asked before anything is written.

use std::path::{Path, PathBuf};

use anneal_protocol::agent::{FailureCode, StepFailure};

use super::partition::Contents;
use super::probe::FileSystem;
use super::{Chosen, Found, list};
use crate::cmdline::Options;
use crate::inventory::disks;
use crate::step::fail;

/// Looks at every disk but the chosen one, and at what is in CD and DVD drives.
///
/// # Errors
/// `DiskRefused` when a file system on another disk has one of the labels, or when another disk
/// does not say what is on it.
pub fn check(options: &Options, chosen: &Chosen, labels: &[String]) -> Result<(), StepFailure> {
    if labels.is_empty() {
        return Ok(());
    }
    check_among(&list(options), chosen, labels)?;
    let discs = disks::discs(Path::new("/sys/block")).into_iter();
    let nodes: Vec<PathBuf> = discs.map(|name| Path::new("/dev").join(name)).collect();
    check_discs(&nodes, labels)
}

fn check_among(disks: &[Found], chosen: &Chosen, labels: &[String]) -> Result<(), StepFailure> {
    let others = disks
        .iter()
        .filter(|d| d.info.name != chosen.disk.info.name);
    for other in others {
        let name = &other.info.name;
        let contents = other.contents.as_ref();
        check_one(
            name,
            contents.map_err(|e| unknown(name, e, labels))?,
            labels,
        )?;
    }
    Ok(())
}

fn check_discs(nodes: &[PathBuf], labels: &[String]) -> Result<(), StepFailure> {
    for node in nodes {
        let name = node.file_name().unwrap_or_default().to_string_lossy();
        match Contents::read_disc(node) {
            Ok(contents) => check_one(&name, &contents, labels)?,
            Err(error) if error.raw_os_error() == Some(libc::ENOMEDIUM) => {}
            Err(error) => return Err(unknown(&name, &error.to_string(), labels)),
        }
    }
    Ok(())
}

fn check_one(name: &str, contents: &Contents, labels: &[String]) -> Result<(), StepFailure> {
    let mut found = contents.file_systems();
    let Some((number, found)) = found.find(|(_, found)| is_called(found, labels)) else {
        return Ok(());
    };
    let place = number.map_or(name.to_owned(), |number| {
        format!("partition {number} of {name}")
    });
    let label = found.label.as_deref().unwrap_or_default();
    Err(refused(format!(
        "{place} has a file system labelled {label}, by which the installed system would look for its own"
    )))
}

/// What looks for configuration on vfat or ISO 9660 takes a label in capitals or small letters.
fn is_called(found: &FileSystem, labels: &[String]) -> bool {
    let Some(label) = &found.label else {
        return false;
    };
    let any_case = matches!(found.kind, "vfat" | "iso9660");
    labels
        .iter()
        .any(|wanted| wanted == label || (any_case && wanted.eq_ignore_ascii_case(label)))
}

fn unknown(name: &str, error: &str, labels: &[String]) -> StepFailure {
    refused(format!(
        "what is on {name} cannot be read ({error}), so that nobody can say whether it has a file system labelled {}",
        labels.join(" or ")
    ))
}

fn refused(what: String) -> StepFailure {
    let text = format!("{what}: nothing is written; wipe or remove that disk first");
    fail(FailureCode::DiskRefused, text)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::super::loops::{FILE_SYSTEMS, Loop};
    use super::*;

    #[test]
    fn a_label_on_another_disk_is_refused() {
        let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
        let disk = Loop::new("anneal-unique-one", mib, package, mkfs);
        let other = Loop::new("anneal-unique-two", mib, package, mkfs);
        let labels = |label: &str| vec!["boot".to_owned(), label.to_owned()];
        let chosen = disk.chosen();
        // The disks of this machine itself are not the test's to read.
        let both = || [chosen.disk.clone(), other.chosen().disk];
        let check = |label: &str| check_among(&both(), &chosen, &labels(label));
        let failure = check("L").unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskRefused);
        let name = other
            .node
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let told = format!("partition 1 of {name} has a file system labelled L");
        assert!(failure.message.contains(&told), "{failure:?}");
        // Its own does not count, nor does the name of a partition.
        check_among(&both()[..1], &chosen, &labels("L")).unwrap();
        check("root").unwrap();
        // The backup table is damaged too: nobody knows what the disk holds.
        let bytes = std::fs::metadata(&other.file).unwrap().len();
        let raw = File::options().write(true).open(&other.node).unwrap();
        for at in [512, bytes - 512] {
            raw.write_all_at(&[0; 512], at).unwrap();
        }
        raw.sync_all().unwrap();
        let failure = check("x").unwrap_err();
        assert!(failure.message.contains("cannot be read"), "{failure:?}");
    }

    /// What a BMC shows as a CD: the volume descriptor of ISO 9660, behind the boot sector of an
    /// image that is also good for sticks.
    #[test]
    fn a_label_on_a_disc_is_refused_in_any_case() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("sr0");
        let mut iso = vec![0; 1 << 17];
        iso[0x8000..0x8006].copy_from_slice(b"\x01CD001");
        iso[0x8028..0x8048].fill(b' ');
        iso[0x8028..0x802e].copy_from_slice(b"cidata");
        iso[450] = 0xee;
        iso[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&node, iso).unwrap();
        let check = |label: &str| check_discs(std::slice::from_ref(&node), &[label.to_owned()]);
        let failure = check("CIDATA").unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskRefused);
        let told = "sr0 has a file system labelled cidata";
        assert!(failure.message.contains(told), "{failure:?}");
        check("boot").unwrap();
        // A drive that is not there now cannot be read: nobody knows what was in it.
        std::fs::remove_file(&node).unwrap();
        assert!(check("boot").is_err());
    }

    #[test]
    fn case_counts_where_systems_tell_it_apart() {
        let labelled = |kind, label: &str| FileSystem {
            kind,
            label: Some(label.to_owned()),
            uuid: None,
        };
        let wanted = ["CIDATA".to_owned()];
        for kind in ["vfat", "iso9660"] {
            assert!(is_called(&labelled(kind, "cidata"), &wanted));
            assert!(!is_called(&labelled(kind, "cidata2"), &wanted));
        }
        assert!(!is_called(&labelled("ext4", "cidata"), &wanted));
        assert!(is_called(&labelled("ext4", "CIDATA"), &wanted));
    }
}
