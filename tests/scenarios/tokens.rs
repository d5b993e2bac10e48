//! A boot token works once, in time, for its machine; every other use is refused and seen.

use std::path::Path;
use std::process::Command;

use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::direct::{fetch_script, kernel_arguments};
use anneal_tests::sim::net;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;

use crate::bench::{ADDRESS, Bench, MAC, MACHINE, SHORT};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a_replayed_boot_token_fails_the_run_with_an_alarm",
        replayed,
    ),
    Scenario::new(
        "a_boot_token_used_by_another_machine_is_refused_with_an_alarm",
        other_machine,
    ),
    Scenario::new("an_expired_boot_token_is_refused", expired),
];

/// The boot token of a fresh boot script.
fn token_of_script() -> anyhow::Result<String> {
    wait_for(SHORT, "a boot script with a token", || {
        let script = fetch_script(MAC, ADDRESS)?;
        let Ok(arguments) = kernel_arguments(&script) else {
            return Ok(None);
        };
        Ok(arguments
            .split(' ')
            .find_map(|word| word.strip_prefix("anneal.token="))
            .map(str::to_owned))
    })
}

/// Enrols with a new key each time, as an agent does in its first seconds: status and body.
fn enroll(
    work: &Path,
    token: &str,
    machine: &str,
    from: Option<&str>,
) -> anyhow::Result<(u16, String)> {
    let csr = work.join("agent.csr");
    let mut openssl = tool::command("openssl")?;
    openssl
        .args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args([
            "-nodes",
            "-subj",
            "/CN=agent",
            "-keyout",
            "/dev/null",
            "-out",
        ])
        .arg(&csr);
    tool::run(&mut openssl)?;
    let body = serde_json::json!({
        "token": token,
        "machine": machine,
        "csr": std::fs::read_to_string(&csr)?,
        "mac": MAC,
        "boot_id": "scenario",
    });
    let mut curl = tool::command("curl")?;
    if let Some(from) = from {
        curl.args(["--interface", from]);
    }
    curl.args([
        "-sS",
        "--insecure",
        "--max-time",
        "20",
        "-w",
        "\n%{http_code}",
    ])
    .args([
        "-H",
        "Content-Type: application/json",
        "-d",
        &body.to_string(),
    ])
    .arg(format!("https://{}:8443/agent/v1/enroll", net::DAEMON));
    let output = tool::run(&mut curl)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (answer, status) = text.rsplit_once('\n').context("curl printed no status")?;
    Ok((status.parse()?, answer.to_owned()))
}

/// Waits for an alarm event of the run.
fn expect_alarm(bench: &Bench, run: &str) -> anyhow::Result<()> {
    wait_for(SHORT, "an alarm among the events", || {
        Ok(bench.events(run, "token.alarm")?.pop().map(drop))
    })
}

fn expect_failed(bench: &mut Bench, run: &str) -> anyhow::Result<()> {
    let view = bench.wait_end(run)?;
    anyhow::ensure!(
        view.state == "failed" && view.why.contains("token"),
        "the run ended {}: {}",
        view.state,
        view.why
    );
    Ok(())
}

fn replayed(work: &Path) -> anyhow::Result<()> {
    let mut bench = Bench::set(work, 4)?;
    let run = bench.start_run()?.id;
    let token = token_of_script()?;
    let (status, body) = enroll(work, &token, MACHINE, None)?;
    anyhow::ensure!(status == 200, "the first use was answered {status}: {body}");
    anyhow::ensure!(
        body.contains("BEGIN CERTIFICATE"),
        "no certificate in {body}"
    );
    // A second key with the same token is somebody else.
    let (status, body) = enroll(work, &token, MACHINE, None)?;
    anyhow::ensure!(
        (400..500).contains(&status),
        "the second use was answered {status}: {body}"
    );
    expect_alarm(&bench, &run)?;
    expect_failed(&mut bench, &run)?;
    let used = bench.api.tokens()?;
    anyhow::ensure!(
        used.iter()
            .any(|view| view.purpose == "boot" && view.used_at.is_some()),
        "the token list shows no used boot token: {used:?}"
    );
    Ok(())
}

/// Another registered machine.
const OTHER: &str = "machines:\n  - name: m2\n    nics:\n      \
    - { mac: \"52:54:00:aa:00:32\", address: 10.77.0.32/24, boot: true }\n    \
    disk: { hints: { type: virtio } }\n";

fn other_machine(work: &Path) -> anyhow::Result<()> {
    let bench = Bench::set(work, 4)?;
    let file = work.join("other.yaml");
    std::fs::write(&file, OTHER)?;
    bench
        .daemon
        .anneal(&["apply", "-f", &file.to_string_lossy()])?;
    let run = bench.start_run()?.id;
    let token = token_of_script()?;
    // It says that it is the token's machine, but its address is that of another one.
    let (status, body) = net::as_machine("10.77.0.32", || {
        enroll(work, &token, MACHINE, Some("10.77.0.32"))
    })?;
    anyhow::ensure!(
        (400..500).contains(&status),
        "it was answered {status}: {body}"
    );
    expect_alarm(&bench, &run)
}

fn expired(work: &Path) -> anyhow::Result<()> {
    // Ten minutes of life are made to be over in the database: nobody waits for them here.
    const EXPIRE: &str = "import sqlite3, sys\n\
        db = sqlite3.connect(sys.argv[1], timeout=20)\n\
        n = db.execute('UPDATE tokens SET expires_at = 1').rowcount\n\
        db.commit()\n\
        sys.exit(n == 0)";
    let bench = Bench::set(work, 4)?;
    let run = bench.start_run()?.id;
    let token = token_of_script()?;
    let database = std::fs::read_dir(&bench.daemon.settings.state)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "db"))
        .context("the state directory has no database")?;
    let mut python = Command::new(Paths::find()?.venv.join("bin/python"));
    tool::run(python.args(["-c", EXPIRE]).arg(database))?;
    let (status, body) = enroll(work, &token, MACHINE, None)?;
    anyhow::ensure!(
        (400..500).contains(&status),
        "it was answered {status}: {body}"
    );
    wait_for(SHORT, "the refusal among the events", || {
        let events = bench.api.events_of_run(&run)?;
        Ok(events
            .iter()
            .any(|event| event.message.contains("expired"))
            .then_some(()))
    })
}
