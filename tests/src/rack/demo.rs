//! The demo: three machines from power-on to phone-home at once, then one again by `curl`.

use std::time::Duration;

use anneal_protocol::api::{ProvisionRequest, RunView};
use anyhow::Context;

use super::machines;
use super::paths::{self, Paths};
use super::progress::Display;
use super::report::{Row, render};
use super::stage::Stage;
use crate::sim::api::Api;
use crate::sim::domain::Machine;
use crate::sim::tool;
use crate::sim::wait::wait_for;

/// No provisioning takes longer, even emulated on a busy machine: then something is wrong.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Shows the main job on a rack that is up.
///
/// # Errors
/// Says which machine failed in which step, and where its console log is.
pub fn show(stage: &mut Stage, paths: &Paths) -> anyhow::Result<()> {
    let api = stage.daemon.api()?;
    let kept = protected_digests(&stage.rack.machines)?;
    let idle = stage.daemon.resident_bytes()?;

    let mut runs = Vec::new();
    for machine in &stage.rack.machines {
        println!("$ anneal provision {}", machine.name);
        runs.push(
            api.provision(&machine.name, &ProvisionRequest::default())?
                .id,
        );
    }
    let (ended, busy) = follow(stage, &api, &runs)?;
    println!();
    print_report(stage, &api, &ended)?;
    check(stage, &api, &ended)?;
    check_protected(&kept)?;

    reprovision_by_curl(stage, &api, paths)?;
    check_protected(&kept)?;
    println!(
        "daemon: {} MB resident when idle, {} MB at most while provisioning",
        idle / 1_000_000,
        busy / 1_000_000
    );
    stage.daemon.stop()?;
    println!("the demo succeeded");
    Ok(())
}

/// Follows runs to their end; also the most memory the daemon was seen to use.
fn follow(stage: &mut Stage, api: &Api, ids: &[String]) -> anyhow::Result<(Vec<RunView>, u64)> {
    let mut display = Display::default();
    let mut memory = 0;
    let runs = wait_for(LIMIT, "the runs to end", || {
        stage.daemon.ensure_running()?;
        stage.rack.ensure_running()?;
        memory = memory.max(stage.daemon.resident_bytes()?);
        let runs = ids
            .iter()
            .map(|id| api.run(id))
            .collect::<anyhow::Result<Vec<_>>>()?;
        display.show(&runs);
        std::thread::sleep(Duration::from_millis(400));
        Ok(runs
            .iter()
            .all(|run| run.finished_at.is_some())
            .then_some(runs))
    })?;
    Ok((runs, memory))
}

fn print_report(stage: &Stage, api: &Api, runs: &[RunView]) -> anyhow::Result<()> {
    let views = runs
        .iter()
        .map(|run| api.machine(&run.machine))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let rows: Vec<Row<'_>> = runs
        .iter()
        .zip(&views)
        .map(|(run, machine)| Row {
            firmware: machine_of(stage, &run.machine).map_or("-", |m| m.kind.describe()),
            machine,
            run,
        })
        .collect();
    println!("{}", render(&rows));
    Ok(())
}

fn machine_of<'a>(stage: &'a Stage, name: &str) -> Option<&'a Machine> {
    stage
        .rack
        .machines
        .iter()
        .find(|machine| machine.name == name)
}

/// Insists that every run succeeded and that every node told who it is.
fn check(stage: &Stage, api: &Api, runs: &[RunView]) -> anyhow::Result<()> {
    let failures: Vec<String> = runs
        .iter()
        .filter(|run| run.state != "succeeded")
        .map(|run| explain(stage, run))
        .collect();
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
    let mut ids = Vec::new();
    for run in runs {
        expect_own_call(api, &run.id)?;
        let node = api.machine(&run.machine)?.node;
        let node = node.with_context(|| format!("{} told nothing about itself", run.machine))?;
        let os = node.os.unwrap_or_default();
        anyhow::ensure!(
            os.contains("Debian"),
            "{} runs \"{os}\", expected Debian",
            run.machine
        );
        let id = node.machine_id.unwrap_or_default();
        anyhow::ensure!(
            id.len() == 32 && !ids.contains(&id),
            "{} reported the machine-id \"{id}\", expected 32 digits of its own",
            run.machine
        );
        ids.push(id);
    }
    Ok(())
}

/// One failed run: machine, phase, reason, console.
fn explain(stage: &Stage, run: &RunView) -> String {
    let step = run
        .steps
        .iter()
        .find(|step| step.state == "failed")
        .map_or("before its first step".to_owned(), |step| {
            format!("in step \"{}\" ({})", step.name, step.uses)
        });
    let console = machine_of(stage, &run.machine)
        .map(|machine| machine.console.display().to_string())
        .unwrap_or_default();
    format!(
        "{} {} {step}: {}; its console log is {console}",
        run.machine, run.state, run.why
    )
}

type Kept = Vec<(String, std::path::PathBuf, String)>;

fn protected_digests(all: &[Machine]) -> anyhow::Result<Kept> {
    all.iter()
        .filter_map(|machine| {
            let file = machine.protected.as_ref()?.file.clone();
            Some((machine.name.clone(), file))
        })
        .map(|(name, file)| {
            let digest = machines::digest_of(&file)?;
            Ok((name, file, digest))
        })
        .collect()
}

fn check_protected(kept: &Kept) -> anyhow::Result<()> {
    anyhow::ensure!(
        !kept.is_empty(),
        "no machine of the rack has a protected disk"
    );
    for (name, file, before) in kept {
        let after = machines::digest_of(file)?;
        anyhow::ensure!(
            *before == after,
            "the protected disk of {name} changed: sha256 {before} before, {after} after"
        );
        println!(
            "protected disk of {name}: unchanged (sha256 {}…)",
            &after[..12]
        );
    }
    Ok(())
}

/// Provisions `r1n1` again the way the README shows it to other programs.
fn reprovision_by_curl(stage: &mut Stage, api: &Api, paths: &Paths) -> anyhow::Result<()> {
    const MACHINE: &str = "r1n1";
    let before = api.machine(MACHINE)?;
    let ca = stage.work.join("ca.pem");
    std::fs::write(&ca, &api.ca).with_context(|| format!("writing {}", ca.display()))?;
    let url = format!("{}/api/v1/machines/{MACHINE}/reprovision", api.server);
    println!(
        "\n$ curl --cacert {} -H \"Authorization: Bearer $KEY\" -X POST {url}",
        super::stage::shown(paths, &ca)
    );
    let mut curl = tool::command("curl")?;
    curl.args(["--silent", "--show-error", "--fail-with-body", "--cacert"])
        .arg(&ca)
        .args(["-H", &format!("Authorization: Bearer {}", api.key)])
        .args(["-X", "POST", &url]);
    // The command holds the key: a failure must not print it.
    let output = curl.output().context("starting curl")?;
    anyhow::ensure!(
        output.status.success(),
        "curl: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    let run: RunView = serde_json::from_slice(&output.stdout).context("reading curl's answer")?;
    anyhow::ensure!(
        before.run.as_ref() != Some(&run.id),
        "reprovisioning {MACHINE} gave the old run {} again",
        run.id
    );
    let (ended, _) = follow(stage, api, std::slice::from_ref(&run.id))?;
    println!();
    print_report(stage, api, &ended)?;
    check(stage, api, &ended)?;
    Ok(())
}

/// Insists that the node's report came in this run, not in one before. (Its machine-id is no
/// proof: on virtual machines systemd derives it from the hardware's UUID.)
fn expect_own_call(api: &Api, run: &str) -> anyhow::Result<()> {
    let events = api.events_of_run(run)?;
    anyhow::ensure!(
        events.iter().any(|event| event.kind == "node.phone-home"),
        "run {run} succeeded without a call from the node"
    );
    Ok(())
}

/// Where to look after a failure.
#[must_use]
pub fn where_to_look(work: &std::path::Path) -> String {
    match paths::logs(work) {
        Ok(logs) => format!("logs and consoles are in {}", logs.display()),
        Err(error) => format!("there are no logs: {error:#}"),
    }
}
