//! From the file and the command line to checked [`Settings`].
//!
//! A flag wins over the file, the file over the default. Every refusal names where the value came
//! from: file, line and column, or the flag.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::file::{DhcpFile, EventsFile, SettingsFile};
use super::interface::{self, Interface};
use super::{DhcpSettings, EventSettings, Flags, Settings, SettingsError};
use crate::machine::Cidr;
use crate::workflow::duration;
use crate::yaml::{self, Spanned};

const STATE_DIR: &str = "/var/lib/anneal";
const SYSTEM_NETBOOT_DIR: &str = "/usr/share/anneal/netboot";
/// Directory for BMC passwords beside `secrets` in the state directory.
const PASSWORD_DIR: &str = "/etc/anneal/secrets";
const BOOT_PORT: u16 = 8080;
const TLS_PORT: u16 = 8443;
const LEASE: Duration = Duration::from_secs(3600);
const AGENT_SILENCE: Duration = Duration::from_secs(180);

/// What the settings depend on besides file and flags; facts come in as values.
#[derive(Debug, Clone)]
pub struct Host {
    /// Network interfaces.
    pub interfaces: Vec<Interface>,
    /// Directory of our own program, to find the boot files that were installed with it.
    pub program_dir: Option<PathBuf>,
    /// Directory that relative paths of flags are meant in.
    pub working_dir: PathBuf,
}

impl Host {
    /// The facts of this host.
    ///
    /// # Errors
    /// When the kernel does not tell the interfaces or the working directory.
    pub fn read() -> std::io::Result<Self> {
        Ok(Self {
            interfaces: interface::list()?,
            program_dir: std::env::current_exe()
                .ok()
                .and_then(|exe| exe.parent().map(Path::to_owned)),
            working_dir: std::env::current_dir()?,
        })
    }
}

/// Makes settings of a file's text (if there is a file), flags, and the host's facts.
///
/// # Errors
/// The first value that is wrong, with where it came from and what was expected.
pub fn merge(
    file: Option<(&str, &Path)>,
    flags: &Flags,
    host: &Host,
) -> Result<Settings, SettingsError> {
    let (raw, name, directory) = match file {
        Some((text, path)) => (
            parse(text, &path.to_string_lossy())?,
            path.to_string_lossy().into_owned(),
            host.working_dir
                .join(path.parent().unwrap_or(Path::new(""))),
        ),
        None => (SettingsFile::default(), String::new(), PathBuf::new()),
    };
    Merge {
        name,
        directory,
        flags,
        host,
    }
    .settings(raw)
}

/// A file with nothing but comments holds no settings, which is fine.
fn parse(text: &str, file: &str) -> Result<SettingsFile, SettingsError> {
    let empty = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    };
    if text.lines().all(empty) {
        return Ok(SettingsFile::default());
    }
    Ok(yaml::parse(text, file)?)
}

/// A value and where it came from, for refusals.
pub(super) struct Given {
    pub(super) text: String,
    from: String,
    /// Directory that a relative path is meant in.
    directory: PathBuf,
}

impl Given {
    pub(super) fn refuse(&self, message: impl std::fmt::Display) -> SettingsError {
        refuse(&self.from, message)
    }

    fn parse<T: FromStr>(&self, expected: &str) -> Result<T, SettingsError> {
        self.text
            .parse()
            .map_err(|_| self.refuse(format!("\"{}\" is not {expected}", self.text)))
    }

    pub(super) fn path(self) -> PathBuf {
        self.directory.join(self.text)
    }
}

pub(super) fn refuse(from: &str, message: impl std::fmt::Display) -> SettingsError {
    SettingsError::Invalid {
        from: from.to_owned(),
        message: message.to_string(),
    }
}

pub(super) struct Merge<'a> {
    name: String,
    directory: PathBuf,
    pub(super) flags: &'a Flags,
    host: &'a Host,
}

impl Merge<'_> {
    fn settings(&self, raw: SettingsFile) -> Result<Settings, SettingsError> {
        let flags = self.flags;
        let name = self.pick(
            "--interface",
            flags.interface.as_ref(),
            raw.interface.as_ref(),
        );
        let wanted = self
            .pick("--address", flags.address.as_ref(), raw.address.as_ref())
            .map(|given| {
                given
                    .text
                    .parse::<Cidr>()
                    .map_err(|told| given.refuse(told.to_string()))
            })
            .transpose()?;
        let name = name.map(|given| given.text);
        let (interface, address) =
            interface::choose(&self.host.interfaces, name.as_deref(), wanted)
                .map_err(SettingsError::Interface)?;
        let boot_port = self.port(
            "--boot-port",
            flags.boot_port.as_ref(),
            raw.boot_port,
            BOOT_PORT,
        )?;
        let tls_port = self.port(
            "--tls-port",
            flags.tls_port.as_ref(),
            raw.tls_port,
            TLS_PORT,
        )?;
        if boot_port == tls_port {
            return Err(refuse(
                "--boot-port and --tls-port",
                format!("both are {boot_port}: expected two ports"),
            ));
        }
        let path = |flag, given: Option<&String>, raw: Option<Spanned<String>>| {
            self.pick(flag, given, raw.as_ref()).map(Given::path)
        };
        let state_dir = path("--state-dir", flags.state_dir.as_ref(), raw.state_dir)
            .unwrap_or_else(|| STATE_DIR.into());
        let ports = [("boot", boot_port), ("TLS", tls_port)];
        let images = self.images(raw.images.unwrap_or_default(), address, ports)?;
        let image_port = images.listen.map(|at| ("image", at.port()));
        let taken: Vec<_> = ports.into_iter().chain(image_port).collect();
        let event_sink = self.event_sink(raw.event_sink, address, &taken)?;
        let sink_port = event_sink.map(|at| ("event sink's", at.port()));
        let taken: Vec<_> = taken.into_iter().chain(sink_port).collect();
        let metadata = self.metadata(raw.metadata, address, &taken)?;
        Ok(Settings {
            password_dirs: self.password_dirs(raw.password_dirs, &state_dir)?,
            join: self.join(
                raw.clusters,
                raw.join_tokens.unwrap_or_default(),
                &state_dir,
            )?,
            state_dir,
            netboot_dir: path("--netboot-dir", flags.netboot_dir.as_ref(), raw.netboot_dir)
                .unwrap_or_else(|| self.installed_netboot_dir()),
            workflows_dir: path("", None, raw.workflows_dir),
            templates_dir: path("", None, raw.templates_dir),
            images,
            event_sink,
            metadata,
            dhcp: self.dhcp(raw.dhcp.unwrap_or_default(), address)?,
            interface,
            address,
            boot_port,
            tls_port,
            tftp: raw.tftp.unwrap_or(true) && !flags.no_tftp,
            agent_silence: self.duration(
                raw.agent_silence,
                AGENT_SILENCE,
                Duration::from_secs(10)..=Duration::from_secs(3600),
            )?,
            plain_config_urls: raw.plain_config_urls.unwrap_or(false),
            events: self.events(raw.events.unwrap_or_default())?,
        })
    }

    /// The flags' directories, or else the file's, or else the usual ones.
    fn password_dirs(
        &self,
        raw: Option<Spanned<Vec<Spanned<String>>>>,
        state_dir: &Path,
    ) -> Result<Vec<PathBuf>, SettingsError> {
        let given = &self.flags.password_dirs;
        if !given.is_empty() {
            let dir = |dir| self.host.working_dir.join(dir);
            return Ok(given.iter().map(dir).collect());
        }
        let Some(raw) = raw else {
            return Ok(vec![PASSWORD_DIR.into(), state_dir.join("secrets")]);
        };
        let mut dirs = Vec::new();
        for value in &raw.value {
            let given = self.in_file(value);
            if given.text.is_empty() {
                return Err(given.refuse("expected a directory"));
            }
            dirs.push(given.path());
        }
        Ok(dirs)
    }

    fn events(&self, raw: EventsFile) -> Result<EventSettings, SettingsError> {
        let usual = EventSettings::default();
        let day = Duration::from_secs(86_400);
        let max = match raw.max.as_ref().map(|value| self.in_file(value)) {
            None => usual.max,
            Some(given) => {
                let expected = "a number of events: expected at least 1000";
                let max = given.parse(expected)?;
                if max < 1000 {
                    return Err(given.refuse(format!("\"{max}\" is not {expected}")));
                }
                max
            }
        };
        Ok(EventSettings {
            keep: self.duration(raw.keep, usual.keep, day..=3650 * day)?,
            max,
        })
    }

    fn dhcp(&self, raw: DhcpFile, own: Cidr) -> Result<Option<DhcpSettings>, SettingsError> {
        if !raw.enabled.unwrap_or(true) || self.flags.no_dhcp {
            return Ok(None);
        }
        let pool = self
            .pick(
                "--dhcp-pool",
                self.flags.dhcp_pool.as_ref(),
                raw.pool.as_ref(),
            )
            .map(|given| pool(&given, own))
            .transpose()?;
        let serve_unknown = raw.serve_unknown.as_ref().is_some_and(|value| value.value);
        if let (Some(value), true, None) = (&raw.serve_unknown, serve_unknown, pool) {
            return Err(self.in_file(value).refuse(
                "machines that are not in the inventory need addresses: expected `pool` as well",
            ));
        }
        let router = raw
            .router
            .as_ref()
            .map(|value| {
                let given = self.in_file(value);
                let router: Ipv4Addr = given.parse("an IPv4 address")?;
                if own.contains(router) {
                    return Ok(router);
                }
                Err(given.refuse(format!("{router} is not in the network of {own}")))
            })
            .transpose()?;
        let dns = raw
            .dns
            .iter()
            .map(|value| self.in_file(value).parse("an IPv4 address"))
            .collect::<Result<_, _>>()?;
        let lease = self.duration(
            raw.lease,
            LEASE,
            Duration::from_secs(120)..=Duration::from_secs(30 * 86_400),
        )?;
        Ok(Some(DhcpSettings {
            pool,
            serve_unknown,
            router,
            dns,
            lease,
            allow_foreign: raw.allow_foreign.unwrap_or(false) || self.flags.allow_foreign_dhcp,
        }))
    }

    /// The flag's value, or else the file's.
    pub(super) fn pick(
        &self,
        flag: &str,
        given: Option<&String>,
        raw: Option<&Spanned<String>>,
    ) -> Option<Given> {
        match given {
            Some(text) => Some(Given {
                text: text.clone(),
                from: flag.to_owned(),
                directory: self.host.working_dir.clone(),
            }),
            None => raw.map(|value| self.in_file(value)),
        }
    }

    pub(super) fn in_file<T: ToString>(&self, value: &Spanned<T>) -> Given {
        Given {
            text: value.value.to_string(),
            ..self.place(value)
        }
    }

    /// Where a value that is no text is, for refusals.
    pub(super) fn place<T>(&self, value: &Spanned<T>) -> Given {
        let at = value.referenced;
        Given {
            text: String::new(),
            from: format!("{}:{}:{}", self.name, at.line(), at.column()),
            directory: self.directory.clone(),
        }
    }

    fn port(
        &self,
        flag: &str,
        given: Option<&String>,
        raw: Option<Spanned<String>>,
        default: u16,
    ) -> Result<u16, SettingsError> {
        let Some(given) = self.pick(flag, given, raw.as_ref()) else {
            return Ok(default);
        };
        match given.parse("a port: expected 1 to 65535")? {
            0 => Err(given.refuse("\"0\" is not a port: expected 1 to 65535")),
            port => Ok(port),
        }
    }

    pub(super) fn duration(
        &self,
        raw: Option<Spanned<String>>,
        default: Duration,
        allowed: std::ops::RangeInclusive<Duration>,
    ) -> Result<Duration, SettingsError> {
        let Some(value) = raw else { return Ok(default) };
        let given = self.in_file(&value);
        let duration = duration::parse(&given.text).ok_or_else(|| {
            given.refuse(format!(
                "\"{}\" is not a duration: expected a number and a unit such as 90s, 45m or 1h30m",
                given.text
            ))
        })?;
        if allowed.contains(&duration) {
            return Ok(duration);
        }
        Err(given.refuse(format!(
            "\"{}\" is out of range: expected {} to {}",
            given.text,
            duration::show(*allowed.start()),
            duration::show(*allowed.end())
        )))
    }

    /// Boot files are beside the program when it was installed by hand, else where packages
    /// put them.
    fn installed_netboot_dir(&self) -> PathBuf {
        self.host
            .program_dir
            .as_ref()
            .and_then(|bin| bin.parent())
            .map(|prefix| prefix.join("share/anneal/netboot"))
            .filter(|dir| dir.is_dir())
            .unwrap_or_else(|| SYSTEM_NETBOOT_DIR.into())
    }
}

/// Reads `first-last`, both in the network of `own` and around no address of ours.
fn pool(given: &Given, own: Cidr) -> Result<(Ipv4Addr, Ipv4Addr), SettingsError> {
    let bad = || {
        given.refuse(format!(
            "\"{}\" is not a pool: expected first and last address such as 10.77.0.100-10.77.0.199",
            given.text
        ))
    };
    let (first, last) = given.text.split_once('-').ok_or_else(bad)?;
    let first: Ipv4Addr = first.trim().parse().map_err(|_| bad())?;
    let last: Ipv4Addr = last.trim().parse().map_err(|_| bad())?;
    if first > last {
        return Err(given.refuse(format!(
            "the pool ends before it begins: {first} is after {last}"
        )));
    }
    if first <= own.network() || last >= own.broadcast() {
        return Err(given.refuse(format!(
            "the pool {first}-{last} is not inside the network of our address {own}"
        )));
    }
    if (first..=last).contains(&own.ip) {
        return Err(given.refuse(format!(
            "the pool {first}-{last} holds our own address {}",
            own.ip
        )));
    }
    Ok((first, last))
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
