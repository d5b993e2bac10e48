//! Reads QEMU's qcow2 images, version 2 and 3, from a file: guest disk in order, nothing else.
//!
//! Source: QEMU's `docs/interop/qcow2.txt`. Clusters may be plain, zero, unallocated (zero) or
//! compressed with zlib or zstd. Whatever needs another file (backing file, external data) or a
//! key (encryption) is refused, and so are features that are not known.
//!
//! Invariants: nothing in the file can make it read outside the file, allocate more than the
//! first-level table's bound, or give more bytes than the header says.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::IngestError;

/// QEMU's own bound for the first-level table.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Bits 9 to 55 of a table entry: an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// An open qcow2 image, read from its first byte to its last.
pub struct Qcow2 {
    file: File,
    length: u64,
    size: u64,
    cluster_bits: u32,
    zstd: bool,
    version: u32,
    l1: Vec<u64>,
    /// The second-level table in use, and which it is.
    l2: Option<(u64, Vec<u64>)>,
    position: u64,
    /// The decoded cluster in use, and which it is.
    decoded: Option<(u64, Vec<u8>)>,
}

fn bad(text: impl Into<String>) -> IngestError {
    IngestError::Format(format!("the qcow2 image {}", text.into()))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

/// What a guest cluster is.
enum Cluster {
    Zero,
    Plain(u64),
    Compressed { offset: u64, length: u64 },
}

impl Qcow2 {
    /// Opens an image whose guest disk has at most `max` bytes.
    ///
    /// # Errors
    /// When it is not a qcow2 image that can be read on its own, or is larger.
    pub fn open(file: File, max: u64) -> Result<Self, IngestError> {
        let reading = |error| IngestError::from_io("reading the qcow2 image", error);
        let length = file.metadata().map_err(reading)?.len();
        let mut header = [0; 112];
        let there = usize::try_from(length)
            .unwrap_or(header.len())
            .min(header.len());
        file.read_exact_at(&mut header[..there], 0)
            .map_err(reading)?;
        if there < 72 {
            return Err(IngestError::CutShort {
                format: "qcow2",
                at: length,
            });
        }
        let (version, cluster_bits, zstd) = check(&header)?;
        let size = be64(&header, 24);
        if size == 0 {
            return Err(bad("holds an empty disk"));
        }
        if size > max {
            return Err(IngestError::TooLarge { limit: max });
        }
        let per_l2 = 1_u64 << (2 * cluster_bits - 3);
        let needed = size.div_ceil(per_l2);
        if u64::from(be32(&header, 36)) < needed {
            return Err(bad("has a first-level table that does not cover its disk"));
        }
        if needed * 8 > MAX_L1_BYTES {
            return Err(bad(
                "needs a first-level table of more than 32 MiB: convert it with a larger cluster size",
            ));
        }
        let mut image = Self {
            file,
            length,
            size,
            cluster_bits,
            zstd,
            version,
            l1: Vec::new(),
            l2: None,
            position: 0,
            decoded: None,
        };
        image.l1 = image.table(be64(&header, 40), needed)?;
        Ok(image)
    }

    /// Bytes of the guest disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn table(&self, offset: u64, entries: u64) -> Result<Vec<u64>, IngestError> {
        // Bounded: MAX_L1_BYTES, or a cluster of 2 MiB at most.
        let mut bytes = vec![0; usize::try_from(entries * 8).unwrap_or(0)];
        self.exactly(&mut bytes, offset)?;
        Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
    }

    fn exactly(&self, buffer: &mut [u8], offset: u64) -> Result<(), IngestError> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            let (format, at) = ("qcow2", self.length);
            return Err(IngestError::CutShort { format, at });
        }
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| IngestError::from_io("reading the qcow2 image", error))
    }

    fn locate(&mut self, cluster: u64) -> Result<Cluster, IngestError> {
        let l2_bits = self.cluster_bits - 3;
        let (high, low) = (cluster >> l2_bits, cluster & ((1 << l2_bits) - 1));
        let index = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let l2_offset = self.l1.get(index(high)).copied().unwrap_or(0) & OFFSET;
        if l2_offset == 0 {
            return Ok(Cluster::Zero);
        }
        if self.l2.as_ref().is_none_or(|(held, _)| *held != high) {
            self.l2 = Some((high, self.table(l2_offset, 1 << l2_bits)?));
        }
        let entry = match &self.l2 {
            Some((_, table)) => table.get(index(low)).copied().unwrap_or(0),
            None => 0,
        };
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1;
            let length = sectors * 512 - (offset & 511);
            return Ok(Cluster::Compressed { offset, length });
        }
        // Bit 0 is reserved in version 2.
        if (self.version >= 3 && entry & ZERO != 0) || entry & OFFSET == 0 {
            return Ok(Cluster::Zero);
        }
        Ok(Cluster::Plain(entry & OFFSET))
    }

    fn decode(&self, cluster: u64, offset: u64, length: u64) -> Result<Vec<u8>, IngestError> {
        let left = self.length.checked_sub(offset).filter(|left| *left > 0);
        let Some(left) = left else {
            let (format, at) = ("qcow2", self.length);
            return Err(IngestError::CutShort { format, at });
        };
        // The last sector of the file need not be whole.
        let mut packed = vec![0; usize::try_from(length.min(left)).unwrap_or(0)];
        self.exactly(&mut packed, offset)?;
        let mut plain = vec![0; 1 << self.cluster_bits];
        let done = match self.zstd {
            true => zstd::stream::read::Decoder::with_buffer(&packed[..])
                .and_then(|decoder| decoder.single_frame().read_exact(&mut plain)),
            false => flate2::bufread::DeflateDecoder::new(&packed[..]).read_exact(&mut plain),
        };
        done.map_err(|error| IngestError::Damaged {
            format: "qcow2",
            at: offset,
            raw: cluster << self.cluster_bits,
            what: format!("a compressed cluster does not decode: {error}"),
        })?;
        Ok(plain)
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, IngestError> {
        let cluster = self.position >> self.cluster_bits;
        let within = self.position & ((1 << self.cluster_bits) - 1);
        let most = ((1 << self.cluster_bits) - within).min(self.size - self.position);
        let count = buffer.len().min(usize::try_from(most).unwrap_or(0));
        let buffer = &mut buffer[..count];
        match self.locate(cluster)? {
            Cluster::Zero => buffer.fill(0),
            Cluster::Plain(offset) => self.exactly(buffer, offset + within)?,
            Cluster::Compressed { offset, length } => {
                if self
                    .decoded
                    .as_ref()
                    .is_none_or(|(held, _)| *held != cluster)
                {
                    self.decoded = Some((cluster, self.decode(cluster, offset, length)?));
                }
                let within = usize::try_from(within).unwrap_or(0);
                if let Some((_, plain)) = &self.decoded {
                    buffer.copy_from_slice(&plain[within..within + count]);
                }
            }
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// Checks the header; gives version, cluster bits, and whether clusters are packed with zstd.
fn check(header: &[u8]) -> Result<(u32, u32, bool), IngestError> {
    let version = be32(header, 4);
    if !(2..=3).contains(&version) {
        return Err(bad(format!(
            "is of version {version}: versions 2 and 3 are read here"
        )));
    }
    if be64(header, 8) != 0 {
        return Err(bad(
            "has a backing file, which is not here: join them with `qemu-img convert -O qcow2 FILE whole.qcow2`",
        ));
    }
    let cluster_bits = be32(header, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(bad(format!(
            "has clusters of 2^{cluster_bits} bytes: 2^9 to 2^21 are allowed"
        )));
    }
    if be32(header, 32) != 0 {
        return Err(bad(
            "is encrypted: decrypt it with `qemu-img convert` first",
        ));
    }
    if version == 2 {
        return Ok((version, cluster_bits, false));
    }
    let features = be64(header, 72);
    for (bit, text) in [
        (
            1,
            "is marked corrupt: repair it with `qemu-img check -r all FILE`",
        ),
        (
            2,
            "keeps its data in another file: join them with `qemu-img convert -O qcow2 FILE whole.qcow2`",
        ),
        (
            4,
            "has extended second-level entries: convert it with `qemu-img convert -O qcow2 FILE plain.qcow2`",
        ),
    ] {
        if features & (1 << bit) != 0 {
            return Err(bad(text));
        }
    }
    // 0: dirty, which is about reference counts only; 3: the compression type is in the header.
    if features & !0b1001 != 0 {
        return Err(bad(format!(
            "uses features that are not known here ({features:#x}): convert it with a newer qemu-img"
        )));
    }
    let kind = match features & 0b1000 != 0 && be32(header, 100) > 104 {
        true => header[104],
        false => 0,
    };
    match kind {
        0 | 1 => Ok((version, cluster_bits, kind == 1)),
        other => Err(bad(format!(
            "is compressed by method {other}: zlib and zstd are read here"
        ))),
    }
}

impl Read for Qcow2 {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        self.step(buffer).map_err(IngestError::into_io)
    }
}

#[cfg(test)]
mod tests;
