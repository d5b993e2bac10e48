//! Ignition's own parsers read what is written for Ignition: Debian's `ignition-validate` (2.14,
//! specification up to 3.3), and upstream's, by the program in `tests/conformance/ignition`.

use std::process::Command;

use base64::Engine as _;
use serde_json::Value;

use super::{FAMILIES, Family, TOKEN, case, cases, conformance, folder, run};

/// Systems that read Ignition.
fn systems() -> impl Iterator<Item = &'static Family> {
    FAMILIES
        .iter()
        .filter(|f| f.templates.contains(&"config.ign"))
}

#[test]
fn both_parsers_take_every_document() {
    assert_eq!(systems().count(), 3);
    let dir = folder(&[]);
    let upstream = conformance("ignition", dir.path());
    for family in systems() {
        for case in cases(family) {
            for template in ["config.ign", "pointer.ign"] {
                let text = case.own(template);
                let path = dir.path().join(template);
                std::fs::write(&path, &text).unwrap();
                let mut parsers = vec![("ignition", Command::new("ignition-validate"))];
                if let Some(program) = &upstream {
                    parsers.push(("golang", Command::new(program)));
                }
                for (package, mut parser) in parsers {
                    let output = run(package, parser.arg(&path));
                    let told = String::from_utf8_lossy(&output.stderr).into_owned()
                        + &String::from_utf8_lossy(&output.stdout);
                    let good = output.status.success() && !told.contains("warning");
                    assert!(good, "{}/{template} {}: {told}", family.name, case.variant);
                }
            }
        }
    }
}

/// The file at a path of a document: mode and text.
fn file(document: &Value, path: &str) -> (u64, String) {
    let files = document["storage"]["files"].as_array().unwrap();
    let file = files.iter().find(|f| f["path"] == path);
    let file = file.unwrap_or_else(|| panic!("no {path}"));
    (file["mode"].as_u64().unwrap(), contents(&file["contents"]))
}

/// The text behind a data URL.
fn contents(resource: &Value) -> String {
    let source = resource["source"].as_str().unwrap();
    let (head, data) = source
        .strip_prefix("data:")
        .unwrap()
        .split_once(',')
        .unwrap();
    let bytes = if head.ends_with(";base64") {
        base64::engine::general_purpose::STANDARD
            .decode(data)
            .unwrap()
    } else {
        percent_decode(data)
    };
    if resource["compression"] == "gzip" {
        use std::io::Read as _;
        let mut text = String::new();
        let mut reader = flate2::read::GzDecoder::new(bytes.as_slice());
        reader.read_to_string(&mut text).unwrap();
        return text;
    }
    String::from_utf8(bytes).unwrap()
}

fn percent_decode(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let pair = [bytes.next().unwrap(), bytes.next().unwrap()];
            let pair = std::str::from_utf8(&pair).unwrap().to_owned();
            decoded.push(u8::from_str_radix(&pair, 16).unwrap());
        } else {
            decoded.push(byte);
        }
    }
    decoded
}

fn document(folder: &str, role: &str, network: &str) -> Value {
    let text = case(Family::of(folder), role, network).own("config.ign");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_is_secret_only_root_reads() {
    for family in systems() {
        let document = document(family.folder, "worker", "static");
        let (mode, text) = file(&document, "/etc/anneal/phone-home.conf");
        assert!(mode == 0o600 && text.contains(TOKEN));
        for file in document["storage"]["files"].as_array().unwrap() {
            let path = file["path"].as_str().unwrap();
            let secret = contents(&file["contents"]).contains(TOKEN)
                || path.ends_with(".nmconnection")
                || path.ends_with("kubeadm.yaml");
            assert_eq!(secret, file["mode"] == 0o600, "{path}");
        }
        if family.name != "flatcar" {
            let (mode, _) = file(
                &document,
                "/etc/NetworkManager/system-connections/lan0.nmconnection",
            );
            assert_eq!(mode, 0o600, "NetworkManager ignores others");
        }
    }
}

#[test]
fn the_specification_is_one_that_all_of_them_read() {
    for family in systems() {
        let document = document(family.folder, "worker", "dhcp");
        // That of older OpenShift knows no later one.
        let version = if family.name == "rhcos" {
            "3.2.0"
        } else {
            "3.3.0"
        };
        assert_eq!(document["ignition"]["version"], version);
    }
}

#[test]
fn the_pointer_trusts_our_ca_for_one_url() {
    for family in systems() {
        let text = case(family, "worker", "dhcp").own("pointer.ign");
        let pointer: Value = serde_json::from_str(&text).unwrap();
        let source = pointer["ignition"]["config"]["replace"]["source"].as_str();
        let url = "https://10.77.0.1:8443/node/v1/config/(redacted)";
        assert_eq!(source, Some(url));
        let trusted = &pointer["ignition"]["security"]["tls"]["certificateAuthorities"][0];
        assert_eq!(contents(trusted), super::ca());
        assert!(!text.contains(TOKEN));
    }
}

#[test]
fn rhcos_gets_the_rest_from_its_cluster() {
    for (role, pool) in [("worker", "worker"), ("control-plane", "master")] {
        let document = document("rhcos", role, "dhcp");
        let source = &document["ignition"]["config"]["merge"][0]["source"];
        assert_eq!(*source, format!("https://10.77.0.100:22623/config/{pool}"));
        let trusted = &document["ignition"]["security"]["tls"]["certificateAuthorities"][0];
        assert_eq!(contents(trusted), super::ca());
    }
}

/// Zincati drops the last word of an address that has no slash at its end.
#[test]
fn the_reboot_lock_ends_in_a_slash() {
    for given in ["https://lock.example/fleet", "https://lock.example/fleet/"] {
        let mut case = case(Family::of("fcos"), "worker", "dhcp");
        let labels = &mut case.machine.labels;
        labels.insert("fcos/fleet-lock".to_owned(), given.to_owned());
        let document: Value = serde_json::from_str(&case.own("config.ign")).unwrap();
        let (_, text) = file(&document, "/etc/zincati/config.d/50-anneal.toml");
        let toml: toml::Table = text.parse().unwrap();
        let lock = toml["updates"]["fleet_lock"]["base_url"].as_str();
        assert_eq!(lock, Some("https://lock.example/fleet/"));
        assert_eq!(toml["updates"]["strategy"].as_str(), Some("fleet_lock"));
    }
}

/// What the boot loader passes on for fetching; dracut.cmdline(7).
#[test]
fn the_initramfs_gets_the_network_of_the_inventory() {
    let said = |network| case(Family::of("fcos"), "worker", network).own("ignition.firstboot");
    let words = |text: &str| {
        let line = text.trim().strip_prefix("set ignition_network_kcmdline=\"");
        let line = line.unwrap().strip_suffix('"').unwrap().to_owned();
        line.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words(&said("dhcp")), ["rd.neednet=1", "ip=dhcp"]);
    let one = words(&said("static"));
    assert!(one.contains(&"ip=10.77.0.11::10.77.0.1:24:node1:lan0:none:9000".to_owned()));
    assert!(one.contains(&"ifname=lan0:52:54:00:aa:00:01".to_owned()));
    assert!(one.contains(&"nameserver=10.77.0.2".to_owned()));
    let many = words(&said("bond-vlan"));
    for word in [
        "bond=bond0:lan0,lan1:mode=active-backup,miimon=100",
        "ip=10.77.0.11::10.77.0.1:24:r1n1:bond0:none",
        "vlan=bond0.100:bond0",
        // The id is read from the name.
        "vlan=lan2.200:lan2",
        "ip=10.79.0.11:::24:r1n1:lan2.200:none",
    ] {
        assert!(many.contains(&word.to_owned()), "{word}: {many:?}");
    }
}

#[test]
fn update_server_of_the_site() {
    let mut case = case(Family::of("flatcar"), "worker", "dhcp");
    for (key, value) in [
        ("server", "https://u.example/v1/update/"),
        ("group", "rack1"),
    ] {
        let labels = &mut case.machine.labels;
        labels.insert(format!("flatcar/update-{key}"), value.to_owned());
    }
    let document: Value = serde_json::from_str(&case.own("config.ign")).unwrap();
    let (_, text) = file(&document, "/etc/flatcar/update.conf");
    assert_eq!(text, "GROUP=rack1\nSERVER=https://u.example/v1/update/\n");
}
