//! The kernel and initramfs of `ipxe/initramfs.sh` in a virtual machine, under software
//! emulation: what a server sees after iPXE has done its work.

use std::path::Path;
use std::process::Command;

use anneal_agent::disk::adv::{self, COPY, Record};
use anneal_protocol::agent::{
    AgentAction, FailureCode, Inventory, MetaValue, Outcome, PartitionRef, StreamResult,
    TalosMetaResult, Verify,
};
use base64::Engine as _;

use crate::daemon::{MIB, by_serial, code, daemon, no_images, output, seal};
use crate::support::{QEMU_HOST, Then};
use crate::vm::{Drive, Machine, disk, words};

/// Drivers, disks, DHCP, and manners when nobody is there.
#[test]
fn boots_finds_its_hardware_and_waits_for_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (
        disk(dir.path(), "a", 300 * MIB),
        disk(dir.path(), "b", 200 * MIB),
    );
    let nobody = format!("https://{QEMU_HOST}:9");
    let mut machine = Machine::boot(
        &words(&nobody, &"cd".repeat(32)),
        &[
            Drive::new("virtio-blk-pci", &a, "ROOT-1"),
            Drive::new("nvme", &b, "DATA-2"),
        ],
    );
    machine.expect(&["anneal agent is PID 1"]);
    machine.expect(&["disk: nvme0n1 nvme 200.0MiB", "serial DATA-2"]);
    machine.expect(&["disk: vda virtio 300.0MiB", "serial ROOT-1"]);
    // No anneal.ip: QEMU's own DHCP server answers.
    machine.expect(&["network is up", "10.0.2.15/24", "10.0.2.2"]);
    machine.expect(&["cannot enroll", "refused"]);
    machine.expect(&["cannot enroll", "again_in_ms=1000"]);
    assert!(
        !machine.seen.contains("module does not load"),
        "{}",
        machine.seen
    );
    assert!(!machine.seen.contains("panicked"), "{}", machine.seen);
}

/// The file systems of [`full_disk`]: label, first MiB, length in MiB, and how it is made.
const PARTS: [(&str, u64, u64, &str); 4] = [
    ("CIDATA", 1, 32, "mkfs.vfat -n CIDATA FILE"),
    ("boot", 33, 16, "mkfs.ext4 -q -L boot FILE"),
    ("state", 49, 32, "mkfs.xfs -q --unsupported -L state FILE"),
    ("OEM", 81, 112, "mkfs.btrfs -q -L OEM FILE"),
];

/// First MiB of its partition `META`, which is one MiB long.
const META: u64 = 193;

fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let ran = Command::new(words[0])
        .args(&words[1..])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|e| panic!("{line}: {e}; see PACKAGES in scripts/setup.sh"));
    assert!(ran.status.success(), "{line}: {ran:?}");
}

/// A raw disk with one partition of each kind that installed systems are configured by; `CIDATA`
/// and `boot` have a boot loader entry.
fn full_disk() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let whole = disk(dir.path(), "whole", 196 * MIB).display().to_string();
    for (number, (label, start, length, mkfs)) in (1..).zip(PARTS) {
        run(&format!(
            "sgdisk -n {number}:{start}M:+{length}M -c {number}:part-{label} {whole}"
        ));
        let part = disk(dir.path(), label, length * MIB).display().to_string();
        run(&mkfs.replace("FILE", &part));
        let entry = dir.path().join("entry");
        std::fs::write(&entry, "title x\noptions quiet rw\n").unwrap();
        if label == "CIDATA" {
            run(&format!("mmd -i {part} ::loader ::loader/entries"));
            let entry = entry.display();
            run(&format!("mcopy -i {part} {entry} ::loader/entries/y.conf"));
        }
        if label == "boot" {
            let made = format!(
                "mkdir loader\nmkdir loader/entries\nwrite {} loader/entries/x.conf\nsymlink kernel /loader/entries/x.conf\n",
                entry.display()
            );
            let script = dir.path().join("script");
            std::fs::write(&script, made).unwrap();
            run(&format!("debugfs -w -f {} {part}", script.display()));
        }
        run(&format!(
            "dd if={part} of={whole} bs=1M seek={start} conv=notrunc,sparse status=none"
        ));
    }
    run(&format!("sgdisk -n 5:{META}M:+1M -c 5:META {whole}"));
    std::fs::read(&whole).unwrap()
}

/// What files of a partition hold, by another kernel's mount (FAT: by mtools).
fn read_back(disk: &Path, part: usize, paths: &str) -> String {
    let (label, start, length, _) = PARTS[part];
    let script = if label == "CIDATA" {
        format!(
            "for f in {paths}; do mtype -i {}@@{start}M ::$f; done",
            disk.display()
        )
    } else {
        format!(
            "mount -o ro,loop,offset={},sizelimit={} {} /mnt; cd /mnt; cat {paths}; stat -c %a:%u:%g {paths}",
            start * MIB,
            length * MIB,
            disk.display()
        )
    };
    let ran = Command::new("unshare")
        .args(["--mount", "sh", "-euc", &script])
        .output()
        .expect("unshare: install util-linux");
    assert!(ran.status.success(), "{script}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// What the agent is to do, from hardware report to power off.
fn install(image: AgentAction) -> Vec<AgentAction> {
    let label = |label: &str| PartitionRef {
        fs_label: Some(label.into()),
        ..PartitionRef::default()
    };
    let file = |part: usize, path: &str, text: &str| AgentAction::WriteFile {
        disk: by_serial("ROOT-1"),
        partition: label(PARTS[part].0),
        path: path.into(),
        contents_base64: base64::engine::general_purpose::STANDARD.encode(text),
        mode: "0640".into(),
        directory_mode: None,
        uid: 12,
        gid: 34,
    };
    let arguments = |part: usize| AgentAction::BootArguments {
        disk: by_serial("ROOT-1"),
        partition: Some(label(PARTS[part].0)),
        add: vec!["console=ttyS0".into()],
        remove: vec!["quiet".into()],
    };
    vec![
        AgentAction::Inventory,
        image,
        file(0, "/user-data", "#cloud-config\n"),
        file(0, "/sub/meta-data", "instance-id: r1n1\n"),
        file(1, "/ignition/config.ign", "ext4\n"),
        file(2, "/config.yaml", "xfs\n"),
        file(3, "/config.ign", "btrfs\n"),
        arguments(0),
        arguments(1),
        AgentAction::WriteTalosMeta {
            disk: by_serial("ROOT-1"),
            values: vec![MetaValue {
                key: 0xa,
                contents_base64: base64::engine::general_purpose::STANDARD.encode("links: []\n"),
            }],
        },
        AgentAction::Kexec {
            disk: by_serial("ROOT-1"),
            partition: label(PARTS[1].0),
            kernel: "/kernel".into(),
            initramfs: None,
            cmdline: "quiet".into(),
        },
        AgentAction::PowerOff,
    ]
}

/// The main road on a machine of its own: enrolment through QEMU's network, image onto a virtio
/// disk, a file into every file system, kernel arguments, Talos' META, a link to a text that is no kernel to be started,
/// power off. The kernel and its modules are those that machines get.
#[test]
fn installs_a_machine_and_switches_it_off() {
    let sealed = seal(&full_disk());
    let dir = tempfile::tempdir().unwrap();
    let root = disk(dir.path(), "root", 256 * MIB);
    let daemon = daemon(
        install(sealed.stream("ROOT-1", Verify::Full)),
        sealed.key.clone(),
        sealed.serve(|_| (u64::MAX, Then::Cut)),
    );
    let url = format!("https://{QEMU_HOST}:{}", daemon.server.address.port());
    let mut machine = Machine::boot(
        &words(&url, &daemon.ca),
        &[Drive::new("virtio-blk-pci", &root, "ROOT-1")],
    );
    machine.expect(&["enrolled"]);
    machine.expect(&["leaving: power-off"]);
    assert!(machine.ended().success());
    let outcomes = daemon.outcomes(12);
    let inventory: Inventory = output(&outcomes[0]);
    assert_eq!(inventory.manufacturer.as_deref(), Some("QEMU"));
    assert_eq!(inventory.firmware, "bios");
    assert_eq!(inventory.nics[0].driver.as_deref(), Some("virtio_net"));
    let streamed: StreamResult = output(&outcomes[1]);
    assert_eq!(streamed.disk, "vda");
    assert!(streamed.read_back.is_some());
    let meta: TalosMetaResult = output(&outcomes[9]);
    assert_eq!((meta.partition.as_str(), meta.fresh), ("vda5", true));
    let bytes = std::fs::read(&root).unwrap();
    let copies = [0, COPY].map(|copy| bytes[(META * MIB) as usize + copy..][..COPY].to_vec());
    let mut record = Record::default();
    record.set(0xa, b"links: []\n".to_vec());
    assert!(copies[0] == copies[1]);
    assert_eq!(adv::read(&copies), Some((0, record)));
    assert_eq!(code(&outcomes[10]), FailureCode::Kexec);
    let told = format!("{:?}", outcomes[10]);
    assert!(
        told.contains("cannot load /kernel on vda2 (Exec format error"),
        "{told}"
    );
    assert_eq!(outcomes[11], Outcome::Leaving);
    for (part, paths, expected) in [
        (
            0,
            "user-data sub/meta-data",
            "#cloud-config\ninstance-id: r1n1\n",
        ),
        (
            0,
            "loader/entries/y.conf",
            "title x\noptions rw console=ttyS0\n",
        ),
        (1, "ignition/config.ign", "ext4\n640:12:34\n"),
        (
            1,
            "loader/entries/x.conf",
            "title x\noptions rw console=ttyS0\n644:0:0\n",
        ),
        (2, "config.yaml", "xfs\n640:12:34\n"),
        (3, "config.ign", "btrfs\n640:12:34\n"),
    ] {
        assert_eq!(read_back(&root, part, paths), expected, "{outcomes:?}");
    }
    // The only place where every test run sees what the agent leaves of a FAT.
    let fat = dir.path().join("fat").display().to_string();
    let (_, start, length, _) = PARTS[0];
    run(&format!(
        "dd if={} of={fat} bs=1M skip={start} count={length} status=none",
        root.display()
    ));
    run(&format!("fsck.vfat -n {fat}"));
}

/// A token that was used before: the machine says so and restarts, to fetch a new one.
#[test]
fn a_refused_machine_tells_its_console_and_restarts() {
    let daemon = daemon(Vec::new(), String::new(), no_images());
    let url = format!(
        "https://{QEMU_HOST}:{}/refuse",
        daemon.server.address.port()
    );
    let mut machine = Machine::boot(&words(&url, &daemon.ca), &[]);
    machine.expect(&["disk: none"]);
    machine.expect(&["cannot enroll r1n1", "refused with 404"]);
    machine.expect(&["restarting in 30 seconds"]);
    // With -no-reboot a restart ends QEMU.
    machine.ended();
}
