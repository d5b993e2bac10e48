//! Where a client is, and which address it gets there. Pure.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use anneal_protocol::dhcpv4::{code, encapsulated};

use super::policy::Case;
use crate::machine::Cidr;

/// Whether `address` is in the subnet of `subnet`.
pub(super) fn contains(subnet: Cidr, address: Ipv4Addr) -> bool {
    mask(subnet.prefix) & u32::from(subnet.ip) == mask(subnet.prefix) & u32::from(address)
}

/// The subnet mask of a prefix length.
pub(super) fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32_u32.saturating_sub(u32::from(prefix)))
        .unwrap_or(0)
}

impl Case<'_> {
    /// The address that this card gets on this link, or why it gets none.
    pub fn address(&self, wish: Option<Ipv4Addr>) -> Result<Cidr, String> {
        let ours = self.view.rules.address;
        let link = self.link();
        if let Some(reserved) = self.reservation.and_then(|r| r.address) {
            let at_home = self.packet.ciaddr == reserved.ip
                || contains(reserved, link)
                || (link == ours.ip && contains(ours, reserved.ip));
            if !at_home {
                return Err(format!(
                    "its address {reserved} is not in the subnet of {link}"
                ));
            }
            if let Some(until) = self.view.leases.quarantined(reserved.ip, self.view.now) {
                let secs = until.since(self.view.now).as_secs();
                return Err(format!(
                    "its address {reserved} was found in use by something else; trying again in {secs} s"
                ));
            }
            return Ok(reserved);
        }
        let Some(pool) = self.view.rules.settings.pool else {
            return Err("it has no reserved address and there is no pool".to_owned());
        };
        if !contains(ours, link) {
            return Err(format!("the pool is not in the subnet of {link}"));
        }
        let taken: HashSet<Ipv4Addr> = self
            .view
            .inventory
            .by_mac
            .values()
            .filter_map(|reservation| reservation.address)
            .map(|address| address.ip)
            .chain([ours.ip])
            .chain(self.view.rules.settings.router)
            .collect();
        let reserved = |address| taken.contains(&address);
        self.view
            .leases
            .pick(self.mac, wish, pool, reserved, self.view.now)
            .map(|ip| Cidr {
                ip,
                prefix: ours.prefix,
            })
            .ok_or_else(|| "every address of the pool is taken".to_owned())
    }

    /// An address inside the subnet that the client is on: what the relay says first (RFC 3527,
    /// then 3011), then where the relay is, then where we are.
    fn link(&self) -> Ipv4Addr {
        let selected = self
            .relay_option(code::RELAY_LINK_SELECTION)
            .or_else(|| self.packet.options.address(code::SUBNET_SELECTION));
        let relay = Some(self.packet.giaddr).filter(|relay| !relay.is_unspecified());
        selected.or(relay).unwrap_or(self.view.rules.address.ip)
    }

    /// The identity that we announce: the relay may want another (RFC 5107).
    pub fn server_id(&self) -> Ipv4Addr {
        self.relay_option(code::RELAY_SERVER_ID)
            .unwrap_or(self.view.rules.address.ip)
    }

    pub fn is_us(&self, server: Ipv4Addr) -> bool {
        server == self.view.rules.address.ip || server == self.server_id()
    }

    fn relay_option(&self, tag: u8) -> Option<Ipv4Addr> {
        let information = self.packet.options.get(code::RELAY_AGENT)?;
        let octets: [u8; 4] = encapsulated(information, tag)?.try_into().ok()?;
        Some(octets.into())
    }
}
