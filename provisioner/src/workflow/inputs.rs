//! Parameters of a step: rendered, checked, typed.
//!
//! Pure: the same step, machine, image and templates give the same inputs. The digest is made of
//! the redacted form, so a fresh token does not look like a different input.

use std::time::Duration;

use anneal_protocol::agent::{
    AgentAction, MetaValue, PartitionRef, StreamOptions, stall_timeout_ms,
};
use anneal_protocol::disk::{DiskHints, DiskSelector};
use base64::Engine as _;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::action::{Action, Kind, Param};
use super::plan::Step;
use super::{duration, meta};
use crate::bmc::{BootDevice, PowerAction};
use crate::machine::Machine;
use crate::render::{Context, ImageFacts, RenderError, Renderer};
use crate::yaml::unknown_word;

/// Label of a machine that says how its firmware boots from the network: `pxe` or `uefi-http`.
pub const BOOT_DEVICE_LABEL: &str = "anneal/boot-device";

/// Why a step cannot be carried out as written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// A template failed.
    #[error("{0}")]
    Render(RenderError),
    /// A parameter has a value that the action cannot use.
    #[error("{place}: parameter `{param}`: {message}")]
    Param {
        /// `file:line` of the step.
        place: String,
        /// Parameter.
        param: String,
        /// What is wrong.
        message: String,
    },
}

/// What a step does, ready to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Inputs {
    /// An order for the agent.
    Agent(Box<AgentAction>),
    /// Boot the agent from this device.
    Netboot(BootDevice),
    /// Switch the power.
    Power(PowerAction),
    /// Set the boot device.
    BootDevice(BootDevice),
    /// Wait for the node.
    WaitPhoneHome,
}

/// Whether a text holds anything to render.
#[must_use]
pub fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%") || text.contains("{#")
}

/// Renders all parameters of a step.
///
/// # Errors
/// When a template fails; names template and line.
pub fn render(
    step: &Step,
    renderer: &Renderer,
    context: &Context,
) -> Result<Map<String, Value>, InputError> {
    step.with
        .iter()
        .map(|(name, value)| Ok((name.clone(), render_value(value, step, renderer, context)?)))
        .collect()
}

fn render_value(
    value: &Value,
    step: &Step,
    renderer: &Renderer,
    context: &Context,
) -> Result<Value, InputError> {
    Ok(match value {
        Value::String(text) if is_template(text) => renderer
            .evaluate(text, &step.place, context)
            .map_err(InputError::Render)?,
        Value::Array(items) => items
            .iter()
            .map(|item| render_value(item, step, renderer, context))
            .collect::<Result<_, _>>()?,
        Value::Object(entries) => entries
            .iter()
            .map(|(k, v)| Ok((k.clone(), render_value(v, step, renderer, context)?)))
            .collect::<Result<_, InputError>>()?,
        other => other.clone(),
    })
}

/// Turns rendered parameters into what is done.
///
/// # Errors
/// When a value does not fit its parameter.
pub fn typed(
    step: &Step,
    params: &Map<String, Value>,
    machine: &Machine,
    image: Option<&ImageFacts>,
) -> Result<Inputs, InputError> {
    let read = Params {
        step,
        params,
        machine,
    };
    for (name, value) in params {
        if let Some(param) = step
            .uses
            .spec()
            .param(name)
            .filter(|p| p.kind != Kind::Image)
        {
            check_literal(param, value).map_err(|m| read.error(name, m))?;
        }
    }
    let agent = |action| Ok(Inputs::Agent(Box::new(action)));
    match step.uses {
        Action::Netboot => Ok(Inputs::Netboot(read.device("device")?)),
        Action::Power => Ok(Inputs::Power(read.word("action")?)),
        Action::BootDevice => Ok(Inputs::BootDevice(read.word("device")?)),
        Action::WaitPhoneHome => Ok(Inputs::WaitPhoneHome),
        Action::Inventory => agent(AgentAction::Inventory),
        Action::WipeDisk => agent(AgentAction::WipeDisk { disk: read.disk()? }),
        Action::StreamImage => agent(AgentAction::StreamImage {
            image: read.image(image)?,
            disk: read.disk()?,
            verify: read.optional_word("verify")?,
            // Where the data lies is known when the order is sent.
            options: StreamOptions {
                delta: read.optional_word("delta")?,
                sources: Vec::new(),
                hosts: Default::default(),
                memory: read.optional_number("memory")?,
                connections: read.optional_number("connections")?,
                grow: read.optional_text("grow")?,
                unique_labels: read.texts("unique_labels")?,
            },
            stall_timeout_ms: read
                .duration("stall_timeout")?
                .map_or_else(stall_timeout_ms, |d| {
                    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
                }),
        }),
        Action::AuditDisk => agent(AgentAction::AuditDisk {
            image: read.image(image)?,
            disk: read.disk()?,
        }),
        Action::WriteFile => agent(AgentAction::WriteFile {
            disk: read.disk()?,
            partition: read.partition()?,
            path: read.text("path")?,
            contents_base64: base64::engine::general_purpose::STANDARD
                .encode(read.text("contents")?),
            mode: read
                .optional_text("mode")?
                .unwrap_or_else(|| "0644".to_owned()),
            directory_mode: read.optional_text("directory_mode")?,
            uid: read.number("uid")?,
            gid: read.number("gid")?,
        }),
        Action::BootArguments => agent(AgentAction::BootArguments {
            disk: read.disk()?,
            partition: read.optional_partition()?,
            add: read.texts("add")?,
            remove: read.texts("remove")?,
        }),
        Action::WriteTalosMeta => agent(AgentAction::WriteTalosMeta {
            disk: read.disk()?,
            values: read.meta("values")?,
        }),
        Action::Kexec => agent(AgentAction::Kexec {
            disk: read.disk()?,
            partition: read.partition()?,
            kernel: read.text("kernel")?,
            initramfs: read.optional_text("initramfs")?,
            cmdline: read.text("cmdline")?,
        }),
        Action::Reboot => agent(AgentAction::Reboot),
        Action::PowerOff => agent(AgentAction::PowerOff),
        Action::CollectEvidence => agent(AgentAction::CollectEvidence),
    }
}

/// Digest of what is done, from its redacted form.
#[must_use]
pub fn digest(redacted: &Inputs) -> String {
    let text = match redacted {
        Inputs::Agent(action) => serde_json::to_string(action).unwrap_or_default(),
        other => format!("{other:?}"),
    };
    hex::encode(Sha256::digest(text))
}

struct Params<'a> {
    step: &'a Step,
    params: &'a Map<String, Value>,
    machine: &'a Machine,
}

impl Params<'_> {
    fn error(&self, param: &str, message: impl Into<String>) -> InputError {
        InputError::Param {
            place: self.step.place.clone(),
            param: param.to_owned(),
            message: message.into(),
        }
    }

    fn text(&self, name: &str) -> Result<String, InputError> {
        self.optional_text(name)?
            .ok_or_else(|| self.error(name, "is missing"))
    }

    fn optional_text(&self, name: &str) -> Result<Option<String>, InputError> {
        match self.params.get(name) {
            None => Ok(None),
            Some(value) => plain_text(value)
                .map(Some)
                .ok_or_else(|| self.error(name, "expected text")),
        }
    }

    fn number(&self, name: &str) -> Result<u32, InputError> {
        match self.params.get(name) {
            None => Ok(0),
            Some(value) => whole_number(value).map_err(|m| self.error(name, m)),
        }
    }

    fn duration(&self, name: &str) -> Result<Option<Duration>, InputError> {
        match self.params.get(name) {
            None => Ok(None),
            Some(value) => duration_of(value)
                .map(Some)
                .map_err(|m| self.error(name, m)),
        }
    }

    fn optional_number(&self, name: &str) -> Result<Option<u32>, InputError> {
        let given = self.params.contains_key(name);
        given.then(|| self.number(name)).transpose()
    }

    fn optional_word<T: Default + serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<T, InputError> {
        if self.params.contains_key(name) {
            self.word(name)
        } else {
            Ok(T::default())
        }
    }

    fn word<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, InputError> {
        let value = self.params.get(name).cloned().unwrap_or_default();
        serde_json::from_value(value).map_err(|_| self.error(name, "is not a known word"))
    }

    /// How the machine's firmware boots from the network: by the step, else by the machine's
    /// label, else PXE.
    fn device(&self, name: &str) -> Result<BootDevice, InputError> {
        if self.params.contains_key(name) {
            return self.word(name);
        }
        match self
            .machine
            .labels
            .get(BOOT_DEVICE_LABEL)
            .map(String::as_str)
        {
            None | Some("pxe") => Ok(BootDevice::Pxe),
            Some("uefi-http") => Ok(BootDevice::UefiHttp),
            Some(other) => {
                let message = unknown_word("boot device", other, &["pxe", "uefi-http"]);
                let label = format!("{message} in the label `{BOOT_DEVICE_LABEL}`");
                Err(self.error(name, label))
            }
        }
    }

    /// The disk to write to. Whatever the step says, the machine's protected disks stay so.
    fn disk(&self) -> Result<DiskSelector, InputError> {
        let hints = match self.params.get("disk") {
            None => self.machine.disk.clone(),
            Some(value) => disk_hints(value).map_err(|m| self.error("disk", m))?,
        };
        if hints == DiskHints::default() {
            let message = format!(
                "machine {} has no disk hints: say which disk, such as `disk: {{ hints: {{ type: nvme }} }}` in its inventory",
                self.machine.name
            );
            return Err(self.error("disk", message));
        }
        Ok(DiskSelector {
            hints,
            protected: self.machine.protected_disks.clone(),
        })
    }

    fn image(&self, image: Option<&ImageFacts>) -> Result<String, InputError> {
        let Some(image) = image else {
            return Err(self.error(
                "image",
                "the run has no image: name one in the request or the inventory",
            ));
        };
        match self.params.get("image") {
            None => Ok(image.id.clone()),
            Some(Value::String(id)) if *id == image.id => Ok(image.id.clone()),
            Some(_) => Err(self.error(
                "image",
                "a run installs the image that it was asked for: write `{{ image.digest }}`",
            )),
        }
    }

    fn partition(&self) -> Result<PartitionRef, InputError> {
        let value = self.params.get("partition").cloned().unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|e| self.error("partition", format!("expected {}: {e}", partition_keys())))
    }

    fn optional_partition(&self) -> Result<Option<PartitionRef>, InputError> {
        let given = self.params.contains_key("partition");
        given.then(|| self.partition()).transpose()
    }

    fn meta(&self, name: &str) -> Result<Vec<MetaValue>, InputError> {
        let value = self.params.get(name).cloned().unwrap_or_default();
        meta::values(&value).map_err(|m| self.error(name, m))
    }

    /// A list of texts; none when it is not given.
    fn texts(&self, name: &str) -> Result<Vec<String>, InputError> {
        match self.params.get(name) {
            None => Ok(Vec::new()),
            Some(value) => texts_of(value).map_err(|m| self.error(name, m)),
        }
    }
}

fn texts_of(value: &Value) -> Result<Vec<String>, String> {
    let items = value.as_array().map(Vec::as_slice);
    items
        .and_then(|items| items.iter().map(plain_text).collect::<Option<Vec<_>>>())
        .filter(|texts| texts.iter().all(|text| !text.is_empty()))
        .ok_or_else(|| "expected a list of texts, none of them empty".to_owned())
}

pub(super) fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn duration_of(value: &Value) -> Result<Duration, String> {
    value
        .as_str()
        .and_then(duration::parse)
        .filter(|d| (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(d))
        .ok_or_else(|| "expected a duration such as `90s` or `5m`, from 1s to 1d".to_owned())
}

fn whole_number(value: &Value) -> Result<u32, String> {
    let parsed = match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64().and_then(|n| u32::try_from(n).ok()),
    };
    parsed.ok_or_else(|| "expected a whole number from 0 to 4294967295".to_owned())
}

fn disk_hints(value: &Value) -> Result<DiskHints, String> {
    let hints = value.get("hints").unwrap_or(value);
    serde_json::from_value(hints.clone())
        .map_err(|e| format!("expected `{{{{ machine.disk }}}}` or disk hints: {e}"))
}

/// Checks a value without templates against its parameter.
///
/// # Errors
/// A sentence about what was expected.
pub fn check_literal(param: &Param, value: &Value) -> Result<(), String> {
    match param.kind {
        Kind::Text => plain_text(value)
            .map(|_| ())
            .ok_or_else(|| "expected text".to_owned()),
        Kind::Path => plain_text(value)
            .filter(|p| p.starts_with('/') && !p.contains('\0') && !p.split('/').any(|s| s == ".."))
            .map(|_| ())
            .ok_or_else(|| "expected an absolute path without `..`".to_owned()),
        Kind::Mode => value
            .as_str()
            .filter(|m| (3..=5).contains(&m.len()))
            .and_then(|m| u32::from_str_radix(m, 8).ok())
            .filter(|bits| *bits <= 0o7777)
            .map(|_| ())
            .ok_or_else(|| "expected permission bits as quoted octal text, `\"0600\"`".to_owned()),
        Kind::Number => whole_number(value).map(|_| ()),
        Kind::Duration => duration_of(value).map(|_| ()),
        Kind::Count(least, most) => match whole_number(value) {
            Ok(number) if (least..=most).contains(&number) => Ok(()),
            _ => Err(format!("expected a whole number from {least} to {most}")),
        },
        Kind::Disk => disk_hints(value).map(|_| ()),
        Kind::Image => Ok(()),
        Kind::Partition => check_partition_keys(value),
        Kind::Texts => texts_of(value).map(|_| ()),
        Kind::MetaValues => meta::values(value).map(|_| ()),
        Kind::Word(words) | Kind::Fixed(words) => match value.as_str() {
            Some(word) if words.contains(&word) => Ok(()),
            Some(word) => Err(unknown_word("word", word, words)),
            None => Err(format!("expected one of: {}", words.join(", "))),
        },
    }
}

/// Checks which keys a partition is named by; their values may still be templates.
///
/// # Errors
/// A sentence about what was expected.
pub fn check_partition_keys(value: &Value) -> Result<(), String> {
    let Some(entries) = value.as_object() else {
        return Err(format!("expected a mapping with {}", partition_keys()));
    };
    if entries.is_empty() {
        return Err(format!("name the partition by {}", partition_keys()));
    }
    match entries
        .keys()
        .find(|key| !PARTITION_KEYS.contains(&key.as_str()))
    {
        Some(key) => Err(unknown_word("key", key, PARTITION_KEYS)),
        None => Ok(()),
    }
}

/// By what a partition may be named; a test holds them together with [`PartitionRef`].
pub(super) const PARTITION_KEYS: &[&str] = &["label", "fs_label", "uuid", "type", "number"];

fn partition_keys() -> String {
    let shown: Vec<_> = PARTITION_KEYS.iter().map(|k| format!("`{k}`")).collect();
    shown.join(", ")
}
