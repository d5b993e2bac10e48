//! Single values: from text to "yes", or a sentence about what was expected.
//!
//! Pure. Texts that may be secrets (keys, certificates) are never repeated.

use std::net::IpAddr;

use base64::Engine as _;

use crate::machine::check::Refusal;
use crate::yaml::unknown_word;

type Checked = Result<(), Refusal>;

/// Longest host name that Linux takes (`HOST_NAME_MAX`).
const HOST_NAME_MAX: usize = 64;
/// Longest name of an interface (`IFNAMSIZ` without its zero).
const INTERFACE_MAX: usize = 15;
/// Largest extra file, bytes: an inventory is not where images are kept.
const FILE_MAX: usize = 256 * 1024;

/// How bonds may share their cards, in the kernel's words.
pub const BOND_MODES: &[&str] = &[
    "balance-rr",
    "active-backup",
    "balance-xor",
    "broadcast",
    "802.3ad",
    "balance-tlb",
    "balance-alb",
];

/// What Kubernetes does with pods that do not tolerate a taint.
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Kinds of public keys that OpenSSH still takes.
const KEY_KINDS: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

fn label(text: &str) -> bool {
    crate::machine::check::name(text).is_ok()
}

fn domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(label)
}

/// A host name (RFC 1123): labels with dots, lower case since Kubernetes wants node names so.
pub fn hostname(text: &str) -> Checked {
    if text.len() <= HOST_NAME_MAX && domain(text) && text.parse::<IpAddr>().is_err() {
        return Ok(());
    }
    Err(format!(
        "not a host name: expected at most {HOST_NAME_MAX} lower-case letters, digits, `-` and \
         `.`, each part beginning and ending with a letter or digit"
    ))
}

/// A domain to search names in.
pub fn search(text: &str) -> Checked {
    if domain(text) && text.parse::<IpAddr>().is_err() {
        return Ok(());
    }
    Err("not a domain: expected a name such as rack1.example.org".to_owned())
}

/// A name server: resolvers take addresses only.
pub fn dns(text: &str) -> Checked {
    match text.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(()),
        _ => Err("not a name server: expected an address such as 10.77.0.1".to_owned()),
    }
}

/// A time server.
pub fn ntp(text: &str) -> Checked {
    if domain(text) || dns(text).is_ok() {
        return Ok(());
    }
    Err("not a time server: expected a name or an address".to_owned())
}

/// The name of a network interface.
pub fn interface(text: &str) -> Checked {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let valid = (1..=INTERFACE_MAX).contains(&text.len())
        && text.bytes().all(plain)
        && text.as_bytes()[0].is_ascii_alphabetic();
    if valid && !matches!(text, "lo" | "all" | "default") {
        return Ok(());
    }
    Err(format!(
        "not the name of a network interface: expected at most {INTERFACE_MAX} letters, digits, \
         `-`, `_` and `.`, beginning with a letter"
    ))
}

/// How a bond shares its cards.
pub fn bond_mode(text: &str) -> Checked {
    match BOND_MODES.contains(&text) {
        true => Ok(()),
        false => Err(unknown_word("bond mode", text, BOND_MODES)),
    }
}

/// Largest packet in bytes: every IPv4 host takes 576.
pub fn mtu(bytes: u16) -> Checked {
    match bytes {
        576.. => Ok(()),
        _ => Err("not the size of a packet: expected 576 to 65535 bytes".to_owned()),
    }
}

/// A VLAN's tag; 0 and 4095 mean something else.
pub fn vlan_id(id: u16) -> Checked {
    match id {
        1..=4094 => Ok(()),
        _ => Err("not the tag of a VLAN: expected 1 to 4094".to_owned()),
    }
}

/// A public SSH key, one line of `authorized_keys` without options.
pub fn ssh_key(text: &str) -> Checked {
    const EXPECTED: &str = "expected one line such as `ssh-ed25519 AAAA… comment`";
    if text.contains("PRIVATE KEY") {
        return Err(format!(
            "this is a private key, which never belongs into an inventory: {EXPECTED}, the public \
             half"
        ));
    }
    let mut words = text.split(' ');
    let (Some(kind), Some(body)) = (words.next(), words.next()) else {
        return Err(format!("not a public SSH key: {EXPECTED}"));
    };
    if text.chars().any(char::is_control) || !KEY_KINDS.contains(&kind) {
        return Err(format!(
            "not a public SSH key of a known kind ({}): {EXPECTED}",
            KEY_KINDS.join(", ")
        ));
    }
    // RFC 4253, section 6.6: the body begins with the kind again, after its length.
    let body = base64::engine::general_purpose::STANDARD.decode(body);
    let length = u32::try_from(kind.len()).unwrap_or(u32::MAX).to_be_bytes();
    let whole = body.is_ok_and(|body| {
        body.strip_prefix(&length)
            .and_then(|rest| rest.strip_prefix(kind.as_bytes()))
            .is_some_and(|rest| rest.len() > 4)
    });
    match whole {
        true => Ok(()),
        false => Err(format!("the SSH key is cut off or damaged: {EXPECTED}")),
    }
}

/// One argument of a kernel.
pub fn kernel_arg(text: &str) -> Checked {
    let printable = text.bytes().all(|b| b.is_ascii_graphic());
    if !text.is_empty() && printable && !text.starts_with('=') {
        return Ok(());
    }
    Err(
        "not a kernel argument: expected `name` or `name=value` without spaces, an entry each"
            .to_owned(),
    )
}

/// The name of a Kubernetes label or taint: `[domain/]name`.
fn qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => domain(prefix) && word(name) && !name.is_empty(),
        None => word(text) && !text.is_empty(),
    }
}

/// The value of a Kubernetes label: empty, or up to 63 letters, digits, `-_.`.
fn word(text: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|b| plain(b) || b"-_.".contains(b))
        && bytes.first().is_none_or(plain)
        && bytes.last().is_none_or(plain)
}

/// The name of a Kubernetes label.
pub fn label_key(text: &str) -> Checked {
    if qualified(text) {
        return Ok(());
    }
    Err(format!(
        "`{text}` is not the name of a Kubernetes label: expected `name` or `domain/name`, the \
         name of at most 63 letters, digits, `-`, `_` and `.`"
    ))
}

/// The value of a Kubernetes label.
pub fn label_value(text: &str) -> Checked {
    if word(text) {
        return Ok(());
    }
    Err(
        "not the value of a Kubernetes label: expected nothing or at most 63 letters, digits, \
         `-`, `_` and `.`, beginning and ending with a letter or digit"
            .to_owned(),
    )
}

/// A Kubernetes taint.
pub fn taint(text: &str) -> Checked {
    let bad = || {
        format!(
            "not a taint: expected `key=value:Effect`, the effect one of {}",
            EFFECTS.join(", ")
        )
    };
    let (what, effect) = text.rsplit_once(':').ok_or_else(bad)?;
    if !EFFECTS.contains(&effect) {
        return Err(unknown_word("effect of a taint", effect, EFFECTS));
    }
    let (key, value) = what.split_once('=').unwrap_or((what, ""));
    match qualified(key) && word(value) {
        true => Ok(()),
        false => Err(bad()),
    }
}

/// The path of a file.
pub fn path(text: &str) -> Checked {
    let parts = || text.split('/').skip(1);
    let valid = text.starts_with('/')
        && text.len() <= 4096
        && !text.chars().any(char::is_control)
        && parts().all(|part| !matches!(part, "" | "." | ".."));
    match valid {
        true => Ok(()),
        false => Err(
            "not the path of a file: expected an absolute path without `.`, `..`, empty \
                      parts and control characters"
                .to_owned(),
        ),
    }
}

/// Permission bits.
pub fn mode(text: &str) -> Checked {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match octal {
        true => Ok(()),
        false => {
            Err("not permission bits: expected quoted octal digits such as \"0644\"".to_owned())
        }
    }
}

/// The text of a file.
pub fn contents(text: &str) -> Checked {
    if text.len() > FILE_MAX {
        return Err(format!("the file is larger than {} KiB", FILE_MAX >> 10));
    }
    match text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r'))
    {
        true => Err("the file has control characters: expected text".to_owned()),
        false => Ok(()),
    }
}

/// The host of a container registry.
pub fn registry(text: &str) -> Checked {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let port = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    match text == "*" || (domain(host) && port) {
        true => Ok(()),
        false => Err(
            "not the host of a registry: expected `host`, `host:port`, or `*` for all, \
                      without scheme and path"
                .to_owned(),
        ),
    }
}

/// The URL of a registry's mirror. Never repeated: people put passwords into URLs.
pub fn mirror(text: &str) -> Checked {
    const EXPECTED: &str = "expected http(s)://host[:port][/path]";
    let url = reqwest::Url::parse(text)
        .map_err(|error| format!("not the URL of a mirror ({error}): {EXPECTED}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("the URL of a mirror holds no user: {EXPECTED}"));
    }
    let plain = matches!(url.scheme(), "http" | "https")
        && url.query().is_none()
        && url.fragment().is_none()
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    match plain {
        true => Ok(()),
        false => Err(format!("not the URL of a mirror: {EXPECTED}")),
    }
}

/// Certificates of an authority. Private keys are refused.
pub fn certificates(text: &str) -> Checked {
    const EXPECTED: &str = "expected the PEM text of certificates";
    let mut found = false;
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|_| format!("not a certificate: {EXPECTED}"))?;
        if block.label != "CERTIFICATE" {
            return Err(format!(
                "this is no certificate but something else in PEM: {EXPECTED}"
            ));
        }
        if block.parse_x509().is_err() {
            return Err(format!("the certificate cannot be read: {EXPECTED}"));
        }
        found = true;
    }
    match found {
        true => Ok(()),
        false => Err(format!("not a certificate: {EXPECTED}")),
    }
}
