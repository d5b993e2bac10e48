//! `anneal machine …`

use std::net::Ipv4Addr;

use anneal_protocol::agent::Inventory;
use anneal_protocol::api::{MachineView, NodeReport};
use anneal_protocol::machine::Mac;
use anneal_protocol::net::Cidr;
use anneal_protocol::node::{Nic, NodeConfig};
use clap::Subcommand;

use super::client::Client;
use super::output::{self, Format, Table, cell, printable};
use super::time;

/// `anneal machine …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List machines
    List,
    /// Show a machine, and in one sentence what it waits for
    Show {
        /// Its name.
        name: String,
    },
    /// Compare a machine's disk with its sealed image; fails when something differs that must not
    Audit(super::audit::Args),
    /// Remove machines from the inventory; their disks are not touched
    Remove {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Carries out `anneal machine …`.
///
/// # Errors
/// When the daemon refuses or cannot be reached.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::List => {
            let machines: Vec<MachineView> = client.list(&["machines"], &[], usize::MAX).await?;
            output::show(format, &machines, |machines| list(machines))
        }
        Command::Show { name } => {
            let machine: MachineView = client.get(&["machines", &name], &[]).await?;
            output::show(format, &machine, show)
        }
        Command::Audit(args) => super::audit::run(&client, args, format).await,
        Command::Remove { names } => {
            for name in names {
                client.delete(&["machines", &name]).await?;
                output::print(&format!("{name} removed\n"))?;
            }
            Ok(())
        }
    }
}

fn list(machines: &[MachineView]) -> String {
    let mut table = Table::new(["NAME", "STATE", "RACK", "ROLE", "ADDRESS", "IMAGE", "OS"]);
    for machine in machines {
        let nic = machine
            .nics
            .iter()
            .find(|nic| nic.boot)
            .or(machine.nics.first());
        let os = machine.node.as_ref().and_then(os);
        table.row([
            machine.name.as_str(),
            &machine.state.to_string(),
            cell(machine.rack.as_deref()),
            cell(machine.role.as_deref()),
            cell(
                nic.and_then(|nic| nic.address)
                    .map(|a| a.to_string())
                    .as_deref(),
            ),
            &image(machine),
            cell(os.as_deref()),
        ]);
    }
    table.to_string()
}

/// What runs, and what should.
fn os(node: &NodeReport) -> Option<String> {
    let installed = node.installed_version.as_ref();
    match (node.os.clone(), installed.and(version(node))) {
        (Some(os), Some(version)) => Some(format!("{os} (version {version})")),
        (os, version) => os.or(version),
    }
}

/// The version that runs; when it is not the one that was installed, both.
fn version(node: &NodeReport) -> Option<String> {
    let runs = node.image_version.as_ref().or(node.version.as_ref())?;
    Some(match &node.installed_version {
        Some(installed) => format!("{runs}, NOT {installed}, which was installed"),
        None => runs.clone(),
    })
}

/// The image it should run; what is unproven is said, also of what it runs instead.
fn image(machine: &MachineView) -> String {
    let own = machine.image.as_deref();
    let mut text = cell(own).to_owned();
    for image in &machine.unproven {
        text += &match Some(image.as_str()) == own {
            true => " (unproven)".to_owned(),
            false => format!(" (on disk: {image}, unproven)"),
        };
    }
    text
}

/// One line a fact, the sentence first.
pub(super) fn show(machine: &MachineView) -> String {
    let mut table = Table::plain();
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            table.row([name, &value]);
        }
    };
    fact("state", Some(machine.state.to_string()));
    fact("rack", machine.rack.clone());
    fact("role", machine.role.clone());
    for nic in &machine.nics {
        fact("nic", Some(card(nic)));
    }
    system(&machine.config, &mut fact);
    fact(
        "bmc",
        Some(machine.bmc.as_ref().map_or_else(
            || "none: a person works the power button".to_owned(),
            |bmc| format!("{} as {}", bmc.url, bmc.username),
        )),
    );
    fact("disk", Some(plain(&serde_json::json!(machine.disk))));
    for disk in &machine.protected_disks {
        fact("protected", Some(plain(&serde_json::json!(disk))));
    }
    fact("image", machine.image.clone());
    for image in &machine.unproven {
        let what = format!("{image} was added without proof of its publisher");
        fact("unproven", Some(what));
    }
    fact("workflow", machine.workflow.clone());
    for (key, value) in &machine.labels {
        fact("label", Some(format!("{key}={value}")));
    }
    fact("run", machine.run.clone());
    if let Some(node) = &machine.node {
        fact("node os", node.os.clone());
        fact("node version", version(node));
        fact("node host name", node.hostname.clone());
        fact("node kernel", node.kernel.clone());
        fact("node machine-id", node.machine_id.clone());
        fact("node image", node.image.clone());
    }
    if let Some(inventory) = &machine.inventory {
        hardware(inventory, &mut fact);
    }
    fact("changed", Some(machine.updated_at.clone()));
    format!("{}: {}\n{table}", machine.name, printable(&machine.why))
}

fn card(nic: &Nic) -> String {
    let name = nic.name.as_ref().map(|name| format!("{name} "));
    let mut text = name.unwrap_or_default() + &nic.mac.to_string();
    text += &link(nic.address, nic.gateway, nic.mtu);
    if nic.boot {
        text += " (boots)";
    }
    text
}

/// Address, gateway and packet size, as far as they are given.
fn link(address: Option<Cidr>, gateway: Option<Ipv4Addr>, mtu: Option<u16>) -> String {
    let mut text = format!(" {}", cell(address.map(|a| a.to_string()).as_deref()));
    if let Some(gateway) = gateway {
        text += &format!(" via {gateway}");
    }
    if let Some(mtu) = mtu {
        text += &format!(", mtu {mtu}");
    }
    text
}

/// What the installed system is told.
fn system(config: &NodeConfig, fact: &mut impl FnMut(&str, Option<String>)) {
    let listed = |list: &[String]| Some(list.join(" ")).filter(|text| !text.is_empty());
    for bond in &config.bonds {
        let macs: Vec<String> = bond.macs.iter().map(Mac::to_string).collect();
        let link = link(bond.address, bond.gateway, bond.mtu);
        let (name, mode) = (&bond.name, &bond.mode);
        fact(
            "bond",
            Some(format!("{name} {mode} of {}{link}", macs.join(" "))),
        );
    }
    for vlan in &config.vlans {
        let link = link(vlan.address, vlan.gateway, None);
        let name = vlan.name.as_ref().map(|name| format!(" {name}"));
        let name = name.unwrap_or_default();
        fact(
            "vlan",
            Some(format!("{} on {}{name}{link}", vlan.id, vlan.parent)),
        );
    }
    fact("host name", config.hostname.clone());
    fact("dns", listed(&config.dns));
    fact("search", listed(&config.search));
    fact("ntp", listed(&config.ntp));
    for key in &config.ssh_keys {
        fact("ssh key", Some(printable(key)));
    }
    fact("kernel args", listed(&config.kernel_args));
    for (key, value) in &config.node_labels {
        fact("node label", Some(format!("{key}={value}")));
    }
    fact("node taints", listed(&config.node_taints));
    for file in &config.files {
        let size = time::bytes(file.contents.len() as u64);
        let mode = file.mode.as_deref().unwrap_or("0644");
        fact("file", Some(format!("{} {mode}, {size}", file.path)));
    }
    for registry in &config.registries {
        let ca = if registry.ca.is_some() {
            " with its own CA"
        } else {
            ""
        };
        let mirrors = registry.mirrors.join(" ");
        fact("registry", Some(format!("{}{ca} {mirrors}", registry.host)));
    }
    fact("cluster", config.cluster.clone());
}

fn hardware(inventory: &Inventory, fact: &mut impl FnMut(&str, Option<String>)) {
    let maker = [
        &inventory.manufacturer,
        &inventory.product,
        &inventory.serial,
    ];
    let maker: Vec<&str> = maker.into_iter().flatten().map(String::as_str).collect();
    fact(
        "hardware",
        Some(maker.join(" ")).filter(|text| !text.is_empty()),
    );
    fact("firmware", Some(inventory.firmware.clone()));
    let cpu = cell(inventory.cpu_model.as_deref());
    let memory = time::bytes(inventory.memory);
    fact(
        "cpu, memory",
        Some(format!("{} x {cpu}, {memory}", inventory.cpus)),
    );
    for disk in &inventory.disks {
        let kind = serde_json::json!(disk.kind);
        let kind = kind.as_str().unwrap_or_default();
        let model = cell(disk.model.as_deref());
        let serial = cell(disk.serial.as_deref());
        let size = time::bytes(disk.size);
        fact(
            "found disk",
            Some(format!("{kind} {size}, model {model}, serial {serial}")),
        );
    }
}

/// `{"type":"nvme","min_size":1}` as `type nvme, min_size 1`.
fn plain(value: &serde_json::Value) -> String {
    let Some(map) = value.as_object() else {
        return value.to_string();
    };
    let one = |(key, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::String(text) => format!("{key} {text}"),
        serde_json::Value::Number(bytes) if key.ends_with("_size") => {
            format!("{key} {}", time::bytes(bytes.as_u64().unwrap_or_default()))
        }
        other => format!("{key} {other}"),
    };
    map.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unproven_is_said_wherever_a_machine_is_shown() {
        let machine = |unproven: &[&str]| -> MachineView {
            serde_json::from_value(serde_json::json!({
                "name": "r1n1", "state": "provisioned", "why": "fine", "nics": [], "disk": {},
                "image": "os@2", "unproven": unproven, "updated_at": "2026-11-21T10:00:00.000Z",
            }))
            .unwrap()
        };
        assert_eq!(image(&machine(&[])), "os@2");
        assert_eq!(image(&machine(&["os@2"])), "os@2 (unproven)");
        let other = machine(&["os@1"]);
        assert_eq!(image(&other), "os@2 (on disk: os@1, unproven)");
        assert!(list(std::slice::from_ref(&other)).contains("on disk: os@1, unproven"));
        let text = show(&other);
        assert!(text.contains("os@1 was added without proof"), "{text}");
    }
}
