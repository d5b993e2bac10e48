//! The one place that reads the wall clock; decisions get the time as a value.

use std::time::{SystemTime, UNIX_EPOCH};

use anneal_protocol::time::Millis;

/// The current time.
#[must_use]
pub fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A moment as the API shows it: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn rfc3339(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at.0).map_or_else(|_| at.0.to_string(), |t| format!("{t:.3}"))
}
