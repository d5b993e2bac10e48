//! The inventory file: from what people write to checked [`Machine`] records.
//!
//! Owns: the rules inside one file. Every refusal names file, line and column and says what was
//! expected; no refusal repeats a password.
//!
//! Not here: the shape (`wire`), single values (`check`), and rules against machines that are
//! already stored (`store::machines`).

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anneal_protocol::disk::{DiskHints, ProtectedDisk};
use anneal_protocol::machine::Mac;

use super::wire::{
    BmcEntry, HintsEntry, InventoryFile, MachineEntry, MapOrScalar, NicEntry, ProtectedEntry,
};
use super::{Bmc, Machine, Nic, check};
use crate::yaml::{self, Location, Spanned, YamlError};

/// A checked inventory file, or several that are applied together.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    /// The machines, in file order.
    pub machines: Vec<Described>,
}

/// A machine and where the file says so, for refusals that need other machines to be known.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    /// The machine.
    pub machine: Machine,
    /// The file that describes it, as its author knows it.
    pub file: String,
    /// Where its name is.
    pub name_at: Location,
    /// Where MAC and address of each card are, in the order of `machine.nics`.
    pub nics_at: Vec<NicPlace>,
    /// Addresses of bonds and VLANs that are not those of cards, and where they are.
    pub addresses_at: Vec<(Ipv4Addr, Location)>,
    /// Where the path of the BMC's password is.
    pub password_at: Option<Location>,
    /// Where its cluster is.
    pub cluster_at: Option<Location>,
}

/// Where a card's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NicPlace {
    /// The MAC.
    pub mac: Location,
    /// The address, or the MAC when there is none.
    pub address: Location,
}

impl Described {
    /// The MACs of its cards, and where they are.
    pub(crate) fn macs(&self) -> impl Iterator<Item = (Mac, Location)> {
        let cards = self.machine.nics.iter().zip(&self.nics_at);
        cards.map(|(nic, place)| (nic.mac, place.mac))
    }

    /// Its addresses, and where they are; those of cards that a bond takes over once.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, Location)> {
        let cards = self.machine.nics.iter().zip(&self.nics_at);
        cards
            .filter_map(|(nic, place)| Some((nic.address?.ip, place.address)))
            .chain(self.addresses_at.iter().copied())
    }
}

impl Inventory {
    /// Puts files together, to be applied all or none.
    ///
    /// # Errors
    /// When a machine, MAC or address is in two of them, with its second place.
    pub fn together(files: Vec<Self>) -> Result<Self, YamlError> {
        let machines: Vec<Described> = files.into_iter().flat_map(|f| f.machines).collect();
        no_duplicates(&machines)?;
        Ok(Self { machines })
    }

    /// Refuses relative paths of password files: only the sender knew what they are relative to
    /// (see [`with_absolute_paths`]).
    ///
    /// # Errors
    /// The first relative path, with its place.
    pub fn require_absolute_paths(&self) -> Result<(), YamlError> {
        for described in &self.machines {
            if let (Some(bmc), Some(place)) = (&described.machine.bmc, described.password_at)
                && bmc.password_file.is_relative()
            {
                let told = "the daemon cannot know what this path is relative to: expected an \
                            absolute path";
                return Err(YamlError::at(&described.file, place, told));
            }
        }
        Ok(())
    }

    /// Refuses clusters that machines cannot join, as `check` says.
    ///
    /// # Errors
    /// The first such cluster, with its place and the reason.
    pub fn check_clusters(
        &self,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), YamlError> {
        for described in &self.machines {
            if let (Some(cluster), Some(place)) =
                (described.machine.cluster(), described.cluster_at)
            {
                check(cluster).map_err(|told| {
                    let told = format!("`cluster`: {told}");
                    YamlError::at(&described.file, place, told)
                })?;
            }
        }
        Ok(())
    }

    /// Refuses password files that the daemon may not read, as `check` says.
    ///
    /// # Errors
    /// The first such path, with its place and the reason.
    pub fn check_password_files<E: std::fmt::Display>(
        &self,
        check: impl Fn(&std::path::Path) -> Result<(), E>,
    ) -> Result<(), YamlError> {
        self.require_absolute_paths()?;
        for described in &self.machines {
            if let (Some(bmc), Some(place)) = (&described.machine.bmc, described.password_at) {
                check(&bmc.password_file).map_err(|refusal| {
                    let told = format!("`bmc.password.file`: {refusal}");
                    YamlError::at(&described.file, place, told)
                })?;
            }
        }
        Ok(())
    }
}

/// Labels that anneal itself gives a meaning, with the values they take.
const OWN_LABELS: [(&str, &[&str]); 1] = [("anneal/boot-device", &["pxe", "uefi-http"])];

/// Reads and checks an inventory file; `file` is used in refusals only.
///
/// # Errors
/// The first mistake, with its place.
pub fn parse(text: &str, file: &str) -> Result<Inventory, YamlError> {
    let raw: InventoryFile = yaml::parse(text, file)?;
    let reader = Reader { file };
    let machines = raw
        .machines
        .into_iter()
        .map(|entry| reader.machine(entry))
        .collect::<Result<Vec<_>, _>>()?;
    no_duplicates(&machines)?;
    Ok(Inventory { machines })
}

/// Writes absolute paths into `text` where `inventory`, read from it, has relative paths of
/// password files: they are meant relative to `directory`, which only the sender knows. All
/// other text stays as it is.
#[must_use]
pub fn with_absolute_paths(
    text: &str,
    inventory: &Inventory,
    directory: &std::path::Path,
) -> String {
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    for described in &inventory.machines {
        let (Some(bmc), Some(place)) = (&described.machine.bmc, described.password_at) else {
            continue;
        };
        let span = place.span();
        let (Some(start), Some(length)) = (span.byte_offset(), span.byte_len()) else {
            continue;
        };
        if bmc.password_file.is_relative()
            && let (Ok(start), Ok(length)) = (usize::try_from(start), usize::try_from(length))
        {
            let path = directory.join(&bmc.password_file);
            // A JSON string is a double-quoted YAML scalar.
            let quoted = serde_json::Value::from(path.to_string_lossy()).to_string();
            edits.push((start, start + length, quoted));
        }
    }
    edits.sort();
    edits.dedup();
    let mut out = text.to_owned();
    for (start, end, path) in edits.into_iter().rev() {
        out.replace_range(start..end, &path);
    }
    out
}

/// Reads the entries of one file.
pub(super) struct Reader<'a> {
    file: &'a str,
}

pub(super) type Checked<T> = Result<T, YamlError>;

impl Reader<'_> {
    pub(super) fn refuse<T>(&self, place: Location, message: impl Into<String>) -> Checked<T> {
        Err(YamlError::at(self.file, place, message))
    }

    /// Checks a value with a function of `check` and keeps its place in the refusal.
    pub(super) fn value<T>(
        &self,
        value: &Spanned<String>,
        check: impl FnOnce(&str) -> Result<T, check::Refusal>,
    ) -> Checked<T> {
        check(&value.value).map_err(|refusal| YamlError::at(self.file, value.referenced, refusal))
    }

    fn words(&self, what: &str, value: Option<Spanned<String>>) -> Checked<Option<String>> {
        value
            .map(|value| {
                self.value(&value, |text| check::words(what, text))?;
                Ok(value.value)
            })
            .transpose()
    }

    fn machine(&self, entry: MachineEntry) -> Checked<Described> {
        self.value(&entry.name, check::name)?;
        let (nics, nics_at) = self.nics(&entry.nics)?;
        let (config, addresses_at) = self.node(&entry, &nics)?;
        let password_at = entry
            .bmc
            .as_ref()
            .and_then(|bmc| match &bmc.password.value {
                MapOrScalar::Map(password) => Some(password.file.referenced),
                MapOrScalar::Scalar => None,
            });
        let bmc = entry.bmc.map(|bmc| self.bmc(bmc)).transpose()?;
        let disk = self.disk(&entry.disk)?;
        let protected_disks = entry
            .protected_disks
            .iter()
            .map(|protected| self.protected(protected, &disk))
            .collect::<Checked<_>>()?;
        if let Some(image) = &entry.image {
            self.value(image, check::image)?;
        }
        if let Some(workflow) = &entry.workflow {
            self.value(workflow, check::name)?;
        }
        Ok(Described {
            file: self.file.to_owned(),
            name_at: entry.name.referenced,
            nics_at,
            addresses_at,
            password_at,
            cluster_at: entry.cluster.map(|cluster| cluster.referenced),
            machine: Machine {
                name: entry.name.value,
                rack: self.words("the rack", entry.rack)?,
                role: self.words("the role", entry.role)?,
                nics,
                bmc,
                disk,
                protected_disks,
                image: entry.image.map(|image| image.value),
                workflow: entry.workflow.map(|workflow| workflow.value),
                labels: self.labels(entry.labels)?,
                config,
            },
        })
    }

    fn nics(&self, entries: &Spanned<Vec<NicEntry>>) -> Checked<(Vec<Nic>, Vec<NicPlace>)> {
        if entries.value.is_empty() {
            return self.refuse(
                entries.referenced,
                "a machine needs at least one network card: expected `- { mac: …, address: … }`",
            );
        }
        let mut boots = false;
        let mut nics = Vec::new();
        let mut places = Vec::new();
        for entry in &entries.value {
            let boot = entry.boot.as_ref().filter(|boot| boot.value);
            if let Some(boot) = boot {
                if boots {
                    return self.refuse(
                        boot.referenced,
                        "a machine boots over exactly one network card: another one above says \
                         `boot: true` already",
                    );
                }
                boots = true;
            }
            let mac = self.value(&entry.mac, check::mac)?;
            let (address, gateway) = self.route(entry.address.as_ref(), entry.gateway.as_ref())?;
            nics.push(Nic {
                mac,
                address,
                gateway,
                mtu: self.mtu(entry.mtu.as_ref())?,
                name: entry.name.as_ref().map(|name| name.value.clone()),
                boot: boot.is_some(),
            });
            let mac = entry.mac.referenced;
            places.push(NicPlace {
                mac,
                address: entry.address.as_ref().map_or(mac, |a| a.referenced),
            });
        }
        if !boots {
            self.default_boot_nic(entries, &mut nics)?;
        }
        Ok((nics, places))
    }

    /// The first card boots, unless the file says that it does not.
    fn default_boot_nic(&self, entries: &Spanned<Vec<NicEntry>>, nics: &mut [Nic]) -> Checked<()> {
        match &entries.value[0].boot {
            Some(boot) => self.refuse(
                boot.referenced,
                "a machine boots over exactly one network card: expected `boot: true` on one",
            ),
            None => {
                nics[0].boot = true;
                Ok(())
            }
        }
    }

    fn bmc(&self, entry: BmcEntry) -> Checked<Bmc> {
        let encrypted = self.value(&entry.url, check::bmc_url)?;
        self.value(&entry.username, |text| check::words("the user name", text))?;
        let MapOrScalar::Map(password) = entry.password.value else {
            return self.refuse(
                entry.password.referenced,
                "a password is never written into an inventory: expected \
                 `{ file: /path/of/a/file/that/holds/it }`",
            );
        };
        self.value(&password.file, |text| check::words("the path", text))?;
        let tls_sha256 = match &entry.tls_sha256 {
            Some(digest) if !encrypted => {
                return self.refuse(
                    digest.referenced,
                    "a redfish+http BMC has no certificate: expected redfish+https in `url`, or \
                     no `tls_sha256`",
                );
            }
            Some(digest) => Some(self.value(digest, check::sha256)?),
            None => None,
        };
        Ok(Bmc {
            url: entry.url.value,
            username: entry.username.value,
            password_file: PathBuf::from(password.file.value),
            tls_sha256,
        })
    }

    fn disk(&self, entry: &Spanned<MapOrScalar<super::wire::DiskEntry>>) -> Checked<DiskHints> {
        let MapOrScalar::Map(disk) = &entry.value else {
            return self.refuse(
                entry.referenced,
                "a disk is never chosen by its device name, which changes between boots: expected \
                 `{ hints: { type: nvme, min_size: 100GiB } }`",
            );
        };
        let raw: &HintsEntry = &disk.hints.value;
        let size = |value: &Option<Spanned<String>>| {
            value
                .as_ref()
                .map(|value| self.value(value, check::size))
                .transpose()
        };
        let hints = DiskHints {
            kind: raw.kind,
            min_size: size(&raw.min_size)?,
            max_size: size(&raw.max_size)?,
            serial: self.exact(raw.serial.as_ref())?,
            wwn: self.exact(raw.wwn.as_ref())?,
            model: self.exact(raw.model.as_ref())?,
            rotational: raw.rotational,
        };
        if hints == DiskHints::default() {
            return self.refuse(
                disk.hints.referenced,
                "no hint says which disk to install to: expected at least one of type, min_size, \
                 max_size, serial, wwn, model, rotational",
            );
        }
        if let (Some(min), Some(max), Some(at)) = (hints.min_size, hints.max_size, &raw.max_size)
            && min > max
        {
            return self.refuse(at.referenced, "`max_size` is smaller than `min_size`");
        }
        Ok(hints)
    }

    /// A text that must be found on the disk as it is; device names are refused.
    fn exact(&self, value: Option<&Spanned<String>>) -> Checked<Option<String>> {
        let Some(value) = value else { return Ok(None) };
        let text = value.value.trim();
        if text.starts_with("/dev/") {
            return self.refuse(
                value.referenced,
                "a disk is never chosen by its device name, which changes between boots: expected \
                 what the disk says of itself",
            );
        }
        self.value(value, |_| check::words("the text", text))?;
        Ok(Some(text.to_owned()))
    }

    fn protected(
        &self,
        entry: &Spanned<ProtectedEntry>,
        hints: &DiskHints,
    ) -> Checked<ProtectedDisk> {
        let raw = &entry.value;
        let disk = ProtectedDisk {
            serial: self.exact(raw.serial.as_ref())?,
            wwn: self.exact(raw.wwn.as_ref())?,
            label: self.exact(raw.label.as_ref())?,
        };
        if disk == ProtectedDisk::default() {
            return self.refuse(
                entry.referenced,
                "nothing says which disk is protected: expected at least one of serial, wwn, label",
            );
        }
        for (field, protected, hint) in [
            ("serial", &raw.serial, &hints.serial),
            ("wwn", &raw.wwn, &hints.wwn),
        ] {
            if let (Some(protected), Some(hint)) = (protected, hint)
                && protected.value.trim() == hint
            {
                return self.refuse(
                    protected.referenced,
                    format!("this disk is protected, but `disk.hints.{field}` chooses it"),
                );
            }
        }
        Ok(disk)
    }

    fn labels(
        &self,
        entries: BTreeMap<String, Spanned<String>>,
    ) -> Checked<BTreeMap<String, String>> {
        let mut labels = BTreeMap::new();
        for (key, value) in entries {
            if key.is_empty() || key.len() > 128 || key.chars().any(char::is_whitespace) {
                return self.refuse(
                    value.referenced,
                    "the label's name is empty, longer than 128 bytes, or has spaces",
                );
            }
            self.value(&value, |text| check::words("the label", text))?;
            if key.starts_with("anneal/") {
                self.own_label(&key, &value)?;
            }
            labels.insert(key, value.value);
        }
        Ok(labels)
    }

    fn own_label(&self, key: &str, value: &Spanned<String>) -> Checked<()> {
        let Some((_, values)) = OWN_LABELS.iter().find(|(known, _)| *known == key) else {
            let known: Vec<&str> = OWN_LABELS.iter().map(|(known, _)| *known).collect();
            return self.refuse(
                value.referenced,
                yaml::unknown_word("label of anneal's own", key, &known),
            );
        };
        if values.contains(&value.value.as_str()) {
            return Ok(());
        }
        self.refuse(
            value.referenced,
            yaml::unknown_word("boot device", &value.value, values),
        )
    }
}

/// Refuses what must be unique and is not, within one file or several.
fn no_duplicates(machines: &[Described]) -> Checked<()> {
    let mut names: HashMap<&str, Place> = HashMap::new();
    let mut macs: HashMap<Mac, (&str, Place)> = HashMap::new();
    let mut addresses: HashMap<Ipv4Addr, (&str, Place)> = HashMap::new();
    for described in machines {
        let (name, file) = (described.machine.name.as_str(), described.file.as_str());
        let refuse = |at, message| Err(YamlError::at(file, at, message));
        if let Some(first) = names.insert(name, (file, described.name_at)) {
            let first = shown(first, file);
            let told = format!("machine {name} is described twice, first {first}");
            return refuse(described.name_at, told);
        }
        for (mac, place) in described.macs() {
            if let Some((holder, first)) = macs.insert(mac, (name, (file, place))) {
                let told = taken(&format!("MAC {mac}"), holder);
                return refuse(place, format!("{told}, {}", shown(first, file)));
            }
        }
        for (address, place) in described.addresses() {
            if let Some((holder, first)) = addresses.insert(address, (name, (file, place))) {
                let told = taken(&format!("address {address}"), holder);
                return refuse(place, format!("{told}, {}", shown(first, file)));
            }
        }
    }
    Ok(())
}

/// File and place in it.
type Place<'a> = (&'a str, Location);

/// A place, as it is told in a refusal about `file`.
fn shown((file, at): Place<'_>, about: &str) -> String {
    if file == about {
        format!("in line {}", at.line())
    } else {
        format!("in line {} of {file}", at.line())
    }
}

/// The sentence for a value that must be unique and is not.
pub(crate) fn taken(what: &str, holder: &str) -> String {
    format!("{what} belongs to machine {holder} already")
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
