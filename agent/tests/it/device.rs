//! Disks that cannot do everything: no direct I/O, no holes.

use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;

use anneal_agent::disk::device::{Aligned, BlockDevice, Disk, open_exclusive};

use crate::support::{Loop, eventually, own_mounts};

const MIB: u64 = 1 << 20;

/// A file in a file system that knows neither direct I/O nor holes; nothing of it is left when
/// this process ends, however it does.
fn plain_file(size: u64) -> (std::fs::File, PathBuf) {
    own_mounts();
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(program).args(args).arg(dir.path()).status();
        assert!(status.unwrap().success(), "{program}");
    };
    run("mount", &["-t", "ramfs", "none"]);
    let file = std::fs::File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(dir.path().join("disk"));
    run("umount", &["--lazy"]);
    let file = file.unwrap();
    file.set_len(size).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    (file, path.into())
}

/// Writes, zeros and reads in every shape that the writer uses.
fn exercise(disk: &BlockDevice) {
    let size = disk.size() as usize;
    let mut expected = vec![0x11_u8; size];
    let mut write = |at: usize, length: usize, byte: u8| {
        let mut data = Aligned::new(length);
        data.fill(byte);
        disk.write_at(at as u64, &data).unwrap();
        let end = (at + length).next_multiple_of(512);
        expected[at..end].fill(0);
        expected[at..at + length].fill(byte);
    };
    write(0, size, 0x11);
    write(8192, 4096, 0x22);
    // One sector, and an end inside a sector.
    write(512, 512, 0x33);
    write(65_536, 700, 0x44);
    let zero: Range<usize> = 131_072..(3 << 20);
    disk.zero(zero.start as u64..zero.end as u64).unwrap();
    expected[zero].fill(0);
    disk.flush().unwrap();
    let mut all = Aligned::new(size);
    disk.read_at(0, &mut all).unwrap();
    assert!(all[..] == expected[..]);
    let mut part = [0; 700];
    disk.read_at(65_536, &mut part).unwrap();
    assert_eq!(part, [0x44; 700]);
}

#[test]
fn without_direct_io_the_page_cache_serves() {
    let (file, path) = plain_file(4 * MIB);
    let direct = std::os::unix::fs::OpenOptionsExt::custom_flags(
        std::fs::File::options().read(true),
        rustix::fs::OFlags::DIRECT.bits().cast_signed(),
    )
    .open(&path);
    assert!(direct.is_err(), "this file system knows direct I/O");
    let opened = open_exclusive(&path).unwrap();
    exercise(&BlockDevice::new(opened, &path, 4 * MIB, 512));
    drop(file);
}

/// The device takes direct I/O, but not of what it is given: its sectors are larger than it said.
#[test]
fn direct_io_that_is_refused_is_done_through_the_page_cache() {
    let disk = Loop::with_sector("an-agent-direct.img", 4 * MIB, 4096);
    let node = PathBuf::from(&disk.node);
    let device = BlockDevice::new(open_exclusive(&node).unwrap(), &node, 4 * MIB, 512);
    exercise(&device);
    // From here on reading means the disk, not what was cached.
    device.drop_cache().unwrap();
    let mut sector = [0; 512];
    device.read_at(512, &mut sector).unwrap();
    assert_eq!(sector, [0x33; 512]);
}

/// Several threads find that out at the same time, and none of them fails.
#[test]
fn direct_io_is_refused_to_several_threads_at_once() {
    let disk = Loop::with_sector("an-agent-race.img", 4 * MIB, 4096);
    let node = PathBuf::from(&disk.node);
    for _ in 0..50 {
        // The one before is closed, but a process that another test just forked may still hold it.
        let opened = eventually("the device is free", || open_exclusive(&node).ok());
        let device = BlockDevice::new(opened, &node, 4 * MIB, 512);
        let together = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for number in 1..9_u64 {
                let (device, together) = (&device, &together);
                scope.spawn(move || {
                    let mut sector = [0; 512];
                    together.wait();
                    device.read_at(512 * number, &mut sector).unwrap();
                });
            }
        });
    }
}

/// A loop device over such a file: zeros have to be written.
#[test]
fn without_holes_zeros_are_written() {
    let (file, path) = plain_file(4 * MIB);
    let disk = Loop::over(&path);
    let node = PathBuf::from(&disk.node);
    exercise(&BlockDevice::new(
        open_exclusive(&node).unwrap(),
        &node,
        4 * MIB,
        512,
    ));
    drop(file);
}
