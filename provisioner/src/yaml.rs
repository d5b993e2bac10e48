//! YAML, read and written in one place.
//!
//! Owns: the choice of parser, its limits, and how a mistake is told: file, line, column, what
//! was expected, and the nearest known word for a key or value that nobody knows.
//!
//! Invariants: an error never repeats a value or a source line, because a mistyped secret would
//! end up in logs and API answers; it repeats at most an unknown key, or an unknown word where a
//! fixed set of words is allowed. Duplicate keys are refused. Input is bounded, aliases included.
//!
//! Not here: what the files mean (`machine`, `settings`, `workflow`). Their types use
//! `#[serde(deny_unknown_fields)]` and [`Spanned`] for values that are checked later.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

pub use serde_saphyr::{Location, Spanned};

/// What is wrong with a file that somebody wrote, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct YamlError {
    /// The file as its author knows it.
    pub file: String,
    /// Line, from 1; 0 when unknown.
    pub line: u64,
    /// Column, from 1; 0 when unknown.
    pub column: u64,
    /// What is wrong and what was expected.
    pub message: String,
}

impl YamlError {
    /// A mistake found after parsing, at a place that a [`Spanned`] value remembers
    /// (`spanned.referenced`).
    #[must_use]
    pub fn at(file: &str, place: Location, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: place.line(),
            column: place.column(),
            message: message.into(),
        }
    }
}

/// Largest file that is read, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Reads one YAML document. `file` is only used in errors.
///
/// # Errors
/// When the text is not YAML, does not have the shape of `T`, holds a key twice, or exceeds the
/// limits (4 MiB, 100 000 nodes, 32 levels).
pub fn parse<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, YamlError> {
    if text.len() > MAX_BYTES {
        return Err(YamlError {
            file: file.to_owned(),
            line: 1,
            column: 1,
            message: format!("the file is larger than {} MiB", MAX_BYTES >> 20),
        });
    }
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| explain(&error, file))
}

/// Writes YAML that any YAML 1.1 or 1.2 reader understands the same way (`no` is quoted).
///
/// # Errors
/// When `value` has no YAML form: a map with a key that is not a scalar.
pub fn to_string<T: Serialize>(value: &T) -> anyhow::Result<String> {
    // Long words such as URLs stay on one line; texts of several lines are written as they are.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: MAX_BYTES };
    Ok(serde_saphyr::to_string_with_options(value, options)?)
}

/// The nearest of `known` to a mistyped `word`, if one is near enough to be meant.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The sentence for a word that is not one of `known`: names the nearest, or else all.
#[must_use]
pub fn unknown_word(kind: &str, word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(meant) => format!("unknown {kind} `{word}`, did you mean `{meant}`?"),
        None => format!(
            "unknown {kind} `{word}`, expected one of: {}",
            known.join(", ")
        ),
    }
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 400_000,
            max_nodes: 100_000,
            max_depth: 32,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: 2,
            max_merge_keys: 1_000,
            max_recorded_anchor_events: 100_000,
            max_total_scalar_bytes: MAX_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        // `yes` and `no` are words, not truth values.
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn explain(error: &Error, file: &str) -> YamlError {
    let error = error.without_snippet();
    let place = error.location().unwrap_or(Location::UNKNOWN);
    YamlError::at(file, place, message(error))
}

fn message(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } if expected.is_empty() => format!("unknown key `{field}`, expected none here"),
        Error::SerdeUnknownField {
            field, expected, ..
        } => unknown_word("key", field, expected),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => unknown_word("word", variant, expected),
        Error::SerdeMissingField { field, .. } => format!("key `{field}` is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("key `{key}` is given twice")
        }
        Error::DuplicateMappingKey { key: None, .. } => "a key is given twice".to_owned(),
        // `unexpected` holds the value itself, which may be a secret: keep its type only.
        Error::SerdeInvalidType {
            unexpected,
            expected,
            ..
        }
        | Error::SerdeInvalidValue {
            unexpected,
            expected,
            ..
        } => format!("expected {expected}, found {}", type_of(unexpected)),
        Error::InvalidBooleanStrict { .. } => "expected `true` or `false`".to_owned(),
        Error::InvalidScalar { ty, .. } => format!("expected {}", article(ty)),
        Error::NonFiniteFloat { .. } => "expected a finite number".to_owned(),
        Error::NullIntoString { .. } => "expected text, found nothing".to_owned(),
        Error::Unexpected { expected, .. } => format!("expected {}", article(expected)),
        Error::Eof { .. } => "the file ends too early".to_owned(),
        Error::MultipleDocuments { .. } => {
            "a second document begins here; write one document a file".to_owned()
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "the file is too large or nested too deeply".to_owned()
        }
        Error::AliasError { error, .. } => message(error),
        Error::QuotingRequired { .. } => "the text must be quoted".to_owned(),
        other => UserMessageFormatter.format_message(other).into_owned(),
    }
}

/// Serde's "string \"secret\"" or "integer `5`" without the value.
fn type_of(unexpected: &str) -> &str {
    let end = unexpected.find(['"', '`']).unwrap_or(unexpected.len());
    match unexpected[..end].trim_end() {
        "string" => "text",
        "boolean" => "true or false",
        "unit value" | "Option value" => "nothing",
        "map" => "a mapping",
        "sequence" => "a list",
        other => other,
    }
}

/// A parser's word for what it wanted, as people say it.
fn article(wanted: &str) -> String {
    match wanted {
        "u8" | "u16" | "u32" | "u64" | "u128" => "a whole number".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "i128" => "an integer".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "mapping start" => "a mapping".to_owned(),
        "sequence start" => "a list".to_owned(),
        "string scalar" => "text".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Rack {
        name: String,
        #[serde(default)]
        nodes: Vec<Node>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Node {
        role: Spanned<String>,
        #[serde(default)]
        slots: Option<u16>,
        #[serde(default)]
        boot: bool,
        #[serde(default)]
        kind: Kind,
    }

    #[derive(Debug, Deserialize, Default)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        #[default]
        Nvme,
        Sata,
    }

    fn refusal(text: &str) -> String {
        parse::<Rack>(text, "rack.yaml").unwrap_err().to_string()
    }

    #[test]
    fn says_where_and_what() {
        for (text, expected) in [
            (
                "name: r1\nnode: []\n",
                "rack.yaml:2:1: unknown key `node`, did you mean `nodes`?",
            ),
            (
                "name: r1\nxyz: []\n",
                "rack.yaml:2:1: unknown key `xyz`, expected one of: name, nodes, labels",
            ),
            (
                "name: r1\nnodes:\n  - role: a\n    kind: nvmee\n",
                "rack.yaml:4:11: unknown word `nvmee`, did you mean `nvme`?",
            ),
            (
                "name: r1\nname: r2\n",
                "rack.yaml:2:1: key `name` is given twice",
            ),
            (
                "name: r1\nlabels:\n  a: x\n  a: y\n",
                "rack.yaml:4:3: key `a` is given twice",
            ),
            (
                "name: r1\nnodes:\n  - { role: a, boot: yes }\n",
                "rack.yaml:3:22: expected `true` or `false`",
            ),
            (
                "name: r1\nnodes:\n  - { role: a, slots: hunter2 }\n",
                "rack.yaml:3:23: expected a whole number",
            ),
            (
                "name: r1\nnodes: hunter2\n",
                "rack.yaml:2:8: expected a list",
            ),
            (
                "name: r1\nnodes:\n  - hunter2\n",
                "rack.yaml:3:5: expected a mapping",
            ),
            ("name: [r1]\n", "rack.yaml:1:7: expected text"),
            ("name:\n", "rack.yaml:1:5: expected text, found nothing"),
            (
                "name: r1\n---\nname: r2\n",
                "rack.yaml:3:1: a second document begins here; write one document a file",
            ),
            ("nodes: []\n", "rack.yaml:1:1: key `name` is missing"),
            (
                "name: r1\nnodes:\n  - slots: 3\n",
                "rack.yaml:3:5: key `role` is missing",
            ),
        ] {
            assert_eq!(refusal(text), expected, "{text}");
        }
    }

    #[test]
    fn refuses_broken_yaml_at_its_place() {
        let error = parse::<Rack>("name: r1\nnodes: [\n", "rack.yaml").unwrap_err();
        assert!(error.line >= 2, "{error}");
        assert!(parse::<Rack>("", "rack.yaml").is_err());
    }

    #[test]
    fn never_repeats_a_value() {
        for text in [
            "name: r1\nnodes: hunter2\n",
            "name: r1\nnodes: [hunter2]\n",
            "name: r1\nlabels: hunter2\n",
            "name: r1\nlabels: [hunter2]\n",
            "name: { hunter2: hunter2 }\n",
            "name: r1\nnodes:\n  - { role: a, slots: hunter2 }\n",
            "name: r1\nnodes:\n  - { role: a, boot: hunter2 }\n",
            "name: \"hunter2\\q\"\n",
        ] {
            assert!(!refusal(text).contains("hunter2"), "{}", refusal(text));
        }
    }

    #[test]
    fn values_remember_their_place() {
        let rack: Rack = parse("name: r1\nnodes:\n  - role: worker\n", "rack.yaml").unwrap();
        let role = &rack.nodes[0].role;
        let error = YamlError::at("rack.yaml", role.referenced, "no such role");
        assert_eq!(error.to_string(), "rack.yaml:3:11: no such role");
    }

    #[test]
    fn stops_an_alias_bomb() {
        let mut text =
            String::from("name: r1\nlabels: {}\nnodes:\n  - &a0 [x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 8].join(", ");
            text.push_str(&format!("  - &a{level} [{aliases}]\n"));
        }
        let error = parse::<serde_json::Value>(&text, "bomb.yaml").unwrap_err();
        assert_eq!(error.message, "the file is too large or nested too deeply");
    }

    #[test]
    fn writes_what_every_reader_reads_alike() {
        let words = BTreeMap::from([("a", "no"), ("b", "52:54:00:12:34:56"), ("c", "017")]);
        let text = to_string(&words).unwrap();
        assert!(text.contains("\"no\"") || text.contains("'no'"), "{text}");
        let read: BTreeMap<String, String> = parse(&text, "t").unwrap();
        assert_eq!(read["a"], "no");
        assert_eq!(read["b"], "52:54:00:12:34:56");
        assert_eq!(read["c"], "017");
        let url = format!("https://10.77.0.1/{}", "x".repeat(200));
        assert_eq!(to_string(&[&url]).unwrap(), format!("- {url}\n"));
        assert_eq!(to_string(&["a\nb\n"]).unwrap(), "- |\n  a\n  b\n");
    }
}
