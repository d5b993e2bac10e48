//! Texts against golden files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{FAMILIES, Family, cases, golden_path};

/// Writes instead of comparing.
fn blessing() -> bool {
    std::env::var_os("ANNEAL_BLESS").is_some()
}

fn first_difference(expected: &str, found: &str) -> String {
    let (mut old, mut new) = (expected.lines(), found.lines());
    let mut line = 0;
    loop {
        line += 1;
        match (old.next(), new.next()) {
            (None, None) => return "line ends differ".to_owned(),
            (a, b) if a == b => {}
            (a, b) => {
                let shown = |text: Option<&str>| text.unwrap_or("(end)").to_owned();
                return format!("line {line}:\n- {}\n+ {}", shown(a), shown(b));
            }
        }
    }
}

fn files_below(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.insert(path);
        }
    }
}

/// Made of another text, which has a file for every machine: one machine's is enough.
const MADE_OF_ANOTHER: [&str; 1] = ["config.ign"];

/// The texts of a family, with their files. A text that is the same as the first machine's has none
/// of its own.
fn texts(family: &'static Family) -> Vec<(PathBuf, String)> {
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    for template in family.templates {
        let mut first: Option<String> = None;
        for case in cases(family) {
            if MADE_OF_ANOTHER.contains(template) && case.variant != "worker-static" {
                continue;
            }
            let text = case.own(template);
            if first.as_ref() != Some(&text) {
                texts.push((golden_path(&case, template), text.clone()));
            }
            first.get_or_insert(text);
        }
    }
    texts
}

#[test]
fn texts_are_as_they_were() {
    let mut wrong = Vec::new();
    let mut there = BTreeSet::new();
    for family in FAMILIES {
        files_below(&Path::new("tests/golden").join(family.folder), &mut there);
        for (path, text) in texts(family) {
            there.remove(&path);
            let expected = std::fs::read_to_string(&path).unwrap_or_default();
            if expected == text {
                continue;
            }
            if blessing() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &text).unwrap();
            } else {
                let difference = first_difference(&expected, &text);
                wrong.push(format!("{}: {difference}", path.display()));
            }
        }
    }
    if blessing() {
        for path in &there {
            std::fs::remove_file(path).unwrap();
        }
    } else {
        let nobody = there
            .iter()
            .map(|p| format!("{}: nothing makes it", p.display()));
        wrong.extend(nobody);
    }
    assert!(
        wrong.is_empty(),
        "{} texts changed; if that is meant: ANNEAL_BLESS=1 cargo test -p anneal --test os_templates\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn every_template_of_a_family_has_golden_files() {
    for family in FAMILIES {
        let prefix = format!("{}/", family.name);
        for name in super::renderer().names() {
            let Some(own) = name.strip_prefix(&prefix) else {
                continue;
            };
            let parts = ["node", "network.yaml", "phone-home.sh", "zincati.toml"];
            assert!(
                family.templates.contains(&own)
                    || parts.contains(&own)
                    || own.starts_with("machine-1."),
                "no golden file for {name}"
            );
        }
    }
}

/// Secrets are in one place of a text only, and in no file that others can read.
#[test]
fn the_token_is_there_once() {
    for family in FAMILIES {
        for case in cases(family) {
            for template in family.templates {
                let count = case.own(template).matches(super::TOKEN).count();
                assert!(count <= 1, "{}/{template}: {count}", family.name);
            }
        }
    }
}
