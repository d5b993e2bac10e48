//! Which disk may be written to: exactly one, or a reason for each that is not it. Pure.
//!
//! The choice depends only on what stays the same between the steps of a run (hints, protection,
//! what kind of device it is), so that all steps of a run choose the same disk. Whether that disk
//! is free and large enough is asked afterwards (`safety`): a busy disk must not send an image to
//! its neighbour.

use anneal_protocol::agent::{FailureCode, StepFailure};
use anneal_protocol::disk::{DiskHints, DiskInfo, DiskSelector, DiskType, ProtectedDisk, same_wwn};

use crate::step::fail;

/// Chooses.
///
/// # Errors
/// `NoDisk` when none matches the hints, `DiskRefused` when those that match must not be
/// written, `AmbiguousDisk` when several are left, `BadOrder` when the order protects a disk
/// without saying which. The message says for every disk why it was rejected.
pub fn select<'a>(
    disks: &'a [DiskInfo],
    selector: &DiskSelector,
) -> Result<&'a DiskInfo, StepFailure> {
    if selector
        .protected
        .iter()
        .any(|p| *p == ProtectedDisk::default())
    {
        return Err(fail(
            FailureCode::BadOrder,
            "a protected disk is given without serial, wwn or label: nothing is written",
        ));
    }
    let verdicts: Vec<(&DiskInfo, Verdict)> = disks
        .iter()
        .map(|disk| (disk, judge(disk, selector)))
        .collect();
    let fits: Vec<&DiskInfo> = verdicts
        .iter()
        .filter(|(_, verdict)| *verdict == Verdict::Fits)
        .map(|(disk, _)| *disk)
        .collect();
    if let [one] = fits[..] {
        return Ok(one);
    }
    let refused = verdicts
        .iter()
        .any(|(_, verdict)| matches!(verdict, Verdict::Refused(_)));
    let (code, what) = match (fits.len(), refused) {
        (0, false) => (FailureCode::NoDisk, "no disk matches the hints"),
        (0, true) => (
            FailureCode::DiskRefused,
            "every disk that matches the hints is refused",
        ),
        _ => (
            FailureCode::AmbiguousDisk,
            "several disks match the hints: name one by serial or wwn",
        ),
    };
    Err(fail(
        code,
        format!("{what}; {}", listing(selector, &verdicts)),
    ))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Fits,
    /// Not the disk that is meant.
    Other(String),
    /// The disk that is meant, and it must not be written.
    Refused(String),
}

fn judge(disk: &DiskInfo, selector: &DiskSelector) -> Verdict {
    if let Some(reason) = mismatch(disk, &selector.hints) {
        return Verdict::Other(reason);
    }
    if let Some(reason) = selector.protected.iter().find_map(|p| protects(p, disk)) {
        return Verdict::Refused(reason);
    }
    if disk.read_only {
        return Verdict::Refused("it is read-only".to_owned());
    }
    if disk.removable {
        return Verdict::Refused("it is a removable medium".to_owned());
    }
    Verdict::Fits
}

/// The first hint that does not match.
fn mismatch(disk: &DiskInfo, hints: &DiskHints) -> Option<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    if let Some(kind) = hints.kind.filter(|kind| *kind != disk.kind) {
        return Some(format!("type is {}, not {}", word(disk.kind), word(kind)));
    }
    if let Some(min) = hints.min_size.filter(|min| disk.size < *min) {
        return Some(format!("{} is less than {}", size(disk.size), size(min)));
    }
    if let Some(max) = hints.max_size.filter(|max| disk.size > *max) {
        return Some(format!("{} is more than {}", size(disk.size), size(max)));
    }
    for (name, hint, value, same) in identity(&hints.serial, &hints.wwn, disk) {
        if let Some(wanted) = hint
            && !value.as_ref().is_some_and(|value| same(value, wanted))
        {
            return Some(format!("{name} is {}, not {wanted}", text(value)));
        }
    }
    if let Some(model) = &hints.model {
        let found = disk.model.as_deref().unwrap_or_default().to_lowercase();
        if !found.contains(&model.to_lowercase()) {
            return Some(format!("model {} lacks \"{model}\"", text(&disk.model)));
        }
    }
    match hints.rotational {
        Some(wanted) if wanted != disk.rotational => Some(
            if disk.rotational {
                "it spins"
            } else {
                "it does not spin"
            }
            .to_owned(),
        ),
        _ => None,
    }
}

/// What names one disk: field, what is wanted, what the disk has, and when the two are the same.
type Identity<'a> = (
    &'static str,
    &'a Option<String>,
    &'a Option<String>,
    fn(&str, &str) -> bool,
);

fn identity<'a>(
    serial: &'a Option<String>,
    wwn: &'a Option<String>,
    disk: &'a DiskInfo,
) -> [Identity<'a>; 2] {
    [
        ("serial", serial, &disk.serial, |a, b| a == b),
        ("wwn", wwn, &disk.wwn, same_wwn),
    ]
}

/// Whether every given field matches, and which those are. What cannot be read counts as a
/// match, since the disk may be the one that is meant; one known difference clears the disk.
fn protects(rule: &ProtectedDisk, disk: &DiskInfo) -> Option<String> {
    let (mut by, mut unknown) = (Vec::new(), Vec::new());
    for (name, wanted, found, same) in identity(&rule.serial, &rule.wwn, disk) {
        let Some(wanted) = wanted else { continue };
        match found {
            Some(found) if !same(found, wanted) => return None,
            Some(_) => {}
            None => unknown.push(name),
        }
        by.push(format!("{name} {wanted}"));
    }
    if let Some(label) = &rule.label {
        if !disk.labels.contains(label) {
            if !disk.labels_unreadable {
                return None;
            }
            unknown.push("labels");
        }
        by.push(format!("label {label}"));
    }
    let by = Some(by.join(" and ")).filter(|by| !by.is_empty())?;
    Some(if unknown.is_empty() {
        format!("protected by {by}")
    } else {
        let labels = unknown.contains(&"labels");
        let unknown = unknown.join(" and ");
        let mut told = format!("may be the one protected by {by}: its {unknown} cannot be read");
        if labels {
            // Only a person can know what such a disk held.
            told.push_str(
                "; repair or clear its partition table, or protect the disk that is meant by \
                 serial or wwn as well",
            );
        }
        told
    })
}

/// Whether a disk that was chosen is still what its name stands for, and still may be written.
///
/// # Errors
/// `DiskRefused` when its identity or size is another one, or the rules now refuse it.
pub fn confirm(
    chosen: &DiskInfo,
    now: &DiskInfo,
    selector: &DiskSelector,
) -> Result<(), StepFailure> {
    let identity = |disk: &DiskInfo| (disk.serial.clone(), disk.wwn.clone(), disk.size);
    let reason = if identity(chosen) != identity(now) {
        format!("it was [{}] when it was chosen", describe(chosen))
    } else {
        match judge(now, selector) {
            Verdict::Fits => return Ok(()),
            Verdict::Other(reason) | Verdict::Refused(reason) => reason,
        }
    };
    Err(fail(
        FailureCode::DiskRefused,
        format!("nothing is written to [{}]: {reason}", describe(now)),
    ))
}

fn listing(selector: &DiskSelector, verdicts: &[(&DiskInfo, Verdict)]) -> String {
    let hints = serde_json::to_string(&selector.hints).unwrap_or_default();
    if verdicts.is_empty() {
        return format!("hints {hints}; the machine has no disk (driver missing?)");
    }
    let lines: Vec<String> = verdicts
        .iter()
        .map(|(disk, verdict)| {
            let verdict = match verdict {
                Verdict::Fits => "matches",
                Verdict::Other(reason) | Verdict::Refused(reason) => reason,
            };
            format!("[{}]: {verdict}", describe(disk))
        })
        .collect();
    format!("hints {hints}; {}", lines.join("; "))
}

/// One disk in one line.
#[must_use]
pub fn describe(disk: &DiskInfo) -> String {
    let mut text = format!("{} {} {}", disk.name, word(disk.kind), size(disk.size));
    for (name, value) in [
        ("model", &disk.model),
        ("serial", &disk.serial),
        ("wwn", &disk.wwn),
    ] {
        if let Some(value) = value {
            text = format!("{text} {name} {value}");
        }
    }
    if !disk.labels.is_empty() {
        text = format!("{text} labels {}", disk.labels.join(","));
    }
    if disk.labels_unreadable {
        text.push_str(" labels unreadable");
    }
    text
}

fn word(kind: DiskType) -> &'static str {
    match kind {
        DiskType::Nvme => "nvme",
        DiskType::Sata => "sata",
        DiskType::Scsi => "scsi",
        DiskType::Virtio => "virtio",
        DiskType::Usb => "usb",
        DiskType::Mmc => "mmc",
        DiskType::Other => "other",
    }
}

/// Binary units, one decimal: `931.5GiB`.
fn size(bytes: u64) -> String {
    let units = [
        (1_u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (unit, name) in units {
        if bytes >= unit {
            // For people: rounding is fine.
            return format!("{:.1}{name}", bytes as f64 / unit as f64);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
