//! Partition tables (GPT and MBR) of one disk, and finding a partition on it.
//!
//! Reads the disk itself rather than asking the kernel by label: a label on another disk must
//! never be taken for the one on this disk.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anneal_image::gpt::header_sectors;
use anneal_protocol::agent::{FailureCode, PartitionRef, StepFailure};

use super::{Found, device, gpt, probe};
use crate::step::fail;

/// The kernel makes device nodes soon after it has read the table.
const WAIT_FOR_NODE: Duration = Duration::from_secs(10);
/// A kernel that knows the table's format has read it by then.
const KERNEL_READS_TABLE: Duration = Duration::from_secs(1);
/// Longest chain of logical partitions followed.
const MAX_LOGICAL: u32 = 64;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// From 1, as the kernel counts.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// GPT unique GUID, lower case.
    pub uuid: Option<String>,
    /// GPT type GUID, lower case.
    pub type_guid: Option<String>,
    /// GPT name.
    pub name: Option<String>,
    /// What is on it.
    pub file_system: Option<probe::FileSystem>,
}

impl Partition {
    /// First byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// Reads the table and looks into every partition.
///
/// # Errors
/// When the disk cannot be read.
pub fn read(file: &File, sector: u32) -> io::Result<Vec<Partition>> {
    // A file system that cannot be read is as good as none to whoever looks for a partition.
    read_noting(file, sector, &Note::default())
}

fn read_noting(file: &File, sector: u32, note: &Note) -> io::Result<Vec<Partition>> {
    let mut partitions = table(file, u64::from(sector))?;
    for partition in &mut partitions {
        partition.file_system = probe::file_system(&|offset, into| {
            if offset + into.len() as u64 > partition.length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            note.take(file.read_exact_at(into, partition.start + offset))
        });
    }
    Ok(partitions)
}

/// The first read that failed while [`probe`] looked, which takes failures for "not there".
#[derive(Default)]
struct Note(Cell<Option<io::Error>>);

impl Note {
    fn take(&self, result: io::Result<()>) -> io::Result<()> {
        result.map_err(|error| {
            let kind = error.kind();
            // Behind the end there really is nothing.
            if kind != io::ErrorKind::UnexpectedEof {
                let first = self.0.take().unwrap_or(error);
                self.0.set(Some(first));
            }
            kind.into()
        })
    }

    fn result(self) -> io::Result<()> {
        self.0.into_inner().map_or(Ok(()), Err)
    }
}

/// What is on a disk.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The file system that fills it.
    whole: Option<probe::FileSystem>,
    partitions: Vec<Partition>,
}

impl Contents {
    /// Looks.
    ///
    /// # Errors
    /// When any place where a label could be cannot be read: no label is not the same as no
    /// answer.
    pub fn read(node: &Path, sector: u32) -> io::Result<Self> {
        Self::noting(node, |file, note| read_noting(file, sector, note))
    }

    /// Looks at a CD or DVD. Kernels know no partitions there; what looks like a table is for
    /// sticks that the same bytes are copied to.
    ///
    /// # Errors
    /// As [`Self::read`], and when nothing is in the drive.
    pub fn read_disc(node: &Path) -> io::Result<Self> {
        Self::noting(node, |_, _| Ok(Vec::new()))
    }

    fn noting(
        node: &Path,
        partitions: impl FnOnce(&File, &Note) -> io::Result<Vec<Partition>>,
    ) -> io::Result<Self> {
        let file = File::open(node)?;
        device::drop_cache(&file);
        let note = Note::default();
        let contents = Self {
            whole: probe::file_system(&|offset, into| note.take(file.read_exact_at(into, offset))),
            partitions: partitions(&file, &note)?,
        };
        note.result()?;
        Ok(contents)
    }

    /// Its file systems, each with the number of its partition (none: it fills the disk).
    pub fn file_systems(&self) -> impl Iterator<Item = (Option<u32>, &probe::FileSystem)> {
        let whole = self.whole.iter().map(|found| (None::<u32>, found));
        let inside = self.partitions.iter();
        whole.chain(inside.filter_map(|p| Some((Some(p.number), p.file_system.as_ref()?))))
    }

    /// Labels of file systems and names of partitions, each once.
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        let label = |found: Option<&probe::FileSystem>| found.and_then(|f| f.label.clone());
        let mut labels: Vec<String> = label(self.whole.as_ref()).into_iter().collect();
        for partition in &self.partitions {
            labels.extend(partition.name.clone());
            labels.extend(label(partition.file_system.as_ref()));
        }
        let mut seen = std::collections::BTreeSet::new();
        labels.retain(|label| seen.insert(label.clone()));
        labels
    }
}

/// The partition that is meant. Pure.
///
/// # Errors
/// `Partition` when none or several match: the message lists those there are.
pub fn find<'a>(
    partitions: &'a [Partition],
    wanted: &PartitionRef,
    disk: &str,
) -> Result<&'a Partition, StepFailure> {
    if *wanted == PartitionRef::default() {
        return Err(fail(
            FailureCode::BadOrder,
            "the partition is given by neither label, fs_label, uuid, type nor number",
        ));
    }
    let found: Vec<&Partition> = partitions.iter().filter(|p| matches(p, wanted)).collect();
    if let [one] = found[..] {
        return Ok(one);
    }
    let count = if found.is_empty() {
        "no"
    } else {
        "more than one"
    };
    let wanted = serde_json::to_string(wanted).unwrap_or_default();
    let there: Vec<String> = partitions.iter().map(describe).collect();
    Err(fail(
        FailureCode::Partition,
        format!(
            "{disk} has {count} partition {wanted}; it has {}",
            if there.is_empty() {
                "none".to_owned()
            } else {
                there.join(", ")
            }
        ),
    ))
}

fn matches(partition: &Partition, wanted: &PartitionRef) -> bool {
    let file_system = partition.file_system.as_ref();
    let label = file_system.and_then(|f| f.label.as_ref());
    let fs_uuid = file_system.and_then(|f| f.uuid.as_ref());
    let same = |found: Option<&String>, wanted: &String| {
        found.is_some_and(|found| found.eq_ignore_ascii_case(wanted))
    };
    wanted
        .label
        .as_ref()
        .is_none_or(|w| label == Some(w) || partition.name.as_ref() == Some(w))
        && wanted.fs_label.as_ref().is_none_or(|w| label == Some(w))
        && wanted
            .uuid
            .as_ref()
            .is_none_or(|w| same(partition.uuid.as_ref(), w) || same(fs_uuid, w))
        && wanted
            .type_guid
            .as_ref()
            .is_none_or(|w| same(partition.type_guid.as_ref(), w))
        && wanted.number.is_none_or(|n| partition.number == n)
}

fn describe(partition: &Partition) -> String {
    let mut text = partition.number.to_string();
    if let Some(name) = &partition.name {
        text = format!("{text} named {name}");
    }
    if let Some(file_system) = &partition.file_system {
        text = format!("{text} {}", file_system.kind);
        if let Some(label) = &file_system.label {
            text = format!("{text} labelled {label}");
        }
    }
    text
}

/// The partition on a disk with its device node, which may take a moment to appear.
///
/// # Errors
/// As [`find`], and when the kernel shows no such partition.
pub fn locate(disk: &Found, wanted: &PartitionRef) -> Result<(Partition, PathBuf), StepFailure> {
    let failed = |e: io::Error| super::io_failure("read", &disk.node, &e);
    let file = File::open(&disk.node).map_err(failed)?;
    device::drop_cache(&file);
    let partitions = read(&file, disk.info.sector_size).map_err(failed)?;
    let partition = find(&partitions, wanted, &disk.info.name)?;
    let block = Path::new("/sys/block").join(&disk.info.name);
    let begin = Instant::now();
    let mut told = false;
    loop {
        if let Some(node) = node(&block, partition).filter(|n| n.exists()) {
            return Ok((partition.clone(), node));
        }
        if !told && begin.elapsed() > KERNEL_READS_TABLE {
            // A kernel without this table's format: tell it what we found.
            told = true;
            let (number, range) = (partition.number, partition.start..partition.end());
            device::add_partition(&file, number, range).map_err(|e| {
                fail(
                    FailureCode::Partition,
                    format!(
                        "the kernel does not take partition {number} of {}: {e}",
                        disk.info.name
                    ),
                )
            })?;
        }
        if begin.elapsed() > WAIT_FOR_NODE {
            return Err(fail(
                FailureCode::Partition,
                format!(
                    "the kernel shows no partition {} of {}",
                    partition.number, disk.info.name
                ),
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The device node of a partition, if the kernel sees it where the table says it is.
fn node(block: &Path, partition: &Partition) -> Option<PathBuf> {
    let number =
        |path: PathBuf| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let entry = std::fs::read_dir(block).ok()?.flatten().find(|entry| {
        number(entry.path().join("partition")) == Some(u64::from(partition.number))
            && number(entry.path().join("start")) == Some(partition.start / 512)
            && number(entry.path().join("size")) == Some(partition.length / 512)
    })?;
    Some(Path::new("/dev").join(entry.file_name()))
}

fn table(file: &File, sector: u64) -> io::Result<Vec<Partition>> {
    let mut mbr = [0; 512];
    file.read_exact_at(&mut mbr, 0)?;
    if mbr[510..] != [0x55, 0xaa] {
        return Ok(Vec::new());
    }
    // UEFI 2.10, 5.2.3: a protective MBR has a partition of type 0xee.
    let protective = (0..4).any(|i| mbr[446 + 16 * i + 4] == 0xee);
    if protective {
        let size = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
        let [first, backup] = header_sectors(size, sector);
        // Without a good copy it stays unknown what is on the disk: that is not "nothing".
        let error = match gpt::read(file, sector, first) {
            Ok(Some(partitions)) => return Ok(partitions),
            Ok(None) => io::Error::new(
                io::ErrorKind::InvalidData,
                "both copies of its partition table (GPT) are damaged",
            ),
            // A sound table that is larger than what is read: the backup is no better, or another one.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(error) => error,
        };
        return gpt::read(file, sector, backup)?.ok_or(error);
    }
    dos(file, sector, &mbr)
}

/// The classic table: four entries, one of which may begin a chain of logical partitions.
fn dos(file: &File, sector: u64, mbr: &[u8; 512]) -> io::Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(entries(mbr)) {
        match entry.kind {
            0 => {}
            0x05 | 0x0f | 0x85 => extended = Some(entry.start),
            _ => partitions.push(entry.partition(number, 0, sector)),
        }
    }
    let Some(first) = extended else {
        return Ok(partitions);
    };
    // Each link: its own partition relative to itself, the next link relative to the first.
    let mut link = first;
    for number in 5..5 + MAX_LOGICAL {
        let mut record = [0; 512];
        match file.read_exact_at(&mut record, link * sector) {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(e),
            Ok(()) if record[510..] == [0x55, 0xaa] => {}
            // The chain leads nowhere: the partitions so far are all there are.
            _ => break,
        }
        let [own, next, ..] = entries(&record);
        if own.kind != 0 {
            partitions.push(own.partition(number, link, sector));
        }
        if next.kind == 0 {
            break;
        }
        link = first + next.start;
    }
    Ok(partitions)
}

#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn partition(self, number: u32, base: u64, sector: u64) -> Partition {
        Partition {
            number,
            start: (base + self.start) * sector,
            length: self.sectors * sector,
            uuid: None,
            type_guid: None,
            name: None,
            file_system: None,
        }
    }
}

fn entries(record: &[u8; 512]) -> [Entry; 4] {
    std::array::from_fn(|i| {
        let entry = &record[446 + 16 * i..462 + 16 * i];
        let u32_at = |o: usize| {
            u64::from(u32::from_le_bytes([
                entry[o],
                entry[o + 1],
                entry[o + 2],
                entry[o + 3],
            ]))
        };
        Entry {
            kind: entry[4],
            start: u32_at(8),
            sectors: u32_at(12),
        }
    })
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
