//! The built-in templates for Debian, rendered for an example machine.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Stdio};

use anneal_protocol::disk::DiskHints;
use provisioner::machine::{Cidr, Machine, Nic};
use provisioner::render::{Context, ImageFacts, PhoneHome, Renderer};

const RUN: &str = "0199f0a2-7c11-7000-8000-000000000001";
const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB+A/=\n-----END CERTIFICATE-----\n";

fn render(template: &str) -> String {
    let nic = |mac: &str, address: Option<&str>, boot| Nic {
        address: address.map(|ip| Cidr {
            ip: ip.parse().unwrap(),
            prefix: 24,
        }),
        boot,
        ..Nic::new(mac.parse().unwrap())
    };
    let machine = Machine {
        name: "r1n1".into(),
        rack: None,
        role: None,
        nics: vec![
            nic("52:54:00:AA:00:01", Some("10.77.0.11"), true),
            nic("52:54:00:aa:00:02", None, false),
        ],
        bmc: None,
        disk: DiskHints::default(),
        protected_disks: vec![],
        image: None,
        workflow: None,
        ..Machine::default()
    };
    let image = ImageFacts {
        id: "blake3:00ff".into(),
        name: "debian".into(),
        version: "12.9".into(),
        os: "debian".into(),
        size: 512,
        sha256: "00".into(),
        unproven: false,
    };
    let phone_home = PhoneHome {
        url: "https://10.77.0.1:8443/node/v1/phone-home".into(),
        token: "5ec7e7".into(),
    };
    let server = "https://10.77.0.1:8443";
    let context = Context::new(&machine, Some(&image), RUN, server, CA, phone_home);
    Renderer::new(None)
        .unwrap()
        .render(template, &context)
        .unwrap()
}

#[test]
fn network_config_finds_cards_by_mac() {
    assert_eq!(
        render("debian/network-config"),
        r#"version: 2
ethernets:
  card0:
    match:
      macaddress: "52:54:00:aa:00:01"
    dhcp4: false
    accept-ra: false
    addresses:
      - "10.77.0.11/24"
  card1:
    match:
      macaddress: "52:54:00:aa:00:02"
    dhcp4: true
    optional: true
"#
    );
}

#[test]
fn meta_data_names_the_run_as_the_instance() {
    assert_eq!(
        render("debian/meta-data"),
        format!("instance-id: \"{RUN}\"\nlocal-hostname: \"r1n1\"\ndsmode: local\n")
    );
}

#[test]
fn user_data_is_a_cloud_config_that_calls_home() {
    let text = render("debian/user-data");
    assert!(text.starts_with("#cloud-config\n"), "{text}");
    let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(config["hostname"], "r1n1");
    let file = |path: &str| {
        let files = config["write_files"].as_array().unwrap();
        files.iter().find(|file| file["path"] == path).unwrap()
    };
    assert_eq!(file("/etc/anneal/ca.pem")["content"], CA);
    let curl = file("/run/anneal-phone-home/curl.conf");
    assert_eq!(curl["permissions"], "0600");
    assert_eq!(
        curl["content"],
        "url = \"https://10.77.0.1:8443/node/v1/phone-home\"\n\
         header = \"Authorization: Bearer 5ec7e7\"\n"
    );
    assert_eq!(
        file("/etc/anneal/installed")["content"],
        format!("RUN={RUN}\nIMAGE=blake3:00ff\nIMAGE_NAME=debian@12.9\n")
    );
    let script = "/usr/local/sbin/anneal-phone-home";
    let command = config["runcmd"][0].as_array().unwrap();
    assert_eq!(command[0], "systemd-run");
    assert_eq!(command.last().unwrap(), script);
    let script = file(script);
    assert_eq!(script["permissions"], "0755");
    assert_eq!(
        text.matches("5ec7e7").count(),
        1,
        "the token is in one file only"
    );

    let mut shell = Command::new("sh")
        .args(["-n", "-s"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    stdin
        .write_all(script["content"].as_str().unwrap().as_bytes())
        .unwrap();
    drop(stdin);
    assert!(shell.wait().unwrap().success());
}
