//! Which consecutive frames are asked for together. Pure.

use std::ops::Range;

use anneal_image::Manifest;

/// About how many bytes one request asks for: enough to make its round trip small, not so much
/// that a source that fails takes long to notice or that the last request keeps all waiting.
pub const RUN_BYTES: u64 = 4 << 20;
/// Bytes of unwanted frames that are cheaper to receive than to ask around.
pub const GAP_BYTES: u64 = 32 << 10;

/// Cuts the wanted frames into runs, in the order of the disk. A run begins and ends with a
/// wanted frame; between them may be some that are not.
#[must_use]
pub fn runs(manifest: &Manifest, wanted: &[bool]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let frames = wanted.iter().enumerate().filter(|(_, wanted)| **wanted);
    for (index, _) in frames {
        let joined = runs.last_mut().filter(|run| {
            let gap: u64 = manifest.frames()[run.end..index]
                .iter()
                .map(|frame| u64::from(frame.length))
                .sum();
            let all = manifest.data_range(run.start..index + 1);
            gap <= GAP_BYTES && all.end - all.start <= RUN_BYTES
        });
        match joined {
            Some(run) => run.end = index + 1,
            None => runs.push(index..index + 1),
        }
    }
    runs
}
