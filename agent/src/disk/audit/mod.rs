//! The `audit-disk` step: reads the disk, writes nothing, and says where it differs from the
//! sealed image.
//!
//! Every frame is read and compared by its digest. A frame that differs and touches what must be
//! identical is fetched from the image and compared byte by byte, as far as [`MAX_FETCHED`]
//! allows; a frame that lies across a border of two regions always is, because its digest alone
//! cannot say which of them differs.
//!
//! Not here: judging what a drift means, and signing. That is the daemon's.

mod compare;
mod scan;

use std::ops::Range;
use std::time::Instant;

use anneal_image::{Manifest, Table, decode_frame};
use anneal_protocol::agent::{FailureCode, StepFailure};
use anneal_protocol::audit::{AuditResult, RegionDrift};
use anneal_protocol::disk::DiskSelector;
use tokio_util::sync::CancellationToken;

use super::{Found, choose, stream};
use crate::client::{CallError, insist};
use crate::step::{Context, abandoned, blocking, fail, fail_for_now};

/// Frames inside one region that are looked at byte by byte.
const MAX_FETCHED: usize = 64;
/// How long a frame is asked for while the daemon is away.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// Compares the disk that the selector names with an image.
///
/// # Errors
/// See [`FailureCode`]; the disk is as it was.
pub async fn run(
    context: &Context,
    image: &str,
    selector: DiskSelector,
    cancel: &CancellationToken,
) -> Result<AuditResult, StepFailure> {
    let begin = Instant::now();
    let options = context.options.clone();
    let disk = blocking(move || choose(&options, &selector)).await?.disk;
    let manifest = tokio::select! {
        manifest = stream::manifest(context, image) => manifest?,
        () = cancel.cancelled() => return Err(abandoned()),
    };
    if disk.info.size < manifest.size() {
        let text = format!(
            "{} has {} bytes, the image {}: it cannot hold this image",
            disk.info.name,
            disk.info.size,
            manifest.size()
        );
        return Err(fail(FailureCode::DiskTooSmall, text));
    }
    let (scanned, with, stop) = (disk.clone(), manifest.clone(), cancel.clone());
    let scan = blocking(move || scan::scan(&scanned, &with, &stop)).await?;
    let mut audit = Audit {
        context,
        image,
        manifest: &manifest,
        disk: disk.clone(),
        regions: compare::regions(&manifest),
        transferred: 0,
        read: scan.read,
    };
    tokio::select! {
        outcome = audit.look_closer(&scan.differing) => outcome?,
        () = cancel.cancelled() => return Err(abandoned()),
    }
    let found = Table::read(&scan.head, disk.info.size);
    compare::judge_table(&mut audit.regions, manifest.table(), found.as_ref());
    Ok(AuditResult {
        disk: disk.info.name,
        serial: disk.info.serial,
        image: image.to_owned(),
        drifted: audit.regions.iter().any(|region| region.drifted),
        frames: manifest.frames().len() as u64,
        frames_differing: scan.differing.len() as u64,
        bytes_read: audit.read,
        transferred: audit.transferred,
        duration_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        regions: audit.regions,
    })
}

struct Audit<'a> {
    context: &'a Context,
    image: &'a str,
    manifest: &'a Manifest,
    disk: Found,
    regions: Vec<RegionDrift>,
    transferred: u64,
    read: u64,
}

impl Audit<'_> {
    async fn look_closer(&mut self, differing: &[usize]) -> Result<(), StepFailure> {
        let mut left = MAX_FETCHED;
        for &index in differing {
            let range = self.manifest.raw_range(index);
            let must = compare::must_be_compared(&self.regions, &range);
            if !must && (left == 0 || !compare::may_be_compared(&self.regions, &range)) {
                compare::add_whole(&mut self.regions, &range);
                continue;
            }
            if !must {
                left -= 1;
            }
            let image = self.fetch(index).await?;
            let (from, place) = (self.disk.clone(), range.clone());
            let disk = blocking(move || scan::read_range(&from, place)).await?;
            self.read += disk.len() as u64;
            compare::add_bytes(&mut self.regions, range.start, &image, &disk);
        }
        Ok(())
    }

    /// What the image has in a frame, verified.
    async fn fetch(&mut self, index: usize) -> Result<Vec<u8>, StepFailure> {
        if self.manifest.frames()[index].is_zero() {
            return Ok(vec![0; self.manifest.raw_length(index)]);
        }
        let range = self.manifest.data_range(index..index + 1);
        let data = fetch_range(self.context, self.image, range).await?;
        self.transferred += data.len() as u64;
        let mut raw = Vec::new();
        decode_frame(self.manifest, index, &data, &mut raw)
            .map_err(|e| fail_for_now(FailureCode::ImageCorrupt, e.to_string()))?;
        Ok(raw)
    }
}

async fn fetch_range(
    context: &Context,
    image: &str,
    range: Range<u64>,
) -> Result<Vec<u8>, StepFailure> {
    let fetched = insist("fetch a frame", Some(PATIENCE), async || {
        context.client.image_range(image, range.clone()).await
    });
    fetched.await.map_err(|error: CallError| error.into())
}
