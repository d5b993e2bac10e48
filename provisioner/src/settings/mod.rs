//! Daemon settings: file -> merged with the command line -> validated.
//!
//! Only [`Settings`], the validated form, leaves this module. `packaging/anneal.yaml` is the
//! reference of the file; a test keeps it true.
//!
//! Not here: the flags' names and help (`cli::serve`), and opening sockets (`app`).

mod clusters;
mod file;
mod images;
pub mod interface;
mod listen;
mod merge;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machine::Cidr;
use crate::yaml::YamlError;

pub use clusters::{Access, ClusterSettings, IssuerSettings, JoinSettings, PLACEHOLDERS};
pub use images::ImageSettings;
pub use merge::{Host, merge};

/// Where the settings file is looked for when no flag names one.
pub const DEFAULT_FILE: &str = "/etc/anneal/anneal.yaml";

/// What the command line said; every value wins over the file's. Text is checked by [`merge`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--interface`
    pub interface: Option<String>,
    /// `--address`
    pub address: Option<String>,
    /// `--state-dir`
    pub state_dir: Option<String>,
    /// `--netboot-dir`
    pub netboot_dir: Option<String>,
    /// `--password-dir`, as often as it was given
    pub password_dirs: Vec<String>,
    /// `--dhcp-pool`
    pub dhcp_pool: Option<String>,
    /// `--boot-port`
    pub boot_port: Option<String>,
    /// `--tls-port`
    pub tls_port: Option<String>,
    /// `--images-listen`
    pub images_listen: Option<String>,
    /// `--no-plain-images`
    pub no_plain_images: bool,
    /// `--no-dhcp`
    pub no_dhcp: bool,
    /// `--no-tftp`
    pub no_tftp: bool,
    /// `--allow-foreign-dhcp`
    pub allow_foreign_dhcp: bool,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not what it should be.
    #[error(transparent)]
    File(#[from] YamlError),
    /// A value is wrong.
    #[error("{from}: {message}")]
    Invalid {
        /// File with line and column, or flag.
        from: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// No interface fits.
    #[error("{0}")]
    Interface(String),
    /// Something of this host cannot be read.
    #[error("cannot read {what}")]
    Unreadable {
        /// File, or fact of the host.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Reads the settings of a daemon on this host. Without `file`, [`DEFAULT_FILE`] is read if it
/// exists.
///
/// # Errors
/// When the file cannot be read, or a value in it or in `flags` is wrong.
pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Settings, SettingsError> {
    let unreadable = |what: &str| {
        let what = what.to_owned();
        move |source| SettingsError::Unreadable { what, source }
    };
    let host = Host::read().map_err(unreadable("this host's network interfaces"))?;
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => merge(Some((&text, path)), flags, &host),
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            merge(None, flags, &host)
        }
        Err(error) => Err(unreadable(&path.to_string_lossy())(error)),
    }
}

/// Everything the daemon was told, checked, with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where state lives: database, keys, images.
    pub state_dir: PathBuf,
    /// Boot files: iPXE binaries, the agent's kernel and initramfs (made by `make netboot`).
    pub netboot_dir: PathBuf,
    /// Directories that override the built-in data, if set.
    pub workflows_dir: Option<PathBuf>,
    /// Same, for templates.
    pub templates_dir: Option<PathBuf>,
    /// Directories that BMC passwords are read from; nothing outside is.
    pub password_dirs: Vec<PathBuf>,
    /// Interface that machines are on.
    pub interface: String,
    /// Our address on it.
    pub address: Cidr,
    /// Port of plain HTTP: boot files and scripts.
    pub boot_port: u16,
    /// Port of TLS: API, agents, nodes.
    pub tls_port: u16,
    /// DHCP; none when switched off.
    pub dhcp: Option<DhcpSettings>,
    /// TFTP.
    pub tftp: bool,
    /// How long an agent may be silent before its step counts as lost.
    pub agent_silence: Duration,
    /// Templates may ask for config URLs without TLS.
    pub plain_config_urls: bool,
    /// Where Talos may send its events; off when there is none.
    pub event_sink: Option<SocketAddr>,
    /// The metadata service; off when there is none.
    pub metadata: Option<MetadataSettings>,
    /// Images.
    pub images: ImageSettings,
    /// How many events are kept.
    pub events: EventSettings,
    /// Clusters that machines may join.
    pub join: JoinSettings,
}

/// Where the metadata service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Without TLS.
    pub plain: bool,
}

/// Which events are kept; those of active runs always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSettings {
    /// How long.
    pub keep: Duration,
    /// How many at most.
    pub max: u64,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(90 * 86_400),
            max: 1_000_000,
        }
    }
}

/// How DHCP answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpSettings {
    /// First and last address for machines without a reserved one; none: they are ignored.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Answer machines that are not in the inventory (needs `pool`).
    pub serve_unknown: bool,
    /// Default router to announce.
    pub router: Option<Ipv4Addr>,
    /// Name servers to announce.
    pub dns: Vec<Ipv4Addr>,
    /// Lease time.
    pub lease: Duration,
    /// Start although another DHCP server answers on the wire.
    pub allow_foreign: bool,
}
