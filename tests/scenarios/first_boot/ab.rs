//! An A/B image under UEFI, whose update does not start: systemd-boot counts its attempts and falls back,
//! and what is recorded is the version that called home.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anneal_protocol::api::NodeReport;
use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;

use crate::bench::{Bench, IMAGE, MACHINE, SHORT};
use crate::first_boot::{SETTINGS, expect, wait_end, write};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "a_bad_update_falls_back_and_the_version_that_runs_is_recorded",
    bad_update,
)
.within(LIMIT)];

/// A whole system that is installed and started, on a busy host.
const LIMIT: Duration = Duration::from_secs(2000);

/// The image, in whose boot partition version 2 is the one to start.
fn scene(work: &Path) -> anyhow::Result<Bench> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image"), (&paths.systemd_boot, "image")])?;
    let image = work.join("ab.raw");
    tool::run(
        Command::new(paths.root.join("tests/e2e/image/ab.sh"))
            .arg(&paths.image)
            .arg(&paths.systemd_boot)
            .arg(&image),
    )?;
    std::fs::write(work.join("anneal.yaml"), SETTINGS)?;
    std::fs::create_dir_all(work.join("templates"))?;
    // As shipped, but for reading back all of the disk, which other scenarios do.
    let shipped = std::fs::read_to_string(paths.root.join("workflows/install-rauc.yaml"))?;
    std::fs::create_dir_all(work.join("workflows"))?;
    let workflow = shipped.replace("verify: full", "verify: none");
    std::fs::write(work.join("workflows/install-rauc.yaml"), workflow)?;
    let mib = std::fs::metadata(&image)?.len() >> 20;
    Bench::with_image_of(work, &image, mib, "rauc", &["--os-version", "2"])
}

/// The boot entries on the machine's disk, by name: it tells how often they were tried and what came of it.
fn entries(bench: &Bench) -> anyhow::Result<Vec<String>> {
    let partition = format!("{}@@4M", bench.machine.disk.display());
    let mut mdir = tool::command("mdir")?;
    let listed = tool::run(mdir.args(["-b", "-i", &partition, "::loader/entries"]))?;
    let listed = String::from_utf8(listed.stdout)?;
    let names = listed.lines().filter_map(|line| line.rsplit('/').next());
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn bad_update(work: &Path) -> anyhow::Result<()> {
    let mut bench = scene(work)?;
    let run = write(&mut bench, "install-rauc")?;
    let written = entries(&bench)?;
    anyhow::ensure!(written == ["ab-1+3.conf", "ab-2+2.conf"], "{written:?}");
    bench.machine.start_uefi_disk()?;
    let view = wait_end(&mut bench, &run)?;
    expect(&bench, &view, "failed")?;
    // systemd finds the boot good a moment after the node called home, or before.
    let what = "version 2 to be given up after two attempts, and version 1 to be good";
    wait_for(SHORT, what, || {
        let names = entries(&bench)?;
        Ok((names == ["ab-1.conf", "ab-2+0-2.conf"]).then_some(()))
    })?;
    bench.machine.power_off();
    let console = std::fs::read_to_string(&bench.machine.console)?;
    let panics = console.matches("Kernel panic - not syncing").count();
    anyhow::ensure!(panics == 2, "{panics} attempts at version 2");

    let difference = format!("the installed image {IMAGE} says version 2, the node runs 1");
    anyhow::ensure!(view.why.contains(&difference), "{}", view.why);
    let told = bench.events(&run, "node.other-version")?;
    anyhow::ensure!(told.len() == 1 && told[0].message == difference, "{told:?}");
    let node = bench.api.machine(MACHINE)?.node.context("no report")?;
    recorded(&node)?;
    let shown = bench.daemon.anneal(&["machine", "show", MACHINE])?;
    anyhow::ensure!(
        shown.contains("1, NOT 2, which was installed") && shown.contains(&difference),
        "{shown}"
    );
    Ok(())
}

/// What runs, in the node's words, and beside it what was installed.
fn recorded(node: &NodeReport) -> anyhow::Result<()> {
    let versions = [&node.image_version, &node.installed_version, &node.version];
    let versions = versions.map(|version| version.as_deref());
    let image = node
        .os
        .as_ref()
        .is_some_and(|os| os.ends_with(", image anneal-ab 1"));
    anyhow::ensure!(
        versions[..2] == [Some("1"), Some("2")]
            && versions[2].is_some()
            && image
            && node.hostname.as_deref() == Some(MACHINE),
        "{node:?}"
    );
    Ok(())
}
