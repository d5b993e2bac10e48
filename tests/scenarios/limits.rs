//! A scenario that hangs is named and stopped, and the others go on: tried on the runner itself.

use std::path::Path;
use std::time::Duration;

use anneal_tests::sim::accel::Accel;

use crate::runner::{Scenario, Verdict, run_all};

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "a_scenario_that_hangs_is_stopped_and_the_others_go_on",
    stopped,
)];

/// What [`SCENARIOS`] run, and nobody else.
pub const TRIED: &[Scenario] = &[HANGS, ENDS];
const HANGS: Scenario = Scenario::new("hangs", hang).within(Duration::from_secs(2));
const ENDS: Scenario = Scenario::new("ends", |_| Ok(()));

fn hang(_: &Path) -> anyhow::Result<()> {
    loop {
        std::thread::park();
    }
}

fn stopped(work: &Path) -> anyhow::Result<()> {
    // No machine is started.
    let run = |chosen: &[Scenario], total| {
        let chosen = chosen.iter().copied().collect();
        run_all(work, Accel::Tcg, chosen, total)
    };
    let minute = Duration::from_secs(60);
    let verdicts = run(&[HANGS, ENDS], minute);
    let why = failure(&verdicts, "hangs").unwrap_or_default();
    anyhow::ensure!(
        why.starts_with("stopped: it was not over after 2 s")
            && failure(&verdicts, "ends").is_none(),
        "{verdicts:?}"
    );
    // All together have less time than one of them, but enough to begin.
    let verdicts = run(&[HANGS.within(minute)], Duration::from_secs(5));
    let why = failure(&verdicts, "hangs").unwrap_or_default();
    anyhow::ensure!(
        why.starts_with("stopped: it was not over after"),
        "{verdicts:?}"
    );
    let verdicts = run(&[ENDS], Duration::ZERO);
    let why = failure(&verdicts, "ends").unwrap_or_default();
    anyhow::ensure!(why.starts_with("not run:"), "{verdicts:?}");
    Ok(())
}

/// Why the scenario of this name failed; `None` when it did not.
fn failure<'a>(verdicts: &'a [Verdict], name: &str) -> Option<&'a str> {
    let verdict = verdicts.iter().find(|verdict| verdict.name == name);
    verdict.map_or(Some("it has no verdict"), |verdict| {
        verdict.failed.as_deref()
    })
}
