//! What a change of a run means for its machine, written in the same transaction.

use anneal_protocol::machine::MachineState;
use anneal_protocol::time::Millis;
use sqlx::{Sqlite, Transaction};

use super::runs::from_json;
use super::tokens::void_enrolments;
use super::{Result, StoreError, during};
use crate::machine::Machine;
use crate::machine::apply::differs;
use crate::workflow::run::RunRow;

/// A change of a machine's state that goes with a change of its run.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineChange {
    /// New state.
    pub state: MachineState,
    /// Why, for the history.
    pub reason: String,
    /// The run holds the machine from now on (`true`) or lets it go.
    pub active: bool,
    /// When the run takes the machine again: the description that it was planned with. It is
    /// refused if that differs by now.
    pub planned: Option<Box<Machine>>,
    /// What the installed system said about itself, when it just did.
    pub node: Option<serde_json::Value>,
    /// The agents that have enrolled for the run so far must not speak for it any more.
    pub void_agents: bool,
}

/// That something about the machine is not what the run was planned with.
pub(super) fn stale(machine: &str, what: &str) -> StoreError {
    StoreError::Stale(format!(
        "{what} of machine {machine} was changed while the run was being planned, so nothing was \
         started: look at it with `anneal machine show {machine}`, then start again"
    ))
}

/// A machine's description as it is now.
pub(super) async fn stored_machine(
    tx: &mut Transaction<'static, Sqlite>,
    name: &str,
) -> Result<Option<Machine>> {
    let spec: Option<String> = sqlx::query_scalar("SELECT spec FROM machines WHERE name = $1")
        .bind(name)
        .fetch_optional(&mut **tx)
        .await
        .map_err(during("reading a machine"))?;
    spec.map(|text| from_json(&text, "machine")).transpose()
}

/// Stores the change and its history.
pub(super) async fn change_machine(
    tx: &mut Transaction<'static, Sqlite>,
    run: &RunRow,
    change: &MachineChange,
    at: Millis,
) -> Result<()> {
    const DOING: &str = "storing a machine's state";
    if let Some(planned) = &change.planned
        && let Some(stored) = stored_machine(tx, &run.machine).await?
        && let Some(field) = differs(planned, &stored)
    {
        return Err(stale(&run.machine, &format!("`{field}`")));
    }
    let before: Option<String> = sqlx::query_scalar("SELECT state FROM machines WHERE name = $1")
        .bind(&run.machine)
        .fetch_optional(&mut **tx)
        .await
        .map_err(during(DOING))?;
    let Some(before) = before else {
        if change.active {
            return Err(StoreError::NotFound(format!(
                "there is no machine {}",
                run.machine
            )));
        }
        // Removed while its run was ending: nothing to change.
        return Ok(());
    };
    let after = change.state.to_string();
    sqlx::query(
        "UPDATE machines SET state = $1, active_run = $2, last_run = $3, \
         node = coalesce($4, node), updated_at = $5 WHERE name = $6",
    )
    .bind(&after)
    .bind(change.active.then_some(&run.id))
    .bind(&run.id)
    .bind(change.node.as_ref().map(ToString::to_string))
    .bind(at.0)
    .bind(&run.machine)
    .execute(&mut **tx)
    .await
    .map_err(during(DOING))?;
    sqlx::query(
        "INSERT INTO machine_history (machine, at, before, after, reason) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&run.machine)
    .bind(at.0)
    .bind(before)
    .bind(after)
    .bind(&change.reason)
    .execute(&mut **tx)
    .await
    .map_err(during(DOING))?;
    if change.void_agents {
        void_enrolments(tx, &run.id, at).await?;
    }
    Ok(())
}
