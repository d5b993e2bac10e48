//! What most scenarios begin with: a wire, a daemon, one machine without a BMC, a small image.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anneal_protocol::api::{EventView, ProvisionRequest, RunView, StepView};
use anneal_tests::rack::machines::digest_of;
use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::accel;
use anneal_tests::sim::api::Api;
use anneal_tests::sim::daemon::{Daemon, Settings};
use anneal_tests::sim::direct::{DirectMachine, fetch_script, kernel_arguments};
use anneal_tests::sim::net;
use anneal_tests::sim::wait::wait_for;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

/// Name of the machine.
pub const MACHINE: &str = "m1";
/// Its MAC.
pub const MAC: &str = "52:54:00:aa:00:31";
/// The address it gets.
pub const ADDRESS: &str = "10.77.0.31";
/// The image as the daemon knows it.
pub const IMAGE: &str = "tiny@1";
/// How long a run of these small machines may take on a busy host.
pub const RUN_LIMIT: Duration = Duration::from_secs(300);
/// How long anything smaller may take.
pub const SHORT: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// Writes the image and switches the machine off: nothing that needs an installed system.
const WORKFLOW: &str = "\
name: write-only
timeout: 20m
steps:
  - name: boot the agent
    uses: netboot
    timeout: 5m
    retries: 2
  - name: look at the hardware
    uses: inventory
  - name: write the image
    uses: stream-image
    with: { image: \"{{ image.digest }}\", disk: \"{{ machine.disk }}\", verify: full }
    timeout: 5m
    retries: 2
    retry_delay: 1s
  - name: look again
    uses: inventory
  - name: switch off
    uses: power-off
    timeout: 2m
";

/// The daemon's settings in these scenarios: an agent may be silent for longer than the cut lasts.
const SETTINGS: &str = "agent_silence: 100s\nworkflows_dir: workflows\n";

/// The scene.
#[derive(Debug)]
pub struct Bench {
    /// The daemon.
    pub daemon: Daemon,
    /// Its API.
    pub api: Api,
    /// The machine, off.
    pub machine: DirectMachine,
    /// SHA-256 of the image, hex.
    pub image_sha256: String,
    /// Size of the image in bytes.
    pub image_bytes: u64,
}

/// Makes bridge and settings, and starts a daemon that knows nothing yet.
///
/// # Errors
/// When something is missing or does not come up.
pub fn daemon(work: &Path) -> anyhow::Result<Daemon> {
    net::make_bridge()?;
    start_daemon(work, &[])
}

/// Starts a daemon on a wire that exists, with more arguments.
///
/// # Errors
/// When it does not come up.
pub fn start_daemon(work: &Path, more: &[&str]) -> anyhow::Result<Daemon> {
    Daemon::start(settings(work, more)?)
}

/// How daemons are started here.
///
/// # Errors
/// When the settings file cannot be written.
pub fn settings(work: &Path, more: &[&str]) -> anyhow::Result<Settings> {
    let paths = Paths::find()?;
    paths.ensure(&[
        (&paths.anneal, "build"),
        (&paths.netboot.join("vmlinuz"), "netboot"),
        (&paths.netboot.join("initramfs.img"), "netboot"),
    ])?;
    std::fs::create_dir_all(work.join("workflows"))?;
    std::fs::write(work.join("workflows/write-only.yaml"), WORKFLOW)?;
    let file = work.join("anneal.yaml");
    // A scenario that needs others wrote them before.
    if !file.exists() {
        std::fs::write(&file, SETTINGS)?;
    }
    let mut arguments = vec!["--config".to_owned(), file.display().to_string()];
    arguments.extend(more.iter().map(|word| (*word).to_owned()));
    Ok(Settings {
        program: paths.anneal,
        netboot: paths.netboot,
        state: work.join("state"),
        log: work.join("daemon.log"),
        more: arguments,
    })
}

impl Bench {
    /// Sets the scene with an image of so many MiB.
    ///
    /// # Errors
    /// When something is missing or does not come up.
    pub fn set(work: &Path, image_mib: u64) -> anyhow::Result<Self> {
        let image = work.join("tiny.raw");
        make_image(&image, image_mib * MIB)?;
        Self::with_image(work, &image, image_mib, &[])
    }

    /// Sets the scene with an image that is there, of so many MiB, added with more arguments.
    ///
    /// # Errors
    /// When something is missing or does not come up.
    pub fn with_image(
        work: &Path,
        image: &Path,
        image_mib: u64,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        Self::with_image_of(work, image, image_mib, "debian", more)
    }

    /// [`Bench::with_image`] of another system.
    ///
    /// # Errors
    /// When something is missing or does not come up.
    pub fn with_image_of(
        work: &Path,
        image: &Path,
        image_mib: u64,
        os: &str,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let daemon = daemon(work)?;
        let api = daemon.api()?;
        daemon.add_image_with(IMAGE, image, os, more)?;
        let inventory = work.join("inventory.yaml");
        std::fs::write(&inventory, inventory_text())?;
        daemon.anneal(&["apply", "-f", &inventory.to_string_lossy()])?;
        let netboot = daemon.settings.netboot.clone();
        let accel = accel::detect(&netboot.join("vmlinuz"))?;
        let machine =
            DirectMachine::new(MACHINE, MAC, (image_mib + 16) * MIB, accel, &netboot, work)?;
        Ok(Self {
            image_sha256: digest_of(image)?,
            image_bytes: image_mib * MIB,
            daemon,
            api,
            machine,
        })
    }

    /// Starts a run that writes the image, without touching the machine.
    ///
    /// # Errors
    /// When it is refused.
    pub fn start_run(&self) -> anyhow::Result<RunView> {
        self.start_run_of("write-only")
    }

    /// [`Bench::start_run`] of another workflow that writes the image.
    ///
    /// # Errors
    /// When it is refused.
    pub fn start_run_of(&self, workflow: &str) -> anyhow::Result<RunView> {
        self.api.provision(
            MACHINE,
            &ProvisionRequest {
                workflow: Some(workflow.to_owned()),
                image: Some(IMAGE.to_owned()),
                plan: false,
            },
        )
    }

    /// Plays the person at the power button: waits until the daemon wants the agent, then
    /// switches on.
    ///
    /// # Errors
    /// When the daemon never wants it.
    pub fn power_on(&mut self) -> anyhow::Result<()> {
        let mut last = String::new();
        let script = wait_for(SHORT, "a boot script that starts the agent", || {
            last = fetch_script(MAC, ADDRESS)?;
            Ok(last.contains("anneal.token=").then(|| last.clone()))
        })?;
        self.machine.start(&kernel_arguments(&script)?)
    }

    /// Waits until the write step has at least `percent` done, or is over.
    ///
    /// # Errors
    /// When it does not come that far, or the run ends.
    pub fn wait_written(&self, run: &str, percent: u64) -> anyhow::Result<()> {
        let what = format!("{percent} % of the image to be written");
        wait_for(RUN_LIMIT, &what, || {
            let view = self.api.run(run)?;
            anyhow::ensure!(
                view.finished_at.is_none(),
                "the run ended early ({}): {}",
                view.state,
                view.why
            );
            let step = step_named(&view, "write the image")?;
            anyhow::ensure!(
                step.state != "succeeded",
                "the image was written before it could be disturbed"
            );
            Ok(step
                .progress
                .filter(|progress| progress.done * 100 >= progress.total * percent)
                .filter(|progress| progress.total > 0)
                .map(drop))
        })
    }

    /// Waits for the run's end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait_end(&mut self, run: &str) -> anyhow::Result<RunView> {
        wait_for(RUN_LIMIT, "the run to end", || {
            self.daemon.ensure_running()?;
            Ok(Some(self.api.run(run)?).filter(|view| view.finished_at.is_some()))
        })
    }

    /// Waits for the run's end and insists that it succeeded and the disk holds the image.
    ///
    /// # Errors
    /// When not.
    pub fn expect_success(&mut self, run: &str) -> anyhow::Result<RunView> {
        let view = self.wait_end(run)?;
        anyhow::ensure!(
            view.state == "succeeded",
            "the run ended {}: {}",
            view.state,
            view.why
        );
        self.machine.power_off();
        let written = head_digest(&self.machine.disk, self.image_bytes)?;
        anyhow::ensure!(
            written == self.image_sha256,
            "the disk holds {written}, the image is {}",
            self.image_sha256
        );
        Ok(view)
    }

    /// The events of a run of one kind.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn events(&self, run: &str, kind: &str) -> anyhow::Result<Vec<EventView>> {
        let mut events = self.api.events_of_run(run)?;
        events.retain(|event| event.kind == kind);
        Ok(events)
    }

    /// The file of the stored image's data.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn stored_data(&self) -> anyhow::Result<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.daemon.settings.state.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.file_name().is_some_and(|name| name == "data.zst") {
                    found.push(path);
                }
            }
        }
        anyhow::ensure!(found.len() == 1, "expected one data.zst, found {found:?}");
        found.pop().context("one was found")
    }
}

/// A step by its name.
///
/// # Errors
/// When the run has none of that name.
pub fn step_named<'a>(run: &'a RunView, name: &str) -> anyhow::Result<&'a StepView> {
    run.steps
        .iter()
        .find(|step| step.name == name)
        .with_context(|| format!("the run has no step \"{name}\""))
}

/// The machine as the inventory describes it: no BMC, a person works its power button.
pub fn inventory_text() -> String {
    format!(
        "machines:\n  - name: {MACHINE}\n    nics:\n      - {{ mac: \"{MAC}\", address: {ADDRESS}/24, boot: true }}\n    \
         disk: {{ hints: {{ type: virtio }} }}\n    image: {IMAGE}\n"
    )
}

/// An image that does not compress, so that it takes its time on the wire; its last MiB is
/// zeros, so that zero frames are tried too.
fn make_image(file: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    let mut block = Sha256::digest(b"anneal scenario image");
    let mut written = 0;
    while written + MIB < bytes {
        out.write_all(&block)?;
        written += block.len() as u64;
        block = Sha256::digest(block);
    }
    out.flush()?;
    out.get_ref().set_len(bytes)?;
    Ok(())
}

/// SHA-256 of the first bytes of a file, hex.
///
/// # Errors
/// When it cannot be read.
pub fn head_digest(file: &Path, bytes: u64) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut source = std::fs::File::open(file)?.take(bytes);
    let mut hasher = Sha256::new();
    std::io::copy(&mut source, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}
