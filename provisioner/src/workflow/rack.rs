//! A machine made of code for the engine's tests: BMC, firmware, agent, installed system.
//!
//! It stands for the far side of the wire only. The store, the events and the engine are real;
//! the real agent against the real daemon is tested end to end in `tests/`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use anneal_image::SigningKey;
use anneal_protocol::agent::{
    AgentAction, Amount, Next, NextRequest, Order, Outcome, Progress, Report, StepFailure,
    StepResult, StreamResult, StreamTimes, Verify, WriteFileResult,
};
use anneal_protocol::audit::{AuditResult, Expectation, RegionDrift};
use base64::Engine as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Boxed, Engine, EngineDeps, EngineError, ImageSource, StartRun, TokenSource};
use crate::bmc::{BmcControl, BmcFailure, BmcFuture, BootDevice, PowerAction, PowerState};
use crate::event::{self, Event, Recorder, kind};
use crate::machine::Bmc;
use crate::render::{ImageFacts, Renderer};
use crate::settings::JoinSettings;
use crate::store::Store;
use crate::token::Mint;
use crate::token::issuer::Issuers;

pub(super) const MACHINE: &str = "r1n1";
const SHA: &str = "aa11";

const INVENTORY: &str = "machines:\n  - name: r1n1\n    nics: [ { mac: \"52:54:00:aa:00:01\", address: 10.77.0.11/24, boot: true } ]\n    bmc: { url: \"redfish+http://10.77.1.1:8000\", username: root, password: { file: /nowhere } }\n    disk: { hints: { type: virtio } }\n    image: debian@12\n";

/// What one order looked like when the agent carried it out, secrets masked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Carried {
    pub(super) step: u32,
    pub(super) attempt: u32,
    pub(super) action: serde_json::Value,
}

/// Things that go wrong on purpose.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// The BMC refuses so many calls.
    pub(super) bmc_errors: AtomicU32,
    /// The machine resets in the middle of so many stream-image orders.
    pub(super) resets: AtomicU32,
    /// The agent dies silently in so many stream-image orders.
    pub(super) hangs: AtomicU32,
    /// So many stream-image orders fail with a retryable error.
    pub(super) failures: AtomicU32,
    /// The installed system does not call home.
    pub(super) mute: AtomicU32,
}

/// What an agent finds on a disk whose root differs.
fn audit(image: &str) -> AuditResult {
    AuditResult {
        disk: "vda".into(),
        serial: Some("S1".into()),
        image: image.to_owned(),
        drifted: true,
        frames: 2,
        frames_differing: 1,
        bytes_read: 1 << 20,
        transferred: 0,
        duration_ms: 1,
        regions: vec![RegionDrift {
            name: "ROOT".into(),
            number: Some(2),
            expected: Expectation::Identical,
            drifted: true,
            start: 0,
            size: 1 << 20,
            differing: 512,
            exact: true,
            ranges: Vec::new(),
            ranges_left_out: 0,
            notes: Vec::new(),
        }],
    }
}

fn take(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
        .is_ok()
}

/// The daemon of the moment, or none while it is dead.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    pub(super) engine: Engine,
    pub(super) recorder: Recorder,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) daemon: RwLock<Option<Daemon>>,
    pub(super) faults: Faults,
    pub(super) carried: Mutex<Vec<Carried>>,
    pub(super) cycles: watch::Sender<u32>,
    pub(super) tokens: Mutex<Vec<String>>,
    disk: Mutex<BTreeMap<String, String>>,
}

#[derive(Debug)]
pub(super) struct Bmcs(Arc<World>);

impl BmcControl for Bmcs {
    fn power<'a>(&'a self, bmc: &'a Bmc, action: PowerAction) -> BmcFuture<'a, ()> {
        Box::pin(async move {
            if take(&self.0.faults.bmc_errors) {
                return Err(BmcFailure {
                    url: bmc.url.clone(),
                    message: "500 Internal Server Error".into(),
                    retryable: true,
                });
            }
            if action != PowerAction::Off {
                self.0.cycles.send_modify(|n| *n += 1);
            }
            Ok(())
        })
    }

    fn power_state<'a>(&'a self, _: &'a Bmc) -> BmcFuture<'a, PowerState> {
        Box::pin(async { Ok(PowerState::Off) })
    }

    fn boot_once<'a>(&'a self, _: &'a Bmc, _: BootDevice) -> BmcFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

impl TokenSource for World {
    fn mint<'a>(&'a self, _: Mint<'a>) -> Boxed<'a, anyhow::Result<String>> {
        Box::pin(async move {
            let mut tokens = self.tokens.lock().unwrap();
            let token = format!("token-{}", tokens.len());
            tokens.push(token.clone());
            Ok(token)
        })
    }

    fn revoke<'a>(&'a self, _: &'a str, _: bool) -> Boxed<'a, anyhow::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

impl ImageSource for World {
    fn resolve_image<'a>(
        &'a self,
        reference: &'a str,
    ) -> Boxed<'a, anyhow::Result<Option<ImageFacts>>> {
        Box::pin(async move {
            Ok((reference == "debian@12").then(|| ImageFacts {
                id: "blake3:11".into(),
                name: "debian".into(),
                version: "12".into(),
                os: "debian".into(),
                os_version: None,
                size: 1 << 20,
                sha256: SHA.into(),
                unproven: false,
            }))
        })
    }

    fn mirrors<'a>(&'a self, _: &'a str, _: &'a str) -> Boxed<'a, anyhow::Result<Vec<String>>> {
        Box::pin(async { Ok(vec!["http://192.0.2.7/data.zst".to_owned()]) })
    }

    fn signing_key(&self) -> SigningKey {
        SigningKey::from_seed(&[5; 32])
    }
}

impl World {
    /// Calls the daemon until one answers: what an HTTP client with retries does.
    async fn call<T, F>(&self, ask: impl Fn(Daemon) -> F) -> T
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        loop {
            let daemon = self.daemon.read().unwrap().clone();
            if let Some(daemon) = daemon
                && !daemon.engine.inner.crash.happened()
                && let Ok(answer) = ask(daemon.clone()).await
                && self.is_alive(&daemon)
            {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// An answer of a daemon that died meanwhile never arrives.
    fn is_alive(&self, daemon: &Daemon) -> bool {
        let current = self.daemon.read().unwrap();
        current
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(&now.engine.inner, &daemon.engine.inner))
    }

    async fn seen(&self, kind: &str, run: Option<&str>, data: serde_json::Value) {
        self.call(|daemon| {
            let mut event = Event::new(kind, "seen").machine(MACHINE).data(data.clone());
            event.run = run.map(str::to_owned);
            async move {
                // A daemon that was killed stores nothing; the machine goes on all the same.
                let _ = daemon.recorder.record_durably(event).await;
                Ok(())
            }
        })
        .await;
    }

    /// The machine's life: off until it gets power, then firmware, agent or disk.
    async fn live(self: Arc<Self>) {
        let mut cycles = self.cycles.subscribe();
        loop {
            if cycles.changed().await.is_err() {
                return;
            }
            loop {
                let restarted = tokio::select! {
                    restarted = self.boot() => restarted,
                    _ = cycles.changed() => true,
                };
                if !restarted {
                    break;
                }
            }
        }
    }

    /// One start. True when the machine restarts by itself at its end.
    async fn boot(&self) -> bool {
        self.seen(
            kind::DHCP_ACK,
            None,
            serde_json::json!({ "stage": "firmware" }),
        )
        .await;
        let wants = self
            .call(|daemon| async move { daemon.engine.wants_agent(MACHINE).await })
            .await;
        let target = if matches!(wants, Some((_, true))) {
            "agent"
        } else {
            "disk"
        };
        self.seen(
            kind::BOOT_SCRIPT,
            None,
            serde_json::json!({ "target": target }),
        )
        .await;
        match wants {
            Some((run, true)) => self.agent(&run).await,
            _ => {
                self.installed_system().await;
                false
            }
        }
    }

    async fn installed_system(&self) {
        let config = self.disk.lock().unwrap().get("/user-data").cloned();
        let Some(run) = config.and_then(|text| text.split(' ').nth(1).map(str::to_owned)) else {
            return;
        };
        if !take(&self.faults.mute) {
            let report = serde_json::json!({ "hostname": MACHINE });
            self.seen(kind::PHONE_HOME, Some(&run), report).await;
        }
    }

    async fn agent(&self, run: &str) -> bool {
        let request = NextRequest {
            run: run.to_owned(),
            boot_id: uuid::Uuid::new_v4().to_string(),
            inventory: None,
        };
        loop {
            let next = self
                .call(|daemon| {
                    let request = request.clone();
                    let hold = Duration::from_millis(50);
                    async move { daemon.engine.next_or_wait(MACHINE, &request, hold).await }
                })
                .await;
            match next {
                Next::Order(order) => match self.carry_out(&order, &request.boot_id).await {
                    Some(true) => return true,
                    Some(false) => {}
                    // Hangs until somebody cuts the power.
                    None => std::future::pending().await,
                },
                Next::Wait { .. } => {}
                Next::Finished { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// `Some(true)`: the machine restarts; `None`: it hangs.
    async fn carry_out(&self, order: &Order, boot_id: &str) -> Option<bool> {
        let mut action = serde_json::to_value(&order.action).unwrap();
        let outcome = match &order.action {
            AgentAction::StreamImage { image, verify, .. } => {
                if take(&self.faults.resets) {
                    self.note(order, action);
                    return Some(true);
                }
                if take(&self.faults.hangs) {
                    self.note(order, action);
                    return None;
                }
                self.stream(image, *verify)
            }
            AgentAction::WriteFile {
                path,
                contents_base64,
                ..
            } => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(contents_base64)
                    .unwrap();
                let text = String::from_utf8(bytes).unwrap();
                let masked: Vec<_> = text
                    .split(' ')
                    .map(|word| {
                        if word.starts_with("token-") {
                            "token"
                        } else {
                            word
                        }
                    })
                    .collect();
                action["contents_base64"] = masked.join(" ").into();
                self.disk.lock().unwrap().insert(path.clone(), text.clone());
                Outcome::Succeeded {
                    output: serde_json::to_value(WriteFileResult {
                        partition: "vda3".into(),
                        bytes: text.len() as u64,
                        sha256: "00".into(),
                    })
                    .unwrap(),
                }
            }
            AgentAction::AuditDisk { image, .. } => Outcome::Succeeded {
                output: serde_json::to_value(audit(image)).unwrap(),
            },
            AgentAction::Reboot => Outcome::Leaving,
            _ => Outcome::Succeeded {
                output: serde_json::json!({ "kernel_log": [], "disks": [] }),
            },
        };
        self.note(order, action);
        self.report(order, boot_id).await;
        let leaving = outcome == Outcome::Leaving;
        let result = StepResult {
            order: order.id.clone(),
            boot_id: boot_id.to_owned(),
            outcome,
        };
        let counts = self
            .call(|daemon| {
                let result = result.clone();
                async move { daemon.engine.result(MACHINE, &result).await }
            })
            .await;
        Some(leaving && counts)
    }

    fn stream(&self, image: &str, verify: Verify) -> Outcome {
        if take(&self.faults.failures) {
            return Outcome::Failed(StepFailure {
                code: anneal_protocol::agent::FailureCode::ImageStalled,
                message: "no bytes for 30 s".into(),
                retryable: true,
            });
        }
        let mut disk = self.disk.lock().unwrap();
        disk.clear();
        disk.insert("image".into(), image.to_owned());
        let all = Amount {
            frames: 1,
            bytes: 1 << 20,
        };
        Outcome::Succeeded {
            output: serde_json::to_value(StreamResult {
                disk: "vda".into(),
                serial: None,
                image: image.to_owned(),
                bytes: 1 << 20,
                written: all,
                zeroed: Amount::default(),
                unchanged: Amount::default(),
                compared: Amount::default(),
                read_back: (verify == Verify::Full).then_some(all),
                transferred: 1 << 10,
                sources: Vec::new(),
                times: StreamTimes::default(),
                duration_ms: 5,
                grown: None,
                peak_memory: 0,
            })
            .unwrap(),
        }
    }

    fn note(&self, order: &Order, action: serde_json::Value) {
        self.carried.lock().unwrap().push(Carried {
            step: order.id.step,
            attempt: order.id.attempt,
            action,
        });
    }

    async fn report(&self, order: &Order, boot_id: &str) {
        self.call(|daemon| {
            let report = Report {
                order: order.id.clone(),
                boot_id: boot_id.to_owned(),
                progress: Some(Progress {
                    done: 1,
                    total: 2,
                    rate: 0,
                }),
                logs: vec![],
                logs_dropped: 0,
            };
            async move { daemon.engine.report(MACHINE, &report).await }
        })
        .await;
    }
}

/// A store, a machine, and the means to start and kill daemons.
#[derive(Debug)]
pub(super) struct Rack {
    pub(super) world: Arc<World>,
    pub(super) store: Store,
    /// How long its daemons let an agent be silent.
    pub(super) silence: Duration,
    /// Clusters that its daemons know.
    pub(super) join: JoinSettings,
    pub(super) dir: tempfile::TempDir,
    life: tokio::task::JoinHandle<()>,
    daemon: Option<(
        CancellationToken,
        Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
    )>,
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.life.abort();
    }
}

impl Rack {
    /// A rack whose only workflow is this one.
    pub(super) async fn new(workflow: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let inventory = crate::machine::file::parse(INVENTORY, "rack.yaml").unwrap();
        store
            .apply_inventory(&inventory, false, crate::clock::now())
            .await
            .unwrap();
        std::fs::write(dir.path().join("install-image.yaml"), workflow).unwrap();
        let world = Arc::new(World {
            daemon: RwLock::default(),
            faults: Faults::default(),
            carried: Mutex::default(),
            cycles: watch::Sender::new(0),
            tokens: Mutex::default(),
            disk: Mutex::default(),
        });
        let life = tokio::spawn(world.clone().live());
        Self {
            world,
            store,
            silence: Duration::from_secs(30),
            join: JoinSettings::default(),
            dir,
            life,
            daemon: None,
        }
    }

    /// Starts a daemon that dies after so many points (see `testing`), and gives it the wire.
    pub(super) fn start_daemon(&mut self, crash_after: Option<i64>) -> Engine {
        let (recorder, writer) = event::channel(self.store.clone());
        let template = |name: &str, text: &str| (format!("debian/{name}"), text.to_owned());
        let templates = BTreeMap::from([
            template("user-data", "run {{ run.id }} {{ phone_home.token }} end"),
            template("meta-data", "{{ machine.name }}"),
            template("network-config", "{{ machine.address }}"),
        ]);
        let engine = Engine::new(EngineDeps {
            store: self.store.clone(),
            recorder: recorder.clone(),
            bmc: Arc::new(Bmcs(self.world.clone())),
            renderer: Arc::new(Renderer::from_sources(templates).unwrap()),
            tokens: self.world.clone(),
            join: Arc::new(
                Issuers::open(
                    &self.join,
                    self.dir.path(),
                    self.store.clone(),
                    recorder.clone(),
                )
                .unwrap(),
            ),
            images: self.world.clone(),
            workflows_dir: Some(self.dir.path().to_owned()),
            agent_silence: self.silence,
            node_url: "https://10.77.0.1:8443".into(),
            plain_config_url: None,
            event_sink: None,
            metadata_url: None,
            ca_pem: "PEM".into(),
            image_url: None,
        });
        if let Some(points) = crash_after {
            engine.inner.crash.after(points);
        }
        let stop = CancellationToken::new();
        let tasks = vec![
            tokio::spawn(writer.run(CancellationToken::new())),
            tokio::spawn({
                let (engine, stop) = (engine.clone(), stop.clone());
                async move { engine.run(stop).await }
            }),
        ];
        self.daemon = Some((stop, tasks));
        *self.world.daemon.write().unwrap() = Some(Daemon {
            engine: engine.clone(),
            recorder,
        });
        engine
    }

    /// What SIGKILL does: nothing is finished, nothing is flushed.
    pub(super) async fn kill_daemon(&mut self) {
        *self.world.daemon.write().unwrap() = None;
        if let Some((_, tasks)) = self.daemon.take() {
            for task in tasks {
                task.abort();
                // An aborted task ends with an error, which is the point.
                let _ = task.await;
            }
        }
    }

    /// Applies another description of the machine.
    pub(super) async fn edit_machine(&self, edit: impl FnOnce(&mut crate::machine::Machine)) {
        let mut inventory = crate::machine::file::parse(INVENTORY, "rack.yaml").unwrap();
        let described = &mut inventory.machines[0].machine;
        *described = self.store.machine(MACHINE).await.unwrap().unwrap().machine;
        edit(described);
        let at = crate::clock::now();
        self.store
            .apply_inventory(&inventory, false, at)
            .await
            .unwrap();
    }

    pub(super) fn request() -> StartRun {
        StartRun {
            machine: MACHINE.into(),
            workflow: None,
            image: None,
            requested_by: "test".into(),
        }
    }

    /// Waits until the run is over; restarts the daemon whenever it has died.
    pub(super) async fn wait(&mut self, run: &str) -> super::run::RunRow {
        let over = async {
            loop {
                let row = self.store.run_row(run).await.unwrap();
                if !row.state.is_active() {
                    return row;
                }
                let dead = {
                    let daemon = self.world.daemon.read().unwrap();
                    daemon
                        .as_ref()
                        .is_none_or(|d| d.engine.inner.crash.happened())
                };
                if dead {
                    self.kill_daemon().await;
                    self.start_daemon(None);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(120), over).await {
            Ok(row) => row,
            Err(_) => panic!("the run did not end: {:?}", self.store.run(run).await),
        }
    }

    /// Every order of a step was carried out with the same inputs.
    pub(super) fn assert_same_inputs(&self) {
        let carried = self.world.carried.lock().unwrap();
        for one in carried.iter() {
            let first = carried.iter().find(|other| other.step == one.step).unwrap();
            assert_eq!(first.action, one.action, "step {}", one.step);
        }
    }
}
