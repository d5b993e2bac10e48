//! What an inventory file may say, and how each mistake is told.

use anneal_protocol::disk::DiskType;

use super::*;

/// Every key once.
const FULL: &str = r#"machines:
  - name: r1n1
    rack: r1
    role: worker
    nics:
      - { mac: "52:54:00:AA:00:01", address: 10.77.0.11/24, boot: true }
      - { mac: "52-54-00-aa-00-11" }
    bmc: { url: "redfish+https://10.77.1.11", username: root, password: { file: /etc/anneal/secrets/r1n1 } }
    disk: { hints: { type: nvme, min_size: 100GiB, max_size: 2TiB, model: Fast, rotational: false } }
    protected_disks: [ { serial: "S5XNNG0R" } ]
    image: flatcar@4230.2.1
    workflow: install-image
    labels: { pool: general, anneal/boot-device: uefi-http }
"#;

#[test]
fn reads_every_key() {
    let inventory = parse(FULL, "rack1.yaml").unwrap();
    let machine = &inventory.machines[0].machine;
    assert_eq!(machine.name, "r1n1");
    assert_eq!(machine.nics[0].mac.to_string(), "52:54:00:aa:00:01");
    assert!(machine.nics[0].boot && !machine.nics[1].boot);
    assert_eq!(machine.disk.kind, Some(DiskType::Nvme));
    assert_eq!(machine.disk.min_size, Some(100 << 30));
    assert_eq!(machine.labels["anneal/boot-device"], "uefi-http");
    assert_eq!(
        machine.bmc.as_ref().unwrap().password_file.to_str(),
        Some("/etc/anneal/secrets/r1n1")
    );
}

#[test]
fn the_first_card_boots_by_default() {
    let text = FULL.replace(", boot: true", "");
    let inventory = parse(&text, "f").unwrap();
    assert!(inventory.machines[0].machine.nics[0].boot);
    assert!(!inventory.machines[0].machine.nics[1].boot);
}

/// The refusal after replacing one part of [`FULL`].
fn refusal(from: &str, to: &str) -> String {
    assert!(FULL.contains(from), "{from}");
    parse(&FULL.replace(from, to), "rack1.yaml")
        .unwrap_err()
        .to_string()
}

#[test]
fn tells_each_mistake_with_its_place() {
    for (from, to, expected) in [
        (
            "name: r1n1",
            "name: R1N1",
            "rack1.yaml:2:11: \"R1N1\" is not a valid name: expected 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit",
        ),
        (
            "rack: r1",
            "rak: r1",
            "rack1.yaml:3:5: unknown key `rak`, did you mean `rack`?",
        ),
        (
            "rack: r1",
            "rack: \"\"",
            "rack1.yaml:3:11: the rack is empty or unprintable: expected 1 to 128 characters",
        ),
        (
            "52:54:00:AA:00:01",
            "52:54:00:aa:00",
            "rack1.yaml:6:16: \"52:54:00:aa:00\" is not a MAC address: expected six bytes such as 52:54:00:aa:00:01",
        ),
        (
            "52:54:00:AA:00:01",
            "33:33:00:00:00:01",
            "rack1.yaml:6:16: 33:33:00:00:00:01 cannot belong to a network card: expected a unicast address, its first byte even and not all zero",
        ),
        (
            "10.77.0.11/24",
            "10.77.0.11",
            "rack1.yaml:6:46: \"10.77.0.11\" is not an address with its prefix length: expected 10.77.0.11/24",
        ),
        (
            "10.77.0.11/24",
            "10.77.0.0/24",
            "rack1.yaml:6:46: 10.77.0.0/24 is the address of the network itself: expected the address of a host in it",
        ),
        (
            "10.77.0.11/24",
            "10.77.0.255/24",
            "rack1.yaml:6:46: 10.77.0.255/24 is the broadcast address of its network: expected the address of a host in it",
        ),
        (
            "boot: true }",
            "boot: yes }",
            "rack1.yaml:6:67: expected `true` or `false`",
        ),
        (
            "boot: true }",
            "boot: false }",
            "rack1.yaml:6:67: a machine boots over exactly one network card: expected `boot: true` on one",
        ),
        (
            "52-54-00-aa-00-11\" }",
            "52-54-00-aa-00-11\", boot: true }",
            "rack1.yaml:7:43: a machine boots over exactly one network card: another one above says `boot: true` already",
        ),
        (
            "52-54-00-aa-00-11",
            "52-54-00-aa-00-01",
            "rack1.yaml:7:16: MAC 52:54:00:aa:00:01 belongs to machine r1n1 already, in line 6",
        ),
        (
            "{ type: nvme, min_size: 100GiB, max_size: 2TiB, model: Fast, rotational: false }",
            "{}",
            "rack1.yaml:9:20: no hint says which disk to install to: expected at least one of type, min_size, max_size, serial, wwn, model, rotational",
        ),
        (
            "type: nvme",
            "type: nmve",
            "rack1.yaml:9:28: unknown word `nmve`, did you mean `nvme`?",
        ),
        (
            "type: nvme",
            "device: /dev/sda",
            "rack1.yaml:9:22: unknown key `device`, expected one of: type, min_size, max_size, serial, wwn, model, rotational",
        ),
        (
            "type: nvme",
            "serial: /dev/sda",
            "rack1.yaml:9:30: a disk is never chosen by its device name, which changes between boots: expected what the disk says of itself",
        ),
        (
            "100GiB",
            "100 gigs",
            "rack1.yaml:9:44: \"100 gigs\" is not a size: expected a whole number and a unit such as 100GiB or 500GB",
        ),
        (
            "2TiB",
            "2GiB",
            "rack1.yaml:9:62: `max_size` is smaller than `min_size`",
        ),
        (
            "{ serial: \"S5XNNG0R\" }",
            "{}",
            "rack1.yaml:10:24: nothing says which disk is protected: expected at least one of serial, wwn, label",
        ),
        (
            "type: nvme",
            "serial: S5XNNG0R",
            "rack1.yaml:10:34: this disk is protected, but `disk.hints.serial` chooses it",
        ),
        (
            "flatcar@4230.2.1",
            "flatcar",
            "rack1.yaml:11:12: \"flatcar\" is not the name of an image: expected name@version such as flatcar@4230.2.1",
        ),
        (
            "uefi-http",
            "uefi-htp",
            "rack1.yaml:13:50: unknown boot device `uefi-htp`, did you mean `uefi-http`?",
        ),
        (
            "anneal/boot-device",
            "anneal/boot-devise",
            "rack1.yaml:13:50: unknown label of anneal's own `anneal/boot-devise`, did you mean `anneal/boot-device`?",
        ),
    ] {
        assert_eq!(refusal(from, to), expected);
    }
}

#[test]
fn tells_mistakes_of_the_bmc_without_secrets() {
    for (from, to, expected) in [
        (
            "{ file: /etc/anneal/secrets/r1n1 }",
            "hunter2",
            "rack1.yaml:8:73: a password is never written into an inventory: expected `{ file: /path/of/a/file/that/holds/it }`",
        ),
        (
            "{ file: /etc/anneal/secrets/r1n1 }",
            "123456",
            "rack1.yaml:8:73: a password is never written into an inventory: expected `{ file: /path/of/a/file/that/holds/it }`",
        ),
        (
            "{ file: /etc/anneal/secrets/r1n1 }",
            "{ value: hunter2 }",
            "rack1.yaml:8:75: unknown key `value`, expected one of: file",
        ),
        (
            "redfish+https://10.77.1.11",
            "https://root:hunter2@10.77.1.11",
            "rack1.yaml:8:17: not the URL of a BMC: expected redfish+https://host[:port][/redfish/v1/Systems/ID] or redfish+http://…",
        ),
        (
            "redfish+https://10.77.1.11",
            "redfish+https://root:hunter2@10.77.1.11",
            "rack1.yaml:8:17: the URL of a BMC holds no user: use the keys `username` and `password`",
        ),
        (
            "username: root",
            "username: root, tls_sha256: abc",
            "rack1.yaml:8:75: not a SHA-256 digest: expected 64 hexadecimal digits",
        ),
        (
            "redfish+https://10.77.1.11\", username: root",
            "redfish+http://10.77.1.11\", username: root, tls_sha256: abc",
            "rack1.yaml:8:74: a redfish+http BMC has no certificate: expected redfish+https in `url`, or no `tls_sha256`",
        ),
    ] {
        let told = refusal(from, to);
        assert_eq!(told, expected);
        assert!(!told.contains("hunter2"));
    }
}

#[test]
fn refuses_a_device_name_for_the_disk() {
    let text = FULL
        .lines()
        .map(|line| {
            if line.contains(" disk: ") {
                "    disk: /dev/sda"
            } else {
                line
            }
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(
        parse(&text, "f").unwrap_err().to_string(),
        "f:9:11: a disk is never chosen by its device name, which changes between boots: expected \
         `{ hints: { type: nvme, min_size: 100GiB } }`"
    );
}

fn two(second_name: &str, second_mac: &str, second_address: &str) -> String {
    let machine = |name: &str, mac: &str, address: &str| {
        format!(
            "  - name: {name}\n    nics: [ {{ mac: \"{mac}\", address: {address} }} ]\n    \
             disk: {{ hints: {{ type: sata }} }}\n"
        )
    };
    format!(
        "machines:\n{}{}",
        machine("r1n1", "52:54:00:aa:00:01", "10.77.0.11/24"),
        machine(second_name, second_mac, second_address)
    )
}

#[test]
fn refuses_duplicates_and_names_the_holder() {
    let told = |text: &str| parse(text, "f").unwrap_err().to_string();
    assert!(parse(&two("r1n2", "52:54:00:aa:00:02", "10.77.0.12/24"), "f").is_ok());
    assert_eq!(
        told(&two("r1n1", "52:54:00:aa:00:02", "10.77.0.12/24")),
        "f:5:11: machine r1n1 is described twice, first in line 2"
    );
    assert_eq!(
        told(&two("r1n2", "52:54:00:AA:00:01", "10.77.0.12/24")),
        "f:6:20: MAC 52:54:00:aa:00:01 belongs to machine r1n1 already, in line 3"
    );
    assert_eq!(
        told(&two("r1n2", "52:54:00:aa:00:02", "10.77.0.11/16")),
        "f:6:50: address 10.77.0.11 belongs to machine r1n1 already, in line 3"
    );
}

#[test]
fn needs_a_card_and_a_disk() {
    let told = |text: &str| parse(text, "f").unwrap_err().to_string();
    assert_eq!(
        told("machines:\n  - name: a\n    nics: []\n    disk: { hints: { type: sata } }\n"),
        "f:3:11: a machine needs at least one network card: expected `- { mac: …, address: … }`"
    );
    assert_eq!(
        told("machines:\n  - name: a\n    nics: [ { mac: \"52:54:00:aa:00:01\" } ]\n"),
        "f:3:5: key `disk` is missing"
    );
}

#[test]
fn relative_password_paths_become_absolute_in_the_text() {
    let directory = std::path::Path::new("/srv/racks");
    let relative = FULL.replace("/etc/anneal/secrets/r1n1", "secrets/r1n1");
    assert_eq!(
        parse(&relative, "f")
            .unwrap()
            .require_absolute_paths()
            .unwrap_err()
            .to_string(),
        "f:8:81: the daemon cannot know what this path is relative to: expected an absolute path"
    );
    for path in ["secrets/r1n1", "\"secrets/r1n1\"", "'secrets/r1n1'"] {
        let text = FULL.replace("/etc/anneal/secrets/r1n1", path);
        let inventory = parse(&text, "f").unwrap();
        let absolute = with_absolute_paths(&text, &inventory, directory);
        assert_eq!(
            absolute,
            FULL.replace("/etc/anneal/secrets/r1n1", "\"/srv/racks/secrets/r1n1\"")
        );
    }
    let inventory = parse(FULL, "f").unwrap();
    assert_eq!(with_absolute_paths(FULL, &inventory, directory), FULL);
}

#[test]
fn an_unknown_cluster_is_told_at_its_place() {
    let text = format!("{FULL}    cluster: prd\n");
    let inventory = parse(&text, "rack1.yaml").unwrap();
    let refuse = |name: &str| Err(format!("there is no cluster `{name}`"));
    let told = inventory.check_clusters(refuse).unwrap_err().to_string();
    assert_eq!(
        told,
        "rack1.yaml:14:14: `cluster`: there is no cluster `prd`"
    );
}

#[test]
fn the_example_inventories_are_valid() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../hardware");
    let read = |name: &str| {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        parse(&text, name).unwrap().machines
    };
    assert!(read("rack1.yaml").len() >= 2);
    let lab = read("lab.yaml");
    let names: Vec<&str> = lab.iter().map(|d| d.machine.name.as_str()).collect();
    assert_eq!(names, ["r1n1", "r1n2", "r1n3"]);
    for (index, described) in lab.iter().enumerate() {
        let machine = &described.machine;
        let number = index + 1;
        let nic = machine.boot_nic().unwrap();
        assert_eq!(nic.mac.to_string(), format!("52:54:00:aa:00:0{number}"));
        assert_eq!(
            nic.address.unwrap().to_string(),
            format!("10.77.0.1{number}/24")
        );
        let url = &machine.bmc.as_ref().unwrap().url;
        assert!(
            url.ends_with(&format!("/00000000-0000-4000-8000-00000000000{number}")),
            "{url}"
        );
    }
    assert_eq!(lab[2].machine.labels["anneal/boot-device"], "uefi-http");
    assert_eq!(lab[2].machine.protected_disks.len(), 1);
}
