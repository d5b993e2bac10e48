//! `anneal-agent`: PID 1 of the netboot environment, or an ordinary process in tests.
//!
//! Also answers to the name `modprobe`, which the kernel calls when it wants a module.

use std::process::ExitCode;

use anneal_agent::{agent, cmdline::Options, init, write};

fn main() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    if name.ends_with("modprobe") {
        return init::modules::modprobe(args);
    }
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    if std::process::id() == 1 {
        // The kernel passes words it does not know as arguments: they are not for us.
        init::run(|| agent::run(Options::pid1()));
    }
    let mut args = args.peekable();
    if args.next_if(|word| word == "write").is_some() {
        return write::main(args);
    }
    let options = match Options::parse(args) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("anneal-agent: {error}");
            return ExitCode::from(2);
        }
    };
    init::log_to_stderr();
    match agent::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("anneal-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
