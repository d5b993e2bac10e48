//! Composition: `build` opens the state and binds every socket, `run` supervises.
//!
//! Invariants: whatever can be refused at start is refused in [`App::build`], before anything
//! answers on the wire. Every task is in one `JoinSet`; the first that ends unexpectedly stops
//! the others, and the process exits with an error.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anneal_protocol::api::Role;
use anneal_protocol::cmdline::{Address, Boot};
use anneal_protocol::machine::Mac;
use anyhow::{Context, bail};
use axum::Router;
use axum::routing::get;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::boot::{self, BootFiles, BootSource, Choice, RunBoot, Target};
use crate::clock::now;
use crate::event::{self, Recorder, Writer};
use crate::http::listener::Listener;
use crate::http::{agent, api, boot as boot_http, node};
use crate::machine::Directory;
use crate::metrics::Metrics;
use crate::pki::Pki;
use crate::settings::Settings;
use crate::store::{ApiKeyRecord, Store};
use crate::token::{self, Purpose, Tokens};
use crate::workflow::{Engine, EngineDeps};
use crate::{bmc, dhcp, image, render, tftp};

/// Name of the API key in the context that the daemon writes for its own host.
const LOCAL_KEY: &str = "local-admin";
/// How long tasks may take to end after the stop signal.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How often the server certificate is looked at.
const RENEWAL_LOOK: Duration = Duration::from_secs(6 * 3600);

/// What request handlers hold; cheap to clone.
#[derive(Clone)]
pub struct Shared(Arc<SharedParts>);

/// The parts of [`Shared`].
pub struct SharedParts {
    /// Settings.
    pub settings: Arc<Settings>,
    /// State.
    pub store: Store,
    /// What happened.
    pub recorder: Recorder,
    /// Tokens.
    pub tokens: Arc<Tokens>,
    /// Certificates.
    pub pki: Pki,
    /// Runs.
    pub engine: Engine,
    /// Images.
    pub images: Arc<image::Catalog>,
    /// Who owns which MAC.
    pub directory: Directory,
    /// Metrics.
    pub metrics: Metrics,
    /// Set when the daemon stops.
    pub stop: CancellationToken,
}

impl std::ops::Deref for Shared {
    type Target = SharedParts;

    fn deref(&self) -> &SharedParts {
        &self.0
    }
}

/// A daemon with all its sockets bound, not yet serving.
pub struct App {
    shared: Shared,
    writer: Writer,
    boot_listener: Listener,
    tls_listener: Listener,
    dhcp: Option<dhcp::Server>,
    tftp: Option<tftp::Server>,
    boot_router: Router,
    bmc: Arc<bmc::BmcPool>,
}

impl App {
    /// Opens the state, makes keys, binds sockets.
    ///
    /// # Errors
    /// Everything that stands in the way of serving, with what to do about it.
    pub async fn build(settings: Settings) -> anyhow::Result<Self> {
        let settings = Arc::new(settings);
        let state = settings.state_dir.as_path();
        private_dir(state)?;
        let boot_files = Arc::new(BootFiles::load(&settings.netboot_dir)?);
        let ip = settings.address.ip;
        let host = IpAddr::V4(ip);
        let pki = Pki::open(&state.join("pki"), &[host, IpAddr::V4(Ipv4Addr::LOCALHOST)])?;

        let store = Store::open(&state.join("anneal.db"))
            .await
            .with_context(|| format!("opening the database in {}", state.display()))?;
        let (recorder, writer) = event::channel(store.clone());
        let tls_listener =
            Listener::bind((ip, settings.tls_port).into(), Some(pki.server_config()?)).await?;
        let boot_listener = Listener::bind((ip, settings.boot_port).into(), None).await?;
        let server_url = format!("https://{}", tls_listener.local_addr()?);
        let boot_url = format!("http://{}", boot_listener.local_addr()?);

        let directory = Directory::default();
        directory.replace(store.machine_snapshot().await?);
        let tokens = Arc::new(Tokens::new(store.clone(), recorder.clone()));
        let signing_key = image::signing_key(&state.join("image-key.pem"))?;
        let images =
            Arc::new(image::Catalog::open(store.clone(), state.join("images"), signing_key).await?);
        let bmc = Arc::new(bmc::BmcPool::new());
        let engine = Engine::new(EngineDeps {
            store: store.clone(),
            recorder: recorder.clone(),
            bmc: bmc.clone(),
            renderer: Arc::new(render::Renderer::new(settings.templates_dir.clone())?),
            tokens: tokens.clone(),
            images: images.clone(),
            workflows_dir: settings.workflows_dir.clone(),
            agent_silence: settings.agent_silence,
            node_url: server_url.clone(),
            ca_pem: pki.ca_pem().to_owned(),
        });
        let dhcp = match &settings.dhcp {
            Some(dhcp_settings) => Some(
                bind_dhcp(
                    &settings,
                    dhcp_settings,
                    &boot_url,
                    &directory,
                    &store,
                    &recorder,
                )
                .await?,
            ),
            None => None,
        };
        let tftp = match settings.tftp {
            true => Some(tftp::Server::bind(
                (ip, 69).into(),
                boot_files.clone(),
                directory.clone(),
                recorder.clone(),
            )?),
            false => None,
        };
        let ca_sha256 = pki.ca_sha256();
        let shared = Shared(Arc::new(SharedParts {
            settings,
            store,
            recorder: recorder.clone(),
            tokens,
            pki,
            engine,
            images,
            directory: directory.clone(),
            metrics: Metrics::new(),
            stop: CancellationToken::new(),
        }));
        write_admin_context(&shared, &server_url).await?;
        let source = Arc::new(Source {
            shared: shared.clone(),
            server_url,
            ca_sha256,
        });
        let boot_router = boot_http::router(boot_files, source, directory, recorder, &boot_url);
        Ok(Self {
            shared,
            writer,
            boot_listener,
            tls_listener,
            dhcp,
            tftp,
            boot_router,
            bmc,
        })
    }

    /// What an operator wants to see at start.
    ///
    /// # Errors
    /// When a socket is gone.
    pub fn banner(&self) -> anyhow::Result<String> {
        let settings = &self.shared.settings;
        let mut lines = vec![
            format!(
                "anneal {} on {} ({})",
                env!("CARGO_PKG_VERSION"),
                settings.interface,
                settings.address
            ),
            format!(
                "  API, agents, nodes   https://{}",
                self.tls_listener.local_addr()?
            ),
            format!(
                "  boot files           http://{}/boot/",
                self.boot_listener.local_addr()?
            ),
        ];
        lines.push(match &self.tftp {
            Some(_) => format!("  TFTP                 {}:69", settings.address.ip),
            None => "  TFTP                 off".to_owned(),
        });
        lines.push(match &settings.dhcp {
            Some(dhcp) => format!(
                "  DHCP                 {}: {}",
                settings.interface,
                dhcp_scope(dhcp)
            ),
            None => "  DHCP                 off".to_owned(),
        });
        lines.push(format!(
            "  state                {}",
            settings.state_dir.display()
        ));
        lines.push(format!(
            "  CA fingerprint       sha256:{}",
            self.shared.pki.ca_sha256()
        ));
        lines.push(format!(
            "  admin context        {}",
            settings.state_dir.join("admin.context.json").display()
        ));
        Ok(lines.join("\n"))
    }

    /// Serves until SIGTERM, SIGINT or a failure.
    ///
    /// # Errors
    /// The first failure of any part.
    pub async fn run(self) -> anyhow::Result<()> {
        let stop = self.shared.stop.clone();
        // Events are still written while the servers drain.
        let stop_writer = CancellationToken::new();
        let mut tasks: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
        let shared = self.shared;
        let tls_router = tls_router(&shared);
        let boot_router = self.boot_router.merge(open_routes(&shared));
        spawn(
            &mut tasks,
            "the TLS listener",
            self.tls_listener.run(tls_router, stop.clone()),
        );
        spawn(
            &mut tasks,
            "the boot listener",
            self.boot_listener.run(boot_router, stop.clone()),
        );
        if let Some(server) = self.dhcp {
            spawn(&mut tasks, "DHCP", server.run(stop.clone()));
        }
        if let Some(server) = self.tftp {
            spawn(&mut tasks, "TFTP", server.run(stop.clone()));
        }
        let (engine, engine_stop) = (shared.engine.clone(), stop.clone());
        spawn(&mut tasks, "the workflow engine", async move {
            engine.run(engine_stop).await
        });
        let metrics = shared.metrics.clone();
        let watched = metrics.run(shared.recorder.clone(), shared.engine.clone(), stop.clone());
        spawn(&mut tasks, "metrics", watched);
        let renewal = renew_certificate(shared.clone(), stop.clone());
        spawn(&mut tasks, "certificate renewal", renewal);
        let mut writer = tokio::spawn(self.writer.run(stop_writer.clone()));

        let outcome = tokio::select! {
            signal = stop_signal() => signal,
            Some(ended) = tasks.join_next() => Err(unexpected_end(ended)),
            ended = &mut writer => match ended {
                Ok(Ok(())) => Err(anyhow::anyhow!("the event writer ended")),
                Ok(Err(error)) => Err(error.context("the event writer failed")),
                Err(error) => Err(anyhow::Error::new(error).context("the event writer died")),
            },
        };
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Stopping]) {
            tracing::debug!(%error, "telling systemd failed");
        }
        tracing::info!("stopping");
        stop.cancel();
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, drained).await.is_err() {
            tracing::warn!("some tasks did not stop in time");
            tasks.shutdown().await;
        }
        if tokio::time::timeout(STOP_LIMIT, self.bmc.close())
            .await
            .is_err()
        {
            tracing::warn!("some BMC sessions were not given back");
        }
        stop_writer.cancel();
        if !writer.is_finished() {
            writer.await.context("the event writer died")??;
        }
        outcome
    }
}

/// Builds, says what it listens on, serves: `anneal serve`.
///
/// # Errors
/// Whatever stands in the way of starting, or the first failure while serving.
pub async fn serve(settings: Settings) -> anyhow::Result<()> {
    let app = App::build(settings).await?;
    println!("{}", app.banner()?);
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "telling systemd failed");
    }
    app.run().await
}

/// Looks every few hours whether the server certificate is due. A failure is not a reason to
/// stop: there are weeks left to mend it.
async fn renew_certificate(shared: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RENEWAL_LOOK) => {}
        }
        match shared.pki.renew() {
            Ok(true) => tracing::info!("the server certificate was renewed"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "renewing the server certificate"
                );
            }
        }
    }
}

fn spawn<F>(tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>, name: &'static str, task: F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    tasks.spawn(async move { (name, task.await) });
}

fn unexpected_end(
    ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>,
) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow::anyhow!("{name} ended unexpectedly"),
        Ok((name, Err(error))) => error.context(format!("{name} failed")),
        Err(error) => anyhow::Error::new(error).context("a task died"),
    }
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn tls_router(shared: &Shared) -> Router {
    api::router(shared)
        .merge(agent::router().with_state(shared.clone()))
        .merge(node::router().with_state(shared.clone()))
        .merge(open_routes(shared))
        .fallback(api::not_found)
        .layer(tower_http::catch_panic::CatchPanicLayer::new())
}

/// What answers without a credential on both listeners: health and metrics.
fn open_routes(shared: &Shared) -> Router {
    let (ready, metrics) = (shared.clone(), shared.metrics.clone());
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || api::ready(ready.clone())))
        .route("/metrics", get(move || api::metrics(metrics.clone())))
}

async fn bind_dhcp(
    settings: &Settings,
    dhcp_settings: &crate::settings::DhcpSettings,
    boot_url: &str,
    directory: &Directory,
    store: &Store,
    recorder: &Recorder,
) -> anyhow::Result<dhcp::Server> {
    let config = dhcp::DhcpConfig {
        interface: settings.interface.clone(),
        address: settings.address,
        settings: dhcp_settings.clone(),
        boot: dhcp::BootUrls {
            tftp: settings.address.ip,
            boot_http: boot_url.to_owned(),
        },
    };
    let server =
        dhcp::Server::bind(config, directory.clone(), store.clone(), recorder.clone()).await?;
    let asker = probe_mac()?;
    if let Some(foreign) = dhcp::probe::foreign_server(&settings.interface, asker).await? {
        if !dhcp_settings.allow_foreign {
            bail!(
                "another DHCP server, {}, answers on {}; two servers on one wire hand out \
                 conflicting answers. Stop it, serve another interface with --interface, or \
                 start with --allow-foreign-dhcp if you know that it ignores these machines",
                foreign.server,
                settings.interface
            );
        }
        tracing::warn!(interface = settings.interface, server = %foreign.server, "another DHCP server answers");
    }
    Ok(server)
}

/// A MAC that no machine has (locally administered, random), so that a server which knows its
/// clients is asked as a stranger would, and no lease of a real machine is touched.
fn probe_mac() -> anyhow::Result<Mac> {
    let mut bytes = [0_u8; 6];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("random numbers: {error}"))?;
    bytes[0] = (bytes[0] & 0xfc) | 0x02;
    Ok(Mac(bytes))
}

fn dhcp_scope(dhcp: &crate::settings::DhcpSettings) -> String {
    match (dhcp.pool, dhcp.serve_unknown) {
        (Some((first, last)), true) => {
            format!("reserved addresses of the inventory, {first} to {last} for anybody else")
        }
        (Some((first, last)), false) => {
            format!("reserved addresses of the inventory, {first} to {last} for the rest of it")
        }
        (None, _) => "reserved addresses of the inventory, nobody else".to_owned(),
    }
}

/// Makes the state directory, readable by its owner only.
fn private_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| {
            format!(
                "creating the state directory {}; see --state-dir",
                path.display()
            )
        })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("restricting the state directory {}", path.display()))
}

/// Writes the context with which the CLI on this host reaches the daemon. The key in it is made
/// anew when the file is missing; its digest is what the store has.
async fn write_admin_context(shared: &Shared, server_url: &str) -> anyhow::Result<()> {
    let path = shared.settings.state_dir.join("admin.context.json");
    let kept = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .and_then(|context| context["key"].as_str().map(str::to_owned));
    let known = match &kept {
        Some(key) => shared
            .store
            .api_key_by_digest(&token::digest(key))
            .await?
            .is_some(),
        None => false,
    };
    let key = match kept.filter(|_| known) {
        Some(key) => key,
        None => {
            let key = token::random_secret()?;
            let record = ApiKeyRecord {
                name: LOCAL_KEY.to_owned(),
                role: Role::Admin,
                created_at: now(),
            };
            shared
                .store
                .replace_api_key(&record, &token::digest(&key))
                .await?;
            key
        }
    };
    let context = serde_json::json!({
        "server": server_url,
        "ca": shared.pki.ca_pem(),
        "key": key,
    });
    let text = serde_json::to_string_pretty(&context)?;
    crate::pki::write_file(&path, 0o600, text.as_bytes())?;
    // For curl --cacert: public.
    let ca_path = shared.settings.state_dir.join("ca.pem");
    crate::pki::write_file(&ca_path, 0o644, shared.pki.ca_pem().as_bytes())
}

/// Answers what a MAC boots next, from inventory and runs.
struct Source {
    shared: Shared,
    server_url: String,
    ca_sha256: String,
}

impl Source {
    async fn answer(&self, mac: Mac, from: IpAddr) -> anyhow::Result<Target> {
        let snapshot = self.shared.directory.snapshot();
        let Some(reservation) = snapshot.by_mac.get(&mac) else {
            return Ok(Target::Unknown);
        };
        let machine = reservation.machine.clone();
        // A script holds a boot token: it is for the owner of the MAC, at the owner's address.
        if reservation
            .address
            .is_some_and(|address| IpAddr::V4(address.ip) != from)
        {
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
        self.shared
            .tokens
            .revoke_run(&run, Some(Purpose::Boot))
            .await?;
        let ttl = Purpose::Boot.default_ttl();
        let token = self
            .shared
            .tokens
            .mint(Purpose::Boot, &machine, &run, ttl)
            .await?;
        let dhcp = self.shared.settings.dhcp.as_ref();
        let address = reservation.address.map(|address| Address {
            ip: address.ip,
            prefix: address.prefix,
            gateway: dhcp.and_then(|d| d.router),
        });
        Ok(Target::Agent(Box::new(Boot {
            server: self.server_url.clone(),
            ca_sha256: self.ca_sha256.clone(),
            token,
            machine,
            run,
            time_secs: now().0 / 1000,
            mac,
            address,
        })))
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

/// Where the daemon listens, for tests that bind port 0.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// TLS: API, agents, nodes.
    pub tls: SocketAddr,
    /// Plain HTTP: boot.
    pub boot: SocketAddr,
}

impl App {
    /// The bound addresses.
    ///
    /// # Errors
    /// When a socket is gone.
    pub fn addresses(&self) -> anyhow::Result<Addresses> {
        Ok(Addresses {
            tls: self.tls_listener.local_addr()?,
            boot: self.boot_listener.local_addr()?,
        })
    }

    /// What handlers hold, to drive the daemon from inside in tests.
    #[must_use]
    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }
}
