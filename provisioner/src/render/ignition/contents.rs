//! Contents as `data:` URLs, and contents by URL with a digest. Pure.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::input::Compress;
use super::spec::Spec;

/// From this size on contents are compressed when nothing else is said, bytes.
const LARGE: usize = 4096;

/// Contents that are part of the document.
pub struct Inline {
    /// `data:` URL.
    pub url: String,
    /// `gzip`, if it was compressed.
    pub compression: Option<&'static str>,
}

/// Puts a text into the document, as small as it gets.
pub fn inline(text: &str, compress: Option<Compress>) -> Inline {
    let plain = || Inline {
        url: data_url(text.as_bytes()),
        compression: None,
    };
    let asked = compress == Some(Compress::Gzip);
    if !asked && (compress.is_some() || text.len() < LARGE) {
        return plain();
    }
    let url = format!("data:;base64,{}", STANDARD.encode(gzip(text.as_bytes())));
    let packed = Inline {
        url,
        compression: Some("gzip"),
    };
    match plain() {
        plain if !asked && plain.url.len() <= packed.url.len() => plain,
        _ => packed,
    }
}

/// Always the same bytes for the same text: no name, no time.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    // Writing into memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// RFC 2397: escaped, so that people can read it, or base64 where that is shorter.
fn data_url(bytes: &[u8]) -> String {
    let mut escaped = String::from("data:,");
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(*byte));
            }
            other => escaped += &format!("%{other:02X}"),
        }
    }
    let packed = format!("data:;base64,{}", STANDARD.encode(bytes));
    if packed.len() < escaped.len() {
        packed
    } else {
        escaped
    }
}

/// Checks a URL that Ignition fetches.
pub fn source(url: &str) -> Result<(), String> {
    const SCHEMES: &[&str] = &["http", "https", "tftp", "data", "s3", "gs"];
    let known = url
        .split_once(':')
        .is_some_and(|(scheme, rest)| SCHEMES.contains(&scheme) && !rest.is_empty());
    // A plan shows `(redacted)` where a token will be.
    if known && !url.chars().any(|c| c.is_control() || c == ' ') {
        return Ok(());
    }
    Err(format!(
        "not a URL that Ignition fetches: expected one of {}",
        SCHEMES.join(", ")
    ))
}

/// Whether what a URL gives must be proved by a digest: anybody on the way can change it.
pub fn needs_hash(url: &str) -> bool {
    !url.starts_with("https:") && !url.starts_with("data:")
}

/// Checks a digest.
pub fn hash(text: &str, spec: Spec) -> Result<(), String> {
    const EXPECTED: &str = "expected sha512- or sha256- and hexadecimal digits";
    let (kind, digits) = text.split_once('-').unwrap_or(("", text));
    let length = match kind {
        "sha512" => 128,
        "sha256" if spec >= Spec::V3_1 => 64,
        "sha256" => {
            return Err(format!(
                "spec {spec} knows SHA-512 only: expected sha512-, or a spec from {} on",
                Spec::V3_1
            ));
        }
        _ => return Err(format!("not a digest: {EXPECTED}")),
    };
    if digits.len() == length && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(format!("not a {kind} digest: {EXPECTED}"))
}
