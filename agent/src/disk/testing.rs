//! For tests: a disk in memory that loses power, raw disks with a real GPT, and a supply of
//! frames that may send wrong ones.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

use anneal_image::gpt::crc32;
use anneal_image::{Facts, Manifest, PackOptions, pack};
use anneal_protocol::agent::StepFailure;

use super::body::Supply;
use super::device::Disk;

pub use random::Random;

#[path = "../../tests/it/random.rs"]
mod random;

/// A disk with a volatile cache: what was not flushed may or may not survive a cut, sector by
/// sector.
pub struct Memory {
    state: Mutex<State>,
    size: usize,
    sector: usize,
}

struct State {
    durable: Vec<u8>,
    /// Writes since the last flush, oldest first.
    cached: Vec<(usize, Vec<u8>)>,
    /// Operations that change something, until the power goes.
    left: usize,
    operations: usize,
    /// Stores something else at this byte.
    lies_at: Option<usize>,
    /// Frames of this many bytes cannot be read here until they are written.
    broken: Option<usize>,
    /// Once something is written over this byte, it cannot be read.
    breaks: Option<usize>,
    /// This operation fails, counted from 0; those after it do not.
    fails: Option<usize>,
    written: u64,
    read: u64,
}

impl Memory {
    pub fn of(bytes: Vec<u8>, sector: usize) -> Self {
        Self {
            size: bytes.len(),
            sector,
            state: Mutex::new(State {
                durable: bytes,
                cached: Vec::new(),
                left: usize::MAX,
                operations: 0,
                lies_at: None,
                broken: None,
                breaks: None,
                fails: None,
                written: 0,
                read: 0,
            }),
        }
    }

    pub fn dies_after(self, operations: usize) -> Self {
        self.state.lock().unwrap().left = operations;
        self
    }

    pub fn lies_at(self, byte: usize) -> Self {
        self.state.lock().unwrap().lies_at = Some(byte);
        self
    }

    pub fn unreadable_at(self, byte: usize) -> Self {
        self.state.lock().unwrap().broken = Some(byte);
        self
    }

    pub fn breaks_at(self, byte: usize) -> Self {
        self.state.lock().unwrap().breaks = Some(byte);
        self
    }

    pub fn fails_once_at(self, operation: usize) -> Self {
        self.state.lock().unwrap().fails = Some(operation);
        self
    }

    pub fn operations(&self) -> usize {
        self.state.lock().unwrap().operations
    }

    /// A disk that takes discards for hints: what it forgets of them is up to it.
    pub fn discard_all(&self) -> io::Result<()> {
        self.zero(0..self.size as u64)
    }

    pub fn bytes_written(&self) -> u64 {
        self.state.lock().unwrap().written
    }

    pub fn bytes_read(&self) -> u64 {
        self.state.lock().unwrap().read
    }

    pub fn everything_flushed(&self) -> bool {
        self.state.lock().unwrap().cached.is_empty()
    }

    /// What reading it says.
    pub fn now(&self) -> Vec<u8> {
        self.state.lock().unwrap().now()
    }

    /// The platter after the cut: of each unflushed write, a random set of sectors.
    pub fn after_cut(self, random: &mut Random) -> Vec<u8> {
        let mut state = self.state.into_inner().unwrap();
        for (at, data) in std::mem::take(&mut state.cached) {
            let mut survives = random::survivors(random);
            for (n, sector) in data.chunks(self.sector).enumerate() {
                if survives() {
                    let at = at + n * self.sector;
                    state.durable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        state.durable
    }
}

impl State {
    fn tick(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::Other)?;
        self.operations += 1;
        if self.fails == Some(self.operations - 1) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn now(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (at, data) in &self.cached {
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
        bytes
    }
}

impl Disk for Memory {
    fn size(&self) -> u64 {
        self.size as u64
    }

    fn sector(&self) -> u64 {
        self.sector as u64
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(self.sector as u64), "at {offset}");
        let mut state = self.state.lock().unwrap();
        state.tick()?;
        state.written += data.len() as u64;
        let offset = offset as usize;
        let mut data = data.to_vec();
        data.resize(data.len().next_multiple_of(self.sector), 0);
        if let Some(at) = state.lies_at
            && (offset..offset + data.len()).contains(&at)
        {
            data[at - offset] ^= 1;
        }
        let range = offset..offset + data.len();
        state.broken = state.broken.filter(|at| !range.contains(at));
        if let Some(at) = state.breaks
            && range.contains(&at)
            && data.iter().any(|byte| *byte != 0)
        {
            state.broken = Some(at);
        }
        state.cached.push((offset, data));
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.write_at(range.start, &vec![0; (range.end - range.start) as usize])
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.read += into.len() as u64;
        let range = offset as usize..offset as usize + into.len();
        if state.broken.is_some_and(|at| range.contains(&at)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        into.copy_from_slice(&state.durable[range.clone()]);
        for (at, data) in &state.cached {
            let (start, end) = (range.start.max(*at), range.end.min(at + data.len()));
            if start < end {
                into[start - range.start..end - range.start]
                    .copy_from_slice(&data[start - at..end - at]);
            }
        }
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.tick()?;
        state.durable = state.now();
        state.cached.clear();
        Ok(())
    }
}

/// Writes protective MBR, GPT and backup GPT over both ends of a disk (UEFI 2.10, 5.3).
pub fn partition(disk: &mut [u8], sector: usize) {
    let last = disk.len() / sector - 1;
    let mut entries = vec![0_u8; 4 * 128];
    entries[..16].fill(0x11);
    entries[32..40].copy_from_slice(&8_u64.to_le_bytes());
    entries[40..48].copy_from_slice(&(last as u64 - 8).to_le_bytes());
    let header = |own: usize, other: usize, table: usize| {
        let mut header = vec![0_u8; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&(own as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(other as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(table as u64).to_le_bytes());
        header[80..84].copy_from_slice(&4_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        let crc = crc32(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    };
    for (own, other, table) in [(1, last, 2), (last, 1, last - 1)] {
        disk[own * sector..][..92].copy_from_slice(&header(own, other, table));
        disk[table * sector..][..entries.len()].copy_from_slice(&entries);
    }
    disk[450] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
}

/// Makes the checksums right of the GPT copy whose header is in sector `own`, and which says
/// itself where its entries are.
pub fn reseal(disk: &mut [u8], sector: usize, own: usize) {
    let header = own * sector;
    let at: [u8; 8] = disk[header + 72..header + 80].try_into().unwrap();
    let table = u64::from_le_bytes(at) as usize * sector;
    let entries = crc32(&disk[table..table + 4 * 128]);
    disk[header + 88..header + 92].copy_from_slice(&entries.to_le_bytes());
    disk[header + 16..header + 20].fill(0);
    let crc = crc32(&disk[header..header + 92]);
    disk[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the GPT header in this sector and its entries have the right checksums.
fn gpt_valid(disk: &[u8], sector: usize, own: usize) -> bool {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    let mut header = disk[own * sector..][..92].to_vec();
    if header[..8] != *b"EFI PART" || number(&header[24..32]) != own {
        return false;
    }
    let crc = number(&header[16..20]) as u32;
    header[16..20].fill(0);
    let table = number(&header[72..80]) * sector;
    let entries = disk.get(table..table + 4 * 128);
    crc32(&header) == crc
        && entries.is_some_and(|entries| crc32(entries) as usize == number(&header[88..92]))
}

/// Whether anything would take this disk for one with partitions: MBR, GPT or backup GPT.
pub fn recognised(disk: &[u8], sector: usize) -> bool {
    disk[510..512] == [0x55, 0xaa]
        || gpt_valid(disk, sector, 1)
        || gpt_valid(disk, sector, disk.len() / sector - 1)
}

/// Whether there is half a table: what is on such a disk nobody knows, so rules that protect
/// disks by label refuse it.
pub fn half_a_table(disk: &[u8], sector: usize) -> bool {
    let last = disk.len() / sector - 1;
    disk[510..512] == [0x55, 0xaa] && ![1, last].iter().any(|own| gpt_valid(disk, sector, *own))
}

/// Whether `disk` begins with `image`, but for the three sectors that hold MBR and GPT headers.
pub fn whole(disk: &[u8], image: &[u8], sector: usize) -> bool {
    let end = (image.len() - 1) / sector * sector;
    disk[2 * sector..end] == image[2 * sector..end]
}

/// A raw disk of 64 KiB frames: `0` zeros, any other letter is data of that letter and place.
pub fn raw(shape: &str, sector: usize) -> Vec<u8> {
    let frame = anneal_image::MIN_FRAME_SIZE as usize;
    let mut raw = Vec::new();
    for (place, kind) in shape.bytes().enumerate() {
        let mut random = Random(u64::from(kind) << 32 | place as u64);
        match kind {
            b'0' => raw.resize(raw.len() + frame, 0),
            _ => raw.extend((0..frame / 8).flat_map(|_| (random.next() | 1).to_le_bytes())),
        }
    }
    // The last frame is a short one.
    raw.truncate(raw.len() - frame / 2);
    partition(&mut raw, sector);
    raw
}

pub fn sealed(raw: &[u8]) -> (Manifest, Vec<u8>) {
    let options = PackOptions {
        frame_size: anneal_image::MIN_FRAME_SIZE,
        ..PackOptions::default()
    };
    let mut data = Vec::new();
    let packed = pack(&mut &raw[..], &mut data, &options, &mut |_| ()).unwrap();
    let facts = Facts {
        os: "test".into(),
        ..Facts::default()
    };
    (packed.into_manifest(facts).unwrap(), data)
}

/// Hands out the wanted frames in a random order.
pub struct Canned<'a> {
    manifest: &'a Manifest,
    data: &'a [u8],
    queue: Mutex<Vec<usize>>,
    /// Frames whose first delivery has a flipped bit.
    flipped: Mutex<BTreeSet<usize>>,
    /// Frames that were asked for.
    pub wanted: Vec<usize>,
    /// After so many frames there is nothing more.
    left: Mutex<usize>,
}

impl<'a> Canned<'a> {
    pub fn new(manifest: &'a Manifest, data: &'a [u8], wanted: &[bool], seed: u64) -> Self {
        let wanted: Vec<usize> = (0..wanted.len()).filter(|n| wanted[*n]).collect();
        let mut queue = wanted.clone();
        let mut random = Random(seed);
        queue.sort_by_cached_key(|_| random.next());
        Self {
            manifest,
            data,
            queue: Mutex::new(queue),
            flipped: Mutex::default(),
            wanted,
            left: Mutex::new(usize::MAX),
        }
    }

    pub fn flipping(self, frames: impl IntoIterator<Item = usize>) -> Self {
        self.flipped.lock().unwrap().extend(frames);
        self
    }

    pub fn ending_after(self, frames: usize) -> Self {
        *self.left.lock().unwrap() = frames;
        self
    }
}

impl Supply for Canned<'_> {
    type Bytes = Vec<u8>;

    fn next(&self) -> Result<Option<(usize, usize, Vec<u8>)>, StepFailure> {
        let Some(index) = self.queue.lock().unwrap().pop() else {
            return Ok(None);
        };
        let mut left = self.left.lock().unwrap();
        if *left == 0 {
            let code = anneal_protocol::agent::FailureCode::ImageTruncated;
            return Err(crate::step::fail_for_now(code, "no source is left"));
        }
        *left -= 1;
        let range = self.manifest.data_range(index..index + 1);
        let mut bytes = self.data[range.start as usize..range.end as usize].to_vec();
        if self.flipped.lock().unwrap().remove(&index) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }
        Ok(Some((index, 0, bytes)))
    }

    fn judge(&self, frame: usize, _: usize, right: bool) {
        if !right {
            self.queue.lock().unwrap().push(frame);
        }
    }

    fn stop(&self) {
        self.queue.lock().unwrap().clear();
    }
}
