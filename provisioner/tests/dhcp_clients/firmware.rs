//! What real firmware makes of our answers: QEMU's iPXE ROM and EDK2 (OVMF), without acceleration.
//! A test ends when the firmware asks for the boot file that it was told.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::mpsc::{self, Receiver, Sender};

use crate::netns::{Namespace, PATIENCE, Running};
use crate::site::{MAC, Site, US};
use provisioner::event::kind;

/// Starts a machine on the wire of a fresh server and gives back what it asks for first, by TFTP
/// (`tftp <file>`) or HTTP (`<method> <path>`).
fn first_request(site: &Site, machine: &[&str]) -> String {
    site.wire.ip("addr flush dev srv0");
    site.wire.ip("link add br0 type bridge");
    site.wire.ip("addr add 10.77.0.1/24 dev br0");
    site.wire.ip("tuntap add tap0 mode tap");
    for port in ["srv0", "tap0"] {
        site.wire.ip(&format!("link set {port} master br0 up"));
    }
    site.wire.ip("link set br0 up");
    let server = site.serve_with(|config| config.interface = "br0".to_owned());
    let requests = listen(&site.wire);
    let mut qemu = site.wire.command("qemu-system-x86_64", "qemu-system-x86");
    qemu.args([
        "-accel",
        "tcg",
        "-m",
        "256",
        "-display",
        "none",
        "-nodefaults",
    ])
    .args(["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"])
    .args(["-object", "rng-random,id=r0,filename=/dev/urandom"])
    .args(["-device", "virtio-rng-pci,rng=r0"])
    .args(machine);
    let _machine = Running::start(&mut qemu);
    let request = requests
        .recv_timeout(PATIENCE)
        .expect("the firmware asks for its boot file");
    // Until all that happened is stored.
    server.end();
    request
}

/// Listens where boot files would be; nothing is served.
fn listen(wire: &Namespace) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let (tftp, http) = wire.run(async || {
        (
            UdpSocket::bind((US, 69)).unwrap(),
            TcpListener::bind((US, 8080)).unwrap(),
        )
    });
    let other = sender.clone();
    std::thread::spawn(move || hear_tftp(&tftp, &sender));
    std::thread::spawn(move || hear_http(&http, &other));
    receiver
}

fn hear_tftp(socket: &UdpSocket, heard: &Sender<String>) {
    let mut packet = [0; 1500];
    while let Ok(length) = socket.recv(&mut packet) {
        let name = packet[2..length].split(|byte| *byte == 0).next().unwrap();
        let line = format!("tftp {}", String::from_utf8_lossy(name));
        if heard.send(line).is_err() {
            return;
        }
    }
}

fn hear_http(listener: &TcpListener, heard: &Sender<String>) {
    while let Ok((mut stream, _)) = listener.accept() {
        let mut line = String::new();
        let _ = BufReader::new(&stream).read_line(&mut line);
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        let request = line.rsplit_once(' ').map_or(line.as_str(), |(r, _)| r);
        if heard.send(request.to_owned()).is_err() {
            return;
        }
    }
}

/// Arguments of a UEFI machine, whose variables live in the site's directory.
fn uefi(site: &Site) -> Vec<String> {
    const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
    const VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
    let vars = site.path("vars.fd");
    std::fs::copy(VARS, &vars)
        .unwrap_or_else(|error| panic!("{VARS}: {error}: install the package ovmf"));
    [
        "-machine",
        "q35",
        "-drive",
        &format!("if=pflash,format=raw,readonly=on,file={CODE}"),
        "-drive",
        &format!("if=pflash,format=raw,file={}", vars.display()),
        "-device",
        // Without QEMU's own ROM it is EDK2 that asks.
        &format!("virtio-net-pci,netdev=n0,mac={MAC},romfile="),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Arguments that leave only one kind of network boot to a UEFI machine.
fn without(kinds: &[&str]) -> Vec<String> {
    let switch = |kind: &&str| format!("name=opt/org.tianocore/{kind},string=n");
    let pair = |kind| ["-fw_cfg".to_owned(), switch(kind)];
    kinds.iter().flat_map(pair).collect()
}

/// What was acknowledged, each once: firmware that waited too long asks again.
fn stages(site: &Site) -> Vec<String> {
    let acks = site.events(kind::DHCP_ACK);
    let mut stages: Vec<String> = acks
        .iter()
        .map(|row| format!("{} {}", row.event.data["stage"], row.event.data["arch"]))
        .collect();
    stages.dedup();
    stages
}

#[test]
fn qemu_ipxe_fetches_its_script() {
    let site = Site::new("52:54:00:aa:00:99");
    let device = format!("virtio-net-pci,netdev=n0,mac={MAC}");
    let request = first_request(&site, &["-machine", "pc", "-boot", "n", "-device", &device]);
    assert_eq!(request, "GET /boot/script/52-54-00-aa-00-01");
    assert_eq!(stages(&site), ["\"ipxe\" \"bios\""]);
}

#[test]
fn edk2_pxe_fetches_its_loader_by_tftp() {
    let site = Site::new("52:54:00:aa:00:99");
    let machine = [uefi(&site), without(&["IPv6PXESupport"])].concat();
    let machine: Vec<&str> = machine.iter().map(String::as_str).collect();
    assert_eq!(first_request(&site, &machine), "tftp snponly.efi");
    assert_eq!(stages(&site), ["\"firmware\" \"efi-x64\""]);
}

#[test]
fn edk2_http_fetches_its_loader_by_http() {
    let site = Site::new("52:54:00:aa:00:99");
    let machine = [uefi(&site), without(&["IPv4PXESupport", "IPv6PXESupport"])].concat();
    let machine: Vec<&str> = machine.iter().map(String::as_str).collect();
    assert_eq!(first_request(&site, &machine), "HEAD /boot/snponly.efi");
    assert_eq!(stages(&site), ["\"firmware\" \"efi-x64-http\""]);
}
