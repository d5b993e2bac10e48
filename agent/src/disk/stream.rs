//! The `stream-image` step: manifest, disk, fetch, write, reread the partition table.

use std::io::{Read as _, Take};
use std::time::{Duration, Instant};

use anneal_image::{
    FrameError, FrameReader, Manifest, ManifestError, PublicKey, SignedManifest, WritePlan,
};
use anneal_protocol::agent::{FailureCode, StepFailure, StreamResult, Verify};
use anneal_protocol::disk::DiskSelector;
use tokio_util::sync::CancellationToken;

use super::device::Disk as _;
use super::write::{FrameSource, write_image};
use super::{Chosen, choose, safety};
use crate::client::{Client, insist};
use crate::io::{ByteSender, ByteStream, fetch};
use crate::report;
use crate::step::{Context, abandoned, blocking, fail, fail_for_now, still_wanted};

/// How long the manifest is asked for while the daemon is away.
const MANIFEST_PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// Puts an image on the disk that the selector names.
///
/// # Errors
/// See [`FailureCode`]; after any of them the disk is not bootable, or untouched.
pub async fn run(
    context: &Context,
    image: &str,
    selector: DiskSelector,
    verify: Verify,
    stall_timeout: Duration,
    cancel: &CancellationToken,
) -> Result<StreamResult, StepFailure> {
    let begin = Instant::now();
    let options = context.options.clone();
    let chosen = blocking(move || choose(&options, &selector)).await?;
    let manifest = tokio::select! {
        manifest = manifest(context, image) => manifest?,
        () = cancel.cancelled() => return Err(abandoned()),
    };
    tracing::info!(
        disk = chosen.disk.info.name,
        serial = chosen.disk.info.serial,
        image,
        bytes = manifest.size(),
        "writing the image"
    );
    let (sender, stream) = ByteStream::channel();
    let fetching = tokio::spawn(fetch_until(
        cancel.clone(),
        context.client.clone(),
        image.to_owned(),
        manifest.file_size(),
        sender,
        fetch::Patience::giving_up_after(stall_timeout),
    ));
    let (image, cancel) = (image.to_owned(), cancel.clone());
    let result = blocking(move || write(&chosen, &image, &manifest, stream, verify, &cancel)).await;
    // The writer is gone, so nobody listens: whatever is still being fetched is not wanted.
    fetching.abort();
    let _ = fetching.await;
    result.map(|result| StreamResult {
        duration_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..result
    })
}

/// Fetches until the step is abandoned, so that a writer that waits for bytes learns of it.
async fn fetch_until(
    cancel: CancellationToken,
    client: Client,
    image: String,
    size: u64,
    to: ByteSender,
    patience: fetch::Patience,
) {
    tokio::select! {
        () = fetch::run(client, image, size, to.clone(), patience) => {}
        () = cancel.cancelled() => {
            // The writer may have noticed already and be gone.
            let _ = to.send(Err(abandoned())).await;
        }
    }
}

async fn manifest(context: &Context, image: &str) -> Result<Manifest, StepFailure> {
    let keys = context.image_keys.iter();
    let keys = keys
        .map(|key| PublicKey::from_hex(key))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| fail(FailureCode::ManifestInvalid, format!("image key: {e}")))?;
    let text = insist("fetch the manifest", Some(MANIFEST_PATIENCE), async || {
        context.client.manifest(image).await
    })
    .await?;
    SignedManifest::open(&text, &keys, image).map_err(|e| manifest_failure(image, &e))
}

fn manifest_failure(image: &str, error: &ManifestError) -> StepFailure {
    fail(
        FailureCode::ManifestInvalid,
        format!("{error} (image {image})"),
    )
}

fn write(
    chosen: &Chosen,
    image: &str,
    manifest: &Manifest,
    mut stream: ByteStream,
    verify: Verify,
    cancel: &CancellationToken,
) -> Result<StreamResult, StepFailure> {
    let disk = &chosen.disk;
    let mut device = safety::open(chosen, manifest.size())?;
    let plan = WritePlan::new(manifest, device.size()).map_err(|e| {
        fail(
            FailureCode::DiskTooSmall,
            format!("{}: {e}", disk.info.name),
        )
    })?;
    let failure = stream.failure();
    let transferred = stream.counter();
    let mut source = StreamSource {
        // The seek table after the frames is for others.
        frames: FrameReader::new(
            manifest,
            0..manifest.frames().len(),
            (&mut stream).take(manifest.data_size()),
        ),
        failure,
    };
    let written = write_image(
        manifest,
        &plan,
        &mut source,
        &mut device,
        verify,
        &mut |done, total| {
            report::progress(done, total);
            still_wanted(cancel)
        },
    )?;
    device.reread_partitions()?;
    tracing::info!(
        disk = disk.info.name,
        written = written.bytes,
        "image written"
    );
    Ok(StreamResult {
        disk: disk.info.name.clone(),
        serial: disk.info.serial.clone(),
        image: image.to_owned(),
        bytes: manifest.size(),
        written: written.bytes,
        transferred: transferred.load(std::sync::atomic::Ordering::Relaxed),
        duration_ms: 0,
        read_back_sha256: written.read_back_sha256,
    })
}

/// All frames over one connection, in order.
struct StreamSource<'a> {
    frames: FrameReader<'a, Take<&'a mut ByteStream>>,
    /// Why the bytes stopped, when the fetcher knows better than the reader.
    failure: crate::io::FailureSlot,
}

impl FrameSource for StreamSource<'_> {
    fn next(&mut self, raw: &mut Vec<u8>) -> Result<Option<usize>, StepFailure> {
        self.frames
            .next_raw(raw)
            .map_err(|error| self.failure.take().unwrap_or_else(|| frame_failure(&error)))
    }
}

fn frame_failure(error: &FrameError) -> StepFailure {
    let code = match error {
        FrameError::Truncated { .. } => FailureCode::ImageTruncated,
        FrameError::Corrupt { .. } | FrameError::TooLong { .. } => FailureCode::ImageCorrupt,
        FrameError::Read { .. } => FailureCode::Server,
    };
    fail_for_now(code, error.to_string())
}
