//! A machine that nobody registered boots on the same wire: it is not answered, and its disk
//! is not touched.

use std::path::Path;

use anneal_tests::rack::machines::digest_of;
use anneal_tests::sim::accel;
use anneal_tests::sim::direct::DirectMachine;
use anneal_tests::sim::wait::{wait_for, wait_until};

use crate::bench::{Bench, RUN_LIMIT};
use crate::runner::Scenario;

/// See the module.
pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "an_unregistered_machine_is_ignored_and_its_disk_untouched",
    ignored,
)];

const STRANGER: &str = "52:54:00:aa:00:99";

fn ignored(work: &Path) -> anyhow::Result<()> {
    let bench = Bench::set(work, 4)?;
    let netboot = &bench.daemon.settings.netboot;
    let accel = accel::detect(&netboot.join("vmlinuz"))?;
    let mut stranger = DirectMachine::new("stranger", STRANGER, 4 << 20, accel, netboot, work)?;
    std::fs::write(&stranger.disk, vec![0x5a; 4 << 20])?;
    let before = digest_of(&stranger.disk)?;
    stranger.start_firmware()?;

    wait_for(
        RUN_LIMIT,
        "the daemon to note that it ignored somebody",
        || {
            let events = bench.api.events()?;
            Ok(events
                .iter()
                .any(|event| {
                    event.kind == "dhcp.ignored" && event.data.to_string().contains(STRANGER)
                })
                .then_some(()))
        },
    )?;
    // Its firmware gives up by itself.
    wait_until(RUN_LIMIT, "the stranger's firmware to give up", || {
        std::fs::read(&stranger.console).is_ok_and(|text| {
            let text = String::from_utf8_lossy(&text).into_owned();
            text.contains("No more network devices") || text.contains("No bootable device")
        })
    })?;
    stranger.power_off();
    anyhow::ensure!(
        before == digest_of(&stranger.disk)?,
        "the stranger's disk changed"
    );
    let answered = bench.api.events()?.into_iter().find(|event| {
        matches!(event.kind.as_str(), "dhcp.ack" | "boot.script")
            && event.data.to_string().contains(STRANGER)
    });
    anyhow::ensure!(
        answered.is_none(),
        "the stranger was answered: {answered:?}"
    );
    Ok(())
}
