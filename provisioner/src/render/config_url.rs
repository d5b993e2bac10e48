//! `config_url('debian/user-data')`: a template that the machine fetches by a one-use URL.
//!
//! A text is rendered twice: first with `(redacted)` in place of tokens, which tells which are
//! wanted, then with the minted ones. In the first pass every wanted template is rendered too, so
//! that an undefined variable in it is found before a server loses power, not at first boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Kwargs, Object, Value};
use minijinja::{Error, ErrorKind, State};
use serde::{Deserialize, Serialize};

use super::context::{PHONE_HOME, ROOTS};
use super::{DEPTH, MAX_DEPTH};
use crate::yaml::unknown_word;

/// Variable that carries the [`Urls`]; not for templates.
pub(super) const URLS: &str = "_config_urls";

/// Documents that a NoCloud seed may have; the first two it must have.
pub const SEED: &[&str] = &["user-data", "meta-data", "vendor-data", "network-config"];

/// Something that is served by URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConfigRef {
    /// A template, or a folder of them with a slash at its end: a NoCloud seed.
    pub subject: String,
    /// Over plain HTTP.
    pub plain: bool,
}

/// Where config URLs lead.
#[derive(Debug, Clone)]
pub struct ConfigBase {
    /// The daemon's TLS address for nodes.
    pub tls: String,
    /// The boot listener, if the settings allow configuration in clear.
    pub plain: Option<String>,
}

/// What `config_url` answers with, and what it was asked for.
pub(super) struct Urls {
    base: ConfigBase,
    /// Minted secrets; `None`: redacted.
    secrets: Option<BTreeMap<ConfigRef, String>>,
    wanted: Mutex<BTreeSet<ConfigRef>>,
    /// `phone_home` for the templates behind URLs: notes there that its token is used.
    phone_home: Value,
}

// Not derived: it would print secrets.
impl fmt::Debug for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Urls")
    }
}

impl Object for Urls {}

impl Urls {
    pub(super) fn new(
        base: ConfigBase,
        secrets: Option<BTreeMap<ConfigRef, String>>,
        phone_home: Value,
    ) -> Arc<Self> {
        Arc::new(Self {
            base,
            secrets,
            wanted: Mutex::default(),
            phone_home,
        })
    }

    /// The same with another base and other secrets.
    pub(super) fn again(
        &self,
        base: ConfigBase,
        secrets: Option<BTreeMap<ConfigRef, String>>,
    ) -> Arc<Self> {
        Self::new(base, secrets, self.phone_home.clone())
    }

    pub(super) fn wanted(&self) -> BTreeSet<ConfigRef> {
        self.wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn url(&self, config: &ConfigRef) -> Result<String, Error> {
        let base = if config.plain {
            self.base.plain.as_deref().ok_or_else(|| {
                invalid(
                    "configuration in clear is off: leave `plain` out, or set `plain_config_urls: true` in anneal.yaml and read docs/config-urls.md first",
                )
            })?
        } else {
            self.base.tls.as_str()
        };
        let secret = match &self.secrets {
            None => super::REDACTED,
            Some(secrets) => secrets.get(config).ok_or_else(|| {
                invalid("a config URL is asked for in one rendering and not in the one before")
            })?,
        };
        let slash = if config.subject.ends_with('/') {
            "/"
        } else {
            ""
        };
        Ok(format!("{base}/node/v1/config/{secret}{slash}"))
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The template function.
pub(super) fn config_url(state: &State, subject: &str, options: Kwargs) -> Result<String, Error> {
    let plain = options.get::<Option<bool>>("plain")?.unwrap_or(false);
    options.assert_all_used()?;
    let Some(urls) = state.lookup(URLS) else {
        return Err(invalid("`config_url` is not available here"));
    };
    let urls = urls
        .downcast_object_ref::<Urls>()
        .ok_or_else(|| invalid(format!("`{URLS}` was overwritten")))?;
    let config = ConfigRef {
        subject: subject.to_owned(),
        plain,
    };
    let templates = templates_of(state, subject)?;
    let url = urls.url(&config)?;
    let known = !urls
        .wanted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(config);
    if urls.secrets.is_none() && !known {
        for template in templates {
            check(state, urls, &template)?;
        }
    }
    Ok(url)
}

/// Which templates a URL serves.
fn templates_of(state: &State, subject: &str) -> Result<Vec<String>, Error> {
    let names: Vec<&str> = state.env().templates().map(|(name, _)| name).collect();
    let Some(folder) = subject.strip_suffix('/') else {
        if names.contains(&subject) {
            return Ok(vec![subject.to_owned()]);
        }
        return Err(invalid(unknown_word("template", subject, &names)));
    };
    let inside: Vec<String> = SEED
        .iter()
        .map(|document| format!("{folder}/{document}"))
        .filter(|name| names.contains(&name.as_str()))
        .collect();
    match SEED[..2]
        .iter()
        .find(|needed| !inside.contains(&format!("{folder}/{needed}")))
    {
        None => Ok(inside),
        Some(missing) => Err(invalid(format!(
            "a NoCloud seed needs the templates `user-data` and `meta-data`: there is no `{folder}/{missing}`"
        ))),
    }
}

/// Renders a template without keeping its text: errors name its file and line.
fn check(state: &State, urls: &Urls, template: &str) -> Result<(), Error> {
    let depth = state
        .lookup(DEPTH)
        .and_then(|v| usize::try_from(v).ok())
        .unwrap_or(0);
    if depth >= MAX_DEPTH {
        return Err(invalid(format!(
            "`config_url` leads to itself, or through more than {MAX_DEPTH} templates"
        )));
    }
    let variables = ROOTS
        .iter()
        .filter(|root| **root != PHONE_HOME)
        .filter_map(|root| Some(((*root).to_owned(), state.lookup(root)?)))
        .chain([
            (PHONE_HOME.to_owned(), urls.phone_home.clone()),
            (DEPTH.to_owned(), Value::from(depth + 1)),
        ]);
    let variables = Value::from_pairs(variables);
    state.env().get_template(template)?.render(variables)?;
    Ok(())
}
