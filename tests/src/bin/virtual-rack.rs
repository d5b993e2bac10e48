//! `virtual-rack`: what `make demo`, `make lab` and `make lab-down` run.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anneal_tests::rack::Rack;
use anneal_tests::rack::paths::Paths;
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
    /// Bring the rack up without a daemon, run a command on its network, tear it down.
    With {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// Nothing the rack does takes longer than this.
const LIMIT: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let result = match isolate::place() {
        Place::Over(code) => return code,
        Place::Outer(args) => outer(&args),
        Place::Inside(work, args) => inside(&work, args).map(|()| ExitCode::SUCCESS),
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
    let _checked = parse(args);
    let work = Paths::find()?.new_work("rack")?;
    let end = isolate::run(&work, args, LIMIT, None)?;
    match end {
        End::Exited(status) if status.success() => {
            std::fs::remove_dir_all(&work).context("removing the rack's files")?;
            Ok(ExitCode::SUCCESS)
        }
        End::Exited(status) => {
            eprintln!("logs are in {}", work.join("logs").display());
            Ok(ExitCode::from(
                status
                    .code()
                    .and_then(|code| u8::try_from(code).ok())
                    .unwrap_or(1),
            ))
        }
        End::Interrupted | End::TimedOut => {
            eprintln!(
                "stopped ({end:?}); logs are in {}",
                work.join("logs").display()
            );
            Ok(ExitCode::from(130))
        }
    }
}

fn inside(work: &Path, args: Vec<OsString>) -> anyhow::Result<()> {
    match parse(&args).command {
        Action::With { command } => {
            let _rack = Rack::start(&Paths::find()?, work, 4 << 30)?;
            let status = Command::new(&command[0])
                .args(&command[1..])
                .env("RACK_WORK", work)
                .status()
                .with_context(|| format!("starting {}", command[0].to_string_lossy()))?;
            anyhow::ensure!(status.success(), "the command failed: {status}");
            Ok(())
        }
    }
}
