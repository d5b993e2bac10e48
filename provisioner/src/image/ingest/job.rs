//! One ingest: its parts put together, from the source to the catalog.

use std::sync::{Arc, Mutex, PoisonError};

use anneal_protocol::api::{IngestRequest, IngestSource, Problem};
use anneal_protocol::time::Millis;
use reqwest::Url;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::desk::Limits;
use super::fetch::{self, Download, Outcome, Target};
use super::line::{self, Failure, Head, ProofSlot, Work};
use super::memory::Memory;
use super::pipe::{self, pipe};
use super::progress::Progress;
use super::raw::{self, Rules};
use super::upload::Upload;
use super::{IngestError, detect, oci};
use crate::image::proof::{Checker, OciImage, Policy, Published};
use crate::image::{Catalog, Findings, ImageError, ImageRecord, SealRequest};

/// How an ingest ended.
pub type Ended = Result<ImageRecord, Problem>;

/// An ingest as others see it.
#[derive(Debug)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Name of the image to be.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it comes from, for people.
    pub source: String,
    /// API key that asked for it: only with it may data be sent.
    pub author: String,
    /// When it was asked for.
    pub created_at: Millis,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// Where data is sent to; none when the daemon fetches it.
    pub upload: Option<Upload>,
    pub(super) cancel: CancellationToken,
    pub(super) cancelled_by: Mutex<Option<String>>,
    pub(super) format: Mutex<Option<String>>,
    pub(super) ended: watch::Sender<Option<Ended>>,
}

impl Job {
    /// What the content turned out to be.
    #[must_use]
    pub fn format(&self) -> Option<String> {
        self.format
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How it ended; none while it goes on.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Waits for its end.
    pub async fn end(&self) -> Option<Ended> {
        let mut watch = self.ended.subscribe();
        let ended = watch.wait_for(Option::is_some).await.ok()?;
        ended.clone()
    }

    /// `name@version`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    fn cancelled(&self) -> IngestError {
        let by = self
            .cancelled_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        IngestError::Cancelled(match by.as_deref() {
            Some(by) => format!("cancelled by {by}, nothing was kept"),
            None => "the daemon stopped, nothing was kept".to_owned(),
        })
    }
}

/// What an ingest works with.
pub(super) struct Tools {
    pub catalog: Arc<Catalog>,
    pub policy: Arc<Policy>,
    pub limits: Limits,
    pub memory: Memory,
}

/// Where the bytes come from, ready to be opened.
enum Feed {
    Upload,
    Fetch(Box<Fetch>),
}

struct Fetch {
    target: Target,
    layer: Option<oci::Layer>,
}

/// Names and versions that the source told.
#[derive(Default)]
struct Told {
    names: Vec<String>,
    version: Option<String>,
}

/// Carries out an ingest. `published` is the sending end of a download's pipe; an upload holds
/// its own.
pub(super) async fn run(
    job: &Job,
    request: IngestRequest,
    tools: &Tools,
    published: Option<pipe::Sender>,
    receiver: pipe::Receiver,
) -> Result<ImageRecord, IngestError> {
    let prepared = tokio::select! {
        () = job.cancel.cancelled() => Err(job.cancelled()),
        prepared = prepare(&request, tools) => prepared,
    };
    let (feed, told, checker) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            if let Some(upload) = &job.upload {
                upload.give_up().await;
            }
            return Err(error);
        }
    };
    // Removed when this function ends, after the thread that uses it.
    let scratch = tools.catalog.scratch()?;
    let failure = Failure::default();
    // Also when this future is dropped: the thread must not wait for what nobody needs.
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let proof = ProofSlot::default();
    let (raw_sender, raw) = pipe();
    let (head_sender, head) = oneshot::channel();
    let work = Work {
        published: receiver,
        rules: Rules {
            max_size: tools.limits.max_size,
            tar: matches!(request.source, IngestSource::Oci(_)),
            memory: tools.memory.share(stop.clone()),
            spool: scratch.path().to_owned(),
        },
        checker,
        head: head_sender,
        raw: raw_sender,
        proof: Arc::clone(&proof),
        failure: failure.clone(),
    };
    let thread = tokio::task::spawn_blocking(move || line::run(work));
    let sealed = CancellationToken::new();
    let feeding = async {
        let fed = tokio::select! {
            () = job.cancel.cancelled() => Err(job.cancelled()),
            // Nobody reads any more.
            () = sealed.cancelled() => Ok(()),
            fed = feed_from(job, &feed, tools, published.as_ref()) => fed,
        };
        match (fed, published) {
            (Ok(()), Some(published)) => published.finish().await,
            (Ok(()), None) => {}
            // The failure is told before the pipe breaks on account of it.
            (Err(error), published) => {
                failure.set(error);
                stop.cancel();
                drop(published);
            }
        }
        if let Some(upload) = &job.upload {
            upload.give_up().await;
        }
    };
    let sealing = async {
        let ended = seal(job, &request, tools, told, head, raw, proof).await;
        // Told before the source is cut off on account of it.
        let image = ended.map_err(|error| failure.set(error)).ok();
        sealed.cancel();
        image
    };
    let ((), image) = tokio::join!(feeding, sealing);
    if let Err(error) = thread.await
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
    image.ok_or_else(|| failure.take().unwrap_or(IngestError::Broken))
}

async fn feed_from(
    job: &Job,
    feed: &Feed,
    tools: &Tools,
    published: Option<&pipe::Sender>,
) -> Result<(), IngestError> {
    match (feed, &job.upload, published) {
        (Feed::Fetch(fetch), _, Some(out)) => {
            let patience = tools.limits.patience;
            let mut download = Download::new(&fetch.target, patience, out, &job.progress);
            if let Some(layer) = &fetch.layer {
                download = download.expecting(layer.size, layer.expected()?);
            }
            match download.run().await? {
                Outcome::Complete | Outcome::Unwanted => Ok(()),
            }
        }
        (_, Some(upload), _) => upload.watch(tools.limits.upload_patience).await,
        _ => Err(IngestError::Invalid("there is no source".to_owned())),
    }
}

/// Everything that can be said before a byte of the image is read.
async fn prepare(
    request: &IngestRequest,
    tools: &Tools,
) -> Result<(Feed, Told, Option<Checker>), IngestError> {
    raw::space(tools.catalog.scratch()?.path(), 0)?;
    let guard = tools.limits.guard();
    let patience = tools.limits.patience;
    let mut told = Told::default();
    let mut beside = None;
    let feed = match &request.source {
        IngestSource::Upload(upload) => {
            told.names.extend(upload.file_name.clone());
            Feed::Upload
        }
        IngestSource::Url(source) => {
            let url = Url::parse(&source.url)
                .map_err(|error| IngestError::Invalid(format!("{:?}: {error}", source.url)))?;
            let web = fetch::client(guard, patience, source.ca.as_deref())?;
            told.names.push(url.path().to_owned());
            Feed::Fetch(Box::new(Fetch {
                target: Target::Url { web, url },
                layer: None,
            }))
        }
        IngestSource::Oci(source) => {
            let web = fetch::client(guard, patience, source.ca.as_deref())?;
            let (found, blob) = oci::resolve(web, source).await?;
            told.names.extend(found.layer.title.clone());
            told.names.push(found.reference.whole());
            told.version = found.version.clone();
            let layer = Some(found.layer.clone());
            beside = Some(found);
            Feed::Fetch(Box::new(Fetch {
                target: Target::Blob(Box::new(blob)),
                layer,
            }))
        }
    };
    let published = Published {
        oci: beside.as_ref().map(|found| OciImage {
            registry: &found.registry,
            digests: found.digests.clone(),
            layer: found.layer.digest.clone(),
        }),
    };
    let checker = match &request.proof {
        Some(proof) => Some(Checker::new(proof, &tools.policy, &published).await?),
        None => None,
    };
    Ok((feed, told, checker))
}

async fn seal(
    job: &Job,
    request: &IngestRequest,
    tools: &Tools,
    told: Told,
    head: oneshot::Receiver<Head>,
    raw: pipe::Receiver,
    proof: ProofSlot,
) -> Result<ImageRecord, IngestError> {
    let head = head.await.map_err(|_| IngestError::Broken)?;
    let mut names: Vec<&str> = told.names.iter().map(String::as_str).collect();
    names.extend(head.inner_name.as_deref());
    let detected = detect::detect(&head.bytes, &names);
    let system = detect::choose(
        request.os.as_deref(),
        request.os_version.as_deref(),
        request.force_os,
        &detected,
        told.version.as_deref(),
    )?;
    // What is published as it is has the size that its source told.
    let published = || job.progress.total().filter(|_| head.is_plain);
    let size = head.size.or_else(published);
    if let Some(limit) = Some(tools.limits.max_size).filter(|limit| size > Some(*limit)) {
        return Err(IngestError::TooLarge { limit });
    }
    *job.format.lock().unwrap_or_else(PoisonError::into_inner) = Some(head.format);
    let seal = SealRequest {
        name: request.name.clone(),
        version: request.version.clone(),
        os: Some(system.os),
        os_version: system.version,
        mutable: request.mutable_partitions.clone(),
        mirrors: request.mirrors.clone(),
        size,
    };
    let finish = move || {
        let proof = proof.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok::<_, ImageError>(Findings {
            proof,
            ..Findings::default()
        })
    };
    let progress = Arc::clone(&job.progress);
    let told = move |written| progress.set_written(written);
    Ok(tools.catalog.seal(seal, raw, finish, told).await?)
}
