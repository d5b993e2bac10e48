//! Tables made by the tools that people use, read by our own code.

use std::fs::File;
use std::process::Command;

use anneal_image::gpt::crc32;
use anneal_protocol::agent::{FailureCode, PartitionRef};

use super::*;

const MIB: u64 = 1 << 20;

/// Runs a tool; a missing one fails the test with the name of its package.
fn tool(package: &str, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .env(
            "PATH",
            format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()),
        )
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}; install the package {package}", words[0]));
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("disk")).unwrap();
        file.set_len(size).unwrap();
        Self { dir }
    }

    fn path(&self) -> String {
        self.dir.path().join("disk").display().to_string()
    }

    fn read(&self) -> Vec<Partition> {
        read(&File::open(self.path()).unwrap(), 512).unwrap()
    }

    /// A file system made in a file of its own and copied to its place.
    fn fill(&self, at: u64, size: u64, package: &str, mkfs: &str) {
        let part = self.dir.path().join("part");
        File::create(&part).unwrap().set_len(size).unwrap();
        tool(package, &mkfs.replace("FILE", &part.display().to_string()));
        let disk = File::options().write(true).open(self.path()).unwrap();
        disk.write_all_at(&std::fs::read(&part).unwrap(), at)
            .unwrap();
    }
}

fn labels(node: &Path, sector: u32) -> io::Result<Vec<String>> {
    Contents::read(node, sector).map(|contents| contents.labels())
}

/// GPT by sgdisk; FAT16, FAT32, ext4 and swap by their mkfs.
fn gpt_disk() -> Image {
    let image = Image::new(200 * MIB);
    tool(
        "gdisk",
        &format!(
            "sgdisk -n 1:2048:+16M -t 1:ef00 -c 1:ESP -n 2:0:+32M -c 2:root -u 2:11223344-5566-7788-99AA-BBCCDDEEFF00 -n 3:0:+64M -n 7:0:+8M {}",
            image.path()
        ),
    );
    image.fill(MIB, 16 * MIB, "dosfstools", "mkfs.vfat -F 16 -n OEM FILE");
    image.fill(
        17 * MIB,
        32 * MIB,
        "e2fsprogs",
        "mkfs.ext4 -q -L root-a FILE",
    );
    image.fill(
        49 * MIB,
        64 * MIB,
        "dosfstools",
        "mkfs.vfat -F 32 -n CIDATA FILE",
    );
    image.fill(113 * MIB, 8 * MIB, "util-linux", "mkswap -L swappy FILE");
    image
}

fn names(partition: &Partition) -> (u32, Option<&str>, Option<&str>, Option<&str>) {
    (
        partition.number,
        partition.name.as_deref(),
        partition.file_system.as_ref().map(|f| f.kind),
        partition
            .file_system
            .as_ref()
            .and_then(|f| f.label.as_deref()),
    )
}

#[test]
fn reads_a_gpt_with_file_systems() {
    let image = gpt_disk();
    let partitions = image.read();
    let found: Vec<_> = partitions.iter().map(names).collect();
    assert_eq!(
        found,
        [
            (1, Some("ESP"), Some("vfat"), Some("OEM")),
            (2, Some("root"), Some("ext4"), Some("root-a")),
            (3, None, Some("vfat"), Some("CIDATA")),
            (7, None, Some("swap"), Some("swappy")),
        ]
    );
    assert_eq!(
        (partitions[1].start, partitions[1].length),
        (17 * MIB, 32 * MIB)
    );
    assert_eq!(
        partitions[1].uuid.as_deref(),
        Some("11223344-5566-7788-99aa-bbccddeeff00")
    );
    assert_eq!(
        labels(Path::new(&image.path()), 512).unwrap(),
        ["ESP", "OEM", "root", "root-a", "CIDATA", "swappy"]
    );
}

#[test]
fn an_unreadable_primary_gpt_is_read_from_its_backup() {
    let image = gpt_disk();
    let disk = File::options()
        .read(true)
        .write(true)
        .open(image.path())
        .unwrap();
    // A valid header whose entries cannot be read, since they lie behind the end.
    let mut header = [0; 512];
    disk.read_exact_at(&mut header, 512).unwrap();
    header[72..80].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    header[16..20].fill(0);
    let checksum = crc32(&header[..92]);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    disk.write_all_at(&header, 512).unwrap();
    assert!(gpt::read(&disk, 512, 1).is_err());
    assert_eq!(image.read().len(), 4);
    // Neither: that is not a disk without labels.
    disk.write_all_at(&[0; 512], 200 * MIB - 512).unwrap();
    assert!(labels(Path::new(&image.path()), 512).is_err());
}

/// What protects a disk may stand behind the usual 128 entries.
#[test]
fn every_entry_of_a_long_gpt_counts() {
    let image = Image::new(64 * MIB);
    let made = format!(
        "sgdisk -S 256 -n 1:2048:+1M -c 1:one -n 130:0:+1M -c 130:KEEP {}",
        image.path()
    );
    tool("gdisk", &made);
    let found = image.read();
    let numbers: Vec<u32> = found.iter().map(|p| p.number).collect();
    assert_eq!(numbers, [1, 130]);
    assert_eq!(
        labels(Path::new(&image.path()), 512).unwrap(),
        ["one", "KEEP"]
    );
}

#[test]
fn labels_tell_none_from_unreadable() {
    assert_eq!(
        labels(Path::new(&Image::new(MIB).path()), 512).unwrap(),
        [""; 0]
    );
    assert!(labels(Path::new("/nonexistent"), 512).is_err());
    let note = Note::default();
    let eof = Err(io::ErrorKind::UnexpectedEof.into());
    assert!(note.take(eof).is_err());
    assert!(note.0.take().is_none());
    assert!(note.take(Err(io::Error::from_raw_os_error(5))).is_err());
    assert!(note.result().is_err());
}

#[test]
fn a_damaged_primary_gpt_is_read_from_its_backup() {
    let image = gpt_disk();
    let disk = File::options().write(true).open(image.path()).unwrap();
    disk.write_all_at(&[0x11], 1024 + 40).unwrap();
    assert_eq!(image.read().len(), 4);
    // The backup too: readable, but nobody can say what it held.
    let backup_entries = 200 * MIB - 33 * 512;
    disk.write_all_at(&[0x11], backup_entries + 40).unwrap();
    let damaged = "both copies of its partition table (GPT) are damaged";
    let told = labels(Path::new(&image.path()), 512).unwrap_err();
    assert_eq!(told.to_string(), damaged);
    // No header at all where the protective MBR promises one.
    disk.write_all_at(&[0; 512], 512).unwrap();
    disk.write_all_at(&[0; 512], 200 * MIB - 512).unwrap();
    let told = labels(Path::new(&image.path()), 512).unwrap_err();
    assert_eq!(told.to_string(), damaged);
    disk.write_all_at(&[0; 1024], 0).unwrap();
    assert_eq!(image.read(), []);
}

#[test]
fn reads_an_mbr_with_logical_partitions() {
    use std::io::Write as _;
    let image = Image::new(64 * MIB);
    let mut sfdisk = Command::new("/usr/sbin/sfdisk")
        .args(["-q", &image.path()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("sfdisk: install the package fdisk");
    let script = "label: dos\nstart=2048,size=8192,type=83\nstart=10240,size=65536,type=5\nstart=12288,size=4096,type=83\nstart=18432,size=4096,type=c\n";
    sfdisk
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(sfdisk.wait().unwrap().success());
    image.fill(
        12288 * 512,
        2 * MIB,
        "dosfstools",
        "mkfs.vfat -F 12 -n LOGICAL FILE",
    );
    let found = image.read();
    let places: Vec<_> = found
        .iter()
        .map(|p| (p.number, p.start / 512, p.length / 512))
        .collect();
    assert_eq!(
        places,
        [(1, 2048, 8192), (5, 12288, 4096), (6, 18432, 4096)]
    );
    assert_eq!(names(&found[1]), (5, None, Some("vfat"), Some("LOGICAL")));
}

#[test]
fn nothing_is_found_on_an_empty_or_tiny_disk() {
    assert_eq!(Image::new(MIB).read(), []);
    assert!(read(&File::open(Image::new(100).path()).unwrap(), 512).is_err());
}

#[test]
fn finds_the_one_that_is_meant() {
    let partitions = gpt_disk().read();
    let label = |text: &str| PartitionRef {
        label: Some(text.into()),
        ..PartitionRef::default()
    };
    let uuid = PartitionRef {
        uuid: Some("11223344-5566-7788-99AA-BBCCDDEEFF00".into()),
        ..PartitionRef::default()
    };
    let number = |n| PartitionRef {
        number: Some(n),
        ..PartitionRef::default()
    };
    let contradiction = PartitionRef {
        number: Some(1),
        ..label("root")
    };
    for (wanted, expected) in [
        (label("OEM"), Ok(1)),
        (label("ESP"), Ok(1)),
        (label("root"), Ok(2)),
        (label("root-a"), Ok(2)),
        (uuid, Ok(2)),
        (number(7), Ok(7)),
        (label("oem"), Err(FailureCode::Partition)),
        (number(4), Err(FailureCode::Partition)),
        (contradiction, Err(FailureCode::Partition)),
        (PartitionRef::default(), Err(FailureCode::BadOrder)),
    ] {
        let found = find(&partitions, &wanted, "vda");
        assert_eq!(
            found.map(|p| p.number).map_err(|f| f.code),
            expected,
            "{wanted:?}"
        );
    }
    let mut twice = partitions.clone();
    twice[2].name = Some("root".into());
    let failure = find(&twice, &label("root"), "vda").unwrap_err();
    assert!(
        failure.message.contains("vda has more than one partition"),
        "{}",
        failure.message
    );
    assert!(
        failure.message.contains("1 named ESP vfat labelled OEM"),
        "{}",
        failure.message
    );
}
