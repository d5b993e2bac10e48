//! Addresses of hosts with their networks.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 address with its prefix length, `10.77.0.11/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// Address of the host.
    pub ip: Ipv4Addr,
    /// Prefix length, 1 to 32.
    pub prefix: u8,
}

impl Cidr {
    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    /// First address of the network.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.to_bits() & self.mask())
    }

    /// Last address of the network.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.to_bits() | !self.mask())
    }

    /// Whether `other` is in the same network.
    #[must_use]
    pub fn contains(self, other: Ipv4Addr) -> bool {
        other.to_bits() & self.mask() == self.ip.to_bits() & self.mask()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Why a text is not a [`Cidr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an address with its prefix length: expected 10.77.0.11/24")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let bad = || CidrError(text.to_owned());
        let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
        let ip = ip.parse().map_err(|_| bad())?;
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        match prefix.parse() {
            Ok(prefix @ 1..=32) if digits => Ok(Self { ip, prefix }),
            _ => Err(bad()),
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads `10.77.0.11/24`, and `{ip, prefix}` as versions before 0.2 stored it.
impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Parts { ip: Ipv4Addr, prefix: u8 },
        }
        match Form::deserialize(deserializer)? {
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Form::Parts { ip, prefix } => Ok(Self { ip, prefix }),
        }
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Cidr {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("IPv4 address with prefix length, 10.77.0.11/24"))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Cidr {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_stored_forms_and_writes_text() {
        let text: Cidr = serde_json::from_str(r#""10.77.0.11/24""#).unwrap();
        let parts: Cidr = serde_json::from_str(r#"{"ip":"10.77.0.11","prefix":24}"#).unwrap();
        assert_eq!(text, parts);
        assert_eq!(serde_json::to_string(&text).unwrap(), r#""10.77.0.11/24""#);
        assert!(serde_json::from_str::<Cidr>(r#""10.77.0.11""#).is_err());
    }
}
