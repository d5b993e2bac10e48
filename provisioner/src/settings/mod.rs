//! Daemon settings: file -> merged with the command line -> validated.
//!
//! Only [`Settings`], the validated form, leaves this module.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::machine::Cidr;

/// Everything the daemon was told, checked, with defaults filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where state lives: database, keys, images.
    pub state_dir: PathBuf,
    /// Boot files: iPXE binaries, the agent's kernel and initramfs (made by `make netboot`).
    pub netboot_dir: PathBuf,
    /// Directories that override the built-in data, if set.
    pub workflows_dir: Option<PathBuf>,
    /// Same, for templates.
    pub templates_dir: Option<PathBuf>,
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
