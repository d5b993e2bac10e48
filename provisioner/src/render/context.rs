//! What templates can see: machine, image, run, server, phone-home.
//!
//! Fields that a machine does not have are absent, so that using one is an error rather than an
//! empty text on somebody's disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::{Enumerator, Object, Serde, Value};
use serde::{Deserialize, Serialize};

use super::config_url::{ConfigBase, ConfigRef, URLS, Urls};
use super::facts;
use super::join::{self, CLUSTER, ClusterFacts, JOIN, JoinSecrets, JoinUse, JoinWanted, TALOS};
use super::origin::{self, ORIGINS};
use crate::machine::Machine;

/// Stands in for a secret in plans, digests and logs.
pub const REDACTED: &str = "(redacted)";

/// Name of the variable that holds the phone-home token.
pub(super) const PHONE_HOME: &str = "phone_home";

/// Name of the variable that says where Talos reports.
const EVENT_SINK: &str = "event_sink";

/// Names at the top of every context.
pub(super) const ROOTS: &[&str] = &[
    "machine", "image", "run", "server", PHONE_HOME, EVENT_SINK, CLUSTER, JOIN, TALOS, URLS,
    ORIGINS,
];

/// Every dotted variable that a template may use; a trailing `.*` means: anything below.
#[must_use]
pub fn known_variables() -> &'static [&'static str] {
    &[
        "machine",
        "machine.name",
        "machine.rack",
        "machine.role",
        "machine.mac",
        "machine.address",
        "machine.prefix",
        "machine.gateway",
        "machine.mtu",
        "machine.hostname",
        "machine.nics.*",
        "machine.bonds.*",
        "machine.vlans.*",
        "machine.dns.*",
        "machine.search.*",
        "machine.ntp.*",
        "machine.ssh_keys.*",
        "machine.kernel_args.*",
        "machine.node_labels.*",
        "machine.node_taints.*",
        "machine.files.*",
        "machine.registries.*",
        "machine.cluster",
        "machine.disk.*",
        "machine.labels.*",
        "image",
        "image.digest",
        "image.id",
        "image.name",
        "image.version",
        "image.os",
        "image.size",
        "image.sha256",
        "run",
        "run.id",
        "server",
        "server.url",
        "server.ca_pem",
        "phone_home",
        "phone_home.url",
        "phone_home.token",
        "event_sink",
        "event_sink.endpoint",
        "cluster",
        "cluster.name",
        "cluster.endpoint",
        "cluster.host",
        "join",
        "join.token",
        "join.token_id",
        "join.expires_at",
        "join.ca_pem",
        "join.ca_hash",
        "talos.*",
        "render",
        "config_url",
        "metadata_url",
        "fail",
        "range",
        "dict",
        "namespace",
    ]
}

/// What is known of the image that a run installs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Digest of its canonical manifest.
    pub id: String,
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// OS family, `debian`.
    pub os: String,
    /// Version of the OS, as its publisher counts.
    #[serde(default)]
    pub os_version: Option<String>,
    /// Bytes of the raw disk.
    pub size: u64,
    /// SHA-256 of the raw disk, hex.
    pub sha256: String,
    /// It was added without proof of its publisher.
    #[serde(default)]
    pub unproven: bool,
}

/// How the installed system reports that it booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhoneHome {
    /// Where to `POST` the report.
    pub url: String,
    /// The one-use token, or [`REDACTED`].
    pub token: String,
}

/// Which secrets a rendering put into its text, or would put there were they not redacted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The phone-home token.
    pub phone_home: bool,
    /// Config URLs.
    pub configs: BTreeSet<ConfigRef>,
    /// What joining the cluster takes.
    pub join: JoinWanted,
}

/// The variables of one rendering.
#[derive(Debug, Clone)]
pub struct Context {
    os: Option<String>,
    roots: BTreeMap<&'static str, Value>,
    token_used: Arc<AtomicBool>,
    token_behind_url: Arc<AtomicBool>,
    join_used: Arc<JoinUse>,
    join_behind_url: Arc<JoinUse>,
    urls: Arc<Urls>,
}

impl Context {
    /// Of a run for a machine. `server_url` is the daemon's TLS address for nodes. Config URLs
    /// are redacted, and plain ones refused; see [`Self::with_configs`].
    #[must_use]
    pub fn new(
        machine: &Machine,
        image: Option<&ImageFacts>,
        run: &str,
        server_url: &str,
        ca_pem: &str,
        phone_home: PhoneHome,
    ) -> Self {
        let (token_used, token_behind_url) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let watch = |used: &Arc<AtomicBool>| {
            Value::from_object(TokenWatch {
                phone_home: phone_home.clone(),
                used: used.clone(),
            })
        };
        let base = ConfigBase {
            tls: server_url.to_owned(),
            plain: None,
            metadata: None,
        };
        let urls = Urls::new(base, None, vec![(PHONE_HOME, watch(&token_behind_url))]);
        let mut roots = BTreeMap::from([
            ("machine", Value::from(Serde(facts::machine(machine)))),
            ("run", Value::from(Serde(serde_json::json!({ "id": run })))),
            (
                "server",
                Value::from(Serde(
                    serde_json::json!({ "url": server_url, "ca_pem": ca_pem }),
                )),
            ),
            (PHONE_HOME, watch(&token_used)),
            (URLS, Value::from_dyn_object(urls.clone())),
            (ORIGINS, origin::value()),
        ]);
        if let Some(image) = image {
            let mut facts = serde_json::json!(image);
            facts["digest"] = image.id.clone().into();
            roots.insert("image", Value::from(Serde(facts)));
        }
        Self {
            os: image.map(|image| image.os.clone()),
            roots,
            token_used,
            token_behind_url,
            join_used: Arc::default(),
            join_behind_url: Arc::default(),
            urls,
        }
    }

    /// With the cluster that the machine joins, if it does, and these secrets of it; redacted
    /// without.
    #[must_use]
    pub fn with_cluster(
        mut self,
        facts: Option<&ClusterFacts>,
        secrets: Option<&JoinSecrets>,
    ) -> Self {
        if let Some(facts) = facts {
            self.roots
                .extend(join::variables(facts, secrets, &self.join_used));
            let behind = join::variables(facts, None, &self.join_behind_url);
            self.urls = self.urls.with_behind(behind);
            let urls = Value::from_dyn_object(self.urls.clone());
            self.roots.insert(URLS, urls);
        }
        self
    }

    /// With config URLs that lead to `base`, with these secrets in them; redacted without.
    #[must_use]
    pub fn with_configs(
        mut self,
        base: ConfigBase,
        secrets: Option<BTreeMap<ConfigRef, String>>,
    ) -> Self {
        self.urls = self.urls.again(base, secrets);
        let urls = Value::from_dyn_object(self.urls.clone());
        self.roots.insert(URLS, urls);
        self
    }

    /// With an event sink at `endpoint`, host and port; without, the variable is undefined.
    #[must_use]
    pub fn with_event_sink(mut self, endpoint: Option<&str>) -> Self {
        if let Some(endpoint) = endpoint {
            let sink = serde_json::json!({ "endpoint": endpoint });
            self.roots.insert(EVENT_SINK, Value::from(Serde(sink)));
        }
        self
    }

    /// Whether there is an event sink.
    #[must_use]
    pub fn has_event_sink(&self) -> bool {
        self.roots.contains_key(EVENT_SINK)
    }

    /// Family of the image, if there is one.
    pub(super) fn os(&self) -> Option<&str> {
        self.os.as_deref()
    }

    pub(super) fn value(&self) -> Value {
        Value::from_pairs(self.roots.iter().map(|(k, v)| (*k, v.clone())))
    }

    /// Whether a rendering with this context put the phone-home token into its text.
    #[must_use]
    pub fn token_used(&self) -> bool {
        self.token_used.load(Ordering::Relaxed)
    }

    /// Whether a text rendered with this context, or one behind a config URL in it, has the
    /// phone-home token.
    #[must_use]
    pub fn token_promised(&self) -> bool {
        self.token_used() || self.token_behind_url.load(Ordering::Relaxed)
    }

    /// Whether a text rendered with this context, or one behind a config URL in it, has secrets of
    /// the cluster.
    #[must_use]
    pub fn join_promised(&self) -> bool {
        self.join_used.wanted().any() || self.join_behind_url.wanted().any()
    }

    /// Which secrets renderings with this context used.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            phone_home: self.token_used(),
            configs: self.urls.wanted(),
            join: self.join_used.wanted(),
        }
    }
}

/// The `phone_home` variable; remembers whether its token was looked at.
#[derive(Debug)]
struct TokenWatch {
    phone_home: PhoneHome,
    used: Arc<AtomicBool>,
}

impl Object for TokenWatch {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "url" => Some(Value::from(self.phone_home.url.as_str())),
            "token" => {
                self.used.store(true, Ordering::Relaxed);
                Some(Value::from(self.phone_home.token.as_str()))
            }
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["url", "token"])
    }
}
