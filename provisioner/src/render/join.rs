//! `cluster`, `join` and `talos`: what a machine needs to join its cluster.
//!
//! Which secrets a text holds is seen by what it looks at; until they are made, it gets
//! [`REDACTED`] in their place.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use minijinja::value::{Enumerator, Object, Serde, Value};
use minijinja::{Error, ErrorKind};
use serde_json::{Map, json};
use zeroize::Zeroizing;

use super::context::REDACTED;

/// Name of the variable with what is known of the cluster.
pub(super) const CLUSTER: &str = "cluster";
/// Name of the variable with the token.
pub(super) const JOIN: &str = "join";
/// Name of the variable with a Talos cluster's secrets.
pub(super) const TALOS: &str = "talos";

/// Fields of `talos` that hold one text, and those that hold a certificate and its key.
const TALOS_TEXTS: &[&str] = &[
    "cluster_id",
    "cluster_secret",
    "cluster_token",
    "machine_token",
    "secretbox_secret",
    "aescbc_secret",
];
const TALOS_PAIRS: &[&str] = &["machine_ca", "k8s_ca", "k8s_aggregator_ca", "etcd_ca"];
const TALOS_ACCOUNT: &str = "k8s_service_account";

/// What templates may know of a cluster before any secret is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Name.
    pub name: String,
    /// URL of its API.
    pub endpoint: String,
    /// The same as `host:port`.
    pub host: String,
    /// Its tokens have a public half.
    pub token_id: bool,
    /// Its CA is known.
    pub ca: bool,
    /// It has a bundle of secrets: Talos.
    pub bundle: bool,
    /// Fields of `talos` that its bundle is known not to have.
    pub lacks: Vec<&'static str>,
}

/// Secrets for joining; what was not wanted is not there.
#[derive(Clone, Default)]
pub struct JoinSecrets {
    /// The token.
    pub token: Option<Zeroizing<String>>,
    /// Its public half.
    pub token_id: Option<String>,
    /// When it stops being good, RFC 3339, or `never`.
    pub expires_at: Option<String>,
    /// The cluster's CA, PEM.
    pub ca_pem: Option<String>,
    /// Its pin, `sha256:` and hex.
    pub ca_hash: Option<String>,
    /// Talos: the fields of `talos`.
    pub bundle: Option<Map<String, serde_json::Value>>,
}

impl JoinSecrets {
    /// Of the right shapes and worth nothing: for looking at, and for the systems' own validators.
    #[must_use]
    pub fn placeholders() -> Self {
        const TOKEN: &str = "000000.0000000000000000";
        const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
        const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let text = |name: &&str| match *name {
            "cluster_token" | "machine_token" => ((*name).to_owned(), json!(TOKEN)),
            // 32 bytes, as these secrets have.
            _ => ((*name).to_owned(), json!(b64(&"\0".repeat(32)))),
        };
        let pair = |name: &&str| {
            (
                (*name).to_owned(),
                json!({ "crt": b64(PEM), "key": b64(KEY) }),
            )
        };
        let account = (TALOS_ACCOUNT.to_owned(), json!({ "key": b64(KEY) }));
        let texts = TALOS_TEXTS.iter().map(text);
        Self {
            token: Some(Zeroizing::new(TOKEN.to_owned())),
            token_id: Some("000000".to_owned()),
            expires_at: Some("1970-01-01T00:00:00.000Z".to_owned()),
            ca_pem: Some(PEM.to_owned()),
            ca_hash: Some(format!("sha256:{}", "0".repeat(64))),
            bundle: Some(
                texts
                    .chain(TALOS_PAIRS.iter().map(pair))
                    .chain([account])
                    .collect(),
            ),
        }
    }
}

// Not derived: it would print secrets.
impl fmt::Debug for JoinSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecrets")
    }
}

/// Which of a cluster's secrets a text holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JoinWanted {
    /// A token, its public half or its end.
    pub token: bool,
    /// The CA or its pin.
    pub ca: bool,
    /// Secrets of a Talos cluster.
    pub bundle: bool,
}

impl JoinWanted {
    /// Whether there is anything to ask an issuer for.
    #[must_use]
    pub fn any(self) -> bool {
        self.token || self.ca || self.bundle
    }
}

/// Remembers what was looked at.
#[derive(Debug, Default)]
pub(super) struct JoinUse {
    token: AtomicBool,
    ca: AtomicBool,
    bundle: AtomicBool,
}

impl JoinUse {
    pub(super) fn wanted(&self) -> JoinWanted {
        JoinWanted {
            token: self.token.load(Ordering::Relaxed),
            ca: self.ca.load(Ordering::Relaxed),
            bundle: self.bundle.load(Ordering::Relaxed),
        }
    }
}

/// The variables of a cluster; `used` learns what of them is looked at.
pub(super) fn variables(
    facts: &ClusterFacts,
    secrets: Option<&JoinSecrets>,
    used: &Arc<JoinUse>,
) -> Vec<(&'static str, Value)> {
    let secrets = secrets.cloned().map(Arc::new);
    let cluster = json!({ "name": facts.name, "endpoint": facts.endpoint, "host": facts.host });
    let join = Join {
        facts: facts.clone(),
        secrets: secrets.clone(),
        used: used.clone(),
    };
    let mut all = vec![
        (CLUSTER, Value::from(Serde(cluster))),
        (JOIN, Value::from_object(join)),
    ];
    if facts.bundle {
        let talos = Talos {
            lacks: facts.lacks.clone(),
            secrets,
            used: used.clone(),
        };
        all.push((TALOS, Value::from_object(talos)));
    }
    all
}

/// A secret that this rendering has and the one before did not ask for.
fn not_minted() -> Value {
    let told = "a join secret is asked for in one rendering and not in the one before";
    Error::new(ErrorKind::InvalidOperation, told).into()
}

struct Join {
    facts: ClusterFacts,
    secrets: Option<Arc<JoinSecrets>>,
    used: Arc<JoinUse>,
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("join")
    }
}

impl Object for Join {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        let (there, used) = match key {
            "token" | "expires_at" => (true, &self.used.token),
            "token_id" => (self.facts.token_id, &self.used.token),
            "ca_pem" | "ca_hash" => (self.facts.ca, &self.used.ca),
            _ => return None,
        };
        if !there {
            return None;
        }
        used.store(true, Ordering::Relaxed);
        let Some(secrets) = &self.secrets else {
            return Some(Value::from(REDACTED));
        };
        let value = match key {
            "token" => secrets.token.as_ref().map(|token| token.as_str()),
            "expires_at" => secrets.expires_at.as_deref(),
            "token_id" => secrets.token_id.as_deref(),
            "ca_pem" => secrets.ca_pem.as_deref(),
            _ => secrets.ca_hash.as_deref(),
        };
        Some(value.map_or_else(not_minted, Value::from))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        // Whoever prints the whole of it gets nothing: each field is asked for by its name.
        Enumerator::NonEnumerable
    }
}

struct Talos {
    lacks: Vec<&'static str>,
    secrets: Option<Arc<JoinSecrets>>,
    used: Arc<JoinUse>,
}

impl fmt::Debug for Talos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("talos")
    }
}

impl Object for Talos {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        // Undefined before the secrets are there as it will be with them.
        if self.lacks.contains(&key) {
            return None;
        }
        let redacted = if TALOS_TEXTS.contains(&key) {
            json!(REDACTED)
        } else if TALOS_PAIRS.contains(&key) {
            json!({ "crt": REDACTED, "key": REDACTED })
        } else if key == TALOS_ACCOUNT {
            json!({ "key": REDACTED })
        } else {
            return None;
        };
        self.used.bundle.store(true, Ordering::Relaxed);
        let Some(secrets) = &self.secrets else {
            return Some(Value::from(Serde(redacted)));
        };
        match &secrets.bundle {
            None => Some(not_minted()),
            // The bundle of a cluster need not have every field.
            Some(bundle) => bundle.get(key).cloned().map(|v| Value::from(Serde(v))),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{ConfigBase, Context, PhoneHome, Renderer};
    use crate::workflow::plan_tests::machine;

    fn facts(bundle: bool) -> ClusterFacts {
        ClusterFacts {
            name: "prod".into(),
            endpoint: "https://10.0.0.1:6443".into(),
            host: "10.0.0.1:6443".into(),
            token_id: bundle,
            ca: bundle,
            bundle,
            lacks: Vec::new(),
        }
    }

    fn context(facts: Option<&ClusterFacts>, secrets: Option<&JoinSecrets>) -> Context {
        let phone_home = PhoneHome {
            url: "u".into(),
            token: REDACTED.into(),
        };
        let context = Context::new(&machine(), None, "run-1", "https://d", "PEM", phone_home);
        let base = ConfigBase {
            tls: "https://d".into(),
            plain: None,
            metadata: None,
        };
        context
            .with_cluster(facts, secrets)
            .with_configs(base, None)
    }

    fn evaluate(text: &str, context: &Context) -> Result<String, String> {
        let files = [("behind", "{{ join.token }} {{ cluster.name }}")];
        let sources = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let renderer = Renderer::from_sources(sources.into()).unwrap();
        match renderer.evaluate(text, "w.yaml:7", context) {
            Ok(value) => Ok(value.as_str().map_or(value.to_string(), str::to_owned)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn tells_what_a_text_wants_and_redacts_it() {
        let wanted = |text: &str| {
            let context = context(Some(&facts(true)), None);
            let rendered = evaluate(text, &context).unwrap();
            assert!(!rendered.contains("token:"), "{rendered}");
            context.wanted().join
        };
        let none = JoinWanted::default();
        assert_eq!(wanted("{{ cluster.host }} {{ cluster.endpoint }}"), none);
        assert_eq!(wanted("x {{ join }} {{ talos }}"), none, "not by printing");
        let token = JoinWanted {
            token: true,
            ..none
        };
        assert_eq!(wanted("x {{ join.token }}"), token);
        assert_eq!(wanted("x {{ join.expires_at }}{{ join.token_id }}"), token);
        assert_eq!(
            wanted("{{ join.ca_hash }}"),
            JoinWanted { ca: true, ..none }
        );
        let bundle = JoinWanted {
            bundle: true,
            ..none
        };
        assert_eq!(wanted("{{ talos.machine_ca.crt | b64 }}"), bundle);
        assert_eq!(wanted("x {{ config_url('behind') }}"), none, "not yet");
    }

    #[test]
    fn what_is_behind_a_url_is_promised() {
        let context = context(Some(&facts(false)), None);
        assert!(!context.join_promised());
        evaluate("{{ config_url('behind') }}", &context).unwrap();
        assert!(context.join_promised() && !context.wanted().join.any());
    }

    #[test]
    fn gives_what_was_minted_and_nothing_else() {
        let secrets = JoinSecrets {
            token: Some(Zeroizing::new("abcdef.0123456789abcdef".into())),
            expires_at: Some("never".into()),
            bundle: json!({ "cluster_id": "1" }).as_object().cloned(),
            ..JoinSecrets::default()
        };
        let context = context(Some(&facts(true)), Some(&secrets));
        let text = "{{ join.token }} {{ join.expires_at }} {{ talos.cluster_id }}";
        assert_eq!(
            evaluate(text, &context).unwrap(),
            "abcdef.0123456789abcdef never 1"
        );
        let error = evaluate("x {{ join.ca_pem }}", &context).unwrap_err();
        assert!(error.contains("not in the one before"), "{error}");
        let error = evaluate("x {{ talos.aescbc_secret }}", &context).unwrap_err();
        assert!(error.contains("undefined"), "{error}");
        let printed = format!("{context:?} {:?}", evaluate("x {{ join }}", &context));
        assert!(!printed.contains("0123456789abcdef"), "{printed}");
    }

    #[test]
    fn placeholders_have_every_field() {
        let context = context(Some(&facts(true)), Some(&JoinSecrets::placeholders()));
        let known = crate::render::known_variables().iter();
        let join = known.filter(|name| name.starts_with("join."));
        let talos = TALOS_TEXTS
            .iter()
            .chain(TALOS_PAIRS)
            .chain([&TALOS_ACCOUNT]);
        let names = join
            .map(|name| (*name).to_owned())
            .chain(talos.map(|name| format!("talos.{name}")));
        for name in names {
            let text = evaluate(&format!("x {{{{ {name} }}}}"), &context).unwrap();
            assert!(!text.contains(REDACTED), "{name}");
        }
    }

    /// Also in the renderings that have no secrets, or placeholders.
    #[test]
    fn what_a_bundle_lacks_is_undefined_from_the_start() {
        let facts = ClusterFacts {
            lacks: vec!["secretbox_secret"],
            ..facts(true)
        };
        let both = "x {{ talos.secretbox_secret is defined }} {{ talos.aescbc_secret is defined }}";
        let placeholders = JoinSecrets::placeholders();
        for secrets in [None, Some(&placeholders)] {
            let context = context(Some(&facts), secrets);
            assert_eq!(evaluate(both, &context).unwrap(), "x False True");
            let error = evaluate("x {{ talos.secretbox_secret }}", &context).unwrap_err();
            assert!(error.contains("undefined"), "{error}");
        }
    }

    #[test]
    fn what_a_cluster_does_not_have_is_undefined() {
        for text in [
            "x {{ join.ca_pem }}",
            "x {{ join.token_id }}",
            "x {{ talos.cluster_id }}",
        ] {
            assert!(evaluate(text, &context(Some(&facts(false)), None)).is_err());
        }
        assert!(evaluate("x {{ join.token }}", &context(None, None)).is_err());
        let text = "x {% if cluster is defined %}a{% else %}b{% endif %}";
        assert_eq!(evaluate(text, &context(None, None)).unwrap(), "x b");
    }
}
