//! Lists of digests as publishers write them, read without trust.
//!
//! Read: GNU coreutils lines (`HEX  NAME`, `HEX *NAME`, names escaped after a backslash), BSD
//! lines (`SHA256 (NAME) = HEX`), the sections of Flatcar's and Gentoo's DIGESTS
//! (`# SHA512 HASH`), comments, and one digest alone. A cleartext-signed list is read between its
//! header and its signature.
//!
//! Invariant: SHA-256 and SHA-512 only. MD5, SHA-1 and what cannot be told apart from a SHA-2 by
//! a section's title or a tag are passed over.

use std::fmt;

/// A digest that proves something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Hex digits of a value.
    #[must_use]
    pub fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    fn by_digits(digits: usize) -> Option<Self> {
        [Self::Sha256, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.digits() == digits)
    }

    fn by_tag(tag: &str) -> Option<Self> {
        match tag.to_ascii_uppercase().as_str() {
            "SHA256" | "SHA2-256" | "SHA-256" => Some(Self::Sha256),
            "SHA512" | "SHA2-512" | "SHA-512" => Some(Self::Sha512),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        })
    }
}

/// One digest of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which digest.
    pub algorithm: Algorithm,
    /// Its bytes.
    pub digest: Vec<u8>,
    /// The file, as the list names it.
    pub name: String,
}

/// Reads a value of the algorithm.
///
/// # Errors
/// When it is not hex of that length.
pub fn value(algorithm: Algorithm, text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    hex::decode(text)
        .ok()
        .filter(|bytes| bytes.len() * 2 == algorithm.digits())
        .ok_or_else(|| {
            format!(
                "\"{}\" is not a {algorithm}: expected {} hex digits",
                shown(text),
                algorithm.digits()
            )
        })
}

/// A file that holds one digest and nothing else, as in `image.raw.sha256`.
#[must_use]
pub fn lone(text: &str) -> Option<(Algorithm, Vec<u8>)> {
    let mut words = text.split_ascii_whitespace();
    let (word, None) = (words.next()?, words.next()) else {
        return None;
    };
    let algorithm = Algorithm::by_digits(word.len())?;
    Some((algorithm, hex::decode(word).ok()?))
}

/// Finds the strongest digest of `file_name` in a list. A name in the list may have folders
/// before it; one that is exactly the same wins.
///
/// # Errors
/// When there is none, or two that differ; the text names what the list has.
pub fn find(text: &str, file_name: &str) -> Result<Entry, String> {
    find_of(text, file_name, None)
}

/// The same, for one algorithm only.
///
/// # Errors
/// As [`find`].
pub fn find_of(text: &str, file_name: &str, only: Option<Algorithm>) -> Result<Entry, String> {
    let mut entries = parse(text);
    entries.retain(|entry| only.is_none_or(|only| entry.algorithm == only));
    let exact: Vec<&Entry> = entries.iter().filter(|e| e.name == file_name).collect();
    let found = if exact.is_empty() {
        let base = |e: &&Entry| e.name.rsplit('/').next() == Some(file_name);
        entries.iter().filter(base).collect()
    } else {
        exact
    };
    let Some(best) = found.iter().max_by_key(|entry| entry.algorithm) else {
        return Err(absent(&entries, file_name));
    };
    let rivals = found
        .iter()
        .filter(|e| e.algorithm == best.algorithm && e.digest != best.digest);
    let rivals: Vec<String> = rivals.map(|entry| shown(&entry.name)).collect();
    if rivals.is_empty() {
        return Ok((*best).clone());
    }
    Err(format!(
        "the list of digests has several {} of \"{}\" that differ, as {}, {}: name the file as the list does, or give the value with --{}",
        best.algorithm,
        shown(file_name),
        shown(&best.name),
        rivals.join(", "),
        best.algorithm
    ))
}

fn absent(entries: &[Entry], file_name: &str) -> String {
    const MOST: usize = 10;
    let mut names: Vec<String> = entries.iter().map(|entry| shown(&entry.name)).collect();
    names.sort();
    names.dedup();
    let listed = match names.len() {
        0 => "no sha256 or sha512 at all".to_owned(),
        n if n > MOST => format!("{} and {} more", names[..MOST].join(", "), n - MOST),
        _ => names.join(", "),
    };
    format!(
        "the list of digests does not name \"{}\" (--published-name): it has {listed}",
        shown(file_name)
    )
}

/// Text from outside as it may appear in an error.
fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(200).map(clean).collect()
}

/// Every digest of the list, in its order.
#[must_use]
pub fn parse(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    // None: no section has begun, the number of digits tells the algorithm.
    let mut section: Option<Option<Algorithm>> = None;
    for line in body(text).lines() {
        let line = line.trim_end();
        if let Some(title) = line.strip_prefix('#') {
            let title = title.trim();
            if let Some(tag) = title.strip_suffix(" HASH") {
                section = Some(Algorithm::by_tag(tag));
            }
        } else if let Some(entry) = bsd(line).or_else(|| gnu(line, section)) {
            entries.push(entry);
        }
    }
    entries
}

/// What a cleartext-signed message says (RFC 9580, section 7); all of any other text.
fn body(text: &str) -> &str {
    let Some((_, rest)) = text.split_once("-----BEGIN PGP SIGNED MESSAGE-----") else {
        return text;
    };
    let rest = rest
        .split_once("\n\n")
        .or_else(|| rest.split_once("\r\n\r\n"))
        .map_or("", |(_, body)| body);
    rest.split_once("\n-----BEGIN PGP SIGNATURE-----")
        .map_or(rest, |(body, _)| body)
}

/// `SHA256 (NAME) = HEX`, as BSD's tools and `sha256sum --tag` write it.
fn bsd(line: &str) -> Option<Entry> {
    let (tag, rest) = line.split_once(" (")?;
    let algorithm = Algorithm::by_tag(tag)?;
    let (name, digest) = rest.rsplit_once(") = ")?;
    entry(algorithm, digest, name.to_owned())
}

/// `HEX  NAME` (text) or `HEX *NAME` (binary), as GNU coreutils write it.
fn gnu(line: &str, section: Option<Option<Algorithm>>) -> Option<Entry> {
    let (escaped, line) = match line.strip_prefix('\\') {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (digest, name) = line.split_once(' ')?;
    let name = name.strip_prefix(['*', ' ']).unwrap_or(name);
    let by_digits = Algorithm::by_digits(digest.len());
    let algorithm = match section {
        None => by_digits?,
        Some(titled) => titled.filter(|&titled| by_digits == Some(titled))?,
    };
    let name = if escaped {
        unescape(name)?
    } else {
        name.to_owned()
    };
    entry(algorithm, digest, name)
}

fn entry(algorithm: Algorithm, digest: &str, name: String) -> Option<Entry> {
    let digest = value(algorithm, digest).ok()?;
    Some(Entry {
        algorithm,
        digest,
        name: name.strip_prefix("./").map_or(name.clone(), str::to_owned),
    })
    .filter(|entry| !entry.name.is_empty())
}

fn unescape(name: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

#[cfg(test)]
#[path = "sums_tests.rs"]
mod tests;
