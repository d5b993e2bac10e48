//! Memory against floods and loops, bounded. Pure: the time is a value.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use anneal_protocol::machine::Mac;
use anneal_protocol::time::Millis;

/// How many keys are remembered at once. Whoever invents more only makes us forget sooner.
const REMEMBERED: usize = 8_192;

/// Lets at most `limit` things of one key pass in each `window`.
#[derive(Debug)]
pub struct Limiter<K> {
    limit: u32,
    window: Duration,
    seen: HashMap<K, (Millis, u32)>,
}

impl<K: Eq + Hash> Limiter<K> {
    /// A limiter that has seen nothing.
    #[must_use]
    pub fn new(limit: u32, window: Duration) -> Self {
        Self {
            limit,
            window,
            seen: HashMap::new(),
        }
    }

    /// Counts one thing; whether it may pass.
    pub fn allow(&mut self, key: K, now: Millis) -> bool {
        let window = self.window;
        if self.seen.len() >= REMEMBERED && !self.seen.contains_key(&key) {
            self.seen.retain(|_, (since, _)| now.since(*since) < window);
            if self.seen.len() >= REMEMBERED {
                self.seen.clear();
            }
        }
        let (since, count) = self.seen.entry(key).or_insert((now, 0));
        if now.since(*since) >= window {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= self.limit
    }
}

/// How long handing our loader to an iPXE counts against that card.
const LOOP_WINDOW: Duration = Duration::from_secs(180);

/// Which cards' iPXE were given our iPXE lately. A transaction counts once however often the
/// client repeats itself.
#[derive(Debug, Default)]
pub struct Loaders {
    given: HashMap<Mac, Vec<(u32, Millis)>>,
}

impl Loaders {
    /// How many other transactions of this card were given a loader.
    #[must_use]
    pub fn given(&self, mac: Mac, xid: u32, now: Millis) -> usize {
        self.given.get(&mac).map_or(0, |given| {
            let recent = |at: Millis| now.since(at) < LOOP_WINDOW;
            given
                .iter()
                .filter(|(other, at)| *other != xid && recent(*at))
                .count()
        })
    }

    /// One was given.
    pub fn note(&mut self, mac: Mac, xid: u32, now: Millis) {
        if self.given.len() >= REMEMBERED {
            self.given.clear();
        }
        let given = self.given.entry(mac).or_default();
        given.retain(|(other, at)| *other != xid && now.since(*at) < LOOP_WINDOW);
        given.push((xid, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flooder_does_not_use_up_another() {
        let mut limiter = Limiter::new(3, Duration::from_secs(10));
        let passed = (0..100).filter(|_| limiter.allow("a", Millis(0))).count();
        assert_eq!(passed, 3);
        assert!(limiter.allow("b", Millis(0)));
        assert!(!limiter.allow("a", Millis(9_999)));
        assert!(limiter.allow("a", Millis(10_000)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = Limiter::new(1, Duration::from_secs(10));
        for key in 0..100_000 {
            limiter.allow(key, Millis(0));
            assert!(limiter.seen.len() <= REMEMBERED);
        }
    }

    #[test]
    fn counts_transactions_not_packets() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let mut loaders = Loaders::default();
        for _ in 0..5 {
            loaders.note(mac, 1, Millis(0));
        }
        assert_eq!(loaders.given(mac, 1, Millis(0)), 0);
        assert_eq!(loaders.given(mac, 2, Millis(0)), 1);
        loaders.note(mac, 2, Millis(1_000));
        assert_eq!(loaders.given(mac, 3, Millis(1_000)), 2);
        assert_eq!(loaders.given(mac, 3, Millis(180_500)), 1);
        assert_eq!(loaders.given(Mac([2; 6]), 3, Millis(0)), 0);
    }
}
