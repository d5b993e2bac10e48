//! Rules between the parts of one machine: gateways lie in their networks, bonds have cards that
//! exist, VLANs have parents, nothing is named twice.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use anneal_protocol::machine::Mac;
use anneal_protocol::node::{Bond, ExtraFile, NodeConfig, Registry, Vlan};

use super::values;
use crate::machine::file::{Checked, Reader};
use crate::machine::wire::{BondEntry, FileEntry, MachineEntry, RegistryEntry, VlanEntry};
use crate::machine::{Cidr, Nic, check};
use crate::yaml::{Location, Spanned};

/// Arguments that a kernel or its initramfs takes several times, each with a meaning of its own.
const REPEATED: &[&str] = &[
    "console",
    "earlycon",
    "ip",
    "nameserver",
    "route",
    "vlan",
    "bond",
    "bridge",
    "ifname",
    "hugepages",
    "hugepagesz",
    "modprobe.blacklist",
    "module_blacklist",
    "systemd.mask",
    "systemd.wants",
    "systemd.setenv",
];

/// Whether giving an argument of this name twice is usual.
#[must_use]
pub fn repeatable_kernel_arg(name: &str) -> bool {
    REPEATED.contains(&name) || name.starts_with("rd.") || name.starts_with("talos.")
}

/// What the installed system calls its interfaces, and where the file says so: a name is given
/// once.
///
/// # Errors
/// The second place of a name.
fn network_names(reader: &Reader<'_>, names: &[&Spanned<String>]) -> Checked<()> {
    let mut seen: HashMap<&str, Location> = HashMap::new();
    for name in names {
        reader.value(name, values::interface)?;
        if let Some(first) = seen.insert(&name.value, name.referenced) {
            let told = format!(
                "interface {} is named twice, first in line {}",
                name.value,
                first.line()
            );
            return reader.refuse(name.referenced, told);
        }
    }
    Ok(())
}

/// An address and where the file says it.
pub(in crate::machine) type Addressed = (Ipv4Addr, Location);

impl Reader<'_> {
    /// What the installed system is told, and the addresses in it.
    pub(in crate::machine) fn node(
        &self,
        entry: &MachineEntry,
        nics: &[Nic],
    ) -> Checked<(NodeConfig, Vec<Addressed>)> {
        let names: Vec<&Spanned<String>> =
            (entry.nics.value.iter().filter_map(|n| n.name.as_ref()))
                .chain(entry.bonds.iter().map(|bond| &bond.name))
                .chain(entry.vlans.iter().filter_map(|vlan| vlan.name.as_ref()))
                .collect();
        network_names(self, &names)?;
        let mut addressed = Vec::new();
        let bonds = self.bonds(&entry.bonds, nics, &mut addressed)?;
        let vlans = self.vlans(&entry.vlans, nics, &bonds, &mut addressed)?;
        let config = NodeConfig {
            hostname: self.optional(entry.hostname.as_ref(), values::hostname)?,
            bonds,
            vlans,
            dns: self.list(&entry.dns, values::dns)?,
            search: self.list(&entry.search, values::search)?,
            ntp: self.list(&entry.ntp, values::ntp)?,
            ssh_keys: self.list(&entry.ssh_keys, values::ssh_key)?,
            kernel_args: self.kernel_args(&entry.kernel_args)?,
            node_labels: self.node_labels(&entry.node_labels)?,
            node_taints: self.list(&entry.node_taints, values::taint)?,
            files: self.files(&entry.files)?,
            registries: self.registries(&entry.registries)?,
            cluster: self.optional(entry.cluster.as_ref(), check::name)?,
        };
        Ok((config, addressed))
    }

    fn optional(
        &self,
        value: Option<&Spanned<String>>,
        check: impl FnOnce(&str) -> Result<(), check::Refusal>,
    ) -> Checked<Option<String>> {
        let Some(value) = value else { return Ok(None) };
        self.value(value, check)?;
        Ok(Some(value.value.clone()))
    }

    /// Values of a list, each once.
    fn list(
        &self,
        entries: &[Spanned<String>],
        check: impl Fn(&str) -> Result<(), check::Refusal>,
    ) -> Checked<Vec<String>> {
        let mut list: Vec<String> = Vec::new();
        for entry in entries {
            self.value(entry, &check)?;
            if list.contains(&entry.value) {
                return self.refuse(entry.referenced, "this is in the list already");
            }
            list.push(entry.value.clone());
        }
        Ok(list)
    }

    /// An address with its gateway, which lies in the same network.
    pub(in crate::machine) fn route(
        &self,
        address: Option<&Spanned<String>>,
        gateway: Option<&Spanned<String>>,
    ) -> Checked<(Option<Cidr>, Option<Ipv4Addr>)> {
        let address = address
            .map(|address| self.value(address, check::host_address))
            .transpose()?;
        let Some(place) = gateway else {
            return Ok((address, None));
        };
        let gateway = self.value(place, |text| {
            let bad = |_| format!("\"{text}\" is not an address: expected one such as 10.77.0.1");
            text.parse::<Ipv4Addr>().map_err(bad)
        })?;
        let Some(own) = address else {
            return self.refuse(
                place.referenced,
                "a gateway needs an `address` whose network it lies in",
            );
        };
        let edge = own.prefix <= 30 && (gateway == own.network() || gateway == own.broadcast());
        if !own.contains(gateway) || gateway == own.ip || edge {
            let told = format!("{gateway} is not another host in the network of {own}");
            return self.refuse(place.referenced, told);
        }
        Ok((address, Some(gateway)))
    }

    pub(in crate::machine) fn mtu(&self, mtu: Option<&Spanned<u16>>) -> Checked<Option<u16>> {
        let Some(mtu) = mtu else { return Ok(None) };
        match values::mtu(mtu.value) {
            Ok(()) => Ok(Some(mtu.value)),
            Err(told) => self.refuse(mtu.referenced, told),
        }
    }

    fn bonds(
        &self,
        entries: &[BondEntry],
        nics: &[Nic],
        addressed: &mut Vec<Addressed>,
    ) -> Checked<Vec<Bond>> {
        let mut holders: HashMap<Mac, &str> = HashMap::new();
        let mut bonds = Vec::new();
        for entry in entries {
            self.value(&entry.mode, values::bond_mode)?;
            if entry.macs.value.is_empty() {
                let told = "a bond needs at least one of the machine's cards: expected their MACs";
                return self.refuse(entry.macs.referenced, told);
            }
            let mut macs = Vec::new();
            for place in &entry.macs.value {
                let mac = self.value(place, check::mac)?;
                if !nics.iter().any(|nic| nic.mac == mac) {
                    let told = format!("no card of this machine has MAC {mac}: list it in `nics`");
                    return self.refuse(place.referenced, told);
                }
                if let Some(holder) = holders.insert(mac, &entry.name.value) {
                    let told = format!("card {mac} is in bond {holder} already");
                    return self.refuse(place.referenced, told);
                }
                macs.push(mac);
            }
            let (address, gateway) = self.route(entry.address.as_ref(), entry.gateway.as_ref())?;
            // The card boots with the address that the bond goes on with.
            let of_member = |address: Cidr| {
                let member = |nic: &&Nic| macs.contains(&nic.mac);
                let own = |nic: &Nic| nic.address.map(|own| own.ip) == Some(address.ip);
                nics.iter().filter(member).any(own)
            };
            if let (Some(address), Some(place)) = (address, &entry.address)
                && !of_member(address)
            {
                addressed.push((address.ip, place.referenced));
            }
            bonds.push(Bond {
                name: entry.name.value.clone(),
                mode: entry.mode.value.clone(),
                macs,
                address,
                gateway,
                mtu: self.mtu(entry.mtu.as_ref())?,
            });
        }
        Ok(bonds)
    }

    fn vlans(
        &self,
        entries: &[VlanEntry],
        nics: &[Nic],
        bonds: &[Bond],
        addressed: &mut Vec<Addressed>,
    ) -> Checked<Vec<Vlan>> {
        let mut vlans: Vec<Vlan> = Vec::new();
        for entry in entries {
            if let Err(told) = values::vlan_id(entry.id.value) {
                return self.refuse(entry.id.referenced, told);
            }
            let parent = self.parent(&entry.parent, nics, bonds)?;
            let same = |vlan: &&Vlan| vlan.id == entry.id.value && vlan.parent == parent;
            if vlans.iter().any(|vlan| same(&vlan)) {
                let told = format!("VLAN {} of {parent} is described twice", entry.id.value);
                return self.refuse(entry.id.referenced, told);
            }
            let (address, gateway) = self.route(entry.address.as_ref(), entry.gateway.as_ref())?;
            if let (Some(address), Some(place)) = (address, &entry.address) {
                addressed.push((address.ip, place.referenced));
            }
            vlans.push(Vlan {
                id: entry.id.value,
                parent,
                name: entry.name.as_ref().map(|name| name.value.clone()),
                address,
                gateway,
            });
        }
        Ok(vlans)
    }

    /// A card by its name or MAC, or a bond by its name; cards with a name by that name.
    fn parent(&self, place: &Spanned<String>, nics: &[Nic], bonds: &[Bond]) -> Checked<String> {
        let text = place.value.as_str();
        let by_mac = text.parse::<Mac>().ok();
        let found = nics
            .iter()
            .find(|nic| nic.name.as_deref() == Some(text) || Some(nic.mac) == by_mac)
            .map(|nic| nic.name.clone().unwrap_or_else(|| nic.mac.to_string()))
            .or_else(|| {
                bonds
                    .iter()
                    .find(|b| b.name == text)
                    .map(|b| b.name.clone())
            });
        found.map_or_else(
            || {
                self.refuse(
                    place.referenced,
                    "this machine has no such card or bond: expected the name or MAC of a card in \
                     `nics`, or the name of a bond in `bonds`",
                )
            },
            Ok,
        )
    }

    fn kernel_args(&self, entries: &[Spanned<String>]) -> Checked<Vec<String>> {
        let mut values: HashMap<&str, &str> = HashMap::new();
        for entry in entries {
            self.value(entry, values::kernel_arg)?;
            let (name, value) = entry.value.split_once('=').unwrap_or((&entry.value, ""));
            let before = values.insert(name, value);
            if before.is_some_and(|before| before != value) && !repeatable_kernel_arg(name) {
                let told = format!(
                    "kernel argument `{name}` is given twice with different values: the kernel \
                     would take one of them"
                );
                return self.refuse(entry.referenced, told);
            }
        }
        Ok(entries.iter().map(|entry| entry.value.clone()).collect())
    }

    fn node_labels(
        &self,
        entries: &BTreeMap<String, Spanned<String>>,
    ) -> Checked<BTreeMap<String, String>> {
        entries
            .iter()
            .map(|(key, value)| {
                values::label_key(key).or_else(|told| self.refuse(value.referenced, told))?;
                self.value(value, values::label_value)?;
                Ok((key.clone(), value.value.clone()))
            })
            .collect()
    }

    fn files(&self, entries: &[FileEntry]) -> Checked<Vec<ExtraFile>> {
        let mut files: Vec<ExtraFile> = Vec::new();
        for entry in entries {
            self.value(&entry.path, values::path)?;
            self.value(&entry.contents, values::contents)?;
            if files.iter().any(|file| file.path == entry.path.value) {
                let told = format!("file {} is described twice", entry.path.value);
                return self.refuse(entry.path.referenced, told);
            }
            files.push(ExtraFile {
                path: entry.path.value.clone(),
                mode: self.optional(entry.mode.as_ref(), values::mode)?,
                contents: entry.contents.value.clone(),
            });
        }
        Ok(files)
    }

    fn registries(&self, entries: &[RegistryEntry]) -> Checked<Vec<Registry>> {
        let mut registries: Vec<Registry> = Vec::new();
        for entry in entries {
            self.value(&entry.host, values::registry)?;
            if registries
                .iter()
                .any(|other| other.host == entry.host.value)
            {
                let told = format!("registry {} is described twice", entry.host.value);
                return self.refuse(entry.host.referenced, told);
            }
            if entry.mirrors.is_empty() && entry.ca.is_none() {
                let told = "nothing is said about this registry: expected `mirrors` or `ca`";
                return self.refuse(entry.host.referenced, told);
            }
            registries.push(Registry {
                host: entry.host.value.clone(),
                mirrors: self.list(&entry.mirrors, values::mirror)?,
                ca: self.optional(entry.ca.as_ref(), values::certificates)?,
            });
        }
        Ok(registries)
    }
}
