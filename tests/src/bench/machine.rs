//! On what the numbers were measured.

use std::path::Path;

/// The machine, as a person would describe it, one line a fact.
#[must_use]
pub fn describe(disk: &Path) -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            Some(
                line.strip_prefix("model name")?
                    .split_once(':')?
                    .1
                    .trim()
                    .to_owned(),
            )
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .map_or_else(String::new, |kib: u64| {
            format!("{} GiB", kib.div_ceil(1 << 20))
        });
    vec![
        ("CPU", format!("{cpu}, {cores} cores")),
        ("memory", memory),
        (
            "kernel",
            read("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        ("disk", disk_of(disk)),
        ("date", date()),
    ]
}

/// File system and block device below a file.
fn disk_of(path: &Path) -> String {
    let output = crate::sim::tool::command("findmnt")
        .and_then(|mut command| {
            command.args(["-n", "-o", "FSTYPE,SOURCE", "-T"]).arg(path);
            crate::sim::tool::run(&mut command)
        })
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    output.map_or_else(
        |_| "unknown".to_owned(),
        |line| line.split_whitespace().collect::<Vec<_>>().join(" on "),
    )
}

fn date() -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    // Days to a date: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let z = seconds / 86_400 + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (
        doy - (153 * mp + 2) / 5 + 1,
        if mp < 10 { mp + 3 } else { mp - 9 },
    );
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
