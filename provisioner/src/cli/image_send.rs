//! Sending an image to the daemon, over as many connections as it takes.

use std::path::Path;
use std::time::{Duration, Instant};

use anneal_protocol::api::IngestView;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _, SeekFrom};

use super::client::{Client, Refused, Unreachable};
use super::ingest_meter::Meter;
use super::time;

/// What is sent at once, and kept until the daemon has it.
const PART: usize = 8 << 20;
/// How long the daemon may be away.
const AWAY_LIMIT: Duration = Duration::from_secs(300);

/// What is sent.
pub struct Input {
    reader: Box<dyn AsyncRead + Unpin>,
    /// Bytes in all, if that is known beforehand.
    size: Option<u64>,
    name: Option<String>,
    shown: String,
}

impl Input {
    /// Opens a file, a block device, a pipe, or `-` for standard input.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn open(path: &str) -> anyhow::Result<Self> {
        if path == "-" {
            let stdin = File::open("/dev/stdin").await;
            return Ok(Self {
                reader: Box::new(stdin.context("reading standard input")?),
                size: None,
                name: None,
                shown: "standard input".to_owned(),
            });
        }
        let doing = || format!("reading {path}");
        let mut file = File::open(path).await.with_context(doing)?;
        let kind = file.metadata().await.with_context(doing)?.file_type();
        if kind.is_dir() {
            bail!("{path} is a folder, a disk image was expected");
        }
        use std::os::unix::fs::FileTypeExt as _;
        let size = match kind.is_file() || kind.is_block_device() {
            true => {
                // Also right for a block device, whose metadata say 0.
                let size = file.seek(SeekFrom::End(0)).await.with_context(doing)?;
                file.rewind().await.with_context(doing)?;
                Some(size)
            }
            false => None,
        };
        if size == Some(0) {
            bail!("{path} is empty, a disk image was expected");
        }
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        Ok(Self {
            reader: Box::new(file),
            size,
            name: name.map(str::to_owned),
            shown: path.to_owned(),
        })
    }

    /// The file's name, if it has one.
    pub fn file_name(&self) -> Option<String> {
        self.name.clone()
    }

    /// The next part; empty at the end.
    async fn part(&mut self) -> anyhow::Result<Bytes> {
        let mut part = Vec::with_capacity(PART);
        while part.len() < PART {
            let mut rest = (&mut self.reader).take((PART - part.len()) as u64);
            let read = rest.read_buf(&mut part).await;
            if read.with_context(|| format!("reading {}", self.shown))? == 0 {
                break;
            }
        }
        Ok(part.into())
    }
}

/// Sends everything. The daemon may fail the ingest before the end: then this ends as well, and
/// looking at the ingest tells why.
///
/// # Errors
/// When the input cannot be read, or the daemon refuses or stays away.
pub async fn send(
    client: &Client,
    id: &str,
    mut input: Input,
    meter: &mut Meter,
) -> anyhow::Result<()> {
    let mut sent = 0;
    loop {
        let part = input.part().await?;
        let end = sent + part.len() as u64;
        if let Some(size) = input.size {
            if end > size || (part.is_empty() && end < size) {
                bail!("{} changed while it was read", input.shown);
            }
            if part.is_empty() {
                return Ok(());
            }
        }
        let total = match input.size {
            Some(size) => Some(size),
            None if part.is_empty() => Some(end),
            None => None,
        };
        if part.is_empty() && end == 0 {
            bail!("{} is empty, a disk image was expected", input.shown);
        }
        if !deliver(client, id, sent, &part, total).await? {
            return Ok(());
        }
        if part.is_empty() {
            return Ok(());
        }
        sent = end;
        meter.sent(sent, total);
    }
}

/// Delivers one part, whatever happens to connections. False when the ingest has ended.
async fn deliver(
    client: &Client,
    id: &str,
    start: u64,
    part: &Bytes,
    total: Option<u64>,
) -> anyhow::Result<bool> {
    let end = start + part.len() as u64;
    let mut from = start;
    let (mut tries, mut contact) = (0, Instant::now());
    loop {
        let rest = part.slice(usize::try_from(from - start).unwrap_or(0)..);
        let of = total.map_or("*".to_owned(), |total| total.to_string());
        let range = match rest.is_empty() {
            true => format!("bytes */{of}"),
            false => format!("bytes {from}-{}/{of}", end - 1),
        };
        let error = match client
            .put(&["images", "ingests", id, "data"], &range, rest)
            .await
        {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        if let Some(Refused(problem)) = error.downcast_ref() {
            match problem.code.as_str() {
                "upload-offset" | "upload-broken" => contact = Instant::now(),
                // The ingest says itself what it is about.
                "forbidden"
                | "unauthorized"
                | "ingest-not-found"
                | "upload-range-invalid"
                | "upload-total" => return Err(error),
                _ if problem.status < 500 => return Ok(false),
                _ => {}
            }
        }
        if contact.elapsed() > AWAY_LIMIT {
            return Err(error.context("the upload broke off and could not be continued"));
        }
        tokio::time::sleep(time::backoff(tries)).await;
        tries += 1;
        let ingest = look(client, id).await?;
        if ingest.problem.is_some() || ingest.image.is_some() {
            return Ok(false);
        }
        contact = Instant::now();
        if ingest.received > from {
            tries = 0;
        }
        from = ingest.received;
        if from < start || from > end {
            bail!(
                "the daemon has {from} bytes of the upload, which cannot be: {start} to {end} were sent"
            );
        }
        // All of the last part came, but perhaps not the news that it was the last.
        if from == end && !part.is_empty() && total != Some(end) {
            return Ok(true);
        }
    }
}

/// Looks at an ingest; waits for a daemon that is away.
///
/// # Errors
/// When it refuses, does not know the ingest any more, or stays away.
pub async fn look(client: &Client, id: &str) -> anyhow::Result<IngestView> {
    let (mut tries, start) = (0, Instant::now());
    loop {
        let error = match client.get(&["images", "ingests", id], &[]).await {
            Ok(ingest) => return Ok(ingest),
            Err(error) => error,
        };
        let passing = match error.downcast_ref::<Refused>() {
            Some(Refused(problem)) if problem.code == "ingest-not-found" => {
                bail!("the daemon was restarted and has nothing of this image: add it again");
            }
            Some(Refused(problem)) => problem.status >= 500,
            None => error.is::<Unreachable>() || error.is::<reqwest::Error>(),
        };
        if !passing || start.elapsed() > AWAY_LIMIT {
            return Err(error);
        }
        tokio::time::sleep(time::backoff(tries)).await;
        tries += 1;
    }
}
