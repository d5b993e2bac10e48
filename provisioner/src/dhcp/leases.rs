//! The leases as decisions see them: a table in memory, filled from the store at start.
//!
//! Pure. Invariants: a card has one lease and an address has one card. Offers live here only; what
//! is granted is stored before the client hears of it, by whoever applies the change.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use anneal_protocol::machine::Mac;
use anneal_protocol::time::Millis;

use crate::store::{Lease, LeaseChange, LeaseState};

/// What a decision changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Hold this address for a client that has been offered it; memory only.
    Offer(Lease),
    /// The client took another server's offer; memory only.
    Withdraw(Mac),
    /// Must be stored before the client is answered.
    Store(LeaseChange),
}

/// Every lease and quarantine.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    by_mac: HashMap<Mac, Lease>,
    holder: HashMap<Ipv4Addr, Mac>,
    quarantine: HashMap<Ipv4Addr, Millis>,
}

impl Leases {
    /// The table as it was stored.
    #[must_use]
    pub fn new(
        leases: impl IntoIterator<Item = Lease>,
        quarantine: impl IntoIterator<Item = (Ipv4Addr, Millis)>,
    ) -> Self {
        let mut table = Self::default();
        for lease in leases {
            table.set(lease);
        }
        table.quarantine.extend(quarantine);
        table
    }

    /// What a card holds or held last.
    #[must_use]
    pub fn of(&self, mac: Mac) -> Option<&Lease> {
        self.by_mac.get(&mac)
    }

    /// Until when an address is quarantined, if it is.
    #[must_use]
    pub fn quarantined(&self, address: Ipv4Addr, now: Millis) -> Option<Millis> {
        let until = *self.quarantine.get(&address)?;
        (until > now).then_some(until)
    }

    /// Another card that holds the address at this moment.
    #[must_use]
    pub fn held_by_other(&self, address: Ipv4Addr, mac: Mac, now: Millis) -> Option<Mac> {
        let holder = *self.holder.get(&address)?;
        let lease = self.by_mac.get(&holder)?;
        let counts = lease.state != LeaseState::Released && lease.expires_at > now;
        (holder != mac && counts).then_some(holder)
    }

    /// Picks an address of the pool for a card: the one it had, the one it wishes, one that nobody
    /// ever had, or the one that has been free longest. `reserved` are never given out.
    #[must_use]
    pub fn pick(
        &self,
        mac: Mac,
        wish: Option<Ipv4Addr>,
        pool: (Ipv4Addr, Ipv4Addr),
        reserved: impl Fn(Ipv4Addr) -> bool,
        now: Millis,
    ) -> Option<Ipv4Addr> {
        let range = u32::from(pool.0)..=u32::from(pool.1);
        let free = |address: Ipv4Addr| {
            range.contains(&u32::from(address))
                && !reserved(address)
                && self.quarantined(address, now).is_none()
                && self.held_by_other(address, mac, now).is_none()
        };
        let before = self.of(mac).map(|lease| lease.address);
        if let Some(address) = [before, wish].into_iter().flatten().find(|a| free(*a)) {
            return Some(address);
        }
        range
            .clone()
            .map(Ipv4Addr::from)
            .filter(|address| free(*address))
            .min_by_key(|address| self.last_used(*address))
    }

    fn last_used(&self, address: Ipv4Addr) -> Option<Millis> {
        let lease = self.by_mac.get(self.holder.get(&address)?)?;
        Some(lease.expires_at)
    }

    /// Carries a change out in memory.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Offer(lease) | Change::Store(LeaseChange::Set(lease)) => {
                self.set(lease.clone());
            }
            Change::Withdraw(mac) => {
                let offered = |lease: &Lease| lease.state == LeaseState::Offered;
                if self.of(*mac).is_some_and(offered) {
                    self.remove(*mac);
                }
            }
            Change::Store(LeaseChange::Quarantine { address, until, .. }) => {
                if let Some(holder) = self.holder.get(address).copied() {
                    self.remove(holder);
                }
                self.quarantine.insert(*address, *until);
            }
        }
    }

    fn set(&mut self, lease: Lease) {
        if let Some(before) = self.holder.get(&lease.address).copied() {
            self.remove(before);
        }
        self.remove(lease.mac);
        self.holder.insert(lease.address, lease.mac);
        self.by_mac.insert(lease.mac, lease);
    }

    fn remove(&mut self, mac: Mac) {
        if let Some(lease) = self.by_mac.remove(&mac) {
            self.holder.remove(&lease.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 0, 0, 10), Ipv4Addr::new(10, 0, 0, 12));

    fn mac(last: u8) -> Mac {
        Mac([0x52, 0x54, 0, 0, 0, last])
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn lease(card: u8, last: u8, state: LeaseState, expires: i64) -> Lease {
        Lease {
            mac: mac(card),
            address: address(last),
            state,
            client_id: None,
            hostname: None,
            expires_at: Millis(expires),
        }
    }

    fn pick(table: &Leases, card: u8, wish: Option<u8>, now: i64) -> Option<u8> {
        table
            .pick(mac(card), wish.map(address), POOL, |_| false, Millis(now))
            .map(|address| address.octets()[3])
    }

    #[test]
    fn prefers_the_former_then_the_wished_then_the_unused_then_the_oldest() {
        let mut table = Leases::new(
            [
                lease(1, 10, LeaseState::Bound, 100),
                lease(2, 11, LeaseState::Bound, 200),
            ],
            [],
        );
        assert_eq!(pick(&table, 2, Some(12), 500), Some(11));
        assert_eq!(pick(&table, 3, Some(11), 500), Some(11));
        assert_eq!(pick(&table, 3, Some(11), 150), Some(12));
        assert_eq!(pick(&table, 3, Some(99), 500), Some(12));
        table.apply(&Change::Offer(lease(4, 12, LeaseState::Offered, 600)));
        assert_eq!(pick(&table, 3, None, 500), Some(10));
        assert_eq!(pick(&table, 3, None, 50), None);
    }

    #[test]
    fn never_gives_out_quarantined_or_reserved_addresses() {
        let mut table = Leases::default();
        table.apply(&Change::Store(LeaseChange::Set(lease(
            1,
            10,
            LeaseState::Bound,
            900,
        ))));
        table.apply(&Change::Store(LeaseChange::Quarantine {
            address: address(10),
            mac: mac(1),
            until: Millis(300),
        }));
        assert_eq!(table.of(mac(1)), None);
        assert_eq!(pick(&table, 1, Some(10), 299), Some(11));
        assert_eq!(pick(&table, 1, Some(10), 300), Some(10));
        let reserved = |a: Ipv4Addr| a != address(12);
        assert_eq!(
            table.pick(mac(2), None, POOL, reserved, Millis(0)),
            Some(address(12))
        );
    }

    #[test]
    fn a_card_has_one_lease_and_an_address_one_card() {
        let mut table = Leases::new([lease(1, 10, LeaseState::Bound, 900)], []);
        table.apply(&Change::Store(LeaseChange::Set(lease(
            1,
            11,
            LeaseState::Bound,
            900,
        ))));
        assert_eq!(table.held_by_other(address(10), mac(2), Millis(0)), None);
        table.apply(&Change::Store(LeaseChange::Set(lease(
            2,
            11,
            LeaseState::Bound,
            900,
        ))));
        assert_eq!(table.of(mac(1)), None);
        assert_eq!(
            table.held_by_other(address(11), mac(1), Millis(0)),
            Some(mac(2))
        );
        assert_eq!(table.held_by_other(address(11), mac(1), Millis(900)), None);
    }

    #[test]
    fn only_offers_are_withdrawn() {
        let mut table = Leases::new([lease(1, 10, LeaseState::Bound, 900)], []);
        table.apply(&Change::Offer(lease(2, 11, LeaseState::Offered, 900)));
        for card in [1, 2, 3] {
            table.apply(&Change::Withdraw(mac(card)));
        }
        assert!(table.of(mac(1)).is_some());
        assert_eq!(table.of(mac(2)), None);
    }
}
