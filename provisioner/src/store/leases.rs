//! Leases: which network card has which address, and which addresses are quarantined.

use std::net::Ipv4Addr;

use anneal_protocol::machine::Mac;
use anneal_protocol::time::Millis;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::{Result, Store, during};

/// What a card holds, or held last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The card: it has one lease, whatever client ids its firmware, loader and system use.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// Whether it counts.
    pub state: LeaseState,
    /// Client id (option 61) last seen.
    pub client_id: Option<Vec<u8>>,
    /// Host name (option 12) last seen.
    pub hostname: Option<String>,
    /// When the address is free again.
    pub expires_at: Millis,
}

/// State of a [`Lease`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Offered, not yet taken. Held in memory only.
    Offered,
    /// Granted.
    Bound,
    /// Given back; remembered so that the card gets the same address next time.
    Released,
}

impl LeaseState {
    fn word(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Bound => "bound",
            Self::Released => "released",
        }
    }
}

/// A change of the leases that must survive a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseChange {
    /// The card has this lease now; whoever had the address before has it no more.
    Set(Lease),
    /// Somebody else uses the address on the wire: nobody gets it until then.
    Quarantine {
        /// The address.
        address: Ipv4Addr,
        /// Who found out.
        mac: Mac,
        /// End of the quarantine.
        until: Millis,
    },
}

impl Store {
    /// Every lease, whether it still counts or not.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leases(&self) -> Result<Vec<Lease>> {
        sqlx::query("SELECT mac, address, state, client_id, hostname, expires_at FROM leases")
            .fetch_all(&self.reader)
            .await
            .map(|rows| rows.iter().filter_map(lease).collect())
            .map_err(during("reading leases"))
    }

    /// The card that holds an address, if its lease counts at `now`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leased_to(&self, address: Ipv4Addr, now: Millis) -> Result<Option<Mac>> {
        let card: Option<String> = sqlx::query_scalar(
            "SELECT mac FROM leases WHERE address = $1 AND state = $2 AND expires_at > $3",
        )
        .bind(address.to_string())
        .bind(LeaseState::Bound.word())
        .bind(now.0)
        .fetch_optional(&self.reader)
        .await
        .map_err(during("looking for a lease"))?;
        Ok(card.and_then(|mac| mac.parse().ok()))
    }

    /// Addresses in quarantine after `now`, with its end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn quarantined_addresses(&self, now: Millis) -> Result<Vec<(Ipv4Addr, Millis)>> {
        sqlx::query("SELECT address, until FROM quarantined_addresses WHERE until > $1")
            .bind(now.0)
            .fetch_all(&self.reader)
            .await
            .map(|rows| {
                rows.iter()
                    .filter_map(|row| {
                        let address = row.get::<String, _>("address").parse().ok()?;
                        Some((address, Millis(row.get("until"))))
                    })
                    .collect()
            })
            .map_err(during("reading quarantined addresses"))
    }

    /// Stores changes of leases, all of them or none.
    ///
    /// # Errors
    /// When the database fails; then none is stored.
    pub async fn change_leases(&self, changes: &[LeaseChange], now: Millis) -> Result<()> {
        let mut tx = self.begin().await?;
        for change in changes {
            match change {
                LeaseChange::Set(lease) => set(&mut tx, lease, now).await?,
                LeaseChange::Quarantine {
                    address,
                    mac,
                    until,
                } => quarantine(&mut tx, *address, *mac, *until).await?,
            }
        }
        tx.commit().await.map_err(during("storing leases"))
    }
}

async fn set(tx: &mut Transaction<'static, Sqlite>, lease: &Lease, now: Millis) -> Result<()> {
    const DOING: &str = "storing a lease";
    sqlx::query("DELETE FROM leases WHERE address = $1 AND mac <> $2")
        .bind(lease.address.to_string())
        .bind(lease.mac.to_string())
        .execute(&mut **tx)
        .await
        .map_err(during(DOING))?;
    sqlx::query(
        "INSERT INTO leases (mac, address, state, client_id, hostname, expires_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (mac) DO UPDATE SET address = excluded.address, state = excluded.state, \
         client_id = excluded.client_id, hostname = excluded.hostname, \
         expires_at = excluded.expires_at, updated_at = excluded.updated_at",
    )
    .bind(lease.mac.to_string())
    .bind(lease.address.to_string())
    .bind(lease.state.word())
    .bind(lease.client_id.as_ref().map(hex::encode))
    .bind(&lease.hostname)
    .bind(lease.expires_at.0)
    .bind(now.0)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(during(DOING))
}

async fn quarantine(
    tx: &mut Transaction<'static, Sqlite>,
    address: Ipv4Addr,
    mac: Mac,
    until: Millis,
) -> Result<()> {
    const DOING: &str = "storing a quarantined address";
    sqlx::query("DELETE FROM leases WHERE address = $1")
        .bind(address.to_string())
        .execute(&mut **tx)
        .await
        .map_err(during(DOING))?;
    sqlx::query(
        "INSERT INTO quarantined_addresses (address, mac, until) VALUES ($1, $2, $3) \
         ON CONFLICT (address) DO UPDATE SET mac = excluded.mac, until = excluded.until",
    )
    .bind(address.to_string())
    .bind(mac.to_string())
    .bind(until.0)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(during(DOING))
}

/// Rows are written by us; one that cannot be read was put there by hand and is skipped.
fn lease(row: &SqliteRow) -> Option<Lease> {
    Some(Lease {
        mac: row.get::<String, _>("mac").parse().ok()?,
        address: row.get::<String, _>("address").parse().ok()?,
        state: match row.get::<String, _>("state").as_str() {
            "bound" => LeaseState::Bound,
            "released" => LeaseState::Released,
            _ => return None,
        },
        client_id: row
            .get::<Option<String>, _>("client_id")
            .and_then(|id| hex::decode(id).ok()),
        hostname: row.get("hostname"),
        expires_at: Millis(row.get("expires_at")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(last: u8, address: [u8; 4]) -> Lease {
        Lease {
            mac: Mac([0x52, 0x54, 0, 0xaa, 0, last]),
            address: address.into(),
            state: LeaseState::Bound,
            client_id: Some(vec![1, 2, 3]),
            hostname: Some("r1n1".to_owned()),
            expires_at: Millis(5_000),
        }
    }

    #[tokio::test]
    async fn a_card_has_one_lease_and_an_address_one_card() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = Store::open(&path).await.unwrap();
        let first = bound(1, [10, 0, 0, 1]);
        let moved = bound(1, [10, 0, 0, 2]);
        let taker = bound(2, [10, 0, 0, 2]);
        for lease in [&first, &moved] {
            let change = LeaseChange::Set(lease.clone());
            store.change_leases(&[change], Millis(1)).await.unwrap();
        }
        assert_eq!(store.leases().await.unwrap(), [moved]);
        let change = LeaseChange::Set(taker.clone());
        store.change_leases(&[change], Millis(2)).await.unwrap();
        drop(store);
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.leases().await.unwrap(), [taker]);
    }

    #[tokio::test]
    async fn quarantine_ends_the_lease_and_then_itself() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let lease = bound(1, [10, 0, 0, 1]);
        let changes = [
            LeaseChange::Set(lease.clone()),
            LeaseChange::Quarantine {
                address: lease.address,
                mac: lease.mac,
                until: Millis(900),
            },
        ];
        store.change_leases(&changes, Millis(1)).await.unwrap();
        assert_eq!(store.leases().await.unwrap(), []);
        let at = |now| store.quarantined_addresses(Millis(now));
        assert_eq!(at(899).await.unwrap(), [(lease.address, Millis(900))]);
        assert_eq!(at(900).await.unwrap(), []);
    }
}
