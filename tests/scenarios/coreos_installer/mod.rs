//! Fedora CoreOS is installed by its own installer, or by anneal: both leave the same on the disk.
//!
//! One image of its shape, compressed with xz, is installed by `coreos-installer` (crates.io) and by
//! the shipped workflows, daemon and agent of anneal. No system is in it that could start.

mod image;
mod reference;
mod tree;

use std::path::Path;

use anneal_protocol::api::{ProvisionRequest, RenderView};
use anneal_tests::rack::machines::digest_of;
use anneal_tests::sim::accel;
use anneal_tests::sim::direct::DirectMachine;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;
use serde_json::Value;

use crate::bench::{ADDRESS, Bench, MAC, MACHINE, RUN_LIMIT, daemon, step_named};
use crate::runner::Scenario;
use image::{BOOT, ENTRY, MIB, OPTIONS, SIZE};
use reference::Order;
use tree::Tree;

/// See the module.
pub const FROM_DISK: Scenario = Scenario::new(
    "coreos_installer_and_anneal_leave_the_same_on_the_disk",
    |work| the_same("install-coreos", work),
);
/// The same with a pointer, and a first boot that needs the network to follow it.
pub const BY_URL: Scenario = Scenario::new(
    "coreos_installer_and_anneal_leave_the_same_pointer_on_the_disk",
    |work| the_same("install-coreos-url", work),
);

/// Where SELinux has its labels.
const LABEL: &str = "security.selinux";
/// The disk is larger than the image.
const DISK: u64 = SIZE + 16 * MIB;
const ARGUMENTS: &[&str] = &["console=ttyS0,115200n8", "hugepages=16", "quiet"];
/// Files of the configuration that are new in each run.
const FRESH: &[&str] = &["/etc/anneal/installed", "/etc/anneal/phone-home.conf"];

fn the_same(workflow: &str, work: &Path) -> anyhow::Result<()> {
    let program = reference::program()?;
    let (raw, packed) = image::make(work)?;
    let mut bench = set(work, &raw, &packed)?;
    install(&mut bench, workflow)?;
    compare(&bench, workflow, &program, &raw, &packed, work)
}

fn set(work: &Path, raw: &Path, packed: &Path) -> anyhow::Result<Bench> {
    let daemon = daemon(work)?;
    daemon.add_image_with("fedora-coreos@43", packed, "fcos", &[])?;
    let inventory = work.join("inventory.yaml");
    let text = format!(
        "machines:\n  - name: {MACHINE}\n    nics:\n      \
         - {{ mac: \"{MAC}\", address: {ADDRESS}/24, gateway: 10.77.0.1, boot: true }}\n    \
         disk: {{ hints: {{ type: virtio }} }}\n    image: fedora-coreos@43\n    \
         dns: [ 10.77.0.1 ]\n    kernel_args: {}\n",
        serde_json::to_string(ARGUMENTS)?
    );
    std::fs::write(&inventory, text)?;
    daemon.anneal(&["apply", "-f", &inventory.to_string_lossy()])?;
    let netboot = daemon.settings.netboot.clone();
    let accel = accel::detect(&netboot.join("vmlinuz"))?;
    Ok(Bench {
        api: daemon.api()?,
        daemon,
        machine: DirectMachine::new(MACHINE, MAC, DISK, accel, &netboot, work)?,
        image_sha256: digest_of(raw)?,
        image_bytes: SIZE,
    })
}

/// Lets the workflow run until the agent has left for the installed system, which there is not.
fn install(bench: &mut Bench, workflow: &str) -> anyhow::Result<()> {
    let request = ProvisionRequest {
        workflow: Some(workflow.to_owned()),
        image: None,
        plan: false,
    };
    let run = bench.api.provision(MACHINE, &request)?.id;
    bench.power_on()?;
    wait_for(RUN_LIMIT, "the agent to leave", || {
        bench.daemon.ensure_running()?;
        let view = bench.api.run(&run)?;
        anyhow::ensure!(
            view.finished_at.is_none(),
            "{workflow} ended {}: {}",
            view.state,
            view.why
        );
        let written = step_named(&view, "kernel arguments")?.state == "succeeded";
        Ok((written && !bench.machine.is_on()).then_some(()))
    })
}

fn compare(
    bench: &Bench,
    workflow: &str,
    program: &Path,
    raw: &Path,
    packed: &Path,
    work: &Path,
) -> anyhow::Result<()> {
    let ours = tree::boot(&bench.machine.disk, work)?;
    let config = contents(&ours, "ignition/config.ign")?;
    let by_url = workflow.ends_with("-url");
    if by_url {
        is_pointer(&config)?;
    } else {
        is_what_render_shows(bench, workflow, &config)?;
    }
    let first_boot = words_of_first_boot(&ours, by_url)?;

    let ignition = work.join("config.ign");
    std::fs::write(&ignition, &config)?;
    let order = Order {
        image: packed,
        ignition: &ignition,
        arguments: ARGUMENTS,
        first_boot: first_boot.as_deref(),
    };
    let reference = reference::install(program, &order, DISK, work)?;
    let theirs = tree::boot(&reference, work)?;
    let differences = tree::differences(&theirs, &ours);
    anyhow::ensure!(
        differences.is_empty(),
        "coreos-installer and anneal: {differences:#?}"
    );
    // Both changed what they should, and nothing else.
    let changed = tree::differences(&tree::boot(raw, work)?, &ours);
    let changed: Vec<&str> = changed.iter().map(|(path, _)| path.as_str()).collect();
    let mut expected = vec!["ignition", "ignition/config.ign", ENTRY];
    expected.extend(by_url.then_some("ignition.firstboot"));
    expected.sort_unstable();
    anyhow::ensure!(changed == expected, "{changed:?}");
    bytes(&std::fs::read(raw)?, &reference, &bench.machine.disk)
}

fn contents(tree: &Tree, path: &str) -> anyhow::Result<String> {
    let item = tree.get(path).with_context(|| format!("no {path}"))?;
    Ok(String::from_utf8_lossy(&item.contents).into_owned())
}

/// The entry has the inventory's kernel arguments; the first boot has its network when it fetches
/// something, and nothing otherwise.
fn words_of_first_boot(ours: &Tree, by_url: bool) -> anyhow::Result<Option<String>> {
    let entry = contents(ours, ENTRY)?;
    let expected = format!("\n{OPTIONS} {}\n", ARGUMENTS.join(" "));
    anyhow::ensure!(entry.contains(&expected), "{entry}");
    let text = contents(ours, "ignition.firstboot")?;
    let words = text
        .strip_prefix("set ignition_network_kcmdline=\"")
        .and_then(|rest| rest.split_once('"'))
        .map(|(words, _)| words.to_owned());
    let network = format!("ip={ADDRESS}:");
    let fits = match &words {
        Some(words) => by_url && words.contains(&network),
        None => !by_url && text.is_empty(),
    };
    anyhow::ensure!(fits, "ignition.firstboot: {text}");
    Ok(words)
}

fn is_pointer(config: &str) -> anyhow::Result<()> {
    let document: Value = serde_json::from_str(config)?;
    let source = &document["ignition"]["config"]["replace"]["source"];
    let url = source
        .as_str()
        .is_some_and(|url| url.starts_with("https://"));
    anyhow::ensure!(url, "{document}");
    Ok(())
}

/// The document on the disk is the one that an operator is shown, but for what each run has new.
fn is_what_render_shows(bench: &Bench, workflow: &str, config: &str) -> anyhow::Result<()> {
    let shown = bench.daemon.anneal(&[
        "-o",
        "json",
        "render",
        MACHINE,
        "--workflow",
        workflow,
        "--show-secrets",
    ])?;
    let shown: RenderView = serde_json::from_str(&shown)?;
    let step = shown
        .steps
        .iter()
        .find(|step| step.name == "write Ignition");
    let shown = step.and_then(|step| step.with["contents"].as_str());
    let parse = |text: &str| -> anyhow::Result<Value> {
        let mut document: Value = serde_json::from_str(text)?;
        let files = document["storage"]["files"].as_array_mut();
        for file in files.context("the document has no files")? {
            if FRESH.iter().any(|path| file["path"] == *path) {
                file["contents"].take();
            }
        }
        Ok(document)
    };
    let (shown, written) = (parse(shown.context("no document")?)?, parse(config)?);
    anyhow::ensure!(shown == written, "shown: {shown}\nwritten: {written}");
    Ok(())
}

/// Every byte outside of the boot partition is the image's on both disks. Behind the image there
/// is nothing of anneal's; `coreos-installer` leaves the table there with which it began.
fn bytes(image: &[u8], reference: &Path, ours: &Path) -> anyhow::Result<()> {
    let end = usize::try_from(SIZE)?;
    let boot = usize::try_from(BOOT.0)?..usize::try_from(BOOT.0 + BOOT.1)?;
    for (who, disk) in [("coreos-installer", reference), ("anneal", ours)] {
        let disk = std::fs::read(disk)?;
        anyhow::ensure!(disk.len() as u64 == DISK, "{who}: {} bytes", disk.len());
        let same = |range: std::ops::Range<usize>| disk[range.clone()] == image[range];
        anyhow::ensure!(same(0..boot.start), "{who}: before the boot partition");
        anyhow::ensure!(same(boot.end..end), "{who}: behind the boot partition");
        let header = disk.len() - 512;
        if who == "anneal" {
            anyhow::ensure!(
                disk[end..].iter().all(|byte| *byte == 0),
                "behind the image"
            );
        } else {
            anyhow::ensure!(
                disk[header..].starts_with(b"EFI PART"),
                "no table at the end"
            );
        }
    }
    Ok(())
}
