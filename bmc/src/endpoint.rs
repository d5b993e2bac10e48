//! Where a BMC is: the URL of the inventory, checked once.

use reqwest::Url;

use crate::error::{Error, Result};
use crate::tls::Fingerprint;

/// A BMC's address: scheme and host, the system behind it if the URL names one, and the pinned
/// certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) base: Url,
    pub(crate) system: Option<String>,
    pub(crate) pin: Option<Fingerprint>,
}

impl Endpoint {
    /// Reads `redfish+https://host[:port][/redfish/v1/Systems/ID]` (or `redfish+http://`), and the
    /// SHA-256 of the certificate in hex, colons allowed.
    ///
    /// # Errors
    /// [`Error::BadUrl`] for other schemes, for URLs with a user or password in them, and for
    /// paths that are not of a system; [`Error::BadPin`].
    pub fn parse(url: &str, tls_sha256: Option<&str>) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(bad("it has no scheme; write redfish+https://HOST"));
        };
        let http = match scheme {
            "redfish+https" => "https",
            "redfish+http" => "http",
            "ipmi" | "ipmi+lan" | "ipmi+lanplus" => {
                return Err(bad(
                    "IPMI is not supported; enable Redfish on the BMC and write redfish+https://HOST",
                ));
            }
            other => {
                return Err(bad(&format!(
                    "unknown scheme {other:?}; write redfish+https://HOST or redfish+http://HOST"
                )));
            }
        };
        let mut base = Url::parse(&format!("{http}://{rest}"))
            .map_err(|error| bad(&format!("{error}; write {scheme}://HOST")))?;
        if !base.username().is_empty() || base.password().is_some() {
            return Err(bad(
                "it contains a user name or password; they have their own keys in the inventory",
            ));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(bad("it has a query or fragment"));
        }
        let system = system_path(base.path())?;
        base.set_path("/");
        let pin = tls_sha256.map(Fingerprint::parse).transpose()?;
        if pin.is_some() && http == "http" {
            return Err(bad(
                "a certificate fingerprint is given, but redfish+http uses no certificate",
            ));
        }
        Ok(Self { base, system, pin })
    }
}

/// The system that a URL's path names; none for the service root.
fn system_path(path: &str) -> Result<Option<String>> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        [] | ["redfish"] | ["redfish", "v1"] => Ok(None),
        ["redfish", "v1", "Systems", id] => Ok(Some(format!("/redfish/v1/Systems/{id}"))),
        _ => Err(bad(&format!(
            "path {path} is neither empty nor /redfish/v1/Systems/ID"
        ))),
    }
}

fn bad(reason: &str) -> Error {
    Error::BadUrl(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_with_and_without_system() {
        let plain = Endpoint::parse("redfish+https://10.77.1.11", None).unwrap();
        assert_eq!(plain.base.as_str(), "https://10.77.1.11/");
        assert_eq!(plain.system, None);
        let named =
            Endpoint::parse("redfish+http://[::1]:8000/redfish/v1/Systems/r1n1/", None).unwrap();
        assert_eq!(named.base.as_str(), "http://[::1]:8000/");
        assert_eq!(named.system.as_deref(), Some("/redfish/v1/Systems/r1n1"));
    }

    #[test]
    fn refuses_what_is_not_redfish_and_says_why() {
        for (url, reason) in [
            ("10.0.0.1", "it has no scheme"),
            ("ipmi://10.0.0.1", "IPMI is not supported"),
            ("https://10.0.0.1", "unknown scheme \"https\""),
            ("redfish+https://root:pw@10.0.0.1", "user name or password"),
            ("redfish+https://10.0.0.1/redfish/v1/Managers/1", "path"),
            ("redfish+https://10.0.0.1/?x=1", "query"),
            ("redfish+https://", "redfish+https://HOST"),
        ] {
            let error = Endpoint::parse(url, None).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
            assert!(!error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn refuses_a_fingerprint_without_tls_and_a_short_one() {
        let hex = "ab".repeat(32);
        assert!(Endpoint::parse("redfish+https://h", Some(&hex)).is_ok());
        assert!(Endpoint::parse("redfish+http://h", Some(&hex)).is_err());
        let short = Endpoint::parse("redfish+https://h", Some("abcd"));
        assert!(matches!(short, Err(Error::BadPin)));
    }
}
