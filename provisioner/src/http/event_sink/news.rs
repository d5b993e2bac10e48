//! What an event of Talos tells us, cut to size. Pure.
//!
//! Texts come from the wire, unauthenticated: they are made printable and short before they are
//! kept. Tasks and most states of services are left out: there are hundreds, and the phases tell
//! the same.

use prost::Message as _;
use serde_json::{Value, json};

use super::message::{
    AddressEvent, Any, ConfigErrorEvent, MachineStatusEvent, PhaseEvent, SequenceEvent,
    ServiceStateEvent,
};

/// Type URLs begin so; the message's full name follows.
const PREFIX: &str = "talos/runtime/";
/// Characters that are kept of a text.
const TEXT: usize = 200;
/// Entries that are kept of a list.
const LIST: usize = 16;
/// Stages by number.
const STAGES: &[&str] = &[
    "unknown",
    "booting",
    "installing",
    "maintenance",
    "running",
    "rebooting",
    "shutting down",
    "resetting",
    "upgrading",
];
const RUNNING: i32 = 4;

/// What is worth telling.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum News {
    /// Running and ready.
    Ready,
    /// How it is, short of that.
    Status(Status),
    /// What it is called and where it is.
    Address { message: String, data: Value },
    /// Anything else.
    Said { message: String, data: Value },
}

/// Stage and readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    stage: &'static str,
    ready: bool,
    unmet: Vec<String>,
}

impl Status {
    /// In one sentence.
    pub(super) fn said(&self) -> String {
        match (self.ready, self.unmet.as_slice()) {
            (true, _) => self.stage.to_owned(),
            (false, []) => format!("{}, not ready", self.stage),
            (false, unmet) => format!("{}, not ready: {}", self.stage, unmet.join("; ")),
        }
    }

    pub(super) fn data(&self) -> Value {
        json!({ "stage": self.stage, "ready": self.ready, "unmet": self.unmet, "said": self.said() })
    }
}

/// Reads an event; `None` when it is of no interest, or not what its type says.
pub(super) fn read(event: &Any) -> Option<News> {
    let name = event.type_url.strip_prefix(PREFIX)?;
    let bytes = event.value.clone();
    Some(match name {
        "machine.MachineStatusEvent" => status(&MachineStatusEvent::decode(bytes).ok()?),
        "machine.AddressEvent" => address(&AddressEvent::decode(bytes).ok()?),
        "machine.SequenceEvent" => {
            let event = SequenceEvent::decode(bytes).ok()?;
            let verb = match event.action {
                1 => "begins",
                2 => "ends",
                _ => "has nothing to do",
            };
            let error = event.error.map(|error| text(&error.message));
            let failed = error.as_ref().map(|e| format!(": {e}")).unwrap_or_default();
            let name = text(&event.sequence);
            said(
                format!("Talos: sequence {name} {verb}{failed}"),
                json!({ "event": "sequence", "name": name, "action": verb, "error": error }),
            )
        }
        "machine.PhaseEvent" => {
            let event = PhaseEvent::decode(bytes).ok()?;
            let verb = if event.action == 0 { "begins" } else { "ends" };
            let name = text(&event.phase);
            said(
                format!("Talos: phase {name} {verb}"),
                json!({ "event": "phase", "name": name, "action": verb }),
            )
        }
        "machine.ServiceStateEvent" => {
            let event = ServiceStateEvent::decode(bytes).ok()?;
            let state = match event.action {
                3 => "runs",
                6 => "failed",
                _ => return None,
            };
            let (name, why) = (text(&event.service), text(&event.message));
            said(
                format!("Talos: service {name} {state}: {why}"),
                json!({ "event": "service", "name": name, "state": state, "message": why }),
            )
        }
        "machine.ConfigLoadErrorEvent" | "machine.ConfigValidationErrorEvent" => {
            let error = text(&ConfigErrorEvent::decode(bytes).ok()?.error);
            said(
                format!("Talos cannot use its configuration: {error}"),
                json!({ "event": "config-error", "error": error }),
            )
        }
        _ => return None,
    })
}

fn said(message: String, data: Value) -> News {
    News::Said { message, data }
}

fn status(event: &MachineStatusEvent) -> News {
    let status = event.status.clone().unwrap_or_default();
    if event.stage == RUNNING && status.ready {
        return News::Ready;
    }
    let stage = usize::try_from(event.stage).ok();
    let unmet = status.unmet_conditions.iter().take(LIST);
    News::Status(Status {
        stage: stage.and_then(|n| STAGES.get(n)).unwrap_or(&STAGES[0]),
        ready: status.ready,
        unmet: unmet
            .map(|c| format!("{}: {}", text(&c.name), text(&c.reason)))
            .collect(),
    })
}

fn address(event: &AddressEvent) -> News {
    let hostname = text(&event.hostname);
    let addresses: Vec<_> = event.addresses.iter().take(LIST).map(|a| text(a)).collect();
    News::Address {
        message: format!("Talos is {hostname} at {}", addresses.join(", ")),
        data: json!({ "hostname": hostname, "addresses": addresses }),
    }
}

/// Printable, and not long.
fn text(given: &str) -> String {
    let mut short: String = given
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(TEXT)
        .collect();
    if given.chars().nth(TEXT).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::message::{MachineStatus, UnmetCondition};
    use super::*;

    fn any(name: &str, event: &impl Message) -> Any {
        Any {
            type_url: format!("talos/runtime/machine.{name}"),
            value: event.encode_to_vec().into(),
        }
    }

    fn status(stage: i32, ready: bool, unmet: &[(&str, &str)]) -> Option<News> {
        let condition = |(name, reason): &(&str, &str)| UnmetCondition {
            name: (*name).to_owned(),
            reason: (*reason).to_owned(),
        };
        let status = MachineStatus {
            ready,
            unmet_conditions: unmet.iter().map(condition).collect(),
        };
        read(&any(
            "MachineStatusEvent",
            &MachineStatusEvent {
                stage,
                status: Some(status),
            },
        ))
    }

    #[test]
    fn ready_is_running_and_ready_and_nothing_else() {
        assert_eq!(status(4, true, &[]), Some(News::Ready));
        for (stage, ready, unmet, expected) in [
            (
                4,
                false,
                &[("etcd", "not healthy")][..],
                "running, not ready: etcd: not healthy",
            ),
            (4, false, &[], "running, not ready"),
            (3, true, &[], "maintenance"),
            (1, false, &[], "booting, not ready"),
            (99, true, &[], "unknown"),
            (-1, true, &[], "unknown"),
        ] {
            let Some(News::Status(told)) = status(stage, ready, unmet) else {
                panic!("{stage} {ready} is no status")
            };
            assert_eq!(told.said(), expected);
        }
    }

    #[test]
    fn texts_are_made_printable_and_short() {
        let event = AddressEvent {
            hostname: format!("a\u{1b}[31m{}", "x".repeat(10_000)),
            addresses: vec!["10.77.0.11".to_owned(); 1_000],
        };
        let Some(News::Address { message, data }) = read(&any("AddressEvent", &event)) else {
            panic!("no address")
        };
        assert!(message.starts_with("Talos is a [31mxxx"), "{message}");
        assert!(message.len() < 500, "{}", message.len());
        assert_eq!(data["addresses"].as_array().unwrap().len(), LIST);
    }

    #[test]
    fn what_is_unknown_or_broken_is_no_news() {
        let phase = PhaseEvent {
            phase: "boot".to_owned(),
            action: 1,
        };
        let Some(News::Said { message, .. }) = read(&any("PhaseEvent", &phase)) else {
            panic!("no phase")
        };
        assert_eq!(message, "Talos: phase boot ends");
        assert_eq!(read(&any("TaskEvent", &phase)), None);
        let broken = Any {
            type_url: "talos/runtime/machine.PhaseEvent".to_owned(),
            value: vec![0xff; 9].into(),
        };
        assert_eq!(read(&broken), None);
        let foreign = Any {
            type_url: "type.googleapis.com/machine.PhaseEvent".to_owned(),
            ..any("PhaseEvent", &phase)
        };
        assert_eq!(read(&foreign), None);
    }
}
