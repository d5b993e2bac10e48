//! Which parts of a disk come first and last when an image is written to it, so that no half of
//! it is ever bootable.
//!
//! Firmware looks at the first sectors (MBR, GPT) and, when they are damaged, at the backup GPT
//! at the end of the disk (UEFI 2.10, section 5.3.2). So what an earlier system left there is
//! cleared before anything else, and what the image has there is written after everything else.
//! In which order the sectors of these frames go is the writer's to know: three of them, MBR and
//! GPT headers, are cleared before and written after all others.

use std::ops::Range;

use crate::manifest::Manifest;

/// How much of the end of a disk is cleared: the backup GPT (33 sectors, of up to 4096 bytes)
/// and the metadata that RAID formats keep there.
pub const END_OF_DISK: u64 = 1024 * 1024;

/// The disk is smaller than the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("disk has {disk} bytes, the image needs {image}")]
pub struct DiskTooSmall {
    /// Size of the disk.
    pub disk: u64,
    /// Size of the image.
    pub image: u64,
}

/// What comes first and last when a disk is written: `clear`, then everything else in any order,
/// then `last`; the disk is flushed after each of the three, and inside of the first and the last
/// as often as the writer needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritePlan {
    /// Ranges of the disk to overwrite with zeros first: what an earlier system boots from.
    pub clear: Vec<Range<u64>>,
    /// Frames that are held back: the disk's last slice, and its first that is not zero.
    pub last: Vec<usize>,
}

impl WritePlan {
    /// Plans the write of an image to a disk of `disk_size` bytes.
    ///
    /// # Errors
    /// When the disk is too small.
    pub fn new(manifest: &Manifest, disk_size: u64) -> Result<Self, DiskTooSmall> {
        if disk_size < manifest.size() {
            return Err(DiskTooSmall {
                disk: disk_size,
                image: manifest.size(),
            });
        }
        let frames = manifest.frames();
        let head = frames.iter().position(|frame| !frame.is_zero());
        let tail = frames
            .iter()
            .rposition(|frame| !frame.is_zero())
            .filter(|&index| index + 1 == frames.len() && Some(index) != head);
        let last: Vec<usize> = tail.into_iter().chain(head).collect();

        let begin = 0..manifest.raw_range(head.unwrap_or(0)).end;
        let end = disk_size.saturating_sub(END_OF_DISK).max(begin.end)..disk_size;
        let clear = [begin, end]
            .into_iter()
            .filter(|range| !range.is_empty())
            .collect();
        Ok(Self { clear, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Frame, MIN_FRAME_SIZE};

    const F: u64 = MIN_FRAME_SIZE as u64;

    /// `d` is a frame with data, `0` one without.
    fn manifest(shape: &str) -> Manifest {
        let frames = shape
            .bytes()
            .enumerate()
            .map(|(index, kind)| Frame {
                offset: index as u64 * 10,
                length: 10,
                digest: (kind == b'd').then_some([index as u8; 32]),
            })
            .collect();
        let size = shape.len() as u64 * F;
        Manifest::bare(size, MIN_FRAME_SIZE, frames)
    }

    #[test]
    fn holds_back_first_and_last_frame() {
        let plan = WritePlan::new(&manifest("ddd00d0dd"), 100 * F).unwrap();
        assert_eq!(plan.last, [8, 0]);
        assert_eq!(plan.clear, [0..F, 100 * F - END_OF_DISK..100 * F]);
    }

    #[test]
    fn edges() {
        let plan = WritePlan::new(&manifest("00d00"), 5 * F).unwrap();
        assert_eq!(plan.last, [2]);
        assert_eq!(plan.clear, [0..3 * F, 3 * F..5 * F]);
        let plan = WritePlan::new(&manifest("d"), F).unwrap();
        assert_eq!((plan.last, plan.clear.len()), (vec![0], 1));
        let plan = WritePlan::new(&manifest("00"), 2 * F).unwrap();
        assert!(plan.last.is_empty());
        assert_eq!(
            WritePlan::new(&manifest("dd"), 2 * F - 1),
            Err(DiskTooSmall {
                disk: 2 * F - 1,
                image: 2 * F
            })
        );
    }
}
