//! The machine, or the wire to it, is lost in the middle of writing.

use std::path::Path;
use std::time::{Duration, Instant};

use anneal_tests::sim::net;
use anneal_tests::sim::wait::{wait_for, wait_until};

use crate::bench::{Bench, MACHINE, RUN_LIMIT, step_named};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a_machine_reset_while_it_writes_is_written_again",
        reset_mid_write,
    ),
    Scenario::new(
        "a_network_cut_of_a_minute_while_writing_is_survived",
        cut_mid_write,
    ),
    Scenario::new(
        "an_agent_that_was_cut_off_for_too_long_goes_on_with_its_attempt",
        cut_beyond_silence,
    ),
    Scenario::new(
        "a_second_provision_of_the_same_machine_works",
        second_provision,
    ),
];

fn reset_mid_write(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 96)?;
    net::limit_rate(MACHINE, 100)?;
    let run = bench.start_run()?.id;
    bench.power_on()?;
    bench.wait_written(&run, 30)?;
    bench.machine.power_off();
    // The head of the image goes to the disk last: what is there now must not boot.
    let head = bench.machine.disk_head(64 * 1024)?;
    anyhow::ensure!(
        head.iter().all(|byte| *byte == 0),
        "half an image has a beginning on the disk"
    );
    net::lift_rate_limit(MACHINE)?;
    bench.power_on()?;
    let view = bench.expect_success(&run)?;
    let boots = bench.events(&run, "agent.hello")?.len();
    anyhow::ensure!(
        boots >= 2,
        "the agent was seen {boots} times, expected two boots"
    );
    anyhow::ensure!(
        step_named(&view, "write the image")?.attempts >= 1,
        "the write step has no attempt"
    );
    Ok(())
}

fn cut_mid_write(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 96)?;
    net::limit_rate(MACHINE, 60)?;
    let run = bench.start_run()?.id;
    bench.power_on()?;
    bench.wait_written(&run, 30)?;
    net::cut(MACHINE)?;
    let begin = Instant::now();
    let minute = Duration::from_secs(60);
    wait_until(minute * 2, "the cut to last a minute", || {
        begin.elapsed() >= minute
    })?;
    anyhow::ensure!(bench.machine.is_on(), "the machine gave up during the cut");
    net::mend(MACHINE)?;
    bench.expect_success(&run)?;
    let boots = bench.events(&run, "agent.hello")?.len();
    anyhow::ensure!(
        boots == 1,
        "the agent was seen {boots} times, expected it to stay"
    );
    Ok(())
}

/// The daemon gives the agent up and asks for somebody at the power button; nobody comes, but the
/// cable is mended.
fn cut_beyond_silence(work: &Path) -> anyhow::Result<()> {
    let settings = "agent_silence: 15s\nworkflows_dir: workflows\n";
    std::fs::write(work.join("anneal.yaml"), settings)?;
    let mut bench = Bench::set(work, 96)?;
    net::limit_rate(MACHINE, 60)?;
    let run = bench.start_run()?.id;
    bench.power_on()?;
    bench.wait_written(&run, 30)?;
    net::cut(MACHINE)?;
    wait_for(RUN_LIMIT, "the agent to be given up", || {
        let view = bench.api.run(&run)?;
        let step = step_named(&view, "write the image")?;
        Ok((step.state == "pending" && view.why.contains("lost")).then_some(()))
    })?;
    net::mend(MACHINE)?;
    let view = bench.expect_success(&run)?;
    let boots = bench.events(&run, "agent.hello")?.len();
    anyhow::ensure!(
        boots == 1,
        "the agent was seen {boots} times, expected it to stay"
    );
    let attempts = step_named(&view, "write the image")?.attempts;
    anyhow::ensure!(
        attempts == 1,
        "the image was written in {attempts} attempts, expected the first to go on"
    );
    Ok(())
}

fn second_provision(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 32)?;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let run = bench.start_run()?.id;
        bench.power_on()?;
        bench.expect_success(&run)?;
        runs.push(run);
    }
    anyhow::ensure!(runs[0] != runs[1], "both runs are {}", runs[0]);
    Ok(())
}
