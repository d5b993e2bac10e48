//! One whole disk, open for writing, nobody else's: direct I/O, zeroing and flushing.
//!
//! [`Disk`] is what the writer needs; tests put a disk in memory there that loses power.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anneal_protocol::agent::StepFailure;

use super::io_failure;

/// Direct I/O wants memory and lengths in multiples of this; covers every sector size in use.
const ALIGN: usize = 4096;
/// Zeroing is done in pieces, so that it can be stopped.
const ZERO_PIECE: u64 = 256 << 20;

/// `BLKZEROOUT`, `BLKDISCARD`, `BLKFLSBUF`, `BLKRRPART`, `BLKPG` (linux/fs.h, linux/blkpg.h).
const BLKZEROOUT: libc::c_ulong = 0x127f;
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKFLSBUF: libc::c_ulong = 0x1261;
const BLKRRPART: libc::c_ulong = 0x125f;
const BLKPG: libc::c_ulong = 0x1269;

/// Random access to a disk.
pub trait Disk {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Writes all of `data`; durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// When the disk does.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeros; durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// When the disk does.
    fn zero(&mut self, range: Range<u64>) -> io::Result<()>;
    /// Reads what is on the disk, not in a cache.
    ///
    /// # Errors
    /// When the disk does.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Returns when everything before is on stable storage.
    ///
    /// # Errors
    /// When the disk does.
    fn flush(&mut self) -> io::Result<()>;
}

/// An open block device.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    node: PathBuf,
    size: u64,
    sector: u64,
    bounce: Aligned,
}

impl BlockDevice {
    /// A disk opened by [`open_exclusive`], with the size and sector size that it has.
    #[must_use]
    pub fn new(file: File, node: &Path, size: u64, sector: u32) -> Self {
        Self {
            file,
            node: node.to_owned(),
            size,
            sector: u64::from(sector),
            bounce: Aligned::new(),
        }
    }

    /// Tells the disk that nothing on it is needed any more.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when it cannot.
    pub fn discard_all(&mut self) -> io::Result<()> {
        range_ioctl(&self.file, BLKDISCARD, 0..self.size)
    }

    /// Makes the kernel read the partition table again. Partitions that are only just being
    /// released make it fail for a moment.
    ///
    /// # Errors
    /// When it stays busy.
    pub fn reread_partitions(&self) -> Result<(), StepFailure> {
        let mut tries = 0;
        loop {
            match plain_ioctl(&self.file, BLKRRPART) {
                Ok(()) => return Ok(()),
                // A loop device set up without partition scanning, or one that cannot.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                Err(e) if tries == 20 => {
                    return Err(io_failure("reread the partition table of", &self.node, &e));
                }
                Err(_) => {
                    tries += 1;
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
            }
        }
    }

    /// Up to the next multiple of the sector.
    fn round_up(&self, offset: u64) -> u64 {
        offset.next_multiple_of(self.sector).min(self.size)
    }
}

impl Disk for BlockDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        // The image may end inside a sector: the rest of that sector becomes zero.
        let end = self.round_up(offset + data.len() as u64);
        let buffer = self.bounce.slice(to_usize(end - offset)?);
        buffer[..data.len()].copy_from_slice(data);
        buffer[data.len()..].fill(0);
        self.file.write_all_at(buffer, offset)
    }

    fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        let end = self.round_up(range.end);
        let mut start = range.start;
        while start < end {
            let piece = start..end.min(start + ZERO_PIECE);
            range_ioctl(&self.file, BLKZEROOUT, piece.clone())?;
            start = piece.end;
        }
        Ok(())
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = self.round_up(offset + into.len() as u64);
        let buffer = self.bounce.slice(to_usize(end - offset)?);
        self.file.read_exact_at(buffer, offset)?;
        into.copy_from_slice(&buffer[..into.len()]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Opens exclusively: fails when anything on the disk is mounted or stacked.
///
/// # Errors
/// `EBUSY` when in use.
pub fn open_exclusive(node: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL | libc::O_DIRECT | libc::O_CLOEXEC)
        .open(node)
}

/// Forgets what the kernel cached of a disk, so that the next look is a real one.
pub(super) fn drop_cache(file: &File) {
    // Best effort: without it a look may be old, never wrong about a fresh boot.
    let _ = plain_ioctl(file, BLKFLSBUF);
}

/// Makes the kernel show a range of a disk as partition `number` (`BLKPG_ADD_PARTITION`,
/// linux/blkpg.h).
pub(super) fn add_partition(file: &File, number: u32, range: Range<u64>) -> io::Result<()> {
    #[repr(C)]
    struct Place {
        start: i64,
        length: i64,
        number: libc::c_int,
        unused: [u8; 128],
    }
    #[repr(C)]
    struct Argument {
        operation: libc::c_int,
        flags: libc::c_int,
        length: libc::c_int,
        place: *mut Place,
    }
    const ADD: libc::c_int = 1;
    let mut place = Place {
        start: i64::try_from(range.start).map_err(io::Error::other)?,
        length: i64::try_from(range.end - range.start).map_err(io::Error::other)?,
        number: libc::c_int::try_from(number).map_err(io::Error::other)?,
        unused: [0; 128],
    };
    let argument = Argument {
        operation: ADD,
        flags: 0,
        length: size_of::<Place>() as libc::c_int,
        place: &raw mut place,
    };
    // SAFETY: BLKPG reads the argument and the place it points to; both outlive the call and
    // have the layout of struct blkpg_ioctl_arg and struct blkpg_partition.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKPG as _, &raw const argument) };
    check(result)
}

fn to_usize(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(io::Error::other)
}

fn plain_ioctl(file: &File, code: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the two codes used with this function take no argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), code as _, 0) };
    check(result)
}

fn range_ioctl(file: &File, code: libc::c_ulong, range: Range<u64>) -> io::Result<()> {
    let argument: [u64; 2] = [range.start, range.end - range.start];
    // SAFETY: BLKZEROOUT and BLKDISCARD read two u64 (start, length), which outlive the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), code as _, argument.as_ptr()) };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Memory that begins at a multiple of [`ALIGN`]; grows to the largest slice asked for.
#[derive(Debug)]
struct Aligned {
    memory: Vec<u8>,
}

impl Aligned {
    fn new() -> Self {
        Self { memory: Vec::new() }
    }

    fn slice(&mut self, length: usize) -> &mut [u8] {
        if self.memory.len() < length + ALIGN {
            self.memory = vec![0; length + ALIGN];
        }
        let start = self.memory.as_ptr().align_offset(ALIGN);
        &mut self.memory[start..start + length]
    }
}
