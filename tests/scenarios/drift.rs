//! A machine that drifted: the audit says where, and the next run moves only what differs. The
//! image has a partition table, and its last partition grows to the disk.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anneal_protocol::agent::StreamResult;
use anneal_protocol::api::{ProvisionRequest, RunView};
use anneal_protocol::audit::{AuditResult, RegionDrift};
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::bench::{Bench, IMAGE, MACHINE, step_named};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "a_drifted_disk_is_found_told_and_put_right_by_what_differs",
    drift,
)
.within(LIMIT)];

/// The machine is started five times.
const LIMIT: Duration = Duration::from_secs(1500);
const MIB: u64 = 1 << 20;
const ROOT: u64 = MIB;
const STATE: u64 = 41 * MIB;

/// No system is installed that could call home: the machine is switched off instead.
const INSTALL: &str = "\
name: grown
steps:
  - uses: netboot
    timeout: 5m
  - name: write the image
    uses: stream-image
    with: { grow: last }
  - uses: power-off
";
const AUDIT: &str = "\
name: look
steps:
  - uses: netboot
    timeout: 5m
  - name: compare
    uses: audit-disk
  - uses: power-off
";

/// A disk of 64 MiB: ROOT from 1 to 41 MiB, STATE behind it, full of what does not compress.
fn make_image(file: &Path) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    let mut block = Sha256::digest(b"anneal drift scenario");
    for _ in 0..60 * MIB / block.len() as u64 {
        out.write_all(&block)?;
        block = Sha256::digest(block);
    }
    out.flush()?;
    let out = out.into_inner()?;
    out.write_all_at(&vec![0; MIB as usize], 0)?;
    out.set_len(64 * MIB)?;
    let made = Command::new("sgdisk")
        .args(["-n1:1M:+40M", "-c1:ROOT", "-n2:41M:+20M", "-c2:STATE"])
        .arg(file)
        .output()
        .context("running sgdisk: apt install gdisk")?;
    anyhow::ensure!(made.status.success(), "sgdisk: {made:?}");
    Ok(())
}

fn run(bench: &mut Bench, workflow: &str) -> anyhow::Result<RunView> {
    let request = ProvisionRequest {
        workflow: Some(workflow.to_owned()),
        image: None,
        plan: false,
    };
    let run = bench.api.provision(MACHINE, &request)?.id;
    bench.power_on()?;
    let view = bench.wait_end(&run)?;
    bench.machine.power_off();
    anyhow::ensure!(view.state == "succeeded", "{workflow}: {}", view.why);
    Ok(view)
}

fn output<T: serde::de::DeserializeOwned>(view: &RunView, step: &str) -> anyhow::Result<T> {
    let output = step_named(view, step)?.output.clone();
    serde_json::from_value(output.unwrap_or_default()).context("the step's output")
}

fn region<'a>(audit: &'a AuditResult, name: &str) -> anyhow::Result<&'a RegionDrift> {
    let mut regions = audit.regions.iter();
    regions
        .find(|region| region.name == name)
        .with_context(|| format!("no region {name}"))
}

fn change(bench: &Bench, at: u64) -> anyhow::Result<()> {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&bench.machine.disk)?;
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at)?;
    disk.write_all_at(&[!byte[0]], at)?;
    Ok(())
}

fn drift(work: &Path) -> anyhow::Result<()> {
    let image = work.join("partitioned.raw");
    make_image(&image)?;
    let mut bench = Bench::with_image(work, &image, 64, &["--mutable-partition", "STATE"])?;
    std::fs::write(work.join("workflows/grown.yaml"), INSTALL)?;
    std::fs::write(work.join("workflows/look.yaml"), AUDIT)?;

    let view = run(&mut bench, "grown")?;
    let first: StreamResult = output(&view, "write the image")?;
    anyhow::ensure!(first.grown.is_some_and(|size| size > 30 * MIB), "{first:?}");
    let verdict = Command::new("sgdisk")
        .arg("-v")
        .arg(&bench.machine.disk)
        .output()?;
    let verdict = String::from_utf8_lossy(&verdict.stdout).into_owned();
    anyhow::ensure!(verdict.contains("No problems found"), "{verdict}");

    // What may differ does.
    change(&bench, STATE + 5 * MIB)?;
    let audit: AuditResult = output(&run(&mut bench, "look")?, "compare")?;
    anyhow::ensure!(!audit.drifted, "{audit:?}");
    anyhow::ensure!(region(&audit, "STATE")?.differing > 0, "{audit:?}");
    let table = region(&audit, "partition table")?;
    anyhow::ensure!(
        table.notes.iter().any(|note| note.contains("grown")),
        "{table:?}"
    );

    // What must not, does.
    let place = ROOT + 7 * MIB + 12_345;
    change(&bench, place)?;
    let view = run(&mut bench, "look")?;
    let audit: AuditResult = output(&view, "compare")?;
    let root = region(&audit, "ROOT")?;
    let block = place / 512 * 512;
    anyhow::ensure!(audit.drifted && root.drifted && root.exact, "{root:?}");
    anyhow::ensure!(
        root.ranges
            .iter()
            .map(|range| (range.start, range.length))
            .eq([(block, 512)]),
        "{root:?}"
    );
    verify_report(&bench, work, &view.id)?;

    // The next run moves what differs: ROOT's frame, STATE's, and the first for its table.
    let again: StreamResult = output(&run(&mut bench, "grown")?, "write the image")?;
    anyhow::ensure!(again.written.frames <= 3, "{again:?}");
    anyhow::ensure!(again.transferred * 8 < first.transferred, "{again:?}");
    let audit: AuditResult = output(&run(&mut bench, "look")?, "compare")?;
    anyhow::ensure!(
        !audit.drifted && region(&audit, "STATE")?.differing == 0,
        "{audit:?}"
    );
    Ok(())
}

/// The signed report verifies with two files and nothing else, and does not when it was changed.
fn verify_report(bench: &Bench, work: &Path, run: &str) -> anyhow::Result<()> {
    let list = bench
        .daemon
        .anneal(&["-o", "json", "attestation", "list", "--machine", MACHINE])?;
    let list: Vec<serde_json::Value> = serde_json::from_str(&list)?;
    let mine = list.iter().find(|item| item["run"] == run);
    let id = mine.and_then(|item| item["id"].as_str());
    let id = id.with_context(|| format!("run {run} is not attested: {list:?}"))?;
    let (report, keys) = (work.join("report.json"), work.join("anneal.pub"));
    let envelope = bench.daemon.anneal(&["attestation", "export", id])?;
    std::fs::write(&report, &envelope)?;
    std::fs::write(&keys, bench.daemon.anneal(&["attestation", "keys"])?)?;
    let verify = |file: &Path| {
        Command::new(&bench.daemon.settings.program)
            .args(["attestation", "verify"])
            .arg(file)
            .arg("--key")
            .arg(&keys)
            .env_clear()
            .output()
    };
    let good = verify(&report)?;
    let text = String::from_utf8_lossy(&good.stdout).into_owned();
    anyhow::ensure!(
        good.status.success() && text.contains("DRIFTED"),
        "{good:?}"
    );
    anyhow::ensure!(text.contains(IMAGE), "{text}");
    let mut forged: serde_json::Value = serde_json::from_str(&envelope)?;
    let payload = forged["payload"]
        .as_str()
        .unwrap_or_default()
        .replacen('e', "f", 1);
    forged["payload"] = payload.into();
    std::fs::write(&report, forged.to_string())?;
    anyhow::ensure!(
        !verify(&report)?.status.success(),
        "a forged report was verified"
    );
    Ok(())
}
