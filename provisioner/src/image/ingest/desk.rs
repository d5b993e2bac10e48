//! The desk where ingests are asked for, watched and cancelled.
//!
//! Invariants: a name has one ingest at a time; there are at most [`Limits::at_once`] of them,
//! so that memory stays bounded; each is a task that [`Ingests::run`] joins. They live in this
//! process only: what a stopped daemon had not finished is not an image, and leaves nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anneal_protocol::api::{IngestRequest, IngestSource, Role};
use reqwest::Url;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::IngestError;
use super::fetch::Patience;
use super::guard::{Guard, shown};
use super::job::{self, Job, Tools};
use super::memory::Memory;
use super::pipe::{self, pipe};
use super::upload::Upload;
use crate::clock::now;
use crate::event::{Event, Recorder};
use crate::http::problem::ApiError;
use crate::image::proof::Policy;
use crate::image::{Catalog, SealRequest};
use crate::settings::ImageSettings;

/// What ingests may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest raw disk, bytes.
    pub max_size: u64,
    /// Whether the daemon's own host and link may be fetched from.
    pub allow_local: bool,
    /// How long an upload may be silent.
    pub upload_patience: Duration,
    /// How patient downloads are.
    pub patience: Patience,
    /// Ingests at once.
    pub at_once: usize,
    /// Ended ingests that are remembered.
    pub remembered: usize,
}

/// Each takes up to two threads and two batches of frames; decoders share their memory.
const AT_ONCE: usize = 4;
const REMEMBERED: usize = 100;

impl Limits {
    /// The limits that the settings tell.
    #[must_use]
    pub fn new(settings: &ImageSettings) -> Self {
        Self {
            max_size: settings.max_size,
            allow_local: settings.allow_local_sources,
            upload_patience: settings.upload_patience,
            patience: Patience::default(),
            at_once: AT_ONCE,
            remembered: REMEMBERED,
        }
    }

    /// The guard of downloads.
    #[must_use]
    pub fn guard(self) -> Guard {
        Guard {
            allow_local: self.allow_local,
        }
    }
}

struct Start {
    job: Arc<Job>,
    request: IngestRequest,
    published: Option<pipe::Sender>,
    receiver: pipe::Receiver,
}

/// All ingests of this daemon.
pub struct Ingests {
    tools: Tools,
    recorder: Recorder,
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
    starts: mpsc::UnboundedSender<Start>,
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Start>>>,
}

impl std::fmt::Debug for Ingests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingests").finish_non_exhaustive()
    }
}

impl Ingests {
    /// A desk for `catalog`. Nothing goes on before [`Ingests::run`].
    #[must_use]
    pub fn new(
        catalog: Arc<Catalog>,
        policy: Arc<Policy>,
        recorder: Recorder,
        limits: Limits,
    ) -> Self {
        let (starts, inbox) = mpsc::unbounded_channel();
        Self {
            tools: Tools {
                catalog,
                policy,
                limits,
                memory: Memory::default(),
            },
            recorder,
            jobs: Mutex::default(),
            starts,
            inbox: Mutex::new(Some(inbox)),
        }
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an ingest for the API key `author`.
    ///
    /// # Errors
    /// Whatever can be refused at once: the request itself, the proof's absence, a name that is
    /// being added already, too many ingests.
    pub fn begin(
        &self,
        request: IngestRequest,
        author: &str,
        role: Role,
    ) -> Result<Arc<Job>, ApiError> {
        let reference = format!("{}@{}", request.name, request.version);
        self.tools
            .policy
            .admit(&reference, request.proof.as_ref(), request.unproven, role)?;
        self.check(&request)?;
        let progress = Arc::default();
        let (sender, receiver) = pipe();
        let (upload, published) = match &request.source {
            IngestSource::Upload(_) => (Some(Upload::new(sender, Arc::clone(&progress))), None),
            _ => (None, Some(sender)),
        };
        let job = Arc::new(Job {
            id: uuid::Uuid::now_v7().to_string(),
            name: request.name.clone(),
            version: request.version.clone(),
            source: described(&request.source),
            author: author.to_owned(),
            created_at: now(),
            progress,
            upload,
            cancel: CancellationToken::new(),
            cancelled_by: Mutex::default(),
            format: Mutex::default(),
            ended: watch::Sender::new(None),
        });
        self.enter(&job)?;
        let start = Start {
            job: Arc::clone(&job),
            request,
            published,
            receiver,
        };
        if self.starts.send(start).is_err() {
            self.jobs().remove(&job.id);
            return Err(busy("the daemon is stopping: try again when it is back"));
        }
        Ok(job)
    }

    fn check(&self, request: &IngestRequest) -> Result<(), ApiError> {
        let seal = SealRequest {
            name: request.name.clone(),
            version: request.version.clone(),
            os: request.os.clone(),
            os_version: request.os_version.clone(),
            ..SealRequest::default()
        };
        seal.check()?;
        if let IngestSource::Url(source) = &request.source {
            let url = Url::parse(&source.url).map_err(|error| {
                IngestError::Invalid(format!("{:?} is not a URL: {error}", source.url))
            })?;
            let refused = |error: super::guard::GuardError| IngestError::Refused(error.to_string());
            self.tools.limits.guard().url(&url).map_err(refused)?;
        }
        Ok(())
    }

    /// Gives the job its place, if there is one.
    fn enter(&self, job: &Arc<Job>) -> Result<(), ApiError> {
        let mut jobs = self.jobs();
        let active = || jobs.values().filter(|job| job.ended().is_none());
        let same = |other: &&Arc<Job>| other.name == job.name && other.version == job.version;
        if let Some(other) = active().find(same) {
            return Err(ApiError::conflict(
                "image-being-added",
                format!(
                    "image {} is being added already by {} (ingest {}): wait for it or cancel it",
                    job.reference(),
                    other.author,
                    other.id
                ),
            ));
        }
        let count = active().count();
        if count >= self.tools.limits.at_once {
            return Err(busy(&format!(
                "{count} images are being added, which is as many as may be at once: wait for one of them"
            )));
        }
        jobs.insert(job.id.clone(), Arc::clone(job));
        Ok(())
    }

    /// An ingest by its id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Job>> {
        self.jobs().get(id).cloned()
    }

    /// All that are remembered, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Job>> {
        self.jobs().values().cloned().collect()
    }

    /// Cancels one that goes on; forgets one that has ended.
    pub fn cancel(&self, job: &Job, by: &str) {
        if job.ended().is_some() {
            self.jobs().remove(&job.id);
            return;
        }
        job.cancelled_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| by.to_owned());
        job.cancel.cancel();
    }

    /// Carries out what is asked for until `stop`; what goes on then is cancelled.
    ///
    /// # Errors
    /// When it runs already, or an ingest panicked.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let inbox = self
            .inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut inbox = inbox.ok_or_else(|| anyhow::anyhow!("ingests run already"))?;
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => ended?,
                Some(start) = inbox.recv() => {
                    let desk = Arc::clone(&self);
                    tasks.spawn(async move { desk.carry_out(start).await });
                }
            }
        }
        inbox.close();
        for job in self.list() {
            job.cancel.cancel();
        }
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        Ok(())
    }

    async fn carry_out(&self, start: Start) {
        let Start {
            job,
            request,
            published,
            receiver,
        } = start;
        let unproven = request.proof.is_none();
        let ended = job::run(&job, request, &self.tools, published, receiver).await;
        let event = match &ended {
            Ok(record) => {
                let proof = match &record.proof {
                    Some(proof) => format!("proven by {}", proof.method),
                    None => "UNPROVEN".to_owned(),
                };
                let message = format!(
                    "{} added the image {}, {proof}",
                    job.author,
                    job.reference()
                );
                Event::new("image.added", message).data(serde_json::json!({
                    "id": record.id, "sha256": record.sha256, "source": job.source,
                    "proof": record.proof, "unproven": unproven,
                }))
            }
            Err(error) => {
                let error = anyhow_text(error);
                let message = format!("{} did not get added: {error}", job.reference());
                tracing::warn!(image = job.reference(), error, "an image was not added");
                Event::new("image.not-added", message)
                    .data(serde_json::json!({ "source": job.source, "by": job.author }))
            }
        };
        self.recorder.record(event);
        let ended = ended.map_err(|error| ApiError::from(error).problem());
        job.ended.send_replace(Some(ended));
        self.forget();
    }

    /// Forgets the oldest ended ones.
    fn forget(&self) {
        let mut jobs = self.jobs();
        let ended = jobs.values().filter(|job| job.ended().is_some());
        let ids: Vec<String> = ended.map(|job| job.id.clone()).collect();
        for id in ids.iter().rev().skip(self.tools.limits.remembered) {
            jobs.remove(id);
        }
    }
}

fn anyhow_text(error: &IngestError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

fn busy(text: &str) -> ApiError {
    ApiError::new(
        axum::http::StatusCode::TOO_MANY_REQUESTS,
        "ingests-busy",
        text,
    )
}

/// A source for people: nothing secret in it.
fn described(source: &IngestSource) -> String {
    match source {
        IngestSource::Upload(upload) => match &upload.file_name {
            Some(name) => format!("upload of {}", name.replace(char::is_control, " ")),
            None => "upload".to_owned(),
        },
        IngestSource::Url(source) => match Url::parse(&source.url) {
            Ok(url) => shown(&url),
            Err(_) => "URL".to_owned(),
        },
        IngestSource::Oci(source) => {
            format!("oci://{}", source.reference.trim_start_matches("oci://"))
        }
    }
}

impl From<IngestError> for ApiError {
    fn from(error: IngestError) -> Self {
        let code = error.code();
        match (error, code) {
            (IngestError::Image(error), _) => error.into(),
            (IngestError::Proof(error), _) => error.into(),
            (error, Some(code)) => Self::invalid(code, error.to_string()),
            (error, None) => Self::internal(&anyhow_text(&error)),
        }
    }
}
