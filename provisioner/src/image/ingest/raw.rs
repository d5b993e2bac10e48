//! From published bytes to the raw disk: what layers there are, told by content, opened one
//! inside the other.
//!
//! Invariant: a disk comes out of at most one compression, or of a tar layer of a container
//! image; anything deeper is refused, because nobody publishes it on purpose.

use std::io::{self, Cursor, Read, Seek, Write};
use std::path::PathBuf;

use super::IngestError;
use super::decode::{Decoder, Source};
use super::detect;
use super::format::{Format, PEEK, sniff};
use super::memory::Share;
use super::qcow2::Qcow2;
use super::tar::DiskInTar;

/// What the store keeps free when something is spooled or written: room for its database.
const RESERVE: u64 = 64 << 20;
/// How often the free space is looked at.
const LOOK: u64 = 64 << 20;

/// What is allowed.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The largest raw disk, bytes.
    pub max_size: u64,
    /// Whether a tar archive may hold the disk: layers of container images do.
    pub tar: bool,
    /// Where decoders take their memory.
    pub memory: Share,
    /// Where a qcow2 image is spooled, because reading it needs seeking. The file has no name.
    pub spool: PathBuf,
}

/// An opened source: the raw disk.
pub struct RawDisk {
    /// Its layers from outside in, `xz`, `qcow2 in gzip`.
    pub format: String,
    /// The first bytes of the raw disk: [`PEEK`] of them unless it is smaller, more when its
    /// partition table takes more.
    pub head: Vec<u8>,
    /// Name of the file inside an archive.
    pub inner_name: Option<String>,
    /// Its bytes, if a format says so before they are read.
    pub size: Option<u64>,
    /// There are no layers: the published bytes are the disk.
    pub is_plain: bool,
    /// The raw disk, from its first byte.
    pub reader: Source,
}

/// Opens whatever `source` holds.
///
/// # Errors
/// When it is nothing that is read here, is damaged, or larger than `rules` allow.
pub fn open(source: Source, rules: &Rules) -> Result<RawDisk, IngestError> {
    let mut layers = Vec::new();
    let mut inner_name = None;
    let mut size = None;
    let mut source = source;
    let (mut compressed, mut depth) = (false, 0);
    loop {
        let (head, whole) = peek(source, PEEK)?;
        let format = sniff(&head)?;
        match format {
            Format::Tar if rules.tar && inner_name.is_none() => {
                let disk = DiskInTar::open(whole)?;
                inner_name = Some(disk.name().to_owned());
                layers.push("tar");
                compressed = false;
                source = Box::new(disk);
            }
            Format::Tar => return Err(tar(&layers)),
            format if format.is_compression() => {
                if compressed {
                    return Err(nested(format, &layers));
                }
                compressed = true;
                layers.push(format.name());
                let share = rules.memory.clone();
                source = Box::new(Decoder::new(format, whole, share, depth));
                depth += 1;
            }
            Format::Qcow2 => {
                layers.push("qcow2");
                let disk = spool(whole, rules)?;
                size = Some(disk.size());
                source = Box::new(disk);
                break;
            }
            other => {
                layers.push(other.name());
                source = whole;
                break;
            }
        }
    }
    let limited = Limited {
        inner: source,
        left: rules.max_size,
        limit: rules.max_size,
    };
    let (head, reader) = beginning(Box::new(limited))?;
    let is_plain = layers.len() == 1 && size.is_none();
    if layers.len() > 1 && layers.last() == Some(&"raw") {
        layers.pop();
    }
    layers.reverse();
    Ok(RawDisk {
        format: layers.join(" in "),
        head,
        inner_name,
        size,
        is_plain,
        reader,
    })
}

fn tar(layers: &[&str]) -> IngestError {
    let wrapped = layers
        .last()
        .map(|layer| format!(", compressed with {layer}"));
    IngestError::Format(format!(
        "the source is a tar archive{}, not a disk image: unpack it (`tar -xf FILE`) and add the disk image in it",
        wrapped.unwrap_or_default()
    ))
}

fn nested(format: Format, layers: &[&str]) -> IngestError {
    IngestError::Format(format!(
        "the source is {} inside {}: it is compressed twice, decompress it once before adding it",
        format.name(),
        layers.last().unwrap_or(&"?")
    ))
}

/// What of a disk is looked at, and the whole again.
fn beginning(disk: Source) -> Result<(Vec<u8>, Source), IngestError> {
    let (head, whole) = peek(disk, PEEK)?;
    match detect::reach(&head).filter(|end| *end > PEEK) {
        Some(end) => peek(whole, end),
        None => Ok((head, whole)),
    }
}

/// The first bytes, so many, and the whole again.
fn peek(mut source: Source, length: usize) -> Result<(Vec<u8>, Source), IngestError> {
    let mut head = Vec::with_capacity(length);
    source
        .by_ref()
        .take(length as u64)
        .read_to_end(&mut head)
        .map_err(|error| IngestError::from_io("reading the source", error))?;
    let whole = Cursor::new(head.clone()).chain(source);
    Ok((head, Box::new(whole)))
}

/// Copies a qcow2 image into a file without a name, which is gone with its last handle.
fn spool(mut source: Source, rules: &Rules) -> Result<Qcow2, IngestError> {
    let failed = |error| IngestError::from_io("spooling the qcow2 image", error);
    let mut file = tempfile::tempfile_in(&rules.spool).map_err(failed)?;
    // A qcow2 file is little larger than the data in it; twice the limit is none of them.
    let most = rules.max_size.saturating_mul(2);
    let mut buffer = vec![0; 1 << 20];
    let (mut written, mut looked) = (0_u64, 0_u64);
    space(&rules.spool, 0)?;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        written += read as u64;
        if written > most {
            return Err(IngestError::TooLarge { limit: most });
        }
        if written - looked > LOOK {
            space(&rules.spool, 0)?;
            looked = written;
        }
        file.write_all(&buffer[..read]).map_err(failed)?;
    }
    file.rewind().map_err(failed)?;
    Qcow2::open(file, rules.max_size)
}

/// Refuses when the store's file system has no room for so many bytes.
///
/// # Errors
/// When there is too little, or it cannot be told.
pub fn space(folder: &std::path::Path, needed: u64) -> Result<(), IngestError> {
    let stat = nix::sys::statvfs::statvfs(folder).map_err(|errno| IngestError::Io {
        operation: "asking for the store's free space",
        source: errno.into(),
    })?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    let needed = needed.saturating_add(RESERVE);
    match free < needed {
        true => Err(IngestError::NoSpace { free, needed }),
        false => Ok(()),
    }
}

/// Fails when more comes than allowed.
struct Limited {
    inner: Source,
    left: u64,
    limit: u64,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => return Err(IngestError::TooLarge { limit: self.limit }.into_io()),
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
