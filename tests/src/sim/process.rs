//! Child processes with a log file, stopped when dropped.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::wait::wait_for;

/// A running child. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", super::tool::render(&command)))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Resident memory in bytes, as the kernel sees it now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))
            .with_context(|| format!("{} is gone", self.name))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| {
                rest.trim()
                    .trim_end_matches(" kB")
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .map(|kib| kib * 1024)
            .with_context(|| format!("{} has no resident memory", self.name))
    }

    /// Fails when it has ended; for use inside waits, so that they end early.
    ///
    /// # Errors
    /// Names how it ended and its log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!(
                "{} ended ({status}), its log {} says: {}",
                self.name,
                self.log.display(),
                tail(&self.log, 12)
            ),
        }
    }

    /// Kills it as a power cut would (SIGKILL), and reaps it.
    ///
    /// # Errors
    /// When it had ended by itself before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.ensure_running()?;
        self.child.kill()?;
        let status = self.child.wait()?;
        anyhow::ensure!(
            status.signal() == Some(Signal::KILL.as_raw()),
            "{} ended before it could be killed: {status}",
            self.name
        );
        Ok(())
    }

    /// Freezes it (SIGSTOP), or lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When it has ended.
    pub fn freeze(&mut self, frozen: bool) -> anyhow::Result<()> {
        self.ensure_running()?;
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id is positive")?, signal)?;
        Ok(())
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// When it is still there after `limit`.
    pub fn stop(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), None) = (pid, self.child.try_wait()?) {
            kill_process(pid, Signal::TERM)?;
        }
        let what = format!("{} to stop", self.name);
        wait_for(limit, &what, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a text file; what cannot be read is said instead.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(no log: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tool;

    #[test]
    fn drop_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = tool::command("sleep").unwrap();
        command.arg("600");
        let mut process = Process::start("sleep", command, &dir.path().join("log")).unwrap();
        process.ensure_running().unwrap();
        let proc_dir = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(proc_dir.exists());
        drop(process);
        assert!(!proc_dir.exists());
    }

    #[test]
    fn a_child_that_ended_is_noticed_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = tool::command("sh").unwrap();
        command.args(["-c", "echo no such interface >&2; exit 1"]);
        let mut process = Process::start("daemon", command, &dir.path().join("log")).unwrap();
        let error = wait_for(Duration::from_secs(10), "its end", || {
            process.ensure_running().map(|()| None::<()>)
        });
        let text = error.unwrap_err().to_string();
        assert!(text.contains("no such interface"), "{text}");
    }
}
