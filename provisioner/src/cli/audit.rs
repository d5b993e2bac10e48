//! `anneal machine audit`: compares a machine's disk with its sealed image and shows what differs.

use anneal_protocol::api::{ProvisionRequest, RunView};
use anneal_protocol::audit::{AttestationView, AuditResult, Expectation, RegionDrift};
use anyhow::Context as _;

use super::client::{self, Client};
use super::follow::{self, Show};
use super::output::{self, Format, Table, printable};
use super::screen::Screen;
use super::time;

/// Which machine, and what its disk is compared with.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Machine; it is restarted, nothing is written to its disks
    name: String,
    /// Image to compare with, name@version [default: the one that was last written]
    #[arg(long, value_name = "NAME@VERSION")]
    image: Option<String>,
    /// Workflow that audits
    #[arg(long, value_name = "NAME", default_value = "audit")]
    workflow: String,
}

/// Something differs that must be identical.
#[derive(Debug, thiserror::Error)]
#[error("machine {machine} has drifted: {regions} {}", if *.count == 1 { "differs" } else { "differ" })]
pub struct Drifted {
    machine: String,
    regions: String,
    count: usize,
}

impl Drifted {
    /// What to do next.
    pub fn hint(&self) -> String {
        let machine = &self.machine;
        format!("`anneal provision {machine}` puts the sealed image back")
    }
}

/// Carries out `anneal machine audit`; succeeds only when the disk is as sealed.
///
/// # Errors
/// When the daemon refuses, the run fails, or [`Drifted`].
pub async fn run(client: &Client, args: Args, format: Format) -> anyhow::Result<()> {
    let request = ProvisionRequest {
        workflow: Some(args.workflow),
        image: args.image,
        plan: false,
    };
    let path = ["machines", &args.name, "provision"];
    let run: RunView = client::parse(client.post(&path, &request).await?).await?;
    let screen = (format == Format::Table).then(Screen::new);
    if let Some(screen) = &screen {
        screen.line(&format!("run {} of machine {}", run.id, run.machine))?;
    }
    let show_run = Show {
        screen: screen.as_ref(),
        label: String::new(),
        after: 0,
    };
    let run = follow::succeeded(follow::follow(client, run, show_run).await?)?;
    let result: AuditResult = run
        .steps
        .iter()
        .filter(|step| step.uses == "audit-disk")
        .find_map(|step| serde_json::from_value(step.output.clone()?).ok())
        .context("the run has no audit: its workflow has no audit-disk step")?;
    output::show(format, &result, show)?;
    if format == Format::Table {
        let query = [("run", run.id.as_str()), ("kind", "audit")];
        let signed: Vec<AttestationView> = client.list(&["attestations"], &query, 1).await?;
        if let Some(signed) = signed.first() {
            let id = &signed.id;
            output::print(&format!(
                "signed report: `anneal attestation export {id}`\n"
            ))?;
        }
    }
    verdict(&args.name, &result)
}

fn verdict(machine: &str, result: &AuditResult) -> anyhow::Result<()> {
    let drifted = result.regions.iter().filter(|region| region.drifted);
    let names: Vec<String> = drifted.map(|region| printable(&region.name)).collect();
    if !result.drifted {
        return Ok(());
    }
    Err(Drifted {
        machine: machine.to_owned(),
        regions: names.join(", "),
        count: names.len(),
    }
    .into())
}

/// The report as people read it.
pub(super) fn show(result: &AuditResult) -> String {
    let mut table = Table::new(["REGION", "BYTES", "EXPECTED", "DIFFERS", "VERDICT"]);
    let shown = |region: &&RegionDrift| {
        region.number.is_some() || region.differing > 0 || !region.notes.is_empty()
    };
    for region in result.regions.iter().filter(shown) {
        let number = region.number.map(|n| format!("{n} ")).unwrap_or_default();
        let about = if region.exact { "" } else { "up to " };
        let expected = match region.expected {
            Expectation::Identical => "identical",
            Expectation::MayDiffer => "may differ",
            Expectation::SamePartitions => "same partitions",
        };
        table.row([
            format!("{number}{}", printable(&region.name)).as_str(),
            &time::bytes(region.size),
            expected,
            &match region.differing {
                0 => "-".to_owned(),
                n => format!("{about}{}", time::bytes(n)),
            },
            if region.drifted { "DRIFTED" } else { "ok" },
        ]);
    }
    let mut text = table.to_string();
    for region in &result.regions {
        text.push_str(&details(region));
    }
    text.push_str(&format!(
        "{} read from {} at {}, {} fetched\n",
        time::bytes(result.bytes_read),
        result.disk,
        time::rate(result.bytes_read, result.duration_ms),
        time::bytes(result.transferred)
    ));
    text
}

/// Where a region differs, and what is said about it.
fn details(region: &RegionDrift) -> String {
    let name = printable(&region.name);
    let mut text = String::new();
    for note in &region.notes {
        text.push_str(&format!("{name}: {}\n", printable(note)));
    }
    if region.drifted {
        for range in region.ranges.iter().take(10) {
            let end = range.start + range.length - 1;
            let inside = range.start - region.start;
            text.push_str(&format!(
                "{name}: bytes {} to {end} of the disk ({inside} bytes into it) differ\n",
                range.start
            ));
        }
        let more = region.ranges.len().saturating_sub(10) as u64 + region.ranges_left_out;
        if more > 0 {
            text.push_str(&format!("{name}: and {more} more places\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anneal_protocol::audit::ByteRange;

    fn result(drifted: bool) -> AuditResult {
        let region = |name: &str, number, drifted, differing| RegionDrift {
            name: name.to_owned(),
            number,
            expected: Expectation::Identical,
            drifted,
            start: 1 << 20,
            size: 1 << 20,
            differing,
            exact: true,
            ranges: vec![ByteRange {
                start: (1 << 20) + 512,
                length: 512,
            }],
            ranges_left_out: 3,
            notes: Vec::new(),
        };
        AuditResult {
            disk: "vda".to_owned(),
            serial: None,
            image: "blake3:00".to_owned(),
            drifted,
            frames: 2,
            frames_differing: 1,
            bytes_read: 2 << 20,
            transferred: 0,
            duration_ms: 10,
            regions: vec![
                region("boot code", None, false, 0),
                region("ROOT", Some(1), drifted, 512),
            ],
        }
    }

    #[test]
    fn says_what_differs_and_where() {
        let text = show(&result(true));
        assert!(
            text.contains("1 ROOT") && text.contains("DRIFTED"),
            "{text}"
        );
        assert!(
            text.contains("bytes 1049088 to 1049599 of the disk (512 bytes into it)"),
            "{text}"
        );
        assert!(text.contains("and 3 more places"), "{text}");
        assert!(!text.contains("boot code"), "{text}");
        let error = verdict("r1n1", &result(true)).unwrap_err();
        assert_eq!(error.to_string(), "machine r1n1 has drifted: ROOT differs");
        assert!(verdict("r1n1", &result(false)).is_ok());
    }
}
