//! The daemon under test: a real `anneal serve` process, and the real `anneal` command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::api::Api;
use super::net;
use super::process::Process;
use super::tool;
use super::wait::wait_for;

/// How to start a daemon; the same settings start it again after it was killed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `anneal` binary.
    pub program: PathBuf,
    /// Boot files.
    pub netboot: PathBuf,
    /// Where its state is.
    pub state: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// More arguments of `anneal serve`.
    pub more: Vec<String>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// How it was started.
    pub settings: Settings,
    process: Process,
}

impl Daemon {
    /// Starts it on the rack's wire and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or does not get ready: with the end of its log.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        let mut command = Command::new(&settings.program);
        command
            .args(["serve", "--interface", net::BRIDGE])
            .args(["--address", &format!("{}/24", net::DAEMON)])
            .arg("--state-dir")
            .arg(&settings.state)
            .arg("--netboot-dir")
            .arg(&settings.netboot)
            .args(&settings.more);
        let process = Process::start("anneal serve", command, &settings.log)?;
        let mut daemon = Self { settings, process };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{}:8080/readyz", net::DAEMON);
        wait_for(Duration::from_secs(60), "the daemon to be ready", || {
            self.process.ensure_running()?;
            let mut curl = tool::command("curl")?;
            curl.args(["-sf", "--max-time", "5", &url]);
            Ok(tool::run(&mut curl).ok())
        })
        .map(drop)
    }

    /// Kills it as a power cut would, and starts it again on the same state.
    ///
    /// # Errors
    /// When it had ended by itself, or does not come back.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        *self = Self::start(self.settings.clone())?;
        Ok(())
    }

    /// Freezes it, or lets it go on: a server that has stalled keeps its connections open.
    ///
    /// # Errors
    /// When it has ended.
    pub fn freeze(&mut self, frozen: bool) -> anyhow::Result<()> {
        self.process.freeze(frozen)
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.process.ensure_running()
    }

    /// Stops it as systemd would and insists on a clean end.
    ///
    /// # Errors
    /// When it does not end in time, or not with success.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let status = self.process.stop(Duration::from_secs(30))?;
        anyhow::ensure!(status.success(), "the daemon ended badly: {status}");
        Ok(())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        self.process.resident_bytes()
    }

    /// The context file with the admin's key.
    #[must_use]
    pub fn context(&self) -> PathBuf {
        self.settings.state.join("admin.context.json")
    }

    /// Its HTTP API, as admin.
    ///
    /// # Errors
    /// When the context file cannot be read.
    pub fn api(&self) -> anyhow::Result<Api> {
        Api::open(&self.context())
    }

    /// An `anneal` command as an operator types it.
    #[must_use]
    pub fn cli(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.settings.program);
        command
            .env("ANNEAL_CONTEXT", self.context())
            .args(args)
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs an `anneal` command; what it printed.
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub fn anneal(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = tool::run(&mut self.cli(args))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Puts a disk image into its store as `name@version`. Who built it is its publisher: its
    /// digest is the proof.
    ///
    /// # Errors
    /// When it refuses.
    pub fn add_image(&self, reference: &str, file: &Path, os: &str) -> anyhow::Result<()> {
        self.add_image_with(reference, file, os, &[])
    }

    /// [`Self::add_image`] with more arguments.
    ///
    /// # Errors
    /// When it refuses.
    pub fn add_image_with(
        &self,
        reference: &str,
        file: &Path,
        os: &str,
        more: &[&str],
    ) -> anyhow::Result<()> {
        let told = tool::run(tool::command("sha256sum")?.arg(file))?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let digest = told.split(' ').next().unwrap_or_default();
        let file = file.to_string_lossy();
        let words = [
            "image", "add", reference, &file, "--os", os, "--sha256", digest,
        ];
        self.anneal(&[&words, more].concat()).map(drop)
    }
}
