//! The texts that a machine would get, and what they say beyond their syntax.
//!
//! Owns: collecting every text of a plan with where it goes, taking documents apart into the files
//! and commands in them (`parts`), and the boundary of an immutable system (`lint`): what belongs
//! to the Kubernetes layer is warned about, what is set in two places is an error.
//!
//! Pure. Not here: whether a text is valid for its reader (`crate::validate`).

mod lint;
mod parts;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anneal_protocol::api::{PlannedStep, RenderedDocument};

use super::inputs::plain_text;
use super::meta;
use crate::render::{ConfigRef, Context, RenderError, Renderer, SEED};

pub(super) use lint::lint;
pub(crate) use parts::yaml_documents;

/// A text and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// For people: `step 3 "config" /config.ign`, or `config URL flatcar/config.ign`.
    pub place: String,
    /// Path it is written to, or the template it is made from.
    pub path: String,
    /// The text.
    pub text: String,
}

/// Every text in steps and documents.
#[must_use]
pub fn texts(steps: &[PlannedStep], documents: &[RenderedDocument]) -> Vec<Text> {
    let mut texts = Vec::new();
    for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.runs) {
        let text = |key: &str| step.with.get(key).and_then(|value| value.as_str());
        let place = format!("step {} `{}`", index + 1, step.name);
        if let Some(contents) = text("contents") {
            let path = text("path").unwrap_or_default();
            texts.push(Text {
                place: format!("{place} {path}"),
                path: path.to_owned(),
                text: contents.to_owned(),
            });
        }
        let values = step.with.get("values").and_then(|value| value.as_object());
        for (word, contents) in values.into_iter().flatten() {
            if let (Ok(key), Some(contents)) = (meta::key(word), plain_text(contents)) {
                texts.push(Text {
                    place: format!("{place} META's `{word}`"),
                    path: meta::path(key),
                    text: contents,
                });
            }
        }
        // `boot-arguments` has a list, `kexec` the whole line.
        let added = step.with.get("add").and_then(|value| value.as_array());
        let added = added.map(|list| {
            let words: Vec<&str> = list.iter().filter_map(|word| word.as_str()).collect();
            words.join(" ")
        });
        if let Some(cmdline) = added.or_else(|| text("cmdline").map(str::to_owned)) {
            texts.push(Text {
                place,
                path: CMDLINE.to_owned(),
                text: cmdline,
            });
        }
    }
    texts.extend(documents.iter().map(|document| Text {
        place: format!("config URL {}", document.template),
        path: document.template.clone(),
        text: document.text.clone(),
    }));
    texts
}

/// What stands in for the path of a kernel command line.
pub(crate) const CMDLINE: &str = "(kernel command line)";

/// The documents behind the config URLs that renderings with `context` asked for, and behind the
/// URLs in them.
///
/// # Errors
/// Each template that has no text, once.
pub(super) fn documents(
    renderer: &Renderer,
    context: &Context,
) -> Result<Vec<RenderedDocument>, Vec<RenderError>> {
    let names = renderer.names();
    let mut errors = Vec::new();
    let mut done: BTreeMap<String, RenderedDocument> = BTreeMap::new();
    let mut seen: BTreeSet<ConfigRef> = BTreeSet::new();
    let mut todo: VecDeque<ConfigRef> = context.wanted().configs.into_iter().collect();
    while let Some(config) = todo.pop_front() {
        if !seen.insert(config.clone()) {
            continue;
        }
        for template in behind(&config.subject, &names) {
            if done.contains_key(&template) {
                continue;
            }
            match renderer.render(&template, context) {
                Ok(text) => {
                    let document = RenderedDocument {
                        subject: config.subject.clone(),
                        plain: config.plain,
                        template: template.clone(),
                        text,
                    };
                    done.insert(template, document);
                }
                Err(error) => errors.push(error),
            }
        }
        todo.extend(context.wanted().configs);
    }
    match errors.is_empty() {
        true => Ok(done.into_values().collect()),
        false => Err(errors),
    }
}

/// Templates that a config URL serves.
fn behind(subject: &str, names: &[String]) -> Vec<String> {
    match subject.strip_suffix('/') {
        None => vec![subject.to_owned()],
        Some(folder) => SEED
            .iter()
            .map(|document| format!("{folder}/{document}"))
            .filter(|name| names.contains(name))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
