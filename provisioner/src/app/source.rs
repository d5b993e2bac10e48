//! What a MAC boots next: the boot listener's question, answered from inventory, runs and tokens.

use std::net::IpAddr;

use anneal_protocol::cmdline::{Address, Boot};
use anneal_protocol::machine::Mac;

use super::{Shared, SharedParts};
use crate::boot::{self, BootSource, Choice, RunBoot, Target};
use crate::clock::now;
use crate::machine::{Cidr, Reservation};
use crate::store::LeaseState;
use crate::token::{Mint, Purpose};

/// Answers what a MAC boots next, from inventory and runs.
pub(super) struct Source {
    pub(super) shared: Shared,
}

impl SharedParts {
    /// What a script made now tells the agent that a card boots for a run.
    pub(crate) fn boot(
        &self,
        machine: String,
        (mac, address): (Mac, Option<Cidr>),
        run: String,
        token: String,
    ) -> Boot {
        let dhcp = self.settings.dhcp.as_ref();
        Boot {
            server: self.engine.server_url().to_owned(),
            ca_sha256: self.pki.ca_sha256(),
            token,
            machine,
            run,
            time_secs: now().0 / 1000,
            mac,
            address: address.map(|address| Address {
                ip: address.ip,
                prefix: address.prefix,
                gateway: dhcp.and_then(|dhcp| dhcp.router),
            }),
        }
    }
}

impl Source {
    /// Whether a card asks from its reserved address, or else from the one it leases.
    async fn is_at(
        &self,
        mac: Mac,
        reservation: &Reservation,
        from: IpAddr,
    ) -> anyhow::Result<bool> {
        if let Some(address) = reservation.address {
            return Ok(IpAddr::V4(address.ip) == from);
        }
        let leases = self.shared.store.leases().await?;
        Ok(leases.iter().any(|lease| {
            lease.mac == mac
                && lease.state == LeaseState::Bound
                && IpAddr::V4(lease.address) == from
                && lease.expires_at > now()
        }))
    }

    async fn answer(&self, mac: Mac, from: IpAddr) -> anyhow::Result<Target> {
        let snapshot = self.shared.directory.snapshot();
        let Some(reservation) = snapshot.by_mac.get(&mac) else {
            return Ok(Target::Unknown);
        };
        let machine = reservation.machine.clone();
        // A script holds a boot token: it is for the card that boots, at the address that we
        // gave it.
        if !reservation.boot || !self.is_at(mac, reservation, from).await? {
            tracing::warn!(%mac, %from, machine, "boot script asked for from another address");
            return Ok(Target::Unknown);
        }
        let wanted = self.shared.engine.wants_agent(&machine).await?;
        let facts = wanted.as_ref().map(|(_, wants_agent)| RunBoot {
            active: true,
            wants_agent: *wants_agent,
        });
        let (Choice::Agent, Some((run, _))) = (boot::decide(facts.as_ref()), wanted) else {
            return Ok(Target::Disk { machine });
        };
        // One live boot token a run: a new script makes the one before it worthless.
        let mint = Mint {
            purpose: Purpose::Boot,
            machine: &machine,
            run: &run,
            ttl: Purpose::Boot.default_ttl(),
            subject: None,
            plain: false,
        };
        let token = self.shared.tokens.mint(mint).await?;
        let card = (mac, reservation.address);
        let boot = self.shared.boot(machine, card, run, token);
        Ok(Target::Agent(Box::new(boot)))
    }
}

impl BootSource for Source {
    fn target<'a>(
        &'a self,
        mac: Mac,
        from: IpAddr,
    ) -> std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Target>> + Send + 'a>> {
        Box::pin(self.answer(mac, from))
    }
}
