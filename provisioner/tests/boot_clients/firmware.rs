//! Real firmware in QEMU (software emulation): OVMF and SeaBIOS load iPXE from our TFTP server,
//! iPXE fetches its script from our HTTP server, and the machine goes on to its own disk.
//!
//! DHCP comes from dnsmasq, so that this tests boot files and scripts alone. Everything runs in
//! network and process namespaces of its own, which vanish with the test however it ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use provisioner::event::kind;
use serde_json::json;
use tokio::time::Instant;

use super::rack::{MAC, MACHINE, Rack};

/// Set in the process that already runs in its namespaces.
const INSIDE: &str = "ANNEAL_TEST_INSIDE_NAMESPACE";
/// One boot of an emulated machine on a busy host.
const BOOT: Duration = Duration::from_secs(180);
/// What the disk of the machine says on the serial console once it was booted.
const DISK_SAYS: &str = "the disk was booted";

#[test]
fn uefi_pxe_loads_ipxe_and_the_script_goes_on_to_the_disk() {
    in_namespace(
        "uefi_pxe_loads_ipxe_and_the_script_goes_on_to_the_disk",
        |boot| {
            let code = "/usr/share/OVMF/OVMF_CODE_4M.fd";
            let vars = boot.dir.join("vars.fd");
            std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars)
                .expect("install the package ovmf");
            // A removable-media boot loader that speaks: iPXE, with a script beside it.
            let esp = boot.dir.join("esp");
            std::fs::create_dir_all(esp.join("EFI/BOOT")).unwrap();
            std::fs::write(esp.join("EFI/BOOT/BOOTX64.EFI"), boot_program("ipxe.efi")).unwrap();
            let script = format!("#!ipxe\necho {DISK_SAYS}\npoweroff || sleep 600\n");
            std::fs::write(esp.join("autoexec.ipxe"), script).unwrap();
            Machine {
                file: "snponly.efi",
                qemu: vec![
                    "-machine".into(),
                    "q35".into(),
                    "-drive".into(),
                    format!("if=pflash,format=raw,readonly=on,file={code}"),
                    "-drive".into(),
                    format!("if=pflash,format=raw,file={}", vars.display()),
                    "-drive".into(),
                    format!("if=none,id=disk,format=raw,file=fat:rw:{}", esp.display()),
                    "-fw_cfg".into(),
                    "name=opt/org.tianocore/IPv6PXESupport,string=n".into(),
                ],
            }
        },
    );
}

#[test]
fn bios_pxe_loads_ipxe_and_the_script_goes_on_to_the_disk() {
    in_namespace(
        "bios_pxe_loads_ipxe_and_the_script_goes_on_to_the_disk",
        |boot| {
            let disk = boot.dir.join("disk.img");
            std::fs::write(&disk, boot_sector()).unwrap();
            Machine {
                file: "undionly.kpxe",
                qemu: vec![
                    "-machine".into(),
                    "pc".into(),
                    "-drive".into(),
                    format!("if=none,id=disk,format=raw,file={}", disk.display()),
                ],
            }
        },
    );
}

struct Boot {
    dir: PathBuf,
}

/// What differs between the two kinds of firmware.
struct Machine {
    file: &'static str,
    qemu: Vec<String>,
}

/// Runs this same test again inside new namespaces, and there `machine` on a wire of its own.
fn in_namespace(test: &str, machine: impl FnOnce(&Boot) -> Machine) {
    if std::env::var_os(INSIDE).is_none() {
        // Fetched here, where there is a network.
        boot_program("ipxe.efi");
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--pid", "--fork"])
            .args(["--kill-child", "--mount-proc"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &format!("boot_clients::firmware::{test}"),
                "--nocapture",
            ])
            .env(INSIDE, "1")
            .status()
            .expect("setpriv and unshare: install the package util-linux");
        assert!(
            status.success(),
            "the test failed in its namespace, see above"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let boot = Boot {
        dir: dir.path().to_owned(),
    };
    let machine = machine(&boot);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(boots_its_disk(&boot, machine));
}

async fn boots_its_disk(boot: &Boot, machine: Machine) {
    for command in [
        "ip link set lo up",
        "ip tuntap add dev tap0 mode tap",
        "ip address add 10.78.0.1/24 dev tap0",
        "ip link set tap0 up",
    ] {
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status();
        assert!(
            status.expect("install the package iproute2").success(),
            "{command} failed: this test needs root and /dev/net/tun"
        );
    }
    let files = vec![(machine.file, boot_program(machine.file))];
    let mut rack = Rack::start([10, 78, 0, 1].into(), (69, 8080), [10, 78, 0, 11], files).await;
    let serial = Console(boot.dir.join("serial.log"));
    let dhcp = dnsmasq(machine.file).await;
    let _qemu = qemu(&machine, &serial.0);

    let transfer = rack.event_within(kind::TFTP, BOOT).await;
    assert_eq!(transfer.machine.as_deref(), Some(MACHINE));
    assert_eq!(transfer.data["file"], json!(machine.file));
    assert_eq!(transfer.data["outcome"], json!("complete"), "{transfer:?}");
    // QEMU's ROM is an iPXE too: what it is told differs by time, not by who asks.
    drop(dhcp);
    let script = format!("http://10.78.0.1:8080/boot/script/{}", MAC.hyphenated());
    let _dhcp = dnsmasq(&script).await;
    let script = rack.event_within(kind::BOOT_SCRIPT, BOOT).await;
    assert_eq!(script.machine.as_deref(), Some(MACHINE));
    assert_eq!(script.data["target"], json!("disk"));
    serial.says(DISK_SAYS).await;
    rack.stop().await;
}

/// The machine's serial console, shown when the test fails.
struct Console(PathBuf);

impl Console {
    fn text(&self) -> String {
        let log = std::fs::read(&self.0).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.chars()
            .filter(|c| !c.is_control() || *c == '\n')
            .collect()
    }

    /// Waits until it has said `text`.
    async fn says(&self, text: &str) {
        let deadline = Instant::now() + BOOT;
        while !self.text().contains(text) {
            assert!(Instant::now() < deadline, "no \"{text}\" on the console");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the console said:\n{}", self.text());
        }
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// DHCP that tells everybody to boot `file`, once it serves.
async fn dnsmasq(file: &str) -> Running {
    let child = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
        .args([
            "--user=root",
            "--leasefile-ro",
            "--interface=tap0",
            "--bind-interfaces",
            // None: all dnsmasq of this host would race for one file, and the loser ends.
            "--pid-file",
        ])
        .args([
            "--dhcp-range=10.78.0.50,10.78.0.60",
            "--log-facility=/dev/null",
        ])
        .arg(format!("--dhcp-host={MAC},10.78.0.11"))
        // Option 175.176: no proxyDHCP server is coming, iPXE need not wait for one.
        .args(["--dhcp-no-override", "--dhcp-option=encap:175,176,1b"])
        .arg(format!("--dhcp-boot=tag:!http,{file},,10.78.0.1"))
        // After PXE, OVMF tries HTTP boot on the same card before it goes on to the disk: let
        // that fail at once.
        .args([
            "--dhcp-vendorclass=set:http,HTTPClient",
            "--dhcp-option-force=tag:http,60,HTTPClient",
            "--dhcp-boot=tag:http,http://10.78.0.1:8080/boot/nothing",
        ])
        .stdin(Stdio::null())
        .spawn()
        .expect("install the package dnsmasq-base");
    let mut running = Running(child);
    let deadline = Instant::now() + BOOT;
    // Port 67, in this namespace.
    while !std::fs::read_to_string("/proc/net/udp").is_ok_and(|table| table.contains(":0043 ")) {
        let ended = running.0.try_wait().unwrap();
        assert!(ended.is_none(), "dnsmasq ended, see above: {ended:?}");
        assert!(Instant::now() < deadline, "dnsmasq does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running
}

fn qemu(machine: &Machine, serial: &Path) -> Running {
    let child = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-m",
            "512",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-monitor",
            "none",
            "-serial",
            &format!("file:{}", serial.display()),
        ])
        .args(["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"])
        .args([
            "-device",
            &format!("virtio-net-pci,netdev=net,mac={MAC},bootindex=1"),
        ])
        .args(["-device", "virtio-blk-pci,drive=disk,bootindex=2"])
        .args([
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng",
        ])
        .args(&machine.qemu)
        .stdin(Stdio::null())
        .spawn()
        .expect("install the package qemu-system-x86");
    Running(child)
}

/// One of the programs that `ipxe/fetch.sh` gets; kept between runs.
fn boot_program(name: &str) -> Bytes {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("netboot");
    if std::env::var_os(INSIDE).is_none() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ipxe/fetch.sh");
        let status = Command::new(&script).arg(&dir).status();
        assert!(status.unwrap().success(), "{} failed", script.display());
    }
    Bytes::from(std::fs::read(dir.join(name)).unwrap())
}

/// A master boot record that says [`DISK_SAYS`] on the first serial port, then halts.
fn boot_sector() -> Vec<u8> {
    let code: [u8; 22] = [
        0xfc, // cld
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xbe, 0x16, 0x7c, // mov si, 0x7c16: the text behind the code
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        // next:
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz halt
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        // halt:
        0xf4, // hlt
        0xeb, 0xfd, // jmp halt
    ];
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(&code);
    let text = &mut disk[code.len()..];
    text[..DISK_SAYS.len()].copy_from_slice(DISK_SAYS.as_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}
