//! The engine: loads snapshots, asks [`decide`], stores what changes and does what is to be done.
//!
//! All state is in the store. In memory are only hints that a restart may lose: when an agent was
//! last heard, and how far a step is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anneal_protocol::agent::Progress;
use anneal_protocol::api::Plan;
use anneal_protocol::time::Millis;
use tokio::sync::Notify;

use super::deps::EngineDeps;
use super::engine::{self, Change, Command, Decision, Done, Waiting, decide};
use super::library::Library;
use super::run::{Boot, Presence, RunPlan, RunRow, RunState, Snapshot};
use super::secrets::Secrets;
use super::start::{Material, Prepared, StartError, StartRun, needs_image, only_audits};
use super::{library, record};
use crate::attestation;
use crate::clock::now;
use crate::event::{Event, kind};
use crate::machine::apply::differs;
use crate::store::{MachineChange, OnDisk, StoreError};
use crate::token::issuer::IssueError;

/// How often a change that somebody else made first is tried again.
pub(super) const TRIES: usize = 50;

/// Starts, drives and shows runs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) deps: EngineDeps,
    pub(super) library: Library,
    pub(super) changed: Arc<Notify>,
    pub(super) started_at: Millis,
    pub(super) agents: Mutex<HashMap<String, Heard>>,
    pub(super) progress: Mutex<HashMap<(String, usize), Progress>>,
    /// Commits so far; tests make the engine "die" at one of them.
    pub(super) commits: AtomicU64,
    #[cfg(test)]
    pub(super) crash: super::testing::Crash,
}

/// When a boot of an agent was last heard.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) boot_id: String,
    pub(super) presence: Presence,
}

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The database failed, or says not found or conflict.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run is in a state that does not allow it.
    #[error("{0}")]
    NotNow(String),
    /// There is no token for joining the cluster.
    #[error(transparent)]
    Issuer(IssueError),
    /// Something else failed that should not.
    #[error("the workflow engine failed")]
    Internal(#[source] anyhow::Error),
}

impl EngineError {
    /// Whether nothing was stored because there is no room.
    pub(super) fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Issuer(IssueError::Store(error))
            if error.is_out_of_space())
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// An engine over a store. Nothing is driven until [`Engine::run`].
    #[must_use]
    pub fn new(deps: EngineDeps) -> Self {
        let library = Library::new(deps.workflows_dir.clone());
        Self {
            inner: Arc::new(Inner {
                deps,
                library,
                changed: Arc::new(Notify::new()),
                started_at: now(),
                agents: Mutex::default(),
                progress: Mutex::default(),
                commits: AtomicU64::new(0),
                #[cfg(test)]
                crash: super::testing::Crash::default(),
            }),
        }
    }

    /// Notified after every change of any run: whoever answers a long poll looks again.
    #[must_use]
    pub fn changed(&self) -> Arc<Notify> {
        self.inner.changed.clone()
    }

    /// Says what a run would do. Nothing is stored or touched.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn plan(&self, request: &StartRun) -> Result<Plan, StartError> {
        Ok(self.prepare(request, "(not started)").await?.shown)
    }

    /// Makes a run. It is driven by [`Engine::run`].
    ///
    /// # Errors
    /// When machine, workflow or image do not exist, the workflow makes no sense for the machine,
    /// or the machine has an active run.
    pub async fn start(&self, request: &StartRun) -> Result<String, StartError> {
        let id = uuid::Uuid::now_v7().to_string();
        let Prepared { plan, .. } = self.prepare(request, &id).await?;
        self.insert(id, request, plan).await
    }

    /// Stores a run of a plan, if the machine still is what was planned for.
    pub(super) async fn insert(
        &self,
        id: String,
        request: &StartRun,
        plan: RunPlan,
    ) -> Result<String, StartError> {
        let created_at = now();
        let timeout = std::time::Duration::from_millis(plan.workflow.timeout_ms);
        let run = RunRow {
            id: id.clone(),
            machine: plan.machine.name.clone(),
            workflow: plan.workflow.name.clone(),
            image: plan.image.as_ref().map(|image| image.id.clone()),
            state: RunState::Pending,
            reason: String::new(),
            requested_by: request.requested_by.clone(),
            cancel: false,
            version: 0,
            created_at,
            finished_at: None,
            deadline: created_at.plus(timeout),
        };
        let change = MachineChange {
            state: anneal_protocol::machine::MachineState::Provisioning,
            reason: format!("run {id} of {}, by {}", run.workflow, run.requested_by),
            active: true,
            // The store compares all of it for a new run.
            planned: None,
            node: None,
            void_agents: false,
        };
        let store = &self.inner.deps.store;
        let event = Event::new(format!("{}pending", kind::RUN_PREFIX), &change.reason)
            .machine(&run.machine)
            .run(&id)
            .data(created(&run, &plan));
        let told = store
            .insert_run(&run, &plan, &plan.rows(), &change, event)
            .await?;
        self.inner.deps.recorder.announce(told);
        self.inner.changed.notify_waiters();
        Ok(id)
    }

    /// What a plan is made from, as it is now; secrets redacted.
    pub(super) async fn material(
        &self,
        request: &StartRun,
        run: &str,
    ) -> Result<Material<'_>, StartError> {
        let deps = &self.inner.deps;
        // Templates that somebody has just edited count, and broken ones are told here.
        deps.renderer
            .refresh()
            .map_err(|error| StartError::Refused(vec![error.to_string()]))?;
        let Some(row) = deps.store.machine(&request.machine).await? else {
            return Err(StartError::MachineNotFound(request.machine.clone()));
        };
        let name = request
            .workflow
            .as_deref()
            .or(row.machine.workflow.as_deref())
            .unwrap_or(library::DEFAULT);
        let workflow = self.inner.library.load(name, &deps.renderer)?;
        let written = self.to_audit(request, &workflow).await?;
        let wanted = request
            .image
            .as_deref()
            .or(written.as_ref().map(|image| image.reference.as_str()))
            .or(row.machine.image.as_deref());
        let image = match wanted.filter(|_| needs_image(&workflow)) {
            None => None,
            Some(reference) => Some(
                deps.images
                    .resolve_image(reference)
                    .await
                    .map_err(StartError::Internal)?
                    // A name that was removed and given anew is another image.
                    .filter(|image| written.as_ref().is_none_or(|there| there.id == image.id))
                    .ok_or_else(|| StartError::ImageMissing(reference.to_owned()))?,
            ),
        };
        let cluster = self.known_cluster(&row.machine).await?;
        let (machine, none) = (&row.machine, Secrets::redacted());
        let context = self.context(machine, image.as_ref(), run, cluster.as_ref(), &none);
        Ok(Material {
            machine: row.machine,
            state: row.state,
            inventory: row.inventory,
            image,
            workflow,
            renderer: &deps.renderer,
            context,
        })
    }

    /// What an audit compares with unless it is told: the image that was last written, whatever
    /// the inventory wants by now.
    async fn to_audit(
        &self,
        request: &StartRun,
        workflow: &super::plan::Workflow,
    ) -> Result<Option<OnDisk>, StoreError> {
        if request.image.is_some() || !only_audits(workflow) {
            return Ok(None);
        }
        let store = &self.inner.deps.store;
        store.image_on_disk(&request.machine).await
    }

    /// Stops a run at once. The agent is told at its next call; power stays as it is.
    ///
    /// # Errors
    /// When there is no such run or it is over.
    pub async fn cancel(&self, run: &str) -> Result<(), EngineError> {
        self.change(run, |s| {
            if !s.run.state.is_active() {
                let state = s.run.state.as_str();
                return Err(EngineError::NotNow(format!("run {run} is over: {state}")));
            }
            Ok(Some(engine::cancel(s, now())))
        })
        .await
    }

    /// Lets a run that failed or was cancelled go on from the step that did not succeed.
    ///
    /// # Errors
    /// When there is no such run, it did not fail, or its machine has another active run.
    pub async fn retry(&self, run: &str) -> Result<(), EngineError> {
        self.may_go_on(run).await?;
        self.change(run, |s| {
            let not_now = |what: &str| Err(EngineError::NotNow(format!("run {run} {what}")));
            if !matches!(s.run.state, RunState::Failed | RunState::Cancelled) {
                return not_now(&format!(
                    "is {}: only a run that failed can be retried",
                    s.run.state.as_str()
                ));
            }
            match engine::reopen(s, now()) {
                Some(change) => Ok(Some(change)),
                None => not_now("has no step left to do"),
            }
        })
        .await
    }

    /// Refuses to go on with a plan that the inventory has left behind, with a run that is not
    /// the machine's latest, and with one whose agent may be somebody else's.
    async fn may_go_on(&self, run: &str) -> Result<(), EngineError> {
        let s = self.load(run).await?;
        let name = &s.run.machine;
        let store = &self.inner.deps.store;
        let refuse = |why: String| {
            let advice = format!("start a new run: anneal provision {name}");
            Err(EngineError::NotNow(format!("run {run} {why}; {advice}")))
        };
        let Some(row) = store.machine(name).await? else {
            return refuse(format!("is about {name}, which is not in the inventory"));
        };
        if row.last_run.as_deref() != Some(run) {
            return refuse(format!("is not the latest of {name}"));
        }
        if let Some(field) = differs(&s.plan.machine, &row.machine) {
            return refuse(format!(
                "was planned with another description of {name}: `{field}` differs"
            ));
        }
        if store.compromised(run).await? {
            return refuse("had a token in two hands".to_owned());
        }
        Ok(())
    }

    /// Fails a run at once, without on-failure steps, because nothing on the machine can be
    /// trusted: a token was in two hands. All tokens of the run are void then.
    ///
    /// # Errors
    /// When there is no such run or the database fails.
    pub async fn fail_security(&self, run: &str, reason: &str) -> Result<(), EngineError> {
        self.change(run, |s| {
            let active = s.run.state.is_active();
            Ok(active.then(|| engine::fail_now(s, reason, now())))
        })
        .await?;
        // Other runs that failed can be retried, and their nodes may still call home.
        let revoked = self.inner.deps.tokens.revoke(run, false).await;
        revoked.map_err(EngineError::Internal)
    }

    /// The active run of a machine, and whether the machine is to start the agent when it asks
    /// over the network.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn wants_agent(&self, machine: &str) -> Result<Option<(String, bool)>, EngineError> {
        let Some(run) = self.inner.deps.store.active_run(machine).await? else {
            return Ok(None);
        };
        let snapshot = self.load(&run).await?;
        let wants = engine::wants_agent(&snapshot);
        Ok(snapshot.run.state.is_active().then_some((run, wants)))
    }

    /// Everything a decision about a run looks at.
    pub(super) async fn load(&self, run: &str) -> Result<Snapshot, StoreError> {
        let deps = &self.inner.deps;
        let (row, plan, steps) = deps.store.run(run).await?;
        let boots = deps.store.boots(run).await?;
        let sightings = deps.store.sightings(&row.machine).await?;
        let presence = self.presence(run, boots.last());
        Ok(Snapshot {
            run: row,
            plan,
            steps,
            boots,
            sightings,
            presence,
            silence_ms: i64::try_from(deps.agent_silence.as_millis()).unwrap_or(i64::MAX),
        })
    }

    fn presence(&self, run: &str, boot: Option<&Boot>) -> Presence {
        let floor = self.inner.started_at;
        lock(&self.inner.agents)
            .get(run)
            .filter(|heard| boot.is_some_and(|boot| boot.id == heard.boot_id))
            .map_or(
                Presence {
                    seen: floor,
                    asked: floor,
                },
                |heard| heard.presence,
            )
    }

    /// Stores a change and tells of it. `Ok(false)` when somebody else changed the run first.
    pub(super) async fn commit(&self, s: &Snapshot, change: &Change) -> Result<bool, StoreError> {
        #[cfg(test)]
        self.inner.crash.point()?;
        let steps: Vec<_> = change
            .steps
            .iter()
            .zip(&s.steps)
            .filter(|(after, before)| after != before)
            .map(|(after, _)| after.clone())
            .collect();
        let at = now();
        let machine = engine::machine_change(s, change, at);
        let deps = &self.inner.deps;
        let drafts = attestation::statement::drafts(s, change);
        let attested = attestation::sign(drafts, &s.run, &deps.images.signing_key(), at);
        let mut events = record::events(s, change);
        events.extend(attested.iter().map(record::attested));
        let stored = deps
            .store
            .update_run(&change.run, &steps, machine.as_ref(), &attested, events, at)
            .await;
        let told = match stored {
            Ok(told) => told,
            // A reopened run that meets another active one is the caller's to hear about.
            Err(StoreError::Conflict(_)) if s.run.state.is_active() => return Ok(false),
            Err(error) => return Err(error),
        };
        self.inner.commits.fetch_add(1, Ordering::Relaxed);
        #[cfg(test)]
        self.inner.crash.point()?;
        deps.recorder.announce(told);
        if let Some(machine) = &machine {
            tracing::info!(
                machine = s.run.machine,
                run = s.run.id,
                state = change.run.state.as_str(),
                reason = machine.reason,
                "run changed its state"
            );
        }
        if !change.run.state.is_active() {
            self.forget(&s.run.id, change.run.state).await;
        }
        self.inner.changed.notify_waiters();
        Ok(true)
    }

    /// Drops what only an active run needs. A node that comes up after its run failed may still
    /// say so, until its token expires: the run can then be retried from there.
    async fn forget(&self, run: &str, state: RunState) {
        lock(&self.inner.progress).retain(|(id, _), _| id != run);
        let keep = state == RunState::Failed;
        if let Err(error) = self.inner.deps.tokens.revoke(run, keep).await {
            // They expire by themselves.
            tracing::warn!(run, error = format!("{error:#}"), "revoking tokens failed");
        }
    }

    /// Applies a change that is computed from the run as it is, however often somebody else is
    /// faster.
    pub(super) async fn change(
        &self,
        run: &str,
        make: impl Fn(&Snapshot) -> Result<Option<Change>, EngineError>,
    ) -> Result<(), EngineError> {
        for _ in 0..TRIES {
            let s = self.load(run).await?;
            let Some(change) = make(&s)? else {
                return Ok(());
            };
            if self.commit(&s, &change).await? {
                return Ok(());
            }
        }
        Err(too_busy(run))
    }

    /// Stores changes until there is something to do, to wait for, or nothing.
    pub(super) async fn advance(&self, run: &str) -> Result<(Snapshot, Next), EngineError> {
        for _ in 0..1_000 {
            let s = self.load(run).await?;
            match decide(&s, now()) {
                Decision::Change(change) => {
                    self.commit(&s, &change).await?;
                }
                Decision::Act(command) => return Ok((s, Next::Act(command))),
                Decision::Wait(waiting) => return Ok((s, Next::Wait(waiting))),
                Decision::Over => return Ok((s, Next::Over)),
            }
        }
        Err(too_busy(run))
    }

    /// Stores how a command ended, unless the run has moved on.
    pub(super) async fn settle(
        &self,
        run: &str,
        command: Command,
        done: &Done,
    ) -> Result<(), EngineError> {
        self.change(run, |s| Ok(engine::settle(s, command, done, now())))
            .await
    }
}

/// What is left when all changes are stored.
#[derive(Debug)]
pub(super) enum Next {
    /// Do this.
    Act(Command),
    /// Wait for this.
    Wait(Waiting),
    /// The run is over.
    Over,
}

pub(super) fn too_busy(run: &str) -> EngineError {
    EngineError::Internal(anyhow::anyhow!("run {run} changes too often to be changed"))
}

/// What the record says of a new run; an image without proof is named as such.
fn created(run: &RunRow, plan: &super::run::RunPlan) -> serde_json::Value {
    let mut data = serde_json::json!({ "workflow": run.workflow, "image": run.image });
    if plan.image.as_ref().is_some_and(|image| image.unproven) {
        data["unproven"] = true.into();
    }
    data
}
