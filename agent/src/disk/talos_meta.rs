//! `write-talos-meta`: keys in the partition `META` of an installed Talos.
//!
//! The partition is raw and holds a record twice ([`adv`]). The copy that Talos would read is
//! written last, after the other is on the medium: a power cut at any moment leaves one that is
//! valid, with the old keys or the new ones. Contents are never logged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anneal_protocol::agent::{
    AgentAction, FailureCode, MetaValue, PartitionRef, StepFailure, TalosMetaResult,
};
use base64::Engine as _;
use tokio_util::sync::CancellationToken;

use super::adv::{self, COPY, Record};
use super::device::{BlockDevice, Disk, open_exclusive};
use super::mount::{Held, LINGERS, hold};
use super::partition::Partition;
use super::{Chosen, choose};
use crate::cmdline::Options;
use crate::step::{fail, fail_for_now, still_wanted};

/// What Talos looks for: a partition of this name and length.
const NAME: &str = "META";
const LENGTH: u64 = 1 << 20;

/// Keys and what they shall hold.
type Values = BTreeMap<u8, Vec<u8>>;

/// What was done.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    kept: Vec<u32>,
    fresh: bool,
}

/// Carries out [`AgentAction::WriteTalosMeta`].
///
/// # Errors
/// `BadOrder` (also when the keys do not fit), what choosing disk and partition says, `Partition`
/// when it is not one that Talos takes for its META, `DiskIo` or `ReadBackMismatch`, or `Abandoned` before anything is
/// written.
pub fn write(
    options: &Options,
    action: &AgentAction,
    cancel: &CancellationToken,
) -> Result<TalosMetaResult, StepFailure> {
    let AgentAction::WriteTalosMeta { disk, values } = action else {
        return Err(fail(FailureCode::Internal, "not a write-talos-meta order"));
    };
    let values = decoded(values)?;
    let chosen = choose(options, disk)?;
    // Finding it may have taken long.
    still_wanted(cancel)?;
    write_on(&chosen, &values)
}

fn decoded(values: &[MetaValue]) -> Result<Values, StepFailure> {
    let bad = |text: String| Err(fail(FailureCode::BadOrder, text));
    let mut decoded = Values::new();
    for MetaValue {
        key,
        contents_base64,
    } in values
    {
        let contents = base64::engine::general_purpose::STANDARD.decode(contents_base64);
        let Ok(contents) = contents else {
            return bad(format!(
                "the contents of META's key {key:#x} are not base64"
            ));
        };
        if u32::from(*key) == adv::END {
            return bad("META has no key 0: give one from 1 to 255".to_owned());
        }
        if decoded.insert(*key, contents).is_some() {
            return bad(format!("META's key {key:#x} is given twice"));
        }
    }
    match decoded.is_empty() {
        true => bad("no key of META is given".to_owned()),
        false => Ok(decoded),
    }
}

fn write_on(chosen: &Chosen, values: &Values) -> Result<TalosMetaResult, StepFailure> {
    let wanted = PartitionRef {
        label: Some(NAME.to_owned()),
        ..PartitionRef::default()
    };
    let Held {
        name,
        node,
        partition,
        device,
    } = hold(chosen, &wanted, open_patiently).map_err(|failure| match failure.code {
        FailureCode::Partition => StepFailure {
            message: format!(
                "{}; Talos has exactly one partition named {NAME}: if there is none, write an image of Talos before",
                failure.message
            ),
            ..failure
        },
        _ => failure,
    })?;
    check(&partition, &name)?;
    let device = BlockDevice::new(device, &node, LENGTH, chosen.disk.info.sector_size);
    let Done { kept, fresh } = update(&device, values, &name)?;
    let set: Vec<u8> = values.keys().copied().collect();
    tracing::info!(partition = name, ?set, ?kept, fresh, "META written");
    Ok(TalosMetaResult {
        partition: name,
        set,
        kept,
        fresh,
    })
}

/// Opens it for this process alone. What an earlier look had open may be held for a moment by a program that is
/// being started.
fn open_patiently(node: &Path) -> io::Result<File> {
    let begin = Instant::now();
    loop {
        match open_exclusive(node) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < LINGERS => {
                std::thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome,
        }
    }
}

/// Whether Talos would take this partition for its META; what it would not must not be written.
fn check(partition: &Partition, name: &str) -> Result<(), StepFailure> {
    let refused = |why: String| {
        let text = format!("{name} is not the META of a Talos: {why}; nothing is written");
        Err(fail(FailureCode::Partition, text))
    };
    if partition.name.as_deref() != Some(NAME) {
        return refused(format!(
            "its file system is labelled {NAME}, and Talos wants the partition (GPT) to have that name"
        ));
    }
    if partition.length != LENGTH {
        return refused(format!(
            "it has {} bytes, and Talos takes exactly {LENGTH}: write an image of Talos, or make the partition anew",
            partition.length
        ));
    }
    match &partition.file_system {
        Some(found) => refused(format!(
            "it holds {}: if nothing needs that, erase it or write an image of Talos",
            found.kind
        )),
        None => Ok(()),
    }
}

/// Sets the keys in both copies of the record; what has no valid copy begins with an empty one,
/// as Talos does.
fn update<D: Disk>(disk: &D, values: &Values, name: &str) -> Result<Done, StepFailure> {
    let failed = |what: &str, e: io::Error| {
        fail_for_now(FailureCode::DiskIo, format!("cannot {what} {name}: {e}"))
    };
    let found = copies(disk).map_err(|e| failed("read", e))?;
    let valid = adv::read(&found);
    let fresh = valid.is_none();
    let (counts, mut record) = valid.unwrap_or((1, Record::default()));
    for (key, contents) in values {
        record.set(*key, contents.clone());
    }
    let bytes = record.encode().map_err(|over| {
        let text = format!(
            "the keys do not fit into META: {over} bytes too many of {COPY}, those counted that are there already; make their contents shorter"
        );
        fail(FailureCode::BadOrder, text)
    })?;
    for index in [1 - counts, counts] {
        if found[index] != bytes {
            let offset = (index * COPY) as u64;
            let written = disk.write_at(offset, &bytes);
            written.map_err(|e| failed("write", e))?;
        }
        // Also what an earlier attempt wrote: it may be in the disk's cache only.
        disk.flush().map_err(|e| failed("flush", e))?;
    }
    let now = copies(disk).map_err(|e| failed("read back", e))?;
    if now.iter().any(|copy| *copy != bytes) {
        let text = format!("{name} does not store what is written to it");
        return Err(fail_for_now(FailureCode::ReadBackMismatch, text));
    }
    let is_set = |tag: u32| u8::try_from(tag).is_ok_and(|key| values.contains_key(&key));
    Ok(Done {
        kept: record.tags().filter(|tag| !is_set(*tag)).collect(),
        fresh,
    })
}

/// Both copies, from the medium.
fn copies<D: Disk>(disk: &D) -> io::Result<[Vec<u8>; 2]> {
    disk.drop_cache()?;
    let mut copies = [vec![0; COPY], vec![0; COPY]];
    for (offset, copy) in (0_u64..).step_by(COPY).zip(&mut copies) {
        disk.read_at(offset, copy)?;
    }
    Ok(copies)
}

#[cfg(test)]
#[path = "talos_meta_tests.rs"]
mod tests;
