//! How far adding an image is: a bar with rate and time left on a terminal, else a line now and
//! then. Both go to standard error, so that standard output holds nothing but the result.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anneal_protocol::api::IngestView;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::time;

/// How often a line is written where there is no terminal.
const TELL: Duration = Duration::from_secs(5);

/// Shows progress.
pub struct Meter {
    bar: Option<ProgressBar>,
    began: Instant,
    told: Instant,
}

impl Meter {
    /// A meter for this process's standard error.
    pub fn new() -> Self {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)));
        Self {
            bar,
            began: Instant::now(),
            told: Instant::now(),
        }
    }

    /// So many bytes have been sent.
    pub fn sent(&mut self, sent: u64, total: Option<u64>) {
        self.moved("sending", sent, total);
    }

    /// What the daemon says.
    pub fn show(&mut self, ingest: &IngestView) {
        match ingest.total {
            // Everything came; what is left is decoding and sealing.
            Some(total) if ingest.received >= total => {
                let what = format!("sealing, {} of disk so far", time::bytes(ingest.written));
                self.moved(&what, ingest.received, None);
            }
            total => self.moved("receiving", ingest.received, total),
        }
    }

    fn moved(&mut self, what: &str, done: u64, total: Option<u64>) {
        match &self.bar {
            Some(bar) => draw(bar, what, done, total),
            None => self.tell(what, done, total),
        }
    }

    fn tell(&mut self, what: &str, done: u64, total: Option<u64>) {
        if self.told.elapsed() < TELL {
            return;
        }
        self.told = Instant::now();
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let of = total.map_or_else(String::new, |total| format!(" of {}", time::bytes(total)));
        let left = total
            .filter(|total| done > 0 && *total > done)
            .map(|total| {
                let ms = u128::from(ms) * u128::from(total - done) / u128::from(done);
                format!(
                    ", {} left",
                    time::short(u64::try_from(ms).unwrap_or(u64::MAX))
                )
            });
        let line = format!(
            "{what}: {}{of}, {}{}\n",
            time::bytes(done),
            time::rate(done, ms),
            left.unwrap_or_default()
        );
        // Nobody is left to be told when this fails.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, what: &str, done: u64, total: Option<u64>) {
    let (style, length) = match total {
        Some(total) => (
            "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            total,
        ),
        None => ("{spinner} {msg}, {bytes} received", done),
    };
    if bar.length() != Some(length) || bar.message() != what {
        let style = ProgressStyle::with_template(style);
        bar.set_style(
            style
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        bar.set_length(length);
        bar.set_message(what.to_owned());
    }
    bar.set_position(done);
}
