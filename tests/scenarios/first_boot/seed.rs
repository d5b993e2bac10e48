//! A Debian configured by cloud-init, its seed on a partition. Templates and workflow are the shipped ones; what the
//! node's call says comes from files of the inventory, so it is what cloud-init made of them.

use std::path::Path;

use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::net;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::bench::{ADDRESS, Bench, IMAGE, MAC, MACHINE};
use crate::first_boot::{SETTINGS, install};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "cloud_init_reads_its_seed_from_a_partition",
    run: from_partition,
}];

/// A name with dots: cloud-init likes to take its first part.
const HOSTNAME: &str = "node-31.example.org";
const PROOF: &str = "as the inventory says";

/// Before the shipped unit calls home, it puts what it finds on the node in the place of the image's digest.
fn inventory() -> String {
    format!(
        "machines:
  - name: {MACHINE}
    hostname: {HOSTNAME}
    nics: [ {{ mac: \"{MAC}\", address: {ADDRESS}/24, gateway: {gateway}, boot: true }} ]
    dns: [ {gateway} ]
    disk: {{ hints: {{ type: virtio }} }}
    image: {IMAGE}
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
          echo \"IMAGE='$addresses, $route, dns $dns, $file'\" >>/etc/anneal/installed
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

/// Installs, and insists that host name, address for ever, route, name server and file are those of the inventory,
/// and that the node called from that address. Gives the run.
fn install_and_check(bench: &mut Bench) -> anyhow::Result<String> {
    let run = install(bench)?.id;
    let node = bench.api.machine(MACHINE)?.node.context("no report")?;
    let expected = format!(
        "{ADDRESS}/24 forever, default via {gateway}, dns {gateway}, {}:640",
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

fn from_partition(work: &Path) -> anyhow::Result<()> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image")])?;
    let shipped = std::fs::read_to_string(paths.root.join("workflows/install-image.yaml"))?;
    let workflow = shipped.replace("\nname: install-image\n", "\nname: first-boot\n");
    let mut bench = scene(work, &paths.image, &workflow)?;
    let run = install_and_check(&mut bench)?;
    let served = bench.events(&run, "config.served")?;
    anyhow::ensure!(served.is_empty(), "{served:?}");
    Ok(())
}
