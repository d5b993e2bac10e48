//! Which reset types make a machine on, off, or start again. Pure: the client carries it out.

use crate::error::{Error, Result};

/// What to do with the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerAction {
    /// Switch on; nothing when it is on.
    On,
    /// Switch off at once, without asking the operating system; nothing when it is off.
    Off,
    /// Off if it is on, then on: it starts from its firmware.
    Cycle,
}

/// Whether a machine has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerState {
    /// It runs, or is starting.
    On,
    /// It does not, or is stopping.
    Off,
}

/// `PowerState` as Redfish has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reported {
    On,
    Off,
    PoweringOn,
    PoweringOff,
}

impl Reported {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "On" | "Paused" | "Reset" => Some(Self::On),
            "Off" => Some(Self::Off),
            "PoweringOn" => Some(Self::PoweringOn),
            "PoweringOff" => Some(Self::PoweringOff),
            _ => None,
        }
    }

    pub(crate) fn settled(self) -> PowerState {
        match self {
            Self::On | Self::PoweringOn => PowerState::On,
            Self::Off | Self::PoweringOff => PowerState::Off,
        }
    }

    /// Whether it has arrived there; on its way to off is not off, because the next command would
    /// be refused.
    pub(crate) fn is(self, wanted: PowerState) -> bool {
        match wanted {
            PowerState::On => matches!(self, Self::On | Self::PoweringOn),
            PowerState::Off => self == Self::Off,
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send this reset type. It is done when the state is the given one.
    Reset(&'static str, PowerState),
    /// Wait until the state is the given one.
    Await(PowerState),
    /// Give a restart time to begin: until then the state reads as if nothing had happened.
    Settle,
}

/// What to send, in order. `allowed` is what the BMC lists; empty means that it does not say, and
/// then the plain types are tried.
pub(crate) fn plan(action: PowerAction, now: Reported, allowed: &[String]) -> Result<Vec<Step>> {
    match action {
        PowerAction::On => switch_on(now, allowed),
        PowerAction::Off => switch_off(now, allowed),
        PowerAction::Cycle => cycle(now, allowed),
    }
}

fn switch_on(now: Reported, allowed: &[String]) -> Result<Vec<Step>> {
    if now.is(PowerState::On) {
        return Ok(Vec::new());
    }
    let on = Step::Reset(choose(&["On", "ForceOn"], allowed)?, PowerState::On);
    Ok(match now {
        Reported::On | Reported::PoweringOn | Reported::Off => {
            vec![on, Step::Await(PowerState::On)]
        }
        Reported::PoweringOff => vec![
            Step::Await(PowerState::Off),
            on,
            Step::Await(PowerState::On),
        ],
    })
}

fn switch_off(now: Reported, allowed: &[String]) -> Result<Vec<Step>> {
    Ok(match now {
        Reported::Off => Vec::new(),
        Reported::PoweringOff => vec![Step::Await(PowerState::Off)],
        Reported::On | Reported::PoweringOn => vec![
            Step::Reset(choose(&["ForceOff"], allowed)?, PowerState::Off),
            Step::Await(PowerState::Off),
        ],
    })
}

/// Off and on in two steps where the BMC can: each can be checked and repeated, while some BMCs
/// report success for a restart that never happens, and others hang in it.
fn cycle(now: Reported, allowed: &[String]) -> Result<Vec<Step>> {
    if now.settled() == PowerState::Off {
        return switch_on(now, allowed);
    }
    if let (Ok(mut steps), Ok(on)) = (switch_off(now, allowed), switch_on(Reported::Off, allowed)) {
        steps.extend(on);
        return Ok(steps);
    }
    let restart = choose(&["PowerCycle", "ForceRestart"], allowed)?;
    Ok(vec![
        Step::Reset(restart, PowerState::On),
        Step::Settle,
        Step::Await(PowerState::On),
    ])
}

fn choose(wanted: &[&'static str], allowed: &[String]) -> Result<&'static str> {
    let listed = |name: &&&str| allowed.is_empty() || allowed.iter().any(|a| a == **name);
    wanted.iter().find(listed).copied().ok_or_else(|| {
        Error::Unsupported(format!(
            "this BMC offers no reset type {}; it offers {}",
            wanted.join(" or "),
            allowed.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(action: PowerAction, now: Reported, allowed: &[&str]) -> Vec<&'static str> {
        let allowed: Vec<String> = allowed.iter().map(|&a| a.to_owned()).collect();
        plan(action, now, &allowed)
            .unwrap()
            .into_iter()
            .filter_map(|step| match step {
                Step::Reset(name, _) => Some(name),
                Step::Await(_) | Step::Settle => None,
            })
            .collect()
    }

    #[test]
    fn chooses_among_what_is_offered() {
        use PowerAction::{Cycle, Off, On};
        for (action, now, allowed, want) in [
            (On, Reported::Off, &["On", "ForceOff"][..], &["On"][..]),
            (On, Reported::Off, &["ForceOn"], &["ForceOn"]),
            (On, Reported::On, &["On"], &[]),
            (On, Reported::PoweringOff, &["On"], &["On"]),
            (Off, Reported::On, &["ForceOff"], &["ForceOff"]),
            (Off, Reported::PoweringOff, &["ForceOff"], &[]),
            (Cycle, Reported::On, &[], &["ForceOff", "On"]),
            (
                Cycle,
                Reported::On,
                &["On", "ForceOff", "PowerCycle"],
                &["ForceOff", "On"],
            ),
            (
                Cycle,
                Reported::On,
                &["PowerCycle", "ForceRestart"],
                &["PowerCycle"],
            ),
            (
                Cycle,
                Reported::On,
                &["On", "ForceRestart"],
                &["ForceRestart"],
            ),
            (Cycle, Reported::Off, &["On", "PowerCycle"], &["On"]),
            (Cycle, Reported::PoweringOff, &["On"], &["On"]),
        ] {
            assert_eq!(
                types(action, now, allowed),
                want,
                "{action:?} {now:?} {allowed:?}"
            );
        }
    }

    #[test]
    fn says_what_is_offered_when_nothing_fits() {
        let offered = ["Nmi".to_owned(), "PushPowerButton".to_owned()];
        let error = plan(PowerAction::Off, Reported::On, &offered).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this BMC offers no reset type ForceOff; it offers Nmi, PushPowerButton"
        );
        assert!(!error.retryable());
    }
}
