//! Scenarios: what must hold, tried on the real daemon, agent and machines.
//!
//! Each scenario runs in network, process and mount namespaces of its own
//! ([`anneal_tests::sim::isolate`]), two at a time. Output is that of the standard harness, so
//! that what counts tests can count these. `cargo test --workspace --exclude anneal-agent --test scenarios -- NAME`
//! runs those whose name contains `NAME`; `--list` lists them, `--ignored` runs those that are not run otherwise. Each has
//! a limit of its own, and all together have one: what hangs is named and stopped, and the others go on.

mod bench;
mod coreos_installer;
mod daemon_killed;
mod drift;
mod first_boot;
mod image_faults;
mod limits;
mod machine_lost;
mod published;
mod refusals;
mod runner;
mod start;
mod tokens;
mod unregistered;

use std::process::ExitCode;

use anneal_tests::sim::isolate::{self, Place};
use runner::Scenario;

/// All scenarios, by subject; the long ones first, so that none is left running alone at the end.
fn all() -> Vec<Scenario> {
    [
        machine_lost::SCENARIOS,
        daemon_killed::SCENARIOS,
        first_boot::ab::SCENARIOS,
        first_boot::ignition::SCENARIOS,
        first_boot::kexec::SCENARIOS,
        first_boot::seed::SCENARIOS,
        drift::SCENARIOS,
        published::SCENARIOS,
        image_faults::SCENARIOS,
        unregistered::SCENARIOS,
        tokens::SCENARIOS,
        refusals::SCENARIOS,
        start::SCENARIOS,
        limits::SCENARIOS,
    ]
    .concat()
}

/// Those that need what takes long to get, and why they run only when they are asked for.
const ON_REQUEST: &[(Scenario, &str)] = &[
    (coreos_installer::FROM_DISK, COREOS_INSTALLER),
    (coreos_installer::BY_URL, COREOS_INSTALLER),
];
const COREOS_INSTALLER: &str =
    "needs coreos-installer, which takes minutes to build: make test-coreos-installer";

fn main() -> ExitCode {
    match isolate::place() {
        Place::Over(code) => code,
        Place::Inside(work, args) => {
            let known = [all().as_slice(), limits::TRIED].concat();
            runner::inside(&known, ON_REQUEST, &work, &args)
        }
        Place::Outer(args) => runner::outer(&all(), ON_REQUEST, &args),
    }
}
