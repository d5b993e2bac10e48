//! An A/B image under UEFI. When its update does not start, systemd-boot counts the attempts and falls back, and the
//! version that called home is recorded. The update that was mended starts and is found good.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anneal_protocol::api::{NodeReport, ProvisionRequest};
use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;

use crate::bench::{Bench, IMAGE, MACHINE, RUN_LIMIT, inventory_text};
use crate::first_boot::{SETTINGS, agents_part, expect, wait_end, write};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "a_bad_update_falls_back_and_a_good_one_stays_and_the_version_that_runs_is_recorded",
    updates,
)
.within(LIMIT)];

/// Two installations, and the starts of what they installed.
const LIMIT: Duration = Duration::from_secs(3000);
/// The image whose update starts.
const MENDED: &str = "tiny@2";

/// An image in whose boot partition version 2 is the one to start.
fn image(work: &Path, update: &str) -> anyhow::Result<PathBuf> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image"), (&paths.systemd_boot, "image")])?;
    let image = work.join(format!("{update}.raw"));
    tool::run(
        Command::new(paths.root.join("tests/e2e/image/ab.sh"))
            .arg(&paths.image)
            .arg(&paths.systemd_boot)
            .arg(&image)
            .arg(update),
    )?;
    Ok(image)
}

/// The machine, and the image whose update does not start.
fn scene(work: &Path) -> anyhow::Result<Bench> {
    let image = image(work, "bad")?;
    std::fs::write(work.join("anneal.yaml"), SETTINGS)?;
    std::fs::create_dir_all(work.join("templates"))?;
    // As shipped, but for reading back all of the disk, which other scenarios do.
    let shipped = Paths::find()?.root.join("workflows/install-rauc.yaml");
    let shipped = std::fs::read_to_string(shipped)?;
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

/// What becomes of them: systemd finds a version good a moment after the node called home, or before.
fn wait_entries(bench: &Bench, what: &str, expected: &[&str]) -> anyhow::Result<()> {
    wait_for(RUN_LIMIT, what, || {
        Ok((entries(bench)? == expected).then_some(()))
    })
}

fn updates(work: &Path) -> anyhow::Result<()> {
    let mut bench = scene(work)?;
    falls_back(&mut bench)?;
    stays(&mut bench, work)
}

/// Version 2 does not start, version 1 does, and the run fails.
fn falls_back(bench: &mut Bench) -> anyhow::Result<()> {
    let run = write(bench, "install-rauc")?;
    let written = entries(bench)?;
    anyhow::ensure!(written == ["ab-1+3.conf", "ab-2+2.conf"], "{written:?}");
    bench.machine.start_uefi_disk()?;
    let view = wait_end(bench, &run)?;
    expect(bench, &view, "failed")?;
    let what = "version 2 to be given up after two attempts, and version 1 to be good";
    wait_entries(bench, what, &["ab-1.conf", "ab-2+0-2.conf"])?;
    bench.machine.power_off();
    let console = std::fs::read_to_string(&bench.machine.console)?;
    let panics = console.matches("Kernel panic - not syncing").count();
    anyhow::ensure!(panics == 2, "{panics} attempts at version 2");

    let difference = format!("the installed image {IMAGE} says version 2, the node runs 1");
    anyhow::ensure!(view.why.contains(&difference), "{}", view.why);
    let told = bench.events(&run, "node.other-version")?;
    anyhow::ensure!(told.len() == 1 && told[0].message == difference, "{told:?}");
    let node = bench.api.machine(MACHINE)?.node.context("no report")?;
    recorded(&node, "1", Some("2"))?;
    let shown = bench.daemon.anneal(&["machine", "show", MACHINE])?;
    anyhow::ensure!(
        shown.contains("1, NOT 2, which was installed") && shown.contains(&difference),
        "{shown}"
    );
    Ok(())
}

/// The operator has the update mended and installs again: version 2 starts, and stays.
fn stays(bench: &mut Bench, work: &Path) -> anyhow::Result<()> {
    let image = image(work, "good")?;
    let version = ["--os-version", "2"];
    bench
        .daemon
        .add_image_with(MENDED, &image, "rauc", &version)?;
    let inventory = work.join("inventory.yaml");
    std::fs::write(&inventory, inventory_text().replace(IMAGE, MENDED))?;
    bench
        .daemon
        .anneal(&["apply", "-f", &inventory.to_string_lossy()])?;
    let request = ProvisionRequest {
        workflow: Some("install-rauc".to_owned()),
        ..ProvisionRequest::default()
    };
    let before = std::fs::read(&bench.machine.console)?.len();
    let run = bench.api.provision(MACHINE, &request)?.id;
    agents_part(bench, &run)?;
    let written = entries(bench)?;
    anyhow::ensure!(written == ["ab-1+3.conf", "ab-2+2.conf"], "{written:?}");
    bench.machine.start_uefi_disk()?;
    let view = wait_end(bench, &run)?;
    expect(bench, &view, "succeeded")?;
    let what = "version 2 to be good, and version 1 not to be tried";
    wait_entries(bench, what, &["ab-1+3.conf", "ab-2.conf"])?;
    bench.machine.power_off();
    let console = std::fs::read(&bench.machine.console)?;
    let console = String::from_utf8_lossy(&console[before..]).into_owned();
    anyhow::ensure!(!console.contains("Kernel panic"), "version 2 panicked");

    let told = bench.events(&run, "node.other-version")?;
    anyhow::ensure!(told.is_empty(), "{told:?}");
    let machine = bench.api.machine(MACHINE)?;
    recorded(&machine.node.context("no report")?, "2", None)?;
    let shown = bench.daemon.anneal(&["machine", "show", MACHINE])?;
    let fact = |name: &str| {
        let line = shown.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let facts = ["state ", "image ", "node version "].map(fact);
    anyhow::ensure!(
        facts == [Some("provisioned"), Some(MENDED), Some("2")],
        "{shown}"
    );
    Ok(())
}

/// What runs, in the node's words, and beside it what was installed when that is another version.
fn recorded(node: &NodeReport, runs: &str, installed: Option<&str>) -> anyhow::Result<()> {
    let said = [&node.image_version, &node.installed_version];
    let said = said.map(|version| version.as_deref());
    let image = format!(", image anneal-ab {runs}");
    anyhow::ensure!(
        said == [Some(runs), installed]
            && node.version.is_some()
            && node.os.as_ref().is_some_and(|os| os.ends_with(&image))
            && node.hostname.as_deref() == Some(MACHINE),
        "{node:?}"
    );
    Ok(())
}
