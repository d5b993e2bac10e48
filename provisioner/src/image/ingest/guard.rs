//! Where the daemon may fetch from.
//!
//! Operators name URLs, and the daemon fetches them with its own place in the network. So that
//! nobody can reach services of the daemon's host or a cloud's metadata address through it, only
//! http and https are fetched, and loopback, link-local and unspecified addresses are refused
//! unless `images.allow_local_sources` is on. Names are checked after they are resolved, by the
//! resolver that the connection uses, and every redirect is checked again.
//!
//! Not here: private networks in general. Mirrors are there, and so it is not refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Attempt, Policy};

/// Redirects that are followed, as many as `curl -L` is advised to.
const REDIRECTS: usize = 10;

/// What is refused, in words for the operator.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct GuardError(String);

/// The rules.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// Loopback and link-local addresses are allowed: tests and labs.
    pub allow_local: bool,
}

impl Guard {
    /// Checks what can be told from a URL itself.
    ///
    /// # Errors
    /// When it is not fetched from.
    pub fn url(self, url: &Url) -> Result<(), GuardError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(GuardError(format!(
                "{} is not fetched: only http and https URLs are",
                shown(url)
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(GuardError(format!(
                "{} has a user or password in it, which would be shown to everybody: leave it out",
                shown(url)
            )));
        }
        let host = url.host_str().unwrap_or_default();
        if host.is_empty() {
            return Err(GuardError(format!("{} names no host", shown(url))));
        }
        // The URL's reader has brought other spellings of addresses into this form.
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        match literal {
            Some(ip) => self.address(ip, &ip.to_string()),
            None => Ok(()),
        }
    }

    fn address(self, ip: IpAddr, host: &str) -> Result<(), GuardError> {
        if self.allow_local || !is_local(ip) {
            return Ok(());
        }
        Err(GuardError(format!(
            "{host} is {ip}, an address of the daemon's own host or link, which is not fetched from \
             unless `images.allow_local_sources` is on in the daemon's settings"
        )))
    }

    /// Checks every redirect.
    #[must_use]
    pub fn redirects(self) -> Policy {
        Policy::custom(move |attempt: Attempt<'_>| {
            if attempt.previous().len() > REDIRECTS {
                let text = format!("more than {REDIRECTS} redirects");
                return attempt.error(GuardError(text));
            }
            let secure = attempt
                .previous()
                .last()
                .is_some_and(|url| url.scheme() == "https");
            if secure && attempt.url().scheme() != "https" {
                let text = format!("a redirect from https to {}", shown(attempt.url()));
                return attempt.error(GuardError(text));
            }
            match self.url(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(error) => attempt.error(error),
            }
        })
    }

    /// A resolver that gives no forbidden address.
    #[must_use]
    pub fn resolver(self) -> Arc<dyn Resolve> {
        Arc::new(Resolver(self))
    }
}

/// A URL without what may be secret in it.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only for URLs that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}

struct Resolver(Guard);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            for address in &found {
                // One bad address is enough: a name that means both is a trap.
                guard.address(address.ip(), &host)?;
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Loopback, link-local, unspecified, and their disguises in IPv6.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_local_v4(ip),
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || (ip.segments()[0] & 0xffc0) == 0xfe80
                || embedded(ip).is_some_and(is_local_v4)
        }
    }
}

fn is_local_v4(ip: Ipv4Addr) -> bool {
    // All of 0.0.0.0/8 is "this host".
    ip.is_loopback() || ip.is_link_local() || ip.octets()[0] == 0 || ip.is_broadcast()
}

/// IPv4 in IPv6: mapped, compatible, NAT64 (RFC 6052) and 6to4 (RFC 3056).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => Some(v4(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_own_host_is_not_fetched_from() {
        let strict = Guard { allow_local: false };
        let lab = Guard { allow_local: true };
        for text in [
            "http://127.0.0.1/",
            "http://127.8.9.1:8080/x",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0.0.0.0/",
            "http://169.254.169.254/latest/meta-data",
            "http://[::1]/",
            "http://[::]/",
            "http://[fe80::1]/",
            "http://[febf::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
        ] {
            let url = Url::parse(text).unwrap();
            let error = strict.url(&url).unwrap_err().to_string();
            assert!(
                error.contains("images.allow_local_sources"),
                "{text}: {error}"
            );
            lab.url(&url).unwrap();
        }
        for text in [
            "http://10.0.0.5/a",
            "https://192.168.1.1/",
            "https://[fd00::1]/",
            "https://example.org/",
        ] {
            strict.url(&Url::parse(text).unwrap()).unwrap();
        }
        for (text, word) in [
            ("file:///etc/shadow", "only http and https"),
            ("gopher://example.org/", "only http and https"),
            (
                "https://me:secret@example.org/x?token=1",
                "user or password",
            ),
        ] {
            let error = lab.url(&Url::parse(text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn names_are_checked_after_they_are_resolved() {
        let name = || "localhost".parse().unwrap();
        let refused = Guard { allow_local: false }
            .resolver()
            .resolve(name())
            .await;
        let error = refused.err().unwrap().to_string();
        assert!(error.starts_with("localhost is "), "{error}");
        let found = Guard { allow_local: true }.resolver().resolve(name()).await;
        assert!(found.unwrap().next().is_some());
    }
}
