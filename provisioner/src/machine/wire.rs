//! The inventory file exactly as people write it, before anything is checked.
//!
//! Only `file` reads these types. Values that are checked later remember their place.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use anneal_protocol::disk::DiskType;

use crate::yaml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InventoryFile {
    pub machines: Vec<MachineEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineEntry {
    pub name: Spanned<String>,
    pub rack: Option<Spanned<String>>,
    pub role: Option<Spanned<String>>,
    pub nics: Spanned<Vec<NicEntry>>,
    pub bmc: Option<BmcEntry>,
    pub disk: Spanned<MapOrScalar<DiskEntry>>,
    #[serde(default)]
    pub protected_disks: Vec<Spanned<ProtectedEntry>>,
    pub image: Option<Spanned<String>>,
    pub workflow: Option<Spanned<String>>,
    #[serde(default)]
    pub labels: BTreeMap<String, Spanned<String>>,
    pub hostname: Option<Spanned<String>>,
    #[serde(default)]
    pub bonds: Vec<BondEntry>,
    #[serde(default)]
    pub vlans: Vec<VlanEntry>,
    #[serde(default)]
    pub dns: Vec<Spanned<String>>,
    #[serde(default)]
    pub search: Vec<Spanned<String>>,
    #[serde(default)]
    pub ntp: Vec<Spanned<String>>,
    #[serde(default)]
    pub ssh_keys: Vec<Spanned<String>>,
    #[serde(default)]
    pub kernel_args: Vec<Spanned<String>>,
    #[serde(default)]
    pub node_labels: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub node_taints: Vec<Spanned<String>>,
    #[serde(default)]
    pub files: Vec<FileEntry>,
    #[serde(default)]
    pub registries: Vec<RegistryEntry>,
    pub cluster: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NicEntry {
    pub mac: Spanned<String>,
    pub address: Option<Spanned<String>>,
    pub gateway: Option<Spanned<String>>,
    pub mtu: Option<Spanned<u16>>,
    pub name: Option<Spanned<String>>,
    pub boot: Option<Spanned<bool>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BondEntry {
    pub name: Spanned<String>,
    pub mode: Spanned<String>,
    pub macs: Spanned<Vec<Spanned<String>>>,
    pub address: Option<Spanned<String>>,
    pub gateway: Option<Spanned<String>>,
    pub mtu: Option<Spanned<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VlanEntry {
    pub id: Spanned<u16>,
    pub parent: Spanned<String>,
    pub name: Option<Spanned<String>>,
    pub address: Option<Spanned<String>>,
    pub gateway: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub path: Spanned<String>,
    pub mode: Option<Spanned<String>>,
    pub contents: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegistryEntry {
    pub host: Spanned<String>,
    #[serde(default)]
    pub mirrors: Vec<Spanned<String>>,
    pub ca: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BmcEntry {
    pub url: Spanned<String>,
    pub username: Spanned<String>,
    pub password: Spanned<MapOrScalar<PasswordEntry>>,
    pub tls_sha256: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordEntry {
    pub file: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskEntry {
    pub hints: Spanned<HintsEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HintsEntry {
    #[serde(rename = "type")]
    pub kind: Option<DiskType>,
    pub min_size: Option<Spanned<String>>,
    pub max_size: Option<Spanned<String>>,
    pub serial: Option<Spanned<String>>,
    pub wwn: Option<Spanned<String>>,
    pub model: Option<Spanned<String>>,
    pub rotational: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProtectedEntry {
    pub serial: Option<Spanned<String>>,
    pub wwn: Option<Spanned<String>>,
    pub label: Option<Spanned<String>>,
}

/// A mapping is wanted, and a plain value deserves its own explanation. The plain value is
/// dropped at once: it may be a password.
#[derive(Debug)]
pub(super) enum MapOrScalar<T> {
    Map(T),
    Scalar,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for MapOrScalar<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MapOrScalarVisitor(PhantomData))
    }
}

struct MapOrScalarVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for MapOrScalarVisitor<T> {
    type Value = MapOrScalar<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(MapOrScalar::Map)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(MapOrScalar::Scalar)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(MapOrScalar::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(MapOrScalar::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(MapOrScalar::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(MapOrScalar::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(MapOrScalar::Scalar)
    }
}
