//! The kernel and initramfs of `ipxe/initramfs.sh` in a virtual machine, under software
//! emulation: what a server sees after iPXE has done its work.

use std::process::{Command, Stdio};

use anneal_protocol::agent::{AgentAction, Inventory, Outcome, PartitionRef, StreamResult, Verify};
use base64::Engine as _;

use crate::daemon::{MIB, by_serial, daemon, no_images, output, seal};
use crate::support::{QEMU_HOST, Then, eventually};
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

/// A raw disk with one FAT partition labelled CIDATA, as cloud images are configured by.
fn fat_disk() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = (
        disk(dir.path(), "whole", 40 * MIB),
        disk(dir.path(), "part", 32 * MIB),
    );
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .status();
        let status =
            status.unwrap_or_else(|e| panic!("{program}: {e}; install gdisk and dosfstools"));
        assert!(status.success(), "{program}");
    };
    run(
        "/usr/sbin/sgdisk",
        &["-n", "1:2048:+32M", "-c", "1:seed", whole.to_str().unwrap()],
    );
    run(
        "/usr/sbin/mkfs.vfat",
        &["-n", "CIDATA", part.to_str().unwrap()],
    );
    let mut raw = std::fs::read(&whole).unwrap();
    let part = std::fs::read(&part).unwrap();
    raw[MIB as usize..][..part.len()].copy_from_slice(&part);
    raw
}

/// The main road on a machine of its own: enrolment through QEMU's network, image onto a virtio
/// disk with a protected neighbour, a file into FAT, power off.
#[test]
fn installs_a_machine_and_switches_it_off() {
    let raw = fat_disk();
    let sealed = seal(&raw);
    let dir = tempfile::tempdir().unwrap();
    let root = disk(dir.path(), "root", 64 * MIB);
    let file = |path: &str, text: &str| AgentAction::WriteFile {
        disk: by_serial("ROOT-1"),
        partition: PartitionRef {
            label: Some("CIDATA".into()),
            ..PartitionRef::default()
        },
        path: path.into(),
        contents_base64: base64::engine::general_purpose::STANDARD.encode(text),
        mode: "0644".into(),
        uid: 0,
        gid: 0,
    };
    let daemon = daemon(
        vec![
            AgentAction::Inventory,
            sealed.stream("ROOT-1", Verify::Full),
            file("/user-data", "#cloud-config\n"),
            file("/sub/meta-data", "instance-id: r1n1\n"),
            AgentAction::PowerOff,
        ],
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
    let ended = eventually("power off", || machine.child.try_wait().unwrap());
    assert!(ended.success());
    let outcomes = daemon.outcomes(5);
    let inventory: Inventory = output(&outcomes[0]);
    assert_eq!(inventory.manufacturer.as_deref(), Some("QEMU"));
    assert_eq!(inventory.firmware, "bios");
    assert_eq!(inventory.nics[0].driver.as_deref(), Some("virtio_net"));
    let streamed: StreamResult = output(&outcomes[1]);
    assert_eq!(streamed.disk, "vda");
    assert!(streamed.read_back.is_some());
    assert_eq!(outcomes[4], Outcome::Leaving);
    for (path, text) in [
        ("::/user-data", "#cloud-config\n"),
        ("::/sub/meta-data", "instance-id: r1n1\n"),
    ] {
        let output = Command::new("mtype")
            .args(["-i", &format!("{}@@1M", root.display()), path])
            .output()
            .expect("mtype: install mtools");
        assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }
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
    eventually("restart", || machine.child.try_wait().unwrap());
}
