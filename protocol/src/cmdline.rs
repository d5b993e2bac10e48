//! The kernel command line that hands the agent its first facts.
//!
//! The daemon prints it into the boot script ([`Boot::to_cmdline`]); the agent reads it back from
//! `/proc/cmdline` ([`Boot::parse`]). Only the boot token in it is a secret, and it is worth one
//! redemption within minutes.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::machine::Mac;

/// Everything the agent needs before it can speak TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Base URL of the daemon's TLS listener, `https://10.77.0.1:8443`.
    pub server: String,
    /// SHA-256 of the daemon's CA certificate (DER), lower-case hex.
    pub ca_sha256: String,
    /// One-use boot token.
    pub token: String,
    /// Name of the machine in the inventory.
    pub machine: String,
    /// Run this boot belongs to.
    pub run: String,
    /// The daemon's clock when it rendered the script, seconds since the Unix epoch.
    pub time_secs: i64,
    /// The NIC that booted.
    pub mac: Mac,
    /// Address for that NIC; absent means: ask by DHCP.
    pub address: Option<Address>,
}

/// A static IPv4 configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The machine's own address.
    pub ip: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
    /// Default router, if there is one.
    pub gateway: Option<Ipv4Addr>,
}

/// Why a command line is not one of ours. Names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// A required key is absent.
    #[error("kernel command line lacks {0}=")]
    Missing(&'static str),
    /// A value cannot be read.
    #[error("kernel command line has {key}={value}, expected {expected}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What stood there.
        value: String,
        /// What belongs there.
        expected: &'static str,
    },
}

impl Boot {
    /// The arguments, separated by blanks. No value contains blanks or quotes by construction:
    /// names are checked by the inventory, the rest is hex, digits or URLs.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        let mut words = vec![
            format!("anneal.server={}", self.server),
            format!("anneal.ca={}", self.ca_sha256),
            format!("anneal.token={}", self.token),
            format!("anneal.machine={}", self.machine),
            format!("anneal.run={}", self.run),
            format!("anneal.time={}", self.time_secs),
            format!("anneal.mac={}", self.mac),
        ];
        if let Some(address) = self.address {
            words.push(format!("anneal.ip={}/{}", address.ip, address.prefix));
            if let Some(gateway) = address.gateway {
                words.push(format!("anneal.gateway={gateway}"));
            }
        }
        words.join(" ")
    }

    /// Reads a whole kernel command line; words that are not ours are left alone, and the last
    /// of several equal keys counts, as in the kernel.
    ///
    /// # Errors
    /// Names the key that is missing or cannot be read.
    pub fn parse(cmdline: &str) -> Result<Self, CmdlineError> {
        let words: HashMap<&str, &str> = cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        let text = |key: &'static str| {
            words
                .get(key)
                .filter(|v| !v.is_empty())
                .map(|v| (*v).to_owned())
                .ok_or(CmdlineError::Missing(key))
        };
        let address = match words.get("anneal.ip") {
            Some(value) => Some(parse_address(value, words.get("anneal.gateway").copied())?),
            None => None,
        };
        Ok(Self {
            server: text("anneal.server")?,
            ca_sha256: text("anneal.ca")?,
            token: text("anneal.token")?,
            machine: text("anneal.machine")?,
            run: text("anneal.run")?,
            time_secs: parsed("anneal.time", &text("anneal.time")?, "seconds since 1970")?,
            mac: parsed("anneal.mac", &text("anneal.mac")?, "a MAC address")?,
            address,
        })
    }
}

fn parsed<T: std::str::FromStr>(
    key: &'static str,
    value: &str,
    expected: &'static str,
) -> Result<T, CmdlineError> {
    value.parse().map_err(|_| CmdlineError::Invalid {
        key,
        value: value.to_owned(),
        expected,
    })
}

fn parse_address(value: &str, gateway: Option<&str>) -> Result<Address, CmdlineError> {
    const EXPECTED: &str = "an address with prefix length such as 10.77.0.11/24";
    let invalid = || CmdlineError::Invalid {
        key: "anneal.ip",
        value: value.to_owned(),
        expected: EXPECTED,
    };
    let (ip, prefix) = value.split_once('/').ok_or_else(invalid)?;
    let prefix: u8 = parsed("anneal.ip", prefix, EXPECTED)?;
    if prefix > 32 {
        return Err(invalid());
    }
    let gateway = gateway
        .map(|g| parsed("anneal.gateway", g, "an IPv4 address"))
        .transpose()?;
    Ok(Address {
        ip: parsed("anneal.ip", ip, EXPECTED)?,
        prefix,
        gateway,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Boot {
        Boot {
            server: "https://10.77.0.1:8443".into(),
            ca_sha256: "ab".repeat(32),
            token: "cd".repeat(32),
            machine: "r1n1".into(),
            run: "0199".into(),
            time_secs: 1_795_000_000,
            mac: Mac([0x52, 0x54, 0, 0xaa, 0, 1]),
            address: Some(Address {
                ip: Ipv4Addr::new(10, 77, 0, 11),
                prefix: 24,
                gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
            }),
        }
    }

    #[test]
    fn survives_the_way_there_and_back() {
        let line = format!("console=ttyS0 quiet {} panic=10", sample().to_cmdline());
        assert_eq!(Boot::parse(&line).unwrap(), sample());
        let dhcp = Boot {
            address: None,
            ..sample()
        };
        assert_eq!(Boot::parse(&dhcp.to_cmdline()).unwrap(), dhcp);
    }

    #[test]
    fn names_the_key_that_is_wrong() {
        let line = sample().to_cmdline();
        let missing = line.replace("anneal.token=", "x=");
        assert_eq!(
            Boot::parse(&missing),
            Err(CmdlineError::Missing("anneal.token"))
        );
        let wrong = line.replace("/24", "/33");
        assert!(
            Boot::parse(&wrong)
                .unwrap_err()
                .to_string()
                .contains("anneal.ip=10.77.0.11/33")
        );
    }
}
