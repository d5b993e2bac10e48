//! Which file system is on a partition, and what are its label and UUID?
//!
//! Knows vfat, ext2/3/4, XFS, Btrfs, ISO 9660 and swap: those that installed systems label.

use std::io;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// The kernel's name for it: `vfat`, `ext4`, `xfs`, `btrfs`, `iso9660`, `swap`.
    pub kind: &'static str,
    /// Its label; none when empty.
    pub label: Option<String>,
    /// Its UUID as people write it, lower case; of vfat the serial, `1a2b-3c4d`.
    pub uuid: Option<String>,
}

/// Looks. `read(offset, into)` reads from the start of the partition; reads that fail mean
/// "not there".
pub fn file_system(read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>) -> Option<FileSystem> {
    let at = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        read(offset, &mut bytes).ok().map(|()| bytes)
    };
    let found = |kind, label: &[u8], uuid: &[u8]| {
        Some(FileSystem {
            kind,
            label: trimmed(label),
            uuid: dashed(uuid),
        })
    };
    // XFS: superblock at 0, UUID at 32, label of 12 bytes at 108 (xfs_format.h).
    let head = at(0, 512)?;
    if head.starts_with(b"XFSB") {
        return found("xfs", &head[108..120], &head[32..48]);
    }
    // ext: superblock at 1024, magic at 56, UUID at 104, label of 16 bytes at 120 (kernel docs, ext4).
    if let Some(ext) = at(1024, 136)
        && ext[56..58] == [0x53, 0xef]
    {
        return found("ext4", &ext[120..136], &ext[104..120]);
    }
    // Btrfs: superblock at 64 KiB, UUID at 32, magic at 64, label of 256 bytes at 299 (on-disk format).
    if let Some(btrfs) = at(0x10000, 555)
        && btrfs[64..72] == *b"_BHRfS_M"
    {
        return found("btrfs", &btrfs[299..555], &btrfs[32..48]);
    }
    // Swap: last ten bytes of the first page; UUID at 1036, label of 16 bytes at 1052 (mkswap).
    if let Some(page) = at(0, 4096)
        && page[4086..] == *b"SWAPSPACE2"
    {
        return found("swap", &page[1052..1068], &page[1036..1052]);
    }
    // ISO 9660: primary volume descriptor at 32 KiB, label of 32 bytes at 40 (ECMA-119, 8.4).
    // What tools show as its UUID is a date, which is no help.
    if let Some(iso) = at(0x8000, 72)
        && iso[1..6] == *b"CD001"
    {
        return found("iso9660", &iso[40..72], &[]);
    }
    vfat(&head, &at)
}

/// FAT12/16/32 (Microsoft's FAT specification, 3.1 to 3.3). The label in the root directory
/// counts; the one in the boot sector stands in for it.
fn vfat(head: &[u8], at: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<FileSystem> {
    let u16_at = |o: usize| u64::from(u16::from_le_bytes([head[o], head[o + 1]]));
    let u32_at = |o: usize| {
        u64::from(u32::from_le_bytes([
            head[o],
            head[o + 1],
            head[o + 2],
            head[o + 3],
        ]))
    };
    let jump = head[0] == 0xeb || head[0] == 0xe9;
    let (sector, per_cluster) = (u16_at(11), u64::from(head[13]));
    let (reserved, fats, entries) = (u16_at(14), u64::from(head[16]), u16_at(17));
    let sane = [512, 1024, 2048, 4096].contains(&sector)
        && per_cluster.is_power_of_two()
        && reserved > 0
        && (1..=4).contains(&fats);
    if !jump || head[510..512] != [0x55, 0xaa] || !sane {
        return None;
    }
    let fat32 = u16_at(22) == 0;
    let (label_at, kind_at, fat_size) = if fat32 {
        (71, 82, u32_at(36))
    } else {
        (43, 54, u16_at(22))
    };
    // The same boot sector signature is on partition tables; FAT and FAT32 name themselves.
    if !head[kind_at..].starts_with(b"FAT") || (fat32 && entries != 0) {
        return None;
    }
    let after_fats = (reserved + fats * fat_size) * sector;
    let (root, length) = if fat32 {
        let cluster = u32_at(44).saturating_sub(2);
        (
            after_fats + cluster * per_cluster * sector,
            per_cluster * sector,
        )
    } else {
        (after_fats, entries * 32)
    };
    // Only the first cluster of a FAT32 root: formatters put the label first.
    let directory = at(root, usize::try_from(length).ok()?).unwrap_or_default();
    let in_root = directory
        .chunks_exact(32)
        .take_while(|entry| entry[0] != 0)
        // Attribute 8 alone: a volume label; 0x0f: part of a long name; 0xe5: deleted.
        .find(|entry| entry[0] != 0xe5 && entry[11] & 0x3f == 0x08)
        .map(|entry| entry[..11].to_vec());
    let label = in_root.unwrap_or_else(|| head[label_at..label_at + 11].to_vec());
    Some(FileSystem {
        kind: "vfat",
        label: trimmed(&label).filter(|label| label != "NO NAME"),
        uuid: Some(serial(&head[label_at - 4..label_at])),
    })
}

/// The volume serial, little-endian, stands before the label.
fn serial(b: &[u8]) -> String {
    format!("{:02x}{:02x}-{:02x}{:02x}", b[3], b[2], b[1], b[0])
}

/// Sixteen bytes as a UUID; none when there are none or all are zero.
fn dashed(bytes: &[u8]) -> Option<String> {
    let text = hex::encode(bytes);
    if text.len() != 32 || bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let parts = [
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    ];
    Some(parts.join("-"))
}

/// Up to the first zero byte, blanks off the ends.
fn trimmed(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
