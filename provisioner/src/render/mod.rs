//! Templates -> text, for what is put onto machines and for the parameters of steps.
//!
//! Owns: the template engine's settings (strict undefined variables, no escaping by file name,
//! bounded work), the filters, the built-in templates and the folder that overrides them.
//!
//! Invariants: rendering reads no file, clock or network: templates are loaded when the
//! [`Renderer`] is made, and again when it is asked to look ([`Renderer::refresh`]); a set that
//! cannot be read replaces nothing. An undefined variable is an error that names template and
//! line. A token is in a rendered text only when the caller put it into the context.
//!
//! Not here: what is rendered when (`workflow`), and the templates themselves (`templates/`).

mod config_url;
mod context;
mod error;
mod facts;
pub mod family;
pub mod ignition;
mod join;
mod origin;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};

pub use config_url::{ConfigBase, ConfigRef, MetadataBase, SEED, ServedBy};
pub use context::{Context, ImageFacts, PhoneHome, REDACTED, Wanted, known_variables};
pub use error::RenderError;
pub use join::{ClusterFacts, JoinSecrets, JoinWanted};

/// The built-in data folders, listed by `build.rs`.
pub(crate) mod data {
    include!(concat!(env!("OUT_DIR"), "/data.rs"));
}

/// How much work one rendering may be; a template of a few thousand lines needs less.
const FUEL: u64 = 500_000;
/// How deep `render` may call templates that call `render`.
const MAX_DEPTH: usize = 8;
/// Name of the variable that counts the depth.
const DEPTH: &str = "_depth";

/// Renders templates; made once, shared.
#[derive(Debug)]
pub struct Renderer {
    dir: Option<PathBuf>,
    set: RwLock<Arc<Set>>,
}

/// Templates as they were read together.
#[derive(Debug)]
struct Set {
    environment: Environment<'static>,
    names: Vec<String>,
    stamp: Stamp,
}

/// What tells that a file of the folder is another one: path, inode, length, and when it changed
/// (seconds and nanoseconds).
type Stamp = Vec<(PathBuf, u64, u64, i64, i64)>;

impl Renderer {
    /// With the built-in templates, and those of `templates_dir` which replace built-in ones of
    /// the same name. A name is the path in the folder, without `.j2`: `debian/user-data`.
    ///
    /// # Errors
    /// When the folder cannot be read or a template has a syntax error.
    pub fn new(templates_dir: Option<PathBuf>) -> Result<Self, RenderError> {
        let set = Set::read(templates_dir.as_deref())?;
        Ok(Self {
            dir: templates_dir,
            set: RwLock::new(Arc::new(set)),
        })
    }

    /// Looks at the folder again, and loads all templates anew if a file of it changed.
    ///
    /// # Errors
    /// As [`Self::new`]; the templates then stay as they were.
    pub fn refresh(&self) -> Result<(), RenderError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        if stamp(dir)? == self.set().stamp {
            return Ok(());
        }
        let set = Arc::new(Set::read(Some(dir))?);
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = set;
        tracing::info!(dir = %dir.display(), "templates were loaded anew");
        Ok(())
    }

    fn set(&self) -> Arc<Set> {
        self.set
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// With exactly these templates.
    #[cfg(test)]
    pub(crate) fn from_sources(sources: BTreeMap<String, String>) -> Result<Self, RenderError> {
        let set = RwLock::new(Arc::new(Set::from_sources(sources, Stamp::new())?));
        Ok(Self { dir: None, set })
    }

    /// Names of all templates, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.set().names.clone()
    }

    /// Renders a template by its name.
    ///
    /// # Errors
    /// When there is no such template, a variable is undefined, or it does too much work.
    pub fn render(&self, template: &str, context: &Context) -> Result<String, RenderError> {
        family::check(template, context.os()).map_err(|told| RenderError::new(template, told))?;
        self.set()
            .environment
            .get_template(template)
            .and_then(|found| found.render(context.value()))
            .map_err(|e| RenderError::from_engine(&e, template))
    }

    /// Renders a text that is not a file; `file` names it in errors. A text that is one
    /// expression (`{{ machine.disk }}`) gives that expression's value, whatever its type.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn evaluate(
        &self,
        text: &str,
        file: &str,
        context: &Context,
    ) -> Result<serde_json::Value, RenderError> {
        let fail = |e: &Error| RenderError::in_text(e, file);
        let Some(expression) = sole_expression(text) else {
            return self
                .set()
                .environment
                .render_named_str(file, text, context.value())
                .map(serde_json::Value::String)
                .map_err(|e| fail(&e));
        };
        let value = self
            .set()
            .environment
            .compile_expression(expression)
            .and_then(|compiled| compiled.eval(context.value()))
            .map_err(|e| fail(&e))?;
        if value.is_undefined() {
            let message = format!("undefined value: `{expression}`");
            return Err(RenderError::new(file, message));
        }
        serde_json::to_value(&value)
            .map_err(|e| RenderError::new(file, format!("`{expression}` has no plain value: {e}")))
    }

    /// Whether a condition holds, such as `machine.role == "worker"`.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn condition(
        &self,
        expression: &str,
        file: &str,
        context: &Context,
    ) -> Result<bool, RenderError> {
        self.set()
            .environment
            .compile_expression(expression)
            .and_then(|compiled| compiled.eval(context.value()))
            .map(|value| value.is_true())
            .map_err(|e| RenderError::in_text(&e, file))
    }

    /// Variables that a text uses and does not set, dotted: `machine.disk`.
    ///
    /// # Errors
    /// When the text has a syntax error.
    pub fn variables(&self, text: &str, file: &str) -> Result<Vec<String>, RenderError> {
        let set = self.set();
        let template = set
            .environment
            .template_from_named_str(file, text)
            .map_err(|e| RenderError::from_engine(&e, file))?;
        let mut found: Vec<String> = template.undeclared_variables(true).into_iter().collect();
        found.sort();
        Ok(found)
    }

    /// Variables that a condition uses, dotted.
    ///
    /// # Errors
    /// When the condition has a syntax error.
    pub fn condition_variables(
        &self,
        expression: &str,
        file: &str,
    ) -> Result<Vec<String>, RenderError> {
        let set = self.set();
        let compiled = set
            .environment
            .compile_expression(expression)
            .map_err(|e| RenderError::from_engine(&e, file))?;
        let mut found: Vec<String> = compiled.undeclared_variables(true).into_iter().collect();
        found.sort();
        Ok(found)
    }
}

impl Set {
    fn read(dir: Option<&Path>) -> Result<Self, RenderError> {
        let mut sources: BTreeMap<String, String> = data::TEMPLATES
            .iter()
            .map(|(name, text)| (template_name(name), (*text).to_owned()))
            .collect();
        // Before the files are read: what changes meanwhile is noticed the next time.
        let stamp = dir.map(stamp).transpose()?.unwrap_or_default();
        if let Some(dir) = dir {
            for path in files(dir)? {
                let text = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
                let name = path.strip_prefix(dir).unwrap_or(&path).display();
                sources.insert(template_name(&name.to_string()), text);
            }
        }
        Self::from_sources(sources, stamp)
    }

    fn from_sources(sources: BTreeMap<String, String>, stamp: Stamp) -> Result<Self, RenderError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        let mut syntax = SyntaxConfig::builder();
        syntax.keep_trailing_newline(true);
        environment.set_syntax(
            syntax
                .build()
                .map_err(|e| RenderError::from_engine(&e, ""))?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_debug(true);
        environment.add_filter("shquote", shquote);
        environment.add_filter("b64", b64);
        environment.add_filter("unb64", unb64);
        environment.add_filter("toyaml", to_yaml);
        environment.add_filter("tojson", to_json);
        environment.add_filter("ignition", ignition::filter);
        environment.add_function("render", render_other);
        environment.add_function("fail", fail);
        environment.add_function("config_url", config_url::config_url);
        environment.add_function("metadata_url", config_url::metadata_url);
        let names = sources.keys().cloned().collect();
        for (name, text) in sources {
            environment
                .add_template_owned(name.clone(), text)
                .map_err(|e| RenderError::from_engine(&e, &name))?;
        }
        Ok(Self {
            environment,
            names,
            stamp,
        })
    }
}

/// The expression of a text that is nothing but `{{ expression }}`.
fn sole_expression(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}") && !inner.contains("{%")).then(|| inner.trim())
}

fn template_name(path: &str) -> String {
    path.strip_suffix(".j2").unwrap_or(path).to_owned()
}

fn unreadable(path: &Path, error: &std::io::Error) -> RenderError {
    RenderError::new(
        path.display().to_string(),
        format!("cannot be read: {error}"),
    )
}

/// The template files below a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>, RenderError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| unreadable(folder, &e))? {
        let path = entry.map_err(|e| unreadable(folder, &e))?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_none_or(|e| e != "md") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stamp(folder: &Path) -> Result<Stamp, RenderError> {
    let look = |path: PathBuf| {
        let meta = std::fs::metadata(&path).map_err(|e| unreadable(&path, &e))?;
        Ok((
            path,
            meta.ino(),
            meta.len(),
            meta.ctime(),
            meta.ctime_nsec(),
        ))
    };
    files(folder)?.into_iter().map(look).collect()
}

/// `render('debian/user-data')`: another template with the same variables.
fn render_other(state: &State, name: &str) -> Result<String, Error> {
    let depth = state
        .lookup(DEPTH)
        .and_then(|v| usize::try_from(v).ok())
        .unwrap_or(0);
    if depth >= MAX_DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("`render` calls itself more than {MAX_DEPTH} times"),
        ));
    }
    let variables = context::ROOTS
        .iter()
        .filter_map(|root| Some(((*root).to_owned(), state.lookup(root)?)))
        .chain([(DEPTH.to_owned(), Value::from(depth + 1))]);
    let variables = Value::from_pairs(variables);
    family::check_in(state, name)?;
    let text = state.env().get_template(name)?.render(variables)?;
    origin::note(state, name, &text);
    Ok(text)
}

/// One word for a POSIX shell, whatever the text holds.
fn shquote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Base64 with padding, one line.
fn b64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// JSON, of what is there.
fn to_json(value: &Value, indent: Option<Value>, args: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    minijinja::filters::tojson(value, indent, args)
}

/// The text behind base64; a secret that is not made yet stays what stands in for it.
fn unb64(text: &str) -> Result<String, Error> {
    if text == REDACTED {
        return Ok(text.to_owned());
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim());
    bytes
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "expected base64 of a text"))
}

/// `fail('why')`: this machine cannot have this text; `why` is what the operator reads.
fn fail(why: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, why.to_owned()))
}

/// YAML that every reader understands the same way.
fn to_yaml(value: Value) -> Result<String, Error> {
    // A missing value would become `null`, and nobody would notice.
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    crate::yaml::to_string(&value)
        .map(|text| text.trim_end().to_owned())
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

#[cfg(test)]
mod tests;
