//! The step `kexec`: the agent starts kernel and initramfs of the image it wrote, without firmware and boot loader.
//!
//! Debian's initramfs mounts the root file system; its init is a script of ours, which the command line of that one start
//! names. It says in the node's call what `/proc/cmdline` is. All else that an installed system starts takes a minute where
//! a processor is emulated, and says nothing about the step.
//!
//! The first time it ends at once, so that the kernel panics and the machine restarts through its firmware.

use std::path::Path;
use std::time::Duration;

use anneal_protocol::api::EventView;
use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::direct::fetch_script;
use anneal_tests::sim::tool;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::bench::{ADDRESS, Bench, MAC, MACHINE, step_named};
use crate::first_boot::{FIRST_BOOT_LIMIT, SETTINGS, expect};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "kexec_starts_the_installed_kernel_and_again_when_it_panics",
    starts_the_installed_kernel,
)
.within(TWICE)];

/// The agent and a system that it starts, twice.
const TWICE: Duration = Duration::from_secs(2000);

const STEP: &str = "start the kernel";

/// The state partition has the writable layer over the image's root.
const WORKFLOW: &str = "\
name: first-boot
timeout: 30m
steps:
  - uses: netboot
    timeout: 5m
  - uses: stream-image
    with: { verify: none }
  - uses: write-file
    with: { partition: { label: STATE }, path: /upper/etc/anneal/prove, mode: \"0700\", contents: \"{{ render('debian/prove') }}\" }
  - name: STEP
    uses: kexec
    with: { partition: { label: ESP }, kernel: /vmlinuz, initramfs: /initrd.img, cmdline: \"CMDLINE\" }
  - uses: wait-phone-home
    timeout: 12m
";

/// Process 1. When it fails the kernel panics, and the machine ends.
const PROVE: &str = r#"#!/bin/sh -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
if ! [ -e /etc/anneal/tried ]; then
  : >/etc/anneal/tried
  sync
  exit 1
fi
cat >/run/ca.pem <<'END'
{{ server.ca_pem }}
END
cat >/run/call.conf <<'END'
{{ render('common/phone-home.conf') }}
END
modprobe virtio_net
card=$(grep -lxF {{ machine.mac }} /sys/class/net/*/address | cut -d/ -f5)
ip address add {{ machine.address }}/{{ machine.prefix }} dev "$card"
ip link set "$card" up
curl -fsS --retry 20 --retry-all-errors --retry-delay 1 --cacert /run/ca.pem -K /run/call.conf \
  -H 'Content-Type: application/json' \
  -d "{\"image\": \"$(sha256sum </proc/cmdline | cut -c1-64)\", \"kernel\": \"$(uname -r)\"}"
while :; do sleep 60; done
"#;

/// The image's own kernel arguments, as its boot loader has them, with ours in their place. `RUN` stands for the run.
fn cmdline(image: &Path) -> anyhow::Result<String> {
    let esp = format!("{}@@4M", image.display());
    let shown = tool::run(tool::command("mtype")?.args(["-i", &esp, "::grub/grub.cfg"]))?;
    let shown = String::from_utf8(shown.stdout)?;
    let own = shown
        .lines()
        .find_map(|line| line.strip_prefix("linux /vmlinuz "))
        .with_context(|| format!("no kernel in {shown}"))?;
    // The kernel's first line is of a level that the image does not show. A busy host is late with an emulated timer,
    // which is no broken one. A panic is to end the machine.
    let ours = "loglevel=6 no_timer_check panic=1 init=/etc/anneal/prove anneal.proof=RUN";
    let key = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let said: Vec<_> = ours.split(' ').map(key).collect();
    let kept = own.split(' ').filter(|word| !said.contains(&key(word)));
    Ok(kept.chain(ours.split(' ')).collect::<Vec<_>>().join(" "))
}

fn scene(work: &Path) -> anyhow::Result<(Bench, String)> {
    let paths = Paths::find()?;
    paths.ensure(&[(&paths.image, "image")])?;
    let cmdline = cmdline(&paths.image)?;
    std::fs::write(work.join("anneal.yaml"), SETTINGS)?;
    let templates = work.join("templates/debian");
    std::fs::create_dir_all(&templates)?;
    std::fs::write(templates.join("prove"), PROVE)?;
    std::fs::create_dir_all(work.join("workflows"))?;
    let line = cmdline.replace("RUN", "{{ run.id }}");
    let workflow = WORKFLOW.replace("CMDLINE", &line).replace("STEP", STEP);
    std::fs::write(work.join("workflows/first-boot.yaml"), workflow)?;
    let mib = std::fs::metadata(&paths.image)?.len() >> 20;
    Ok((Bench::with_image(work, &paths.image, mib, &[])?, cmdline))
}

/// From the start of the run to the panic, and the way of the machine through its firmware. A machine that resets is off.
fn panics(bench: &mut Bench) -> anyhow::Result<String> {
    let run = bench.start_run_of("first-boot")?.id;
    bench.power_on()?;
    wait_for(FIRST_BOOT_LIMIT, "the kernel to panic", || {
        bench.daemon.ensure_running()?;
        let view = bench.api.run(&run)?;
        anyhow::ensure!(view.finished_at.is_none(), "the run ended: {}", view.why);
        Ok((!bench.machine.is_on()).then_some(()))
    })?;
    let view = bench.api.run(&run)?;
    let step = step_named(&view, STEP)?;
    anyhow::ensure!(step.state == "leaving", "{step:?}");
    let script = fetch_script(MAC, ADDRESS)?;
    anyhow::ensure!(script.contains("boots its own disk"), "{script}");
    Ok(run)
}

fn starts_the_installed_kernel(work: &Path) -> anyhow::Result<()> {
    let (mut bench, cmdline) = scene(work)?;
    let run = panics(&mut bench)?;
    bench.power_on()?;
    // What calls home was started by the agent, and by nothing else.
    let view = wait_for(FIRST_BOOT_LIMIT, "the node to call home", || {
        bench.daemon.ensure_running()?;
        let view = Some(bench.api.run(&run)?).filter(|view| view.finished_at.is_some());
        anyhow::ensure!(view.is_some() || bench.machine.is_on(), "the machine reset");
        Ok(view)
    })?;
    expect(&bench, &view, "succeeded")?;
    anyhow::ensure!(bench.machine.is_on(), "the machine reset");
    bench.machine.power_off();

    let node = bench.api.machine(MACHINE)?.node.context("no report")?;
    let expected = cmdline.replace("RUN", &run);
    let digest = hex::encode(Sha256::digest(format!("{expected}\n")));
    anyhow::ensure!(
        node.image.as_deref() == Some(&*digest),
        "expected the digest {digest} of {expected}: {node:?}"
    );
    let console = std::fs::read(&bench.machine.console)?;
    let console = String::from_utf8_lossy(&console);
    let said = [
        "Linux version ",
        "leaving: kexec",
        "Kernel panic - not syncing: ",
    ];
    let said = said.map(|words| console.matches(words).count());
    // The agent's kernel and the image's, twice.
    anyhow::ensure!(said == [4, 2, 1], "{said:?}");
    let step = step_named(&view, STEP)?;
    anyhow::ensure!(step.attempts == 2, "{step:?}");
    expect_order(&bench, &run)
}

/// Insists that the agent's leave was recorded before the new system was heard, that its call ended the step, and that
/// nothing else of the machine was seen meanwhile.
fn expect_order(bench: &Bench, run: &str) -> anyhow::Result<()> {
    let step = |kind: &str| -> anyhow::Result<EventView> {
        let events = bench.events(run, kind)?;
        let mut ours = events.into_iter().rev();
        let last = ours.find(|e| e.data["uses"] == "kexec");
        last.with_context(|| format!("no {kind} of kexec"))
    };
    let failed = step("step.retry")?.message;
    anyhow::ensure!(failed.contains("went through its firmware"), "{failed}");
    let (left, done) = (step("step.leaving")?, step("step.succeeded")?);
    let calls = bench.events(run, "node.phone-home")?;
    anyhow::ensure!(
        calls.len() == 1 && calls[0].data["address"] == ADDRESS,
        "{calls:?}"
    );
    anyhow::ensure!(
        left.id < calls[0].id && calls[0].id < done.id,
        "{left:?}, {calls:?}, {done:?}"
    );
    let events = bench.api.events_of_machine(MACHINE)?;
    let mut later = events.iter().filter(|event| event.id > left.id);
    let other = later.find(|e| e.kind.starts_with("dhcp.") || e.kind.starts_with("boot."));
    anyhow::ensure!(other.is_none(), "seen after the agent left: {other:?}");
    Ok(())
}
