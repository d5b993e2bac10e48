//! What people and programs ask about runs and workflows. Reads only.

use std::collections::HashMap;

use anneal_protocol::agent::Progress;
use anneal_protocol::api::{Page, RunView};

use super::caller::Caller;
use super::driver::{Engine, EngineError, lock};
use super::engine::listens_to;
use super::library::LibraryError;
use super::plan::{self, Workflow};
use super::view;
use crate::clock::now;
use crate::yaml::YamlError;

/// Whether a run listens to what is said about its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ear {
    /// This run does.
    Open(String),
    /// The machine's run will, later.
    NotYet,
    /// Nobody does.
    Closed,
}

impl Engine {
    /// A run with its timeline's phases.
    ///
    /// # Errors
    /// When there is no such run or the database fails.
    pub async fn view(&self, run: &str) -> Result<RunView, EngineError> {
        let s = self.load(run).await?;
        let until = s.run.finished_at.unwrap_or_else(now);
        // Events that end a run are recorded right after its row.
        let until = until.plus(std::time::Duration::from_secs(5));
        let store = &self.inner.deps.store;
        let timeline = store
            .timeline(&s.run.machine, s.run.created_at, until)
            .await?;
        Ok(view::run_view(&s, &self.progress_of(run), &timeline, now()))
    }

    /// Runs, newest first; `after` is the `next` of the page before. Without phases.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(
        &self,
        machine: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Page<RunView>, EngineError> {
        let limit = limit.clamp(1, 200);
        let store = &self.inner.deps.store;
        let mut rows = store.runs(machine, after, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let mut items = Vec::with_capacity(rows.len());
        for row in &rows {
            let s = self.load(&row.id).await?;
            items.push(view::run_view(&s, &self.progress_of(&row.id), &[], now()));
        }
        let next = more
            .then(|| rows.last().map(|row| row.id.clone()))
            .flatten();
        Ok(Page { items, next })
    }

    /// One sentence: what a machine waits for, since when, until when.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn why(&self, machine: &str) -> Result<String, EngineError> {
        let store = &self.inner.deps.store;
        let run = match store.active_run(machine).await? {
            Some(run) => Some(run),
            None => store
                .runs(Some(machine), None, 1)
                .await?
                .into_iter()
                .next()
                .map(|row| row.id),
        };
        let Some(run) = run else {
            return Ok(format!(
                "nothing was asked of it yet: `anneal provision {machine}` installs it"
            ));
        };
        let s = self.load(&run).await?;
        let text = view::why(&s, now());
        Ok(if s.run.state.is_active() {
            text
        } else {
            format!("its last run ({}): {text}", s.run.workflow)
        })
    }

    /// Whether the word of `by` about a machine counts now: whoever it comes from says that the
    /// installed system is up.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn listens(&self, machine: &str, by: Caller) -> Result<Ear, EngineError> {
        let Some(run) = self.inner.deps.store.active_run(machine).await? else {
            return Ok(Ear::Closed);
        };
        let s = self.load(&run).await?;
        Ok(match listens_to(&s) {
            Ok(Some(wanted)) if wanted == by => Ear::Open(run),
            Err(later) if later == by => Ear::NotYet,
            _ => Ear::Closed,
        })
    }

    /// Validates a workflow file. `file` names it in errors.
    ///
    /// # Errors
    /// Names file, line, column and the nearest known word.
    pub fn validate(&self, text: &str, file: &str) -> Result<Workflow, YamlError> {
        plan::parse(text, file, &self.inner.deps.renderer)
    }

    /// Every workflow that can be named, with what is wrong with it, if anything.
    #[must_use]
    pub fn workflows(&self) -> Vec<(String, Result<Workflow, LibraryError>)> {
        let library = &self.inner.library;
        let load = |name: String| {
            let workflow = library.load(&name, &self.inner.deps.renderer);
            (name, workflow)
        };
        library.names().into_iter().map(load).collect()
    }

    fn progress_of(&self, run: &str) -> HashMap<usize, Progress> {
        lock(&self.inner.progress)
            .iter()
            .filter(|((id, _), _)| id == run)
            .map(|((_, idx), progress)| (*idx, *progress))
            .collect()
    }
}
