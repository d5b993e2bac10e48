//! `anneal`: the daemon and the operator's CLI in one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    provisioner::cli::main()
}
