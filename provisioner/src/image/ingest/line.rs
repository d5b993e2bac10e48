//! The thread of one ingest: published bytes in, raw disk out, and the publisher's proof checked
//! on the way.
//!
//! Invariant: the raw disk's end comes only after the published bytes ended, every check of their
//! format held, and the proof holds. So whoever packs the disk cannot come to an end before that.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use anneal_image::Proof;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::IngestError;
use super::pipe::{self, PIECE};
use super::raw::{self, Rules};
use crate::image::proof::Checker;

/// What is known once the beginning of the disk is there.
#[derive(Debug)]
pub struct Head {
    /// Layers, `qcow2 in xz`.
    pub format: String,
    /// The disk's first bytes.
    pub bytes: Vec<u8>,
    /// Name of the file inside an archive.
    pub inner_name: Option<String>,
    /// Bytes of the disk, if its format says so.
    pub size: Option<u64>,
    /// The published bytes are the disk itself.
    pub is_plain: bool,
}

/// The first cause of an ingest's failure. The parts run side by side: what one of them meets
/// because another failed may be told before the other tells why, and gives way to it.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<IngestError>>>);

impl Failure {
    /// Remembers an error, unless its cause, or an earlier one, is known.
    pub fn set(&self, error: IngestError) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(IngestError::is_consequence) {
            *first = Some(error);
        }
    }

    /// Takes it out.
    #[must_use]
    pub fn take(&self) -> Option<IngestError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The proof, once it has been checked.
pub type ProofSlot = Arc<Mutex<Option<Proof>>>;

/// What the thread works with.
pub struct Work {
    /// Published bytes.
    pub published: pipe::Receiver,
    /// What is allowed.
    pub rules: Rules,
    /// Checks the published bytes; none: unproven.
    pub checker: Option<Checker>,
    /// Told once.
    pub head: oneshot::Sender<Head>,
    /// Where the raw disk goes.
    pub raw: pipe::Sender,
    /// Where the proof goes.
    pub proof: ProofSlot,
    /// Where the first failure goes.
    pub failure: Failure,
}

/// Does the work on the calling thread, which it blocks.
pub fn run(work: Work) {
    let failure = work.failure.clone();
    if let Err(error) = carry_out(work) {
        failure.set(error);
    }
}

fn carry_out(work: Work) -> Result<(), IngestError> {
    let checker = Arc::new(Mutex::new(work.checker));
    let tap = Tap {
        inner: work.published,
        checker: Arc::clone(&checker),
    };
    let mut disk = raw::open(Box::new(tap), &work.rules)?;
    let head = Head {
        format: disk.format,
        bytes: disk.head,
        inner_name: disk.inner_name,
        size: disk.size,
        is_plain: disk.is_plain,
    };
    if work.head.send(head).is_err() {
        return Ok(());
    }
    loop {
        let piece = piece(&mut disk.reader)
            .map_err(|error| IngestError::from_io("reading the source", error))?;
        if piece.is_empty() {
            break;
        }
        if !work.raw.send_blocking(piece) {
            // Packing failed and says why.
            return Ok(());
        }
    }
    let checker = checker
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(checker) = checker {
        let proof = checker.finish()?;
        *work.proof.lock().unwrap_or_else(PoisonError::into_inner) = Some(proof);
    }
    work.raw.finish_blocking();
    Ok(())
}

/// The next bytes of the disk, [`PIECE`] of them unless it ends.
fn piece(reader: &mut impl Read) -> io::Result<Bytes> {
    let mut buffer = vec![0; PIECE];
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(Bytes::from(buffer))
}

/// Shows the checker every byte that passes.
struct Tap {
    inner: pipe::Receiver,
    checker: Arc<Mutex<Option<Checker>>>,
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let mut checker = self.checker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(checker) = checker.as_mut() {
            checker.update(&buffer[..read]);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use anneal_image::PackError;

    use super::*;
    use crate::image::ImageError;

    #[test]
    fn a_consequence_gives_way_to_its_cause_whoever_is_first() {
        let broken = || IngestError::Broken;
        let packing = || {
            let source = IngestError::Broken.into_io();
            IngestError::Image(ImageError::Pack(PackError::Read { at: 7, source }))
        };
        let cause = || IngestError::System("the cause".to_owned());
        let later = || IngestError::Source("later".to_owned());
        let disk = || {
            let source = io::Error::other("the disk");
            IngestError::Image(ImageError::Pack(PackError::Read { at: 7, source }))
        };
        type Order = Vec<fn() -> IngestError>;
        let cases: [(Order, IngestError); 5] = [
            (vec![broken, packing, cause, later], cause()),
            (vec![cause, packing, broken, later], cause()),
            (vec![packing, later, cause], later()),
            (vec![broken, disk, cause], disk()),
            (vec![broken], broken()),
        ];
        for (order, expected) in cases {
            let failure = Failure::default();
            order.iter().for_each(|error| failure.set(error()));
            let told = failure.take().map(|error| error.to_string());
            assert_eq!(told, Some(expected.to_string()));
            assert!(failure.take().is_none());
        }
    }
}
