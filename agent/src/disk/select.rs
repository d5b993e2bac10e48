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
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(name: &str, kind: DiskType, gib: u64, serial: &str) -> DiskInfo {
        DiskInfo {
            name: name.into(),
            kind,
            size: gib * GIB,
            sector_size: 512,
            rotational: kind == DiskType::Sata,
            read_only: false,
            removable: false,
            serial: Some(serial.into()),
            wwn: None,
            model: Some("ACME Fast 1000".into()),
            path: None,
            labels: Vec::new(),
            labels_unreadable: false,
        }
    }

    fn machine() -> Vec<DiskInfo> {
        let mut usb = disk("sdb", DiskType::Usb, 8, "U1");
        usb.removable = true;
        let mut data = disk("nvme1n1", DiskType::Nvme, 2000, "N2");
        data.labels = vec!["DATA".into()];
        data.wwn = Some("eui.02".into());
        vec![
            disk("nvme0n1", DiskType::Nvme, 500, "N1"),
            data,
            disk("sda", DiskType::Sata, 4000, "S1"),
            usb,
        ]
    }

    fn hints(edit: impl FnOnce(&mut DiskHints)) -> DiskSelector {
        let mut selector = DiskSelector::default();
        edit(&mut selector.hints);
        selector
    }

    fn protect(mut selector: DiskSelector, rules: Vec<ProtectedDisk>) -> DiskSelector {
        selector.protected = rules;
        selector
    }

    fn by_label(label: &str) -> ProtectedDisk {
        ProtectedDisk {
            label: Some(label.into()),
            ..ProtectedDisk::default()
        }
    }

    #[test]
    fn table() {
        use FailureCode::{AmbiguousDisk, BadOrder, DiskRefused, NoDisk};
        let nvme = |s: &mut DiskHints| s.kind = Some(DiskType::Nvme);
        let serial = |s: &'static str| move |h: &mut DiskHints| h.serial = Some(s.into());
        let cases: Vec<(&str, DiskSelector, Result<&str, FailureCode>)> = vec![
            ("no hints, several disks", hints(|_| ()), Err(AmbiguousDisk)),
            ("type alone is not enough", hints(nvme), Err(AmbiguousDisk)),
            ("serial", hints(serial("N2")), Ok("nvme1n1")),
            ("serial is exact", hints(serial("N")), Err(NoDisk)),
            (
                "wwn",
                hints(|h| h.wwn = Some("eui.02".into())),
                Ok("nvme1n1"),
            ),
            (
                "sizes",
                hints(|h| {
                    h.min_size = Some(500 * GIB);
                    h.max_size = Some(500 * GIB);
                }),
                Ok("nvme0n1"),
            ),
            (
                "too large a wish",
                hints(|h| h.min_size = Some(9000 * GIB)),
                Err(NoDisk),
            ),
            ("spins", hints(|h| h.rotational = Some(true)), Ok("sda")),
            (
                "model, any case, with type",
                hints(|h| {
                    h.model = Some("acme fast".into());
                    h.kind = Some(DiskType::Sata);
                }),
                Ok("sda"),
            ),
            (
                "other model",
                hints(|h| h.model = Some("slow".into())),
                Err(NoDisk),
            ),
            (
                "removable is refused",
                hints(serial("U1")),
                Err(DiskRefused),
            ),
            (
                "protection decides between two",
                protect(hints(nvme), vec![by_label("DATA")]),
                Ok("nvme0n1"),
            ),
            (
                "protection wins over an exact hint",
                protect(hints(serial("N2")), vec![by_label("DATA")]),
                Err(DiskRefused),
            ),
            (
                "all fields of a rule must match",
                protect(
                    hints(serial("N2")),
                    vec![ProtectedDisk {
                        serial: Some("N1".into()),
                        ..by_label("DATA")
                    }],
                ),
                Ok("nvme1n1"),
            ),
            (
                "a rule that names nothing stops everything",
                protect(hints(serial("N1")), vec![ProtectedDisk::default()]),
                Err(BadOrder),
            ),
        ];
        for (name, selector, expected) in cases {
            let disks = machine();
            let found = select(&disks, &selector);
            assert_eq!(
                found.as_ref().map(|d| d.name.as_str()).map_err(|f| f.code),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_may_be_protected() {
        let rule = |serial: Option<&str>, wwn: Option<&str>, label: Option<&str>| ProtectedDisk {
            serial: serial.map(Into::into),
            wwn: wwn.map(Into::into),
            label: label.map(Into::into),
        };
        let mut nameless = disk("sda", DiskType::Sata, 10, "");
        nameless.serial = None;
        let mut unread = disk("sda", DiskType::Sata, 10, "A");
        unread.labels_unreadable = true;
        let mut named = disk("sda", DiskType::Sata, 10, "A");
        named.wwn = Some("naa.5002538e40a3d5f1".into());
        let may_be = |by: &str, what: &str| {
            let advice = "; repair or clear its partition table, or protect the disk that is \
                          meant by serial or wwn as well";
            let advice = if what == "labels" { advice } else { "" };
            Some(format!(
                "may be the one protected by {by}: its {what} cannot be read{advice}"
            ))
        };
        for (rule, disk, expected) in [
            (
                rule(Some("A"), None, None),
                &nameless,
                may_be("serial A", "serial"),
            ),
            (
                rule(Some("A"), Some("naa.1"), None),
                &nameless,
                may_be("serial A and wwn naa.1", "serial and wwn"),
            ),
            // It has labels to look at, and not this one.
            (rule(Some("A"), None, Some("DATA")), &nameless, None),
            (
                rule(None, None, Some("DATA")),
                &unread,
                may_be("label DATA", "labels"),
            ),
            (
                rule(Some("A"), None, Some("DATA")),
                &unread,
                may_be("serial A and label DATA", "labels"),
            ),
            (rule(Some("B"), None, Some("DATA")), &unread, None),
            (
                rule(None, Some("0x5002538E40A3D5F1"), None),
                &named,
                Some("protected by wwn 0x5002538E40A3D5F1".into()),
            ),
            (rule(None, Some("naa.5002538e40a3d5f2"), None), &named, None),
        ] {
            assert_eq!(protects(&rule, disk), expected, "{rule:?}");
        }
    }

    #[test]
    fn a_disk_that_changed_since_it_was_chosen_is_refused() {
        let chosen = disk("sda", DiskType::Sata, 10, "A");
        let selector = protect(hints(|_| ()), vec![by_label("DATA")]);
        assert_eq!(confirm(&chosen, &chosen, &selector), Ok(()));
        let changed = |edit: fn(&mut DiskInfo)| {
            let mut now = chosen.clone();
            edit(&mut now);
            let failure = confirm(&chosen, &now, &selector).unwrap_err();
            assert_eq!(failure.code, FailureCode::DiskRefused);
            failure.message
        };
        for message in [
            changed(|d| d.serial = Some("B".into())),
            changed(|d| d.serial = None),
            changed(|d| d.wwn = Some("naa.1".into())),
            changed(|d| d.size += 512),
        ] {
            assert!(message.contains("when it was chosen"), "{message}");
        }
        let labelled = changed(|d| d.labels = vec!["DATA".into()]);
        assert!(labelled.contains("protected by label DATA"), "{labelled}");
        let unread = changed(|d| d.labels_unreadable = true);
        assert!(unread.contains("cannot be read"), "{unread}");
    }

    #[test]
    fn one_disk_needs_no_hint() {
        let disks = [disk("vda", DiskType::Virtio, 20, "V")];
        assert_eq!(
            select(&disks, &DiskSelector::default()).unwrap().name,
            "vda"
        );
        let mut read_only = disks.clone();
        read_only[0].read_only = true;
        let failure = select(&read_only, &DiskSelector::default()).unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskRefused);
        assert!(failure.message.contains("read-only"), "{}", failure.message);
    }

    #[test]
    fn the_message_says_why_for_every_disk() {
        let disks = machine();
        let selector = protect(
            hints(|h| {
                h.kind = Some(DiskType::Nvme);
                h.min_size = Some(1000 * GIB);
            }),
            vec![by_label("DATA")],
        );
        let failure = select(&disks, &selector).unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskRefused);
        for part in [
            "[nvme0n1 nvme 500.0GiB model ACME Fast 1000 serial N1]: 500.0GiB is less than 1000.0GiB",
            "wwn eui.02 labels DATA]: protected by label DATA",
            "type is sata, not nvme",
            "type is usb, not nvme",
        ] {
            assert!(
                failure.message.contains(part),
                "{part}\nin {}",
                failure.message
            );
        }
        let none = select(&[], &selector).unwrap_err();
        assert!(none.message.contains("no disk (driver missing?)"));
    }
}
