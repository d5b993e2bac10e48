//! What single vendors need, as data. Vendor names appear here and nowhere else in the code.
//!
//! A quirk is added when a BMC is known to break without it; how a request is refused in general
//! (and what to try next) is in `boot.rs` and `http.rs` and needs no name.

/// When the boot mode goes into the request that sets the boot device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendMode {
    /// Only when the request without it was refused or lost the mode. Sending the mode that is
    /// set already makes some BMCs queue a BIOS job with an extra reboot.
    IfNeeded,
    /// Always: without it, these BMCs fall back to their default mode.
    Always,
}

/// How to treat one vendor's BMCs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quirks {
    /// Boot mode in boot requests.
    pub mode: SendMode,
    /// Last resort: the boot target alone, without `BootSourceOverrideEnabled`.
    pub bare_target: bool,
    /// Targets that work though they are not among the allowable values.
    pub unlisted_targets: &'static [&'static str],
    /// (set, reported): what is read back under another name.
    pub reads_back: &'static [(&'static str, &'static str)],
    /// Where pending boot settings live, below the system, when it does not say so itself.
    pub pending: Option<&'static str>,
}

const PLAIN: Quirks = Quirks {
    mode: SendMode::IfNeeded,
    bare_target: false,
    unlisted_targets: &[],
    reads_back: &[],
    pending: None,
};

/// First match wins; names are compared by prefix, ignoring case, with the service root's
/// `Vendor` and the system's `Manufacturer`.
const VENDORS: &[(&[&str], Quirks)] = &[
    // Falls back to its default boot mode when the mode is left out (its maker: intended), turns
    // Enabled into Once, and reports PXE in UEFI mode as UefiBootNext.
    (
        &["Supermicro"],
        Quirks {
            mode: SendMode::Always,
            reads_back: &[("Pxe", "UefiBootNext")],
            ..PLAIN
        },
    ),
    // MegaRAC wants target, enabled and mode together; the system answers
    // OperationSupportedInFutureStateURI, the pending resource takes it.
    (
        &["AMI", "American Megatrends", "ASRockRack", "ASRock Rack"],
        Quirks {
            mode: SendMode::Always,
            pending: Some("SD"),
            ..PLAIN
        },
    ),
    // iDRAC 8 in UEFI mode answers 400 when Enabled is sent.
    (
        &["Dell"],
        Quirks {
            bare_target: true,
            ..PLAIN
        },
    ),
    // UefiHttp works without being listed.
    (
        &["NVIDIA"],
        Quirks {
            unlisted_targets: &["UefiHttp"],
            ..PLAIN
        },
    ),
    // The emulator maps UefiHttp without a URL to the network device of libvirt.
    (
        &["Sushy Emulator"],
        Quirks {
            reads_back: &[("UefiHttp", "Pxe")],
            ..PLAIN
        },
    ),
];

impl Quirks {
    /// What applies to a BMC that calls itself by any of these names.
    #[must_use]
    pub fn of(names: &[&str]) -> Self {
        let named = |vendor: &str| {
            names.iter().any(|name| {
                let start = name.trim().get(..vendor.len());
                start.is_some_and(|start| start.eq_ignore_ascii_case(vendor))
            })
        };
        VENDORS
            .iter()
            .find(|(vendors, _)| vendors.iter().any(|vendor| named(vendor)))
            .map_or(PLAIN, |(_, quirks)| quirks.clone())
    }
}

/// Message ids and texts of answers that mean "not now" although the status says "wrong": the
/// host is in POST, or the BMC has just started.
const BUSY: &[&str] = &[
    // iLO, HTTP 400, right after a power change.
    "InvalidOperationForSystemState",
    // iLO, HTTP 400, while the host is in POST.
    "UnableToModifyDuringSystemPOST",
    // iDRAC: its data sources are still loading.
    "SYS518",
];

/// Whether this message id or text says "not now".
#[must_use]
pub fn means_busy(text: &str) -> bool {
    BUSY.iter().any(|busy| text.contains(busy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_vendors_by_either_name() {
        assert_eq!(Quirks::of(&["", "Super Micro"]), PLAIN);
        assert_eq!(Quirks::of(&["", "SUPERMICRO"]).mode, SendMode::Always);
        assert!(Quirks::of(&["Dell", "Dell Inc."]).bare_target);
        assert_eq!(
            Quirks::of(&["American Megatrends International, LLC."]).pending,
            Some("SD")
        );
        assert_eq!(Quirks::of(&["", ""]), PLAIN);
    }

    #[test]
    fn knows_busy_answers() {
        assert!(means_busy("iLO.2.8.UnableToModifyDuringSystemPOST"));
        assert!(means_busy("IDRAC.2.4.SYS518"));
        assert!(!means_busy("Base.1.8.PropertyNotWritable"));
    }
}
