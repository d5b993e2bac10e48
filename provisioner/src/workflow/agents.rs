//! What agents ask and tell: `next`, `report`, `result`.
//!
//! Every call may be repeated. The HTTP layer has checked the certificate: `machine` is who
//! calls.

use std::time::Duration;

use anneal_protocol::agent::{
    AgentAction, FailureCode, Next, NextRequest, Order, OrderId, Outcome, Report, ReportAck,
    StepFailure, StepResult,
};

use super::drive::NoInputs;
use super::driver::{Engine, EngineError, Heard, TRIES, lock, too_busy};
use super::engine::{self, Change, ResultVerdict};
use super::inputs::{self, InputError, Inputs};
use super::run::{Presence, Snapshot};
use super::secrets::{Destination, Secrets};
use crate::clock::now;
use crate::event::{Event, kind};
use crate::store::StoreError;
use crate::token::issuer::IssueError;

/// Pause of an agent that has nothing to do.
const WAIT_MS: u64 = 1_000;
/// Longest log line that is kept, characters.
const MAX_LINE: usize = 2_000;
/// Most log lines of one report that are kept.
const MAX_LINES: usize = 500;

impl Engine {
    /// What an agent does next. Returns at once; see [`Engine::next_or_wait`].
    ///
    /// # Errors
    /// When the database fails or a token cannot be made; the agent asks again.
    pub async fn next(&self, machine: &str, request: &NextRequest) -> Result<Next, EngineError> {
        let Some(refusal) = self.greet(machine, request).await? else {
            return self.order(request).await;
        };
        Ok(refusal)
    }

    /// [`Engine::next`], holding the call for up to `hold` while there is nothing to do.
    ///
    /// # Errors
    /// As [`Engine::next`].
    pub async fn next_or_wait(
        &self,
        machine: &str,
        request: &NextRequest,
        hold: Duration,
    ) -> Result<Next, EngineError> {
        let end = tokio::time::Instant::now() + hold;
        loop {
            let changed = self.changed();
            let changed = changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = self.next(machine, request).await?;
            if !matches!(next, Next::Wait { .. }) || tokio::time::Instant::now() >= end {
                return Ok(next);
            }
            // Looking again now and then keeps the agent from seeming silent while it waits.
            let pause = end.min(tokio::time::Instant::now() + Duration::from_secs(5));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(pause) => {}
            }
        }
    }

    /// Notes that an agent called. Some answer when there is no work for it, ever.
    async fn greet(
        &self,
        machine: &str,
        request: &NextRequest,
    ) -> Result<Option<Next>, EngineError> {
        let finished = |reason: String| Ok(Some(Next::Finished { reason }));
        let store = &self.inner.deps.store;
        let row = match store.run_row(&request.run).await {
            Ok(row) if row.machine == machine => row,
            Ok(_) => return finished("the run belongs to another machine".to_owned()),
            Err(StoreError::NotFound(text)) => return finished(text),
            Err(error) => return Err(error.into()),
        };
        if let Some(inventory) = &request.inventory {
            store.store_inventory(machine, inventory).await?;
        }
        let boots = store.boots(&row.id).await?;
        match boots.iter().position(|boot| boot.id == request.boot_id) {
            Some(at) if at + 1 < boots.len() => {
                return finished("the machine has started again since".to_owned());
            }
            Some(_) => {}
            None if row.state.is_active() => {
                self.inner
                    .deps
                    .recorder
                    .record_durably(
                        Event::new(kind::AGENT_HELLO, "the agent asks for work")
                            .machine(machine)
                            .run(&row.id)
                            .data(serde_json::json!({ "boot_id": request.boot_id })),
                    )
                    .await
                    .map_err(|error| EngineError::Internal(error.into()))?;
            }
            None => {}
        }
        self.heard(&row.id, &request.boot_id, true);
        if !row.state.is_active() {
            let state = row.state.as_str();
            return finished(format!("run {state} {}", row.reason).trim().to_owned());
        }
        Ok(None)
    }

    /// Notes when an agent was heard. An older boot does not speak for a newer one.
    fn heard(&self, run: &str, boot_id: &str, asks: bool) {
        let seen = now();
        let mut agents = lock(&self.inner.agents);
        let floor = self.inner.started_at;
        let entry = agents.entry(run.to_owned()).or_insert_with(|| Heard {
            boot_id: boot_id.to_owned(),
            presence: Presence { seen, asked: floor },
        });
        if entry.boot_id != boot_id {
            if !asks {
                return;
            }
            boot_id.clone_into(&mut entry.boot_id);
        }
        entry.presence.seen = seen;
        if asks {
            entry.presence.asked = seen;
        }
    }

    /// The order for the run's current step, if it is the agent's turn.
    async fn order(&self, request: &NextRequest) -> Result<Next, EngineError> {
        for _ in 0..TRIES {
            let (s, _) = self.advance(&request.run).await?;
            if let Some(change) = engine::returned(&s, &request.boot_id, true, now()) {
                self.commit(&s, &change).await?;
                continue;
            }
            let Some(idx) = engine::order_ready(&s, &request.boot_id, now()) else {
                return Ok(if s.run.state.is_active() {
                    Next::Wait { after_ms: WAIT_MS }
                } else {
                    let reason = format!("run {}", s.run.state.as_str());
                    Next::Finished { reason }
                });
            };
            match self.hand_out(&s, idx, &request.boot_id).await {
                Ok(change) => {
                    let again = s.steps[idx].boot_id.is_some();
                    if again || self.commit(&s, &change).await? {
                        if !again {
                            // How far an earlier attempt was says nothing about this one.
                            lock(&self.inner.progress).remove(&(s.run.id.clone(), idx));
                        }
                        if let Some(order) = self.give(&s, idx, &request.boot_id).await? {
                            return Ok(Next::Order(order));
                        }
                    }
                }
                Err(change) => {
                    self.commit(&s, &change).await?;
                }
            }
        }
        Err(too_busy(&request.run))
    }

    /// The change that gives a step to a boot of the agent, or the one that fails the step.
    async fn hand_out(
        &self,
        s: &Snapshot,
        idx: usize,
        boot_id: &str,
    ) -> Result<Box<Change>, Box<Change>> {
        match self.inputs(s, idx, &Secrets::redacted()).await {
            Ok((redacted, _)) => {
                engine::dispatch(s, idx, boot_id, &inputs::digest(&redacted), now())
            }
            Err(NoInputs::Unusable(error)) => {
                let reason = error.to_string();
                Err(Box::new(engine::unusable(s, idx, &reason, now())))
            }
            Err(NoInputs::Issuer(error)) => {
                let reason = error.to_string();
                Err(Box::new(engine::later(s, idx, &reason, now())))
            }
        }
    }

    /// The order for an attempt that a boot of the agent has; none when there is nothing to give,
    /// and the run has changed.
    async fn give(
        &self,
        s: &Snapshot,
        idx: usize,
        boot_id: &str,
    ) -> Result<Option<Box<Order>>, EngineError> {
        match self.write_order(s, idx).await {
            Ok(Written::Order(order)) => {
                // Making tokens takes time: a run that ended meanwhile gets none of them.
                if self.still_holds(s, idx, boot_id).await? {
                    return Ok(Some(order));
                }
                // They are to be taken back.
                self.inner.changed.notify_waiters();
            }
            Ok(Written::Unusable(reason)) => {
                let step = u32::try_from(idx).unwrap_or(u32::MAX);
                let attempt = s.steps[idx].attempt;
                self.change(&s.run.id, |current| {
                    let holds = engine::wanted(current, step, attempt, boot_id);
                    Ok(holds.then(|| engine::unusable(current, idx, &reason, now())))
                })
                .await?;
            }
            Err(EngineError::Issuer(error)) => self.not_issued(s, idx, boot_id, &error).await?,
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Whether a boot of the agent still has the attempt that an order was written for.
    async fn still_holds(
        &self,
        s: &Snapshot,
        idx: usize,
        boot_id: &str,
    ) -> Result<bool, EngineError> {
        let current = self.load(&s.run.id).await?;
        let step = u32::try_from(idx).unwrap_or(u32::MAX);
        let attempt = s.steps[idx].attempt;
        Ok(engine::wanted(&current, step, attempt, boot_id))
    }

    /// Renders the order with its secrets, at the last moment.
    async fn write_order(&self, s: &Snapshot, idx: usize) -> Result<Written, EngineError> {
        let wanted = match self.inputs(s, idx, &Secrets::redacted()).await {
            Ok((_, wanted)) => wanted,
            Err(NoInputs::Unusable(error)) => return Ok(Written::Unusable(error.to_string())),
            Err(NoInputs::Issuer(error)) => return Err(EngineError::Issuer(error)),
        };
        let why = format!("step {} `{}`", idx + 1, s.steps[idx].name);
        let destination = Destination {
            why: &why,
            // The agent that asks again does not have the order before.
            replaces: true,
        };
        let secrets = self.mint(s, &wanted, destination).await?;
        let inputs = match self.inputs(s, idx, &secrets).await {
            Ok((inputs, _)) => inputs,
            // The next try would have new secrets made, and fail as this one did.
            Err(NoInputs::Unusable(error)) => {
                return Ok(Written::Unusable(only_with_secrets(&error)));
            }
            Err(NoInputs::Issuer(error)) => return Err(EngineError::Issuer(error)),
        };
        let Inputs::Agent(mut action) = inputs else {
            let told = anyhow::anyhow!("step {idx} is not the agent's");
            return Err(EngineError::Internal(told));
        };
        self.add_sources(s, &mut action).await;
        let row = &s.steps[idx];
        let left = row.deadline.unwrap_or_else(now).since(now());
        Ok(Written::Order(Box::new(Order {
            id: OrderId {
                run: s.run.id.clone(),
                step: u32::try_from(idx).unwrap_or(u32::MAX),
                attempt: row.attempt,
            },
            name: row.name.clone(),
            action: *action,
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })))
    }

    /// Ends an attempt whose order cannot be written, because there is no token for joining: the
    /// step's rules say whether there is another.
    async fn not_issued(
        &self,
        s: &Snapshot,
        idx: usize,
        boot_id: &str,
        error: &IssueError,
    ) -> Result<(), EngineError> {
        let result = StepResult {
            order: OrderId {
                run: s.run.id.clone(),
                step: u32::try_from(idx).unwrap_or(u32::MAX),
                attempt: s.steps[idx].attempt,
            },
            boot_id: boot_id.to_owned(),
            outcome: Outcome::Failed(StepFailure {
                code: FailureCode::Server,
                message: error.to_string(),
                retryable: error.retryable(),
            }),
        };
        self.change(&s.run.id, |s| {
            Ok(match engine::apply_result(s, &result, None, now()) {
                ResultVerdict::Apply(change) => Some(*change),
                ResultVerdict::Ignore => None,
            })
        })
        .await
    }

    /// Takes progress and log lines. Says whether the attempt is still wanted.
    ///
    /// # Errors
    /// When the database fails; the agent tells again.
    pub async fn report(&self, machine: &str, report: &Report) -> Result<ReportAck, EngineError> {
        let order = &report.order;
        let Some(mut s) = self.own_run(machine, &order.run).await? else {
            return Ok(ReportAck { abandon: true });
        };
        self.heard(&order.run, &report.boot_id, false);
        for _ in 0..TRIES {
            let Some(change) = engine::returned(&s, &report.boot_id, false, now()) else {
                break;
            };
            self.commit(&s, &change).await?;
            s = self.load(&order.run).await?;
        }
        let recorder = &self.inner.deps.recorder;
        let about = |event: Event| event.machine(machine).run(&order.run);
        for line in report.logs.iter().take(MAX_LINES) {
            let text: String = line.text.chars().take(MAX_LINE).collect();
            let data = serde_json::json!({
                "level": line.level, "at": line.at, "step": order.step, "attempt": order.attempt,
            });
            recorder.record(about(Event::new(kind::AGENT_LOG, text)).data(data));
        }
        if report.logs_dropped > 0 {
            let text = format!("{} lines of the agent's log were lost", report.logs_dropped);
            recorder.record(about(Event::new(kind::AGENT_LOG, text)));
        }
        let wanted = engine::wanted(&s, order.step, order.attempt, &report.boot_id);
        if let Some(progress) = report.progress.filter(|_| wanted) {
            let idx = order.step as usize;
            lock(&self.inner.progress).insert((order.run.clone(), idx), progress);
            let message = format!("{} of {} bytes", progress.done, progress.total);
            let data = serde_json::json!({
                "index": idx, "name": s.steps[idx].name,
                "done": progress.done, "total": progress.total,
            });
            recorder.show(about(Event::new(kind::STEP_PROGRESS, message)).data(data));
        }
        Ok(ReportAck { abandon: !wanted })
    }

    /// Takes the end of an attempt. One that is over, or was told before, changes nothing. Says whether it counts: else an
    /// agent that is about to leave must stay.
    ///
    /// # Errors
    /// When the database fails; the agent tells again.
    pub async fn result(&self, machine: &str, result: &StepResult) -> Result<bool, EngineError> {
        for _ in 0..TRIES {
            let Some(s) = self.own_run(machine, &result.order.run).await? else {
                return Ok(false);
            };
            self.heard(&result.order.run, &result.boot_id, false);
            if let Some(change) = engine::returned(&s, &result.boot_id, false, now()) {
                self.commit(&s, &change).await?;
                continue;
            }
            let idx = result.order.step as usize;
            let inputs = match self.inputs(&s, idx, &Secrets::redacted()).await {
                Ok((inputs, _)) => Some(inputs),
                // What was ordered shows later: nobody does it again for that.
                Err(NoInputs::Issuer(error))
                    if matches!(result.outcome, Outcome::Succeeded { .. }) =>
                {
                    return Err(EngineError::Issuer(error));
                }
                Err(_) => None,
            };
            let verdict = engine::apply_result(&s, result, inputs.as_ref(), now());
            let ResultVerdict::Apply(change) = verdict else {
                return Ok(engine::counted(&s, result));
            };
            let leaves = engine::leaves(&change, result);
            if self.commit(&s, &change).await? {
                self.keep_inventory(machine, inputs, &result.outcome)
                    .await?;
                return Ok(result.outcome != Outcome::Leaving || leaves);
            }
        }
        Err(too_busy(&result.order.run))
    }

    async fn keep_inventory(
        &self,
        machine: &str,
        inputs: Option<Inputs>,
        outcome: &Outcome,
    ) -> Result<(), EngineError> {
        let asked =
            matches!(inputs, Some(Inputs::Agent(action)) if *action == AgentAction::Inventory);
        if let Outcome::Succeeded { output } = outcome
            && asked
            && let Ok(inventory) = serde_json::from_value(output.clone())
        {
            let store = &self.inner.deps.store;
            store.store_inventory(machine, &inventory).await?;
        }
        Ok(())
    }

    /// The run, if it is this machine's.
    async fn own_run(&self, machine: &str, run: &str) -> Result<Option<Snapshot>, EngineError> {
        match self.load(run).await {
            Ok(s) => Ok((s.run.machine == machine).then_some(s)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What became of an order that was to be written.
enum Written {
    /// It is there.
    Order(Box<Order>),
    /// It cannot be, however often it is tried: why.
    Unusable(String),
}

/// Says where a text fails that could be rendered without its secrets. Not why: what is wrong with
/// a value may quote it.
fn only_with_secrets(error: &InputError) -> String {
    let place = match error {
        InputError::Render(error) => format!("{}:{}", error.file, error.line),
        InputError::Param { place, param, .. } => format!("{place}: parameter `{param}`"),
    };
    format!(
        "{place}: what was planned cannot be rendered with the secrets that were made for it; does it read a secret as what it is not?"
    )
}
