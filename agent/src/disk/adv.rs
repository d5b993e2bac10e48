//! The record of Talos' META partition ("ADV") as bytes. Pure.
//!
//! The partition begins with two copies of it, 256 KiB each; numbers are big-endian
//! (siderolabs/go-adv, `adv/talos/talos.go`):
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `5a4b3c2d` |
//! | 4 | 8 and more | tag, length, value; then the next one. Tag 0, or less than 8 bytes: no more |
//! | 36 before the end | 32 | SHA-256 of the copy, these bytes being zero |
//! | 4 before the end | 4 | `a5b4c3d2` |
//!
//! Talos takes the first copy when it is valid, else the second, and begins with an empty record
//! when neither is. Not here: syslinux' record in the last KiB, where Talos looks for keys
//! that this one does not have.

use std::collections::BTreeMap;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

/// Length of a copy.
pub const COPY: usize = 256 << 10;
/// The tag behind the last one.
pub const END: u32 = 0;

const OPEN: [u8; 4] = 0x5a4b_3c2d_u32.to_be_bytes();
const CLOSE: [u8; 4] = 0xa5b4_c3d2_u32.to_be_bytes();
/// Where the checksum is.
const SUM: Range<usize> = COPY - 36..COPY - 4;
/// Tag and length.
const HEAD: usize = 8;

/// Tags and their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record(BTreeMap<u32, Vec<u8>>);

impl Record {
    /// Reads a copy; none when it is not a valid one.
    #[must_use]
    pub fn decode(copy: &[u8]) -> Option<Self> {
        let whole = copy.len() == COPY && copy.starts_with(&OPEN) && copy.ends_with(&CLOSE);
        if !whole || copy[SUM] != checksum(copy) {
            return None;
        }
        let mut tags = BTreeMap::new();
        let mut rest = &copy[OPEN.len()..SUM.start];
        while rest.len() >= HEAD {
            let (tag, behind) = number(rest)?;
            if tag == END {
                break;
            }
            let (length, behind) = number(behind)?;
            let (value, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
            tags.insert(tag, value.to_vec());
            rest = behind;
        }
        Some(Self(tags))
    }

    /// One copy.
    ///
    /// # Errors
    /// How many bytes there are too many.
    pub fn encode(&self) -> Result<Vec<u8>, usize> {
        let mut copy = Vec::with_capacity(COPY);
        copy.extend(OPEN);
        for (tag, value) in &self.0 {
            // What is longer than this number can say does not fit either.
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            copy.extend(tag.to_be_bytes());
            copy.extend(length.to_be_bytes());
            copy.extend_from_slice(value);
        }
        match copy.len().saturating_sub(SUM.start) {
            0 => {}
            over => return Err(over),
        }
        copy.resize(COPY - CLOSE.len(), 0);
        copy.extend(CLOSE);
        let sum = checksum(&copy);
        copy[SUM].copy_from_slice(&sum);
        Ok(copy)
    }

    /// Sets a key. Of a tag Talos keeps the last byte only, so every tag that it would take for
    /// this key goes.
    pub fn set(&mut self, key: u8, value: Vec<u8>) {
        self.0.retain(|tag, _| tag.to_be_bytes()[3] != key);
        self.0.insert(u32::from(key), value);
    }

    /// Its tags, ascending.
    pub fn tags(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }
}

/// The record that Talos would read from these copies, and from which of them.
#[must_use]
pub fn read(copies: &[Vec<u8>; 2]) -> Option<(usize, Record)> {
    let mut copies = copies.iter().enumerate();
    copies.find_map(|(index, copy)| Some((index, Record::decode(copy)?)))
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), rest))
}

fn checksum(copy: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(&copy[..SUM.start]);
    hash.update([0_u8; 32]);
    hash.update(&copy[SUM.end..]);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A copy put together from its first bytes and its checksum, both made by a few lines of
    /// Python (`struct`, `hashlib`) from go-adv's description.
    fn vector(front: &str, sum: &str) -> Vec<u8> {
        let mut copy = hex::decode(front).unwrap();
        copy.resize(256 * 1024 - 36, 0);
        copy.extend(hex::decode(sum).unwrap());
        copy.extend([0xa5, 0xb4, 0xc3, 0xd2]);
        copy
    }

    /// What a disk image has, and a network beside it.
    fn network() -> (Vec<u8>, Record) {
        let front =
            "5a4b3c2d0000000a0000000e686f73746e616d65733a205b5d0a000000110000000773642d626f6f74";
        let sum = "46d617bbee58aca63decc0d1e1a58c6297bc55c3cdd2d60bf7df3b27e088c523";
        let tags = [(0xa, "hostnames: []\n"), (0x11, "sd-boot")];
        let tags = tags.map(|(tag, value)| (tag, value.as_bytes().to_vec()));
        (vector(front, sum), Record(BTreeMap::from(tags)))
    }

    #[test]
    fn bytes_and_records_are_those_of_the_vectors() {
        let (bytes, record) = network();
        assert_eq!(Record::decode(&bytes).as_ref(), Some(&record));
        assert!(record.encode().unwrap() == bytes);
        let empty = vector(
            "5a4b3c2d",
            "e7a327df2cfb2c3010ac1a387e9573d46ea52cac7f25db80ad8fbb41aceabf70",
        );
        assert_eq!(Record::decode(&empty), Some(Record::default()));
        assert!(Record::default().encode().unwrap() == empty);
    }

    /// Talos writes tags in any order.
    #[test]
    fn the_order_of_tags_means_nothing_and_setting_one_keeps_the_others() {
        let bytes = vector(
            "5a4b3c2d0000001100000004677275620000010f00000001780000000600000000",
            "6138efaaad23f5b73e759b459a5d143d73eec20ed225eab70e8c3c3e4ea22be1",
        );
        let mut record = Record::decode(&bytes).unwrap();
        assert_eq!(record.tags().collect::<Vec<_>>(), [6, 0x11, 0x10f]);
        record.set(0xa, b"network".to_vec());
        // Its last byte is 0xf too.
        record.set(0xf, b"uuid".to_vec());
        let again = Record::decode(&record.encode().unwrap()).unwrap();
        let expected = [(6, ""), (0xa, "network"), (0xf, "uuid"), (0x11, "grub")];
        let expected = expected.map(|(tag, value)| (tag, value.as_bytes().to_vec()));
        assert_eq!(again, Record(BTreeMap::from(expected)));
    }

    #[test]
    fn the_first_valid_copy_counts() {
        let (good, record) = network();
        let other = Record::default().encode().unwrap();
        let bad = vec![0; COPY];
        let from = |first: &Vec<u8>, second: &Vec<u8>| read(&[first.clone(), second.clone()]);
        assert_eq!(from(&good, &other), Some((0, record.clone())));
        assert_eq!(from(&bad, &good), Some((1, record)));
        assert_eq!(from(&bad, &bad), None);
    }

    #[test]
    fn a_record_is_full_to_the_last_byte() {
        let mut record = Record::default();
        record.set(0xa, vec![b'x'; COPY - 40 - HEAD]);
        let full = record.encode().unwrap();
        assert_eq!(full.len(), COPY);
        assert_eq!(Record::decode(&full), Some(record.clone()));
        record.set(0xb, Vec::new());
        assert_eq!(record.encode(), Err(HEAD));
    }

    /// A checksum that is right says nothing about lengths.
    #[test]
    fn a_value_longer_than_its_record_makes_a_copy_worthless() {
        for length in [COPY as u32, u32::MAX] {
            let mut copy = vec![0; COPY];
            copy[..4].copy_from_slice(&OPEN);
            copy[4..8].copy_from_slice(&0xa_u32.to_be_bytes());
            copy[8..12].copy_from_slice(&length.to_be_bytes());
            copy[COPY - 4..].copy_from_slice(&CLOSE);
            let sum = checksum(&copy);
            copy[SUM].copy_from_slice(&sum);
            assert_eq!(Record::decode(&copy), None);
            copy[8..12].copy_from_slice(&3_u32.to_be_bytes());
            let sum = checksum(&copy);
            copy[SUM].copy_from_slice(&sum);
            assert!(Record::decode(&copy).is_some());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_is_written_reads_the_same(
            tags in proptest::collection::btree_map(
                1_u32.., proptest::collection::vec(any::<u8>(), 0..900), 0..40)
        ) {
            let record = Record(tags);
            let copy = record.encode().unwrap();
            prop_assert_eq!(Record::decode(&copy), Some(record));
        }

        #[test]
        fn one_wrong_bit_makes_a_copy_worthless(at in 0..COPY, bit in 0..8_u32) {
            let (mut copy, _) = network();
            copy[at] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&copy), None);
        }
    }
}
