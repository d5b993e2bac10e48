//! Moments, durations and sizes for people. Pure.

use std::time::Duration;

/// Milliseconds between two RFC 3339 moments; none when one cannot be read.
pub fn between(from: &str, to: &str) -> Option<i64> {
    let read = |text: &str| text.parse::<jiff::Timestamp>().ok();
    Some(read(to)?.as_millisecond() - read(from)?.as_millisecond())
}

/// A moment relative to another, `+12.3s`.
pub fn relative(from: &str, to: &str) -> String {
    match between(from, to) {
        Some(ms) if ms < 0 => format!("-{}", short(ms.unsigned_abs())),
        Some(ms) => format!("+{}", short(ms.unsigned_abs())),
        None => to.to_owned(),
    }
}

/// A duration in milliseconds: `0.3s`, `12.3s`, `4m05s`, `1h02m`.
pub fn short(ms: u64) -> String {
    let tenths = ms / 100;
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{}.{}s", tenths / 10, tenths % 10),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// A number of bytes: `512 B`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    let (unit, factor) = match count {
        0..1024 => return format!("{count} B"),
        1024..1_048_576 => ("KiB", 1u64 << 10),
        1_048_576..1_073_741_824 => ("MiB", 1 << 20),
        1_073_741_824..1_099_511_627_776 => ("GiB", 1 << 30),
        _ => ("TiB", 1 << 40),
    };
    let tenths = u128::from(count) * 10 / u128::from(factor);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Bytes a second over some time.
pub fn rate(count: u64, ms: u64) -> String {
    let a_second = u128::from(count) * 1000 / u128::from(ms.max(1));
    format!("{}/s", bytes(u64::try_from(a_second).unwrap_or(u64::MAX)))
}

/// A moment without its date, for logs that are being watched.
pub fn clock(moment: &str) -> &str {
    moment
        .split_once('T')
        .map_or(moment, |(_, time)| time.trim_end_matches('Z'))
}

/// How long to wait before the next try: doubling from a quarter of a second to five seconds.
pub fn backoff(tries: u32) -> Duration {
    Duration::from_millis((250u64 << tries.min(5)).min(5_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_short_and_right() {
        assert_eq!(short(0), "0.0s");
        assert_eq!(short(12_345), "12.3s");
        assert_eq!(short(245_000), "4m05s");
        assert_eq!(short(3_720_000), "1h02m");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(rate(1 << 30, 2000), "512.0 MiB/s");
        assert_eq!(clock("2026-11-21T10:15:17.123Z"), "10:15:17.123");
    }

    #[test]
    fn relates_moments() {
        let from = "2026-11-21T10:15:17.000Z";
        assert_eq!(relative(from, "2026-11-21T10:15:29.340Z"), "+12.3s");
        assert_eq!(relative(from, "2026-11-21T10:15:16.900Z"), "-0.1s");
        assert_eq!(relative(from, "later"), "later");
    }

    #[test]
    fn backs_off_up_to_five_seconds() {
        assert_eq!(backoff(0), Duration::from_millis(250));
        assert_eq!(backoff(40), Duration::from_secs(5));
    }
}
