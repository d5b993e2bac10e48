//! Why a BMC did not do it. No variant carries a credential: what a BMC answers to a login is
//! never quoted, because some echo the request.

use std::time::Duration;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. `Display` does not repeat the source, and leaves out the BMC's URL: whoever
/// holds the client knows it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is not one of a Redfish service.
    #[error("bad BMC URL: {0}")]
    BadUrl(String),
    /// The certificate fingerprint is not 32 bytes of hex.
    #[error("bad certificate fingerprint: want the SHA-256 as 64 hex digits, colons allowed")]
    BadPin,
    /// The HTTP client could not be made.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
    /// No usable answer: refused, reset, name unknown, TLS failure.
    #[error("{method} {path}: no answer")]
    Unreachable {
        /// HTTP method.
        method: String,
        /// Path asked for.
        path: String,
        /// What the transport says.
        source: reqwest::Error,
    },
    /// It took the request and stayed silent.
    #[error("{method} {path}: no answer within {}", seconds(.after))]
    Timeout {
        /// HTTP method.
        method: String,
        /// Path asked for.
        path: String,
        /// How long it was given.
        after: Duration,
    },
    /// Another certificate than the pinned one: a new one was installed, or somebody else answers.
    #[error(
        "certificate is not the pinned one: expected SHA-256 {expected}, got {got}; if the BMC's certificate was replaced, put the new fingerprint into the inventory"
    )]
    Certificate {
        /// Pinned fingerprint, hex.
        expected: String,
        /// Presented fingerprint, hex.
        got: String,
    },
    /// User name or password refused.
    #[error(
        "user name or password refused (HTTP {status}); not tried again, because BMCs lock accounts"
    )]
    Credentials {
        /// HTTP status.
        status: u16,
    },
    /// Only the account resource may be used until the password is changed.
    #[error("the BMC wants its password changed before anything else")]
    PasswordChange,
    /// It answered with an error.
    #[error("{method} {path}: HTTP {status}{}", detail(.message))]
    Refused {
        /// HTTP method.
        method: String,
        /// Path asked for.
        path: String,
        /// HTTP status.
        status: u16,
        /// What the BMC says, shortened.
        message: String,
        /// Whether it is of the kind that passes (busy, restarting).
        busy: bool,
    },
    /// The answer is not what Redfish says it is.
    #[error("{path}: {reason}")]
    Malformed {
        /// Path asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More than one system behind this BMC, and none chosen.
    #[error(
        "this BMC has {} systems ({}); name one in the URL, as in redfish+https://host{}",
        .systems.len(), .systems.join(", "), .systems.first().map_or("", String::as_str)
    )]
    AmbiguousSystem {
        /// Their paths.
        systems: Vec<String>,
    },
    /// No system at all.
    #[error("this BMC lists no system at {0}")]
    NoSystem(String),
    /// The BMC cannot do this.
    #[error("{0}")]
    Unsupported(String),
    /// It accepted the command, but the power state did not follow.
    #[error("power did not become {wanted} within {}: the BMC still reports {last}", seconds(.after))]
    PowerStuck {
        /// Wanted state.
        wanted: &'static str,
        /// Last reported state.
        last: String,
        /// How long it was given.
        after: Duration,
    },
    /// It accepted the boot device and did not keep it.
    #[error("the BMC accepted boot device {wanted} but reports {reported}")]
    Ignored {
        /// Wanted device.
        wanted: &'static str,
        /// What it reports now.
        reported: String,
    },
}

impl Error {
    /// Whether trying again later can help: silence and busy BMCs can, a wrong password, another
    /// certificate or a missing function cannot.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Malformed { .. }
            | Self::PowerStuck { .. }
            | Self::Ignored { .. } => true,
            Self::Refused { busy, .. } => *busy,
            Self::BadUrl(_)
            | Self::BadPin
            | Self::Setup(_)
            | Self::Certificate { .. }
            | Self::Credentials { .. }
            | Self::PasswordChange
            | Self::AmbiguousSystem { .. }
            | Self::NoSystem(_)
            | Self::Unsupported(_) => false,
        }
    }
}

fn seconds(duration: &Duration) -> String {
    format!("{} s", duration.as_secs_f32())
}

fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}
