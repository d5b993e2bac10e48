//! cloud-init's own programs read what is written for cloud-init.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{CLOUD_INIT, FAMILIES, Family, NETWORKS, case, cases, folder, run};

fn cloud_init(arguments: &[&str]) -> String {
    let output = run("cloud-init", Command::new("cloud-init").args(arguments));
    let told = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
    assert!(output.status.success(), "{arguments:?}: {told:?}");
    told.concat()
}

#[test]
fn user_data_fits_the_schema() {
    let users: Vec<&'static Family> = FAMILIES
        .iter()
        .filter(|family| family.templates.contains(&"user-data") && family.name != "talos")
        .collect();
    assert!(users.len() >= 2);
    for family in users {
        for case in cases(family) {
            let dir = folder(&[("user-data", &case.own("user-data"))]);
            let path = dir.path().join("user-data").display().to_string();
            let told = cloud_init(&["schema", "-c", &path]);
            assert!(told.contains("Valid cloud-config"), "{told}");
        }
    }
}

/// The renderer that the vendors' images have.
#[test]
fn network_config_becomes_netplan() {
    for network in NETWORKS {
        let case = case(Family::of("debian"), "worker", network);
        let dir = folder(&[("network-config", &case.own("network-config"))]);
        let path = dir.path().display().to_string();
        let data = format!("{path}/network-config");
        let convert = [
            "devel",
            "net-convert",
            "-p",
            &data,
            "-k",
            "yaml",
            "-d",
            &path,
        ];
        cloud_init(&[&convert[..], &["-D", "debian", "-O", "netplan"]].concat());
        let made = std::fs::read_to_string(dir.path().join("etc/netplan/50-cloud-init.yaml"));
        let made: serde_json::Value = serde_saphyr::from_str(&made.unwrap()).unwrap();
        let made = &made["network"];
        match network {
            "dhcp" => assert_eq!(made["ethernets"]["card0"]["dhcp4"], true),
            "static" => {
                let card = &made["ethernets"]["lan0"];
                assert_eq!(card["addresses"][0], "10.77.0.11/24");
                assert_eq!(card["routes"][0]["via"], "10.77.0.1");
                assert_eq!(card["mtu"], 9000);
                assert_eq!(card["set-name"], "lan0");
                assert_eq!(card["nameservers"]["addresses"][1], "10.77.0.2");
            }
            _ => {
                assert_eq!(made["bonds"]["bond0"]["interfaces"][1], "lan1");
                assert_eq!(made["bonds"]["bond0"]["addresses"][0], "10.77.0.11/24");
                assert_eq!(made["vlans"]["bond0.100"]["link"], "bond0");
                assert_eq!(made["vlans"]["storage"]["id"], 200);
            }
        }
    }
}

/// A URL that works once must be asked for once, though cloud-init reads its user data at every
/// start: `include-once` keeps what it gave. And the drop-in makes it trust the provisioner.
#[test]
fn the_pointer_is_fetched_once_over_tls() {
    let case = case(Family::of("debian"), "", "dhcp");
    let pointer = case.render("common/cloud-init/pointer").unwrap();
    let url = "https://10.77.0.1:8443/node/v1/config/(redacted)";
    assert_eq!(pointer.trim_end(), format!("#include-once\n{url}"));
    let trust = case.render("common/cloud-init/trust.conf").unwrap();
    assert!(
        trust.contains("\nEnvironment=REQUESTS_CA_BUNDLE="),
        "{trust}"
    );
    let dir = folder(&[("pointer", &pointer)]);
    let path = |name: &str| dir.path().join(name);
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]);
    openssl.args(["-nodes", "-days", "2", "-subj", "/CN=test"]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl
        .arg("-out")
        .arg(path("cert"))
        .arg("-keyout")
        .arg(path("key"));
    assert!(run("openssl", &mut openssl).status.success());
    let output = run(
        "cloud-init",
        Command::new("/usr/bin/python3")
            .arg("tests/os_templates/include_once.py")
            .args(["work", "pointer", "cert", "key"].map(path)),
    );
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
}

#[test]
fn the_seed_argument_is_spelt_for_the_release() {
    let said = |name: &str| {
        let case = case(Family::of(name), "worker", "static");
        let network = case.own("network-config");
        (
            case.render("common/cloud-init/datasource").unwrap(),
            network,
        )
    };
    let run = super::RUN;
    for (name, word) in [("debian", "nocloud-net"), ("ubuntu", "nocloud")] {
        let (text, network) = said(name);
        let (seed, given) = text.split_once(" network-config=").unwrap();
        let url = "https://10.77.0.1:8443/node/v1/config/(redacted)/";
        assert_eq!(seed, format!("ds={word};i={run};s={url}"));
        let given = STANDARD.decode(given.trim_end()).unwrap();
        assert_eq!(String::from_utf8(given).unwrap(), network);
    }
    assert_eq!(CLOUD_INIT.len(), 6);
}

#[test]
fn meta_data_names_the_run_as_the_instance() {
    let case = case(Family::of("debian"), "", "dhcp");
    let text = |name| case.own(name);
    let local = format!(
        "instance-id: \"{}\"\nlocal-hostname: \"r1n1\"\ndsmode: local\n",
        super::RUN
    );
    assert_eq!(text("meta-data"), local);
    // What has to be fetched can be fetched only when there is a network.
    assert_eq!(text("meta-data-net"), local.replace("local\n", "net\n"));
}
