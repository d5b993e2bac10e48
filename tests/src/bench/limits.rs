//! What the machine can do at most, measured in the same run as those who try.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use super::measure;
use super::peers::{Anneal, Nginx};
use super::sink::{Take, fetch};
use super::world::{Target, World};
use crate::sim::tool;

/// Bytes of the raw disk per second that each stage can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Compressed bytes from nginx, read by four clients, in raw bytes.
    pub network: f64,
    /// zstd on every core at once.
    pub decode: f64,
    /// Writes past the page cache.
    pub disk: f64,
    /// All three one after the other on the cores there are, none of which ever waits: what is left
    /// when server, wire, decoder and disk share one machine's processors.
    pub shared: f64,
}

impl Limits {
    /// The slowest stage and its rate.
    #[must_use]
    pub fn slowest(&self) -> (&'static str, f64) {
        [
            ("network", self.network),
            ("decoding", self.decode),
            ("disk", self.disk),
        ]
        .into_iter()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or(("nothing", 0.0))
    }
}

/// Measures all three, once.
///
/// # Errors
/// When a program fails.
pub fn measure(
    anneal: &Anneal,
    target: &Target,
    parts: &[std::path::PathBuf],
    raw: u64,
) -> anyhow::Result<Limits> {
    target.dirty()?;
    let before = measure::busy()?;
    let network = network(anneal, raw)?;
    let after_network = measure::busy()?;
    let decode = decode(parts, raw)?;
    let disk = disk(target, raw)?;
    let all = (after_network - before) / NETWORK_PASSES as u32 + (measure::busy()? - after_network);
    Ok(Limits {
        network,
        decode,
        disk,
        shared: raw as f64 * cores() as f64 / all.as_secs_f64(),
    })
}

/// How often the image travels to measure the network.
const NETWORK_PASSES: u64 = 4;

fn network(anneal: &Anneal, raw: u64) -> anyhow::Result<f64> {
    let stored = std::fs::metadata(anneal.folder.join("data.zst"))?.len();
    let total = stored * NETWORK_PASSES;
    let from = World::clients();
    let took = fetch(
        Nginx::address(),
        "/data.zst",
        stored,
        total,
        &from[..1],
        4,
        Take::Copy,
    )?;
    // So many compressed bytes stand for so many raw ones.
    Ok(total as f64 / took.as_secs_f64() * (raw as f64 / stored as f64))
}

/// As many parts at once as there are cores, the next one when one is done, to nowhere.
fn decode(parts: &[std::path::PathBuf], raw: u64) -> anyhow::Result<f64> {
    let mut xargs = tool::command("xargs")?;
    xargs
        .args(["-d", "\n", "-P", &cores().to_string(), "-n", "1"])
        .args(["zstd", "-q", "-t"]);
    let list = tempfile::NamedTempFile::new()?;
    let lines: Vec<String> = parts.iter().map(|p| p.display().to_string()).collect();
    std::fs::write(list.path(), lines.join("\n"))?;
    xargs.stdin(list.reopen()?);
    let began = Instant::now();
    tool::run(&mut xargs)?;
    Ok(raw as f64 / began.elapsed().as_secs_f64())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn disk(target: &Target, raw: u64) -> anyhow::Result<f64> {
    let mut dd = tool::command("dd")?;
    dd.arg("if=/dev/zero")
        .arg(format!("of={}", target.device.display()))
        .arg(format!("count={}", raw / (4 << 20)))
        .args(["bs=4M", "oflag=direct", "conv=fsync", "status=none"]);
    let (cost, _) = measure::run(&mut dd, || target.flush())?;
    Ok(raw as f64 / cost.wall.as_secs_f64())
}

/// How many parts for each core: with one, the core whose part is easy would idle at the end.
const PARTS_PER_CORE: u64 = 16;

/// Cuts the image's data at frames into files for [`decode`].
///
/// # Errors
/// When the manifest is not one.
pub fn parts(anneal: &Anneal, dir: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    use std::io::{Read, Seek};
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(anneal.folder.join("manifest.json"))?)?;
    let offsets: Vec<u64> = manifest["manifest"]["frames"]
        .as_array()
        .context("a manifest has frames")?
        .iter()
        .filter_map(|frame| frame["offset"].as_u64())
        .collect();
    let data = std::fs::File::open(anneal.folder.join("data.zst"))?;
    let length = data.metadata()?.len();
    let count = cores() as u64 * PARTS_PER_CORE;
    let cut = |n: u64| {
        let wanted = length * n / count;
        offsets.iter().copied().find(|offset| *offset >= wanted)
    };
    let mut cuts: Vec<u64> = (0..count).filter_map(cut).chain([length]).collect();
    cuts.dedup();
    std::fs::create_dir_all(dir)?;
    cuts.windows(2)
        .enumerate()
        .map(|(n, pair)| {
            let path = dir.join(format!("part{n}.zst"));
            // Not in one piece: what this process ever had in memory shows as that of its children.
            let mut from = data.try_clone()?;
            from.seek(std::io::SeekFrom::Start(pair[0]))?;
            let mut part = std::fs::File::create(&path)?;
            std::io::copy(&mut from.take(pair[1] - pair[0]), &mut part)?;
            Ok(path)
        })
        .collect()
}
