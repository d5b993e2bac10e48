//! The `machine` variable: the inventory's words in the shape that templates want.
//!
//! Lists and mappings are always there, empty when the inventory says nothing; single values that
//! it does not say are absent, so that using one is an error.

use anneal_protocol::net::Cidr;
use serde_json::{Value, json};

use crate::machine::Machine;

/// Permission bits of an extra file that says none.
const FILE_MODE: &str = "0644";

/// What templates see of a machine.
pub(super) fn machine(machine: &Machine) -> Value {
    let config = &machine.config;
    let files = config.files.iter().map(|file| {
        json!({
            "path": file.path,
            "mode": file.mode.as_deref().unwrap_or(FILE_MODE),
            "contents": file.contents,
        })
    });
    let registries = config.registries.iter().map(|registry| {
        let mut facts = json!({ "host": registry.host, "mirrors": registry.mirrors });
        put(&mut facts, "ca", registry.ca.as_ref());
        facts
    });
    let mut facts = json!({
        "name": machine.name,
        "hostname": machine.hostname(),
        "labels": machine.labels,
        "nics": machine.nics.iter().map(|nic| link(json!(nic), nic.address)).collect::<Value>(),
        "bonds": config.bonds.iter().map(|bond| link(json!(bond), bond.address)).collect::<Value>(),
        "vlans": config.vlans.iter().map(|vlan| link(json!(vlan), vlan.address)).collect::<Value>(),
        "disk": machine.disk_selector(),
        "dns": config.dns,
        "search": config.search,
        "ntp": config.ntp,
        "ssh_keys": config.ssh_keys,
        "kernel_args": config.kernel_args,
        "node_labels": config.node_labels,
        "node_taints": config.node_taints,
        "files": files.collect::<Value>(),
        "registries": registries.collect::<Value>(),
    });
    put(&mut facts, "rack", machine.rack.as_ref());
    put(&mut facts, "role", machine.role.as_ref());
    put(&mut facts, "cluster", config.cluster.as_ref());
    if let Some(nic) = machine.boot_nic() {
        facts["mac"] = json!(nic.mac);
        put(&mut facts, "gateway", nic.gateway.as_ref());
        put(&mut facts, "mtu", nic.mtu.as_ref());
        facts = link(facts, nic.address);
    }
    facts
}

fn put(facts: &mut Value, key: &str, value: Option<&impl serde::Serialize>) {
    if let Some(value) = value {
        facts[key] = json!(value);
    }
}

/// An address shows as `address` and `prefix`.
fn link(mut facts: Value, address: Option<Cidr>) -> Value {
    if let Some(address) = address {
        facts["address"] = json!(address.ip);
        facts["prefix"] = json!(address.prefix);
    }
    facts
}
