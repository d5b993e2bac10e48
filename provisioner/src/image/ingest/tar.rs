//! The one disk image in a tar archive, as it streams by: how container layers carry disks.
//!
//! Source: POSIX.1-2017 pax, and the GNU extensions for long names. Only what is needed to find
//! a regular file is read; sparse members are refused.
//!
//! Invariant: the end of a [`DiskInTar`] is the end of the archive and of its source; an archive
//! with a second disk image is an error, not a guess.

use std::io::{self, Read};

use super::IngestError;
use super::decode::Source;

const BLOCK: usize = 512;
/// Extended headers are names and numbers.
const MAX_EXTENDED: u64 = 1 << 20;
/// Where KubeVirt's convention for disks in containers puts them.
const FOLDER: &str = "disk/";
const ENDINGS: [&str; 5] = [".raw", ".img", ".qcow2", ".iso", ".bin"];

/// Reads the only disk image of an archive.
pub struct DiskInTar {
    source: Source,
    /// Bytes of the disk's member that are left, and of its padding.
    left: u64,
    padding: u64,
    at: u64,
    found: Option<String>,
    others: Vec<String>,
    ended: bool,
}

struct Member {
    name: String,
    size: u64,
    kind: u8,
}

impl DiskInTar {
    /// Goes to the disk image.
    ///
    /// # Errors
    /// When there is none, or the archive is damaged.
    pub fn open(source: Source) -> Result<Self, IngestError> {
        let mut archive = Self {
            source,
            left: 0,
            padding: 0,
            at: 0,
            found: None,
            others: Vec::new(),
            ended: false,
        };
        archive
            .seek()
            .map_err(|error| IngestError::from_io("reading the tar archive", error))?;
        if archive.found.is_none() {
            return Err(IngestError::Format(format!(
                "no disk image is in the tar archive (a file in disk/ or named *.raw, *.img, *.qcow2 or *.iso), only: {}",
                archive.others.join(", ")
            )));
        }
        Ok(archive)
    }

    /// The disk's name in the archive.
    #[must_use]
    pub fn name(&self) -> &str {
        self.found.as_deref().unwrap_or_default()
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.source.read_exact(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                let (format, at) = ("tar", self.at);
                return IngestError::CutShort { format, at }.into_io();
            }
            error
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.source).take(count), &mut io::sink())?;
        self.at += skipped;
        if skipped < count {
            let (format, at) = ("tar", self.at);
            return Err(IngestError::CutShort { format, at }.into_io());
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> io::Error {
        IngestError::Damaged {
            format: "tar",
            at: self.at,
            raw: self.at,
            what: what.to_owned(),
        }
        .into_io()
    }

    /// Goes on to the next disk image, or to the end.
    fn seek(&mut self) -> io::Result<()> {
        let (mut long_name, mut long_size) = (None, None);
        loop {
            let Some(member) = self.header()? else {
                return self.rest();
            };
            match member.kind {
                b'x' | b'L' => {
                    if member.size > MAX_EXTENDED {
                        return Err(self.damaged("an extended header of more than 1 MiB"));
                    }
                    let mut text = vec![0; usize::try_from(member.size).unwrap_or(0)];
                    self.exactly(&mut text)?;
                    self.skip(padding(member.size))?;
                    if member.kind == b'L' {
                        let name = text.split(|c| *c == 0).next().unwrap_or(&text);
                        long_name = Some(String::from_utf8_lossy(name).into_owned());
                    } else {
                        let (name, size) =
                            extended(&text).ok_or_else(|| self.damaged("an extended header"))?;
                        long_name = name.or(long_name);
                        long_size = size.or(long_size);
                    }
                }
                b'S' => {
                    return Err(IngestError::Format(format!(
                        "{} in the tar archive is stored sparse, which is not read here: pack it without --sparse",
                        member.name
                    ))
                    .into_io());
                }
                kind => {
                    let name = long_name.take().unwrap_or(member.name);
                    let size = long_size.take().unwrap_or(member.size);
                    let regular = matches!(kind, 0 | b'0' | b'7');
                    if regular && is_disk(&name) {
                        return self.begin(name, size);
                    }
                    if regular && self.others.len() < 5 {
                        self.others.push(name);
                    }
                    self.skip(size.saturating_add(padding(size)))?;
                }
            }
        }
    }

    fn begin(&mut self, name: String, size: u64) -> io::Result<()> {
        if let Some(first) = &self.found {
            return Err(IngestError::Format(format!(
                "the tar archive holds several disk images, {first} and {name}: one was expected"
            ))
            .into_io());
        }
        self.found = Some(name);
        (self.left, self.padding) = (size, padding(size));
        Ok(())
    }

    /// The next header; none at the archive's end.
    fn header(&mut self) -> io::Result<Option<Member>> {
        let mut block = [0; BLOCK];
        self.exactly(&mut block)?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| match (148..156).contains(&at) {
                true => u64::from(b' '),
                false => u64::from(*byte),
            })
            .sum();
        if number(&block[148..156]) != Some(sum) {
            return Err(self.damaged("a header whose checksum is wrong"));
        }
        let text = |range: std::ops::Range<usize>| {
            let bytes = &block[range];
            let end = bytes.iter().position(|c| *c == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let (mut name, prefix) = (text(0..100), text(345..500));
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        let size =
            number(&block[124..136]).ok_or_else(|| self.damaged("a header without a size"))?;
        Ok(Some(Member {
            name,
            size,
            kind: block[156],
        }))
    }

    /// After the end mark there are zeros at most.
    fn rest(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = self.source.read(&mut buffer)?;
            if read == 0 {
                self.ended = true;
                return Ok(());
            }
            if buffer[..read].iter().any(|byte| *byte != 0) {
                let (format, at) = ("tar", self.at);
                return Err(IngestError::Trailing { format, at }.into_io());
            }
            self.at += read as u64;
        }
    }
}

impl Read for DiskInTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            if !self.ended {
                self.skip(self.padding)?;
                self.padding = 0;
                self.seek()?;
            }
            return Ok(0);
        }
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            let (format, at) = ("tar", self.at);
            return Err(IngestError::CutShort { format, at }.into_io());
        }
        self.left -= read as u64;
        self.at += read as u64;
        Ok(read)
    }
}

fn is_disk(name: &str) -> bool {
    let name = name.trim_start_matches("./").trim_start_matches('/');
    // What some tools leave beside a disk: extended attributes.
    let hidden = name
        .rsplit('/')
        .next()
        .is_some_and(|file| file.starts_with('.'));
    !hidden && (name.starts_with(FOLDER) || ENDINGS.iter().any(|ending| name.ends_with(ending)))
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Octal digits, or GNU's base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().checked_sub(8)?);
        let clean = high
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
        return low
            .try_into()
            .ok()
            .filter(|_| clean)
            .map(u64::from_be_bytes);
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c: char| c == ' ' || c == '\0');
    match digits {
        "" => Some(0),
        digits => u64::from_str_radix(digits, 8).ok(),
    }
}

/// Name and size of a pax header: records of `length key=value\n`.
fn extended(text: &[u8]) -> Option<(Option<String>, Option<u64>)> {
    let (mut name, mut size) = (None, None);
    let mut rest = text;
    while !rest.is_empty() {
        let space = rest.iter().position(|c| *c == b' ')?;
        let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
        rest = &rest[length..];
        let record = String::from_utf8_lossy(record);
        match record.split_once('=')? {
            ("path", value) => name = Some(value.to_owned()),
            ("size", value) => size = Some(value.parse().ok()?),
            // A sparse member would not be what it seems.
            (key, _) if key.starts_with("GNU.sparse") => return None,
            _ => {}
        }
    }
    Some((name, size))
}

#[cfg(test)]
mod tests;
