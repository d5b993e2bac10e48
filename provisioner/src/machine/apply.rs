//! What changes when a description of a machine replaces the stored one. Pure.
//!
//! Not here: storing it (`store::machines`) and who may.

use std::collections::BTreeMap;

use anneal_protocol::api::{Change, FieldChange};
use serde_json::{Map, Value, json};

use super::{Machine, check};

/// The difference between what is stored and what a file says, field by field in the words of
/// the file.
#[must_use]
pub fn diff(old: Option<&Machine>, new: &Machine) -> Change {
    let Some(old) = old else {
        return change(new, "create", Vec::new());
    };
    let fields = fields(old, new);
    let action = if fields.is_empty() {
        "unchanged"
    } else {
        "update"
    };
    change(new, action, fields)
}

fn change(machine: &Machine, action: &str, fields: Vec<FieldChange>) -> Change {
    Change {
        machine: machine.name.clone(),
        action: action.to_owned(),
        fields,
    }
}

/// The first part of the description that an active run relies on and that differs: it must not
/// change under the run.
#[must_use]
pub fn needed_by_run(old: &Machine, new: &Machine) -> Option<&'static str> {
    if old.nics != new.nics {
        Some("nics")
    } else if old.disk != new.disk {
        Some("disk")
    } else if old.protected_disks != new.protected_disks {
        Some("protected_disks")
    } else if old.bmc != new.bmc {
        Some("bmc")
    } else {
        None
    }
}

/// The first part of the description, by name, that differs in any way: a run goes on only with
/// what it was planned from, all of which may be in its texts.
#[must_use]
pub fn differs(old: &Machine, new: &Machine) -> Option<String> {
    if old == new {
        return None;
    }
    let first = fields(old, new).into_iter().next();
    let field = first.map_or_else(|| "description".to_owned(), |first| first.field);
    field.split(['.', '[']).next().map(str::to_owned)
}

/// A machine as an inventory file says it: the entry below `machines`, which reads back as the
/// same machine.
#[must_use]
pub fn entry(machine: &Machine) -> Value {
    let mut entry = Map::new();
    let mut put = |key: &str, value: Value| {
        if !matches!(&value, Value::Null) && value != json!([]) && value != json!({}) {
            entry.insert(key.to_owned(), value);
        }
    };
    put("name", json!(machine.name));
    put("rack", json!(machine.rack));
    put("role", json!(machine.role));
    put("nics", machine.nics.iter().map(nic).collect());
    put("bmc", machine.bmc.as_ref().map_or(Value::Null, bmc));
    put("disk", json!({ "hints": hints(machine) }));
    put("protected_disks", json!(machine.protected_disks));
    put("image", json!(machine.image));
    put("workflow", json!(machine.workflow));
    put("labels", json!(machine.labels));
    // Written as it is stored: absent parts are left out.
    if let Value::Object(config) = json!(machine.config) {
        entry.extend(config);
    }
    Value::Object(entry)
}

fn nic(nic: &super::Nic) -> Value {
    let mut entry = json!(nic);
    if let (false, Some(entry)) = (nic.boot, entry.as_object_mut()) {
        entry.remove("boot");
    }
    entry
}

fn bmc(bmc: &super::Bmc) -> Value {
    let mut entry = json!({
        "url": bmc.url,
        "username": bmc.username,
        "password": { "file": bmc.password_file },
    });
    if let Some(digest) = &bmc.tls_sha256 {
        entry["tls_sha256"] = json!(digest);
    }
    entry
}

fn hints(machine: &Machine) -> Value {
    let mut hints = json!(machine.disk);
    for key in ["min_size", "max_size"] {
        if let Some(bytes) = hints[key].as_u64() {
            hints[key] = json!(check::size_text(bytes));
        } else if let Some(hints) = hints.as_object_mut() {
            hints.remove(key);
        }
    }
    hints
}

fn fields(old: &Machine, new: &Machine) -> Vec<FieldChange> {
    let mut before = BTreeMap::new();
    let mut after = BTreeMap::new();
    leaves("", &entry(old), &mut before);
    leaves("", &entry(new), &mut after);
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| FieldChange {
            field: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
        })
        .collect()
}

/// Every plain value with its dotted path and its JSON text.
fn leaves(path: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                leaves(&path, value, out);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                leaves(&format!("{path}[{index}]"), value, out);
            }
        }
        plain => {
            out.insert(path.to_owned(), plain.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::file;

    const TEXT: &str = r#"machines:
  - name: r1n1
    nics: [ { mac: "52:54:00:aa:00:01", address: 10.77.0.11/24 } ]
    bmc: { url: "redfish+https://10.77.1.11", username: root, password: { file: /etc/p } }
    disk: { hints: { type: nvme, min_size: 100GiB } }
    protected_disks: [ { serial: A } ]
    labels: { pool: general }
"#;

    fn machine(text: &str) -> Machine {
        file::parse(text, "t").unwrap().machines.remove(0).machine
    }

    #[test]
    fn names_every_changed_field() {
        let old = machine(TEXT);
        let new = machine(
            &TEXT
                .replace("10.77.0.11", "10.77.0.12")
                .replace("100GiB", "50GiB")
                .replace(", min_size", ", model: X, min_size")
                .replace("    labels: { pool: general }\n", "    rack: r1\n"),
        );
        let change = diff(Some(&old), &new);
        assert_eq!(change.action, "update");
        let told: Vec<String> = change
            .fields
            .iter()
            .map(|f| format!("{}: {:?} -> {:?}", f.field, f.before, f.after))
            .collect();
        assert_eq!(
            told,
            [
                r#"disk.hints.min_size: Some("\"100GiB\"") -> Some("\"50GiB\"")"#,
                r#"disk.hints.model: None -> Some("\"X\"")"#,
                r#"labels.pool: Some("\"general\"") -> None"#,
                r#"nics[0].address: Some("\"10.77.0.11/24\"") -> Some("\"10.77.0.12/24\"")"#,
                r#"rack: None -> Some("\"r1\"")"#,
            ]
        );
    }

    #[test]
    fn same_is_unchanged_and_new_is_created() {
        let machine = machine(TEXT);
        assert_eq!(diff(Some(&machine), &machine).action, "unchanged");
        assert_eq!(diff(None, &machine).action, "create");
    }

    #[test]
    fn an_entry_reads_back_as_the_same_machine() {
        let described = machine(TEXT);
        let text = crate::yaml::to_string(&json!({ "machines": [entry(&described)] })).unwrap();
        assert_eq!(machine(&text), described, "{text}");
    }

    #[test]
    fn names_the_part_that_differs() {
        let old = machine(TEXT);
        assert_eq!(differs(&old, &old), None);
        for (from, to, part) in [
            ("10.77.0.11", "10.77.0.12", "nics"),
            ("100GiB", "50GiB", "disk"),
            ("general", "special", "labels"),
        ] {
            let new = machine(&TEXT.replace(from, to));
            assert_eq!(differs(&old, &new).as_deref(), Some(part));
        }
        let mut new = old.clone();
        new.config.cluster = Some("prod".to_owned());
        assert_eq!(differs(&old, &new).as_deref(), Some("cluster"));
    }

    #[test]
    fn knows_what_a_run_relies_on() {
        let old = machine(TEXT);
        for (from, to, field) in [
            ("10.77.0.11", "10.77.0.12", Some("nics")),
            ("100GiB", "50GiB", Some("disk")),
            ("serial: A", "serial: B", Some("protected_disks")),
            ("/etc/p", "/etc/q", Some("bmc")),
            ("general", "special", None),
        ] {
            assert_eq!(
                needed_by_run(&old, &machine(&TEXT.replace(from, to))),
                field
            );
        }
    }
}
