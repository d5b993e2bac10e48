//! The page: docs/performance.md, made from numbers alone.

use std::fmt::Write as _;

use super::write::AGENT;
use super::{Plan, delta, serve, write};

/// Everything that one run measured.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// One for each disk.
    pub write: Vec<write::Table>,
    /// The drifted disk.
    pub delta: Option<delta::Delta>,
    /// By number of clients.
    pub serve: Vec<serve::Row>,
}

/// The page as Markdown.
#[must_use]
pub fn page(plan: &Plan, machine: &[(&'static str, String)], results: &Results) -> String {
    let mut out = String::from(
        "# Performance\n\nWritten by `make bench`: everything in one run, on one machine, each number the median of its runs, \
         in turn. Rates differ from machine to machine: compare within a table.\n\n| | |\n|---|---|\n",
    );
    for (what, text) in machine {
        line(&mut out, &format!("| {what} | {text} |"));
    }
    line(
        &mut out,
        &format!(
            "| image | {} MiB disk, 60 % full: a Debian and files of /usr |\n| runs | {} |\n",
            plan.size >> 20,
            plan.runs
        ),
    );
    for table in &results.write {
        write_table(&mut out, table);
    }
    if let Some(delta) = &results.delta {
        delta_table(&mut out, delta);
    }
    if !results.serve.is_empty() {
        serve_table(&mut out, &results.serve);
    }
    out.push_str(HOW);
    out
}

const HOW: &str = "## How\n\n\
    Servers and clients are in two network namespaces with a veth pair between them and share the processors. Rates \
    of writing are bytes of the raw disk, holes and zeros too, until the disk has been flushed. \"Peak\" is the largest process. Who \
    takes longer than ten seconds runs once. TCP uses Reno, which does not pace. Each run begins on a disk that is full of other bytes. \
    A memory disk is a loop device on tmpfs whose pages exist; the other is a loop device on a file, past the page cache. The network's limit is \
    four clients reading `data.zst` from nginx, counted in raw bytes; the decoder's is `zstd -t` on every core at once; the disk's is \
    `dd oflag=direct`. All three run on the same processors here, servers included: \"on the same cores\" is the processor time of the three \
    divided by the cores. While serving, clients drop what they get in the kernel, so that the processors are the servers'. Which end's process is charged for \
    the network's work is up to the kernel, so the whole machine's processor time stands beside the server's own. What each program \
    wrote is compared with the image in its first run (not bmaptool's, which leaves holes as they were).\n";

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// A pipe in a table's cell.
fn escaped(name: &str) -> String {
    name.replace('|', "\\|")
}

fn write_table(out: &mut String, table: &write::Table) {
    let limits = table.limits;
    let (slowest, limit) = limits.slowest();
    let _ = writeln!(
        out,
        "## A whole image to {}\n\n| | MB/s | CPU s per GiB | peak MiB | runs |\n|---|---:|---:|---:|---:|",
        table.target
    );
    for row in &table.rows {
        match &row.failed {
            Some(_) => line(out, &format!("| {} | failed | | | |", escaped(row.name))),
            None => line(
                out,
                &format!(
                    "| {} | {:.0} | {:.2} | {} | {} |",
                    escaped(row.name),
                    row.rate,
                    row.cpu_per_gib,
                    row.peak >> 20,
                    row.runs
                ),
            ),
        }
    }
    for (what, rate) in [
        ("limit: network", limits.network),
        ("limit: decoding, all cores", limits.decode),
        ("limit: disk", limits.disk),
        ("limit: these three on the same cores", limits.shared),
    ] {
        line(out, &format!("| {what} | {:.0} | | | |", rate / 1e6));
    }
    let own = table.rows.iter().find(|row| row.name == AGENT);
    let best = table
        .rows
        .iter()
        .filter(|row| !row.name.starts_with(AGENT) && row.failed.is_none())
        .max_by(|a, b| a.rate.total_cmp(&b.rate));
    if let (Some(own), Some(best)) = (own, best) {
        let _ = writeln!(
            out,
            "\nThe slowest stage is {slowest}: the agent reaches {:.0} % of it, {:.0} % of what the shared cores allow, and \
             {:.2} times the best peer ({}).\n",
            own.rate * 1e6 / limit * 100.0,
            own.rate * 1e6 / limits.shared * 100.0,
            own.rate / best.rate,
            best.name
        );
    }
}

fn delta_table(out: &mut String, delta: &delta::Delta) {
    let _ = writeln!(
        out,
        "## A disk that drifted\n\n{} of {} frames differ in one block; compressed, they are {:.2} MB. Reading the disk once takes {:.2} s.\n\n\
         | | seconds | of reading once | MB on the wire | of the changed frames | peak MiB | runs |\n|---|---:|---:|---:|---:|---:|---:|",
        delta.frames.0,
        delta.frames.1,
        delta.changed as f64 / 1e6,
        delta.read_once
    );
    for row in &delta.rows {
        match &row.failed {
            Some(_) => line(out, &format!("| {} | failed | | | | | |", row.name)),
            None => line(
                out,
                &format!(
                    "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
                    row.name,
                    row.seconds,
                    row.seconds / delta.read_once,
                    row.wire as f64 / 1e6,
                    row.wire as f64 / delta.changed as f64,
                    row.peak >> 20,
                    row.runs
                ),
            ),
        }
    }
    out.push('\n');
}

fn serve_table(out: &mut String, rows: &[serve::Row]) {
    out.push_str(
        "## Serving\n\n| clients | image port MB/s | nginx MB/s | ratio | its CPU s/GiB | nginx' | ratio | machine's CPU s/GiB | with nginx | ratio |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let (own, nginx) = (row.anneal, row.nginx);
        line(
            out,
            &format!(
                "| {} | {:.0} | {:.0} | {:.2} | {:.3} | {:.3} | {:.2} | {:.3} | {:.3} | {:.2} |",
                row.clients,
                own.rate,
                nginx.rate,
                own.rate / nginx.rate,
                own.own,
                nginx.own,
                own.own / nginx.own,
                own.all,
                nginx.all,
                own.all / nginx.all
            ),
        );
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::limits::Limits;

    #[test]
    fn says_which_stage_is_the_limit_and_who_is_the_best_peer() {
        let row = |name, rate| write::Row {
            name,
            rate,
            cpu_per_gib: 1.0,
            peak: 64 << 20,
            runs: 5,
            failed: None,
        };
        let mut broken = row("broken", f64::NAN);
        broken.failed = Some("no".to_owned());
        let table = write::Table {
            target: "memory",
            limits: Limits {
                network: 3e9,
                decode: 2e9,
                disk: 4e9,
                shared: 1.9e9,
            },
            rows: vec![
                row(AGENT, 1800.0),
                row("slow", 300.0),
                row("quick", 900.0),
                broken,
            ],
        };
        let results = Results {
            write: vec![table],
            ..Results::default()
        };
        let page = page(&Plan::full(), &[("CPU", "one".to_owned())], &results);
        let told = "The slowest stage is decoding: the agent reaches 90 % of it, 95 % of what the shared cores allow, and \
                    2.00 times the best peer (quick).";
        assert!(page.contains(told), "{page}");
        assert!(page.contains("| broken | failed | | | |"), "{page}");
        assert!(!page.contains("NaN"), "{page}");
    }
}
