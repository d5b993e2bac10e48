//! Labels that no other disk may have.
//!
//! An installed system that finds its partitions by label takes those of any disk: with a second
//! file system of the same label it does not boot (Fedora CoreOS, `boot`), or reads what an
//! earlier installation left there. So this is asked before anything is written.

use anneal_protocol::agent::{FailureCode, StepFailure};

use super::{Chosen, Found, list, partition};
use crate::cmdline::Options;
use crate::step::fail;

/// Looks at every disk but the chosen one.
///
/// # Errors
/// `DiskRefused` when a file system on another disk has one of the labels, or when another disk
/// does not say what is on it.
pub fn check(options: &Options, chosen: &Chosen, labels: &[String]) -> Result<(), StepFailure> {
    if labels.is_empty() {
        return Ok(());
    }
    check_among(&list(options), chosen, labels)
}

fn check_among(disks: &[Found], chosen: &Chosen, labels: &[String]) -> Result<(), StepFailure> {
    let others = disks
        .iter()
        .filter(|d| d.info.name != chosen.disk.info.name);
    for other in others {
        let name = &other.info.name;
        let found = partition::file_system_labels(&other.node, other.info.sector_size);
        let found = found.map_err(|e| {
            refused(format!(
                "what is on {name} cannot be read ({e}), so that nobody can say whether it has a file system labelled {}",
                labels.join(" or ")
            ))
        })?;
        if let Some((place, label)) = found.iter().find(|(_, label)| labels.contains(label)) {
            let place = place.map_or(name.clone(), |number| {
                format!("partition {number} of {name}")
            });
            return Err(refused(format!(
                "{place} has a file system labelled {label}, by which the installed system would look for its own"
            )));
        }
    }
    Ok(())
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
}
