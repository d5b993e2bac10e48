//! First boots of real systems, installed by the agent and started from their own disk. The node's own
//! call says what is on it.
//!
//! This module has what they share: an installation to its end.

pub mod ignition;

use std::time::Duration;

use anneal_protocol::api::RunView;
use anneal_tests::sim::direct::fetch_script;
use anneal_tests::sim::wait::wait_for;

use crate::bench::{ADDRESS, Bench, MAC, RUN_LIMIT};

/// An emulated machine on a busy host; longer than a workflow should wait, whose end says more.
const FIRST_BOOT_LIMIT: Duration = Duration::from_secs(780);

/// The daemon's settings: its own workflows and templates.
pub const SETTINGS: &str =
    "agent_silence: 100s\nworkflows_dir: workflows\ntemplates_dir: templates\n";

/// From the start of a run of workflow `first-boot` to its end, the machine's power included: the agent
/// installs, the disk is started by BIOS, the node calls home.
///
/// # Errors
/// When the run does not succeed.
pub fn install(bench: &mut Bench) -> anyhow::Result<RunView> {
    let run = bench.start_run_of("first-boot")?.id;
    bench.power_on()?;
    wait_for(RUN_LIMIT, "the agent to restart the machine", || {
        bench.daemon.ensure_running()?;
        let view = bench.api.run(&run)?;
        anyhow::ensure!(view.finished_at.is_none(), "the run ended: {}", view.why);
        Ok((!bench.machine.is_on()).then_some(()))
    })?;
    let script = fetch_script(MAC, ADDRESS)?;
    anyhow::ensure!(script.contains("boots its own disk"), "{script}");
    bench.machine.start_disk()?;
    let view = wait_for(FIRST_BOOT_LIMIT, "the node to call home", || {
        bench.daemon.ensure_running()?;
        Ok(Some(bench.api.run(&run)?).filter(|view| view.finished_at.is_some()))
    });
    bench.machine.power_off();
    let view = view?;
    let console = std::fs::read_to_string(&bench.machine.console).unwrap_or_default();
    let tail: Vec<&str> = console.lines().rev().take(40).collect();
    anyhow::ensure!(
        view.state == "succeeded",
        "{}: {}\n{}",
        view.state,
        view.why,
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    );
    Ok(view)
}
