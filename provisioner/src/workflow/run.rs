//! A run and its steps as they are stored, and the snapshot that decisions look at.

use anneal_protocol::machine::MachineState;
use anneal_protocol::time::Millis;
use serde::{Deserialize, Serialize};

use super::action::Action;
use super::plan::{Step, Workflow};
use crate::machine::Machine;
use crate::render::ImageFacts;
use crate::store::Sighting;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// The stable word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// Reads the stored word.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words! {
    /// Where a run is.
    RunState {
        /// Stored, not begun.
        Pending = "pending",
        /// Main steps.
        Running = "running",
        /// A main step failed; on-failure steps.
        Failing = "failing",
        /// Over: every step did its work.
        Succeeded = "succeeded",
        /// Over: a step did not.
        Failed = "failed",
        /// Over: somebody stopped it.
        Cancelled = "cancelled",
    }
}

impl RunState {
    /// Whether the run still holds its machine.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Pending | Self::Running | Self::Failing)
    }
}

words! {
    /// Where a step is.
    StepState {
        /// Not begun, or between two attempts.
        Pending = "pending",
        /// An attempt is under way.
        Running = "running",
        /// The daemon did its part and waits for the machine.
        Waiting = "waiting",
        /// The agent acknowledged that it leaves; success is the next sign of life.
        Leaving = "leaving",
        /// Done.
        Succeeded = "succeeded",
        /// Not done, and no attempt is left.
        Failed = "failed",
        /// Not needed.
        Skipped = "skipped",
        /// Stopped.
        Cancelled = "cancelled",
    }
}

impl StepState {
    /// Whether nothing more happens to the step.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Skipped | Self::Cancelled
        )
    }
}

words! {
    /// Which list a step is from.
    Phase {
        /// `steps`.
        Main = "main",
        /// `on_failure`.
        OnFailure = "on-failure",
    }
}

/// A run as stored, without its plan.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Id, UUIDv7.
    pub id: String,
    /// Machine.
    pub machine: String,
    /// Workflow name.
    pub workflow: String,
    /// Image id.
    pub image: Option<String>,
    /// State.
    pub state: RunState,
    /// How it ended, or why it is failing.
    pub reason: String,
    /// Who asked.
    pub requested_by: String,
    /// Somebody wants it to stop.
    pub cancel: bool,
    /// Optimistic lock.
    pub version: i64,
    /// When it was made.
    pub created_at: Millis,
    /// When it ended.
    pub finished_at: Option<Millis>,
    /// When it fails for taking too long.
    pub deadline: Millis,
}

/// A step of a run as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRow {
    /// Position.
    pub idx: usize,
    /// List.
    pub phase: Phase,
    /// Name.
    pub name: String,
    /// Action's word.
    pub uses: String,
    /// State.
    pub state: StepState,
    /// Attempts begun.
    pub attempt: u32,
    /// Agent boot that holds the attempt.
    pub boot_id: Option<String>,
    /// Digest of the first attempt's redacted inputs.
    pub inputs_digest: Option<String>,
    /// Earliest next attempt.
    pub not_before: Option<Millis>,
    /// End of the current attempt.
    pub deadline: Option<Millis>,
    /// First start.
    pub started_at: Option<Millis>,
    /// Start of the current attempt.
    pub attempt_at: Option<Millis>,
    /// End.
    pub finished_at: Option<Millis>,
    /// Why it is in its state.
    pub reason: String,
    /// The typed result.
    pub output: Option<serde_json::Value>,
    /// What is remembered between looks.
    pub scratch: Scratch,
}

/// What a step remembers between looks, so that a restarted daemon goes on instead of anew.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scratch {
    /// Attempts made before the run was reopened by `retry`: they count no more.
    #[serde(default)]
    pub base: u32,
    /// What was done about power in this attempt or recovery.
    #[serde(default)]
    pub power: Option<PowerMark>,
    /// The agent was lost; it must be booted again before the next attempt.
    #[serde(default)]
    pub recovering: bool,
    /// When the agent's leave was acknowledged.
    #[serde(default)]
    pub left_at: Option<Millis>,
    /// The attempt whose agent fell silent, in case it speaks again.
    #[serde(default)]
    pub lost: Option<Lost>,
}

/// An attempt whose agent fell silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Boot of the agent that fell silent.
    pub boot_id: String,
    /// It had fetched the attempt.
    pub held: bool,
    /// Which attempt.
    pub attempt: u32,
    /// Until when the attempt may take.
    pub deadline: Millis,
    /// When it was taken for lost.
    pub at: Millis,
}

/// How far a power action is. Written before and after, so that a daemon killed in between
/// knows that the machine may or may not have been switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerMark {
    /// About to ask the BMC.
    Asked(Millis),
    /// The BMC did it.
    Done(Millis),
}

/// What a run was made of; stored once, never changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPlan {
    /// The workflow.
    pub workflow: Workflow,
    /// The machine as it was in the inventory.
    pub machine: Machine,
    /// The image.
    pub image: Option<ImageFacts>,
    /// By position: the step's condition is false.
    pub skip: Vec<bool>,
    /// The machine's state before the run.
    pub state_before: MachineState,
}

impl RunPlan {
    /// The step at a position.
    #[must_use]
    pub fn step(&self, idx: usize) -> Option<&Step> {
        self.workflow.step(idx)
    }

    /// Fresh rows for all steps.
    #[must_use]
    pub fn rows(&self) -> Vec<StepRow> {
        let main = self.workflow.steps.len();
        self.workflow
            .all_steps()
            .enumerate()
            .map(|(idx, step)| StepRow {
                idx,
                phase: if idx < main {
                    Phase::Main
                } else {
                    Phase::OnFailure
                },
                name: step.name.clone(),
                uses: step.uses.spec().name.to_owned(),
                state: StepState::Pending,
                attempt: 0,
                boot_id: None,
                inputs_digest: None,
                not_before: None,
                deadline: None,
                started_at: None,
                attempt_at: None,
                finished_at: None,
                reason: String::new(),
                output: None,
                scratch: Scratch::default(),
            })
            .collect()
    }
}

/// One start of the agent, as it said hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Random, per boot.
    pub id: String,
    /// When it said hello.
    pub at: Millis,
}

/// When the current agent was last heard. Never earlier than the daemon's own start: what an
/// agent said to a daemon that is gone is not its silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Any call.
    pub seen: Millis,
    /// A call that asked for work.
    pub asked: Millis,
}

/// Everything a decision about a run looks at.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The run.
    pub run: RunRow,
    /// Its plan.
    pub plan: RunPlan,
    /// Its steps, by position.
    pub steps: Vec<StepRow>,
    /// Boots of the agent in this run, oldest first.
    pub boots: Vec<Boot>,
    /// Latest fact of each kind about the machine.
    pub sightings: Vec<Sighting>,
    /// When the agent was last heard.
    pub presence: Presence,
    /// How long an agent may be silent, milliseconds.
    pub silence_ms: i64,
}

impl Snapshot {
    /// The step that the run is at: the first of the current phase that is not over.
    #[must_use]
    pub fn current(&self) -> Option<usize> {
        let phase = match self.run.state {
            RunState::Pending | RunState::Running => Phase::Main,
            RunState::Failing => Phase::OnFailure,
            _ => return None,
        };
        self.steps
            .iter()
            .find(|step| step.phase == phase && !step.state.is_over())
            .map(|step| step.idx)
    }

    /// The agent's latest boot.
    #[must_use]
    pub fn boot(&self) -> Option<&Boot> {
        self.boots.last()
    }

    /// Action of a step.
    #[must_use]
    pub fn action(&self, idx: usize) -> Option<Action> {
        self.plan.step(idx).map(|step| step.uses)
    }

    /// The latest fact of a kind.
    #[must_use]
    pub fn sighting(&self, kind: &str) -> Option<&Sighting> {
        self.sightings.iter().find(|sighting| sighting.kind == kind)
    }
}
