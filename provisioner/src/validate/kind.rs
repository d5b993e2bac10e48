//! What kind a text is, by what it says of itself, else by its path.

use serde_json::Value;

/// Whose rules a text follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ignition,
    CloudConfig,
    /// cloud-init's or netplan's network configuration.
    Network,
    Talos,
    Yaml,
    Json,
    Toml,
    Other,
}

/// Tells it for a text at `path` of a machine whose image is of family `os`.
pub(super) fn of(path: &str, text: &str, os: &str) -> Kind {
    let name = path.rsplit('/').next().unwrap_or_default();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    let json: Option<Value> = serde_json::from_str(text).ok();
    if json.is_some_and(|json| json.pointer("/ignition/version").is_some()) || ends(&[".ign"]) {
        Kind::Ignition
    } else if text.starts_with("#cloud-config") {
        Kind::CloudConfig
    } else if name == "network-config" || path.starts_with("/etc/netplan/") {
        Kind::Network
    } else if os == "talos" && is_talos(text) {
        Kind::Talos
    } else if ends(&[".toml"]) {
        Kind::Toml
    } else if ends(&[".json"]) {
        Kind::Json
    } else if ends(&[".yaml", ".yml", "meta-data", "vendor-data"]) {
        Kind::Yaml
    } else {
        Kind::Other
    }
}

fn is_talos(text: &str) -> bool {
    let says = |line: &str| line == "version: v1alpha1" || line == "apiVersion: v1alpha1";
    text.lines().any(|line| says(line.trim_end()))
}
