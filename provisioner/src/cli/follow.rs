//! Watching a run until it ends: events as they happen, progress, and the end.
//!
//! Invariants: a broken connection or a daemon that restarts does not end the watching; it is
//! resumed after the last event seen. The run itself is looked at from time to time, so that no
//! lost event is waited for forever.

use std::time::{Duration, Instant};

use anneal_protocol::api::{EventView, RunView};
use futures_util::StreamExt as _;

use super::client::{Client, Refused, Unreachable};
use super::screen::{Meter, Screen};
use super::{output, sse, time};
use crate::event::kind;

/// How often the run itself is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the daemon may be away.
const AWAY_LIMIT: Duration = Duration::from_secs(300);

/// The run ended, but not well.
#[derive(Debug, thiserror::Error)]
#[error("run {run} of machine {machine} {}: {why}", if state == "cancelled" { "was cancelled" } else { state })]
pub struct RunEnded {
    /// Its id.
    pub run: String,
    /// Its machine.
    pub machine: String,
    /// `failed` or `cancelled`.
    pub state: String,
    /// One sentence.
    pub why: String,
}

impl RunEnded {
    /// What to do next.
    pub fn hint(&self) -> String {
        let run = &self.run;
        format!(
            "`anneal run show {run}` tells what happened; `anneal run retry {run}` goes on from \
             the step that did not succeed"
        )
    }
}

/// Whether a run is over.
pub fn ended(run: &RunView) -> bool {
    matches!(run.state.as_str(), "succeeded" | "failed" | "cancelled")
}

/// The run, if it succeeded.
///
/// # Errors
/// [`RunEnded`] when it failed or was cancelled.
pub fn succeeded(run: RunView) -> anyhow::Result<RunView> {
    if run.state == "succeeded" {
        return Ok(run);
    }
    Err(RunEnded {
        run: run.id,
        machine: run.machine,
        state: run.state,
        why: run.why,
    }
    .into())
}

/// How to show what is watched.
#[derive(Debug)]
pub struct Show<'a> {
    /// Where; nowhere when a program only wants the end.
    pub screen: Option<&'a Screen>,
    /// Put before every line, to tell several runs apart.
    pub label: String,
    /// Only events after this one; 0 for all of the run.
    pub after: i64,
}

/// Watches a run to its end.
///
/// # Errors
/// When the daemon refuses, or is away for five minutes.
pub async fn follow(client: &Client, run: RunView, show: Show<'_>) -> anyhow::Result<RunView> {
    let mut watch = Watch {
        meter: show.screen.map(|screen| screen.meter(&show.label)),
        client,
        last: show.after,
        show,
        contact: Instant::now(),
        tries: 0,
        run,
    };
    loop {
        match watch.stream().await {
            Ok(true) => return Ok(watch.run),
            Ok(false) => {}
            Err(error) if is_passing(&error) && watch.contact.elapsed() < AWAY_LIMIT => {}
            Err(error) => return Err(error),
        }
        watch.pause().await?;
    }
}

/// Whether a failure may go away by itself: the daemon restarts, or the wire is cut.
fn is_passing(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refused>() {
        Some(Refused(problem)) => problem.status >= 500,
        None => error.downcast_ref::<Unreachable>().is_some() || error.is::<reqwest::Error>(),
    }
}

struct Watch<'a> {
    client: &'a Client,
    show: Show<'a>,
    meter: Option<Meter<'a>>,
    run: RunView,
    /// Id of the last stored event that was shown.
    last: i64,
    contact: Instant,
    tries: u32,
}

impl Watch<'_> {
    /// Watches one connection; true when the run is over, false when the connection is.
    async fn stream(&mut self) -> anyhow::Result<bool> {
        if self.look().await? {
            return Ok(true);
        }
        let id = self.run.id.clone();
        let response = self.client.events(&[("run", &id)], Some(self.last)).await?;
        let mut bytes = response.bytes_stream();
        let mut parser = sse::Parser::default();
        let mut next_look = tokio::time::Instant::now() + LOOK_EVERY;
        loop {
            let part = tokio::select! {
                part = bytes.next() => part,
                () = tokio::time::sleep_until(next_look) => {
                    if self.look().await? {
                        return Ok(true);
                    }
                    next_look = tokio::time::Instant::now() + LOOK_EVERY;
                    continue;
                }
            };
            let Some(part) = part else { return Ok(false) };
            let mut over = false;
            for message in parser.feed(&part?)? {
                over |= self.message(&message)?;
            }
            if over && self.look().await? {
                return Ok(true);
            }
        }
    }

    /// Looks at the run itself; when it is over, shows what the stream has not brought yet.
    async fn look(&mut self) -> anyhow::Result<bool> {
        self.run = self.client.get(&["runs", &self.run.id], &[]).await?;
        self.contact = Instant::now();
        self.tries = 0;
        if !ended(&self.run) {
            return Ok(false);
        }
        let last = self.last.to_string();
        let query = [("run", self.run.id.as_str()), ("after", &last)];
        let missed: Vec<EventView> = self.client.list(&["event-log"], &query, usize::MAX).await?;
        for event in missed {
            self.event(&event)?;
        }
        if let Some(meter) = &mut self.meter {
            meter.clear();
        }
        Ok(true)
    }

    /// Shows one message; true when it says that the run is over.
    fn message(&mut self, message: &sse::Message) -> anyhow::Result<bool> {
        match serde_json::from_str(&message.data) {
            Ok(event) => self.event(&event),
            Err(error) => Err(anyhow::Error::new(error)
                .context("the daemon's events are not what this version of anneal expects")),
        }
    }

    fn event(&mut self, event: &EventView) -> anyhow::Result<bool> {
        self.last = self.last.max(event.id);
        let (Some(screen), Some(meter)) = (self.show.screen, &mut self.meter) else {
            return Ok(is_end(event));
        };
        if event.kind == kind::STEP_PROGRESS {
            let number = |name: &str| event.data[name].as_u64();
            if let (Some(done), Some(total)) = (number("done"), number("total")) {
                let what = event.data["name"].as_str().unwrap_or(&event.message);
                meter.show(&output::printable(what), done, total)?;
            }
            return Ok(false);
        }
        if event.kind.starts_with(kind::STEP_PREFIX) {
            meter.clear();
        }
        let line = event_line(&self.run.created_at, event);
        screen.line(&format!("{}{line}", self.show.label))?;
        Ok(is_end(event))
    }

    /// Waits before the next connection, longer each time, and says so once.
    async fn pause(&mut self) -> anyhow::Result<()> {
        if self.tries == 2
            && let Some(screen) = self.show.screen
        {
            screen.line(&format!(
                "{}the daemon is away; trying again",
                self.show.label
            ))?;
        }
        tokio::time::sleep(time::backoff(self.tries)).await;
        self.tries += 1;
        Ok(())
    }
}

fn is_end(event: &EventView) -> bool {
    event
        .kind
        .strip_prefix(kind::RUN_PREFIX)
        .is_some_and(|state| matches!(state, "succeeded" | "failed" | "cancelled"))
}

/// An event of a run as people see it: how long after its beginning, what, one sentence.
pub fn event_line(begin: &str, event: &EventView) -> String {
    let message = output::printable(&event.message);
    format!(
        "{:>8}  {:<18}  {message}",
        time::relative(begin, &event.at),
        event.kind
    )
}
