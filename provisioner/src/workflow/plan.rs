//! The validated workflow: known actions, known parameters, readable durations, templates that
//! parse and use known variables.
//!
//! Pure: text in, workflow or error out. What a workflow may do to a given machine is `check`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::{ACTIONS, Action, Kind, Param};
use super::file::{self, FileStep};
use super::{duration, inputs, meta};
use crate::render::{Renderer, family, known_variables};
use crate::yaml::{Spanned, YamlError, unknown_word};

/// Timeout of a run whose workflow names none.
const RUN_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Pause before the second attempt of a step that names none.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Most steps a workflow may have.
const MAX_STEPS: usize = 200;
/// Most further attempts a step may have.
const MAX_RETRIES: u32 = 100;

/// A workflow that passed all checks that need no machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workflow {
    /// Name.
    pub name: String,
    /// One sentence for lists.
    #[serde(default)]
    pub description: String,
    /// Families of systems that it is for; empty: all.
    #[serde(default)]
    pub os: Vec<String>,
    /// Where that is written, `file:line`.
    #[serde(default)]
    pub os_place: String,
    /// Timeout of the whole run, milliseconds.
    pub timeout_ms: u64,
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// Steps of a run that failed.
    pub on_failure: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Name.
    pub name: String,
    /// Action.
    pub uses: Action,
    /// Parameters, templates not yet rendered.
    pub with: serde_json::Map<String, serde_json::Value>,
    /// Condition.
    #[serde(default)]
    pub when: Option<String>,
    /// Timeout of one attempt, milliseconds.
    pub timeout_ms: u64,
    /// Further attempts.
    pub retries: u32,
    /// Pause before the second attempt, milliseconds; doubles with each further one.
    pub retry_delay_ms: u64,
    /// The run goes on when the step fails.
    pub continue_on_error: bool,
    /// Where it is written, for errors found later: `file:line`.
    pub place: String,
}

impl Workflow {
    /// All steps with their position in a run: main first, on-failure steps counted on.
    pub fn all_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().chain(&self.on_failure)
    }

    /// The step at a position of a run.
    #[must_use]
    pub fn step(&self, index: usize) -> Option<&Step> {
        self.all_steps().nth(index)
    }
}

/// Reads and validates a workflow file.
///
/// # Errors
/// Names file, line and column, and the nearest known word.
pub fn parse(text: &str, file_name: &str, renderer: &Renderer) -> Result<Workflow, YamlError> {
    let raw = file::parse(text, file_name)?;
    let reader = Reader {
        file: file_name,
        renderer,
    };
    let name = &raw.name.value;
    if name.is_empty()
        || !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return Err(reader.error(
            &raw.name,
            "a name has letters, digits, `-`, `_` and `.` only",
        ));
    }
    let count = raw.steps.value.len();
    if count == 0 || count + raw.on_failure.len() > MAX_STEPS {
        let message = format!("a workflow has 1 to {MAX_STEPS} steps");
        return Err(reader.error(&raw.steps, message));
    }
    let timeout = reader.duration(raw.timeout.as_ref(), RUN_TIMEOUT)?;
    for os in &raw.os {
        reader.family(os)?;
    }
    let os_line = raw.os.first().map_or(0, |os| os.referenced.line());
    let steps = |steps: Vec<FileStep>| -> Result<Vec<Step>, YamlError> {
        steps.into_iter().map(|step| reader.step(step)).collect()
    };
    Ok(Workflow {
        name: raw.name.value.clone(),
        description: raw.description.unwrap_or_default(),
        os: raw.os.into_iter().map(|os| os.value).collect(),
        os_place: format!("{file_name}:{os_line}"),
        timeout_ms: millis(timeout),
        steps: steps(raw.steps.value)?,
        on_failure: steps(raw.on_failure)?,
    })
}

struct Reader<'a> {
    file: &'a str,
    renderer: &'a Renderer,
}

impl Reader<'_> {
    fn error<T>(&self, place: &Spanned<T>, message: impl Into<String>) -> YamlError {
        YamlError::at(self.file, place.referenced, message)
    }

    /// A word that `anneal image add --os` takes; a near miss of a known one is a slip.
    fn family(&self, os: &Spanned<String>) -> Result<(), YamlError> {
        let word = os.value.as_str();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if word.is_empty() || !word.bytes().all(plain) {
            return Err(self.error(os, "expected a family of systems, such as `flatcar`"));
        }
        match family::slip(word) {
            Some(meant) => Err(self.error(
                os,
                format!("unknown family `{word}`, did you mean `{meant}`?"),
            )),
            None => Ok(()),
        }
    }

    fn step(&self, raw: FileStep) -> Result<Step, YamlError> {
        let Some(action) = Action::by_name(&raw.uses.value) else {
            let known: Vec<_> = ACTIONS.iter().map(|spec| spec.name).collect();
            let message = unknown_word("action", &raw.uses.value, &known);
            return Err(self.error(&raw.uses, message));
        };
        let spec = action.spec();
        if let Some(retries) = raw.retries.filter(|n| *n > MAX_RETRIES) {
            let message = format!("{retries} retries are more than {MAX_RETRIES}");
            return Err(self.error(&raw.uses, message));
        }
        if let Some(when) = &raw.when {
            self.condition(when)?;
        }
        let mut with = serde_json::Map::new();
        for (name, value) in raw.with.0 {
            let Some(param) = spec.param(&name) else {
                let known: Vec<_> = spec.params.iter().map(|p| p.name).collect();
                let message = if known.is_empty() {
                    format!("`{}` takes no parameters, found `{name}`", spec.name)
                } else {
                    unknown_word(&format!("parameter of `{}`", spec.name), &name, &known)
                };
                return Err(self.error(&value, message));
            };
            self.param(param, &value)?;
            if with.insert(name.clone(), value.value.clone()).is_some() {
                return Err(self.error(&value, format!("parameter `{name}` is given twice")));
            }
        }
        for param in spec.params.iter().filter(|param| param.required) {
            if !with.contains_key(param.name) {
                let message = format!("`{}` needs the parameter `{}`", spec.name, param.name);
                return Err(self.error(&raw.uses, message));
            }
        }
        let default_timeout = Duration::from_secs(spec.timeout_minutes * 60);
        Ok(Step {
            name: raw.name.unwrap_or_else(|| spec.name.to_owned()),
            uses: action,
            with,
            when: raw.when.map(|when| when.value),
            timeout_ms: millis(self.duration(raw.timeout.as_ref(), default_timeout)?),
            retries: raw.retries.unwrap_or(spec.retries),
            retry_delay_ms: millis(self.duration(raw.retry_delay.as_ref(), RETRY_DELAY)?),
            continue_on_error: raw.continue_on_error,
            place: format!("{}:{}", self.file, raw.uses.referenced.line()),
        })
    }

    fn duration(
        &self,
        given: Option<&Spanned<String>>,
        default: Duration,
    ) -> Result<Duration, YamlError> {
        let Some(given) = given else {
            return Ok(default);
        };
        duration::parse(&given.value)
            .filter(|d| !d.is_zero() && *d <= Duration::from_secs(30 * 86_400))
            .ok_or_else(|| {
                self.error(
                    given,
                    "expected a duration such as `90s`, `45m` or `1h30m`, at most 30d",
                )
            })
    }

    fn condition(&self, when: &Spanned<String>) -> Result<(), YamlError> {
        let used = self
            .renderer
            .condition_variables(&when.value, self.file)
            .map_err(|e| self.error(when, format!("condition: {}", e.message)))?;
        self.known(&used, when)
    }

    /// A value that is given outright must be right; one with templates must parse.
    fn param(&self, param: &Param, value: &Spanned<serde_json::Value>) -> Result<(), YamlError> {
        let mut templates = false;
        self.templates(&value.value, value, &mut templates)?;
        if templates && matches!(param.kind, Kind::Fixed(_)) {
            let message = format!("`{}` is a word, not a template", param.name);
            return Err(self.error(value, message));
        }
        let checked_later = templates || (param.kind == Kind::Image);
        if !checked_later {
            inputs::check_literal(param, &value.value).map_err(|m| self.error(value, m))?;
        }
        if param.kind == Kind::Partition {
            inputs::check_partition_keys(&value.value).map_err(|m| self.error(value, m))?;
        }
        if param.kind == Kind::MetaValues {
            meta::check_keys(&value.value).map_err(|m| self.error(value, m))?;
        }
        Ok(())
    }

    fn templates(
        &self,
        value: &serde_json::Value,
        place: &Spanned<serde_json::Value>,
        found: &mut bool,
    ) -> Result<(), YamlError> {
        match value {
            serde_json::Value::String(text) if inputs::is_template(text) => {
                *found = true;
                let used = self
                    .renderer
                    .variables(text, self.file)
                    .map_err(|e| self.error(place, format!("template: {}", e.message)))?;
                self.known(&used, place)
            }
            serde_json::Value::Array(items) => items
                .iter()
                .try_for_each(|item| self.templates(item, place, found)),
            serde_json::Value::Object(entries) => entries
                .values()
                .try_for_each(|item| self.templates(item, place, found)),
            _ => Ok(()),
        }
    }

    fn known<T>(&self, used: &[String], place: &Spanned<T>) -> Result<(), YamlError> {
        let known = known_variables();
        for variable in used {
            let fits = known.iter().any(|k| match k.strip_suffix(".*") {
                Some(parent) => {
                    variable == parent
                        || variable
                            .strip_prefix(parent)
                            .is_some_and(|rest| rest.starts_with('.'))
                }
                None => variable == k,
            });
            if !fits {
                let words: Vec<_> = known.iter().map(|k| k.trim_end_matches(".*")).collect();
                let message = unknown_word("template variable", variable, &words);
                return Err(self.error(place, message));
            }
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
