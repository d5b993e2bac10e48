//! Checks that need no program.

use std::collections::BTreeSet;

use serde_json::Value;

/// Every document of a YAML text can be read.
pub(super) fn yaml(text: &str) -> Result<(), String> {
    let mut start = 0;
    for document in documents(text) {
        // Nothing but comments is no document.
        let holds = document
            .lines()
            .any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        if holds {
            crate::yaml::parse::<Value>(&document, "line")
                .map_err(|error| format!("line {}: {}", error.line + start, error.message))?;
        }
        start += document.lines().count() as u64 + 1;
    }
    Ok(())
}

fn documents(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    all
}

/// A JSON text can be read.
pub(super) fn json(text: &str) -> Result<(), String> {
    let read: Result<Value, _> = serde_json::from_str(text);
    // The error repeats no value, but its kind may hold a key.
    read.map(drop)
        .map_err(|error| format!("line {}, column {}: not JSON", error.line(), error.column()))
}

/// Sections of version 2 that hold interfaces.
const SECTIONS: &[&str] = &[
    "ethernets",
    "bonds",
    "vlans",
    "bridges",
    "wifis",
    "dummy-devices",
];

/// A network configuration has a version that exists, its sections are known, and what bonds,
/// bridges and VLANs refer to is there.
pub(super) fn network(text: &str) -> Result<(), String> {
    yaml(text)?;
    let read: Value = crate::yaml::parse(text, "line").map_err(|error| error.to_string())?;
    let root = read.get("network").unwrap_or(&read);
    match root.get("version").and_then(Value::as_u64) {
        Some(1) => {
            return match root.get("config").is_some_and(Value::is_array) {
                true => Ok(()),
                false => Err("version 1 needs a list `config`".to_owned()),
            };
        }
        Some(2) => {}
        _ => return Err("expected `version: 1` or `version: 2`".to_owned()),
    }
    let Some(sections) = root.as_object() else {
        return Err("expected a mapping".to_owned());
    };
    let known = |key: &str| SECTIONS.contains(&key) || matches!(key, "version" | "renderer");
    if let Some(key) = sections.keys().find(|key| !known(key)) {
        return Err(crate::yaml::unknown_word("section", key, SECTIONS));
    }
    let entries = || {
        let sections = SECTIONS
            .iter()
            .filter_map(|section| root.get(section)?.as_object());
        sections.flatten()
    };
    let names: BTreeSet<&str> = entries().map(|(name, _)| name.as_str()).collect();
    for (name, entry) in entries() {
        let members = entry.get("interfaces").and_then(Value::as_array);
        let members = members.into_iter().flatten().filter_map(Value::as_str);
        let parent = entry.get("link").and_then(Value::as_str);
        if let Some(missing) = members.chain(parent).find(|other| !names.contains(other)) {
            return Err(format!(
                "`{name}` refers to `{missing}`, which is not described"
            ));
        }
    }
    Ok(())
}
