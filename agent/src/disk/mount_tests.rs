//! Files written to each file system that the agent mounts, looked at afterwards through the
//! kernel's own mount and each file system's own checker.

use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid};

use super::super::files::{NewFile, components, write_on};
use super::super::loops::{FILE_SYSTEMS, Loop, known, labelled, script, tool};
use super::*;

fn new(path: &str, contents: &[u8], mode: u32) -> NewFile {
    NewFile {
        path: components(path).unwrap(),
        contents: contents.to_vec(),
        mode: Mode::from_raw_mode(mode),
        directory_mode: Mode::from_raw_mode(0o700),
        owner: (Uid::from_raw(1234), Gid::from_raw(567)),
        attributes: Vec::new(),
    }
}

fn put(disk: &Loop, path: &str, contents: &[u8]) -> Result<(), StepFailure> {
    let file = new(path, contents, 0o640);
    write_on(&disk.chosen(), &labelled("L"), path, &file).map(drop)
}

/// What is in a file of the file system, or where a link leads, with mode and owner.
fn look(node: &Path, path: &str) -> String {
    script(
        node,
        &format!("mount -o ro \"$1\" /mnt; cat /mnt{path}; echo; stat -c %a:%u:%g /mnt{path}"),
    )
}

fn check(kind: &str, node: &Path) {
    let line = match kind {
        "vfat" => "fsck.vfat -n",
        "ext4" => "e2fsck -fn",
        "xfs" => "xfs_repair -n",
        _ => "btrfs check --readonly",
    };
    script(node, &format!("{line} \"$1\" >&2"));
}

/// The kernel lets a mounted device be opened for itself by nobody. A program that another test
/// starts holds every descriptor until it has become that program, this mount's too.
fn is_unmounted(node: &Path) -> bool {
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let patience = Instant::now() + Duration::from_secs(20);
    while Instant::now() < patience {
        if rustix::fs::open(node, flags, Mode::empty()).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// A system with SELinux may not read what has lost its label.
#[test]
fn what_replaces_a_file_has_its_label_and_new_directories_their_mode() {
    for (kind, mib, package, mkfs) in &FILE_SYSTEMS[1..] {
        let disk = Loop::new(&format!("an-agent-label-{kind}"), *mib, package, mkfs);
        let node = disk.partition();
        script(
            &node,
            "mount \"$1\" /mnt; echo old >/mnt/old; setfattr -n security.selinux -v boot_t /mnt/old",
        );
        put(&disk, "/old", b"new").unwrap();
        put(&disk, "/a/b/new", b"new").unwrap();
        let seen = script(
            &node,
            "mount -o ro \"$1\" /mnt; cd /mnt; cat old; getfattr --only-values -n security.selinux old; getfattr -d -m - a/b/new; stat -c ' %a' a a/b",
        );
        assert_eq!(seen, "newboot_t 700\n 700", "{kind}");
    }
}

#[test]
fn writes_every_file_system_and_leaves_it_whole() {
    for (kind, mib, package, mkfs) in known() {
        let disk = Loop::new(&format!("anneal-{kind}"), mib, package, mkfs);
        let node = disk.partition();
        put(&disk, "/a/b/config", b"old").unwrap();
        put(&disk, "/a/b/config", b"secret").unwrap();
        assert!(is_unmounted(&node), "{kind}: still mounted");
        check(kind, &node);
        let owner = if kind == "vfat" {
            "755:0:0"
        } else {
            "640:1234:567"
        };
        assert_eq!(
            look(&node, "/a/b/config"),
            format!("secret\n{owner}"),
            "{kind}"
        );
        if kind == "vfat" {
            continue;
        }
        // A directory of the image that leads to this machine's own, and a file that does.
        script(
            &node,
            "mount \"$1\" /mnt; ln -s /etc /mnt/abs; ln -s ../../../../etc /mnt/up; mkdir /mnt/etc; ln -s /etc/passwd /mnt/passwd",
        );
        let before = std::fs::read("/etc/passwd").unwrap();
        for (path, there) in [
            ("/abs/anneal-x", "/etc/anneal-x"),
            ("/up/anneal-y", "/etc/anneal-y"),
            ("/passwd", "/passwd"),
        ] {
            put(&disk, path, b"inside").unwrap();
            assert_eq!(look(&node, there), "inside\n640:1234:567", "{kind} {path}");
        }
        assert_eq!(std::fs::read("/etc/passwd").unwrap(), before);
        for name in ["anneal-x", "anneal-y"] {
            assert!(!Path::new("/etc").join(name).exists(), "{kind}: out of it");
        }
        check(kind, &node);
    }
}

#[test]
fn a_partition_that_is_full_is_told_and_left_as_it_was() {
    for (kind, mib, package, mkfs) in known() {
        // 300 MiB at once would be much memory for a test.
        if kind == "xfs" {
            continue;
        }
        let disk = Loop::new(&format!("anneal-full-{kind}"), mib, package, mkfs);
        let node = disk.partition();
        put(&disk, "/config", b"old").unwrap();
        let large = vec![b'x'; usize::try_from(mib + 1).unwrap() << 20];
        let failure = put(&disk, "/config", &large).unwrap_err();
        assert_eq!(failure.code, FailureCode::FileSystem, "{failure:?}");
        let told = format!(
            "is full: /config with its {} bytes does not fit",
            large.len()
        );
        assert!(failure.message.contains(&told), "{kind}: {failure:?}");
        assert!(look(&node, "/config").starts_with("old"), "{kind}");
        let left = script(&node, "mount -o ro \"$1\" /mnt; ls -A /mnt");
        assert!(!left.contains(".anneal"), "{kind}: {left}");
        assert!(is_unmounted(&node), "{kind}: still mounted");
        put(&disk, "/config", b"new").unwrap();
        check(kind, &node);
    }
}

#[test]
fn a_file_system_that_may_not_be_written_is_refused() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
    let disk = Loop::new("anneal-read-only", mib, package, mkfs);
    let node = disk.partition();
    tool(
        "e2fsprogs",
        &format!("tune2fs -O read-only {}", node.display()),
    );
    let failure = put(&disk, "/config", b"x").unwrap_err();
    assert_eq!(failure.code, FailureCode::FileSystem, "{failure:?}");
    assert!(
        !failure.retryable && failure.message.contains("read-only"),
        "{failure:?}"
    );
    let squashed = Loop::new(
        "anneal-squashed",
        4,
        "squashfs-tools",
        "mksquashfs /usr/lib/os-release FILE -noappend -quiet -no-progress",
    );
    let failure = write_on(
        &squashed.chosen(),
        &labelled("root"),
        "/x",
        &new("/x", b"", 0o600),
    )
    .unwrap_err();
    assert!(
        failure
            .message
            .contains("no file system that the agent knows"),
        "{failure:?}"
    );
}

/// Images have fixed UUIDs: every disk that one was written to has a Btrfs with the same one.
#[test]
fn btrfs_of_the_same_uuid_on_two_disks() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[3];
    for more in ["", "compress=zlib", "compress=zstd"] {
        let disk = Loop::new("anneal-btrfs-one", mib, package, mkfs);
        let other = disk.copy("anneal-btrfs-two");
        if !more.is_empty() {
            let (_, value) = more.split_once('=').unwrap();
            for disk in [&disk, &other] {
                script(
                    &disk.partition(),
                    &format!("mount \"$1\" /mnt; btrfs property set /mnt compression {value}"),
                );
            }
        }
        // The kernel remembers the other one as newer.
        for _ in 0..3 {
            put(&other, "/config.ign", b"other").unwrap();
        }
        let text = "compressible ".repeat(10_000);
        put(&disk, "/config.ign", text.as_bytes()).unwrap();
        assert!(
            look(&disk.partition(), "/config.ign").starts_with(&text),
            "{more}"
        );
        check("btrfs", &disk.partition());
    }
}

#[test]
fn finds_partitions_by_what_their_file_systems_say() {
    for (kind, mib, package, mkfs) in FILE_SYSTEMS {
        let disk = Loop::new(&format!("anneal-find-{kind}"), mib, package, mkfs);
        let node = disk.partition();
        let uuid = tool(
            "util-linux",
            &format!("blkid -p -o value -s UUID {}", node.display()),
        );
        let by = |wanted: PartitionRef| {
            super::partition::locate(&disk.chosen().disk, &wanted).map(|found| found.0.number)
        };
        let fs_label = |label: &str| PartitionRef {
            fs_label: Some(label.to_owned()),
            ..PartitionRef::default()
        };
        assert_eq!(by(fs_label("L")).unwrap(), 1, "{kind}");
        // The partition's name is not the file system's label.
        assert_eq!(
            by(fs_label("root")).unwrap_err().code,
            FailureCode::Partition
        );
        let wanted = PartitionRef {
            uuid: Some(uuid.clone()),
            ..PartitionRef::default()
        };
        assert_eq!(by(wanted).unwrap(), 1, "{kind} {uuid}");
        let wanted = PartitionRef {
            type_guid: Some("0FC63DAF-8483-4772-8E79-3D69D8477DE4".to_owned()),
            ..PartitionRef::default()
        };
        assert_eq!(by(wanted).unwrap(), 1, "{kind}");
    }
}

/// Whoever looks for a partition passes over what the kernel cannot mount, and not over what it cannot mount now.
#[test]
fn what_cannot_be_mounted_now_is_told_from_what_cannot_be_mounted() {
    for errno in [Errno::BUSY, Errno::IO, Errno::NOMEM] {
        let failure = refused("ext4", "vda2", errno);
        assert_eq!(failure.code, FailureCode::DiskIo, "{failure:?}");
        assert!(
            failure.retryable && failure.message.starts_with("cannot mount ext4 on vda2: "),
            "{failure:?}"
        );
    }
    for errno in [Errno::INVAL, Errno::BADMSG, Errno::ROFS] {
        let failure = refused("ext4", "vda2", errno);
        assert_eq!(failure.code, FailureCode::FileSystem, "{failure:?}");
    }
}
