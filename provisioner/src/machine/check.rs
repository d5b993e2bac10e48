//! The values of an inventory: what is a valid name, address, size, BMC URL, image name.
//!
//! Pure functions from text to value. A refusal says what was expected; the caller adds the
//! place. Not here: rules between fields (`file`) or between machines (`store`).

use anneal_protocol::machine::Mac;

use super::Cidr;

/// Why a value is refused, one sentence.
pub type Refusal = String;

/// Checks a machine's name: one DNS label (RFC 1123), lower case.
///
/// # Errors
/// Says what a name looks like.
pub fn name(text: &str) -> Result<(), Refusal> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let valid = (1..=63).contains(&text.len())
        && text.bytes().all(|b| plain(b) || b == b'-')
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain);
    if valid {
        return Ok(());
    }
    Err(format!(
        "\"{text}\" is not a valid name: expected 1 to 63 lower-case letters, digits and `-`, \
         beginning and ending with a letter or digit"
    ))
}

/// Reads a MAC address that a network card can own.
///
/// # Errors
/// Says what a MAC address looks like.
pub fn mac(text: &str) -> Result<Mac, Refusal> {
    let mac: Mac = text
        .parse()
        .map_err(|error: anneal_protocol::machine::MacError| error.to_string())?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    Err(format!(
        "{mac} cannot belong to a network card: expected a unicast address, its first byte even \
         and not all zero"
    ))
}

/// Reads the address of a host with its prefix length.
///
/// # Errors
/// Says what is wrong: no address, no prefix, or not the address of a host.
pub fn host_address(text: &str) -> Result<Cidr, Refusal> {
    let cidr: Cidr = text
        .parse()
        .map_err(|error: anneal_protocol::net::CidrError| error.to_string())?;
    let ip = cidr.ip;
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.octets()[0] >= 240 {
        return Err(format!("{ip} is not an address that a machine can have"));
    }
    // RFC 3021: both addresses of a /31 are hosts.
    if cidr.prefix <= 30 {
        if ip == cidr.network() {
            return Err(format!(
                "{cidr} is the address of the network itself: expected the address of a host in it"
            ));
        }
        if ip == cidr.broadcast() {
            return Err(format!(
                "{cidr} is the broadcast address of its network: expected the address of a host in it"
            ));
        }
    }
    Ok(cidr)
}

/// Units of sizes.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a size in bytes: `512`, `100GiB`, `500GB`.
///
/// # Errors
/// Says what a size looks like.
pub fn size(text: &str) -> Result<u64, Refusal> {
    let bad = || {
        format!(
            "\"{text}\" is not a size: expected a whole number and a unit such as 100GiB or 500GB"
        )
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| bad())?;
    let unit = match text[end..].trim_start() {
        "" => 1,
        word => {
            let known = UNITS.iter().find(|(unit, _)| *unit == word);
            known.ok_or_else(bad)?.1
        }
    };
    number
        .checked_mul(unit)
        .filter(|size| *size > 0)
        .ok_or_else(bad)
}

/// A size as an inventory writes it: the shortest text that says it exactly.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    UNITS
        .iter()
        .filter(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map(|(unit, factor)| format!("{}{unit}", bytes / factor))
        .min_by_key(String::len)
        .unwrap_or_else(|| bytes.to_string())
}

/// Checks the URL of a BMC; true when its connection is encrypted. The text is never repeated:
/// people put passwords into URLs.
///
/// # Errors
/// Says what a BMC URL looks like.
pub fn bmc_url(text: &str) -> Result<bool, Refusal> {
    const EXPECTED: &str = "expected redfish+https://host[:port][/redfish/v1/Systems/ID] \
                            or redfish+http://…";
    let Some(plain) = text.strip_prefix("redfish+") else {
        return Err(format!("not the URL of a BMC: {EXPECTED}"));
    };
    let url = reqwest::Url::parse(plain)
        .map_err(|error| format!("not the URL of a BMC ({error}): {EXPECTED}"))?;
    let encrypted = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(format!("not the URL of a BMC: {EXPECTED}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the URL of a BMC holds no user: use the keys `username` and `password`".to_owned(),
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "the URL of a BMC has no query and no fragment: {EXPECTED}"
        ));
    }
    let system = url.path().strip_prefix("/redfish/v1/Systems/");
    let whole = matches!(url.path(), "" | "/" | "/redfish/v1" | "/redfish/v1/");
    if whole || system.is_some_and(|id| !id.trim_end_matches('/').is_empty()) {
        return Ok(encrypted);
    }
    Err(format!(
        "the path of a BMC's URL names no computer system: {EXPECTED}"
    ))
}

/// Checks the SHA-256 of a certificate and writes it in lower case without colons.
///
/// # Errors
/// Says what a digest looks like.
pub fn sha256(text: &str) -> Result<String, Refusal> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_lowercase());
    }
    Err("not a SHA-256 digest: expected 64 hexadecimal digits".to_owned())
}

/// Checks the name of an image, `name@version`.
///
/// # Errors
/// Says what an image's name looks like.
pub fn image(text: &str) -> Result<(), Refusal> {
    let valid = text.split_once('@').is_some_and(|(name, version)| {
        let word = |text: &str| {
            (1..=128).contains(&text.len())
                && text.as_bytes()[0].is_ascii_alphanumeric()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
        };
        word(name) && word(version)
    });
    if valid {
        return Ok(());
    }
    Err(format!(
        "\"{text}\" is not the name of an image: expected name@version such as flatcar@4230.2.1"
    ))
}

/// Checks a short text for people (rack, role, label value): printable, 1 to 128 characters.
///
/// # Errors
/// Says what is allowed.
pub fn words(what: &str, text: &str) -> Result<(), Refusal> {
    let length = text.chars().count();
    if (1..=128).contains(&length) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!(
        "{what} is empty or unprintable: expected 1 to 128 characters"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_names() {
        for good in ["r1n1", "a", "1", "node-7"] {
            assert_eq!(name(good), Ok(()), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "", "R1", "a_b", "-a", "a-", "a.b", "ä", "../etc", "a b", &long,
        ] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn knows_host_addresses() {
        for good in [
            "10.77.0.11/24",
            "10.0.0.0/31",
            "10.0.0.1/31",
            "192.0.2.7/32",
        ] {
            assert_eq!(host_address(good).unwrap().to_string(), good);
        }
        for (bad, part) in [
            ("10.77.0.11", "expected 10.77.0.11/24"),
            ("10.77.0.11/33", "expected 10.77.0.11/24"),
            ("10.77.0.11/0", "expected 10.77.0.11/24"),
            ("10.77.0.11/+8", "expected 10.77.0.11/24"),
            ("10.77.0.011/24", "expected 10.77.0.11/24"),
            ("10.77.0.0/24", "the network itself"),
            ("10.77.0.255/24", "broadcast"),
            ("127.0.0.1/8", "a machine can have"),
            ("224.0.0.1/24", "a machine can have"),
            ("255.255.255.255/32", "a machine can have"),
        ] {
            let refusal = host_address(bad).unwrap_err();
            assert!(refusal.contains(part), "{bad}: {refusal}");
        }
    }

    #[test]
    fn knows_sizes() {
        for (text, bytes) in [
            ("512", 512),
            ("100GiB", 100 << 30),
            ("512B", 512),
            ("100 GiB", 100 << 30),
            ("500GB", 500_000_000_000),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "0", "-1GiB", "1.5TiB", "100gib", "99999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for text in ["100GiB", "500GB", "3MiB", "512B"] {
            assert_eq!(size_text(size(text).unwrap()), text);
        }
    }

    #[test]
    fn knows_bmc_urls() {
        assert_eq!(bmc_url("redfish+https://10.77.1.11"), Ok(true));
        assert_eq!(
            bmc_url("redfish+http://10.77.1.1:8000/redfish/v1/Systems/0-1"),
            Ok(false)
        );
        for bad in [
            "https://10.77.1.11",
            "redfish+ftp://10.77.1.11",
            "redfish+https://",
            "redfish+https://root:hunter2@10.77.1.11",
            "redfish+https://10.77.1.11/ui",
            "redfish+https://10.77.1.11/redfish/v1/Systems/",
            "redfish+https://10.77.1.11?password=hunter2",
        ] {
            let refusal = bmc_url(bad).unwrap_err();
            assert!(!refusal.contains("hunter2"), "{refusal}");
        }
    }

    #[test]
    fn knows_images_and_digests() {
        assert_eq!(image("flatcar@4230.2.1"), Ok(()));
        for bad in ["flatcar", "flatcar@", "@1", "a/b@1", "../x@1", "a@b@c"] {
            assert!(image(bad).is_err(), "{bad}");
        }
        let pairs = vec!["AB"; 32].join(":");
        assert_eq!(sha256(&pairs).unwrap(), "ab".repeat(32));
        assert!(sha256("abcd").is_err());
    }

    #[test]
    fn refuses_addresses_of_groups() {
        assert!(mac("01:00:5e:00:00:01").unwrap_err().contains("unicast"));
        assert!(mac("00:00:00:00:00:00").is_err());
        assert!(mac("52:54:00:aa:00:01").is_ok());
    }
}
