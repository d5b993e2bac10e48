//! Which requests set the one-time boot device, in the order to try them. Pure: the client sends
//! them, and looks afterwards whether the BMC kept what it accepted.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::quirks::{Quirks, SendMode};
use crate::view::{text, texts};

/// What the firmware starts next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BootTarget {
    /// Network, PXE.
    Pxe,
    /// Network, UEFI HTTP boot with the URL from DHCP.
    UefiHttp,
    /// Disk.
    Hdd,
}

impl BootTarget {
    /// Redfish's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pxe => "Pxe",
            Self::UefiHttp => "UefiHttp",
            Self::Hdd => "Hdd",
        }
    }
}

/// What a BMC has and needs, for the choice of requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    /// Path of the system.
    pub path: &'a str,
    /// The system.
    pub system: &'a Value,
    /// Path and body of the resource for pending settings.
    pub settings: Option<(&'a str, &'a Value)>,
    /// What its vendor needs.
    pub quirks: &'a Quirks,
}

/// One request: PATCH this to that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rung {
    pub path: String,
    pub body: Value,
    /// Whether it says how often; without it, the BMC's `Enabled` proves nothing.
    pub says_enabled: bool,
}

const TARGET: &str = "BootSourceOverrideTarget";
const ENABLED: &str = "BootSourceOverrideEnabled";
const MODE: &str = "BootSourceOverrideMode";
const HTTP_URI: &str = "HttpBootUri";

/// The requests to try, best first; never empty.
pub(crate) fn ladder(target: BootTarget, situation: Situation<'_>) -> Result<Vec<Rung>> {
    let Situation {
        path,
        system,
        settings,
        quirks,
    } = situation;
    let own = Boot::of(system);
    let pending = settings.map(|(path, resource)| (path, Boot::of(resource)));
    let allowed = match (&own.allowed[..], &pending) {
        ([], Some((_, pending))) => &pending.allowed,
        _ => &own.allowed,
    };
    let unlisted = quirks.unlisted_targets.contains(&target.name());
    if !allowed.is_empty() && !unlisted && !allowed.iter().any(|name| name == target.name()) {
        return Err(Error::Unsupported(format!(
            "this BMC cannot boot from {}; it offers {}",
            target.name(),
            allowed.join(", ")
        )));
    }
    let mode = own.mode.or(pending.as_ref().and_then(|(_, p)| p.mode));
    if target == BootTarget::UefiHttp && mode == Some("Legacy") {
        return Err(Error::Unsupported(
            "the machine boots in Legacy mode, which has no UEFI HTTP boot; use PXE or switch its firmware to UEFI"
                .to_owned(),
        ));
    }
    let mut rungs = Vec::new();
    let in_settings = pending.as_ref().filter(|(_, boot)| boot.has_target);
    if let Some((path, boot)) = in_settings.filter(|_| !own.has_target) {
        boot.climb(target, path, mode, quirks, &mut rungs);
    }
    own.climb(target, path, mode, quirks, &mut rungs);
    if let Some((path, boot)) = in_settings.filter(|_| own.has_target) {
        boot.climb(target, path, mode, quirks, &mut rungs);
    }
    if let (None, Some(below)) = (settings, quirks.pending) {
        let path = format!("{}/{below}", path.trim_end_matches('/'));
        own.climb(target, &path, mode, quirks, &mut rungs);
    }
    Ok(rungs)
}

/// What a system has to say about the override, after a request was accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is set, as far as the BMC tells.
    Yes,
    /// Something else is set.
    No(String),
}

/// Whether one of these resources reports the target, in the mode that was there before.
pub(crate) fn kept(
    target: BootTarget,
    says_enabled: bool,
    before: &Value,
    now: &[&Value],
    quirks: &Quirks,
) -> Kept {
    let reports: Vec<Boot<'_>> = now.iter().map(|resource| Boot::of(resource)).collect();
    let mut reported: Vec<String> = Vec::new();
    for boot in reports.iter().filter(|boot| boot.has_target) {
        let name = boot.target.unwrap_or("nothing");
        let also = (target.name(), name);
        let same = name == target.name() || quirks.reads_back.contains(&also);
        let enabled = !says_enabled || boot.enabled != Some("Disabled");
        let mode =
            boot.mode.is_none() || Boot::of(before).mode.is_none_or(|m| boot.mode == Some(m));
        if same && enabled && mode {
            return Kept::Yes;
        }
        reported.push(match (same, enabled) {
            (false, _) => name.to_owned(),
            (true, false) => format!("{name}, disabled"),
            (true, true) => format!("{name} in another boot mode"),
        });
    }
    if reported.is_empty() {
        Kept::Yes
    } else {
        Kept::No(reported.join(" and "))
    }
}

/// The `Boot` object of a system or its settings.
#[derive(Debug)]
struct Boot<'a> {
    keys: Option<&'a Map<String, Value>>,
    has_target: bool,
    target: Option<&'a str>,
    enabled: Option<&'a str>,
    mode: Option<&'a str>,
    allowed: Vec<String>,
    allowed_enabled: Vec<String>,
    has_uri: bool,
}

impl<'a> Boot<'a> {
    fn of(resource: &'a Value) -> Self {
        let boot = resource.get("Boot").unwrap_or(&Value::Null);
        let mode = text(boot, "/BootSourceOverrideMode");
        Self {
            keys: boot.as_object(),
            has_target: boot.get(TARGET).is_some(),
            target: text(boot, "/BootSourceOverrideTarget"),
            enabled: text(boot, "/BootSourceOverrideEnabled"),
            // The standard knows two; anything else is not worth repeating.
            mode: mode.filter(|mode| ["UEFI", "Legacy"].contains(mode)),
            allowed: texts(boot, "/BootSourceOverrideTarget@Redfish.AllowableValues"),
            allowed_enabled: texts(boot, "/BootSourceOverrideEnabled@Redfish.AllowableValues"),
            has_uri: text(boot, "/HttpBootUri").is_some(),
        }
    }

    /// Adds the requests for this resource, fewest keys first unless its vendor needs all.
    fn climb(
        &self,
        target: BootTarget,
        path: &str,
        mode: Option<&str>,
        quirks: &Quirks,
        rungs: &mut Vec<Rung>,
    ) {
        let (first, second) = match quirks.mode {
            SendMode::Always => (mode, None),
            SendMode::IfNeeded => (None, mode),
        };
        let (usual, other) = self.how_often();
        let mut bodies = vec![self.body(target, Some(usual), first)];
        bodies.push(self.body(target, Some(usual), second));
        bodies.extend(other.map(|other| self.body(target, Some(other), first)));
        if quirks.bare_target {
            bodies.push(self.body(target, None, None));
        }
        for boot in bodies {
            let rung = Rung {
                path: path.to_owned(),
                says_enabled: boot.contains_key(ENABLED),
                body: json!({ "Boot": boot }),
            };
            if !rungs.contains(&rung) {
                rungs.push(rung);
            }
        }
    }

    /// The value of `Enabled` to send, and what to try when that is refused.
    fn how_often(&self) -> (&'static str, Option<&'static str>) {
        let lists = |name: &str| self.allowed_enabled.iter().any(|value| value == name);
        if self.allowed_enabled.is_empty() {
            ("Once", Some("Continuous"))
        } else if !lists("Once") && lists("Continuous") {
            ("Continuous", None)
        } else {
            ("Once", None)
        }
    }

    fn body(
        &self,
        target: BootTarget,
        enabled: Option<&str>,
        mode: Option<&str>,
    ) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert(TARGET.to_owned(), target.name().into());
        if let Some(enabled) = enabled {
            body.insert(ENABLED.to_owned(), enabled.into());
        }
        // A resource that shows its keys takes no others.
        let knows = |key| self.keys.is_none_or(|keys| keys.contains_key(key));
        if let Some(mode) = mode.filter(|_| knows(MODE)) {
            body.insert(MODE.to_owned(), mode.into());
        }
        // A URL left by somebody else would win over the one from DHCP.
        if self.has_uri {
            body.insert(HTTP_URI.to_owned(), Value::Null);
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/redfish/v1/Systems/1";

    fn system(boot: Value) -> Value {
        json!({ "Boot": boot })
    }

    fn try_order(
        target: BootTarget,
        vendor: &str,
        system: &Value,
        settings: Option<&Value>,
    ) -> Vec<(String, Value)> {
        let quirks = Quirks::of(&[vendor]);
        let situation = Situation {
            path: PATH,
            system,
            settings: settings.map(|settings| ("/settings", settings)),
            quirks: &quirks,
        };
        let rungs = ladder(target, situation).unwrap().into_iter();
        rungs
            .map(|rung| (rung.path, rung.body["Boot"].clone()))
            .collect()
    }

    fn bodies(target: BootTarget, vendor: &str, system: &Value) -> Vec<Value> {
        let order = try_order(target, vendor, system, None).into_iter();
        order.map(|(_, body)| body).collect()
    }

    #[test]
    fn leaves_the_mode_alone_and_repeats_it_only_if_refused() {
        let uefi = system(json!({TARGET: "None", ENABLED: "Disabled", MODE: "UEFI"}));
        assert_eq!(
            bodies(BootTarget::Pxe, "", &uefi),
            [
                json!({TARGET: "Pxe", ENABLED: "Once"}),
                json!({TARGET: "Pxe", ENABLED: "Once", MODE: "UEFI"}),
                json!({TARGET: "Pxe", ENABLED: "Continuous"}),
            ]
        );
        let legacy = system(json!({TARGET: "None", MODE: "Legacy"}));
        assert_eq!(
            bodies(BootTarget::Hdd, "Supermicro", &legacy)[0],
            json!({TARGET: "Hdd", ENABLED: "Once", MODE: "Legacy"})
        );
        let no_mode = system(json!({TARGET: "None"}));
        for vendor in ["", "Supermicro"] {
            for body in bodies(BootTarget::Pxe, vendor, &no_mode) {
                assert_eq!(body.get(MODE), None, "{vendor}");
            }
        }
    }

    #[test]
    fn sends_what_the_bmc_lists() {
        let lists = |values: Value| {
            system(
                json!({TARGET: "None", "BootSourceOverrideEnabled@Redfish.AllowableValues": values}),
            )
        };
        let enabled = |values| {
            let order = bodies(BootTarget::Pxe, "", &lists(values));
            order
                .into_iter()
                .map(|body| body[ENABLED].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(enabled(json!(["Disabled", "Once"])), ["Once"]);
        assert_eq!(enabled(json!(["Disabled", "Continuous"])), ["Continuous"]);
    }

    #[test]
    fn prefers_the_resource_that_has_the_setting() {
        let with = system(json!({TARGET: "None"}));
        let without = system(json!({"BootOrder": []}));
        let first = |system, settings| {
            try_order(BootTarget::Pxe, "", system, Some(settings))[0]
                .0
                .clone()
        };
        assert_eq!(first(&without, &with), "/settings");
        assert_eq!(first(&with, &with), PATH);
        let paths = |vendor| {
            let order = try_order(BootTarget::Pxe, vendor, &with, None).into_iter();
            order.map(|(path, _)| path).collect::<Vec<_>>()
        };
        assert!(paths("AMI").contains(&format!("{PATH}/SD")));
        assert!(!paths("").contains(&format!("{PATH}/SD")));
    }

    #[test]
    fn clears_a_boot_url_that_somebody_left() {
        let left = system(json!({TARGET: "UefiHttp", HTTP_URI: "http://10.0.0.9/x.efi"}));
        assert_eq!(bodies(BootTarget::Pxe, "", &left)[0][HTTP_URI], Value::Null);
        assert!(
            bodies(BootTarget::Pxe, "", &left)[0]
                .get(HTTP_URI)
                .is_some()
        );
        let empty = system(json!({TARGET: "None", HTTP_URI: ""}));
        assert_eq!(bodies(BootTarget::Pxe, "", &empty)[0].get(HTTP_URI), None);
    }

    #[test]
    fn refuses_what_the_machine_cannot_do() {
        let refusal = |target, vendor, boot| {
            let (quirks, system) = (Quirks::of(&[vendor]), system(boot));
            let situation = Situation {
                path: PATH,
                system: &system,
                settings: None,
                quirks: &quirks,
            };
            ladder(target, situation)
                .err()
                .map(|error| error.to_string())
        };
        let listed = json!({TARGET: "None", "BootSourceOverrideTarget@Redfish.AllowableValues": ["Pxe", "Hdd"]});
        assert_eq!(
            refusal(BootTarget::UefiHttp, "", listed.clone()).unwrap(),
            "this BMC cannot boot from UefiHttp; it offers Pxe, Hdd"
        );
        assert_eq!(
            refusal(BootTarget::UefiHttp, "NVIDIA", listed.clone()),
            None
        );
        assert_eq!(refusal(BootTarget::Pxe, "", listed), None);
        let legacy = refusal(
            BootTarget::UefiHttp,
            "",
            json!({TARGET: "None", MODE: "Legacy"}),
        );
        assert!(legacy.unwrap().contains("Legacy mode"));
    }

    #[test]
    fn notices_what_was_not_kept() {
        let before = system(json!({TARGET: "None", MODE: "Legacy"}));
        let look = |vendor: &str, target: BootTarget, boot: Value| {
            kept(
                target,
                true,
                &before,
                &[&system(boot)],
                &Quirks::of(&[vendor]),
            )
        };
        let no = |reported: &str| Kept::No(reported.to_owned());
        use BootTarget::{Pxe, UefiHttp};
        assert_eq!(
            look("", Pxe, json!({TARGET: "Pxe", MODE: "Legacy"})),
            Kept::Yes
        );
        assert_eq!(look("", Pxe, json!({TARGET: "None"})), no("None"));
        assert_eq!(
            look("", Pxe, json!({TARGET: "Pxe", ENABLED: "Disabled"})),
            no("Pxe, disabled")
        );
        assert_eq!(
            look("", Pxe, json!({TARGET: "Pxe", MODE: "UEFI"})),
            no("Pxe in another boot mode")
        );
        assert_eq!(look("", Pxe, json!({TARGET: null})), no("nothing"));
        assert_eq!(look("", Pxe, json!({})), Kept::Yes);
        assert_eq!(
            look("", Pxe, json!({TARGET: "UefiBootNext"})),
            no("UefiBootNext")
        );
        assert_eq!(
            look("Supermicro", Pxe, json!({TARGET: "UefiBootNext"})),
            Kept::Yes
        );
        assert_eq!(
            look("Sushy Emulator", UefiHttp, json!({TARGET: "Pxe"})),
            Kept::Yes
        );
    }
}
