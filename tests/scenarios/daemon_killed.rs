//! The daemon is killed at the worst moments, and every run still ends well.

use std::path::Path;
use std::time::Duration;

use anneal_tests::sim::net;
use anneal_tests::sim::wait::wait_for;

use crate::bench::{Bench, MACHINE, RUN_LIMIT, step_named};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a_daemon_killed_at_every_step_boundary_finishes_the_run",
        run: at_every_boundary,
    },
    Scenario {
        name: "a_daemon_killed_twice_while_an_image_streams_finishes_the_run",
        run: twice_while_streaming,
    },
];

/// How long the machine runs between two looks: shorter than a step of the agent.
const MOMENT: Duration = Duration::from_millis(20);

fn at_every_boundary(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 8)?;
    let run = bench.start_run()?.id;
    bench.daemon.kill_and_restart()?;
    bench.power_on()?;
    let mut seen = Vec::new();
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
        if !seen.contains(&done) {
            seen.push(done);
            bench.daemon.kill_and_restart()?;
        }
        if done == 0 {
            // The kernel boots: nothing to miss.
            return Ok(None);
        }
        // From here on in slow motion. At the end it switches itself off.
        if bench.machine.is_on() && bench.machine.run_for(MOMENT).is_err() {
            bench.machine.power_off();
        }
        Ok(None)
    })?;
    let steps = bench.api.run(&run)?.steps;
    let main = steps.iter().filter(|step| step.phase == "main").count();
    anyhow::ensure!(
        seen.len() == main,
        "of {main} boundaries these were met: {seen:?}"
    );
    bench.expect_success(&run).map(drop)
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
