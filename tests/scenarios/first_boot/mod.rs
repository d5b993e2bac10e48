//! First boots of real systems, installed by the agent and started from their own disk. The node's own
//! call says what is on it.
//!
//! This module has what they share: an installation to its end.

pub mod ab;
pub mod ignition;
pub mod kexec;
pub mod seed;

use std::time::Duration;

use anneal_protocol::api::RunView;
use anneal_tests::sim::direct::fetch_script;
use anneal_tests::sim::wait::wait_for;

use crate::bench::{ADDRESS, Bench, MAC, RUN_LIMIT};

/// An emulated machine on a busy host; longer than a workflow should wait, whose end says more.
const FIRST_BOOT_LIMIT: Duration = Duration::from_secs(780);

/// How long a scenario with one installation and one start of what was installed may take.
pub const LIMIT: Duration = Duration::from_secs(1300);

/// The daemon's settings: its own workflows and templates.
pub const SETTINGS: &str =
    "agent_silence: 100s\nworkflows_dir: workflows\ntemplates_dir: templates\n";

/// From the start of a run of workflow `first-boot` to its end, the machine's power included: the agent
/// installs, the disk is started by BIOS, the node calls home.
///
/// # Errors
/// When the run does not succeed.
pub fn install(bench: &mut Bench) -> anyhow::Result<RunView> {
    let run = write(bench, "first-boot")?;
    bench.machine.start_disk()?;
    let view = wait_end(bench, &run);
    bench.machine.power_off();
    let view = view?;
    expect(bench, &view, "succeeded")?;
    Ok(view)
}

/// From the start of a run to the end of the agent's part. The machine is off, and is to start its disk.
///
/// # Errors
/// When the run ends before.
pub fn write(bench: &mut Bench, workflow: &str) -> anyhow::Result<String> {
    let run = bench.start_run_of(workflow)?.id;
    agents_part(bench, &run)?;
    Ok(run)
}

/// [`write`] of a run that was started.
///
/// # Errors
/// As [`write`].
pub fn agents_part(bench: &mut Bench, run: &str) -> anyhow::Result<()> {
    bench.power_on()?;
    wait_for(RUN_LIMIT, "the agent to restart the machine", || {
        bench.daemon.ensure_running()?;
        let view = bench.api.run(run)?;
        anyhow::ensure!(view.finished_at.is_none(), "the run ended: {}", view.why);
        Ok((!bench.machine.is_on()).then_some(()))
    })?;
    let script = fetch_script(MAC, ADDRESS)?;
    anyhow::ensure!(script.contains("boots its own disk"), "{script}");
    Ok(())
}

/// The run's end, which the installed system makes.
///
/// # Errors
/// When it does not come.
pub fn wait_end(bench: &mut Bench, run: &str) -> anyhow::Result<RunView> {
    wait_for(FIRST_BOOT_LIMIT, "the node to call home", || {
        bench.daemon.ensure_running()?;
        Ok(Some(bench.api.run(run)?).filter(|view| view.finished_at.is_some()))
    })
}

/// Insists that these documents were fetched, in this order, each once, over TLS, from the machine's address. What a
/// busy loader repeated within the grace, from there too, counts once.
///
/// # Errors
/// When others were, or otherwise.
pub fn expect_served(bench: &Bench, run: &str, documents: &[&str]) -> anyhow::Result<()> {
    let served = bench.events(run, "config.served")?;
    let first = served.iter().filter(|event| event.data["again"] == false);
    let names: Vec<_> = first.map(|e| e.data["document"].as_str()).collect();
    let expected: Vec<_> = documents.iter().map(|name| Some(*name)).collect();
    let well = |data: &serde_json::Value| data["address"] == ADDRESS && data["tls"] == true;
    anyhow::ensure!(
        names == expected && served.iter().all(|event| well(&event.data)),
        "expected {documents:?}: {served:?}"
    );
    Ok(())
}

/// Insists on how the run ended.
///
/// # Errors
/// When it ended otherwise: with the last words of the machine.
pub fn expect(bench: &Bench, view: &RunView, state: &str) -> anyhow::Result<()> {
    let console = std::fs::read_to_string(&bench.machine.console).unwrap_or_default();
    let tail: Vec<&str> = console.lines().rev().take(40).collect();
    anyhow::ensure!(
        view.state == state,
        "{}: {}\n{}",
        view.state,
        view.why,
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    );
    Ok(())
}
