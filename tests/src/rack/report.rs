//! The table at the end of the demo: what became of each machine, and where the time went.

use anneal_protocol::agent::StreamResult;
use anneal_protocol::api::{MachineView, RunView};

/// Everything one line needs.
#[derive(Debug)]
pub struct Row<'a> {
    /// Firmware, for people.
    pub firmware: &'a str,
    /// The machine after its run.
    pub machine: &'a MachineView,
    /// The run.
    pub run: &'a RunView,
}

/// Phases in the order in which they happen, and their headings.
const PHASES: &[(&str, &str)] = &[
    ("power", "power"),
    ("dhcp", "DHCP"),
    ("bootloader", "boot loader"),
    ("agent", "agent"),
    ("write", "write"),
    ("config", "config"),
    ("first-boot", "first boot"),
];

/// Renders the tables.
#[must_use]
pub fn render(rows: &[Row<'_>]) -> String {
    let mut who = vec![words(&[
        "machine",
        "firmware",
        "state",
        "image",
        "OS (as reported)",
        "kernel",
        "machine-id",
    ])];
    let mut times = vec![
        std::iter::once("machine".to_owned())
            .chain(PHASES.iter().map(|(_, heading)| (*heading).to_owned()))
            .chain(words(&["MB/s", "total"]))
            .collect::<Vec<_>>(),
    ];
    for row in rows {
        who.push(identity(row));
        times.push(durations(row.run));
    }
    format!("{}\n{}", align(&who), align(&times))
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn identity(row: &Row<'_>) -> Vec<String> {
    let node = row.machine.node.as_ref();
    let said = |value: Option<&String>| value.cloned().unwrap_or_else(|| "-".to_owned());
    vec![
        row.machine.name.clone(),
        row.firmware.to_owned(),
        row.machine.state.to_string(),
        short(row.run.image.as_deref().unwrap_or("-")),
        said(node.and_then(|node| node.os.as_ref())),
        said(node.and_then(|node| node.kernel.as_ref())),
        said(node.and_then(|node| node.machine_id.as_ref())),
    ]
}

/// `blake3:` and the first twelve digits.
fn short(digest: &str) -> String {
    match digest.split_once(':') {
        Some((kind, hex)) => format!("{kind}:{}", hex.get(..12).unwrap_or(hex)),
        None => digest.to_owned(),
    }
}

fn durations(run: &RunView) -> Vec<String> {
    let mut cells = vec![run.machine.clone()];
    let mut total = 0;
    for (name, _) in PHASES {
        let spent: Vec<u64> = run
            .phases
            .iter()
            .filter(|phase| phase.name == *name)
            .map(|phase| phase.duration_ms)
            .collect();
        let sum: u64 = spent.iter().sum();
        total += sum;
        cells.push(if spent.is_empty() {
            "-".to_owned()
        } else {
            seconds(sum)
        });
    }
    cells.push(write_rate(run).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")));
    cells.push(seconds(total));
    cells
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// Megabytes of raw image per second of the write step.
fn write_rate(run: &RunView) -> Option<f64> {
    let step = run
        .steps
        .iter()
        .find(|step| step.uses == "stream-image" && step.state == "succeeded")?;
    let result: StreamResult = serde_json::from_value(step.output.clone()?).ok()?;
    // Bytes per millisecond are kilobytes per second; both numbers are far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let rate = result.bytes as f64 / result.duration_ms.max(1) as f64 / 1000.0;
    Some(rate)
}

/// Columns as wide as their widest cell.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![words(&["a", "bb"]), words(&["ccc", "d"])];
        assert_eq!(align(&rows), "a    bb\nccc  d\n");
    }

    #[test]
    fn digests_are_shortened_but_keep_their_kind() {
        assert_eq!(
            short(&format!("blake3:{}", "ab".repeat(32))),
            "blake3:abababababab"
        );
        assert_eq!(short("-"), "-");
    }

    #[test]
    fn seconds_have_one_decimal() {
        assert_eq!(seconds(12_345), "12.3 s");
        assert_eq!(seconds(99), "0.0 s");
    }
}
