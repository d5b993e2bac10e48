//! The wire: one bridge with the daemon's and the BMCs' addresses, one tap for each machine.
//!
//! Lives in the network namespace of the process ([`super::isolate`]) and goes with it.

use super::tool;

/// Bridge that all machines are on; the daemon serves on it.
pub const BRIDGE: &str = "rack0";
/// The daemon's address.
pub const DAEMON: &str = "10.77.0.1";
/// The BMCs' address: the Redfish service listens here.
pub const BMC: &str = "10.77.1.1";

fn ip(args: &[&str]) -> anyhow::Result<()> {
    tool::run(tool::command("ip")?.args(args)).map(drop)
}

/// Makes the bridge and gives it its addresses.
///
/// # Errors
/// When it exists already or we are not root.
pub fn make_bridge() -> anyhow::Result<()> {
    // A fixed address, or the bridge would take that of its lowest port, which changes.
    ip(&[
        "link",
        "add",
        BRIDGE,
        "address",
        "52:54:00:aa:00:fe",
        "type",
        "bridge",
    ])?;
    ip(&["address", "add", &format!("{DAEMON}/24"), "dev", BRIDGE])?;
    ip(&["address", "add", &format!("{BMC}/24"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// The name of a machine's tap.
#[must_use]
pub fn tap_of(machine: &str) -> String {
    format!("tap-{machine}")
}

/// Makes the tap of a machine and plugs it in.
///
/// # Errors
/// When it exists already.
pub fn make_tap(machine: &str) -> anyhow::Result<String> {
    let tap = tap_of(machine);
    ip(&["tuntap", "add", "dev", &tap, "mode", "tap"])?;
    ip(&["link", "set", &tap, "master", BRIDGE, "up"])?;
    Ok(tap)
}

/// Cuts a machine's cable: no frame passes in either direction. The machine's own link stays up, as
/// with a cut between two switches.
///
/// # Errors
/// When it has no tap.
pub fn cut(machine: &str) -> anyhow::Result<()> {
    ip(&["link", "set", &tap_of(machine), "nomaster"])
}

/// Mends what [`cut`] cut.
///
/// # Errors
/// When it has no tap.
pub fn mend(machine: &str) -> anyhow::Result<()> {
    ip(&["link", "set", &tap_of(machine), "master", BRIDGE])
}

/// Does something with a machine's address as ours. Only while that machine is off: two hosts
/// with one address do not work.
///
/// # Errors
/// When the address is taken, or `work` fails.
pub fn as_machine<T>(address: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let address = format!("{address}/32");
    ip(&["address", "add", &address, "dev", BRIDGE])?;
    let result = work();
    ip(&["address", "del", &address, "dev", BRIDGE])?;
    result
}

/// Limits what a machine can receive, so that a transfer takes long enough to be disturbed.
///
/// # Errors
/// When it has no tap, or the kernel has no token bucket filter.
pub fn limit_rate(machine: &str, mbit_per_second: u32) -> anyhow::Result<()> {
    let rate = format!("{mbit_per_second}mbit");
    tool::run(tool::command("tc")?.args([
        "qdisc",
        "replace",
        "dev",
        &tap_of(machine),
        "root",
        "tbf",
        "rate",
        &rate,
        "burst",
        "64kb",
        "latency",
        "100ms",
    ]))
    .map(drop)
}

/// Lifts [`limit_rate`].
///
/// # Errors
/// When there is no limit.
pub fn lift_rate_limit(machine: &str) -> anyhow::Result<()> {
    tool::run(tool::command("tc")?.args(["qdisc", "del", "dev", &tap_of(machine), "root"]))
        .map(drop)
}
