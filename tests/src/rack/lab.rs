//! The lab: the rack left running, with a way in and a way to remove it.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::paths::Paths;
use super::stage::Stage;
use crate::sim::process::tail;
use crate::sim::wait::{wait_for, wait_until};

/// Where the lab keeps what others need: the keeper's pid, its log, the way in.
fn dir(paths: &Paths) -> PathBuf {
    paths.root.join(".cache/lab")
}

/// The keeper's pid while it lives. A pid that now belongs to another program does not count.
fn keeper(paths: &Paths) -> Option<u32> {
    let text = std::fs::read_to_string(dir(paths).join("pid")).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    String::from_utf8_lossy(&cmdline)
        .contains("lab-keeper")
        .then_some(pid)
}

/// Starts the keeper in the background and waits until its rack is up.
///
/// # Errors
/// When a lab runs already, or the rack does not come up.
pub fn start(paths: &Paths) -> anyhow::Result<()> {
    if let Some(pid) = keeper(paths) {
        anyhow::bail!("the lab is up already (process {pid}); remove it with `make lab-down`");
    }
    let dir = dir(paths);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => std::fs::create_dir_all(&dir)?,
    }
    let log = dir.join("lab.log");
    let file = std::fs::File::create(&log)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("lab-keeper")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // Not in the terminal's group: Ctrl-C after `make lab` must not reach it.
        .process_group(0);
    let mut child = command.spawn().context("starting the lab's keeper")?;
    std::fs::write(dir.join("pid"), child.id().to_string())?;
    let told = told_to_stop()?;
    let up = wait_for(Duration::from_secs(300), "the lab to come up", || {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("the lab ended ({status}): {}", tail(&log, 20));
        }
        anyhow::ensure!(!told.load(Ordering::Relaxed), "interrupted");
        Ok(dir.join("ready").exists().then_some(()))
    });
    if let Err(error) = up {
        // Half a lab is of no use to anybody.
        if child.try_wait()?.is_none() {
            let raw = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            kill_process(raw.context("a pid is positive")?, Signal::TERM)?;
            child.wait()?;
        }
        return Err(error);
    }
    write_way_in(paths, child.id())?;
    print!("{}", std::fs::read_to_string(&log)?);
    Ok(())
}

/// Becomes true when this process is asked to end (Ctrl-C, SIGTERM, SIGHUP).
fn told_to_stop() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let told = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Before the thread: from here on no signal is missed.
    let (mut interrupt, mut terminate, mut hangup) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    let tell = Arc::clone(&told);
    // Ends with the process, which has nothing else to do than to wait for the lab.
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        tell.store(true, Ordering::Relaxed);
    });
    Ok(told)
}

/// Inside: says what to try, then keeps everything up until it is killed.
///
/// # Errors
/// When a part of the rack dies.
pub fn keep(mut stage: Stage, paths: &Paths) -> anyhow::Result<()> {
    println!("{}", what_to_try(&stage));
    std::fs::write(dir(paths).join("ready"), "")?;
    loop {
        stage.rack.ensure_running()?;
        stage.daemon.ensure_running()?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn what_to_try(stage: &Stage) -> String {
    let console = &stage.rack.machines[0].console;
    format!(
        "\nThe lab is up. `.cache/lab/enter` opens a shell on the rack's network with `anneal` set up:\n\
         \n    anneal machine list\n    anneal provision r1n1 --plan\n    anneal provision r1n1\n\
         \x20   anneal run list\n    anneal event follow\n\
         \x20   virsh list --all\n    tail -f {}\n\
         \n`make lab-down` removes it.",
        console.display()
    )
}

/// Writes the script that enters the lab's namespaces: those of its process 1, which is the
/// child of the keeper's child.
fn write_way_in(paths: &Paths, keeper: u32) -> anyhow::Result<()> {
    let script = dir(paths).join("enter");
    let bin = paths.anneal.parent().unwrap_or(Path::new("/"));
    let work = paths.root.join(".cache/rack").join(keeper.to_string());
    let text = format!(
        "#!/bin/sh\n\
         # Opens a shell, or runs a command, on the virtual rack's network. Needs root.\n\
         child() {{ cut -d' ' -f1 \"/proc/$1/task/$1/children\" 2>/dev/null; }}\n\
         grep -qs lab-keeper /proc/{keeper}/cmdline && init=$(child \"$(child {keeper})\")\n\
         [ -n \"$init\" ] || {{ echo 'the lab is not running' >&2; exit 1; }}\n\
         [ $# -gt 0 ] || set -- \"${{SHELL:-/bin/sh}}\"\n\
         exec nsenter --target \"$init\" --net --mount --pid --wdns=\"$PWD\" env \\\n\
         \x20 PATH=\"{}:$PATH\" ANNEAL_CONTEXT=\"{}\" LIBVIRT_DEFAULT_URI=\"{}\" \"$@\"\n",
        bin.display(),
        work.join("state/admin.context.json").display(),
        crate::sim::libvirt::URI
    );
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Stops the keeper, and with it everything.
///
/// # Errors
/// When it does not end.
pub fn stop(paths: &Paths) -> anyhow::Result<()> {
    let Some(pid) = keeper(paths) else {
        // One that was killed left its files.
        remove_files(paths)?;
        println!("no lab is running");
        return Ok(());
    };
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(raw.context("the keeper's pid is no pid")?, Signal::TERM)?;
    wait_until(Duration::from_secs(60), "the lab to end", || {
        keeper(paths).is_none()
    })?;
    remove_files(paths)?;
    println!("the lab is gone");
    Ok(())
}

/// Removes what a lab that is over has on the disk.
fn remove_files(paths: &Paths) -> anyhow::Result<()> {
    let pid = std::fs::read_to_string(dir(paths).join("pid")).unwrap_or_default();
    let work = pid
        .trim()
        .parse::<u32>()
        .map(|pid| paths.root.join(".cache/rack").join(pid.to_string()));
    for dir in work.into_iter().chain([dir(paths)]) {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
