//! `anneal`, the command: what can be typed, and nothing else.
//!
//! Owns: the grammar of the command line, the flat match from a command to its function, exit
//! codes (0 done, 1 failed, 2 mistyped) and how a failure is told: `error:` and, where something
//! can be done about it, `hint:`.
//!
//! Invariant: no logic. A command's function asks the API (`client`) and prints (`output`).
//!
//! Not here: the daemon (`app`); `serve` only collects its settings.

mod api_key;
mod apply;
mod attestation;
mod audit;
mod client;
mod cluster;
mod config;
mod context;
mod event;
mod follow;
mod image;
mod image_add;
mod image_care;
mod image_export;
pub mod image_proof;
mod image_send;
mod ingest_meter;
mod machine;
mod output;
mod provision;
mod render;
mod run;
mod screen;
mod serve;
mod sse;
mod time;
mod token;
mod workflow;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use client::Client;
use output::Format;

/// Provisions bare metal: puts machines back into one known, sealed state.
#[derive(Debug, Parser)]
#[command(
    name = "anneal",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    /// How to reach the daemon: a context file, or the name of a context.
    #[arg(long, global = true, env = "ANNEAL_CONTEXT", value_name = "FILE|NAME")]
    context: Option<String>,
    /// How to print: tables for people, the rest for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: DHCP, TFTP, HTTP boot, API
    Serve(Box<serve::Args>),
    /// Make the inventory say what files say
    Apply(apply::Args),
    /// Look at machines
    #[command(subcommand)]
    Machine(machine::Command),
    /// Install a machine's image, and follow until its system phoned home
    #[command(visible_alias = "reprovision")]
    Provision(provision::Args),
    /// Print everything that a machine would get; nothing is made, stored or touched
    Render(render::Args),
    /// Check what machines would get, by every check there is
    #[command(subcommand)]
    Config(config::Command),
    /// Look at runs, follow, cancel or retry them
    #[command(subcommand)]
    Run(run::Command),
    /// List and check workflows
    #[command(subcommand)]
    Workflow(workflow::Command),
    /// Manage images
    #[command(subcommand)]
    Image(image::Command),
    /// Clusters that machines join; import secrets of Talos clusters
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Look at one-use tokens (never the secret)
    #[command(subcommand)]
    Token(token::Command),
    /// Signed statements of what is on machines: list, show, export, verify
    #[command(subcommand)]
    Attestation(attestation::Command),
    /// What happened
    #[command(subcommand)]
    Event(event::Command),
    /// Manage API keys
    #[command(subcommand)]
    ApiKey(api_key::Command),
    /// Manage how to reach daemons
    #[command(subcommand)]
    Context(context::Command),
    /// Print a completion script for a shell
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Parses the command line, does it, tells a failure. The whole of `main`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only when a provider is installed already, which is just as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let Cli {
        context,
        output,
        command,
    } = cli;
    match command {
        Command::Serve(args) => serve::serve(*args),
        Command::Completion { shell } => completion(shell),
        Command::Context(command) => context::run(command, output),
        Command::Attestation(attestation::Command::Verify(args)) => {
            attestation::verify(&args, output)
        }
        Command::Attestation(command) => call(context, |c| attestation::run(c, command, output)),
        Command::Apply(args) => call(context, |c| apply::apply(c, args, output)),
        Command::Machine(command) => call(context, |c| machine::run(c, command, output)),
        Command::Provision(args) => call(context, |c| provision::provision(c, args, output)),
        Command::Render(args) => call(context, |c| render::render(c, args, output)),
        Command::Config(command) => call(context, |c| config::run(c, command, output)),
        Command::Run(command) => call(context, |c| run::run(c, command, output)),
        Command::Workflow(command) => call(context, |c| workflow::run(c, command, output)),
        Command::Image(command) => call(context, |c| image::run(c, command, output)),
        Command::Cluster(command) => call(context, |c| cluster::run(c, command, output)),
        Command::Token(command) => call(context, |c| token::run(c, command, output)),
        Command::Event(command) => call(context, |c| event::run(c, command, output)),
        Command::ApiKey(command) => call(context, |c| api_key::run(c, command, output)),
    }
}

/// Runs something that talks to the daemon.
fn call<F>(context: Option<String>, work: impl FnOnce(Client) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let client = Client::new(&context::find(context.as_deref())?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(work(client));
    if ended.is_err() {
        // Not kept waiting by a read of standard input that has no end.
        runtime.shutdown_background();
    }
    ended
}

fn completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "anneal", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

fn tell(error: &anyhow::Error) {
    let mut text = format!("error: {error:#}\n");
    if let Some(hint) = client::hint(error) {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // Nobody is left to be told when this fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests;
