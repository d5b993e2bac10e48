//! The seek table at the end of `data.zst`, for readers that are not ours: the "zstd seekable
//! format" 0.1.0 (contrib/seekable_format of the zstd sources). Plain decoders skip it. Our own
//! readers go by the signed manifest and only check that the table is what it must be.

use crate::manifest::{Frame, Manifest};

/// Magic number of the skippable frame that holds the table.
const SKIPPABLE: u32 = 0x184D_2A5E;
/// Last four bytes of the file.
const SEEKABLE: u32 = 0x8F92_EAB1;
const HEADER: u64 = 8;
const ENTRY: u64 = 8;
const FOOTER: u64 = 9;

/// Bytes of the table of so many frames.
pub(crate) fn table_size(frames: usize) -> u64 {
    HEADER + frames as u64 * ENTRY + FOOTER
}

/// The table, without checksums: readers that want to know what they have use the manifest.
pub(crate) fn table(frames: &[Frame], size: u64, frame_size: u32) -> Vec<u8> {
    let length = table_size(frames.len());
    let mut bytes = Vec::new();
    // The counts fit: MAX_FRAMES and MAX_FRAME_SIZE are far below 2^32.
    let mut put = |value: u64| bytes.extend_from_slice(&(value as u32).to_le_bytes());
    put(SKIPPABLE.into());
    put(length - HEADER);
    let mut left = size;
    for frame in frames {
        let raw = left.min(frame_size.into());
        put(frame.length.into());
        put(raw);
        left -= raw;
    }
    put(frames.len() as u64);
    // Descriptor: no checksums, reserved bits zero.
    bytes.push(0);
    bytes.extend_from_slice(&SEEKABLE.to_le_bytes());
    bytes
}

impl Manifest {
    /// The seek table that follows the frames in `data.zst`.
    #[must_use]
    pub fn seek_table(&self) -> Vec<u8> {
        table(self.frames(), self.size(), self.frame_size())
    }

    /// Size of the file `data.zst` in bytes: the frames, and the seek table after them.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.data_size() + table_size(self.frames().len())
    }
}
