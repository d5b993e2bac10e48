//! The table of actions: what a step can use, who carries it out, which parameters it takes.
//!
//! This is the only place that knows; checks, documentation tests and dispatch read it.

use serde::{Deserialize, Serialize};

use super::caller::{CALLERS, FALLBACKS};

/// The code a step uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Start the agent over the network.
    Netboot,
    /// Switch the power.
    Power,
    /// Choose what the firmware starts next time.
    BootDevice,
    /// Wait for the installed system's first call.
    WaitPhoneHome,
    /// Report the hardware.
    Inventory,
    /// Erase a disk.
    WipeDisk,
    /// Write an image.
    StreamImage,
    /// Compare a disk with the sealed image.
    AuditDisk,
    /// Put a file onto the installed disk.
    WriteFile,
    /// Edit the kernel arguments that the installed boot loader gives.
    BootArguments,
    /// Set keys of the META partition of an installed Talos.
    WriteTalosMeta,
    /// Start an installed kernel without firmware.
    Kexec,
    /// Restart through the firmware.
    Reboot,
    /// Switch the machine off from inside.
    PowerOff,
    /// Gather what can be known about a failure.
    CollectEvidence,
}

/// Who carries an action out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsOn {
    /// The daemon.
    Daemon,
    /// The agent.
    Agent,
}

/// What a parameter's value must be, once rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Absolute path, no `..`.
    Path,
    /// Octal permission bits.
    Mode,
    /// Whole number that names a user or group.
    Number,
    /// Whole number from the first to the second.
    Count(u32, u32),
    /// A disk: `{{ machine.disk }}` or hints.
    Disk,
    /// The image: `{{ image.digest }}`.
    Image,
    /// A partition by label, UUID, type or number.
    Partition,
    /// A list of texts, none of them empty.
    Texts,
    /// Keys of Talos' META partition, each with its contents.
    MetaValues,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words, as it stands: never a template, because decisions read it unrendered.
    Fixed(&'static [&'static str]),
    /// A duration such as `90s`, from one second to a day.
    Duration,
}

/// One parameter.
#[derive(Debug, Clone, Copy)]
pub struct Param {
    /// Key under `with`.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Must be given.
    pub required: bool,
}

/// What is true of every step that uses an action.
#[derive(Debug)]
pub struct Spec {
    /// The action.
    pub action: Action,
    /// Its word in workflow files.
    pub name: &'static str,
    /// Who carries it out.
    pub runs_on: RunsOn,
    /// It writes to a disk.
    pub destructive: bool,
    /// Parameters.
    pub params: &'static [Param],
    /// Default timeout of an attempt, minutes.
    pub timeout_minutes: u64,
    /// Default number of further attempts.
    pub retries: u32,
}

const fn required(name: &'static str, kind: Kind) -> Param {
    Param {
        name,
        kind,
        required: true,
    }
}

const fn optional(name: &'static str, kind: Kind) -> Param {
    Param {
        name,
        kind,
        required: false,
    }
}

const DISK: Param = optional("disk", Kind::Disk);
const NETWORK_DEVICES: Kind = Kind::Word(&["pxe", "uefi-http"]);
const DEVICES: Kind = Kind::Word(&["pxe", "uefi-http", "disk"]);

/// All actions.
pub static ACTIONS: &[Spec] = &[
    Spec {
        action: Action::Netboot,
        name: "netboot",
        runs_on: RunsOn::Daemon,
        destructive: false,
        params: &[optional("device", NETWORK_DEVICES)],
        timeout_minutes: 10,
        retries: 2,
    },
    Spec {
        action: Action::Power,
        name: "power",
        runs_on: RunsOn::Daemon,
        destructive: false,
        params: &[required("action", Kind::Word(&["on", "off", "cycle"]))],
        timeout_minutes: 5,
        retries: 2,
    },
    Spec {
        action: Action::BootDevice,
        name: "boot-device",
        runs_on: RunsOn::Daemon,
        destructive: false,
        params: &[required("device", DEVICES)],
        timeout_minutes: 2,
        retries: 2,
    },
    Spec {
        action: Action::WaitPhoneHome,
        name: "wait-phone-home",
        runs_on: RunsOn::Daemon,
        destructive: false,
        params: &[
            optional("by", Kind::Fixed(CALLERS)),
            optional("fallback", Kind::Fixed(FALLBACKS)),
        ],
        timeout_minutes: 20,
        retries: 0,
    },
    Spec {
        action: Action::Inventory,
        name: "inventory",
        runs_on: RunsOn::Agent,
        destructive: false,
        params: &[],
        timeout_minutes: 5,
        retries: 2,
    },
    Spec {
        action: Action::WipeDisk,
        name: "wipe-disk",
        runs_on: RunsOn::Agent,
        destructive: true,
        params: &[DISK],
        timeout_minutes: 30,
        retries: 2,
    },
    Spec {
        action: Action::StreamImage,
        name: "stream-image",
        runs_on: RunsOn::Agent,
        destructive: true,
        params: &[
            optional("image", Kind::Image),
            DISK,
            optional("verify", Kind::Word(&["none", "changed", "full"])),
            optional("delta", Kind::Word(&["auto", "off"])),
            // MiB; below, not even the largest frames fit.
            optional("memory", Kind::Count(48, 65536)),
            optional("connections", Kind::Count(1, 64)),
            optional("stall_timeout", Kind::Duration),
            optional("grow", Kind::Text),
            optional("unique_labels", Kind::Texts),
        ],
        timeout_minutes: 30,
        retries: 3,
    },
    Spec {
        action: Action::AuditDisk,
        name: "audit-disk",
        runs_on: RunsOn::Agent,
        destructive: false,
        params: &[optional("image", Kind::Image), DISK],
        timeout_minutes: 60,
        retries: 2,
    },
    Spec {
        action: Action::WriteFile,
        name: "write-file",
        runs_on: RunsOn::Agent,
        destructive: true,
        params: &[
            required("partition", Kind::Partition),
            required("path", Kind::Path),
            required("contents", Kind::Text),
            optional("mode", Kind::Mode),
            optional("directory_mode", Kind::Mode),
            optional("uid", Kind::Number),
            optional("gid", Kind::Number),
            DISK,
        ],
        timeout_minutes: 5,
        retries: 2,
    },
    Spec {
        action: Action::BootArguments,
        name: "boot-arguments",
        runs_on: RunsOn::Agent,
        destructive: true,
        params: &[
            optional("partition", Kind::Partition),
            optional("add", Kind::Texts),
            optional("remove", Kind::Texts),
            DISK,
        ],
        timeout_minutes: 5,
        retries: 2,
    },
    Spec {
        action: Action::WriteTalosMeta,
        name: "write-talos-meta",
        runs_on: RunsOn::Agent,
        destructive: true,
        params: &[required("values", Kind::MetaValues), DISK],
        timeout_minutes: 5,
        retries: 2,
    },
    Spec {
        action: Action::Kexec,
        name: "kexec",
        runs_on: RunsOn::Agent,
        destructive: false,
        params: &[
            required("partition", Kind::Partition),
            required("kernel", Kind::Path),
            optional("initramfs", Kind::Path),
            required("cmdline", Kind::Text),
            DISK,
        ],
        timeout_minutes: 10,
        retries: 1,
    },
    Spec {
        action: Action::Reboot,
        name: "reboot",
        runs_on: RunsOn::Agent,
        destructive: false,
        params: &[],
        timeout_minutes: 10,
        retries: 1,
    },
    Spec {
        action: Action::PowerOff,
        name: "power-off",
        runs_on: RunsOn::Agent,
        destructive: false,
        params: &[],
        timeout_minutes: 5,
        retries: 1,
    },
    Spec {
        action: Action::CollectEvidence,
        name: "collect-evidence",
        runs_on: RunsOn::Agent,
        destructive: false,
        params: &[],
        timeout_minutes: 2,
        retries: 0,
    },
];

impl Action {
    /// Its row in [`ACTIONS`].
    #[must_use]
    pub fn spec(self) -> &'static Spec {
        // The table is in the order of the enum; a test holds them together.
        &ACTIONS[self as usize]
    }

    /// The action with this word.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let spec = ACTIONS.iter().find(|spec| spec.name == name)?;
        Some(spec.action)
    }

    /// Whether the agent carries it out.
    #[must_use]
    pub fn on_agent(self) -> bool {
        self.spec().runs_on == RunsOn::Agent
    }

    /// Whether the machine starts its own disk when it is done.
    #[must_use]
    pub fn leaves_for_disk(self) -> bool {
        matches!(self, Self::Reboot | Self::Kexec)
    }

    /// Whether the agent is gone when it is done.
    #[must_use]
    pub fn leaves_agent(self) -> bool {
        self.leaves_for_disk() || self == Self::PowerOff
    }
}

impl Spec {
    /// The parameter with this name.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&'static Param> {
        self.params.iter().find(|param| param.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, spec) in ACTIONS.iter().enumerate() {
            assert_eq!(spec.action as usize, index);
            assert_eq!(Action::by_name(spec.name), Some(spec.action));
            let word = serde_json::to_value(spec.action).unwrap();
            assert_eq!(word, spec.name);
        }
    }

    #[test]
    fn the_manual_names_every_action_and_parameter() {
        let manual = include_str!("../../../docs/workflows.md");
        for spec in ACTIONS {
            assert!(
                manual.contains(&format!("| `{}` |", spec.name)),
                "{}",
                spec.name
            );
            for param in spec.params {
                assert!(
                    manual.contains(&format!("`{}`", param.name)),
                    "{}",
                    param.name
                );
            }
        }
    }
}
