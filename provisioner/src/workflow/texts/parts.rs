//! A document taken apart: the files, units and kernel arguments in it.
//!
//! What cannot be taken apart is one part. Nothing is refused here.

use base64::Engine as _;
use serde_json::Value;

use super::{CMDLINE, Text};

/// Longest text inside a document that is unpacked, bytes.
const UNPACKED_MAX: u64 = 4 * 1024 * 1024;

/// A file, unit or document as the installed system will see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// For people.
    pub place: String,
    /// Path in the installed system, or of the document.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A list of kernel arguments and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arguments {
    pub place: String,
    pub list: Vec<String>,
}

/// Takes a text apart.
pub(super) fn split(text: &Text) -> (Vec<Part>, Vec<Arguments>) {
    let whole = Part {
        place: text.place.clone(),
        path: text.path.clone(),
        text: text.text.clone(),
    };
    if text.path == CMDLINE {
        let list = text.text.split_whitespace().map(str::to_owned).collect();
        let place = text.place.clone();
        return (Vec::new(), vec![Arguments { place, list }]);
    }
    if let Some(ignition) = ignition(&text.text) {
        return split_ignition(&whole, &ignition);
    }
    let mut parts = Vec::new();
    let mut arguments = Vec::new();
    for document in yaml_documents(&text.text) {
        for file in strings_with(&document, &["write_files"], "path", "content") {
            parts.push(inside(&whole, file));
        }
        for file in strings_with(&document, &["machine", "files"], "path", "content") {
            parts.push(inside(&whole, file));
        }
        if let Some(list) = document.pointer("/machine/install/extraKernelArgs") {
            arguments.push(Arguments {
                place: format!("{} machine.install.extraKernelArgs", text.place),
                list: strings(list),
            });
        }
    }
    parts.push(whole);
    arguments.extend(parts.iter().flat_map(grub_defaults));
    (parts, arguments)
}

/// The arguments in a file that GRUB's tools read when they make its configuration: a list for each line, since the
/// lines are for several variables, and a later one may begin with what an earlier one said.
fn grub_defaults(part: &Part) -> Vec<Arguments> {
    if part.path != "/etc/default/grub" && !part.path.starts_with("/etc/default/grub.d/") {
        return Vec::new();
    }
    let values = part.text.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let value = value.split_once(" #").map_or(value, |(value, _)| value);
        name.starts_with("GRUB_CMDLINE_LINUX").then_some(value)
    });
    // Without the quotes of the shell and of GRUB, and without what was there before.
    let words = |value: &str| {
        value
            .split_whitespace()
            .map(|word| word.replace(['"', '\'', '\\'], ""))
            .filter(|word| !word.is_empty() && !word.starts_with('$'))
            .collect()
    };
    values
        .map(|value| Arguments {
            place: part.place.clone(),
            list: words(value),
        })
        .collect()
}

/// An Ignition document, if a text is one.
fn ignition(text: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(text).ok()?;
    value
        .pointer("/ignition/version")
        .is_some()
        .then_some(value)
}

fn split_ignition(whole: &Part, document: &Value) -> (Vec<Part>, Vec<Arguments>) {
    let list = |pointer: &str| {
        let found = document.pointer(pointer).and_then(Value::as_array);
        found.map(Vec::as_slice).unwrap_or_default()
    };
    let text = |value: &Value, key: &str| Some(value.get(key)?.as_str()?.to_owned());
    let mut parts = Vec::new();
    for file in list("/storage/files") {
        if let (Some(path), Some(contents)) = (text(file, "path"), unpacked(file)) {
            parts.push(inside(whole, (path, contents)));
        }
    }
    for unit in list("/systemd/units") {
        let Some(name) = text(unit, "name") else {
            continue;
        };
        let dropins = unit.get("dropins").and_then(Value::as_array);
        for dropin in dropins.into_iter().flatten() {
            if let (Some(file), Some(contents)) = (text(dropin, "name"), text(dropin, "contents")) {
                parts.push(inside(whole, (format!("{name}.d/{file}"), contents)));
            }
        }
        if let Some(contents) = text(unit, "contents") {
            parts.push(inside(whole, (name, contents)));
        }
    }
    let arguments = document.pointer("/kernelArguments/shouldExist");
    let arguments = arguments.map(|list| Arguments {
        place: format!("{} kernel_args", whole.place),
        list: strings(list),
    });
    (parts, arguments.into_iter().collect())
}

fn inside(whole: &Part, (path, text): (String, String)) -> Part {
    Part {
        place: format!("{}: {path}", whole.place),
        path,
        text,
    }
}

/// What a file's `data:` URL holds.
fn unpacked(file: &Value) -> Option<String> {
    let source = file.pointer("/contents/source")?.as_str()?;
    let data = source.strip_prefix("data:")?;
    let bytes = match data.strip_prefix(";base64,") {
        Some(packed) => base64::engine::general_purpose::STANDARD
            .decode(packed)
            .ok()?,
        None => unescaped(data.split_once(',')?.1),
    };
    let compressed = file
        .pointer("/contents/compression")
        .and_then(Value::as_str)
        == Some("gzip");
    let bytes = match compressed {
        true => {
            use std::io::Read as _;
            let mut out = Vec::new();
            let reader = flate2::read::GzDecoder::new(bytes.as_slice());
            reader.take(UNPACKED_MAX).read_to_end(&mut out).ok()?;
            out
        }
        false => bytes,
    };
    String::from_utf8(bytes).ok()
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let byte = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|digits| hex::decode(digits).ok());
        match byte {
            Some(byte) => {
                out.extend(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The documents of a YAML text that are mappings; nothing when it is no YAML.
pub(crate) fn yaml_documents(text: &str) -> Vec<Value> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        match line.trim_end() {
            "---" => documents.push(String::new()),
            _ => {
                if let Some(last) = documents.last_mut() {
                    last.push_str(line);
                    last.push('\n');
                }
            }
        }
    }
    documents
        .iter()
        .filter(|text| text.contains(':'))
        .filter_map(|text| crate::yaml::parse::<Value>(text, "").ok())
        .filter(Value::is_object)
        .collect()
}

/// Two texts of each mapping in a list below `path`.
fn strings_with(
    document: &Value,
    path: &[&str],
    first: &str,
    second: &str,
) -> Vec<(String, String)> {
    let found = path.iter().try_fold(document, |value, key| value.get(key));
    let list = found.and_then(Value::as_array);
    let both = |entry: &Value| {
        let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
        Some((text(first)?, text(second)?))
    };
    list.into_iter().flatten().filter_map(both).collect()
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}
