//! Words about machines that every party uses: names, MAC addresses, lifecycle states.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet hardware address. Reads `aa:bb:cc:dd:ee:ff`, `aa-bb-…` and `aabb.ccdd.eeff`, any
/// case; prints lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Why a text is not a [`Mac`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address: expected six bytes such as 52:54:00:aa:00:01")]
pub struct MacError(String);

impl Mac {
    /// The form that fits into a URL path and that iPXE prints as `${mac:hexhyp}`.
    #[must_use]
    pub fn hyphenated(&self) -> String {
        self.to_string().replace(':', "-")
    }

    /// Whether a network card can own this address: not all zero, not multicast.
    #[must_use]
    pub fn is_unicast(&self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || MacError(text.to_owned());
        let digits: String = match text.len() {
            17 => {
                let separator = text.as_bytes()[2];
                let well_formed = matches!(separator, b':' | b'-')
                    && text.bytes().skip(2).step_by(3).all(|b| b == separator);
                if !well_formed {
                    return Err(bad());
                }
                text.split(char::from(separator)).collect()
            }
            14 if text.bytes().skip(4).step_by(5).all(|b| b == b'.') => text.split('.').collect(),
            _ => return Err(bad()),
        };
        if digits.len() != 12 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 6];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[index * 2..index * 2 + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Mac {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("Ethernet address, aa:bb:cc:dd:ee:ff"))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Mac {}

/// Where a machine is in its life. Names say what is already true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// In the inventory; nothing has been written to it by us.
    Registered,
    /// A run is active.
    Provisioning,
    /// The installed system phoned home after the last run.
    Provisioned,
    /// The last run ended without success.
    Failed,
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registered => "registered",
            Self::Provisioning => "provisioning",
            Self::Provisioned => "provisioned",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_usual_spellings() {
        for text in ["52:54:00:AA:00:01", "52-54-00-aa-00-01", "5254.00aa.0001"] {
            let mac: Mac = text.parse().unwrap();
            assert_eq!(mac.to_string(), "52:54:00:aa:00:01");
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "52:54:00:aa:00",
            "52:54:00:aa:00:0g",
            "52:54-00:aa:00:01",
            "+1:54:00:aa:00:01",
            "ää:54:00:aa:00",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn knows_multicast_and_zero() {
        assert!(!Mac([0; 6]).is_unicast());
        assert!(!Mac([1, 0, 0, 0, 0, 1]).is_unicast());
        assert!(Mac([0x52, 0x54, 0, 0, 0, 1]).is_unicast());
    }
}
