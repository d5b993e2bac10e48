//! Live progress: one line for each machine.
//!
//! On a terminal the lines are redrawn in place; elsewhere a line is printed when something
//! worth a line has changed.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anneal_protocol::api::RunView;

/// Prints what runs are doing.
#[derive(Debug)]
pub struct Display {
    begin: Instant,
    terminal: bool,
    drawn: usize,
    last: HashMap<String, String>,
}

impl Default for Display {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            terminal: std::io::stdout().is_terminal(),
            drawn: 0,
            last: HashMap::new(),
        }
    }
}

impl Display {
    /// Shows the runs as they are now.
    pub fn show(&mut self, runs: &[RunView]) {
        if self.terminal {
            self.redraw(runs);
        } else {
            self.print_changes(runs);
        }
        // Nobody is left to tell when standard output is closed.
        let _ = std::io::stdout().flush();
    }

    fn redraw(&mut self, runs: &[RunView]) {
        if self.drawn > 0 {
            print!("\x1b[{}A", self.drawn);
        }
        for run in runs {
            let text = line(run, 1);
            println!("\x1b[2K{} {text}", stamp(self.begin.elapsed()));
        }
        self.drawn = runs.len();
    }

    fn print_changes(&mut self, runs: &[RunView]) {
        for run in runs {
            let text = line(run, 25);
            if self.last.get(&run.machine) != Some(&text) {
                println!("{} {text}", stamp(self.begin.elapsed()));
                self.last.insert(run.machine.clone(), text);
            }
        }
    }
}

fn stamp(elapsed: Duration) -> String {
    format!("{:>4} s ", elapsed.as_secs())
}

/// What a run is doing; percentages in steps of `grain`.
fn line(run: &RunView, grain: u64) -> String {
    let machine = &run.machine;
    if let Some(over) = ended(run) {
        return format!("{machine}  {over}");
    }
    let phase = if run.state == "failing" {
        "on-failure"
    } else {
        "main"
    };
    let steps: Vec<_> = run
        .steps
        .iter()
        .filter(|step| step.phase == phase)
        .collect();
    let Some(position) = steps
        .iter()
        .position(|step| !matches!(step.state.as_str(), "succeeded" | "skipped" | "failed"))
    else {
        return format!("{machine}  {}", run.state);
    };
    let step = steps[position];
    let (number, of) = (position + 1, steps.len());
    let mut text = format!("{machine}  [{number}/{of}] {}", step.name);
    if step.attempts > 1 {
        text.push_str(&format!(", attempt {}", step.attempts));
    }
    if let Some(progress) = step.progress.filter(|progress| progress.total > 0) {
        let percent = progress.done.saturating_mul(100) / progress.total / grain * grain;
        text.push_str(&format!(", {percent} %"));
    }
    text
}

fn ended(run: &RunView) -> Option<String> {
    match run.state.as_str() {
        "succeeded" => Some("succeeded".to_owned()),
        "failed" | "cancelled" => Some(format!("{}: {}", run.state, run.why)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anneal_protocol::agent::Progress;
    use anneal_protocol::api::StepView;

    fn run(state: &str, steps: Vec<StepView>) -> RunView {
        RunView {
            id: "0".into(),
            machine: "r1n1".into(),
            workflow: "install-image".into(),
            image: None,
            state: state.into(),
            why: "the disk is too small".into(),
            requested_by: "admin".into(),
            created_at: String::new(),
            finished_at: None,
            deadline: String::new(),
            steps,
            phases: Vec::new(),
        }
    }

    fn step(index: u32, state: &str, attempts: u32, done: Option<u64>) -> StepView {
        StepView {
            index,
            phase: "main".into(),
            name: format!("step {index}"),
            uses: "x".into(),
            state: state.into(),
            attempts,
            reason: None,
            started_at: None,
            finished_at: None,
            progress: done.map(|done| Progress {
                done,
                total: 1000,
                rate: 0,
            }),
            output: None,
        }
    }

    #[test]
    fn tells_step_attempt_and_percentage() {
        let steps = vec![
            step(0, "succeeded", 1, None),
            step(1, "running", 2, Some(338)),
        ];
        assert_eq!(
            line(&run("running", steps.clone()), 1),
            "r1n1  [2/2] step 1, attempt 2, 33 %"
        );
        assert_eq!(
            line(&run("running", steps), 25),
            "r1n1  [2/2] step 1, attempt 2, 25 %"
        );
    }

    #[test]
    fn steps_for_a_failure_show_only_in_one() {
        let mut evidence = step(1, "pending", 0, None);
        evidence.phase = "on-failure".into();
        let steps = vec![step(0, "succeeded", 1, None), evidence];
        assert_eq!(line(&run("running", steps.clone()), 1), "r1n1  running");
        assert_eq!(line(&run("failing", steps), 1), "r1n1  [1/1] step 1");
    }

    #[test]
    fn tells_how_it_ended() {
        let steps = vec![step(0, "failed", 1, None)];
        assert_eq!(
            line(&run("failed", steps), 1),
            "r1n1  failed: the disk is too small"
        );
    }
}
