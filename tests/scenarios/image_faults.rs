//! What is stored or sent is not what was sealed: the step fails with that reason, and the disk
//! does not boot half an image.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anneal_protocol::api::RunView;
use anneal_tests::sim::net;
use anneal_tests::sim::wait::wait_for;

use crate::bench::{Bench, MACHINE, RUN_LIMIT, SHORT, step_named};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a_flipped_bit_in_the_image_fails_the_step_and_leaves_nothing_bootable",
        flipped_bit,
    ),
    Scenario::new(
        "a_truncated_image_fails_the_step_and_leaves_nothing_bootable",
        truncated,
    ),
    Scenario::new(
        "a_stalled_image_server_fails_the_step_and_leaves_nothing_bootable",
        stalled,
    ),
];

/// Writes the image with little patience.
const IMPATIENT: &str = "\
name: impatient
timeout: 10m
steps:
  - name: boot the agent
    uses: netboot
    timeout: 5m
  - name: write the image
    uses: stream-image
    with: { stall_timeout: 15s, verify: none }
    retries: 1
    retry_delay: 1s
";

/// Provisions with whatever is in the store now; insists that the write step fails and the
/// disk has no beginning.
fn expect_failed_write(bench: &mut Bench) -> anyhow::Result<RunView> {
    let run = bench.start_run()?.id;
    bench.power_on()?;
    expect_write_failed(bench, &run)
}

/// Insists that a run ends because its write step failed, and that the disk has no beginning.
fn expect_write_failed(bench: &mut Bench, run: &str) -> anyhow::Result<RunView> {
    let view = bench.wait_end(run)?;
    anyhow::ensure!(
        view.state == "failed",
        "the run ended {}: {}",
        view.state,
        view.why
    );
    let step = step_named(&view, "write the image")?;
    anyhow::ensure!(
        step.state == "failed",
        "the write step ended {}",
        step.state
    );
    bench.machine.power_off();
    let head = bench.machine.disk_head(64 * 1024)?;
    anyhow::ensure!(
        head.iter().all(|byte| *byte == 0),
        "a failed write left a beginning on the disk"
    );
    Ok(view)
}

fn expect_reason(view: &RunView, words: &[&str]) -> anyhow::Result<()> {
    let reason = step_named(view, "write the image")?
        .reason
        .clone()
        .unwrap_or_default();
    anyhow::ensure!(
        words
            .iter()
            .any(|word| reason.to_lowercase().contains(word)),
        "the reason names none of {words:?}: {reason}"
    );
    Ok(())
}

fn flipped_bit(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 32)?;
    let data = bench.stored_data()?;
    let file = OpenOptions::new().read(true).write(true).open(&data)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    byte[0] ^= 1;
    file.write_all_at(&byte, middle)?;
    let view = expect_failed_write(&mut bench)?;
    expect_reason(&view, &["corrupt", "digest", "does not match"])
}

fn truncated(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 32)?;
    let data = bench.stored_data()?;
    let file = OpenOptions::new().write(true).open(&data)?;
    let whole = file.metadata()?.len();
    file.set_len(whole / 2)?;
    let view = expect_failed_write(&mut bench)?;
    expect_reason(&view, &["ends at byte"])
}

/// The daemon is the image server. Frozen, it keeps its connections and sends nothing; the agent
/// must notice by itself, in every attempt.
fn stalled(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 96)?;
    std::fs::write(work.join("workflows/impatient.yaml"), IMPATIENT)?;
    net::limit_rate(MACHINE, 60)?;
    let run = bench.start_run_of("impatient")?.id;
    bench.power_on()?;
    for attempt in 1..=2 {
        wait_for(RUN_LIMIT, "image data to flow", || {
            let view = bench.api.run(&run)?;
            let step = step_named(&view, "write the image")?;
            let flows = |done: u64, total: u64| total > 0 && done * 20 >= total;
            Ok((step.attempts == attempt)
                .then_some(step.progress)
                .flatten()
                .filter(|progress| flows(progress.done, progress.total)))
        })?;
        bench.daemon.freeze(true)?;
        let noticed = wait_for(2 * SHORT, "the agent to give up the stalled stream", || {
            let console = std::fs::read(work.join("m1.console.log"))?;
            let console = String::from_utf8_lossy(&console);
            let failures = console
                .lines()
                .filter(|line| line.contains("failed") && line.contains("stalled"));
            Ok((failures.count() >= attempt as usize).then_some(()))
        });
        bench.daemon.freeze(false)?;
        noticed?;
    }
    let view = expect_write_failed(&mut bench, &run)?;
    expect_reason(&view, &["stalled"])?;
    anyhow::ensure!(
        step_named(&view, "write the image")?.attempts == 2,
        "the step was not retried"
    );
    Ok(())
}
