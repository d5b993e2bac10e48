//! The choice, case by case.

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
