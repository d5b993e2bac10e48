//! `config_url('debian/user-data')`: a template that the machine fetches by a one-use URL.
//!
//! A text is rendered twice: first with `(redacted)` in place of tokens, which tells which are
//! wanted, then with the minted ones. In the first pass every wanted template is rendered too, so
//! that an undefined variable in it is found before a server loses power, not at first boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{Kwargs, Object, Value};
use minijinja::{Error, ErrorKind, State};
use serde::{Deserialize, Serialize};

use super::context::ROOTS;
use super::origin::{self, ORIGINS};
use super::{DEPTH, MAX_DEPTH};
use crate::yaml::unknown_word;

/// Variable that carries the [`Urls`]; not for templates.
pub(super) const URLS: &str = "_config_urls";

/// Documents that a NoCloud seed may have; the first two it must have.
pub const SEED: &[&str] = &["user-data", "meta-data", "vendor-data", "network-config"];

/// Who serves a document. A secret is good there alone: what was served once by the one is not
/// served again by the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServedBy {
    /// `config_url`.
    ConfigUrl,
    /// `metadata_url`.
    Metadata,
}

impl ServedBy {
    /// The function of templates that gives such a URL.
    fn function(self) -> &'static str {
        match self {
            Self::ConfigUrl => "config_url",
            Self::Metadata => "metadata_url",
        }
    }
}

/// Something that is served by URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConfigRef {
    /// Where.
    pub served_by: ServedBy,
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
    /// The metadata service, if it is on.
    pub metadata: Option<MetadataBase>,
}

/// Where the metadata service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataBase {
    /// `https://10.77.0.1:8444`.
    pub url: String,
    /// It speaks plain HTTP.
    pub plain: bool,
}

/// What `config_url` answers with, and what it was asked for.
pub(super) struct Urls {
    base: ConfigBase,
    /// Minted secrets; `None`: redacted.
    secrets: Option<BTreeMap<ConfigRef, String>>,
    wanted: Mutex<BTreeSet<ConfigRef>>,
    /// What was rendered to see whether it can be; shared with the templates behind URLs.
    checked: Arc<Mutex<BTreeSet<ConfigRef>>>,
    /// Variables that are others for the templates behind URLs: there they note that a secret is
    /// used, which is made when the URL is fetched.
    behind: Vec<(&'static str, Value)>,
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
        behind: Vec<(&'static str, Value)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            base,
            secrets,
            wanted: Mutex::default(),
            checked: Arc::default(),
            behind,
        })
    }

    /// For a template behind a URL: what that one wants is made when it is fetched.
    fn behind(&self) -> Value {
        Value::from_object(Self {
            base: self.base.clone(),
            secrets: None,
            wanted: Mutex::default(),
            checked: self.checked.clone(),
            behind: self.behind.clone(),
        })
    }

    /// The same with more variables for the templates behind URLs.
    pub(super) fn with_behind(&self, more: Vec<(&'static str, Value)>) -> Arc<Self> {
        let behind = self.behind.iter().cloned().chain(more).collect();
        Self::new(self.base.clone(), self.secrets.clone(), behind)
    }

    /// The same with another base and other secrets.
    pub(super) fn again(
        &self,
        base: ConfigBase,
        secrets: Option<BTreeMap<ConfigRef, String>>,
    ) -> Arc<Self> {
        Self::new(base, secrets, self.behind.clone())
    }

    pub(super) fn wanted(&self) -> BTreeSet<ConfigRef> {
        lock(&self.wanted).clone()
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
        let secret = self.secret(config)?;
        let slash = if config.subject.ends_with('/') {
            "/"
        } else {
            ""
        };
        Ok(format!("{base}/node/v1/config/{secret}{slash}"))
    }

    fn secret(&self, config: &ConfigRef) -> Result<&str, Error> {
        match &self.secrets {
            None => Ok(super::REDACTED),
            Some(secrets) => secrets.get(config).map(String::as_str).ok_or_else(|| {
                invalid("a config URL is asked for in one rendering and not in the one before")
            }),
        }
    }

    fn metadata(&self, config: &ConfigRef) -> Result<String, Error> {
        let base = self.base.metadata.as_ref().ok_or_else(|| {
            invalid("there is no metadata service: set `metadata: { listen: \":8444\" }` in anneal.yaml (docs/metadata.md)")
        })?;
        match (base.plain, config.plain) {
            (true, false) => Err(invalid(
                "the metadata service speaks plain HTTP: say `plain=true` if whoever is on the wire may read what it serves",
            )),
            (false, true) => Err(invalid(
                "the metadata service speaks TLS: leave `plain` out",
            )),
            _ => Ok(format!("{}/{}", base.url, self.secret(config)?)),
        }
    }
}

fn lock(set: &Mutex<BTreeSet<ConfigRef>>) -> MutexGuard<'_, BTreeSet<ConfigRef>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The template function for documents by URL.
pub(super) fn config_url(state: &State, subject: &str, options: Kwargs) -> Result<String, Error> {
    made(state, subject, &options, ServedBy::ConfigUrl)
}

/// The template function for the metadata service.
pub(super) fn metadata_url(state: &State, subject: &str, options: Kwargs) -> Result<String, Error> {
    if !subject.ends_with('/') {
        return Err(invalid(format!(
            "`metadata_url` is for a folder with `user-data` and `meta-data`: expected `{subject}/`"
        )));
    }
    made(state, subject, &options, ServedBy::Metadata)
}

fn made(
    state: &State,
    subject: &str,
    options: &Kwargs,
    served_by: ServedBy,
) -> Result<String, Error> {
    let plain = options.get::<Option<bool>>("plain")?.unwrap_or(false);
    options.assert_all_used()?;
    let Some(urls) = state.lookup(URLS) else {
        let function = served_by.function();
        return Err(invalid(format!("`{function}` is not available here")));
    };
    let urls = urls
        .downcast_object_ref::<Urls>()
        .ok_or_else(|| invalid(format!("`{URLS}` was overwritten")))?;
    let config = ConfigRef {
        served_by,
        subject: subject.to_owned(),
        plain,
    };
    let templates = templates_of(state, subject)?;
    let url = match served_by {
        ServedBy::ConfigUrl => urls.url(&config)?,
        ServedBy::Metadata => urls.metadata(&config)?,
    };
    lock(&urls.wanted).insert(config.clone());
    if urls.secrets.is_none() && lock(&urls.checked).insert(config) {
        for template in templates {
            super::family::check_in(state, &template)?;
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
    let others = urls.behind.iter();
    let others = others.map(|(root, value)| ((*root).to_owned(), value.clone()));
    // The later ones count.
    let variables: BTreeMap<String, Value> = ROOTS
        .iter()
        .filter_map(|root| Some(((*root).to_owned(), state.lookup(root)?)))
        .chain(others)
        .chain([
            (URLS.to_owned(), urls.behind()),
            (ORIGINS.to_owned(), origin::value()),
            (DEPTH.to_owned(), Value::from(depth + 1)),
        ])
        .collect();
    let variables = Value::from_pairs(variables);
    state.env().get_template(template)?.render(variables)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{Context, PhoneHome, REDACTED, Renderer};
    use crate::workflow::plan_tests::machine;

    const PLACE: &str = "w.yaml:7";

    fn renderer() -> Renderer {
        let files = [
            ("a", "{{ phone_home.token }} {{ config_url('b') }}"),
            ("b", "{{ config_url('b') }} {{ config_url('seed/') }}"),
            ("seed/user-data", "{{ run.id }}"),
            ("seed/meta-data", ""),
            ("half/user-data", ""),
            ("curious", "{{ _config_urls }}"),
        ];
        let sources = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Renderer::from_sources(sources.into()).unwrap()
    }

    fn context(secrets: Option<&[(&str, &str)]>) -> Context {
        let phone_home = PhoneHome {
            url: "https://d/node/v1/phone-home".into(),
            token: REDACTED.into(),
        };
        let secrets = secrets.map(|secrets| {
            let entry = |(subject, secret): &(&str, &str)| {
                let config = ConfigRef {
                    served_by: ServedBy::ConfigUrl,
                    subject: (*subject).to_owned(),
                    plain: false,
                };
                (config, (*secret).to_owned())
            };
            secrets.iter().map(entry).collect()
        });
        let base = ConfigBase {
            tls: "https://d".into(),
            plain: None,
            metadata: Some(MetadataBase {
                url: "https://d:8444".into(),
                plain: false,
            }),
        };
        Context::new(&machine(), None, "run-1", "https://d", "PEM", phone_home)
            .with_configs(base, secrets)
    }

    fn evaluate(text: &str, context: &Context) -> Result<String, String> {
        match renderer().evaluate(text, PLACE, context) {
            Ok(value) => Ok(value.as_str().unwrap().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_first_pass_is_redacted_and_tells_what_is_wanted() {
        let first = context(None);
        let url = evaluate("{{ config_url('seed/') }}", &first).unwrap();
        assert_eq!(url, "https://d/node/v1/config/(redacted)/");
        let wanted = first.wanted();
        assert!(!wanted.phone_home);
        assert_eq!(wanted.configs.first().unwrap().subject, "seed/");
        let second = context(Some(&[("seed/", "5ec7e7")]));
        let text = "one {{ config_url('seed/') }} two {{ config_url('seed/') }}";
        assert_eq!(
            evaluate(text, &second).unwrap(),
            "one https://d/node/v1/config/5ec7e7/ two https://d/node/v1/config/5ec7e7/"
        );
        assert!(
            evaluate("{{ config_url('a') }}", &second).is_err(),
            "not minted"
        );
    }

    /// What is behind a URL is looked at, but its secrets are not made before it is fetched.
    #[test]
    fn what_is_behind_a_url_is_wanted_later() {
        let context = context(None);
        evaluate("{{ config_url('a') }}", &context).unwrap();
        assert!(context.token_promised() && !context.token_used());
        assert!(!context.wanted().phone_home);
        let subjects: Vec<_> = context.wanted().configs.into_iter().collect();
        assert_eq!(subjects.len(), 1, "{subjects:?}");
    }

    /// One secret for both would be one that serves a document twice.
    #[test]
    fn a_config_url_and_the_metadata_service_want_a_secret_each() {
        let first = context(None);
        let text = "{{ config_url('seed/') }} {{ metadata_url('seed/') }}";
        evaluate(text, &first).unwrap();
        let configs = first.wanted().configs;
        let both: Vec<_> = configs.iter().map(|config| config.served_by).collect();
        assert_eq!(both, [ServedBy::ConfigUrl, ServedBy::Metadata]);
        let second = context(Some(&[("seed/", "5ec7e7")]));
        assert!(
            evaluate("{{ metadata_url('seed/') }}", &second).is_err(),
            "that secret is a config URL's"
        );
    }

    #[test]
    fn refusals_name_place_and_nearest_word() {
        for (text, expected) in [
            (
                "{{ config_url('seed/userdata') }}",
                "did you mean `seed/user-data`?",
            ),
            ("{{ config_url('half/') }}", "there is no `half/meta-data`"),
            (
                "{{ config_url('a', plain=true) }}",
                "plain_config_urls: true",
            ),
        ] {
            let error = evaluate(text, &context(None)).unwrap_err();
            assert!(
                error.starts_with(PLACE) && error.contains(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn templates_cannot_print_the_urls_of_others() {
        let context = context(Some(&[("seed/", "5ec7e7")]));
        let text = renderer().render("curious", &context).unwrap();
        assert!(!text.contains("5ec7e7"), "{text}");
    }
}
