//! A Debian that runs Debian's Ignition from its initramfs, configured by
//! a one-use URL and from a partition. The node's own call says what is on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::{net, tool};
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::bench::{ADDRESS, Bench, MACHINE};
use crate::first_boot::{LIMIT, SETTINGS, expect_served, install};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "ignition_fetches_its_configuration_once_and_a_second_fetch_gets_410",
        by_url,
    )
    .within(LIMIT),
    Scenario::new(
        "ignition_reads_its_configuration_from_a_partition",
        from_partition,
    )
    .within(LIMIT),
];

/// The state partition of the image begins behind its root: where, says its table.
const STATE: &str = "STATE";

const WORKFLOW: &str = "\
name: first-boot
timeout: 20m
steps:
  - uses: netboot
    timeout: 5m
  - uses: stream-image
    with: { verify: changed }
  - uses: write-file
    with: { partition: { label: STATE }, path: /ignition/config.ign, mode: \"0600\", contents: \"{{ render('debian/TEMPLATE') }}\" }
  - uses: reboot
  - uses: wait-phone-home
    timeout: 12m
";

/// What the machine gets, as people write it.
const NODE: &str = r#"
ca: [{{ server.ca_pem | tojson }}]
users:
  - { name: core, groups: [adm] }
files:
  - { path: /etc/hostname, mode: "0644", overwrite: true, contents: {{ machine.hostname | tojson }} }
  - { path: /etc/anneal/ca.pem, mode: "0644", contents: {{ server.ca_pem | tojson }} }
  - path: /etc/anneal/phone-home.conf
    mode: "0600"
    contents: {{ ('header = "Authorization: Bearer ' ~ phone_home.token ~ '"') | tojson }}
  - { path: /etc/anneal/proof, mode: "0640", user: core, contents: {{ ("installed by " ~ run.id) | tojson }} }
  - path: /etc/systemd/network/10-node.network
    mode: "0644"
    contents: |
      [Match]
      MACAddress={{ machine.mac }}
      [Network]
      Address={{ machine.address }}/{{ machine.prefix }}
  - path: /usr/local/bin/call-home
    mode: "0755"
    contents: |
      #!/bin/sh -eu
      proof=$(sha256sum </etc/anneal/proof | cut -c1-64):$(stat -c %a:%U /etc/anneal/proof)
      proof=$proof:$(id -nG core | tr ' ' ,):$(systemctl is-enabled systemd-resolved.service || true)
      exec curl -fsS --retry 20 --retry-connrefused --retry-delay 1 --cacert /etc/anneal/ca.pem \
        -K /etc/anneal/phone-home.conf -H 'Content-Type: application/json' \
        -d "{\"hostname\": \"$(hostname)\", \"os\": \"$(. /etc/os-release; echo "$PRETTY_NAME")\", \"image\": \"$proof\"}" \
        {{ phone_home.url }}
units:
  - { name: systemd-resolved.service, mask: true }
  - { name: systemd-logind.service, mask: true }
  - { name: "getty@tty1.service", mask: true }
  - { name: "serial-getty@ttyS0.service", mask: true }
  - name: call-home.service
    enabled: true
    contents: |
      [Unit]
      Wants=network-online.target
      After=network-online.target
      [Service]
      Type=oneshot
      ExecStart=/usr/local/bin/call-home
      [Install]
      WantedBy=multi-user.target
"#;
const POINTER: &str = r#"
ca: [{{ server.ca_pem | tojson }}]
replace: { source: {{ config_url('debian/node.ign') | tojson }} }
"#;

/// The image, a workflow that writes `template` to its state partition, and the templates.
fn scene(work: &Path, template: &str) -> anyhow::Result<Bench> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image")])?;
    let image = work.join("ignition.raw");
    tool::run(
        Command::new(paths.root.join("tests/e2e/image/ignition.sh"))
            .arg(&paths.image)
            .arg(&image),
    )?;
    std::fs::write(work.join("anneal.yaml"), SETTINGS)?;
    let templates = work.join("templates/debian");
    std::fs::create_dir_all(&templates)?;
    std::fs::create_dir_all(work.join("workflows"))?;
    let workflow = WORKFLOW.replace("TEMPLATE", template);
    std::fs::write(work.join("workflows/first-boot.yaml"), workflow)?;
    for (name, text) in [("node", NODE), ("pointer", POINTER)] {
        std::fs::write(templates.join(format!("{name}.yaml")), text)?;
        let line = format!("{{{{ render('debian/{name}.yaml') | ignition('3.3.0') }}}}\n");
        std::fs::write(templates.join(format!("{name}.ign")), line)?;
    }
    let mib = std::fs::metadata(&image)?.len() >> 20;
    Bench::with_image(work, &image, mib, &[])
}

/// Files, units and users are there: the node says so in its call.
fn expect_node(bench: &Bench, run: &str) -> anyhow::Result<()> {
    let node = bench.api.machine(MACHINE)?.node.context("no report")?;
    let digest = hex::encode(Sha256::digest(format!("installed by {run}")));
    let expected = format!("{digest}:640:core:core,adm:masked");
    anyhow::ensure!(
        node.image.as_deref() == Some(&*expected) && node.hostname.as_deref() == Some(MACHINE),
        "expected {expected}: {node:?}"
    );
    Ok(())
}

/// The configuration as it lies on the machine's disk.
fn on_disk(bench: &Bench) -> anyhow::Result<String> {
    let table = tool::run(tool::command("sfdisk")?.arg("-J").arg(&bench.machine.disk))?;
    let table: serde_json::Value = serde_json::from_slice(&table.stdout)?;
    let partitions = table["partitiontable"]["partitions"].as_array();
    let state = partitions
        .and_then(|all| all.iter().find(|p| p["name"] == STATE))
        .and_then(|p| p["start"].as_u64())
        .context("no state partition")?;
    let device = format!("{}?offset={}", bench.machine.disk.display(), state * 512);
    let shown = tool::run(
        tool::command("debugfs")?
            // As the machine left it when it was switched off: what is free and what is not may be half written.
            .args(["-c", "-R", "cat /ignition/config.ign"])
            .arg(PathBuf::from(device)),
    )?;
    Ok(String::from_utf8(shown.stdout)?)
}

fn by_url(work: &Path) -> anyhow::Result<()> {
    let mut bench = scene(work, "pointer.ign")?;
    let run = install(&mut bench)?.id;
    expect_node(&bench, &run)?;
    expect_served(&bench, &run, &["debian/node.ign"])?;
    // Whoever reads the disk later has a URL that is worth nothing.
    let pointer: serde_json::Value = serde_json::from_str(&on_disk(&bench)?)?;
    let url = pointer["ignition"]["config"]["replace"]["source"].as_str();
    let url = url.with_context(|| format!("no URL in {pointer}"))?;
    let mut curl = tool::command("curl")?;
    curl.args(["-sS", "--insecure", "--interface", ADDRESS])
        .args(["-o", "/dev/null", "-w", "%{http_code}", url]);
    let again = net::as_machine(ADDRESS, || tool::run(&mut curl))?;
    anyhow::ensure!(again.stdout == b"410", "{again:?}");
    Ok(())
}

fn from_partition(work: &Path) -> anyhow::Result<()> {
    let mut bench = scene(work, "node.ign")?;
    let run = install(&mut bench)?.id;
    expect_node(&bench, &run)?;
    expect_served(&bench, &run, &[])
}
