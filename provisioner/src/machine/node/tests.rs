//! What an inventory may tell the installed system, and how each mistake is told.

use crate::machine::{Machine, apply, file};

/// Every key once; each in a line of its own.
const FULL: &str = r#"machines:
  - name: r1n1
    hostname: r1n1.rack1.example.org
    role: worker
    nics:
      - { mac: "52:54:00:aa:00:01", address: 10.77.0.11/24, gateway: 10.77.0.1, mtu: 9000, name: lan0 }
      - { mac: "52:54:00:aa:00:11" }
      - { mac: "52:54:00:aa:00:21" }
    bonds:
      - name: bond0
        mode: 802.3ad
        macs: [ "52:54:00:aa:00:11", "52-54-00-aa-00-21" ]
        address: 10.78.0.11/24
        gateway: 10.78.0.1
        mtu: 9000
    vlans:
      - { id: 20, parent: bond0, name: storage, address: 10.79.0.11/24, gateway: 10.79.0.1 }
      - { id: 30, parent: "52:54:00:AA:00:01" }
    dns: [ 10.77.0.1, "2001:db8::53" ]
    search: [ rack1.example.org ]
    ntp: [ ntp.example.org, 10.77.0.1 ]
    ssh_keys: [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJVlEzyLMrTl23HnIDO8dbJ6JiAi2dkeK8Z3WNTGyYCK ops" ]
    kernel_args: [ console=tty0, "console=ttyS0,115200n8", quiet, hugepages=16 ]
    node_labels: { topology.kubernetes.io/zone: r1, gpu: "" }
    node_taints: [ "dedicated=gpu:NoSchedule", "slow:PreferNoSchedule" ]
    files:
      - { path: /etc/motd, mode: "0640", contents: "hello\n" }
    registries:
      - { host: docker.io, mirrors: [ "https://mirror.example.org:5000/v2" ] }
    cluster: east
    disk: { hints: { type: nvme } }
"#;

fn machine(text: &str) -> Machine {
    let mut inventory = file::parse(text, "rack1.yaml").unwrap();
    inventory.machines.remove(0).machine
}

/// The refusal after replacing one part of [`FULL`].
fn refusal(from: &str, to: &str) -> String {
    assert!(FULL.contains(from), "{from}");
    let error = file::parse(&FULL.replacen(from, to, 1), "f").unwrap_err();
    error.to_string()
}

#[test]
fn reads_every_key() {
    let machine = machine(FULL);
    let config = &machine.config;
    assert_eq!(machine.hostname(), "r1n1.rack1.example.org");
    assert_eq!(machine.nics[0].gateway.unwrap().to_string(), "10.77.0.1");
    assert_eq!(machine.nics[0].mtu, Some(9000));
    assert_eq!(config.bonds[0].macs[1], machine.nics[2].mac);
    assert_eq!(config.vlans[0].parent, "bond0");
    assert_eq!(
        config.vlans[1].parent, "lan0",
        "the card's name, given by its MAC"
    );
    assert_eq!(config.node_labels["gpu"], "");
    assert_eq!(config.files[0].mode.as_deref(), Some("0640"));
    assert_eq!(config.cluster.as_deref(), Some("east"));
    let addresses: Vec<String> = machine.addresses().map(|a| a.to_string()).collect();
    assert_eq!(
        addresses,
        ["10.77.0.11/24", "10.78.0.11/24", "10.79.0.11/24"]
    );
}

#[test]
fn an_entry_reads_back_as_the_same_machine() {
    let described = machine(FULL);
    let entry = serde_json::json!({ "machines": [apply::entry(&described)] });
    let text = crate::yaml::to_string(&entry).unwrap();
    assert_eq!(machine(&text), described, "{text}");
    let stored = serde_json::to_string(&described).unwrap();
    assert_eq!(serde_json::from_str::<Machine>(&stored).unwrap(), described);
}

#[test]
fn a_machine_of_an_older_version_still_loads() {
    let stored = r#"{"name":"r1n1","rack":null,"role":null,
        "nics":[{"mac":"52:54:00:aa:00:01","address":{"ip":"10.77.0.11","prefix":24},"boot":true}],
        "bmc":null,"disk":{"type":"nvme"},"protected_disks":[],"image":null,"workflow":null,
        "labels":{"pool":"general"}}"#;
    let old: Machine = serde_json::from_str(stored).unwrap();
    assert_eq!(old.nics[0].address.unwrap().to_string(), "10.77.0.11/24");
    assert_eq!(old.config, Default::default());
    assert_eq!(old.hostname(), "r1n1");
}

#[test]
fn differences_are_told_in_the_words_of_the_file() {
    let old = machine(FULL);
    let new = machine(
        &FULL
            .replace("10.79.0.11", "10.79.0.12")
            .replace("quiet, ", "")
            .replace("    cluster: east\n", ""),
    );
    let fields: Vec<String> = apply::diff(Some(&old), &new)
        .fields
        .into_iter()
        .map(|change| change.field)
        .collect();
    assert_eq!(
        fields,
        [
            "cluster",
            "kernel_args[2]",
            "kernel_args[3]",
            "vlans[0].address"
        ]
    );
}

#[test]
fn tells_each_mistake_with_its_place() {
    let mut wrong = Vec::new();
    for (from, to, expected) in [
        (
            "dns:",
            "dnss:",
            "f:19:5: unknown key `dnss`, did you mean `dns`?",
        ),
        (
            "hostname: r1n1.rack1",
            "hostname: R1N1.rack1",
            "f:3:15: not a host name: expected at most 64 lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit",
        ),
        (
            "gateway: 10.77.0.1,",
            "gateway: 10.76.0.1,",
            "f:6:70: 10.76.0.1 is not another host in the network of 10.77.0.11/24",
        ),
        (
            "gateway: 10.77.0.1,",
            "gateway: 10.77.0.11,",
            "f:6:70: 10.77.0.11 is not another host in the network of 10.77.0.11/24",
        ),
        (
            "address: 10.77.0.11/24, ",
            "",
            "f:6:46: a gateway needs an `address` whose network it lies in",
        ),
        (
            "mtu: 9000, name",
            "mtu: 100, name",
            "f:6:86: not the size of a packet: expected 576 to 65535 bytes",
        ),
        (
            "name: lan0",
            "name: bond0",
            "f:10:15: interface bond0 is named twice, first in line 6",
        ),
        (
            "name: lan0",
            "name: \"lan 0\"",
            "f:6:98: not the name of a network interface: expected at most 15 letters, digits, `-`, `_` and `.`, beginning with a letter",
        ),
        (
            "802.3ad",
            "lacp",
            "f:11:15: unknown bond mode `lacp`, expected one of: balance-rr, active-backup, balance-xor, broadcast, 802.3ad, balance-tlb, balance-alb",
        ),
        (
            "52-54-00-aa-00-21",
            "52-54-00-aa-00-31",
            "f:12:38: no card of this machine has MAC 52:54:00:aa:00:31: list it in `nics`",
        ),
        (
            "52-54-00-aa-00-21",
            "52-54-00-aa-00-11",
            "f:12:38: card 52:54:00:aa:00:11 is in bond bond0 already",
        ),
        (
            "id: 20",
            "id: 4095",
            "f:17:15: not the tag of a VLAN: expected 1 to 4094",
        ),
        (
            "parent: bond0",
            "parent: bond1",
            "f:17:27: this machine has no such card or bond: expected the name or MAC of a card in `nics`, or the name of a bond in `bonds`",
        ),
        (
            "10.79.0.11/24, gateway: 10.79.0.1 }",
            "10.77.0.11/24 }",
            "f:17:58: address 10.77.0.11 belongs to machine r1n1 already, in line 6",
        ),
        (
            "\"2001:db8::53\"",
            "resolver",
            "f:19:23: not a name server: expected an address such as 10.77.0.1",
        ),
        (
            "ntp.example.org",
            "\"-\"",
            "f:21:12: not a time server: expected a name or an address",
        ),
        (
            "AAAAC3",
            "AAAAC4",
            "f:22:17: the SSH key is cut off or damaged: expected one line such as `ssh-ed25519 AAAA… comment`",
        ),
        (
            "quiet",
            "\"quiet splash\"",
            "f:23:60: not a kernel argument: expected `name` or `name=value` without spaces, an entry each",
        ),
        (
            "quiet",
            "hugepages=8, mitigations=off, mitigations=auto",
            "f:23:90: kernel argument `mitigations` is given twice with different values: the kernel would take one of them",
        ),
        (
            "topology.kubernetes.io/zone: r1",
            "\"a b\": r1",
            "f:24:27: `a b` is not the name of a Kubernetes label: expected `name` or `domain/name`, the name of at most 63 letters, digits, `-`, `_` and `.`",
        ),
        (
            "NoSchedule\",",
            "NoSchedul\",",
            "f:25:20: unknown effect of a taint `NoSchedul`, did you mean `NoSchedule`?",
        ),
        (
            "/etc/motd",
            "etc/motd",
            "f:27:17: not the path of a file: expected an absolute path without `.`, `..`, empty parts and control characters",
        ),
        (
            "\"0640\"",
            "\"rw\"",
            "f:27:34: not permission bits: expected quoted octal digits such as \"0644\"",
        ),
        (
            "hello\\n",
            "\\a",
            "f:27:52: the file has control characters: expected text",
        ),
        (
            "docker.io",
            "https://docker.io",
            "f:29:17: not the host of a registry: expected `host`, `host:port`, or `*` for all, without scheme and path",
        ),
        (
            "https://mirror",
            "ftp://mirror",
            "f:29:39: not the URL of a mirror: expected http(s)://host[:port][/path]",
        ),
        (
            ", mirrors: [ \"https://mirror.example.org:5000/v2\" ]",
            "",
            "f:29:17: nothing is said about this registry: expected `mirrors` or `ca`",
        ),
        (
            "cluster: east",
            "cluster: East",
            "f:30:14: \"East\" is not a valid name: expected 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit",
        ),
    ] {
        let told = refusal(from, to);
        if told != expected {
            wrong.push((told, expected));
        }
    }
    assert_eq!(wrong, []);
}

#[test]
fn secrets_that_were_pasted_are_not_repeated() {
    let key = "-----BEGIN OPENSSH PRIVATE KEY----- hunter2";
    let told = refusal(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJVlEzyLMrTl23HnIDO8dbJ6JiAi2dkeK8Z3WNTGyYCK ops",
        key,
    );
    assert!(
        told.contains("private key") && !told.contains("hunter2"),
        "{told}"
    );
    let told = refusal("https://mirror", "https://user:hunter2@mirror");
    assert!(
        told.contains("holds no user") && !told.contains("hunter2"),
        "{told}"
    );
    let told = refusal(
        "mirrors: [",
        "ca: \"-----BEGIN PRIVATE KEY-----\\naHVudGVyMg==\\n-----END PRIVATE KEY-----\\n\", mirrors: [",
    );
    assert!(
        told.contains("no certificate") && !told.contains("aHVu"),
        "{told}"
    );
}

#[test]
fn a_bond_may_go_on_with_the_address_of_its_card() {
    let text = FULL
        .replace("address: 10.78.0.11/24", "address: 10.77.0.11/24")
        .replace("gateway: 10.78.0.1\n", "gateway: 10.77.0.1\n");
    assert!(file::parse(&text, "f").is_err(), "of another card");
    let text = text.replace("macs: [", "macs: [ \"52:54:00:aa:00:01\",");
    machine(&text);
}

#[test]
fn addresses_of_bonds_and_vlans_are_unique_between_machines() {
    for address in ["10.78.0.11", "10.79.0.11"] {
        let other = format!(
            "  - name: r1n2\n    nics: [ {{ mac: \"52:54:00:aa:00:02\", address: {address}/24 }} ]\n    \
             disk: {{ hints: {{ type: nvme }} }}\n"
        );
        let error = file::parse(&format!("{FULL}{other}"), "f").unwrap_err();
        let told = format!("address {address} belongs to machine r1n1 already");
        assert!(error.to_string().contains(&told), "{error}");
    }
}
