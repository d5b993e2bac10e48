//! `anneal.yaml` exactly as people write it: every key optional, nothing checked.
//!
//! Values are text that remembers its place; `merge` turns them into settings.

use serde::Deserialize;

use super::clusters::{ClusterFile, JoinTokensFile};
use crate::yaml::Spanned;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SettingsFile {
    pub state_dir: Option<Spanned<String>>,
    pub netboot_dir: Option<Spanned<String>>,
    pub workflows_dir: Option<Spanned<String>>,
    pub templates_dir: Option<Spanned<String>>,
    pub password_dirs: Option<Spanned<Vec<Spanned<String>>>>,
    pub interface: Option<Spanned<String>>,
    pub address: Option<Spanned<String>>,
    pub boot_port: Option<Spanned<String>>,
    pub tls_port: Option<Spanned<String>>,
    pub dhcp: Option<DhcpFile>,
    pub tftp: Option<bool>,
    pub agent_silence: Option<Spanned<String>>,
    pub plain_config_urls: Option<bool>,
    pub event_sink: Option<Spanned<ListenFile>>,
    pub metadata: Option<Spanned<MetadataFile>>,
    pub images: Option<ImagesFile>,
    pub events: Option<EventsFile>,
    pub clusters: Vec<ClusterFile>,
    pub join_tokens: Option<JoinTokensFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenFile {
    pub listen: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetadataFile {
    pub listen: Option<Spanned<String>>,
    pub plain: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ImagesFile {
    pub require_proof: Option<bool>,
    pub trusted_keys: Vec<Spanned<String>>,
    pub listen: Option<Spanned<String>>,
    pub plain: Option<bool>,
    pub limit_per_machine: Option<Spanned<String>>,
    pub limit_total: Option<Spanned<String>>,
    pub max_size: Option<Spanned<String>>,
    pub allow_local_sources: Option<bool>,
    pub upload_patience: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EventsFile {
    pub keep: Option<Spanned<String>>,
    pub max: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DhcpFile {
    pub enabled: Option<bool>,
    pub pool: Option<Spanned<String>>,
    pub serve_unknown: Option<Spanned<bool>>,
    pub router: Option<Spanned<String>>,
    pub dns: Vec<Spanned<String>>,
    pub lease: Option<Spanned<String>>,
    pub allow_foreign: Option<bool>,
}
