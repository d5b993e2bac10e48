//! A whole image to a disk: the agent and its peers in turn.

use std::path::Path;

use super::image::Image;
use super::limits::{self, Limits};
use super::measure::{self, Cost, median};
use super::peers::Anneal;
use super::world::{SERVER, Target};
use crate::sim::tool;

/// One program's result.
#[derive(Debug, Clone)]
pub struct Row {
    /// The program, as a person would type it.
    pub name: &'static str,
    /// Raw megabytes per second.
    pub rate: f64,
    /// Processor seconds per GiB of raw disk.
    pub cpu_per_gib: f64,
    /// Largest process, bytes.
    pub peak: u64,
    /// How often it ran.
    pub runs: usize,
    /// Why it has no numbers.
    pub failed: Option<String>,
}

/// The results on one disk.
#[derive(Debug, Clone)]
pub struct Table {
    /// The disk.
    pub target: &'static str,
    /// The limits, medians.
    pub limits: Limits,
    /// The agent first.
    pub rows: Vec<Row>,
}

struct Contender {
    name: &'static str,
    script: String,
    /// It leaves holes of the image as they are on the disk.
    skips_holes: bool,
    costs: Vec<Cost>,
    failed: Option<String>,
}

/// Who takes longer has failed.
const LONGEST_SECS: &str = "900";
/// The agent's row.
pub const AGENT: &str = "anneal-agent write";

fn contenders(
    anneal: &Anneal,
    agent: &Path,
    image: &Image,
    device: &Path,
) -> anyhow::Result<Vec<Contender>> {
    let qcow2 = image.file("disk.qcow2");
    let url = format!("http://{SERVER}");
    let dev = device.display();
    let dd = format!("dd of={dev} bs=4M iflag=fullblock oflag=direct conv=fsync status=none");
    let list = [
        (
            AGENT,
            anneal.agent(agent, device, "--delta off --verify none")?,
            false,
        ),
        (
            "anneal-agent write, read back",
            anneal.agent(agent, device, "--delta off --verify full")?,
            false,
        ),
        (
            "curl | zstd -d | dd",
            format!("curl -sSf {url}/data.zst | zstd -dcq | {dd}"),
            false,
        ),
        (
            "curl | gunzip | dd",
            format!("curl -sSf {url}/disk.raw.gz | gunzip -c | {dd}"),
            false,
        ),
        (
            // Over http it asks for small pieces one by one and takes minutes.
            "qemu-img convert (qcow2, local file)",
            format!(
                "qemu-img convert -n -W -m 8 -t none -f qcow2 -O raw {} {dev}",
                qcow2.display()
            ),
            false,
        ),
        (
            "bmaptool copy (gz, http)",
            format!("bmaptool -q copy --bmap {url}/disk.bmap {url}/disk.raw.gz {dev}"),
            true,
        ),
        (
            "casync extract",
            format!("casync extract --seed-output=no --store={url}/castr {url}/disk.caibx {dev}"),
            false,
        ),
    ];
    Ok(list
        .into_iter()
        .map(|(name, script, skips_holes)| Contender {
            name,
            script,
            skips_holes,
            costs: Vec::new(),
            failed: None,
        })
        .collect())
}

/// Runs everybody in turn, `runs` times.
///
/// # Errors
/// When the agent fails, or somebody writes something else than the image.
pub fn table(
    anneal: &Anneal,
    agent: &Path,
    image: &Image,
    target: &Target,
    runs: usize,
    work: &Path,
) -> anyhow::Result<Table> {
    let parts = limits::parts(anneal, &work.join("parts"))?;
    let mut limits = Vec::new();
    let mut contenders = contenders(anneal, agent, image, &target.device)?;
    for run in 0..runs {
        limits.push(limits::measure(anneal, target, &parts, image.size)?);
        for contender in &mut contenders {
            if contender.failed.is_some()
                || measure::slow(contender.costs.iter().map(|cost| cost.wall))
            {
                continue;
            }
            let result = once(contender, image, target, run == 0);
            println!("  {:34} {}", contender.name, told(&result, image.size));
            match result {
                Ok(cost) => contender.costs.push(cost),
                Err(error) if contender.name.starts_with(AGENT) => return Err(error),
                Err(error) => contender.failed = Some(format!("{error:#}")),
            }
        }
    }
    let of = |get: fn(&Limits) -> f64| median(&limits.iter().map(get).collect::<Vec<_>>());
    Ok(Table {
        target: target.name,
        limits: Limits {
            network: of(|l| l.network),
            decode: of(|l| l.decode),
            disk: of(|l| l.disk),
            shared: of(|l| l.shared),
        },
        rows: contenders.iter().map(|c| row(c, image.size)).collect(),
    })
}

fn once(
    contender: &Contender,
    image: &Image,
    target: &Target,
    check: bool,
) -> anyhow::Result<Cost> {
    target.dirty()?;
    let mut bash = tool::command("timeout")?;
    bash.args([LONGEST_SECS, "bash", "-e", "-o", "pipefail", "-c"]);
    bash.arg(&contender.script);
    let (cost, _) = measure::run(&mut bash, || target.flush())?;
    if check && !contender.skips_holes {
        target.forget()?;
        measure::same(&image.file("disk.raw"), &target.device, image.size)?;
    }
    Ok(cost)
}

fn told(result: &anyhow::Result<Cost>, size: u64) -> String {
    match result {
        Ok(cost) => format!(
            "{:6.0} MB/s, {:.2} CPU s",
            size as f64 / 1e6 / cost.wall.as_secs_f64(),
            cost.cpu.as_secs_f64()
        ),
        Err(error) => format!("failed: {error:#}"),
    }
}

fn row(contender: &Contender, size: u64) -> Row {
    let of =
        |get: &dyn Fn(&Cost) -> f64| median(&contender.costs.iter().map(get).collect::<Vec<_>>());
    Row {
        name: contender.name,
        rate: of(&|cost| size as f64 / 1e6 / cost.wall.as_secs_f64()),
        cpu_per_gib: of(&|cost| cost.cpu.as_secs_f64()) / (size as f64 / f64::from(1 << 30)),
        peak: contender
            .costs
            .iter()
            .map(|cost| cost.peak)
            .max()
            .unwrap_or(0),
        runs: contender.costs.len(),
        failed: contender.failed.clone(),
    }
}
