//! `anneal serve` says what it does, or clearly why it will not start.

use std::path::Path;
use std::process::Command;

use anneal_tests::sim::net;
use anneal_tests::sim::process::Process;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_until;

use crate::bench::{self, SHORT};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "serve_tells_what_it_listens_on_and_stops_cleanly",
        tells_and_stops,
    ),
    Scenario::new(
        "serve_refuses_a_taken_port_and_a_missing_interface",
        refuses_port_and_interface,
    ),
    Scenario::new(
        "serve_refuses_a_wire_with_another_dhcp_server",
        refuses_foreign_dhcp,
    ),
];

fn tells_and_stops(work: &Path) -> anyhow::Result<()> {
    let mut daemon = bench::daemon(work)?;
    let told = std::fs::read_to_string(&daemon.settings.log)?;
    for wanted in ["10.77.0.1:8080", "10.77.0.1:8443", "10.77.0.1:69"] {
        anyhow::ensure!(
            told.contains(wanted),
            "it does not mention {wanted}: {told}"
        );
    }
    let pem = daemon.api()?.ca;
    anyhow::ensure!(
        pem.contains("BEGIN CERTIFICATE"),
        "no CA in the context file"
    );
    daemon.stop()
}

/// Runs `anneal serve` where it must refuse; what it said.
fn refusal(work: &Path, interface: &str, more: &[&str]) -> anyhow::Result<String> {
    let settings = bench::settings(work, more)?;
    let output = Command::new(&settings.program)
        .args([
            "serve",
            "--interface",
            interface,
            "--address",
            "10.77.0.1/24",
        ])
        .arg("--state-dir")
        .arg(&settings.state)
        .arg("--netboot-dir")
        .arg(&settings.netboot)
        .args(&settings.more)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(!output.status.success(), "it started: {said}");
    Ok(said)
}

fn refuses_port_and_interface(work: &Path) -> anyhow::Result<()> {
    net::make_bridge()?;
    let said = refusal(work, "nosuch0", &[])?;
    anyhow::ensure!(
        said.contains("nosuch0"),
        "it does not name the interface: {said}"
    );
    let _holder = std::net::TcpListener::bind((net::DAEMON, 8443))?;
    let said = refusal(work, net::BRIDGE, &[])?;
    anyhow::ensure!(said.contains("8443"), "it does not name the port: {said}");
    Ok(())
}

fn refuses_foreign_dhcp(work: &Path) -> anyhow::Result<()> {
    net::make_bridge()?;
    // Another host on the wire: a namespace of its own behind a veth pair.
    for command in [
        "ip netns add foreign",
        "ip link add foreign0 type veth peer name eth0 netns foreign",
        "ip link set foreign0 master rack0 up",
        "ip -n foreign address add 10.77.0.2/24 dev eth0",
        "ip -n foreign link set eth0 up",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        tool::run(tool::command(words[0])?.args(&words[1..]))?;
    }
    let log = work.join("dnsmasq.log");
    let mut dnsmasq = tool::command("ip")?;
    dnsmasq
        .args(["netns", "exec", "foreign"])
        .arg(tool::find("dnsmasq")?)
        .args([
            "--keep-in-foreground",
            "--port=0",
            "--interface=eth0",
            "--user=root",
        ])
        .args([
            "--dhcp-range=10.77.0.200,10.77.0.210,255.255.255.0",
            "--log-dhcp",
        ])
        .args(["--dhcp-authoritative", "--log-facility=-", "--pid-file="])
        .arg(format!(
            "--dhcp-leasefile={}",
            work.join("leases").display()
        ));
    let mut dnsmasq = Process::start("dnsmasq", dnsmasq, &log)?;
    wait_until(SHORT, "dnsmasq to serve", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("DHCP, IP range"))
    })?;
    dnsmasq.ensure_running()?;
    let said = refusal(work, net::BRIDGE, &[])?;
    anyhow::ensure!(
        said.contains("10.77.0.2") && said.contains("--allow-foreign-dhcp"),
        "it does not name the other server and the way on: {said}"
    );
    let mut daemon = bench::start_daemon(work, &["--allow-foreign-dhcp"])?;
    daemon.stop()
}
