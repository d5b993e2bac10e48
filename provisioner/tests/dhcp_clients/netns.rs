//! Network namespaces for tests: nameless, so they vanish with the test process however it ends.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take before the test gives up; firmware without acceleration on a busy
/// machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// A new one, with its loopback up.
    pub fn new() -> Self {
        let handle = std::thread::spawn(|| {
            // SAFETY: unshare(2) with CLONE_NEWNET changes only this thread's network namespace.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            let error = std::io::Error::last_os_error();
            assert_eq!(done, 0, "network tests must run as root: {error}");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self { handle };
        namespace.ip("link set lo up");
        namespace
    }

    /// Where other programs find it while this process lives.
    fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.handle.as_raw_fd()
        )
    }

    /// Connects two namespaces by a cable: `here` in this one, `there` in the other.
    pub fn cable(&self, here: &str, other: &Self, there: &str, mac: &str) {
        self.ip(&format!(
            "link add {here} type veth peer name {there} address {mac}"
        ));
        self.ip(&format!("link set {there} netns {}", other.path()));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) {
        let mut command = self.command("ip", "iproute2");
        finish(command.args(arguments.split_whitespace()));
    }

    /// A command that will run inside and dies with this test. A missing program fails the test
    /// with the name of its package.
    pub fn command(&self, program: &str, package: &str) -> Command {
        let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .map(|dir| Path::new(dir).join(program))
            .find(|path| path.exists())
            .unwrap_or_else(|| panic!("{program} is missing: install the package {package}"));
        let mut command = Command::new(found);
        let handle = self.handle.as_raw_fd();
        // SAFETY: between fork and exec the closure makes two system calls and nothing else; the
        // descriptor is open because `self` outlives the spawn in every test.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(handle, libc::CLONE_NEWNET) != 0
                    || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }

    /// Runs a future inside, on a thread and runtime of its own.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    block_on(work())
                })
                .join()
                .unwrap()
        })
    }

    /// Moves the calling thread inside, for good.
    pub fn enter(&self) {
        // SAFETY: setns(2) with CLONE_NEWNET changes only this thread's network namespace.
        let done = unsafe { libc::setns(self.handle.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Another handle on the same namespace.
    pub fn again(&self) -> Self {
        Self {
            handle: self.handle.try_clone().unwrap(),
        }
    }
}

/// Runs a future on a runtime made in the calling thread, so that it is where the thread is.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Runs a command to its end and expects success.
pub fn finish(command: &mut Command) -> Output {
    let output = attempt(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command to its end, whatever that is, within [`PATIENCE`].
pub fn attempt(command: &mut Command) -> Output {
    let mut child = Running::start(command);
    wait_until(&format!("{command:?} ends"), || {
        child.0.try_wait().unwrap().is_some()
    });
    let mut output = Output {
        status: child.0.wait().unwrap(),
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    if let Some(mut pipe) = child.0.stdout.take() {
        pipe.read_to_end(&mut output.stdout).unwrap();
    }
    if let Some(mut pipe) = child.0.stderr.take() {
        pipe.read_to_end(&mut output.stderr).unwrap();
    }
    output
}

/// A program that runs until this is dropped.
pub struct Running(pub Child);

impl Running {
    /// Starts it, its output caught.
    pub fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.0.id()).unwrap();
        // SAFETY: kill(2) on a child that has not been waited for: the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks until `condition` holds; fails the test when it never does.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
