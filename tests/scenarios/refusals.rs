//! What is wrong in a file is refused with file, line and column, before any machine is touched.

use std::path::Path;

use anneal_tests::sim::daemon::Daemon;

use crate::bench::{self, Bench};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "an_inventory_with_a_duplicate_mac_is_refused",
        duplicate_mac,
    ),
    Scenario::new(
        "a_workflow_with_an_unknown_action_is_refused",
        unknown_action,
    ),
    Scenario::new(
        "a_template_with_an_undefined_variable_is_refused",
        undefined_variable,
    ),
];

/// Runs an `anneal` command that must fail; what it said.
fn refused(daemon: &Daemon, args: &[&str]) -> anyhow::Result<String> {
    let output = daemon.cli(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(!output.status.success(), "{args:?} was accepted");
    Ok(said)
}

fn expect(said: &str, wanted: &[&str]) -> anyhow::Result<()> {
    for word in wanted {
        anyhow::ensure!(said.contains(word), "the refusal lacks \"{word}\": {said}");
    }
    Ok(())
}

fn duplicate_mac(work: &Path) -> anyhow::Result<()> {
    let daemon = bench::daemon(work)?;
    let file = work.join("twice.yaml");
    let text = "machines:\n  - name: a1\n    nics:\n      - { mac: \"52:54:00:aa:00:31\" }\n    disk: { hints: { type: virtio } }\n  \
                - name: a2\n    nics:\n      - { mac: \"52:54:00:AA:00:31\" }\n    disk: { hints: { type: virtio } }\n";
    std::fs::write(&file, text)?;
    let said = refused(&daemon, &["apply", "-f", &file.to_string_lossy()])?;
    expect(&said, &["twice.yaml:8:", "52:54:00:aa:00:31", "a1"])?;
    let machines: serde_json::Value = daemon.api()?.get("/machines")?;
    anyhow::ensure!(
        machines["items"].as_array().is_some_and(Vec::is_empty),
        "a refused inventory left machines: {machines}"
    );
    Ok(())
}

fn unknown_action(work: &Path) -> anyhow::Result<()> {
    let daemon = bench::daemon(work)?;
    let file = work.join("wrong.yaml");
    std::fs::write(
        &file,
        "name: wrong\nsteps:\n  - name: go\n    uses: netbot\n",
    )?;
    let said = refused(&daemon, &["workflow", "validate", &file.to_string_lossy()])?;
    expect(&said, &["wrong.yaml:4:", "netbot", "netboot"])
}

fn undefined_variable(work: &Path) -> anyhow::Result<()> {
    let bench = Bench::set(work, 4)?;
    let workflow = "name: broken\nsteps:\n  - name: boot the agent\n    uses: netboot\n  \
        - name: write a file\n    uses: write-file\n    with:\n      partition: { label: X }\n      \
        path: /x\n      contents: \"{{ machine.nmae }}\"\n";
    std::fs::write(work.join("workflows/broken.yaml"), workflow)?;
    let said = refused(&bench.daemon, &["provision", "m1", "--workflow", "broken"])?;
    expect(&said, &["broken.yaml:10", "nmae"])?;
    let machine = bench.api.machine("m1")?;
    anyhow::ensure!(
        machine.run.is_none(),
        "a refused workflow made a run: {:?}",
        machine.run
    );
    Ok(())
}
