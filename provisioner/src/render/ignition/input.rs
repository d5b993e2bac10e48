//! Ignition as our templates write it. Values that are checked later remember their place.

use serde::Deserialize;

use super::storage::Storage;
use crate::yaml::Spanned;

/// The document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    #[serde(default)]
    pub files: Vec<File>,
    #[serde(default)]
    pub directories: Vec<Directory>,
    #[serde(default)]
    pub links: Vec<Link>,
    #[serde(default)]
    pub units: Vec<Unit>,
    #[serde(default)]
    pub users: Vec<User>,
    #[serde(default)]
    pub groups: Vec<Group>,
    pub storage: Option<Spanned<Storage>>,
    pub kernel_args: Option<Spanned<KernelArgs>>,
    #[serde(default)]
    pub merge: Vec<Reference>,
    pub replace: Option<Reference>,
    /// Certificates to trust, PEM.
    #[serde(default)]
    pub ca: Vec<Spanned<String>>,
    /// The same by URL.
    #[serde(default)]
    pub certificate_authorities: Vec<Authority>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: Spanned<String>,
    pub mode: Option<Spanned<String>>,
    pub user: Option<Spanned<Owner>>,
    pub group: Option<Spanned<Owner>>,
    pub overwrite: Option<bool>,
    pub contents: Option<String>,
    pub source: Option<Spanned<String>>,
    pub hash: Option<Spanned<String>>,
    pub compress: Option<Compress>,
}

/// How contents travel. Without the key, those that are large are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    Gzip,
    None,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    pub path: Spanned<String>,
    pub mode: Option<Spanned<String>>,
    pub user: Option<Spanned<Owner>>,
    pub group: Option<Spanned<Owner>>,
    pub overwrite: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub path: Spanned<String>,
    pub target: Spanned<String>,
    pub hard: Option<bool>,
    pub overwrite: Option<bool>,
    pub user: Option<Spanned<Owner>>,
    pub group: Option<Spanned<Owner>>,
}

/// A name or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Owner {
    Id(u32),
    Name(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    pub name: Spanned<String>,
    pub enabled: Option<Spanned<bool>>,
    pub mask: Option<bool>,
    pub contents: Option<String>,
    #[serde(default)]
    pub dropins: Vec<Dropin>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropin {
    pub name: Spanned<String>,
    pub contents: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: Spanned<String>,
    #[serde(default)]
    pub ssh_keys: Vec<Spanned<String>>,
    #[serde(default)]
    pub groups: Vec<String>,
    pub password_hash: Option<Spanned<String>>,
    pub shell: Option<String>,
    pub no_create_home: Option<bool>,
    pub home_dir: Option<String>,
    pub uid: Option<u32>,
    pub system: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub name: Spanned<String>,
    pub gid: Option<u32>,
    pub system: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelArgs {
    #[serde(default)]
    pub should_exist: Vec<Spanned<String>>,
    #[serde(default)]
    pub should_not_exist: Vec<Spanned<String>>,
}

/// Another configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    pub source: Spanned<String>,
    pub hash: Option<Spanned<String>>,
}

/// Whom to trust when something is fetched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    pub contents: Option<Spanned<String>>,
    pub source: Option<Spanned<String>>,
    pub hash: Option<Spanned<String>>,
}
