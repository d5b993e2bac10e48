//! A disk that has drifted: 1 % of its frames differ. What travels, and how long it takes.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::image::Image;
use super::measure::{self, median};
use super::peers::Anneal;
use super::world::{SERVER, Target, World};
use crate::sim::tool;

/// One of so many frames differs.
const ONE_OF: usize = 100;

/// The results.
#[derive(Debug, Clone)]
pub struct Delta {
    /// Frames that differ, and frames in all.
    pub frames: (usize, usize),
    /// Compressed bytes of the frames that differ.
    pub changed: u64,
    /// Seconds to read the disk once, past the page cache.
    pub read_once: f64,
    /// One program each.
    pub rows: Vec<Row>,
}

/// One program's result.
#[derive(Debug, Clone)]
pub struct Row {
    /// The program.
    pub name: &'static str,
    /// Seconds.
    pub seconds: f64,
    /// Bytes that the wire carried towards the machine, headers and all.
    pub wire: u64,
    /// Largest process, bytes.
    pub peak: u64,
    /// How often it ran.
    pub runs: usize,
    /// Why it has no numbers.
    pub failed: Option<String>,
}

/// Lets the disk drift and repairs it, in turn, `runs` times.
///
/// # Errors
/// When the agent fails, or somebody leaves something else than the image.
pub fn measure(
    world: &World,
    anneal: &Anneal,
    agent: &Path,
    image: &Image,
    target: &Target,
    runs: usize,
) -> anyhow::Result<Delta> {
    let drift = Drift::plan(anneal)?;
    let dev = target.device.display();
    let url = format!("http://{SERVER}");
    let scripts = [
        (
            "anneal-agent write, delta",
            anneal.agent(agent, &target.device, "--delta auto --verify none")?,
        ),
        (
            "casync extract, seeded",
            format!("casync extract --store={url}/castr {url}/disk.caibx {dev}"),
        ),
    ];
    tool::run(tool::command("dd")?.args([
        &format!("if={}", image.file("disk.raw").display()),
        &format!("of={dev}"),
        "bs=4M",
        "oflag=direct",
        "conv=fsync",
        "status=none",
    ]))?;
    let mut reads = Vec::new();
    let mut results = vec![(Vec::new(), Vec::new(), 0, None); scripts.len()];
    for run in 0..runs {
        reads.push(read_once(target)?);
        for ((name, script), result) in scripts.iter().zip(&mut results) {
            let seconds = result.0.iter().copied().map(Duration::from_secs_f64);
            if result.3.is_some() || measure::slow(seconds) {
                continue;
            }
            drift.let_it(target)?;
            target.forget()?;
            let before = world.received()?;
            let mut bash = tool::command("bash")?;
            bash.args(["-e", "-o", "pipefail", "-c", script]);
            let ran = measure::run(&mut bash, || target.flush());
            let wire = world.received()? - before;
            target.forget()?;
            let checked = ran.and_then(|(cost, _)| {
                if run == 0 {
                    measure::same(&image.file("disk.raw"), &target.device, image.size)?;
                }
                Ok(cost)
            });
            match checked {
                Ok(cost) => {
                    println!("  {name:34} {:.2} s, {wire} bytes", cost.wall.as_secs_f64());
                    result.0.push(cost.wall.as_secs_f64());
                    result.1.push(wire as f64);
                    result.2 = cost.peak.max(result.2);
                }
                Err(error) if name.starts_with("anneal") => return Err(error),
                Err(error) => result.3 = Some(format!("{error:#}")),
            }
        }
    }
    Ok(Delta {
        frames: (drift.frames.len(), drift.of),
        changed: drift.compressed,
        read_once: median(&reads),
        rows: scripts
            .iter()
            .zip(results)
            .map(|((name, _), (seconds, wire, peak, failed))| Row {
                name,
                seconds: median(&seconds),
                wire: median(&wire) as u64,
                peak,
                runs: seconds.len(),
                failed,
            })
            .collect(),
    })
}

fn read_once(target: &Target) -> anyhow::Result<f64> {
    let mut dd = tool::command("dd")?;
    dd.arg(format!("if={}", target.device.display()));
    dd.args(["of=/dev/null", "bs=4M", "iflag=direct", "status=none"]);
    let (cost, _) = measure::run(&mut dd, || Ok(()))?;
    Ok(cost.wall.as_secs_f64())
}

/// Which frames drift.
struct Drift {
    /// Where on the disk a sector changes: one in each of these frames.
    frames: Vec<u64>,
    of: usize,
    compressed: u64,
}

impl Drift {
    /// Every hundredth frame with data, and at least one.
    fn plan(anneal: &Anneal) -> anyhow::Result<Self> {
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(anneal.folder.join("manifest.json"))?)?;
        let manifest = &manifest["manifest"];
        let frame_size = manifest["frame_size"].as_u64().context("a frame size")?;
        let all = manifest["frames"].as_array().context("frames")?;
        let data: Vec<(u64, u64)> = (0..)
            .zip(all)
            .filter(|(_, frame)| frame["digest"].is_string())
            .filter_map(|(index, frame)| Some((index * frame_size, frame["length"].as_u64()?)))
            .collect();
        let count = (all.len() / ONE_OF).max(1);
        let step = (data.len() / count).max(1);
        // Not the first: it holds the partition table, which the agent treats in its own way.
        let chosen: Vec<_> = data
            .iter()
            .skip(step / 2 + 1)
            .step_by(step)
            .take(count)
            .collect();
        anyhow::ensure!(!chosen.is_empty(), "the image has too few frames");
        Ok(Self {
            // Somewhere inside the frame.
            frames: chosen
                .iter()
                .map(|(start, _)| start + frame_size / 3 / 4096 * 4096)
                .collect(),
            of: all.len(),
            compressed: chosen.iter().map(|(_, length)| length).sum(),
        })
    }

    /// Changes a block in each frame.
    fn let_it(&self, target: &Target) -> anyhow::Result<()> {
        let device = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&target.device)?;
        let mut block = [0; 4096];
        for at in &self.frames {
            device.read_exact_at(&mut block, *at)?;
            for byte in &mut block {
                *byte = !*byte;
            }
            device.write_all_at(&block, *at)?;
        }
        device.sync_all()?;
        Ok(())
    }
}
