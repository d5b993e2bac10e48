//! `bench`: what `make bench` runs; docs/performance.md is made by it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anneal_tests::bench::image::Image;
use anneal_tests::bench::peers::{Anneal, Nginx};
use anneal_tests::bench::report::{self, Results};
use anneal_tests::bench::world::World;
use anneal_tests::bench::{Part, Plan, delta, machine, serve, write};
use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::isolate::{self, Place};
use anneal_tests::sim::tool;
use clap::Parser;

/// Measures anneal beside its peers.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    /// Only this; may be repeated [default: all, and the results go to docs/performance.md]
    #[arg(long)]
    part: Vec<Part>,
    /// A small image and one run: does everything work?
    #[arg(long)]
    quick: bool,
    /// Runs of each program
    #[arg(long)]
    runs: Option<usize>,
    /// Where the page goes [default: standard output for --part and --quick]
    #[arg(long)]
    output: Option<PathBuf>,
    /// The agent to measure
    #[arg(long, default_value = ".cache/bench/anneal-agent")]
    agent: PathBuf,
}

/// It never takes longer.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Programs that are measured, beyond what the virtual rack needs.
const PEERS: [&str; 4] = ["nginx", "bmaptool", "casync", "qemu-img"];

fn main() -> ExitCode {
    let result = match isolate::place() {
        Place::Over(code) => return code,
        Place::Outer(args) => outer(&args),
        Place::Inside(work, args) => inside(&work, &args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn parse(args: &[OsString]) -> Cli {
    Cli::parse_from(std::iter::once(OsString::from("bench")).chain(args.iter().cloned()))
}

fn plan(cli: &Cli) -> Plan {
    let mut plan = if cli.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    if !cli.part.is_empty() {
        plan.parts.clone_from(&cli.part);
    }
    plan.runs = cli.runs.unwrap_or(plan.runs).max(1);
    plan
}

fn outer(args: &[OsString]) -> anyhow::Result<ExitCode> {
    parse(args);
    for program in PEERS {
        if let Err(error) = tool::find(program) {
            anyhow::bail!("{error}; `make bench-setup` installs all of them");
        }
    }
    let paths = Paths::find()?;
    let work = paths.new_work("bench-work")?;
    let end = isolate::run(&work, args, LIMIT, None, &[])?;
    if end.success() {
        std::fs::remove_dir_all(&work)?;
    } else {
        eprintln!("stopped ({end:?}); its files are in {}", work.display());
    }
    Ok(end.code())
}

fn inside(work: &Path, args: &[OsString]) -> anyhow::Result<()> {
    let cli = parse(args);
    let plan = plan(&cli);
    let paths = Paths::find()?;
    let agent = paths.root.join(&cli.agent);
    let image = Image::prepare(&paths.root.join(".cache/bench"), &paths.image, plan.size)?;
    let world = World::make(work)?;
    println!("sealing the image");
    let anneal = Anneal::start(&world, &paths.anneal, &image)?;
    // nginx serves the same bytes.
    let sealed = image.file("data.zst");
    std::fs::copy(anneal.folder.join("data.zst"), &sealed)?;
    let nginx = Nginx::start(&world, &image.dir)?;

    let mut results = Results::default();
    for part in &plan.parts {
        println!("measuring: {part:?}");
        match part {
            Part::Write => {
                for target in [world.memory_disk(plan.size)?, world.file_disk(plan.size)?] {
                    println!("to {}", target.name);
                    let table = write::table(&anneal, &agent, &image, &target, plan.runs, work)?;
                    results.write.push(table);
                }
            }
            Part::Delta => {
                let target = world.file_disk(plan.size)?;
                let delta = delta::measure(&world, &anneal, &agent, &image, &target, plan.runs)?;
                results.delta = Some(delta);
            }
            Part::Serve => {
                let total = plan.served_gib << 30;
                results.serve = serve::table(&anneal, &nginx, plan.runs, total)?;
            }
        }
    }
    let page = report::page(&plan, &machine::describe(work), &results);
    let whole = cli.part.is_empty() && !cli.quick;
    match (cli.output, whole) {
        (Some(path), _) => std::fs::write(path, page)?,
        (None, true) => std::fs::write(paths.root.join("docs/performance.md"), page)?,
        (None, false) => println!("\n{page}"),
    }
    Ok(())
}
