//! What a Kairos agent says of itself, cut to size. Pure.

use std::collections::BTreeMap;

use anneal_protocol::api::NodeReport;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::node::check;
use super::problem::ApiResult;

/// Boot states of the protocol.
const STATES: &[&str] = &["active", "passive", "recovery", "autoreset", "livecd"];
/// Bytes of a text that are kept.
const TEXT: usize = 256;
/// Addresses that are kept.
const LIST: usize = 16;

/// Body of a registration. Fields of newer agents are skipped.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Register {
    /// `/etc/machine-id`.
    #[serde(default, rename = "machineID")]
    pub machine_id: String,
    /// Host name.
    #[serde(default)]
    pub hostname: String,
    /// The one-use token, `phonehome.registration_token` of the node's configuration.
    #[serde(default)]
    pub registration_token: String,
    /// What is in os-release.
    #[serde(default)]
    pub os_release: BTreeMap<String, String>,
    /// Where the node is.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// `active`, `passive`, `recovery`, `autoreset`, `livecd` or `unknown`.
    #[serde(default)]
    pub boot_state: String,
}

/// One address of a node.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
pub struct Address {
    /// `InternalIP`, `ExternalIP` or `Hostname`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The address.
    #[serde(default)]
    pub address: String,
}

/// The answer to a registration.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// Name of the machine.
    pub id: String,
    /// Opens the node's socket.
    pub api_key: String,
}

#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Heartbeat {
    agent_version: String,
    os_release: BTreeMap<String, String>,
    addresses: Vec<Address>,
    boot_state: String,
}

/// What is kept of a registration or a heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    node: NodeReport,
    boot_state: &'static str,
    agent_version: Option<String>,
    addresses: Vec<String>,
    heartbeat: bool,
}

impl Register {
    /// What it says.
    ///
    /// # Errors
    /// When a field is not a short printable text.
    pub(super) fn report(&self) -> ApiResult<Report> {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        let node = NodeReport {
            machine_id: given(&self.machine_id),
            hostname: given(&self.hostname),
            ..node(&self.os_release)
        };
        check(&node)?;
        Ok(Report {
            node,
            boot_state: boot_state(&self.boot_state),
            agent_version: None,
            addresses: addresses(&self.addresses),
            heartbeat: false,
        })
    }
}

/// The heartbeat in a message; `None` when it is another one, or none that we understand. What is
/// not a short printable text in it is left out.
pub(super) fn heartbeat(message: &str) -> Option<Report> {
    let envelope: Envelope = serde_json::from_str(message).ok()?;
    // Serde would take an empty list for an object of defaults.
    if envelope.kind != "heartbeat" || !envelope.data.is_object() {
        return None;
    }
    let said: Heartbeat = serde_json::from_value(envelope.data).ok()?;
    let node = node(&said.os_release);
    Some(Report {
        node,
        boot_state: boot_state(&said.boot_state),
        agent_version: text(&said.agent_version),
        addresses: addresses(&said.addresses),
        heartbeat: true,
    })
}

impl Report {
    /// Whether the installed system is up: a heartbeat from the active image. A registration
    /// alone is not enough, since it says nothing of the system but its name; nor is the recovery
    /// boot, in which a fresh disk makes its state partition and restarts.
    pub(super) fn is_ready(&self) -> bool {
        self.heartbeat && self.boot_state == "active"
    }

    /// Takes from an earlier report of the run what heartbeats do not tell.
    pub(super) fn complete(&mut self, earlier: Option<&Value>) {
        let said = |key: &str| {
            earlier
                .and_then(|data| data[key].as_str())
                .map(str::to_owned)
        };
        self.node.hostname = self.node.hostname.take().or_else(|| said("hostname"));
        self.node.machine_id = self.node.machine_id.take().or_else(|| said("machine_id"));
    }

    /// The system, for people.
    pub(super) fn os(&self) -> &str {
        let unnamed = "a system that does not say its version";
        self.node.os.as_deref().unwrap_or(unnamed)
    }

    /// Which image it runs, for people.
    pub(super) fn said(&self) -> &'static str {
        match self.boot_state {
            "active" => "from its active image",
            "passive" => "from its passive image: the active one did not start",
            "recovery" => "from its recovery image, as at the first boot of a raw image",
            "autoreset" => "from its reset image",
            "livecd" => "from a live image: nothing is installed",
            _ => "without saying which image runs",
        }
    }

    /// For the record: a node's report, and what only Kairos says.
    pub(super) fn data(&self) -> Value {
        let mut data = json!(self.node);
        data["by"] = "kairos".into();
        data["evidence"] = match self.heartbeat {
            true => "heartbeat".into(),
            false => "registration".into(),
        };
        data["boot_state"] = self.boot_state.into();
        data["addresses"] = self.addresses.clone().into();
        if let Some(version) = &self.agent_version {
            data["agent_version"] = version.clone().into();
        }
        data
    }
}

fn node(release: &BTreeMap<String, String>) -> NodeReport {
    let said = |key: &str| release.get(key).and_then(|value| text(value));
    let os = said("PRETTY_NAME").or_else(|| said("NAME"));
    let version = said("KAIROS_VERSION");
    NodeReport {
        version: version
            .as_deref()
            .map(|v| v.trim_start_matches('v').to_owned()),
        os: match (os, version) {
            (Some(os), Some(version)) if !os.contains(&version) => {
                Some(format!("{os}, Kairos {version}"))
            }
            (os, _) => os,
        },
        kernel: said("KERNEL"),
        ..NodeReport::default()
    }
}

/// A short printable text, or nothing.
fn text(given: &str) -> Option<String> {
    let fits = !given.is_empty() && given.len() <= TEXT && !given.contains(char::is_control);
    fits.then(|| given.to_owned())
}

fn boot_state(given: &str) -> &'static str {
    let known = STATES.iter().find(|state| **state == given);
    known.copied().unwrap_or("unknown")
}

fn addresses(given: &[Address]) -> Vec<String> {
    let addresses = given.iter().filter(|a| a.kind != "Hostname");
    addresses
        .filter_map(|a| text(&a.address))
        .take(LIST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(data: Value) -> Option<Report> {
        heartbeat(&json!({ "type": "heartbeat", "data": data }).to_string())
    }

    #[test]
    fn only_a_heartbeat_from_the_active_image_is_readiness() {
        for (state, ready) in [
            ("active", true),
            ("passive", false),
            ("recovery", false),
            ("autoreset", false),
            ("livecd", false),
            ("unknown", false),
            ("ACTIVE", false),
            ("", false),
        ] {
            let report = beat(json!({ "bootState": state })).unwrap();
            assert_eq!(report.is_ready(), ready, "{state}");
        }
        assert!(!beat(json!({})).unwrap().is_ready());
        let register: Register = serde_json::from_value(json!({ "bootState": "active" })).unwrap();
        assert!(!register.report().unwrap().is_ready());
        assert_eq!(heartbeat("{}"), None);
        assert_eq!(
            heartbeat(r#"{"type": "command_status", "data": {"id": "1"}}"#),
            None
        );
        assert_eq!(beat(json!([])), None);
    }

    #[test]
    fn a_report_is_completed_by_the_registration() {
        let release =
            json!({ "PRETTY_NAME": "Ubuntu 24.04", "KAIROS_VERSION": "v4.2.0", "KERNEL": "6.8" });
        let mut report = beat(json!({
            "agentVersion": "2.31.4", "osRelease": release, "bootState": "active",
            "addresses": [{"type": "InternalIP", "address": "10.77.0.11"}, {"type": "Hostname", "address": "r1n1"}],
        }))
        .unwrap();
        report.complete(Some(&json!({ "hostname": "r1n1", "machine_id": "ab" })));
        assert_eq!(
            report.data(),
            json!({
                "machine_id": "ab", "hostname": "r1n1", "os": "Ubuntu 24.04, Kairos v4.2.0",
                "version": "4.2.0", "kernel": "6.8",
                "by": "kairos", "evidence": "heartbeat", "boot_state": "active",
                "agent_version": "2.31.4", "addresses": ["10.77.0.11"],
            })
        );
    }

    #[test]
    fn essays_are_not_kept() {
        let long = "x".repeat(300);
        let report = beat(json!({ "agentVersion": long, "osRelease": { "NAME": "a\u{7}b" } }));
        let report = report.unwrap();
        assert_eq!((report.agent_version, report.node.os), (None, None));
        let register: Register = serde_json::from_value(json!({ "hostname": long })).unwrap();
        assert!(register.report().is_err());
    }
}
