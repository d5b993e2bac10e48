//! Other programs on this host, confined: an environment that tells nothing of ours, none of the
//! daemon's capabilities, bounded output, and an end in time for the program and all that it
//! started.
//!
//! Not here: what is run and what its output means (`token::issuer`, `validate`).

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

/// Most that counts of a program's output, and of its complaints, bytes.
pub(crate) const LONGEST_OUTPUT: u64 = 64 * 1024;
/// Where programs without a path are looked for.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a program ended, and what it printed: a byte more than [`LONGEST_OUTPUT`] when that was too
/// much.
pub(crate) struct Ended {
    pub(crate) status: io::Result<ExitStatus>,
    pub(crate) stdout: Zeroizing<Vec<u8>>,
    pub(crate) stderr: Zeroizing<Vec<u8>>,
}

/// Why a program did not come to its end.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It was not started.
    Start(io::Error),
    /// It took too long and was killed.
    Late,
}

/// A program that is told nothing but what the caller adds. It runs in `/`, and is killed when
/// nobody waits for it any more.
pub(crate) fn confined(program: &str) -> Command {
    let mut process = Command::new(program);
    // SAFETY: between fork and exec this makes one system call, and touches no memory of others.
    unsafe {
        process.pre_exec(|| Ok(rustix::thread::clear_ambient_capability_set()?));
    }
    process
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("HOME", "/nonexistent")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Of its own, so that what it started is killed with it.
        .process_group(0)
        .kill_on_drop(true);
    process
}

/// Runs a [`confined`] program to its end.
///
/// # Errors
/// When it cannot be started or does not end within `limit`.
pub(crate) async fn run(process: &mut Command, limit: Duration) -> Result<Ended, Failed> {
    let mut child = process.spawn().map_err(Failed::Start)?;
    let group = Group::of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::join!(read(stdout), read(stderr), child.wait()) };
    let Ok((stdout, stderr, status)) = tokio::time::timeout(limit, all).await else {
        return Err(Failed::Late);
    };
    group.ended();
    Ok(Ended {
        status,
        stdout,
        stderr,
    })
}

/// Reads to the end; keeps a little more than what is allowed, so that too much can be told.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Zeroizing<Vec<u8>> {
    let mut kept = Zeroizing::new(Vec::new());
    let Some(pipe) = pipe else { return kept };
    let mut bounded = pipe.take(LONGEST_OUTPUT + 1);
    // What cannot be read is as good as nothing: the exit status says whether it is missed.
    let _ = bounded.read_to_end(&mut kept).await;
    let mut rest = bounded.into_inner();
    let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    kept
}

/// Kills a program's process group unless it ended.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }

    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Gone already is just as well.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_bounded_and_the_program_ends_all_the_same() {
        let mut shell = confined("sh");
        shell.args(["-c", "head -c 1000000 /dev/zero; echo told >&2"]);
        let ended = run(&mut shell, Duration::from_secs(60)).await.unwrap();
        assert!(ended.status.unwrap().success());
        assert_eq!(ended.stdout.len() as u64, LONGEST_OUTPUT + 1);
        assert_eq!(ended.stderr.as_slice(), b"told\n");
    }

    #[tokio::test]
    async fn who_does_not_end_or_is_not_there_is_told_apart() {
        let mut shell = confined("sh");
        // A child keeps the pipes open.
        shell.args(["-c", "sleep 600 & exit 0"]);
        let late = run(&mut shell, Duration::from_millis(300)).await;
        assert!(matches!(late, Err(Failed::Late)));
        let absent = run(&mut confined("no-such-program"), Duration::from_secs(60)).await;
        let kind = match absent {
            Err(Failed::Start(error)) => error.kind(),
            _ => panic!("started"),
        };
        assert_eq!(kind, io::ErrorKind::NotFound);
    }
}
