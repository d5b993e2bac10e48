//! `values` of `write-talos-meta`: which key of Talos' META partition gets which contents. Pure.

use std::collections::BTreeMap;

use anneal_protocol::agent::MetaValue;
use base64::Engine as _;
use serde_json::{Map, Value};

use super::inputs::plain_text;

/// The key that has a word: the network of Talos' `metal` platform
/// (siderolabs/talos, `pkg/machinery/meta/constants.go`).
const NETWORK: (&str, u8) = ("network", 0xa);
/// Bytes for keys and contents, and what a key takes besides its contents (siderolabs/go-adv).
const ROOM: usize = (256 << 10) - 40;
const HEAD: usize = 8;

const KEYS: &str = "`network`, or a number from 1 to 255 such as `\"0xb\"`";

/// The number that a key is written for.
///
/// # Errors
/// A sentence about what was expected.
pub(super) fn key(word: &str) -> Result<u8, String> {
    if word == NETWORK.0 {
        return Ok(NETWORK.1);
    }
    let number = match word.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => word.parse(),
    };
    match number {
        // Those parsers take a sign.
        Ok(number @ 1..) if !word.contains('+') => Ok(number),
        _ => Err(format!("`{word}` is no key of META: expected {KEYS}")),
    }
}

/// What stands in for the path of the contents of a key.
pub(super) fn path(key: u8) -> String {
    match key == NETWORK.1 {
        true => format!("META/{}.yaml", NETWORK.0),
        false => format!("META/{key:#x}"),
    }
}

/// Checks the keys; their contents may still be templates.
///
/// # Errors
/// A sentence about what was expected.
pub(super) fn check_keys(value: &Value) -> Result<(), String> {
    entries(value).map(|_| ())
}

/// By number, what is given for each key.
fn entries(value: &Value) -> Result<BTreeMap<u8, &Value>, String> {
    let given = value.as_object().filter(|given| !given.is_empty());
    let given: &Map<String, Value> = given
        .ok_or_else(|| format!("expected a mapping from keys to contents, the keys {KEYS}"))?;
    let mut entries = BTreeMap::new();
    for (word, contents) in given {
        if entries.insert(key(word)?, contents).is_some() {
            return Err(format!("`{word}` is a key of META that is given twice"));
        }
    }
    Ok(entries)
}

/// The values for the agent, by ascending key.
///
/// # Errors
/// A sentence about what was expected.
pub(super) fn values(value: &Value) -> Result<Vec<MetaValue>, String> {
    let mut values = Vec::new();
    let mut needed = 0;
    for (key, contents) in entries(value)? {
        let contents = plain_text(contents)
            .filter(|text| !text.is_empty())
            .ok_or_else(|| format!("expected text for key {key:#x}, and not an empty one"))?;
        needed += HEAD + contents.len();
        values.push(MetaValue {
            key,
            contents_base64: base64::engine::general_purpose::STANDARD.encode(contents),
        });
    }
    match needed <= ROOM {
        true => Ok(values),
        false => Err(format!(
            "META has room for {ROOM} bytes, and these keys need {needed}: make their contents shorter"
        )),
    }
}

#[cfg(test)]
mod tests {
    use anneal_protocol::agent::AgentAction;

    use super::*;
    use crate::render::Renderer;
    use crate::workflow::inputs::{self, Inputs};
    use crate::workflow::plan;
    use crate::workflow::plan_tests::machine;

    /// What a step with these parameters is for the agent.
    fn typed(with: &str) -> Result<Inputs, String> {
        let text = format!("name: w\nsteps:\n  - uses: write-talos-meta\n    with: {with}\n");
        let renderer = Renderer::from_sources(BTreeMap::new()).unwrap();
        let workflow = plan::parse(&text, "w.yaml", &renderer).map_err(|e| e.to_string())?;
        let step = &workflow.steps[0];
        inputs::typed(step, &step.with, &machine(), None).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_reach_the_agent_as_numbers_with_the_disk_of_the_machine() {
        let with = "{ values: { network: \"links: []\", \"0xb\": code, \"12\": 7 } }";
        let Inputs::Agent(action) = typed(with).unwrap() else {
            panic!("an agent step");
        };
        let AgentAction::WriteTalosMeta { disk, values } = *action else {
            panic!("{action:?}");
        };
        assert_eq!(disk, machine().disk_selector());
        let value = |key, contents_base64: &str| MetaValue {
            key,
            contents_base64: contents_base64.to_owned(),
        };
        let expected = [
            value(0xa, "bGlua3M6IFtd"),
            value(0xb, "Y29kZQ=="),
            value(12, "Nw=="),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn keys_that_are_none_are_refused_with_their_place() {
        for (with, expected) in [
            ("{}", "`write-talos-meta` needs the parameter `values`"),
            ("{ values: {} }", "expected a mapping from keys to contents"),
            (
                "{ values: text }",
                "expected a mapping from keys to contents",
            ),
            (
                "{ values: { \"0\": x } }",
                "`0` is no key of META: expected `network`",
            ),
            ("{ values: { \"256\": x } }", "`256` is no key of META"),
            ("{ values: { \"+12\": x } }", "`+12` is no key of META"),
            ("{ values: { \"0x+b\": x } }", "`0x+b` is no key of META"),
            ("{ values: { netwrk: x } }", "`netwrk` is no key of META"),
            ("{ values: { network: x, \"0xa\": y } }", "given twice"),
            ("{ values: { network: \"\" } }", "expected text for key 0xa"),
            ("{ values: { network: [] } }", "expected text for key 0xa"),
            // Its contents are not known yet.
            (
                "{ values: { \"0xzz\": \"{{ machine.name }}\" } }",
                "`0xzz` is no key",
            ),
        ] {
            let told = typed(with).unwrap_err();
            assert!(told.starts_with("w.yaml:"), "{told}");
            assert!(told.contains(expected), "{with}: {told}");
        }
        let long = "x".repeat(ROOM - HEAD + 1);
        let told = typed(&format!("{{ values: {{ network: {long} }} }}")).unwrap_err();
        assert!(told.contains("these keys need 262105"), "{told}");
        assert!(typed(&format!("{{ values: {{ network: {} }} }}", &long[1..])).is_ok());
    }
}
