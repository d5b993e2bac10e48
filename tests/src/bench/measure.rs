//! Running a program and knowing what it cost; medians.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::sim::tool;

/// What a program cost, with everything it started and waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Time on the clock.
    pub wall: Duration,
    /// Processor time.
    pub cpu: Duration,
    /// Largest resident memory of any one process, in bytes.
    pub peak: u64,
}

/// Runs a command to its end, then `after` (a flush, say) on the same clock. What the program printed
/// comes along.
///
/// # Errors
/// When it fails: names the command and what it printed.
pub fn run(
    command: &mut Command,
    after: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(Cost, String)> {
    let rendered = tool::render(command);
    let output = tempfile::tempfile()?;
    command
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    let began = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("starting {rendered}"))?;
    let (status, usage) = wait(child.id())?;
    after()?;
    let wall = began.elapsed();
    let text = text_of(&output)?;
    anyhow::ensure!(status == 0, "{rendered}: wait status {status}: {text}");
    let seconds = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    let cost = Cost {
        wall,
        cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    };
    Ok((cost, text))
}

fn text_of(file: &std::fs::File) -> anyhow::Result<String> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for a child of ours: how it ended (0: well), and what it used.
fn wait(pid: u32) -> anyhow::Result<(i32, libc::rusage)> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of that plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live values of the right types, and `pid` is a child that nobody
        // else waits for: its `Child` is dropped without a wait.
        let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if reaped == pid {
            return Ok((status, usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("waiting for a program");
        }
    }
}

/// Processor time that a process and its waited-for children have used so far, all threads.
///
/// # Errors
/// When it is gone.
pub fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let field = |n: usize| -> anyhow::Result<u64> {
        let text = fields.split_ascii_whitespace().nth(n);
        Ok(text.context("/proc/PID/stat is short")?.parse()?)
    };
    // utime and stime are fields 14 and 15 of proc(5); the name is field 2.
    let ticks = field(11)? + field(12)?;
    let hertz = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / hertz as f64))
}

/// Processor time that the whole machine has spent on anything, the kernel's own threads too.
///
/// # Errors
/// When the kernel does not say.
pub fn busy() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // proc(5): cpu user nice system idle iowait irq softirq steal guest guest_nice; guests are in user.
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .take(7)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let hertz = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64((all - idle) as f64 / hertz as f64))
}

/// Processor time of a process and its children that run, such as a web server's workers.
///
/// # Errors
/// When it is gone.
pub fn cpu_of_family(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = cpu_of(pid)?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_ascii_whitespace() {
        sum += cpu_of(child.parse()?)?;
    }
    Ok(sum)
}

/// Who takes longer than this for one run is not run again: another half minute would not change who is
/// faster, and everybody else's runs would be further apart.
const SLOW: Duration = Duration::from_secs(10);

/// Whether one of these runs was too slow for another one.
#[must_use]
pub fn slow(mut took: impl Iterator<Item = Duration>) -> bool {
    took.any(|time| time > SLOW)
}

/// The middle value; the mean of the two in the middle when there is an even number.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Whether two files or devices begin with the same `length` bytes.
///
/// # Errors
/// When one cannot be read, or they differ: says where.
pub fn same(one: &Path, other: &Path, length: u64) -> anyhow::Result<()> {
    let mut cmp = tool::command("cmp")?;
    cmp.arg("-n").arg(length.to_string()).arg(one).arg(other);
    tool::run(&mut cmp).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn costs_include_what_a_shell_started() {
        let mut command = tool::command("sh").unwrap();
        command.args([
            "-c",
            "dd if=/dev/zero of=/dev/null bs=1M count=2000 2>&1; :",
        ]);
        let (cost, _) = run(&mut command, || Ok(())).unwrap();
        assert!(cost.cpu > Duration::ZERO && cost.peak > 1 << 20, "{cost:?}");
        let mut command = tool::command("sh").unwrap();
        command.args(["-c", "echo why; exit 3"]);
        let error = run(&mut command, || Ok(())).unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
    }
}
