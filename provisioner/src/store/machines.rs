//! Machines: the inventory as it is stored.

use std::collections::HashMap;

use anneal_protocol::agent::Inventory as Hardware;
use anneal_protocol::api::{Change, NodeReport};
use anneal_protocol::machine::{Mac, MachineState};
use anneal_protocol::time::Millis;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::{Result, Store, StoreError, during};
use crate::machine::file::{Described, Inventory, taken};
use crate::machine::{Cidr, Machine, Reservation, Snapshot, apply};
use crate::yaml::YamlError;

/// A machine with what is known of it beside its description.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineRow {
    /// The description.
    pub machine: Machine,
    /// Where it is in its life.
    pub state: MachineState,
    /// The run that is active, if one is.
    pub active_run: Option<String>,
    /// The latest run, active or not.
    pub last_run: Option<String>,
    /// Hardware as the agent last reported it.
    pub inventory: Option<Hardware>,
    /// What the node said when it last phoned home.
    pub node: Option<NodeReport>,
    /// When it was first applied.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

/// One change of a machine's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// When.
    pub at: Millis,
    /// State before; none at registration.
    pub before: Option<String>,
    /// State after; `removed` at the end.
    pub after: String,
    /// Why, one sentence.
    pub reason: String,
}

/// Why an inventory was not applied. Nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It contradicts what is stored: a MAC or address that another machine holds.
    #[error(transparent)]
    Invalid(#[from] YamlError),
    /// It changes something that an active run relies on; the place and what to do.
    #[error(transparent)]
    Busy(YamlError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

const COLUMNS: &str =
    "name, spec, state, active_run, last_run, inventory, node, created_at, updated_at";

impl Store {
    /// Makes the stored machines say what `inventory` says, all or nothing; machines that it
    /// does not mention stay. With `dry_run` only the difference is told. Never touches the state
    /// or the run of a machine that exists.
    ///
    /// # Errors
    /// When a MAC or address belongs to a machine outside the file, when a path is relative, when a machine with an
    /// active run would get other cards, disks or BMC, or when the database fails.
    pub async fn apply_inventory(
        &self,
        inventory: &Inventory,
        dry_run: bool,
        at: Millis,
    ) -> std::result::Result<Vec<Change>, ApplyError> {
        inventory.require_absolute_paths()?;
        let mut tx = self.begin().await?;
        let stored = all_machines(&mut tx).await?;
        no_holders_outside(inventory, &stored)?;
        let mut changes = Vec::new();
        for described in &inventory.machines {
            let old = stored.get(&described.machine.name);
            refuse_under_run(described, old)?;
            changes.push(apply::diff(old.map(|row| &row.machine), &described.machine));
        }
        if dry_run {
            return Ok(changes);
        }
        // Cards may move between machines of the file: all are taken off before any is put on.
        let changed = || {
            inventory
                .machines
                .iter()
                .zip(&changes)
                .filter(|(_, change)| change.action != "unchanged")
        };
        for (described, _) in changed() {
            delete_nics(&mut tx, &described.machine.name).await?;
        }
        for (described, change) in changed() {
            put_machine(&mut tx, &described.machine, change.action == "create", at).await?;
        }
        tx.commit()
            .await
            .map_err(during("applying the inventory"))?;
        Ok(changes)
    }

    /// One machine.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn machine(&self, name: &str) -> Result<Option<MachineRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM machines WHERE name = $1"
        )))
        .bind(name)
        .fetch_optional(&self.reader)
        .await
        .map_err(during("reading a machine"))?
        .map(|row| machine_row(&row))
        .transpose()
    }

    /// Machines after `after` in order of their names, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn machines(&self, after: Option<&str>, limit: u32) -> Result<Vec<MachineRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM machines WHERE name > $1 ORDER BY name LIMIT $2"
        )))
        .bind(after.unwrap_or_default())
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map_err(during("listing machines"))?
        .iter()
        .map(machine_row)
        .collect()
    }

    /// Removes a machine from the inventory; its runs and history stay.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or [`StoreError::Conflict`] while a run is active.
    pub async fn remove_machine(&self, name: &str, at: Millis) -> Result<()> {
        const DOING: &str = "removing a machine";
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT state, active_run FROM machines WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await
            .map_err(during(DOING))?
            .ok_or_else(|| no_machine(name))?;
        if let Some(run) = row.get::<Option<String>, _>("active_run") {
            return Err(StoreError::Conflict(format!(
                "machine {name} has an active run: cancel run {run} first"
            )));
        }
        sqlx::query("DELETE FROM machines WHERE name = $1")
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(during(DOING))?;
        let before: String = row.get("state");
        history(
            &mut tx,
            name,
            Some(&before),
            "removed",
            "removed from the inventory",
            at,
        )
        .await?;
        tx.commit().await.map_err(during(DOING))
    }

    /// Who owns which card, for protocol servers.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn machine_snapshot(&self) -> Result<Snapshot> {
        let rows = sqlx::query("SELECT mac, machine, address, prefix, boot FROM nics")
            .fetch_all(&self.reader)
            .await
            .map_err(during("reading the inventory"))?;
        let by_mac = rows.iter().filter_map(reservation).collect();
        let specs: Vec<String> = sqlx::query_scalar("SELECT spec FROM machines")
            .fetch_all(&self.reader)
            .await
            .map_err(during("reading the inventory"))?;
        let mut others = HashMap::new();
        for spec in specs {
            let machine: Machine =
                serde_json::from_str(&spec).map_err(|source| StoreError::Corrupt {
                    what: "machine",
                    source,
                })?;
            let addresses = machine.addresses().map(|address| address.ip);
            others.extend(addresses.map(|ip| (ip, machine.name.clone())));
        }
        Ok(Snapshot { by_mac, others })
    }

    /// Changes of a machine's state, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn machine_history(&self, name: &str) -> Result<Vec<HistoryRow>> {
        let rows = sqlx::query(
            "SELECT at, before, after, reason FROM machine_history WHERE machine = $1 ORDER BY id",
        )
        .bind(name)
        .fetch_all(&self.reader)
        .await
        .map_err(during("reading a machine's history"))?;
        let row = |row: &SqliteRow| HistoryRow {
            at: Millis(row.get("at")),
            before: row.get("before"),
            after: row.get("after"),
            reason: row.get("reason"),
        };
        Ok(rows.iter().map(row).collect())
    }
}

/// The error for a machine that nobody applied.
pub(crate) fn no_machine(name: &str) -> StoreError {
    StoreError::NotFound(format!("no machine is called {name}"))
}

async fn all_machines(tx: &mut Transaction<'_, Sqlite>) -> Result<HashMap<String, MachineRow>> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM machines"
    )))
    .fetch_all(&mut **tx)
    .await
    .map_err(during("reading the inventory"))?
    .iter()
    .map(|row| machine_row(row).map(|row| (row.machine.name.clone(), row)))
    .collect()
}

/// Refuses MACs and addresses of machines that the file does not describe; the file itself was
/// checked when it was read.
fn no_holders_outside(
    inventory: &Inventory,
    stored: &HashMap<String, MachineRow>,
) -> std::result::Result<(), YamlError> {
    let described = |name: &String| inventory.machines.iter().any(|d| d.machine.name == *name);
    let mut macs = HashMap::new();
    let mut addresses = HashMap::new();
    for (name, row) in stored.iter().filter(|(name, _)| !described(name)) {
        for nic in &row.machine.nics {
            macs.insert(nic.mac, name);
        }
        for address in row.machine.addresses() {
            addresses.insert(address.ip, name);
        }
    }
    for described in &inventory.machines {
        let refuse = |at, message| Err(YamlError::at(&described.file, at, message));
        for (mac, place) in described.macs() {
            if let Some(holder) = macs.get(&mac) {
                return refuse(place, taken(&format!("MAC {mac}"), holder));
            }
        }
        for (ip, place) in described.addresses() {
            if let Some(holder) = addresses.get(&ip) {
                return refuse(place, taken(&format!("address {ip}"), holder));
            }
        }
    }
    Ok(())
}

fn refuse_under_run(
    described: &Described,
    old: Option<&MachineRow>,
) -> std::result::Result<(), ApplyError> {
    let Some(old) = old else { return Ok(()) };
    let Some(run) = &old.active_run else {
        return Ok(());
    };
    let Some(field) = apply::needed_by_run(&old.machine, &described.machine) else {
        return Ok(());
    };
    let name = &described.machine.name;
    Err(ApplyError::Busy(YamlError::at(
        &described.file,
        described.name_at,
        format!(
            "`{field}` of machine {name} cannot change while run {run} is active: wait for it or \
             cancel it"
        ),
    )))
}

async fn delete_nics(tx: &mut Transaction<'_, Sqlite>, machine: &str) -> Result<()> {
    sqlx::query("DELETE FROM nics WHERE machine = $1")
        .bind(machine)
        .execute(&mut **tx)
        .await
        .map_err(during("removing network cards"))?;
    Ok(())
}

async fn put_machine(
    tx: &mut Transaction<'_, Sqlite>,
    machine: &Machine,
    create: bool,
    at: Millis,
) -> Result<()> {
    const DOING: &str = "storing a machine";
    let spec = serde_json::to_string(machine).map_err(|source| StoreError::Corrupt {
        what: "machine",
        source,
    })?;
    sqlx::query(
        "INSERT INTO machines (name, spec, state, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $4) \
         ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, updated_at = excluded.updated_at",
    )
    .bind(&machine.name)
    .bind(spec)
    .bind(MachineState::Registered.to_string())
    .bind(at.0)
    .execute(&mut **tx)
    .await
    .map_err(during(DOING))?;
    for nic in &machine.nics {
        sqlx::query(
            "INSERT INTO nics (mac, machine, address, prefix, boot) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(nic.mac.to_string())
        .bind(&machine.name)
        .bind(nic.address.map(|address| address.ip.to_string()))
        .bind(nic.address.map(|address| i64::from(address.prefix)))
        .bind(nic.boot)
        .execute(&mut **tx)
        .await
        .map_err(during(DOING))?;
    }
    if create {
        let state = MachineState::Registered.to_string();
        history(
            tx,
            &machine.name,
            None,
            &state,
            "applied from an inventory file",
            at,
        )
        .await?;
    }
    Ok(())
}

/// Records a change of a machine's state, in the transaction that makes it.
pub(crate) async fn history(
    tx: &mut Transaction<'_, Sqlite>,
    machine: &str,
    before: Option<&str>,
    after: &str,
    reason: &str,
    at: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO machine_history (machine, at, before, after, reason) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(machine)
    .bind(at.0)
    .bind(before)
    .bind(after)
    .bind(reason)
    .execute(&mut **tx)
    .await
    .map_err(during("recording a machine's history"))?;
    Ok(())
}

fn machine_row(row: &SqliteRow) -> Result<MachineRow> {
    let corrupt = |what| move |source| StoreError::Corrupt { what, source };
    let state: String = row.get("state");
    let json = |column: &str| row.get::<Option<String>, _>(column);
    Ok(MachineRow {
        machine: serde_json::from_str(row.get("spec")).map_err(corrupt("machine"))?,
        state: serde_json::from_value(state.into()).map_err(corrupt("machine state"))?,
        active_run: row.get("active_run"),
        last_run: row.get("last_run"),
        inventory: json("inventory")
            .map(|text| serde_json::from_str(&text).map_err(corrupt("hardware report")))
            .transpose()?,
        node: json("node")
            .map(|text| serde_json::from_str(&text).map_err(corrupt("node report")))
            .transpose()?,
        created_at: Millis(row.get("created_at")),
        updated_at: Millis(row.get("updated_at")),
    })
}

/// A row of `nics`. Only values that were checked are written there; a row that somebody broke
/// by hand is left out rather than answered wrongly.
fn reservation(row: &SqliteRow) -> Option<(Mac, Reservation)> {
    let mac = row.get::<String, _>("mac").parse().ok()?;
    let address = match row.get::<Option<String>, _>("address") {
        Some(ip) => Some(Cidr {
            ip: ip.parse().ok()?,
            prefix: u8::try_from(row.get::<i64, _>("prefix")).ok()?,
        }),
        None => None,
    };
    let machine = row.get("machine");
    let boot = row.get("boot");
    Some((
        mac,
        Reservation {
            machine,
            address,
            boot,
        },
    ))
}

#[cfg(test)]
#[path = "machines_tests.rs"]
mod tests;
