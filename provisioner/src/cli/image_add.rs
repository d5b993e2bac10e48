//! `anneal image add`: from a file, standard input, a URL or a registry into the daemon's store.
//!
//! Files and standard input are sent in parts, each acknowledged before the next is read, so that
//! a broken connection costs nothing but time: what the daemon does not have is still here.
//! URLs and registries are the daemon's to fetch; here it is only watched.
//!
//! Invariant: when this command ends without the image, the ingest was cancelled, or the daemon
//! was not there to be told and gives an upload up by itself.

use std::path::PathBuf;
use std::time::Duration;

use anneal_protocol::api::{
    ImageView, IngestRequest, IngestSource, IngestState, IngestView, OciSource, UploadSource,
    UrlSource,
};
use anyhow::{Context as _, bail};
use clap::Args;

use super::client::{self, Client, Refused};
use super::image_proof::ProofArgs;
use super::image_send::{self, Input};
use super::ingest_meter::Meter;
use super::output::Table;
use super::time;

/// How often an ingest is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// What `image add` takes.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// `name@version`.
    #[arg(value_parser = super::image::name_and_version)]
    name: (String, String),
    /// File, http(s) URL, `oci://registry/repository:tag`, or `-` for standard input
    source: String,
    /// Its operating system, which says how it is configured; where the partitions tell, not needed
    #[arg(long)]
    os: Option<String>,
    /// Version of the operating system; where name or annotations tell, not needed
    #[arg(long)]
    os_version: Option<String>,
    /// Keep --os although the partitions are those of another system
    #[arg(long, requires = "os")]
    force_os: bool,
    /// Which image of an OCI index
    #[arg(long, value_name = "OS/ARCH", default_value = "linux/amd64")]
    platform: String,
    /// Digest, title or media type of the OCI layer with the disk, where that is not clear
    #[arg(long)]
    layer: Option<String>,
    /// Speak HTTP without TLS to the registry
    #[arg(long)]
    plain_http: bool,
    /// Certificates (PEM) to trust for the download, instead of those that the daemon's host trusts
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// User for the registry
    #[arg(long, value_name = "USER", requires = "registry_password_file")]
    registry_user: Option<String>,
    /// File with the user's password or token
    #[arg(long, value_name = "FILE", requires = "registry_user")]
    registry_password_file: Option<PathBuf>,
    /// Partition that is expected to change on machines: label, number or UUID
    #[arg(long, value_name = "PARTITION")]
    mutable_partition: Vec<String>,
    /// URL at which the same sealed data lies as well
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
    #[command(flatten)]
    proof: ProofArgs,
}

/// Adds an image.
///
/// # Errors
/// When the source cannot be read, the daemon refuses it or is away, or somebody cancels it.
pub async fn add(client: &Client, args: AddArgs) -> anyhow::Result<ImageView> {
    let (source, input) = source(&args).await?;
    let (name, version) = args.name.clone();
    let request = IngestRequest {
        name,
        version,
        os: args.os,
        os_version: args.os_version,
        force_os: args.force_os,
        source,
        proof: args.proof.request(&args.source).await?,
        unproven: args.proof.unproven,
        mutable_partitions: args.mutable_partition,
        mirrors: args.mirror,
    };
    let response = client.post(&["images", "ingests"], &request).await?;
    let ingest: IngestView = client::parse(response).await?;
    let mut meter = Meter::new();
    let carried = async {
        if let Some(input) = input {
            image_send::send(client, &ingest.id, input, &mut meter).await?;
        }
        watch(client, &ingest.id, &mut meter).await
    };
    let ended = tokio::select! {
        ended = carried => ended,
        stopped = stopped() => Err(stopped?),
    };
    meter.clear();
    let failed = match ended {
        Ok(image) => return Ok(image),
        Err(error) => error,
    };
    // The failure is what matters; a daemon that is away gives the upload up by itself.
    if failed.downcast_ref::<Ended>().is_none()
        && let Err(error) = client.delete(&["images", "ingests", &ingest.id]).await
        && error.downcast_ref::<Refused>().is_none()
    {
        return Err(failed.context(
            "the daemon could not be told to cancel; it gives the upload up after a while",
        ));
    }
    Err(failed)
}

/// SIGINT or SIGTERM, as the error that they are.
async fn stopped() -> anyhow::Result<anyhow::Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(anyhow::anyhow!("cancelled, nothing was kept"))
}

/// The ingest ended by itself and badly.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Ended(String);

async fn watch(client: &Client, id: &str, meter: &mut Meter) -> anyhow::Result<ImageView> {
    loop {
        let ingest = image_send::look(client, id).await?;
        meter.show(&ingest);
        match (ingest.state, ingest.image, ingest.problem) {
            (IngestState::Done, Some(image), _) => return Ok(image),
            (IngestState::Failed, _, problem) => {
                let text = problem.map_or_else(String::new, |problem| problem.detail);
                return Err(Ended(text).into());
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// What was typed as source, for the daemon, and what is to be sent to it.
async fn source(args: &AddArgs) -> anyhow::Result<(IngestSource, Option<Input>)> {
    let text = args.source.as_str();
    let ca = match &args.ca {
        Some(path) => Some(
            tokio::fs::read_to_string(path)
                .await
                .with_context(|| format!("reading {}", path.display()))?,
        ),
        None => None,
    };
    if let Some(reference) = text.strip_prefix("oci://") {
        let password = match &args.registry_password_file {
            Some(path) => {
                let text = tokio::fs::read_to_string(path).await;
                let text = text.with_context(|| format!("reading {}", path.display()))?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            None => None,
        };
        let source = OciSource {
            reference: reference.to_owned(),
            platform: Some(args.platform.clone()),
            layer: args.layer.clone(),
            plain_http: args.plain_http,
            ca,
            username: args.registry_user.clone(),
            password,
        };
        return Ok((IngestSource::Oci(source), None));
    }
    if args.layer.is_some() || args.plain_http || args.registry_user.is_some() {
        bail!("--layer, --plain-http and --registry-user are for oci:// sources, {text} is none");
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        let url = text.to_owned();
        return Ok((IngestSource::Url(UrlSource { url, ca }), None));
    }
    if ca.is_some() {
        bail!("--ca is for downloads, {text} is none");
    }
    if let Some((scheme, _)) = text.split_once("://") {
        bail!("{scheme}:// is no source: give a file, an http(s) URL, oci://REFERENCE or -");
    }
    let input = Input::open(text).await?;
    let file_name = input.file_name();
    Ok((
        IngestSource::Upload(UploadSource { file_name }),
        Some(input),
    ))
}

/// Ingests for people.
pub fn table(ingests: &[IngestView]) -> String {
    let mut table = Table::new(["IMAGE", "STATE", "RECEIVED", "SEALED", "FROM", "BY", "ID"]);
    for ingest in ingests {
        let state = format!("{:?}", ingest.state).to_lowercase();
        let received = match ingest.total {
            Some(total) => format!("{} of {}", time::bytes(ingest.received), time::bytes(total)),
            None => time::bytes(ingest.received),
        };
        let (sealed, from) = (time::bytes(ingest.written), ingest.source.as_str());
        let (name, by, id) = (&ingest.name, &ingest.requested_by, &ingest.id);
        table.row([name, state.as_str(), &received, &sealed, from, by, id]);
    }
    table.to_string()
}
