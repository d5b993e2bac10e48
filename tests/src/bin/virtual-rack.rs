//! `virtual-rack`: what `make demo`, `make lab` and `make lab-down` run.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anneal_tests::rack::paths::Paths;
use anneal_tests::rack::stage::Stage;
use anneal_tests::rack::{Rack, demo, lab};
use anneal_tests::sim::isolate::{self, End, Place};
use anyhow::Context;
use clap::{Parser, Subcommand};

/// A rack of three virtual machines with real firmware and real BMCs.
#[derive(Debug, Parser)]
#[command(name = "virtual-rack")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Provision all machines, then one again, and show how it went.
    Demo,
    /// Leave the rack running in the background.
    Lab,
    /// Remove what `lab` left.
    LabDown,
    /// What `lab` starts in the background.
    #[command(hide = true)]
    LabKeeper,
    /// Bring the rack up without a daemon, run a command on its network, tear it down.
    With {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// The demo and tests never take longer than this.
const LIMIT: Duration = Duration::from_secs(3600);
/// A lab may stay for a year.
const LAB_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

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
    Cli::parse_from(std::iter::once(OsString::from("virtual-rack")).chain(args.iter().cloned()))
}

fn outer(args: &[OsString]) -> anyhow::Result<ExitCode> {
    let paths = Paths::find()?;
    let limit = match parse(args).command {
        Action::Lab => return lab::start(&paths).map(|()| ExitCode::SUCCESS),
        Action::LabDown => return lab::stop(&paths).map(|()| ExitCode::SUCCESS),
        Action::LabKeeper => LAB_LIMIT,
        Action::Demo | Action::With { .. } => LIMIT,
    };
    let work = paths.new_work("rack")?;
    let end = isolate::run(&work, args, limit, None, &[])?;
    if end.success() {
        std::fs::remove_dir_all(&work).context("removing the rack's files")?;
    } else {
        if !matches!(end, End::Exited(_)) {
            eprintln!("stopped ({end:?})");
        }
        eprintln!("{}", demo::where_to_look(&work));
        remove_disks(&work)?;
    }
    Ok(end.code())
}

/// After a failure the logs stay, until the next rack starts; the big files need not.
fn remove_disks(work: &Path) -> anyhow::Result<()> {
    for dir in ["disks", "state/images"] {
        let dir = work.join(dir);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
    }
    Ok(())
}

fn inside(work: &Path, args: &[OsString]) -> anyhow::Result<()> {
    let paths = Paths::find()?;
    match parse(args).command {
        Action::Demo => demo::show(&mut Stage::set(&paths, work)?, &paths),
        Action::LabKeeper => lab::keep(Stage::set(&paths, work)?, &paths),
        Action::With { command } => with(&paths, work, &command),
        Action::Lab | Action::LabDown => anyhow::bail!("this runs outside of the rack"),
    }
}

fn with(paths: &Paths, work: &Path, command: &[OsString]) -> anyhow::Result<()> {
    let _rack = Rack::start(paths, work, 4 << 30)?;
    let status = Command::new(&command[0])
        .args(&command[1..])
        .env("RACK_WORK", work)
        .status()
        .with_context(|| format!("starting {}", command[0].to_string_lossy()))?;
    anyhow::ensure!(status.success(), "the command failed: {status}");
    Ok(())
}
