//! The partition table of an image, as the manifest tells it: for people, for finding the
//! partitions that may change, and for growing the last one. What a machine boots from is the
//! table in the image's bytes, not this.

mod grow;
mod read;

use serde::{Deserialize, Deserializer, Serialize};

pub use grow::{Grow, GrowError, Grown, grow, may_grow};
pub use read::HEAD;
pub(crate) use read::{Found, read};

/// Most partitions in a table.
pub const MAX_PARTITIONS: usize = 128;
/// Largest number of a partition.
pub const MAX_PARTITION_NUMBER: u32 = 1024;
/// Longest label in UTF-16 code units: what a GPT entry has room for.
const MAX_LABEL: usize = 36;

/// Which kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// GUID partition table (UEFI 2.10, chapter 5).
    Gpt,
    /// Master boot record; an extended partition is listed as one, not what is in it.
    Mbr,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Kind.
    pub kind: TableKind,
    /// Bytes of the sectors that the table counts in: 512 or 4096.
    pub sector_size: u32,
    /// The partitions, by ascending number.
    #[serde(deserialize_with = "at_most_max")]
    pub partitions: Vec<Partition>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Position in the table, from 1.
    pub number: u32,
    /// Name in the GPT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Type: lower-case GUID (GPT) or `0x83` (MBR).
    #[serde(rename = "type")]
    pub kind: String,
    /// What Linux calls PARTUUID: lower-case GUID (GPT) or `1a2b3c4d-01` (MBR).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Expected to differ from the image on a machine that runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mutable: bool,
}

impl Partition {
    /// The first byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    fn is_called(&self, name: &str) -> bool {
        self.label.as_deref() == Some(name)
            || self.number.to_string() == name
            || self
                .uuid
                .as_deref()
                .is_some_and(|uuid| uuid.eq_ignore_ascii_case(name))
    }

    /// `2 "ROOT" (0fc63daf-…)`, for messages.
    fn describe(&self) -> String {
        let label = self.label.as_deref();
        let label = label.map(|label| format!(" {label:?}")).unwrap_or_default();
        let uuid = self.uuid.as_deref();
        let uuid = uuid.map(|uuid| format!(" ({uuid})")).unwrap_or_default();
        format!("{}{label}{uuid}", self.number)
    }
}

/// Stops a hostile manifest before it fills the memory.
fn at_most_max<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Partition>, D::Error> {
    crate::wire::bounded(from, MAX_PARTITIONS, "partitions", |_, partition| {
        Ok(partition)
    })
}

impl Table {
    /// Reads the table of a disk of `size` bytes from its first bytes, up to [`HEAD`]; none when
    /// there is none that obeys all rules.
    #[must_use]
    pub fn read(head: &[u8], size: u64) -> Option<Self> {
        read(head, size).table
    }

    /// The partition of this number.
    #[must_use]
    pub fn partition(&self, number: u32) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.number == number)
    }

    /// The partition of this label, number or UUID.
    ///
    /// # Errors
    /// When there is none or more than one; the text lists what there is.
    pub fn find(&self, name: &str) -> Result<&Partition, String> {
        self.position(name).map(|index| &self.partitions[index])
    }

    fn position(&self, name: &str) -> Result<usize, String> {
        let mut found = (0..self.partitions.len()).filter(|&i| self.partitions[i].is_called(name));
        match (found.next(), found.next()) {
            (Some(index), None) => Ok(index),
            (Some(_), Some(_)) => Err(format!(
                "more than one partition is called {name:?}, name it by its UUID; there are {}",
                self.list()
            )),
            _ => Err(format!(
                "no partition has the label, number or UUID {name:?}; there are {}",
                self.list()
            )),
        }
    }

    fn list(&self) -> String {
        if self.partitions.is_empty() {
            return "none".to_owned();
        }
        let all: Vec<_> = self.partitions.iter().map(Partition::describe).collect();
        all.join(", ")
    }

    /// Marks the partitions of these names as mutable.
    pub(crate) fn mark_mutable(&mut self, names: &[String]) -> Result<(), String> {
        for name in names {
            let index = self.position(name)?;
            self.partitions[index].mutable = true;
        }
        Ok(())
    }

    /// Which rule the table of a disk of `size` bytes breaks.
    pub(crate) fn problem(&self, size: u64) -> Option<String> {
        if !matches!(self.sector_size, 512 | 4096) {
            return Some(format!(
                "sector size {} is not 512 or 4096",
                self.sector_size
            ));
        }
        if self.partitions.len() > MAX_PARTITIONS {
            return Some(format!(
                "{} partitions, more than the {MAX_PARTITIONS} allowed",
                self.partitions.len()
            ));
        }
        let mut before = 0;
        for partition in &self.partitions {
            let number = partition.number;
            if number <= before || number > MAX_PARTITION_NUMBER {
                return Some(format!(
                    "partition number {number} after {before}, expected ascending numbers up to {MAX_PARTITION_NUMBER}"
                ));
            }
            before = number;
            if let Some(problem) = self.problem_of(partition, size) {
                return Some(format!("partition {number} {problem}"));
            }
        }
        self.overlap()
    }

    fn problem_of(&self, partition: &Partition, size: u64) -> Option<String> {
        let sector = u64::from(self.sector_size);
        let (start, length) = (partition.start, partition.size);
        if start == 0
            || length == 0
            || !start.is_multiple_of(sector)
            || !length.is_multiple_of(sector)
        {
            return Some(format!(
                "has {length} bytes from byte {start}, expected whole sectors after the first"
            ));
        }
        if start.checked_add(length).is_none_or(|end| end > size) {
            return Some(format!(
                "has {length} bytes from byte {start}, beyond the {size} of the disk"
            ));
        }
        let gpt = self.kind == TableKind::Gpt;
        let type_is_right = match gpt {
            true => is_guid(&partition.kind),
            false => {
                let digits = partition.kind.strip_prefix("0x");
                digits.is_some_and(|digits| is_hex(digits, 2))
            }
        };
        if !type_is_right {
            return Some(format!("has the type {:?}", partition.kind));
        }
        if let Some(uuid) = &partition.uuid {
            let right = match gpt {
                true => is_guid(uuid),
                false => uuid
                    .split_once('-')
                    .is_some_and(|(disk, part)| is_hex(disk, 8) && is_hex(part, 2)),
            };
            if !right {
                return Some(format!("has the uuid {uuid:?}"));
            }
        }
        match &partition.label {
            Some(label) if !is_label(label) => Some(format!(
                "has a label that is not 1 to {MAX_LABEL} characters without control characters"
            )),
            _ => None,
        }
    }

    fn overlap(&self) -> Option<String> {
        let mut sorted: Vec<_> = self.partitions.iter().collect();
        sorted.sort_by_key(|partition| partition.start);
        sorted
            .windows(2)
            .find(|pair| pair[0].end() > pair[1].start)
            .map(|pair| {
                format!(
                    "partitions {} and {} overlap",
                    pair[0].number, pair[1].number
                )
            })
    }
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.encode_utf16().count() <= MAX_LABEL && !text.contains(char::is_control)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits
        && text
            .bytes()
            .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

fn is_guid(text: &str) -> bool {
    let mut groups = text.split('-');
    [8, 4, 4, 4, 12]
        .into_iter()
        .all(|digits| groups.next().is_some_and(|group| is_hex(group, digits)))
        && groups.next().is_none()
}
