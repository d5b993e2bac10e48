//! Runs and their steps: made in one transaction with the machine's state, changed under an
//! optimistic lock.

use anneal_protocol::time::Millis;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::attestations;
use super::events::{append, event_row};
use super::run_machine::{MachineChange, change_machine, stale, stored_machine};
use super::{EventRow, Result, Store, StoreError, during};
use crate::attestation::Attestation;
use crate::event::Event;
use crate::workflow::run::{Boot, Phase, RunPlan, RunRow, RunState, Scratch, StepRow, StepState};

const RUN_COLUMNS: &str = "SELECT id, machine, workflow, image, state, reason, requested_by, \
     cancel, version, created_at, finished_at, deadline FROM runs";

impl Store {
    /// Stores a new run with its steps, gives it the machine, and records the event.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the machine has an active run, [`StoreError::Stale`] when its
    /// description is not the one of the plan any more.
    pub async fn insert_run(
        &self,
        run: &RunRow,
        plan: &RunPlan,
        steps: &[StepRow],
        change: &MachineChange,
        event: Event,
    ) -> Result<Vec<EventRow>> {
        const DOING: &str = "storing a run";
        let mut tx = self.begin().await?;
        // Whatever differs may have gone into the plan: image, labels, cards, protected disks.
        if stored_machine(&mut tx, &run.machine).await?.as_ref() != Some(&plan.machine) {
            return Err(stale(&run.machine, "the description"));
        }
        let plan = to_json(plan, "plan")?;
        sqlx::query(
            "INSERT INTO runs (id, machine, workflow, plan, image, state, reason, requested_by, \
             cancel, version, created_at, finished_at, deadline) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(&run.id)
        .bind(&run.machine)
        .bind(&run.workflow)
        .bind(plan)
        .bind(&run.image)
        .bind(run.state.as_str())
        .bind(&run.reason)
        .bind(&run.requested_by)
        .bind(run.cancel)
        .bind(run.version)
        .bind(run.created_at.0)
        .bind(run.finished_at.map(|at| at.0))
        .bind(run.deadline.0)
        .execute(&mut *tx)
        .await
        .map_err(|e| conflict_or(e, &run.machine, DOING))?;
        for step in steps {
            insert_step(&mut tx, &run.id, step).await?;
        }
        change_machine(&mut tx, run, change, run.created_at).await?;
        let rows = append(&mut tx, &[(run.created_at, event)]).await?;
        tx.commit().await.map_err(during(DOING))?;
        Ok(rows)
    }

    /// Replaces a run's row and the given steps, if nobody changed the run since it was read
    /// (`run.version` is what was read). With the machine's state, when it changes too, what is
    /// attested about the run, and the events that tell of it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when somebody was faster; or when the run becomes active again
    /// while another run of its machine is. [`StoreError::Stale`] when it becomes active again and
    /// its plan does not fit the machine any more.
    pub async fn update_run(
        &self,
        run: &RunRow,
        steps: &[StepRow],
        change: Option<&MachineChange>,
        attested: &[Attestation],
        events: Vec<Event>,
        at: Millis,
    ) -> Result<Vec<EventRow>> {
        const DOING: &str = "storing a run's progress";
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "UPDATE runs SET state = $1, reason = $2, cancel = $3, finished_at = $4, \
             deadline = $5, version = version + 1 WHERE id = $6 AND version = $7",
        )
        .bind(run.state.as_str())
        .bind(&run.reason)
        .bind(run.cancel)
        .bind(run.finished_at.map(|at| at.0))
        .bind(run.deadline.0)
        .bind(&run.id)
        .bind(run.version)
        .execute(&mut *tx)
        .await
        .map_err(|e| conflict_or(e, &run.machine, DOING))?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Conflict(format!(
                "run {} was changed by somebody else",
                run.id
            )));
        }
        for step in steps {
            update_step(&mut tx, &run.id, step).await?;
        }
        if let Some(change) = change {
            change_machine(&mut tx, run, change, at).await?;
        }
        for attestation in attested {
            attestations::insert(&mut tx, attestation).await?;
        }
        let events: Vec<_> = events.into_iter().map(|event| (at, event)).collect();
        let rows = append(&mut tx, &events).await?;
        tx.commit().await.map_err(during(DOING))?;
        Ok(rows)
    }

    /// A run with its plan and steps.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub async fn run(&self, id: &str) -> Result<(RunRow, RunPlan, Vec<StepRow>)> {
        const DOING: &str = "reading a run";
        // One statement each; the version in the run's row guards against a change in between.
        let mut tx = self.reader.begin().await.map_err(during(DOING))?;
        let row = sqlx::query(
            "SELECT id, machine, workflow, image, state, reason, requested_by, cancel, version, \
             created_at, finished_at, deadline, plan FROM runs WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&mut *tx)
        .await
        .map_err(during(DOING))?
        .ok_or_else(|| StoreError::NotFound(format!("there is no run {id}")))?;
        let steps = sqlx::query("SELECT * FROM steps WHERE run = $1 ORDER BY idx")
            .bind(id)
            .fetch_all(&mut *tx)
            .await
            .map_err(during(DOING))?
            .iter()
            .map(step_row)
            .collect::<Result<_>>()?;
        let plan: String = row.get("plan");
        Ok((run_row(&row)?, from_json(&plan, "plan")?, steps))
    }

    /// A run without its plan and steps.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub async fn run_row(&self, id: &str) -> Result<RunRow> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{RUN_COLUMNS} WHERE id = $1")))
            .bind(id)
            .fetch_optional(&self.reader)
            .await
            .map_err(during("reading a run"))?
            .ok_or_else(|| StoreError::NotFound(format!("there is no run {id}")))?;
        run_row(&row)
    }

    /// Runs, newest first, at most `limit`, older than the run `before` if given, of one machine
    /// if given.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn runs(
        &self,
        machine: Option<&str>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<RunRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{RUN_COLUMNS} WHERE ($1 IS NULL OR machine = $1) AND ($2 IS NULL OR id < $2) \
             ORDER BY id DESC LIMIT $3"
        )))
        .bind(machine)
        .bind(before)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map_err(during("listing runs"))?
        .iter()
        .map(run_row)
        .collect()
    }

    /// Ids of all active runs, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn active_runs(&self) -> Result<Vec<String>> {
        sqlx::query_scalar(
            "SELECT id FROM runs WHERE state IN ('pending', 'running', 'failing') ORDER BY id",
        )
        .fetch_all(&self.reader)
        .await
        .map_err(during("listing active runs"))
    }

    /// Id of a machine's active run.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn active_run(&self, machine: &str) -> Result<Option<String>> {
        sqlx::query_scalar(
            "SELECT id FROM runs WHERE machine = $1 AND state IN ('pending', 'running', 'failing')",
        )
        .bind(machine)
        .fetch_optional(&self.reader)
        .await
        .map_err(during("looking for an active run"))
    }

    /// Boots of the agent in a run, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn boots(&self, run: &str) -> Result<Vec<Boot>> {
        let rows = sqlx::query(
            "SELECT at, json_extract(data, '$.boot_id') AS boot FROM events \
             WHERE run = $1 AND kind = $2 ORDER BY id",
        )
        .bind(run)
        .bind(crate::event::kind::AGENT_HELLO)
        .fetch_all(&self.reader)
        .await
        .map_err(during("reading the boots of a run"))?;
        let mut boots: Vec<Boot> = Vec::new();
        for row in rows {
            let id: Option<String> = row.get("boot");
            let known = |id: &String| boots.iter().any(|boot| boot.id == *id);
            if let Some(id) = id.filter(|id| !known(id)) {
                let at = Millis(row.get("at"));
                boots.push(Boot { id, at });
            }
        }
        Ok(boots)
    }

    /// Events about a machine between two moments, oldest first, log lines left out: the raw
    /// material of a run's timeline. At most 10 000.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn timeline(&self, machine: &str, from: Millis, to: Millis) -> Result<Vec<EventRow>> {
        sqlx::query(
            "SELECT id, at, kind, machine, run, message, data FROM events \
             WHERE machine = $1 AND at >= $2 AND at <= $3 AND kind <> $4 ORDER BY id LIMIT 10000",
        )
        .bind(machine)
        .bind(from.0)
        .bind(to.0)
        .bind(crate::event::kind::AGENT_LOG)
        .fetch_all(&self.reader)
        .await
        .map(|rows| rows.iter().map(event_row).collect())
        .map_err(during("reading a timeline"))
    }

    /// Stores what the agent found on a machine.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn store_inventory(
        &self,
        machine: &str,
        inventory: &anneal_protocol::agent::Inventory,
    ) -> Result<()> {
        sqlx::query("UPDATE machines SET inventory = $1 WHERE name = $2")
            .bind(to_json(inventory, "inventory")?)
            .bind(machine)
            .execute(&self.writer)
            .await
            .map(|_| ())
            .map_err(during("storing a hardware report"))
    }
}

/// Tells a broken uniqueness rule from a broken database.
fn conflict_or(error: sqlx::Error, machine: &str, operation: &'static str) -> StoreError {
    match error.as_database_error() {
        Some(db) if db.is_unique_violation() => StoreError::Conflict(format!(
            "machine {machine} has an active run: cancel it or wait until it ends"
        )),
        _ => during(operation)(error),
    }
}

async fn insert_step(
    tx: &mut Transaction<'static, Sqlite>,
    run: &str,
    step: &StepRow,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO steps (run, idx, phase, name, uses, state) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(run)
    .bind(i64::try_from(step.idx).unwrap_or(i64::MAX))
    .bind(step.phase.as_str())
    .bind(&step.name)
    .bind(&step.uses)
    .bind(step.state.as_str())
    .execute(&mut **tx)
    .await
    .map_err(during("storing a step"))?;
    update_step(tx, run, step).await
}

async fn update_step(
    tx: &mut Transaction<'static, Sqlite>,
    run: &str,
    step: &StepRow,
) -> Result<()> {
    sqlx::query(
        "UPDATE steps SET state = $1, attempt = $2, boot_id = $3, inputs_digest = $4, \
         not_before = $5, deadline = $6, started_at = $7, attempt_at = $8, finished_at = $9, \
         reason = $10, output = $11, scratch = $12 WHERE run = $13 AND idx = $14",
    )
    .bind(step.state.as_str())
    .bind(step.attempt)
    .bind(&step.boot_id)
    .bind(&step.inputs_digest)
    .bind(step.not_before.map(|at| at.0))
    .bind(step.deadline.map(|at| at.0))
    .bind(step.started_at.map(|at| at.0))
    .bind(step.attempt_at.map(|at| at.0))
    .bind(step.finished_at.map(|at| at.0))
    .bind(&step.reason)
    .bind(step.output.as_ref().map(ToString::to_string))
    .bind(to_json(&step.scratch, "scratch")?)
    .bind(run)
    .bind(i64::try_from(step.idx).unwrap_or(i64::MAX))
    .execute(&mut **tx)
    .await
    .map(|_| ())
    .map_err(during("storing a step"))
}

fn run_row(row: &SqliteRow) -> Result<RunRow> {
    Ok(RunRow {
        id: row.get("id"),
        machine: row.get("machine"),
        workflow: row.get("workflow"),
        image: row.get("image"),
        state: word(row, "state", RunState::parse)?,
        reason: row.get("reason"),
        requested_by: row.get("requested_by"),
        cancel: row.get("cancel"),
        version: row.get("version"),
        created_at: Millis(row.get("created_at")),
        finished_at: moment(row, "finished_at"),
        deadline: Millis(row.get("deadline")),
    })
}

fn step_row(row: &SqliteRow) -> Result<StepRow> {
    let idx: i64 = row.get("idx");
    let output: Option<String> = row.get("output");
    let scratch: Option<String> = row.get("scratch");
    Ok(StepRow {
        idx: usize::try_from(idx).unwrap_or_default(),
        phase: word(row, "phase", Phase::parse)?,
        name: row.get("name"),
        uses: row.get("uses"),
        state: word(row, "state", StepState::parse)?,
        attempt: row.get("attempt"),
        boot_id: row.get("boot_id"),
        inputs_digest: row.get("inputs_digest"),
        not_before: moment(row, "not_before"),
        deadline: moment(row, "deadline"),
        started_at: moment(row, "started_at"),
        attempt_at: moment(row, "attempt_at"),
        finished_at: moment(row, "finished_at"),
        reason: row.get("reason"),
        output: output
            .map(|text| from_json(&text, "step output"))
            .transpose()?,
        scratch: match scratch {
            Some(text) => from_json(&text, "step scratch")?,
            None => Scratch::default(),
        },
    })
}

fn moment(row: &SqliteRow, column: &str) -> Option<Millis> {
    row.get::<Option<i64>, _>(column).map(Millis)
}

fn word<T>(row: &SqliteRow, column: &str, parse: fn(&str) -> Option<T>) -> Result<T> {
    let text: String = row.get(column);
    parse(&text).ok_or_else(|| StoreError::Corrupt {
        what: "state word",
        source: serde::de::Error::custom(format!("unknown word `{text}`")),
    })
}

fn to_json<T: serde::Serialize>(value: &T, what: &'static str) -> Result<String> {
    serde_json::to_string(value).map_err(|source| StoreError::Corrupt { what, source })
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    text: &str,
    what: &'static str,
) -> Result<T> {
    serde_json::from_str(text).map_err(|source| StoreError::Corrupt { what, source })
}
