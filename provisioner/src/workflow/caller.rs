//! Whose word ends a `wait-phone-home`: the parameters `by` and `fallback`. Pure.
//!
//! The engine reads them in every look at a run, so they are words, not templates
//! ([`super::action::Kind::Fixed`]).

use super::action::Action;
use super::plan::Step;
use crate::event::kind;

/// Words of `by`, in the order of [`Caller`].
pub const CALLERS: &[&str] = &["token", "talos", "kairos"];
/// Words of `fallback`.
pub const FALLBACKS: &[&str] = &["api-port"];

/// Who says that the installed system is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A unit of the system, or cloud-init, with a phone-home token.
    Token,
    /// Talos, through the event sink: running and ready.
    Talos,
    /// The Kairos agent, through its phone-home API: booted from its active image.
    Kairos,
}

/// What a `wait-phone-home` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Who must call.
    pub by: Caller,
    /// When nothing is heard of Talos, its API port may speak for it.
    pub api_port: bool,
}

impl Wait {
    /// Of a step; `None` when it is another action's.
    #[must_use]
    pub fn of(step: &Step) -> Option<Self> {
        (step.uses == Action::WaitPhoneHome).then(|| {
            let word = |name: &str| step.with.get(name).and_then(|v| v.as_str());
            Self {
                by: match word("by") {
                    Some("talos") => Caller::Talos,
                    Some("kairos") => Caller::Kairos,
                    _ => Caller::Token,
                },
                api_port: word("fallback") == Some("api-port"),
            }
        })
    }
}

impl Caller {
    /// The event that says it.
    #[must_use]
    pub fn says(self) -> &'static str {
        match self {
            Self::Token => kind::PHONE_HOME,
            Self::Talos => kind::TALOS_READY,
            Self::Kairos => kind::KAIROS_READY,
        }
    }

    /// Completes "waits for …".
    #[must_use]
    pub fn awaited(self) -> &'static str {
        match self {
            Self::Token => "the installed system to phone home",
            Self::Talos => "Talos to report that it is running and ready",
            Self::Kairos => "the Kairos agent to report from its active image",
        }
    }

    /// What it did not do when the time is up.
    #[must_use]
    pub fn missed(self) -> &'static str {
        match self {
            Self::Token => "the installed system did not phone home",
            Self::Talos => "Talos did not report that it is running and ready",
            Self::Kairos => "the Kairos agent did not report from its active image",
        }
    }
}

/// Kinds of events that only Talos causes.
pub const SIGNS_OF_TALOS: &[&str] = &[
    kind::TALOS_EVENT,
    kind::TALOS_ADDRESS,
    kind::TALOS_STATUS,
    kind::TALOS_READY,
];

/// Kinds of events that only the installed system causes.
pub const SIGNS_OF_LIFE: &[&str] = &[
    kind::PHONE_HOME,
    kind::TALOS_EVENT,
    kind::TALOS_ADDRESS,
    kind::TALOS_STATUS,
    kind::TALOS_READY,
    kind::KAIROS_REPORT,
    kind::KAIROS_READY,
];
