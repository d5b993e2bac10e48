//! The loop: looks at every active run whenever anything happened, and does what is to be done.

use std::collections::HashMap;
use std::time::Duration;

use anneal_protocol::time::Millis;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::api_port;
use super::driver::{Engine, EngineError, Next};
use super::engine::{Act, Command, Done};
use super::inputs::{self, InputError, Inputs};
use super::run::Snapshot;
use super::secrets::Secrets;
use crate::bmc::{BmcFailure, BootDevice, PowerAction, PowerState};
use crate::clock::now;
use crate::event::{Event, kind};
use crate::machine::Bmc;
use crate::render::Wanted;
use crate::token::issuer::IssueError;

/// Every run is looked at this often even if nothing seems to happen.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often to look whether a machine is off.
const LOOK_OFF: Duration = Duration::from_secs(2);

/// What the loop knows of a run.
#[derive(Debug, Default)]
struct Watched {
    busy: bool,
    /// Wake-ups there had been when it was last looked at.
    looked: u64,
    wake_at: Option<Millis>,
}

impl Engine {
    /// Drives all runs until `stop`. What is under way then is dropped: the next daemon goes on.
    ///
    /// # Errors
    /// When the database fails otherwise than for a full disk, which is waited out.
    pub async fn run(&self, stop: CancellationToken) -> anyhow::Result<()> {
        let stored = self.inner.deps.recorder.stored();
        let mut stored_wake = Box::pin(stored.notified());
        let mut changed_wake = Box::pin(self.inner.changed.notified());
        stored_wake.as_mut().enable();
        changed_wake.as_mut().enable();
        let mut wakes: u64 = 1;
        let mut watched: HashMap<String, Watched> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            match self.look(&mut watched, &mut tasks, wakes).await {
                Err(error) if error.is_out_of_space() => {
                    tracing::error!(%error, "runs wait: the disk fails");
                }
                looked => looked?,
            }
            let wake_at = watched.values().filter_map(|w| w.wake_at).min();
            let pause = wake_at
                .map_or(LOOK_AGAIN, |at| at.since(now()))
                .min(LOOK_AGAIN);
            tokio::select! {
                () = stop.cancelled() => {
                    tasks.shutdown().await;
                    return Ok(());
                }
                () = &mut stored_wake => {
                    stored_wake.set(stored.notified());
                    stored_wake.as_mut().enable();
                    wakes += 1;
                }
                () = &mut changed_wake => {
                    changed_wake.set(self.inner.changed.notified());
                    changed_wake.as_mut().enable();
                    wakes += 1;
                }
                Some(ended) = tasks.join_next() => {
                    let (run, outcome): (String, Result<_, EngineError>) = ended?;
                    let wake_at = match outcome {
                        Err(error) if error.is_out_of_space() => {
                            tracing::error!(run, %error, "a run waits: no room to store its progress");
                            Some(now().plus(LOOK_AGAIN))
                        }
                        outcome => outcome?,
                    };
                    if let Some(watch) = watched.get_mut(&run) {
                        watch.busy = false;
                        watch.wake_at = wake_at;
                    }
                }
                () = tokio::time::sleep(pause) => {
                    if wake_at.is_none_or(|at| now() < at) {
                        wakes += 1;
                    }
                }
            }
        }
    }

    /// Starts a look at every active run that may have something to do.
    async fn look(
        &self,
        watched: &mut HashMap<String, Watched>,
        tasks: &mut JoinSet<(String, Result<Option<Millis>, EngineError>)>,
        wakes: u64,
    ) -> Result<(), EngineError> {
        let active = self.inner.deps.store.active_runs().await?;
        watched.retain(|run, watch| watch.busy || active.contains(run));
        for run in active {
            let watch = watched.entry(run.clone()).or_default();
            let due = watch.looked < wakes || watch.wake_at.is_some_and(|at| at <= now());
            if watch.busy || !due {
                continue;
            }
            watch.busy = true;
            watch.looked = wakes;
            watch.wake_at = None;
            let engine = self.clone();
            tasks.spawn(async move {
                let outcome = engine.drive(&run).await;
                (run, outcome)
            });
        }
        Ok(())
    }

    /// Does everything that can be done for a run now. Returns when to look again.
    pub(super) async fn drive(&self, run: &str) -> Result<Option<Millis>, EngineError> {
        loop {
            match self.advance(run).await? {
                (_, Next::Over) => return Ok(None),
                (_, Next::Wait(waiting)) => return Ok(waiting.look_at),
                (s, Next::Act(command)) => {
                    let done = tokio::select! {
                        done = self.perform(&s, command) => done,
                        moved = self.moved_on(&s, command) => { moved?; continue; }
                    };
                    self.settle_at_last(run, command, &done).await?;
                    if done == Done::NotYet {
                        return Ok(Some(now().plus(LOOK_OFF)));
                    }
                }
            }
        }
    }

    /// Stores how a command ended, however long there is no room for it: were it forgotten, the
    /// command would be given again, and the machine switched off and on each time.
    async fn settle_at_last(
        &self,
        run: &str,
        command: Command,
        done: &Done,
    ) -> Result<(), EngineError> {
        loop {
            match self.settle(run, command, done).await {
                Err(error) if error.is_out_of_space() => {
                    tracing::error!(run, %error, "a run waits: no room to store what was done");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                settled => return settled,
            }
        }
    }

    /// Ends when a command is not wanted any more: the run was cancelled or failed meanwhile.
    async fn moved_on(&self, s: &Snapshot, command: Command) -> Result<(), EngineError> {
        loop {
            let changed = self.inner.changed.notified();
            let row = self.inner.deps.store.run_row(&s.run.id).await?;
            if !row.state.is_active() || row.cancel {
                tracing::debug!(run = s.run.id, step = command.idx, "command dropped");
                return Ok(());
            }
            changed.await;
        }
    }

    async fn perform(&self, s: &Snapshot, command: Command) -> Done {
        if command.act == Act::LookApi {
            self.look_api(s).await;
            return Done::NotYet;
        }
        let left = command.deadline.since(now());
        match tokio::time::timeout(left, self.ask_bmc(s, command)).await {
            Ok(Ok(done)) => done,
            Ok(Err(failure)) => Done::Failed {
                reason: failure.to_string(),
                retryable: failure.retryable,
            },
            Err(_) => Done::Failed {
                reason: "the BMC did not answer in time".to_owned(),
                retryable: true,
            },
        }
    }

    async fn ask_bmc(&self, s: &Snapshot, command: Command) -> Result<Done, BmcFailure> {
        let Some(bmc) = &s.plan.machine.bmc else {
            return Err(refused("", &format!("{} has no BMC", s.run.machine)));
        };
        match command.act {
            Act::Netboot => {
                let device = self.netboot_device(s).await;
                let device = device.map_err(|e| refused(&bmc.url, &e))?;
                self.boot_once(s, bmc, device).await?;
                self.power(s, bmc, PowerAction::Cycle).await?;
            }
            Act::Power => match self.inputs(s, command.idx, &Secrets::redacted()).await {
                Ok((Inputs::Power(action), _)) => self.power(s, bmc, action).await?,
                _ => return Err(refused(&bmc.url, "the step does not say what to switch")),
            },
            Act::BootDevice => match self.inputs(s, command.idx, &Secrets::redacted()).await {
                Ok((Inputs::BootDevice(device), _)) => self.boot_once(s, bmc, device).await?,
                _ => return Err(refused(&bmc.url, "the step does not say which device")),
            },
            // Not the BMC's.
            Act::LookApi => return Ok(Done::NotYet),
            Act::LookOff => {
                if self.inner.deps.bmc.power_state(bmc).await? == PowerState::On {
                    return Ok(Done::NotYet);
                }
            }
        }
        Ok(Done::Yes)
    }

    /// Looks whether Talos answers on its API port, and records it: the next look at the run
    /// finds the record.
    async fn look_api(&self, s: &Snapshot) {
        for address in s.plan.machine.addresses() {
            let address = (address.ip, api_port::PORT).into();
            let answer = match api_port::look(address).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(run = s.run.id, error = format!("{error:#}"), "no Talos yet");
                    continue;
                }
            };
            let message = format!(
                "no event came, but Talos answers on {address} and asks who is calling: it has its configuration"
            );
            let data = serde_json::json!({
                "os": "Talos Linux",
                "by": "talos",
                "evidence": "api-port",
                "address": address.to_string(),
                "certificate_sha256": answer.certificate,
            });
            let event = Event::new(kind::TALOS_READY, message)
                .machine(&s.run.machine)
                .run(&s.run.id);
            if let Err(error) = self
                .inner
                .deps
                .recorder
                .record_durably(event.data(data))
                .await
            {
                tracing::warn!(run = s.run.id, %error, "Talos' API port will be looked at again");
            }
            return;
        }
    }

    async fn power(&self, s: &Snapshot, bmc: &Bmc, action: PowerAction) -> Result<(), BmcFailure> {
        self.inner.deps.bmc.power(bmc, action).await?;
        let word = serde_json::json!({ "action": action });
        self.record(s, kind::POWER, format!("power: {}", word["action"]), word);
        Ok(())
    }

    async fn boot_once(
        &self,
        s: &Snapshot,
        bmc: &Bmc,
        device: BootDevice,
    ) -> Result<(), BmcFailure> {
        self.inner.deps.bmc.boot_once(bmc, device).await?;
        let word = serde_json::json!({ "device": device });
        self.record(
            s,
            kind::BOOT_DEVICE,
            format!("next boot: {}", word["device"]),
            word,
        );
        Ok(())
    }

    fn record(&self, s: &Snapshot, kind: &str, message: String, data: serde_json::Value) {
        let event = Event::new(kind, message.replace('"', ""));
        self.inner
            .deps
            .recorder
            .record(event.machine(&s.run.machine).run(&s.run.id).data(data));
    }

    /// The device that the latest netboot step of the run boots from; a recovery uses the same.
    async fn netboot_device(&self, s: &Snapshot) -> Result<BootDevice, String> {
        let current = s.current().unwrap_or(0);
        let netboot = (0..=current)
            .rev()
            .find(|idx| s.action(*idx) == Some(super::action::Action::Netboot));
        let Some(idx) = netboot else {
            return Err("no netboot step says how to start the agent".to_owned());
        };
        match self
            .inputs(s, idx, &Secrets::redacted())
            .await
            .map_err(|e| e.to_string())?
        {
            (Inputs::Netboot(device), _) => Ok(device),
            _ => Err("the netboot step names no device".to_owned()),
        }
    }

    /// What a step does, rendered; and which secrets are in it.
    ///
    /// # Errors
    /// When it cannot be rendered, or reads secrets that cannot be read now.
    pub(super) async fn inputs(
        &self,
        s: &Snapshot,
        idx: usize,
        secrets: &Secrets,
    ) -> Result<(Inputs, Wanted), NoInputs> {
        let (machine, image) = (&s.plan.machine, s.plan.image.as_ref());
        let Some(step) = s.plan.step(idx) else {
            return Ok((Inputs::WaitPhoneHome, Wanted::default()));
        };
        let (cluster, unread) = self.read_cluster(machine).await;
        let context = self.context(machine, image, &s.run.id, cluster.as_ref(), secrets);
        let params = inputs::render(step, &self.inner.deps.renderer, &context);
        let wanted = context.wanted();
        if let Some(error) = unread.filter(|_| wanted.join.bundle) {
            return Err(NoInputs::Issuer(error));
        }
        let inputs = inputs::typed(step, &params?, machine, image)?;
        Ok((inputs, wanted))
    }
}

/// Why there is nothing to do in a step.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoInputs {
    /// It cannot be carried out as written.
    #[error(transparent)]
    Unusable(#[from] InputError),
    /// Secrets that it reads cannot be read now: it might say something else than it did.
    #[error(transparent)]
    Issuer(IssueError),
}

fn refused(url: &str, message: &str) -> BmcFailure {
    BmcFailure {
        url: url.to_owned(),
        message: message.to_owned(),
        retryable: false,
    }
}
