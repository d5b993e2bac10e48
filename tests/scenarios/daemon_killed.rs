//! The daemon is killed at the worst moments, and every run still ends well.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anneal_tests::sim::net;
use anneal_tests::sim::wait::wait_for;

use crate::bench::{Bench, MACHINE, RUN_LIMIT, step_named};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a_daemon_killed_at_every_step_boundary_finishes_the_run",
        at_every_boundary,
    )
    .within(LIMIT),
    Scenario::new(
        "a_daemon_killed_twice_while_an_image_streams_finishes_the_run",
        twice_while_streaming,
    ),
];

/// For as many runs as [`ROUNDS`].
const LIMIT: Duration = Duration::from_secs(2000);
/// How long the machine runs between two looks, once its agent is near: shorter than a step.
const MOMENT: Duration = Duration::from_millis(20);
/// The same while its kernel boots: shorter than what lies between an agent's enrolment and the
/// end of its first step.
const LONGER: Duration = Duration::from_millis(100);
/// SIGKILL from outside can miss a boundary that is short; then the machine is provisioned again
/// for those that were missed, at most so many times in all.
const ROUNDS: usize = 6;

fn at_every_boundary(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 8)?;
    let mut met = BTreeSet::new();
    let mut main = usize::MAX;
    for _ in 0..ROUNDS {
        main = kill_at_boundaries(&mut bench, &mut met)?;
        if met.len() == main {
            return Ok(());
        }
    }
    anyhow::bail!("of {main} boundaries these were met: {met:?}")
}

/// One run, with a kill at each boundary that is not in `met` yet. Returns how many there are.
fn kill_at_boundaries(bench: &mut Bench, met: &mut BTreeSet<usize>) -> anyhow::Result<usize> {
    let run = bench.start_run()?.id;
    bench.daemon.kill_and_restart()?;
    bench.power_on()?;
    let mut near = false;
    wait_for(RUN_LIMIT, "the run to end", || {
        let view = bench.api.run(&run)?;
        if view.finished_at.is_some() {
            return Ok(Some(()));
        }
        let done = view
            .steps
            .iter()
            .filter(|step| step.state == "succeeded")
            .count();
        if met.insert(done) {
            bench.daemon.kill_and_restart()?;
        }
        near = near || done > 0 || !bench.events(&run, "agent.enrolled")?.is_empty();
        // In slow motion. At the end it switches itself off.
        let moment = if near { MOMENT } else { LONGER };
        if bench.machine.is_on() && bench.machine.run_for(moment).is_err() {
            bench.machine.power_off();
        }
        Ok(None)
    })?;
    let steps = bench.expect_success(&run)?.steps;
    Ok(steps.iter().filter(|step| step.phase == "main").count())
}

fn twice_while_streaming(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 96)?;
    net::limit_rate(MACHINE, 60)?;
    let run = bench.start_run()?.id;
    bench.power_on()?;
    bench.wait_written(&run, 20)?;
    bench.daemon.kill_and_restart()?;
    bench.wait_written(&run, 55)?;
    bench.daemon.kill_and_restart()?;
    let view = bench.expect_success(&run)?;
    let step = step_named(&view, "write the image")?;
    anyhow::ensure!(
        step.output.is_some(),
        "the write step has no result: {step:?}"
    );
    Ok(())
}
