//! Composition: `build` opens the state and binds every socket, `run` supervises.
//!
//! Invariants: whatever can be refused at start is refused in [`App::build`], before anything
//! answers on the wire. Every task is in one `JoinSet`; the first that ends unexpectedly stops
//! the others, and the process exits with an error.

mod banner;
mod image_port;
mod source;
mod state;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anneal_protocol::machine::Mac;
use anyhow::{Context, bail};
use axum::Router;
use axum::routing::get;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::boot::BootFiles;
use crate::event::{self, Event, Recorder, Writer};
use crate::http::kairos::{self, Sockets};
use crate::http::listener::Listener;
use crate::http::{agent, api, blob, boot as boot_http, config, event_sink, metadata, node};
use crate::machine::Directory;
use crate::metrics::Metrics;
use crate::pki::Pki;
use crate::settings::Settings;
use crate::store::Store;
use crate::token::issuer::Issuers;
use crate::token::{Configs, Tokens};
use crate::workflow::{Engine, EngineDeps};
use crate::{bmc, dhcp, image, render, tftp};

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
    /// Who makes tokens for joining clusters.
    pub issuers: Arc<Issuers>,
    /// Configuration by URL.
    pub configs: Configs,
    /// Certificates.
    pub pki: Pki,
    /// Runs.
    pub engine: Engine,
    /// Images.
    pub images: Arc<image::Catalog>,
    /// Images on their way in.
    pub ingests: Arc<image::ingest::Ingests>,
    /// What proof images must come with.
    pub proof: Arc<image::proof::Policy>,
    /// Where BMC passwords may be read from.
    pub passwords: bmc::PasswordDirs,
    /// Who owns which MAC.
    pub directory: Directory,
    /// Held while the inventory and [`Self::directory`] change together.
    pub inventory: tokio::sync::Mutex<()>,
    /// Metrics.
    pub metrics: Metrics,
    /// Base URL of the image port as machines reach it, `http://10.77.0.1:8081`; none when there
    /// is none. [`blob::url`] makes the URL of a file.
    pub image_url: Option<String>,
    /// Host and port of the event sink as machines reach it; none when it is off.
    pub event_sink: Option<String>,
    /// Where the metadata service is reached, if it is on.
    pub metadata_url: Option<render::MetadataBase>,
    /// Sockets of Kairos nodes.
    pub sockets: Sockets,
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
    image_port: Option<blob::Server>,
    event_sink: Option<Listener>,
    metadata: Option<Listener>,
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
        let state_dir = settings.state_dir.as_path();
        state::private_dir(state_dir)?;
        let boot_files = Arc::new(BootFiles::load(&settings.netboot_dir)?);
        let ip = settings.address.ip;
        let host = IpAddr::V4(ip);
        let pki = Pki::open(
            &state_dir.join("pki"),
            &[host, IpAddr::V4(Ipv4Addr::LOCALHOST)],
        )?;

        let store = Store::open(&state_dir.join("anneal.db"))
            .await
            .with_context(|| format!("opening the database in {}", state_dir.display()))?;
        let (recorder, writer) = event::channel(store.clone());
        if let Some(id) = store.broken_event_chain().await? {
            tracing::error!(
                id,
                "the event log was changed from outside, from this event on"
            );
            let message = format!("the event log was changed from outside, from event {id} on");
            recorder.record(Event::new(event::kind::CHAIN_BROKEN, message));
        }
        let tls_listener =
            Listener::bind((ip, settings.tls_port).into(), Some(pki.server_config()?)).await?;
        let boot_listener = Listener::bind((ip, settings.boot_port).into(), None).await?;
        let server_url = format!("https://{}", tls_listener.local_addr()?);
        let boot_url = format!("http://{}", boot_listener.local_addr()?);

        let directory = Directory::default();
        directory.replace(store.machine_snapshot().await?);
        let tokens = Arc::new(Tokens::new(store.clone(), recorder.clone()));
        let proof = Arc::new(image::proof::Policy::load(
            &settings.images,
            state_dir.join("tuf"),
        )?);
        let keys = image::Keyring::open(&state_dir.join("image-key.pem"))?;
        let images = image::Catalog::open(store.clone(), state_dir.join("images"), keys).await?;
        let images = Arc::new(images.guarded_by(image::ingest::guard::Guard {
            allow_local: settings.images.allow_local_sources,
        }));
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
        let metrics = Metrics::new(dhcp.as_ref().map(dhcp::Server::counters));
        let port = image_port::bind(&settings, &images, &directory, &recorder, &metrics).await?;
        let (image_port, image_url) = port.unzip();
        let (sink_listener, event_sink) = sink(&settings).await?.unzip();
        let (metadata, metadata_url) = metadata_service(&settings, &pki).await?.unzip();
        let passwords = bmc::PasswordDirs::new(settings.password_dirs.clone());
        let bmc = Arc::new(bmc::BmcPool::new(passwords.clone()));
        let ingests = Arc::new(image::ingest::Ingests::new(
            images.clone(),
            proof.clone(),
            recorder.clone(),
            image::ingest::Limits::new(&settings.images),
        ));
        let issuers = Arc::new(Issuers::open(
            &settings.join,
            state_dir,
            store.clone(),
            recorder.clone(),
        )?);
        let engine = Engine::new(EngineDeps {
            join: issuers.clone(),
            store: store.clone(),
            recorder: recorder.clone(),
            bmc: bmc.clone(),
            renderer: Arc::new(render::Renderer::new(settings.templates_dir.clone())?),
            tokens: tokens.clone(),
            images: images.clone(),
            workflows_dir: settings.workflows_dir.clone(),
            agent_silence: settings.agent_silence,
            node_url: server_url.clone(),
            plain_config_url: settings.plain_config_urls.then(|| boot_url.clone()),
            event_sink: event_sink.clone(),
            metadata_url: metadata_url.clone(),
            ca_pem: pki.ca_pem().to_owned(),
            image_url: image_url.clone(),
        });
        let tftp = match settings.tftp {
            true => Some(tftp::Server::bind(
                (ip, 69).into(),
                boot_files.clone(),
                directory.clone(),
                recorder.clone(),
            )?),
            false => None,
        };
        let shared = Shared(Arc::new(SharedParts {
            issuers,
            configs: Configs::new(tokens.as_ref().clone(), store.clone(), recorder.clone()),
            settings,
            store,
            recorder: recorder.clone(),
            tokens,
            pki,
            engine,
            images,
            ingests,
            proof,
            passwords,
            directory: directory.clone(),
            inventory: tokio::sync::Mutex::new(()),
            metrics,
            image_url,
            event_sink,
            metadata_url,
            sockets: Sockets::default(),
            stop: CancellationToken::new(),
        }));
        state::write_admin_context(&shared, &server_url).await?;
        let source = Arc::new(source::Source {
            shared: shared.clone(),
        });
        let boot_router = boot_http::router(boot_files, source, directory, recorder, &boot_url);
        Ok(Self {
            shared,
            writer,
            boot_listener,
            tls_listener,
            image_port,
            event_sink: sink_listener,
            metadata,
            dhcp,
            tftp,
            boot_router,
            bmc,
        })
    }

    /// Serves until `signal` comes, or a failure.
    ///
    /// # Errors
    /// The first failure of any part.
    pub async fn run(self, signal: impl Future<Output = ()>) -> anyhow::Result<()> {
        let stop = self.shared.stop.clone();
        // Events are still written while the servers drain.
        let stop_writer = CancellationToken::new();
        let mut tasks: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
        let shared = self.shared;
        let tls_router = tls_router(&shared);
        let boot_router = self.boot_router.merge(open_routes(&shared));
        let boot_router = boot_router.merge(config::on_boot_listener(&shared));
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
        if let Some(server) = self.image_port {
            spawn(&mut tasks, "the image port", server.run(stop.clone()));
        }
        if let Some(listener) = self.event_sink {
            let served = listener.run(event_sink::router(&shared), stop.clone());
            spawn(&mut tasks, "the event sink", served);
        }
        if let Some(listener) = self.metadata {
            let plain = shared.metadata_url.as_ref().is_some_and(|base| base.plain);
            let served = listener.run(metadata::router(&shared, !plain), stop.clone());
            spawn(&mut tasks, "the metadata service", served);
        }
        let sockets = Sockets::run(shared.clone(), stop.clone());
        spawn(&mut tasks, "sockets of nodes", sockets);
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
        let issuers = shared.issuers.clone();
        let revoking = issuers.run(shared.engine.changed(), stop.clone());
        spawn(&mut tasks, "revoking join tokens", revoking);
        let ingests = shared.ingests.clone().run(stop.clone());
        spawn(&mut tasks, "adding images", ingests);
        let metrics = shared.metrics.clone();
        let watched = metrics.run(shared.recorder.clone(), shared.engine.clone(), stop.clone());
        spawn(&mut tasks, "metrics", watched);
        let pruning =
            event::retention::run(shared.store.clone(), shared.settings.events, stop.clone());
        spawn(&mut tasks, "pruning of events", pruning);
        let forgetting = config::forget(shared.clone(), stop.clone());
        spawn(&mut tasks, "forgetting served configuration", forgetting);
        let renewal = renew_certificate(shared.clone(), stop.clone());
        spawn(&mut tasks, "certificate renewal", renewal);
        let mut writer = tokio::spawn(self.writer.run(stop_writer.clone()));

        let outcome = tokio::select! {
            () = signal => Ok(()),
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
    // Before anything is said: whoever reads that it serves may stop it at once.
    let signal = stop_signal()?;
    tokio::pin!(signal);
    let app = tokio::select! {
        app = App::build(settings) => app?,
        () = &mut signal => return Ok(()),
    };
    println!("{}", app.banner()?);
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "telling systemd failed");
    }
    app.run(signal).await
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

/// SIGTERM or SIGINT; they are caught from the call on, not from the first await.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn tls_router(shared: &Shared) -> Router {
    api::router(shared)
        .merge(agent::router().with_state(shared.clone()))
        .merge(node::router().with_state(shared.clone()))
        .merge(kairos::router().with_state(shared.clone()))
        .merge(config::on_tls_listener(shared))
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

/// Binds the event sink, and says how machines reach it; none when it is off.
async fn sink(settings: &Settings) -> anyhow::Result<Option<(Listener, String)>> {
    let Some(address) = settings.event_sink else {
        return Ok(None);
    };
    let listener = Listener::bind(address, None).await?.for_grpc();
    let reached = image_port::reached_at(listener.local_addr()?, settings.address.ip);
    Ok(Some((listener, reached.to_string())))
}

/// Binds the metadata service, and says how machines reach it; none when it is off.
async fn metadata_service(
    settings: &Settings,
    pki: &Pki,
) -> anyhow::Result<Option<(Listener, render::MetadataBase)>> {
    let Some(wanted) = settings.metadata else {
        return Ok(None);
    };
    let (scheme, tls) = match wanted.plain {
        true => ("http", None),
        false => ("https", Some(pki.server_config()?)),
    };
    let listener = Listener::bind(wanted.listen, tls).await?;
    let reached = image_port::reached_at(listener.local_addr()?, settings.address.ip);
    let base = render::MetadataBase {
        url: format!("{scheme}://{reached}"),
        plain: wanted.plain,
    };
    Ok(Some((listener, base)))
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

/// Where the daemon listens, for tests that bind port 0.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// TLS: API, agents, nodes.
    pub tls: SocketAddr,
    /// Plain HTTP: boot.
    pub boot: SocketAddr,
    /// Plain HTTP: images, if they are served so.
    pub images: Option<SocketAddr>,
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
            images: match &self.image_port {
                Some(port) => Some(port.local_addr()?),
                None => None,
            },
        })
    }

    /// What handlers hold, to drive the daemon from inside in tests.
    #[must_use]
    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }
}
