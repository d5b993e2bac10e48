//! One whole disk, open for writing, nobody else's: direct I/O, zeroing and flushing.
//!
//! [`Disk`] is what the writer needs; tests put a disk in memory there that loses power. Several
//! threads use one disk at the same time.

use std::alloc::{self, Layout};
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anneal_protocol::agent::StepFailure;
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fcntl_setfl};

use super::io_failure;

/// Direct I/O wants memory and lengths in multiples of this; covers every sector size in use.
const ALIGN: usize = 4096;
/// Zeroing is done in pieces, so that it can be stopped.
const ZERO_PIECE: u64 = 256 << 20;
/// What is written at once where the disk and the kernel leave zeroing to us.
const ZERO_WRITE: usize = 1 << 20;

/// `BLKZEROOUT`, `BLKDISCARD`, `BLKFLSBUF`, `BLKRRPART`, `BLKPG` (linux/fs.h, linux/blkpg.h).
const BLKZEROOUT: libc::c_ulong = 0x127f;
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKFLSBUF: libc::c_ulong = 0x1261;
const BLKRRPART: libc::c_ulong = 0x125f;
const BLKPG: libc::c_ulong = 0x1269;

/// Random access to a disk. Offsets are multiples of the sector.
pub trait Disk: Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Logical sector size in bytes.
    fn sector(&self) -> u64;
    /// Writes all of `data`; durable after the next [`Disk::flush`]. When it ends inside a
    /// sector, the rest of that sector becomes zero. Fastest from [`Aligned`] memory.
    ///
    /// # Errors
    /// When the disk does.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeros; durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// When the disk does.
    fn zero(&self, range: Range<u64>) -> io::Result<()>;
    /// Reads what is on the disk; past the caches that [`Disk::drop_cache`] knows. Fastest into
    /// [`Aligned`] memory.
    ///
    /// # Errors
    /// When the disk does.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Forgets what is in memory of the disk, so that reading means the disk.
    ///
    /// # Errors
    /// When something cannot be forgotten.
    fn drop_cache(&self) -> io::Result<()>;
    /// Returns when everything before is on stable storage.
    ///
    /// # Errors
    /// When the disk does.
    fn flush(&self) -> io::Result<()>;
}

/// An open block device.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    node: PathBuf,
    size: u64,
    sector: u64,
    /// Past the page cache.
    direct: AtomicBool,
    /// How many of the ways to zero are known not to work.
    zeroing: AtomicU8,
}

impl BlockDevice {
    /// A disk opened by [`open_exclusive`], with the size and sector size that it has.
    #[must_use]
    pub fn new(file: File, node: &Path, size: u64, sector: u32) -> Self {
        let direct = fcntl_getfl(&file).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        Self {
            file,
            node: node.to_owned(),
            size,
            sector: u64::from(sector),
            direct: AtomicBool::new(direct),
            zeroing: AtomicU8::new(0),
        }
    }

    /// Tells the disk that nothing on it is needed any more.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when it cannot.
    pub fn discard_all(&self) -> io::Result<()> {
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

    /// Whether memory and length fit direct I/O as they are.
    fn fits(&self, data: &[u8]) -> bool {
        data.as_ptr().addr().is_multiple_of(ALIGN)
            && (data.len() as u64).is_multiple_of(self.sector)
    }

    /// Does I/O, and again through the page cache when the device refuses it directly.
    fn through<T>(&self, mut io: impl FnMut(&File) -> io::Result<T>) -> io::Result<T> {
        // Asked first: whoever finds it given up also finds the file so.
        let direct = self.direct.load(Ordering::Acquire);
        match io(&self.file) {
            // Another thread may be here at the same time; doing it twice does no harm.
            Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
                let flags = fcntl_getfl(&self.file)?;
                fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                if self.direct.swap(false, Ordering::AcqRel) {
                    tracing::info!(disk = %self.node.display(), "no direct I/O: through the page cache");
                }
                io(&self.file)
            }
            outcome => outcome,
        }
    }

    /// One piece, by the best way that works: hole punching (discards, and the kernel only says
    /// yes when the disk promises zeros), then `BLKZEROOUT`, then writing.
    fn zero_piece(&self, piece: Range<u64>) -> io::Result<()> {
        let length = piece.end - piece.start;
        let ways: [&dyn Fn() -> io::Result<()>; 2] = [
            &|| {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(&self.file, hole, piece.start, length)?)
            },
            &|| range_ioctl(&self.file, BLKZEROOUT, piece.clone()),
        ];
        for (way, zero) in (0..).zip(ways) {
            if self.zeroing.load(Ordering::Relaxed) > way {
                continue;
            }
            match zero() {
                Err(error) if refused(&error) => {
                    self.zeroing.fetch_max(way + 1, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        let zeros = Aligned::new(ZERO_WRITE);
        let mut at = piece.start;
        while at < piece.end {
            let count = to_usize(piece.end - at)?.min(zeros.len());
            self.through(|file| file.write_all_at(&zeros[..count], at))?;
            at += count as u64;
        }
        Ok(())
    }
}

/// The device or the kernel cannot do it this way.
fn refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS | libc::ENODEV)
    )
}

impl Disk for BlockDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.fits(data) {
            return self.through(|file| file.write_all_at(data, offset));
        }
        let end = self.round_up(offset + data.len() as u64);
        let mut bounce = Aligned::new(to_usize(end - offset)?);
        bounce[..data.len()].copy_from_slice(data);
        self.through(|file| file.write_all_at(&bounce, offset))
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let end = self.round_up(range.end);
        let mut start = range.start;
        while start < end {
            let piece = start..end.min(start + ZERO_PIECE);
            self.zero_piece(piece.clone())?;
            start = piece.end;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.fits(into) {
            return self.through(|file| file.read_exact_at(into, offset));
        }
        let end = self.round_up(offset + into.len() as u64);
        let mut bounce = Aligned::new(to_usize(end - offset)?);
        self.through(|file| file.read_exact_at(&mut bounce, offset))?;
        into.copy_from_slice(&bounce[..into.len()]);
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.sync_all()?;
        match plain_ioctl(&self.file, BLKFLSBUF) {
            // Direct reads do not look there.
            Err(_) if self.direct.load(Ordering::Relaxed) => Ok(()),
            outcome => outcome,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Opens exclusively: fails when anything on the disk is mounted or stacked. Past the page cache
/// where the device can do that.
///
/// # Errors
/// `EBUSY` when in use.
pub fn open_exclusive(node: &Path) -> io::Result<File> {
    let open = |more| {
        File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL | libc::O_CLOEXEC | more)
            .open(node)
    };
    match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
        outcome => outcome,
    }
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

/// Zeroed memory that begins at a multiple of [`ALIGN`], so that direct I/O can use it.
#[derive(Debug)]
pub struct Aligned {
    start: *mut u8,
    length: usize,
}

// SAFETY: it owns its memory alone, as a boxed slice does.
unsafe impl Send for Aligned {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// So many bytes, all zero.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let layout = Self::layout(length);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        if start.is_null() {
            alloc::handle_alloc_error(layout);
        }
        Self { start, length }
    }

    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length.max(1), ALIGN)
            .expect("invariant: slices of disks are far smaller than the address space")
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `length` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { alloc::dealloc(self.start, Self::layout(self.length)) }
    }
}
