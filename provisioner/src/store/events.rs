//! Events and sightings: what happened, and the latest of each kind for every machine.

use anneal_protocol::time::Millis;
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::{Result, Store, during};
use crate::event::Event;

/// One stored event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Sequence number, growing.
    pub id: i64,
    /// When.
    pub at: Millis,
    /// What.
    pub event: Event,
}

/// The latest fact of one kind about one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// Event kind.
    pub kind: String,
    /// When it was last seen.
    pub at: Millis,
    /// For which run.
    pub run: Option<String>,
    /// The event's data.
    pub data: serde_json::Value,
}

impl Store {
    /// Stores events in order, each chained to the one before, and updates the sightings.
    ///
    /// # Errors
    /// When the database fails; then none is stored.
    pub async fn append_events(&self, events: &[(Millis, Event)]) -> Result<Vec<EventRow>> {
        let mut tx = self.begin().await?;
        let rows = append(&mut tx, events).await?;
        tx.commit().await.map_err(during("storing events"))?;
        Ok(rows)
    }

    /// Events after `after`, oldest first, at most `limit`, of one machine or run if given.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_after(
        &self,
        after: i64,
        limit: u32,
        machine: Option<&str>,
        run: Option<&str>,
    ) -> Result<Vec<EventRow>> {
        sqlx::query(
            "SELECT id, at, kind, machine, run, message, data FROM events \
             WHERE id > $1 AND ($2 IS NULL OR machine = $2) AND ($3 IS NULL OR run = $3) \
             ORDER BY id LIMIT $4",
        )
        .bind(after)
        .bind(machine)
        .bind(run)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map(|rows| rows.iter().map(event_row).collect())
        .map_err(during("reading events"))
    }

    /// Id of the newest event; 0 when there is none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn last_event_id(&self) -> Result<i64> {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM events")
            .fetch_one(&self.reader)
            .await
            .map_err(during("reading the newest event"))
    }

    /// The latest fact of each kind about a machine.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sightings(&self, machine: &str) -> Result<Vec<Sighting>> {
        sqlx::query("SELECT kind, at, run, data FROM sightings WHERE machine = $1")
            .bind(machine)
            .fetch_all(&self.reader)
            .await
            .map(|rows| {
                rows.iter()
                    .map(|row| Sighting {
                        kind: row.get("kind"),
                        at: Millis(row.get("at")),
                        run: row.get("run"),
                        data: json_or_null(row.get("data")),
                    })
                    .collect()
            })
            .map_err(during("reading sightings"))
    }

    /// Removes the oldest events, at most `batch`: those from before `before`, and those that are
    /// more than `max`. Stops at the first event of an active run. Says how many went.
    ///
    /// # Errors
    /// When the database fails; then none went.
    pub async fn prune_events(&self, before: Millis, max: u64, batch: u32) -> Result<u64> {
        const DOING: &str = "pruning events";
        let mut tx = self.begin().await?;
        let (newest, needed): (Option<i64>, Option<i64>) = sqlx::query_as(
            "SELECT (SELECT max(id) FROM events), (SELECT min(id) FROM events WHERE run IN \
             (SELECT id FROM runs WHERE state IN ('pending', 'running', 'failing')))",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(during(DOING))?;
        let excess = newest.unwrap_or_default() - i64::try_from(max).unwrap_or(i64::MAX);
        let end = needed.unwrap_or(i64::MAX);
        let oldest = sqlx::query("SELECT id, at, chain FROM events ORDER BY id LIMIT $1")
            .bind(batch)
            .fetch_all(&mut *tx)
            .await
            .map_err(during(DOING))?;
        let goes = |row: &&SqliteRow| {
            let (id, at): (i64, i64) = (row.get("id"), row.get("at"));
            id < end && (at < before.0 || id <= excess)
        };
        let Some(last) = oldest.iter().take_while(goes).last() else {
            return Ok(0);
        };
        let id: i64 = last.get("id");
        sqlx::query(
            "INSERT INTO pruned_events (one, id, chain) VALUES (1, $1, $2) \
             ON CONFLICT (one) DO UPDATE SET id = excluded.id, chain = excluded.chain",
        )
        .bind(id)
        .bind(last.get::<String, _>("chain"))
        .execute(&mut *tx)
        .await
        .map_err(during(DOING))?;
        let gone = sqlx::query("DELETE FROM events WHERE id <= $1")
            .bind(id)
            .execute(&mut *tx)
            .await
            .map_err(during(DOING))?;
        tx.commit().await.map_err(during(DOING))?;
        Ok(gone.rows_affected())
    }

    /// Id of the first event whose chain value does not follow from the one before, if any.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn broken_event_chain(&self) -> Result<Option<i64>> {
        const PAGE: usize = 1000;
        let begin: Option<(String, i64)> = sqlx::query_as("SELECT chain, id FROM pruned_events")
            .fetch_optional(&self.reader)
            .await
            .map_err(during("reading the event chain"))?;
        let (mut chain, mut last) = begin.unwrap_or_default();
        loop {
            let rows = sqlx::query(
                "SELECT id, at, kind, machine, run, message, data, chain FROM events \
                 WHERE id > $1 ORDER BY id LIMIT $2",
            )
            .bind(last)
            .bind(PAGE as i64)
            .fetch_all(&self.reader)
            .await
            .map_err(during("reading the event chain"))?;
            for row in &rows {
                let stored: String = row.get("chain");
                let EventRow { id, at, event } = event_row(row);
                chain = link(&chain, at, &event, row.get("data"));
                if chain != stored {
                    return Ok(Some(id));
                }
                last = id;
            }
            if rows.len() < PAGE {
                return Ok(None);
            }
        }
    }
}

/// Stores events within a transaction, chained to those before.
pub(super) async fn append(
    tx: &mut Transaction<'static, Sqlite>,
    events: &[(Millis, Event)],
) -> Result<Vec<EventRow>> {
    const DOING: &str = "storing events";
    let mut chain: String = sqlx::query_scalar(
        "SELECT coalesce((SELECT chain FROM events ORDER BY id DESC LIMIT 1), \
         (SELECT chain FROM pruned_events), '')",
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(during(DOING))?;
    let mut rows = Vec::with_capacity(events.len());
    for (at, event) in events {
        let data = event.data.to_string();
        chain = link(&chain, *at, event, &data);
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO events (at, kind, machine, run, message, data, chain) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
        )
        .bind(at.0)
        .bind(&event.kind)
        .bind(&event.machine)
        .bind(&event.run)
        .bind(&event.message)
        .bind(&data)
        .bind(&chain)
        .fetch_one(&mut **tx)
        .await
        .map_err(during(DOING))?;
        if let Some(machine) = &event.machine {
            sqlx::query(
                "INSERT INTO sightings (machine, kind, at, run, data) \
                 VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (machine, kind) DO UPDATE \
                 SET at = excluded.at, run = excluded.run, data = excluded.data",
            )
            .bind(machine)
            .bind(&event.kind)
            .bind(at.0)
            .bind(&event.run)
            .bind(&data)
            .execute(&mut **tx)
            .await
            .map_err(during(DOING))?;
        }
        rows.push(EventRow {
            id,
            at: *at,
            event: event.clone(),
        });
    }
    Ok(rows)
}

pub(super) fn event_row(row: &SqliteRow) -> EventRow {
    EventRow {
        id: row.get("id"),
        at: Millis(row.get("at")),
        event: Event {
            kind: row.get("kind"),
            machine: row.get("machine"),
            run: row.get("run"),
            message: row.get("message"),
            data: json_or_null(row.get("data")),
        },
    }
}

/// Data columns are written by us as JSON; anything else was put there by hand.
fn json_or_null(text: String) -> serde_json::Value {
    serde_json::from_str(&text).unwrap_or(serde_json::Value::Null)
}

/// The chain value of an event: a digest over the one before and every stored field.
fn link(previous: &str, at: Millis, event: &Event, data: &str) -> String {
    let mut hash = Sha256::new();
    for part in [
        previous,
        &at.0.to_string(),
        &event.kind,
        event.machine.as_deref().unwrap_or_default(),
        event.run.as_deref().unwrap_or_default(),
        &event.message,
        data,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}
