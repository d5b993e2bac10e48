//! Whether a token is good for what somebody wants with it. Pure.

use std::time::Duration;

use anneal_protocol::time::Millis;

use super::{Purpose, TokenRecord};

/// Why a token was not accepted. The caller hears only that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody made this token.
    #[error("unknown token")]
    Unknown,
    /// It is for something else.
    #[error("token has another purpose")]
    WrongPurpose,
    /// It is for another machine.
    #[error("token belongs to another machine")]
    WrongMachine,
    /// It is good over TLS only, and somebody shows it in clear.
    #[error("token came without TLS")]
    InClear,
    /// Too late.
    #[error("token has expired")]
    Expired,
    /// Its run is over.
    #[error("token was revoked")]
    Revoked,
    /// A newer boot script took its place, and yet there is an agent that has it.
    #[error("token was replaced by that of a newer boot script")]
    Superseded,
    /// Somebody else used it before, or the same one long ago.
    #[error("token was used before, by somebody else or too long ago")]
    Replayed,
}

impl Refused {
    /// Whether two parties hold what only the machine should: its run must not go on.
    #[must_use]
    pub fn fails_run(self) -> bool {
        matches!(self, Self::Superseded | Self::Replayed)
    }
}

/// Who wants to redeem, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// What it is wanted for.
    pub purpose: Purpose,
    /// Machine that the caller says it is, or is seen to be; `None` when nothing says so.
    pub machine: Option<&'a str>,
    /// What identifies the redeemer on a repeat: key digest or source address.
    pub by: &'a str,
}

/// Whether a boot or phone-home token is good for a claim.
///
/// A boot token that a newer script replaced is in nobody's hands when all is well: whoever
/// fetched the newer script started later, on the same machine, and what ran there before is
/// gone. If it is redeemed all the same, two parties fetched scripts for one machine.
///
/// # Errors
/// Says why not.
pub fn judge(token: &TokenRecord, claim: Claim<'_>, now: Millis) -> Result<(), Refused> {
    fits(token, claim)?;
    if token.revoked_at.is_some() {
        return Err(if token.superseded {
            Refused::Superseded
        } else {
            Refused::Revoked
        });
    }
    if token.used_at.is_some() {
        let same = token.used_by.as_deref() == Some(claim.by);
        return if same { Ok(()) } else { Err(Refused::Replayed) };
    }
    if token.expires_at <= now {
        return Err(Refused::Expired);
    }
    Ok(())
}

/// What a fetch of a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The one use.
    First,
    /// The same one again: a client asks twice, or its answer was lost.
    Repeat,
}

/// Whether a config token is good for one of its documents, which was first served at
/// `served_at`. The first fetch of any document says whose the token is.
///
/// # Errors
/// Says why not.
pub fn judge_config(
    token: &TokenRecord,
    served_at: Option<Millis>,
    claim: Claim<'_>,
    grace: Duration,
    now: Millis,
) -> Result<Use, Refused> {
    fits(token, claim)?;
    if token.revoked_at.is_some() {
        return Err(Refused::Revoked);
    }
    if token.used_by.as_deref().is_some_and(|by| by != claim.by) {
        return Err(Refused::Replayed);
    }
    match served_at {
        Some(at) if now < at.plus(grace) => Ok(Use::Repeat),
        Some(_) => Err(Refused::Replayed),
        None if token.expires_at <= now => Err(Refused::Expired),
        None => Ok(Use::First),
    }
}

fn fits(token: &TokenRecord, claim: Claim<'_>) -> Result<(), Refused> {
    if token.purpose != claim.purpose {
        return Err(Refused::WrongPurpose);
    }
    let other = claim
        .machine
        .is_some_and(|machine| machine != token.machine);
    if other {
        return Err(Refused::WrongMachine);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(purpose: Purpose) -> TokenRecord {
        TokenRecord {
            id: "1".into(),
            digest: "d".into(),
            purpose,
            subject: None,
            plain: false,
            machine: "r1n1".into(),
            run: "run".into(),
            created_at: Millis(0),
            expires_at: Millis(1000),
            used_at: None,
            used_by: None,
            revoked_at: None,
            superseded: false,
        }
    }

    const CLAIM: Claim<'static> = Claim {
        purpose: Purpose::Boot,
        machine: Some("r1n1"),
        by: "key-a",
    };

    #[test]
    fn judges_boot_tokens() {
        let fresh = token(Purpose::Boot);
        let used = TokenRecord {
            used_at: Some(Millis(5)),
            used_by: Some("key-a".into()),
            ..fresh.clone()
        };
        let revoked = TokenRecord {
            revoked_at: Some(Millis(5)),
            ..fresh.clone()
        };
        let superseded = TokenRecord {
            superseded: true,
            ..revoked.clone()
        };
        let other_purpose = Claim {
            purpose: Purpose::PhoneHome,
            ..CLAIM
        };
        let other_machine = Claim {
            machine: Some("r1n2"),
            ..CLAIM
        };
        let other_key = Claim {
            by: "key-b",
            ..CLAIM
        };
        let cases = [
            ("fresh", &fresh, CLAIM, 999, Ok(())),
            (
                "its last moment",
                &fresh,
                CLAIM,
                1000,
                Err(Refused::Expired),
            ),
            (
                "purpose",
                &fresh,
                other_purpose,
                1,
                Err(Refused::WrongPurpose),
            ),
            (
                "machine",
                &fresh,
                other_machine,
                1,
                Err(Refused::WrongMachine),
            ),
            ("repeat by the same key", &used, CLAIM, 6, Ok(())),
            ("another key", &used, other_key, 6, Err(Refused::Replayed)),
            ("revoked", &revoked, CLAIM, 6, Err(Refused::Revoked)),
            (
                "superseded",
                &superseded,
                CLAIM,
                6,
                Err(Refused::Superseded),
            ),
            (
                "superseded, late",
                &superseded,
                CLAIM,
                2000,
                Err(Refused::Superseded),
            ),
        ];
        for (name, token, claim, at, expected) in cases {
            assert_eq!(judge(token, claim, Millis(at)), expected, "{name}");
        }
    }

    #[test]
    fn judges_config_tokens() {
        let claim = Claim {
            purpose: Purpose::Config,
            machine: None,
            by: "10.0.0.1",
        };
        let thief = Claim {
            by: "10.0.0.2",
            ..claim
        };
        let wrong = Claim {
            machine: Some("r1n2"),
            ..claim
        };
        let fresh = token(Purpose::Config);
        let used = TokenRecord {
            used_at: Some(Millis(100)),
            used_by: Some("10.0.0.1".into()),
            ..fresh.clone()
        };
        let revoked = TokenRecord {
            revoked_at: Some(Millis(200)),
            ..used.clone()
        };
        let cases = [
            ("first", &fresh, None, claim, 1, Ok(Use::First)),
            ("expired", &fresh, None, claim, 1000, Err(Refused::Expired)),
            (
                "boot token",
                &token(Purpose::Boot),
                None,
                claim,
                1,
                Err(Refused::WrongPurpose),
            ),
            (
                "other machine",
                &fresh,
                None,
                wrong,
                1,
                Err(Refused::WrongMachine),
            ),
            ("repeat", &used, Some(100), claim, 149, Ok(Use::Repeat)),
            (
                "end of grace",
                &used,
                Some(100),
                claim,
                150,
                Err(Refused::Replayed),
            ),
            (
                "thief in the grace",
                &used,
                Some(100),
                thief,
                101,
                Err(Refused::Replayed),
            ),
            ("next document", &used, None, claim, 900, Ok(Use::First)),
            (
                "next document, thief",
                &used,
                None,
                thief,
                900,
                Err(Refused::Replayed),
            ),
            (
                "next document, late",
                &used,
                None,
                claim,
                1000,
                Err(Refused::Expired),
            ),
            (
                "repeat over expiry",
                &used,
                Some(990),
                claim,
                1010,
                Ok(Use::Repeat),
            ),
            (
                "run is over",
                &revoked,
                Some(100),
                claim,
                110,
                Err(Refused::Revoked),
            ),
        ];
        let grace = Duration::from_millis(50);
        for (name, token, served, claim, at, expected) in cases {
            let verdict = judge_config(token, served.map(Millis), claim, grace, Millis(at));
            assert_eq!(verdict, expected, "{name}");
        }
    }
}
