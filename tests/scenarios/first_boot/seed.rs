//! A Debian configured by cloud-init: its seed on a partition, and fetched as a kernel argument says. Templates are
//! the shipped ones; what the node's call says comes from files of the inventory, so it is what cloud-init made of them.
//! Kernel arguments are in the image's `grub.cfg`, by `boot-arguments`; what the kernel has of them is in that call.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::net;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::bench::{ADDRESS, Bench, IMAGE, MAC, MACHINE, SHORT};
use crate::first_boot::{SETTINGS, install};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "cloud_init_fetches_its_seed_once_and_a_second_fetch_gets_410",
        by_url,
    )
    .within(LIMIT),
    Scenario::new("cloud_init_reads_its_seed_from_a_partition", from_partition).within(LIMIT),
];

/// A whole system that is installed and started, on a busy host.
const LIMIT: Duration = Duration::from_secs(2000);

/// A name with dots: cloud-init likes to take its first part.
const HOSTNAME: &str = "node-31.example.org";
const PROOF: &str = "as the inventory says";
/// Of a kernel argument: a variable and a separator to GRUB, if it is not told otherwise.
const ARGUMENT: &str = "a$x;b";
/// An emulated machine on a busy host.
const START_LIMIT: Duration = Duration::from_secs(780);

/// For what `seed.sh` makes: what is per machine goes where that has no place of its own in a sealed image.
const BY_ARGUMENT: &str = "\
name: first-boot
timeout: 30m
steps:
  - uses: netboot
    timeout: 5m
  - uses: stream-image
    with: { verify: changed }
  - uses: write-file
    with: { partition: { label: STATE }, path: /upper/etc/anneal/ca.pem, contents: \"{{ server.ca_pem }}\" }
  - uses: write-file
    with:
      partition: { label: STATE }
      path: /upper/etc/systemd/system/cloud-init.service.d/anneal.conf
      contents: \"{{ render('common/cloud-init/trust.conf') }}\"
  - uses: boot-arguments
    with: { partition: { label: ESP }, add: \"{{ machine.kernel_args }}\" }
  - uses: boot-arguments
    with: { add: \"{{ render('common/cloud-init/datasource') | trim | split(' ') | list }}\" }
  - uses: reboot
  - uses: wait-phone-home
    timeout: 15m
";

/// Before the shipped unit calls home, it puts what it finds on the node in the place of the image's digest. On a busy
/// host the timer of an emulated machine is late: Linux would panic.
fn inventory() -> String {
    format!(
        "machines:
  - name: {MACHINE}
    hostname: {HOSTNAME}
    nics: [ {{ mac: \"{MAC}\", address: {ADDRESS}/24, gateway: {gateway}, boot: true }} ]
    dns: [ {gateway} ]
    disk: {{ hints: {{ type: virtio }} }}
    image: {IMAGE}
    kernel_args: [ no_timer_check, \"proof={ARGUMENT}\" ]
    files:
      - {{ path: /etc/anneal/proof, mode: \"0640\", contents: {PROOF} }}
      - path: /etc/systemd/system/anneal-phone-home.service.d/prove.conf
        contents: |
          [Unit]
          After=cloud-init-local.service cloud-init.service
          [Service]
          ExecStartPre=/bin/sh -eu /etc/anneal/prove
      - path: /etc/anneal/prove
        contents: |
          addresses=$(ip -4 -o address show scope global | sed 's/.*inet \\([^ ]*\\).* valid_lft \\([^ ]*\\).*/\\1 \\2/')
          route=$(ip -4 route show default | cut -d' ' -f1-3)
          dns=$(resolvectl dns | sed -n 's/^Link[^:]*: *//p')
          file=$(sha256sum </etc/anneal/proof | cut -c1-64):$(stat -c %a /etc/anneal/proof)
          argument=$(tr ' ' '\\n' </proc/cmdline | sed -n 's/^proof=//p')
          echo \"IMAGE='$addresses, $route, dns $dns, $file, $argument'\" >>/etc/anneal/installed
          sync
",
        gateway = net::DAEMON
    )
}

/// The machine, told what [`inventory`] says, this image, and this workflow.
fn scene(work: &Path, image: &Path, workflow: &str) -> anyhow::Result<Bench> {
    std::fs::write(work.join("anneal.yaml"), SETTINGS)?;
    std::fs::create_dir_all(work.join("templates"))?;
    std::fs::create_dir_all(work.join("workflows"))?;
    std::fs::write(work.join("workflows/first-boot.yaml"), workflow)?;
    let mib = std::fs::metadata(image)?.len() >> 20;
    let bench = Bench::with_image(work, image, mib, &[])?;
    let file = work.join("told.yaml");
    std::fs::write(&file, inventory())?;
    bench
        .daemon
        .anneal(&["apply", "-f", &file.to_string_lossy()])?;
    Ok(bench)
}

/// Installs, and insists that host name, address for ever, route, name server, file and kernel argument are those of
/// the inventory, and that the node called from that address. Gives the run.
fn install_and_check(bench: &mut Bench) -> anyhow::Result<String> {
    let run = install(bench)?.id;
    let node = bench.api.machine(MACHINE)?.node.context("no report")?;
    let expected = format!(
        "{ADDRESS}/24 forever, default via {gateway}, dns {gateway}, {}:640, {ARGUMENT}",
        hex::encode(Sha256::digest(PROOF)),
        gateway = net::DAEMON
    );
    anyhow::ensure!(
        node.image.as_deref() == Some(&*expected) && node.hostname.as_deref() == Some(HOSTNAME),
        "expected {HOSTNAME}: {expected}; got {node:?}"
    );
    let calls = bench.events(&run, "node.phone-home")?;
    anyhow::ensure!(
        calls.len() == 1 && calls[0].data["address"] == ADDRESS,
        "{calls:?}"
    );
    Ok(run)
}

/// Insists that these documents were fetched, in this order, each once, over TLS, from the machine's address.
fn expect_served(bench: &Bench, run: &str, documents: &[&str]) -> anyhow::Result<()> {
    let served = bench.events(run, "config.served")?;
    let names: Vec<_> = served.iter().map(|e| e.data["document"].as_str()).collect();
    let expected: Vec<_> = documents.iter().map(|name| Some(*name)).collect();
    let well = |data: &serde_json::Value| {
        data["address"] == ADDRESS && data["tls"] == true && data["again"] == false
    };
    anyhow::ensure!(
        names == expected && served.iter().all(|event| well(&event.data)),
        "expected {documents:?}: {served:?}"
    );
    Ok(())
}

/// Starts the installed system once more, to its login prompt: cloud-init is over before that.
fn start_again(bench: &mut Bench) -> anyhow::Result<()> {
    let before = std::fs::read(&bench.machine.console)?.len();
    bench.machine.start_disk()?;
    let prompt = format!("{HOSTNAME} ttyS0");
    wait_for(START_LIMIT, "the login prompt of a second start", || {
        bench.daemon.ensure_running()?;
        anyhow::ensure!(bench.machine.is_on(), "it is off");
        let console = std::fs::read(&bench.machine.console)?;
        let new = String::from_utf8_lossy(&console[before..]).into_owned();
        Ok(new.contains(&prompt).then_some(()))
    })?;
    bench.machine.power_off();
    Ok(())
}

/// Insists that these URLs are worth nothing any more, and that nobody tried before.
fn expect_spent(bench: &Bench, run: &str, urls: &[String]) -> anyhow::Result<()> {
    let alarms = bench.events(run, "token.alarm")?;
    anyhow::ensure!(alarms.is_empty(), "asked again: {alarms:?}");
    for url in urls {
        let mut curl = tool::command("curl")?;
        curl.args(["-sS", "--insecure", "--interface", ADDRESS])
            .args(["-o", "/dev/null", "-w", "%{http_code}", url]);
        let again = net::as_machine(ADDRESS, || tool::run(&mut curl))?;
        anyhow::ensure!(again.stdout == b"410", "{url}: {again:?}");
    }
    // Had the machine asked again, it would have been told.
    wait_for(SHORT, "the alarms", || {
        let alarms = bench.events(run, "token.alarm")?;
        Ok((alarms.len() == urls.len()).then_some(()))
    })
}

/// Where the kernel arguments say that the seed is, on the machine's disk.
fn seed_on_disk(bench: &Bench) -> anyhow::Result<String> {
    let disk = &bench.machine.disk;
    let table = tool::run(tool::command("sfdisk")?.arg("-J").arg(disk))?;
    let table: serde_json::Value = serde_json::from_slice(&table.stdout)?;
    let all = table["partitiontable"]["partitions"].as_array();
    let esp = all
        .and_then(|all| all.iter().find(|p| p["name"] == "ESP"))
        .and_then(|p| p["start"].as_u64())
        .context("no ESP")?;
    let esp = format!("{}@@{}", disk.display(), esp * 512);
    let shown = tool::run(tool::command("mtype")?.args(["-i", &esp, "::grub/grub.cfg"]))?;
    let script = String::from_utf8(shown.stdout)?;
    let seed = script
        .split_whitespace()
        .find_map(|word| word.split_once(";s="));
    let (_, url) = seed.with_context(|| format!("no seed in {script}"))?;
    Ok(url.trim_end_matches('\'').to_owned())
}

fn by_url(work: &Path) -> anyhow::Result<()> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image")])?;
    let image = work.join("seed.raw");
    let script = paths.root.join("tests/e2e/image/seed.sh");
    tool::run(Command::new(script).arg(&paths.image).arg(&image))?;
    let mut bench = scene(work, &image, BY_ARGUMENT)?;
    let run = install_and_check(&mut bench)?;
    // cloud-init 22.4 does not know that a seed can have a network-config.
    let documents = ["debian/meta-data", "debian/user-data", "debian/vendor-data"];
    expect_served(&bench, &run, &documents)?;
    let seed = seed_on_disk(&bench)?;
    start_again(&mut bench)?;
    let all = ["meta-data", "user-data", "vendor-data", "network-config"];
    expect_spent(&bench, &run, &all.map(|name| format!("{seed}{name}")))
}

fn from_partition(work: &Path) -> anyhow::Result<()> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image")])?;
    let shipped = std::fs::read_to_string(paths.root.join("workflows/install-image.yaml"))?;
    let workflow = shipped.replace("\nname: install-image\n", "\nname: first-boot\n");
    let mut bench = scene(work, &paths.image, &workflow)?;
    let run = install_and_check(&mut bench)?;
    expect_served(&bench, &run, &[])
}
