//! A Debian configured by cloud-init: its seed on a partition, fetched as a kernel argument says, and on the disk with
//! user data that are fetched. Templates are the shipped ones; what the node says of itself it is asked by files of the
//! inventory, so it is what cloud-init made of them. Kernel arguments are in the image's `grub.cfg`, by
//! `boot-arguments`; the node says what its kernel has of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::net;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::bench::{ADDRESS, Bench, IMAGE, MAC, MACHINE, SHORT};
use crate::first_boot::{LIMIT, SETTINGS, expect, expect_served, install, wait_end, write};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "cloud_init_fetches_its_seed_once_and_a_second_fetch_gets_410",
        by_url,
    )
    .within(TWO_STARTS),
    Scenario::new(
        "cloud_init_follows_a_pointer_on_the_disk_once_and_phones_home_by_its_own_module",
        by_pointer,
    )
    .within(TWO_STARTS),
    Scenario::new("cloud_init_reads_its_seed_from_a_partition", from_partition).within(LIMIT),
];

/// An installation, and two starts of what was installed.
const TWO_STARTS: Duration = Duration::from_secs(2000);
/// A name with dots: cloud-init likes to take its first part.
const HOSTNAME: &str = "node-31.example.org";
const PROOF: &str = "as the inventory says";
/// Of a kernel argument: a variable and a separator to GRUB, if it is not told otherwise.
const ARGUMENT: &str = "a$x;b";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPAHJSHoJ/OIbF/6EbAOA8dnF2fOztz3oABDg9i6908L admin";
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

/// What cloud-init does in its stage that has a network, as a site would choose it; in Debian's own images
/// `phone-home` belongs to a stage of its own.
const MODULES: &str = "bootcmd, write-files, set_hostname, update_hostname, ca-certs, users-groups, ssh, runcmd, \
                       scripts-user, phone-home";
/// `debian/user-data` of a site that has cloud-init itself call home: before the shipped unit, which is told that it
/// was done.
const USER_DATA: &str = "\
{{ render('common/cloud-init/user-data') }}
phone_home: { url: {{ (phone_home.url ~ '/' ~ phone_home.token) | toyaml }}, post: all, tries: 10 }
";

/// Before the shipped unit calls home, it puts what it finds on the node in the place of the image's digest, and says
/// it and what more there is on the console.
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
    ssh_keys: [ {KEY} ]
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
          found=\"$addresses, $route, dns $dns, $file, $argument\"
          echo \"IMAGE='$found'\" >>/etc/anneal/installed
          sync
          key=$(cut -d' ' -f2 /home/debian/.ssh/authorized_keys 2>/dev/null || true)
          echo \"found: $(uname -n), $found, $(id -un debian 2>/dev/null) $key\"
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

/// A workflow that is shipped, by the name that is run here.
fn shipped(name: &str) -> anyhow::Result<String> {
    let workflows = Paths::find()?.root.join("workflows");
    let text = std::fs::read_to_string(workflows.join(format!("{name}.yaml")))?;
    Ok(text.replace(&format!("\nname: {name}\n"), "\nname: first-boot\n"))
}

/// The image whose cloud-init can fetch; with the modules of that stage, where they are others.
fn image(work: &Path, modules: &str) -> anyhow::Result<PathBuf> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image")])?;
    let image = work.join("seed.raw");
    tool::run(
        Command::new(paths.root.join("tests/e2e/image/seed.sh"))
            .arg(&paths.image)
            .arg(&image)
            .arg(modules),
    )?;
    Ok(image)
}

/// What the inventory says of address (for ever), route, name server, file and kernel argument, as the node says it.
fn as_told() -> String {
    format!(
        "{ADDRESS}/24 forever, default via {gateway}, dns {gateway}, {}:640, {ARGUMENT}",
        hex::encode(Sha256::digest(PROOF)),
        gateway = net::DAEMON
    )
}

/// Installs, and insists that all of that and the host name are those of the inventory, and that the node called from
/// that address. Gives the run.
fn install_and_check(bench: &mut Bench) -> anyhow::Result<String> {
    let run = install(bench)?.id;
    let node = bench.api.machine(MACHINE)?.node.context("no report")?;
    let expected = as_told();
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

/// Where a partition begins on the machine's disk, in bytes.
fn begin_of(bench: &Bench, partition: &str) -> anyhow::Result<u64> {
    let table = tool::run(tool::command("sfdisk")?.arg("-J").arg(&bench.machine.disk))?;
    let table: serde_json::Value = serde_json::from_slice(&table.stdout)?;
    let all = table["partitiontable"]["partitions"].as_array();
    let sector = all
        .and_then(|all| all.iter().find(|p| p["name"] == partition))
        .and_then(|p| p["start"].as_u64());
    Ok(sector.with_context(|| format!("no partition {partition}"))? * 512)
}

/// Where the kernel arguments say that the seed is, on the machine's disk.
fn seed_on_disk(bench: &Bench) -> anyhow::Result<String> {
    let disk = bench.machine.disk.display();
    let esp = format!("{disk}@@{}", begin_of(bench, "ESP")?);
    let shown = tool::run(tool::command("mtype")?.args(["-i", &esp, "::grub/grub.cfg"]))?;
    let script = String::from_utf8(shown.stdout)?;
    let seed = script
        .split_whitespace()
        .find_map(|word| word.split_once(";s="));
    let (_, url) = seed.with_context(|| format!("no seed in {script}"))?;
    Ok(url.trim_end_matches('\'').to_owned())
}

/// Where the pointer on the machine's disk points to. A machine that was switched off in the middle of something leaves
/// a file system that debugfs does not open: this is asked before it starts.
fn pointer_on_disk(bench: &Bench) -> anyhow::Result<String> {
    let disk = bench.machine.disk.display();
    let state = format!("{disk}?offset={}", begin_of(bench, "STATE")?);
    let show = "cat /upper/var/lib/cloud/seed/nocloud/user-data";
    let shown = tool::run(tool::command("debugfs")?.args(["-R", show, &state]))?;
    let pointer = String::from_utf8(shown.stdout)?;
    let url = pointer.lines().find(|line| line.starts_with("https://"));
    Ok(url
        .with_context(|| format!("no URL in {pointer}"))?
        .to_owned())
}

fn by_url(work: &Path) -> anyhow::Result<()> {
    let image = image(work, "")?;
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

fn by_pointer(work: &Path) -> anyhow::Result<()> {
    let image = image(work, MODULES)?;
    // As shipped, but for where the root's files are written, since it is sealed, with a layer over it; and for reading
    // back all of the disk, which other scenarios do.
    let workflow = shipped("install-cloud-image-url")?
        .replace("{ number: 1 }", "{ label: STATE }")
        .replace("path: /", "path: /upper/")
        .replace("verify: full", "verify: none");
    std::fs::create_dir_all(work.join("templates/debian"))?;
    std::fs::write(work.join("templates/debian/user-data"), USER_DATA)?;
    let mut bench = scene(work, &image, &workflow)?;
    let run = write(&mut bench, "first-boot")?;
    let url = pointer_on_disk(&bench)?;
    bench.machine.start_disk()?;
    let view = wait_end(&mut bench, &run)?;
    expect(&bench, &view, "succeeded")?;
    called_by_cloud_init(&bench, &run)?;
    let key = KEY.split(' ').nth(1).unwrap_or_default();
    let found = format!("found: {HOSTNAME}, {}, debian {key}", as_told());
    wait_console(&mut bench, &[&found, "anneal: called home, answer 410"])?;
    bench.machine.power_off();
    expect_served(&bench, &run, &["debian/user-data"])?;
    called_by_cloud_init(&bench, &run)?;
    start_again(&mut bench)?;
    expect_spent(&bench, &run, &[url])
}

/// Insists that there was one call, and that it was what cloud-init's module posts.
fn called_by_cloud_init(bench: &Bench, run: &str) -> anyhow::Result<()> {
    let calls = bench.events(run, "node.phone-home")?;
    let said = |key: &str| calls[0].data[key].as_str();
    // Of a name with dots the module's `hostname` is the first part.
    let short = HOSTNAME.split('.').next();
    anyhow::ensure!(
        calls.len() == 1
            && said("by") == Some("cloud-init")
            && said("address") == Some(ADDRESS)
            && said("instance_id") == Some(run)
            && said("hostname") == short
            && said("fqdn") == Some(HOSTNAME),
        "{calls:?}"
    );
    Ok(())
}

/// Waits until the machine, which is on, has said all of this.
fn wait_console(bench: &mut Bench, wanted: &[&str]) -> anyhow::Result<()> {
    wait_for(START_LIMIT, &wanted.join(" and "), || {
        bench.daemon.ensure_running()?;
        let console = std::fs::read(&bench.machine.console)?;
        let console = String::from_utf8_lossy(&console).into_owned();
        let all = wanted.iter().all(|text| console.contains(text));
        anyhow::ensure!(all || bench.machine.is_on(), "it is off");
        Ok(all.then_some(()))
    })
}

fn from_partition(work: &Path) -> anyhow::Result<()> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image")])?;
    let mut bench = scene(work, &paths.image, &shipped("install-image")?)?;
    let run = install_and_check(&mut bench)?;
    expect_served(&bench, &run, &[])
}
