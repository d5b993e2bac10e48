//! Fetches the data of an image over one connection at a time, and goes on where it stopped
//! when the connection breaks.

use std::time::{Duration, Instant};

use anneal_protocol::agent::{FailureCode, StepFailure};
use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;

use super::ByteSender;
use crate::client::{CallError, Client};
use crate::step::{fail, fail_for_now};

/// No byte for this long: the connection is taken to be dead.
const STALL: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How patient to be; tests are less so.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// See [`STALL`].
    pub stall: Duration,
    /// No byte over any connection for this long: the step fails.
    pub give_up: Duration,
    /// Pause after the first fruitless connection; doubles.
    pub pause: Duration,
}

impl Patience {
    /// For a step's `stall_timeout`.
    #[must_use]
    pub fn giving_up_after(give_up: Duration) -> Self {
        Self {
            stall: STALL.min(give_up),
            give_up,
            pause: FIRST_PAUSE,
        }
    }
}

/// Sends bytes 0 to `size` of the image's data, then ends; or sends why it cannot.
pub async fn run(client: Client, image: String, size: u64, to: ByteSender, patience: Patience) {
    let mut at = 0;
    let mut fruitless = 0;
    let mut heard = Instant::now();
    while at < size {
        let before = at;
        let stall = patience.stall;
        let end = connection(&client, &image, size, &mut at, &mut heard, &to, stall).await;
        let failure = match end {
            End::Done | End::NobodyListens => return,
            End::Final(failure) => Some(failure),
            End::Broken(failure) => {
                fruitless = if at > before { 0 } else { fruitless + 1 };
                tracing::warn!(at, size, "image data: {}", failure.message);
                (heard.elapsed() >= patience.give_up).then_some(failure)
            }
        };
        if let Some(failure) = failure {
            // Nobody listens any more? Then nobody needs to know.
            let _ = to.send(Err(failure)).await;
            return;
        }
        let pause = patience.pause * 2_u32.pow(fruitless.min(8));
        tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
    }
}

/// How one connection ended.
enum End {
    /// All bytes came.
    Done,
    NobodyListens,
    /// Trying again can help.
    Broken(StepFailure),
    /// It cannot.
    Final(StepFailure),
}

async fn connection(
    client: &Client,
    image: &str,
    size: u64,
    at: &mut u64,
    heard: &mut Instant,
    to: &ByteSender,
    stall: Duration,
) -> End {
    let mut response = match client.image_data(image, *at).await {
        Ok(response) => response,
        Err(CallError::Refused { status: 416, .. }) => return End::Final(too_short(*at, size)),
        Err(error @ CallError::Refused { .. }) => return End::Final(error.into()),
        Err(error @ CallError::Unavailable(_)) => return End::Broken(error.into()),
    };
    if let Err(failure) = check(&response, *at, size) {
        return End::Final(failure);
    }
    loop {
        let chunk = match tokio::time::timeout(stall, response.chunk()).await {
            Err(_) => {
                return End::Broken(fail_for_now(
                    FailureCode::ImageStalled,
                    format!(
                        "the image stream stalled: no data for {} s at byte {at} of {size}",
                        heard.elapsed().as_secs()
                    ),
                ));
            }
            // The header said how much would come; this is a broken connection, not a short
            // image, but if it happens again at the same byte there is no more to be had.
            Ok(Err(error)) => return End::Broken(broken(*at, size, &error)),
            Ok(Ok(None)) => return End::Broken(too_short(*at, size)),
            Ok(Ok(Some(chunk))) => chunk,
        };
        let wanted = usize::try_from(size - *at).unwrap_or(usize::MAX);
        let chunk: Bytes = chunk.slice(..chunk.len().min(wanted));
        *at += chunk.len() as u64;
        *heard = Instant::now();
        if to.send(Ok(chunk)).await.is_err() {
            return End::NobodyListens;
        }
        if *at == size {
            return End::Done;
        }
    }
}

/// The answer must be the bytes asked for, of data that is as long as the manifest says.
fn check(response: &reqwest::Response, at: u64, size: u64) -> Result<(), StepFailure> {
    let (start, total) = match response.status() {
        StatusCode::PARTIAL_CONTENT => response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| content_range(value.to_str().ok()?))
            .ok_or_else(|| {
                fail(
                    FailureCode::Server,
                    "the server answers without a usable Content-Range",
                )
            })?,
        _ => (0, response.content_length()),
    };
    if start != at {
        return Err(fail(
            FailureCode::Server,
            format!("the server sends image data from byte {start}, not from {at}"),
        ));
    }
    match total {
        Some(total) if total < size => Err(too_short(total, size)),
        Some(total) if total > size => Err(fail(
            FailureCode::ImageCorrupt,
            format!("the server has {total} bytes of image data, the manifest says {size}"),
        )),
        _ => Ok(()),
    }
}

/// `bytes 5-9/10` -> 5 and 10 (RFC 9110, 14.4).
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

fn too_short(there: u64, size: u64) -> StepFailure {
    fail_for_now(
        FailureCode::ImageTruncated,
        format!("image data ends at byte {there}, the manifest says {size}"),
    )
}

fn broken(at: u64, size: u64, error: &reqwest::Error) -> StepFailure {
    let text = format!("connection broke at byte {at} of {size}: {error}");
    fail_for_now(FailureCode::Server, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("bytes */10"), None);
        assert_eq!(content_range("lines 1-2/3"), None);
    }
}
