//! The duties of PID 1: kernel file systems, console, drivers, orphans, and a way out.
//!
//! Invariant: PID 1 never returns and never dies silently; whatever goes wrong is printed on the
//! console, reported if the server can be reached, and ends in a restart through the firmware.

pub mod modules;

use std::path::Path;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use crate::report;

/// How long a person has to read the console before the machine restarts.
const READ_THE_CONSOLE: Duration = Duration::from_secs(30);

/// Sets the machine up, runs `work`, and restarts the machine when it ends.
pub fn run(work: impl FnOnce() -> anyhow::Result<()>) -> ! {
    let mounted = mount_all();
    let console = take_console();
    log_to_stderr();
    install_panic_hook();
    reap_orphans();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "anneal agent is PID 1");
    let result = mounted.and(console).and_then(|()| {
        modules::coldplug();
        work()
    });
    match result {
        Ok(()) => tracing::info!("nothing left to do"),
        Err(error) => tracing::error!("{error:#}"),
    }
    restart()
}

/// Human-readable lines on stderr, and into the report of the step being carried out.
pub fn log_to_stderr() {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr);
    let ours = tracing_subscriber::filter::Targets::new()
        .with_target("anneal_agent", tracing::Level::INFO)
        .with_target("anneal_image", tracing::Level::INFO)
        .with_default(tracing::Level::WARN);
    // A second call (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry()
        .with(ours)
        .with(lines)
        .with(report::LogLayer)
        .try_init();
}

fn mount_all() -> anyhow::Result<()> {
    let strict = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let table = [
        ("proc", "/proc", strict, None),
        ("sysfs", "/sys", strict, None),
        ("devtmpfs", "/dev", MountFlags::NOSUID, None),
        ("tmpfs", "/run", strict, Some(c"mode=0755")),
        ("tmpfs", "/tmp", strict, Some(c"mode=1777")),
    ];
    for (kind, at, flags, data) in table {
        std::fs::create_dir_all(at)
            .map_err(|e| anyhow::anyhow!("cannot make the directory {at}: {e}"))?;
        match mount(kind, at, kind, flags, data) {
            // Some kernels mount /dev themselves.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(e) => anyhow::bail!("cannot mount {kind} on {at}: {e}"),
        }
    }
    Ok(())
}

/// Standard input, output and error on the console, once `/dev` is there.
fn take_console() -> anyhow::Result<()> {
    let console = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/console")
        .map_err(|e| anyhow::anyhow!("cannot open /dev/console: {e}"))?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}

/// Lets the kernel reap: PID 1 starts no children of its own, so nobody wants their status.
fn reap_orphans() {
    // SAFETY: SIG_IGN installs no handler, so no code of ours runs in signal context.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
}

/// Without it a panic of PID 1 is a kernel panic that tells nobody why.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let text = format!("agent panicked: {info}");
        eprintln!("{text}");
        report::last_words(&text);
        restart();
    }));
}

/// Gives people time to read, then restarts through the firmware.
pub fn restart() -> ! {
    eprintln!("restarting in {} seconds", READ_THE_CONSOLE.as_secs());
    std::thread::sleep(READ_THE_CONSOLE);
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        eprintln!("cannot restart: {error}");
    }
    // Not reached unless the kernel refuses; ending PID 1 panics the kernel, which restarts when
    // told so on its command line (`panic=`).
    std::process::exit(1)
}

/// Whether the machine booted through UEFI.
#[must_use]
pub fn booted_by_uefi() -> bool {
    Path::new("/sys/firmware/efi").exists()
}
