//! What QEMU's `blklogwrites` notes of a disk: every write and every flush in the order in which
//! they were done (the format of Linux' dm-log-writes, linux/drivers/md/dm-log-writes.c).
//!
//! From it follows what a disk with a volatile cache holds after the power went at any point.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::random::{Random, survivors};

const SECTOR: usize = 512;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// What the disk was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    Flush,
    Write {
        /// First byte on the disk.
        at: usize,
        length: usize,
        /// Where in the log the bytes are; none: zeros.
        data: Option<u64>,
    },
}

/// Reads along while the machine writes.
pub struct Log {
    file: File,
    /// Where the next entry begins; the first sector is the log's own.
    next: u64,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn create(path: &Path) -> Self {
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        Self {
            file,
            next: SECTOR as u64,
            entries: Vec::new(),
        }
    }

    /// Reads what is new.
    pub fn read(&mut self) {
        let mut header = [0; 32];
        while self.file.read_exact_at(&mut header, self.next).is_ok() {
            let [sector, sectors, flags, _] =
                [0, 8, 16, 24].map(|at| u64::from_le_bytes(header[at..at + 8].try_into().unwrap()));
            if sectors == 0 && flags & FLUSH == 0 {
                // Its place is taken, but it is not there yet.
                return;
            }
            self.next += SECTOR as u64;
            if sectors > 0 {
                let length = sectors as usize * SECTOR;
                let data = (flags & DISCARD == 0).then_some(self.next);
                self.next += data.map_or(0, |_| length as u64);
                let at = sector as usize * SECTOR;
                self.entries.push(Entry::Write { at, length, data });
            }
            if flags & FLUSH != 0 {
                self.entries.push(Entry::Flush);
            }
        }
    }

    /// The disk after the first `count` entries, if its cache lost nothing.
    pub fn replay(&self, disk: &mut [u8], count: usize) {
        for entry in &self.entries[..count] {
            self.apply(disk, *entry, &mut || true);
        }
    }

    /// The disk when the power goes after entry `cut`: what came before the last flush is there;
    /// of what came later, any sectors.
    pub fn cut(&self, disk: &mut [u8], cut: usize, random: &mut Random) {
        let before = &self.entries[..cut];
        let flushed = before.iter().rposition(|entry| *entry == Entry::Flush);
        let flushed = flushed.map_or(0, |at| at + 1);
        self.replay(disk, flushed);
        for entry in &before[flushed..] {
            self.apply(disk, *entry, &mut survivors(random));
        }
    }

    fn apply(&self, disk: &mut [u8], entry: Entry, survives: &mut dyn FnMut() -> bool) {
        let Entry::Write { at, length, data } = entry else {
            return;
        };
        let mut bytes = vec![0; length];
        if let Some(data) = data {
            // Zeros that end the file are not stored.
            let mut filled = 0;
            while filled < length {
                match self
                    .file
                    .read_at(&mut bytes[filled..], data + filled as u64)
                {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) => panic!("reading the log: {error}"),
                }
            }
        }
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            if survives() {
                disk[at + n * SECTOR..][..SECTOR].copy_from_slice(sector);
            }
        }
    }
}
