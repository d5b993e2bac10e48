//! The daemon is killed at the worst moments, and every run still ends well.

use std::path::Path;

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

fn at_every_boundary(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 48)?;
    let run = bench.start_run()?.id;
    bench.daemon.kill_and_restart()?;
    bench.power_on()?;
    // Every change of any step's state is a boundary.
    let mut seen = String::new();
    let mut kills = 1;
    wait_for(RUN_LIMIT, "the run to end", || {
        let view = bench.api.run(&run)?;
        let states: Vec<&str> = view.steps.iter().map(|step| step.state.as_str()).collect();
        let states = states.join(",");
        if view.finished_at.is_some() {
            return Ok(Some(()));
        }
        if states != seen {
            seen = states;
            kills += 1;
            bench.daemon.kill_and_restart()?;
        }
        Ok(None)
    })?;
    anyhow::ensure!(kills >= 4, "only {kills} kills at boundaries, last: {seen}");
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
