//! Progress and log lines on their way to the daemon: bounded, batched, never in the way.
//!
//! Whoever works calls [`progress`] or logs through `tracing`; both only touch memory. [`pump`]
//! sends what has gathered about once a second, and learns from the answers whether the step is
//! still wanted. When the daemon is away, lines wait; when there are too many, the oldest go and
//! are counted.
//!
//! The buffer is global because `tracing` layers and panic hooks are.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anneal_protocol::agent::{
    FailureCode, LogLine, OrderId, Outcome, Progress, Report, StepFailure, StepResult,
};
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};

use crate::client::Client;

/// Lines kept while they cannot be sent.
const MAX_LINES: usize = 500;
/// Lines of one report.
const BATCH: usize = 100;
/// Longest line, in bytes.
const MAX_LINE: usize = 2000;
const EVERY: Duration = Duration::from_secs(1);
/// With nothing to say, ask whether the step is still wanted this often.
const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Buffer {
    /// The order being carried out; without one nothing is kept.
    order: Option<OrderId>,
    progress: Option<Progress>,
    lines: VecDeque<LogLine>,
    dropped: u64,
    /// How to reach the daemon from a panic.
    way_out: Option<(Client, String)>,
}

static BUFFER: Mutex<Buffer> = Mutex::new(Buffer {
    order: None,
    progress: None,
    lines: VecDeque::new(),
    dropped: 0,
    way_out: None,
});

fn buffer() -> MutexGuard<'static, Buffer> {
    BUFFER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buffer {
    fn push(&mut self, line: LogLine) {
        if self.lines.len() == MAX_LINES {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back(line);
    }

    /// What to send now; nothing when nothing is new and no heartbeat is due.
    fn take(&mut self, boot_id: &str, heartbeat: bool) -> Option<Report> {
        let order = self.order.clone()?;
        let quiet = self.progress.is_none() && self.lines.is_empty() && self.dropped == 0;
        if quiet && !heartbeat {
            return None;
        }
        let count = self.lines.len().min(BATCH);
        Some(Report {
            order,
            boot_id: boot_id.to_owned(),
            progress: self.progress.take(),
            logs: self.lines.drain(..count).collect(),
            logs_dropped: std::mem::take(&mut self.dropped),
        })
    }

    /// Puts back what could not be sent, unless another order has begun.
    fn restore(&mut self, report: Report) {
        if self.order.as_ref() != Some(&report.order) {
            return;
        }
        self.progress = self.progress.or(report.progress);
        self.dropped += report.logs_dropped;
        for line in report.logs.into_iter().rev() {
            if self.lines.len() == MAX_LINES {
                self.dropped += 1;
            } else {
                self.lines.push_front(line);
            }
        }
    }
}

/// From now on, lines and progress belong to this order.
pub fn begin(order: &OrderId) {
    let mut buffer = buffer();
    buffer.order = Some(order.clone());
    buffer.progress = None;
    buffer.lines.clear();
    buffer.dropped = 0;
}

/// Says how far the step is, and at how many bytes per second of late (0: not measured).
pub fn progress(done: u64, total: u64, rate: u64) {
    buffer().progress = Some(Progress { done, total, rate });
}

/// Sends until `stop`, then once more what is left, and ends. Cancels `abandon` when the daemon
/// no longer wants the step.
pub async fn pump(
    client: Client,
    boot_id: String,
    abandon: CancellationToken,
    stop: CancellationToken,
) {
    let mut silent = Duration::ZERO;
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(EVERY) => false,
            () = stop.cancelled() => true,
        };
        let report = buffer().take(&boot_id, silent >= HEARTBEAT && !last);
        silent += EVERY;
        if let Some(report) = report {
            silent = Duration::ZERO;
            match client.report(&report).await {
                Ok(ack) if ack.abandon => abandon.cancel(),
                Ok(_) => {}
                Err(error) => {
                    // To the console only: a line about lines would feed itself.
                    if !last {
                        eprintln!("progress report not sent: {error}");
                    }
                    buffer().restore(report);
                }
            }
        }
        if last {
            buffer().order = None;
            return;
        }
    }
}

/// How [`last_words`] reaches the daemon.
pub fn remember_way_out(client: Client, boot_id: &str) {
    buffer().way_out = Some((client, boot_id.to_owned()));
}

/// Tells the daemon that the agent is about to die in the middle of an order. For the panic
/// hook: uses a thread and runtime of its own, and gives up after seconds.
pub fn last_words(text: &str) {
    // The panicking thread may hold the lock.
    let Ok(buffer) = BUFFER.try_lock() else {
        return;
    };
    let (Some(order), Some((client, boot_id))) = (buffer.order.clone(), buffer.way_out.clone())
    else {
        return;
    };
    drop(buffer);
    let result = StepResult {
        order,
        boot_id,
        outcome: Outcome::Failed(StepFailure {
            code: FailureCode::Internal,
            message: text.to_owned(),
            retryable: true,
        }),
    };
    let sender = std::thread::spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = client.separate()?;
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(10), client.result(&result)).await
        })??;
        Ok(())
    });
    match sender.join() {
        Ok(Ok(())) => eprintln!("the server knows"),
        Ok(Err(error)) => eprintln!("cannot tell the server: {error:#}"),
        Err(_) => eprintln!("cannot tell the server"),
    }
}

/// Copies what the agent logs into the report of the current order.
#[derive(Debug)]
pub struct LogLayer;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for LogLayer {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::INFO => "info",
            _ => return,
        };
        let mut text = Text::default();
        event.record(&mut text);
        let mut buffer = buffer();
        if buffer.order.is_none() {
            return;
        }
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
        buffer.push(LogLine {
            at,
            level: level.to_owned(),
            text: text.finish(),
        });
    }
}

/// Message first, then the fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        if self.message.len() > MAX_LINE {
            let end = self.message.floor_char_boundary(MAX_LINE);
            self.message.truncate(end);
        }
        self.message
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(order: Option<OrderId>) -> Buffer {
        Buffer {
            order,
            progress: None,
            lines: VecDeque::new(),
            dropped: 0,
            way_out: None,
        }
    }

    fn order(attempt: u32) -> OrderId {
        OrderId {
            run: "r".into(),
            step: 1,
            attempt,
        }
    }

    fn line(n: usize) -> LogLine {
        LogLine {
            at: 0,
            level: "info".into(),
            text: n.to_string(),
        }
    }

    #[test]
    fn full_buffer_drops_the_oldest_and_counts() {
        let mut buffer = empty(Some(order(1)));
        for n in 0..MAX_LINES + 3 {
            buffer.push(line(n));
        }
        let report = buffer.take("b", false).unwrap();
        assert_eq!(report.logs_dropped, 3);
        assert_eq!(report.logs[0].text, "3");
        assert_eq!(report.logs.len(), BATCH);
    }

    #[test]
    fn what_was_not_sent_comes_back_in_order() {
        let mut buffer = empty(Some(order(1)));
        buffer.progress = Some(Progress {
            done: 1,
            total: 9,
            rate: 0,
        });
        (0..3).for_each(|n| buffer.push(line(n)));
        let report = buffer.take("b", false).unwrap();
        buffer.push(line(3));
        buffer.progress = Some(Progress {
            done: 2,
            total: 9,
            rate: 0,
        });
        buffer.restore(report);
        let report = buffer.take("b", false).unwrap();
        let texts: Vec<_> = report.logs.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["0", "1", "2", "3"]);
        assert_eq!(
            report.progress,
            Some(Progress {
                done: 2,
                total: 9,
                rate: 0
            })
        );
    }

    #[test]
    fn lines_of_an_order_that_is_over_are_not_sent_for_the_next() {
        let mut buffer = empty(Some(order(1)));
        buffer.push(line(0));
        let report = buffer.take("b", false).unwrap();
        buffer.order = Some(order(2));
        buffer.restore(report);
        assert!(buffer.take("b", false).is_none());
        assert!(buffer.take("b", true).is_some());
    }
}
