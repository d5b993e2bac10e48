//! `anneal serve`: collects settings, starts logging, runs the daemon.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::settings::{self, Flags};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Flags of the daemon. Each wins over the settings file; packaging/anneal.yaml explains them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings file [default: /etc/anneal/anneal.yaml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Interface that machines are on [default: the only one that is up with an IPv4 address]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Our address on it [default: its first]
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    address: Option<String>,
    /// Where state lives: database, keys, images [default: /var/lib/anneal]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Boot programs, kernel and initramfs, made by `make netboot`
    #[arg(long, value_name = "DIR")]
    netboot_dir: Option<String>,
    /// Directory that BMC passwords may be read from; may be repeated [default: /etc/anneal/secrets and `secrets` in the state directory]
    #[arg(long = "password-dir", value_name = "DIR")]
    password_dirs: Vec<String>,
    /// Addresses for machines that have none in the inventory [default: none]
    #[arg(long, value_name = "FIRST-LAST")]
    dhcp_pool: Option<String>,
    /// Do not answer DHCP: another server sends machines here
    #[arg(long)]
    no_dhcp: bool,
    /// Do not serve TFTP
    #[arg(long)]
    no_tftp: bool,
    /// Port of plain HTTP, for firmware [default: 8080]
    #[arg(long, value_name = "PORT")]
    boot_port: Option<String>,
    /// Port of TLS: API, agents, nodes [default: 8443]
    #[arg(long, value_name = "PORT")]
    tls_port: Option<String>,
    /// Where images are served over plain HTTP [default: :8081]
    #[arg(long, value_name = "[ADDRESS]:PORT")]
    images_listen: Option<String>,
    /// Do not serve images over plain HTTP; agents fetch them over TLS
    #[arg(long)]
    no_plain_images: bool,
    /// Start although another DHCP server answers on this wire
    #[arg(long)]
    allow_foreign_dhcp: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,provisioner::dhcp=debug`
    #[arg(long, value_name = "LEVEL", env = "ANNEAL_LOG", default_value = "info")]
    log_level: String,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When a setting is wrong, the daemon cannot start, or a part of it fails.
pub fn serve(args: Args) -> anyhow::Result<()> {
    start_logging(args.log_format, &args.log_level)?;
    let config = args.config.clone();
    let settings = settings::load(config.as_deref(), &flags(args))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(crate::app::serve(settings))
}

fn flags(args: Args) -> Flags {
    Flags {
        interface: args.interface,
        address: args.address,
        state_dir: args.state_dir,
        netboot_dir: args.netboot_dir,
        password_dirs: args.password_dirs,
        dhcp_pool: args.dhcp_pool,
        boot_port: args.boot_port,
        tls_port: args.tls_port,
        images_listen: args.images_listen,
        no_plain_images: args.no_plain_images,
        no_dhcp: args.no_dhcp,
        no_tftp: args.no_tftp,
        allow_foreign_dhcp: args.allow_foreign_dhcp,
    }
}

fn start_logging(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log-level: \"{level}\" is not a level or filter"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("starting the log: {error}"))
}
