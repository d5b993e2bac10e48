//! `clusters:` and `join_tokens:` of the settings: which Kubernetes clusters machines may join, and
//! who makes the tokens for it.
//!
//! Not here: making tokens (`token::issuer`), and which machine joins which cluster (inventory).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::SettingsError;
use super::merge::{Given, Merge};
use crate::machine::check;
use crate::workflow::duration;
use crate::yaml::Spanned;

/// Directory of secrets of clusters, beside `clusters` in the state directory.
const SECRET_DIR: &str = "/etc/anneal/clusters";
/// How long a token lives when a cluster does not say.
const TTL: Duration = Duration::from_secs(2 * 3600);
/// Shorter, and a machine could not boot in time.
const SHORTEST_TTL: Duration = Duration::from_secs(10 * 60);
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a command may take; an agent waits for its order meanwhile, a minute at most.
const PATIENCE: Duration = Duration::from_secs(15);
/// The group that kubeadm lets join.
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
/// What a command may be told in its arguments.
pub const PLACEHOLDERS: &[&str] = &[
    "{cluster}",
    "{machine}",
    "{run}",
    "{ttl}",
    "{description}",
    "{token_id}",
];

/// Clusters, and what may be used for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JoinSettings {
    /// The clusters, in the order of the file.
    pub clusters: Vec<ClusterSettings>,
    /// Directories that secrets of clusters are read from; nothing outside is.
    pub secret_dirs: Vec<PathBuf>,
}

/// A cluster that machines may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// What the inventory calls it.
    pub name: String,
    /// URL of its API, `https://host:6443`.
    pub endpoint: String,
    /// The same as `host:port`.
    pub host: String,
    /// How long a token for joining lives.
    pub ttl: Duration,
    /// File of the CA that its API server's certificate is signed by, if the issuer does not know.
    pub ca: Option<PathBuf>,
    /// Who makes the tokens.
    pub issuer: IssuerSettings,
}

/// Who makes tokens for joining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IssuerSettings {
    /// The cluster's API: a bootstrap token each.
    Kubernetes {
        /// How to reach it.
        access: Access,
        /// Groups that a token's bearer is in.
        groups: Vec<String>,
    },
    /// A command that prints one.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
        /// The same, to take a token back.
        revoke: Option<Vec<String>>,
        /// How long either may take.
        timeout: Duration,
    },
    /// Talos: the cluster's secrets, which were imported or are in this file.
    Talos {
        /// As `talosctl gen secrets` writes it; none: imported.
        secrets: Option<PathBuf>,
    },
    /// One token for everybody, for ever.
    Static {
        /// The file that holds it.
        token: PathBuf,
    },
}

impl IssuerSettings {
    /// The word in the settings.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Kubernetes { .. } => "kubernetes",
            Self::Exec { .. } => "exec",
            Self::Talos { .. } => "talos",
            Self::Static { .. } => "static",
        }
    }

    /// Whether its tokens end by themselves.
    #[must_use]
    pub fn expires(&self) -> bool {
        matches!(self, Self::Kubernetes { .. } | Self::Exec { .. })
    }
}

/// How to reach a cluster's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As this kubeconfig says.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Its context; none: the current one.
        context: Option<String>,
    },
    /// The daemon runs in the cluster, with a service account.
    InCluster,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct JoinTokensFile {
    pub max_ttl: Option<Spanned<String>>,
    pub allow_static: Option<bool>,
    pub secret_dirs: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterFile {
    name: Spanned<String>,
    endpoint: Spanned<String>,
    issuer: Spanned<IssuerFile>,
    ttl: Option<Spanned<String>>,
    ca: Option<Spanned<String>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IssuerFile {
    kubernetes: Option<KubernetesFile>,
    exec: Option<ExecFile>,
    talos: Option<TalosFile>,
    #[serde(rename = "static")]
    fixed: Option<StaticFile>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KubernetesFile {
    kubeconfig: Option<FileRef>,
    context: Option<String>,
    in_cluster: bool,
    groups: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecFile {
    command: Spanned<Vec<Spanned<String>>>,
    revoke: Option<Spanned<Vec<Spanned<String>>>>,
    timeout: Option<Spanned<String>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TalosFile {
    secrets: Option<FileRef>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticFile {
    token: FileRef,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRef {
    file: Spanned<String>,
}

impl Merge<'_> {
    pub(super) fn join(
        &self,
        clusters: Vec<ClusterFile>,
        rules: JoinTokensFile,
        state_dir: &Path,
    ) -> Result<JoinSettings, SettingsError> {
        let secret_dirs = match &rules.secret_dirs {
            None => vec![SECRET_DIR.into(), state_dir.join("clusters")],
            Some(dirs) => dirs.iter().map(|dir| self.in_file(dir).path()).collect(),
        };
        let month = Duration::from_secs(31 * 86_400);
        let max_ttl = self.duration(rules.max_ttl, MAX_TTL, SHORTEST_TTL..=month)?;
        let mut names = BTreeSet::new();
        let mut read = Vec::with_capacity(clusters.len());
        for raw in clusters {
            let name = self.in_file(&raw.name);
            check::name(&name.text).map_err(|told| name.refuse(told))?;
            if !names.insert(name.text.clone()) {
                return Err(name.refuse(format!("two clusters are named \"{}\"", name.text)));
            }
            let (endpoint, host) = endpoint(&self.in_file(&raw.endpoint))?;
            let issuer = self.issuer(&raw.issuer, rules.allow_static.unwrap_or(false))?;
            if let Some(ttl) = raw.ttl.as_ref().filter(|_| !issuer.expires()) {
                return Err(self.in_file(ttl).refuse(format!(
                    "a token of the `{}` issuer never expires: leave `ttl` out",
                    issuer.as_str()
                )));
            }
            let ttl = self.ttl(raw.ttl, max_ttl)?;
            let ca = raw.ca.as_ref().map(|ca| self.in_file(ca));
            if let (Some(ca), IssuerSettings::Talos { .. }) = (&ca, &issuer) {
                return Err(ca.refuse("a Talos cluster's CA is among its secrets: leave `ca` out"));
            }
            read.push(ClusterSettings {
                name: name.text,
                endpoint,
                host,
                ttl,
                ca: ca.map(Given::path),
                issuer,
            });
        }
        Ok(JoinSettings {
            clusters: read,
            secret_dirs,
        })
    }

    fn ttl(&self, raw: Option<Spanned<String>>, max: Duration) -> Result<Duration, SettingsError> {
        let Some(value) = raw else {
            return Ok(TTL.min(max));
        };
        let given = self.in_file(&value);
        let ttl = self.duration(Some(value), TTL, SHORTEST_TTL..=Duration::MAX)?;
        if ttl > max {
            return Err(given.refuse(format!(
                "\"{}\" is longer than `join_tokens.max_ttl`: expected at most {}",
                given.text,
                duration::show(max)
            )));
        }
        Ok(ttl)
    }

    fn issuer(
        &self,
        raw: &Spanned<IssuerFile>,
        allow_static: bool,
    ) -> Result<IssuerSettings, SettingsError> {
        let place = || self.place(raw);
        let IssuerFile {
            kubernetes,
            exec,
            talos,
            fixed,
        } = raw.value.clone();
        match (kubernetes, exec, talos, fixed) {
            (Some(raw), None, None, None) => self.kubernetes(raw, &place()),
            (None, Some(raw), None, None) => self.exec(raw),
            (None, None, Some(raw), None) => Ok(IssuerSettings::Talos {
                secrets: raw
                    .secrets
                    .map(|secrets| self.in_file(&secrets.file).path()),
            }),
            (None, None, None, Some(raw)) => {
                if !allow_static {
                    return Err(place().refuse(
                        "a static token is good for everybody who ever saw it, for ever: use another issuer, or set `join_tokens: { allow_static: true }`",
                    ));
                }
                Ok(IssuerSettings::Static {
                    token: self.in_file(&raw.token.file).path(),
                })
            }
            _ => Err(place().refuse("expected one of `kubernetes`, `exec`, `talos`, `static`")),
        }
    }

    fn kubernetes(
        &self,
        raw: KubernetesFile,
        place: &Given,
    ) -> Result<IssuerSettings, SettingsError> {
        let access = match (raw.kubeconfig, raw.in_cluster) {
            (Some(kubeconfig), false) => Access::Kubeconfig {
                file: self.in_file(&kubeconfig.file).path(),
                context: raw.context,
            },
            (None, true) if raw.context.is_none() => Access::InCluster,
            (None, true) => {
                return Err(place.refuse("`context` belongs to a kubeconfig, not to `in_cluster`"));
            }
            _ => {
                return Err(place.refuse(
                    "expected `kubeconfig: { file: PATH }` or `in_cluster: true`, and not both",
                ));
            }
        };
        let groups = match raw.groups {
            None => vec![GROUP.to_owned()],
            Some(groups) => groups
                .iter()
                .map(|group| bootstrap_group(&self.in_file(group)))
                .collect::<Result<_, _>>()?,
        };
        Ok(IssuerSettings::Kubernetes { access, groups })
    }

    fn exec(&self, raw: ExecFile) -> Result<IssuerSettings, SettingsError> {
        let revoke = raw.revoke.map(|revoke| self.command(&revoke, true));
        let range = Duration::from_secs(1)..=Duration::from_secs(30);
        Ok(IssuerSettings::Exec {
            command: self.command(&raw.command, false)?,
            revoke: revoke.transpose()?,
            timeout: self.duration(raw.timeout, PATIENCE, range)?,
        })
    }

    fn command(
        &self,
        raw: &Spanned<Vec<Spanned<String>>>,
        revokes: bool,
    ) -> Result<Vec<String>, SettingsError> {
        let Some(program) = raw.value.first() else {
            return Err(self
                .place(raw)
                .refuse("expected a program and its arguments, as a list"));
        };
        if !program.value.starts_with('/') {
            return Err(self.in_file(program).refuse(format!(
                "\"{}\" is not an absolute path: no shell and no search path finds the program",
                program.value
            )));
        }
        let known = &PLACEHOLDERS[..PLACEHOLDERS.len() - usize::from(!revokes)];
        for word in &raw.value {
            if let Some(placeholder) = placeholder(&word.value)
                && !known.contains(&placeholder)
            {
                return Err(self.in_file(word).refuse(crate::yaml::unknown_word(
                    "placeholder",
                    placeholder,
                    known,
                )));
            }
        }
        Ok(raw.value.iter().map(|word| word.value.clone()).collect())
    }
}

/// The first `{word}` that nobody knows, or else the last of all.
fn placeholder(text: &str) -> Option<&str> {
    let mut rest = text;
    let mut last = None;
    while let Some(start) = rest.find('{') {
        let end = start + rest[start..].find('}')? + 1;
        let word = &rest[start..end];
        let inner = &word[1..word.len() - 1];
        rest = &rest[end..];
        // JSON and templates of other tools are not ours.
        if inner.is_empty() || !inner.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            continue;
        }
        last = Some(word);
        if !PLACEHOLDERS.contains(&word) {
            break;
        }
    }
    last
}

/// Reads `https://host:6443`.
fn endpoint(given: &Given) -> Result<(String, String), SettingsError> {
    let bad = || {
        given.refuse(format!(
            "\"{}\" is not a cluster's endpoint: expected https://HOST:PORT and nothing behind it",
            given.text
        ))
    };
    let url = reqwest::Url::parse(&given.text).map_err(|_| bad())?;
    let plain = url.scheme() == "https"
        && url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    let (Some(host), Some(port), true) = (url.host_str(), url.port_or_known_default(), plain)
    else {
        return Err(bad());
    };
    Ok((
        given.text.trim_end_matches('/').to_owned(),
        format!("{host}:{port}"),
    ))
}

/// What Kubernetes accepts in `auth-extra-groups`.
fn bootstrap_group(given: &Given) -> Result<String, SettingsError> {
    let rest = given.text.strip_prefix("system:bootstrappers:");
    let valid = rest.is_some_and(|rest| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        (1..=256).contains(&rest.len())
            && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
            && rest.bytes().last().is_some_and(plain)
    });
    match valid {
        true => Ok(given.text.clone()),
        false => Err(given.refuse(format!(
            "\"{}\" is not a group for bootstrap tokens: expected system:bootstrappers:… of lower-case letters, digits, `:` and `-`",
            given.text
        ))),
    }
}

#[cfg(test)]
#[path = "clusters_tests.rs"]
mod tests;
