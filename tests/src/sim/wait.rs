//! Waiting for a condition, with a bound.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks at `condition` until it yields a value.
///
/// # Errors
/// When `limit` has passed: names `what` was waited for. An error of the condition itself ends
/// the wait at once.
pub fn wait_for<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        anyhow::ensure!(
            begin.elapsed() < limit,
            "waited {} s in vain for {what}",
            limit.as_secs()
        );
        std::thread::sleep(INTERVAL);
    }
}

/// Looks at `condition` until it holds.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    wait_for(limit, what, || Ok(condition().then_some(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_first_value() {
        let mut looks = 0;
        let value = wait_for(Duration::from_secs(5), "three looks", || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn names_what_did_not_happen() {
        let error = wait_until(Duration::ZERO, "the impossible", || false).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s in vain for the impossible");
    }

    #[test]
    fn passes_an_error_on_at_once() {
        let result: anyhow::Result<()> = wait_for(Duration::from_secs(600), "x", || {
            anyhow::bail!("it is broken for good")
        });
        assert_eq!(result.unwrap_err().to_string(), "it is broken for good");
    }
}
