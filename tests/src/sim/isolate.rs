//! A world of its own for everything the simulator starts: network, process and mount namespace.
//!
//! Owns: how a program continues inside new namespaces, and what it sees there.
//!
//! Three processes of the same binary are at work. The *outer* one is what a person or cargo
//! started: it starts `unshare`, waits, and passes on how it went. *Init* is process 1 of the new PID
//! namespace: it makes the mounts and reaps. The *inside* one does the work.
//!
//! Invariants: when init ends, the kernel kills every process of the namespace, and the last
//! process takes network devices and mounts with it. Init ends when the inside process ends, and is
//! killed when the outer one dies, even by SIGKILL. So nothing is ever left over. libvirtd sees
//! private directories only: one that runs on the host is not disturbed.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, wait};

use super::tool;
use super::wait::wait_until;

const INIT: &str = "__init";
const INSIDE: &str = "__inside";

/// Which of the three processes this is.
#[derive(Debug)]
pub enum Place {
    /// As started by a person or cargo, with its arguments.
    Outer(Vec<OsString>),
    /// In the namespaces, with the working directory and the arguments given to [`run`].
    Inside(PathBuf, Vec<OsString>),
    /// Init, after its work: leave with this code.
    Over(ExitCode),
}

/// Finds out where we are, and plays init where that is asked. Call first thing in `main`.
#[must_use]
pub fn place() -> Place {
    let mut args = std::env::args_os().skip(1);
    let rest = |mut args: std::iter::Skip<std::env::ArgsOs>| {
        let work = args.next().map(PathBuf::from).unwrap_or_default();
        (work, args.collect::<Vec<_>>())
    };
    match std::env::args_os().nth(1) {
        Some(word) if word == INIT => {
            args.next();
            let (work, args) = rest(args);
            Place::Over(match init(&work, &args) {
                Ok(code) => ExitCode::from(code),
                Err(error) => {
                    eprintln!("isolating the virtual rack: {error:#}");
                    ExitCode::FAILURE
                }
            })
        }
        Some(word) if word == INSIDE => {
            args.next();
            let (work, args) = rest(args);
            Place::Inside(work, args)
        }
        _ => Place::Outer(args.collect()),
    }
}

/// How the inside process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// The outer process was told to stop (SIGINT, SIGTERM or SIGHUP).
    Interrupted,
    /// It did not end in time.
    TimedOut,
}

impl End {
    /// What whoever started us is told: the inside's own code, 130 after an interrupt, 124 after a limit.
    #[must_use]
    pub fn code(self) -> ExitCode {
        let code = match self {
            Self::Exited(status) => status.code().and_then(|code| u8::try_from(code).ok()),
            Self::Interrupted => Some(130),
            Self::TimedOut => Some(124),
        };
        ExitCode::from(code.unwrap_or(1))
    }

    /// Whether the inside ended by itself, and well.
    #[must_use]
    pub fn success(self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

/// Runs this binary inside new namespaces: its [`place`] will be `Inside(work, args)`. `work` is
/// an existing directory for its files. Returns when nothing of it is left.
///
/// Must be called on the main thread: the kernel ties the life of the children to the thread
/// that made them.
///
/// # Errors
/// When the namespaces cannot be made, which needs root.
pub fn run(
    work: &Path,
    args: &[OsString],
    limit: Duration,
    output: Option<std::fs::File>,
    environment: &[(&str, &str)],
) -> anyhow::Result<End> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "the virtual rack needs root for its network namespace: use sudo"
    );
    for dir in PRIVATE_DIRS {
        anyhow::ensure!(
            Path::new(dir).is_dir(),
            "{dir} is missing: run `make setup`, or install the package libvirt-daemon-system"
        );
    }
    let mut command = Command::new(tool::find("unshare")?);
    command
        .args(["--net", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .arg(INIT)
        .arg(work)
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null());
    if let Some(file) = output {
        command.stdout(file.try_clone()?).stderr(file);
    }
    die_with_parent(&mut command);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(supervise(command.into(), limit))
}

async fn supervise(mut command: tokio::process::Command, limit: Duration) -> anyhow::Result<End> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = command.spawn().context("starting unshare")?;
    let end = tokio::select! {
        status = child.wait() => return Ok(End::Exited(status?)),
        _ = interrupt.recv() => End::Interrupted,
        _ = terminate.recv() => End::Interrupted,
        _ = hangup.recv() => End::Interrupted,
        () = tokio::time::sleep(limit) => End::TimedOut,
    };
    let init = child.id().and_then(only_child);
    // Its death kills init, and init's death everything else.
    child.start_kill()?;
    child.wait().await?;
    if let Some(init) = init {
        let entry = PathBuf::from(format!("/proc/{init}"));
        wait_until(
            Duration::from_secs(30),
            "the processes of the rack to end",
            || !entry.exists(),
        )?;
    }
    Ok(end)
}

/// The pid of the one child of `parent`.
#[must_use]
pub fn only_child(parent: u32) -> Option<u32> {
    std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .ok()?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Makes the kernel kill the child when the thread that starts it is gone.
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe; nothing is
    // allocated and no lock is taken.
    unsafe {
        command.pre_exec(|| {
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)
        });
    }
}

/// Directories that libvirt keeps its state in: each is private to the rack.
const PRIVATE_DIRS: &[&str] = &[
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
];

fn init(work: &Path, args: &[OsString]) -> anyhow::Result<u8> {
    // A new sysfs shows the devices of the new network namespace, and no cgroup hierarchies, so
    // that libvirtd does not look for them.
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("mounting /sys")?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).context("mounting /run")?;
    std::fs::create_dir_all("/run/lock")?;
    for dir in PRIVATE_DIRS {
        let own = work.join("host").join(dir.trim_start_matches('/'));
        std::fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
        mount_bind(&own, *dir).with_context(|| format!("mounting over {dir}"))?;
    }
    tool::run(tool::command("ip")?.args(["link", "set", "lo", "up"]))?;
    let inside = Command::new(std::env::current_exe()?)
        .arg(INSIDE)
        .arg(work)
        .args(args)
        .stdin(Stdio::null())
        .spawn()
        .context("starting the process inside")?;
    reap_until(inside.id())
}

/// Reaps orphans until the child `pid` ends; its exit code as a shell would give it.
fn reap_until(pid: u32) -> anyhow::Result<u8> {
    loop {
        let Some((reaped, status)) = wait(WaitOptions::empty())? else {
            continue;
        };
        if u32::try_from(reaped.as_raw_nonzero().get()).ok() == Some(pid) {
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            return Ok(u8::try_from(code).unwrap_or(u8::MAX));
        }
    }
}
