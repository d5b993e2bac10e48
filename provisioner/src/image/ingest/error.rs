//! Why an ingest did not become an image.

use std::io;

use anneal_image::PackError;

use crate::image::ImageError;
use crate::image::proof::ProofError;

/// Why an ingest did not become an image. [`IngestError::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The request cannot be carried out as it is.
    #[error("{0}")]
    Invalid(String),
    /// Content that is not read here; says what it is and what to do.
    #[error("{0}")]
    Format(String),
    /// The content is not what its own checks say.
    #[error("the {format} data is damaged near byte {at} of it, after {raw} decoded bytes: {what}")]
    Damaged {
        /// Which layer.
        format: &'static str,
        /// Byte of the encoded data.
        at: u64,
        /// Bytes that came out before.
        raw: u64,
        /// The decoder's word.
        what: String,
    },
    /// The content ends in the middle.
    #[error(
        "the {format} data ends in the middle, at byte {at} of it: the source was cut short, get it again"
    )]
    CutShort {
        /// Which layer.
        format: &'static str,
        /// Byte of the encoded data.
        at: u64,
    },
    /// Something follows that does not belong there.
    #[error(
        "something that is not {format} follows at byte {at} of the {format} data: refused, because what it is meant for is unknown"
    )]
    Trailing {
        /// Which layer.
        format: &'static str,
        /// Where it begins.
        at: u64,
    },
    /// A decompression bomb, or a disk larger than allowed.
    #[error(
        "the image is larger than {limit} bytes when decoded, refused by `images.max_size` in the daemon's settings"
    )]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The store cannot hold it.
    #[error(
        "the store has {free} bytes free, {needed} are needed: remove images or give it a larger disk"
    )]
    NoSpace {
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        needed: u64,
    },
    /// A part before this one ended without coming to its end; it says why.
    #[error("the source broke off before its end")]
    Broken,
    /// Where it comes from failed.
    #[error("{0}")]
    Source(String),
    /// The source is another one than when the download began.
    #[error(
        "{0} changed while it was downloaded: nothing was kept, add the image again when it is stable"
    )]
    Changed(String),
    /// Not a place that the daemon may fetch from.
    #[error("{0}")]
    Refused(String),
    /// The operating system cannot be told, or is another.
    #[error("{0}")]
    System(String),
    /// Bytes are not those of the digest that named them.
    #[error("{0}")]
    Digest(String),
    /// The publisher's proof does not hold, or cannot be checked.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// Stopped by somebody.
    #[error("{0}")]
    Cancelled(String),
    /// The daemon's own files failed while decoding.
    #[error("{operation}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Sealing or the catalog failed.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl IngestError {
    /// The stable code of the problem document; none: the catalog's error has its own.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Invalid(_) => "ingest-invalid",
            Self::Format(_) => "image-format",
            Self::Damaged { .. } | Self::Trailing { .. } => "image-damaged",
            Self::CutShort { .. } => "image-cut-short",
            Self::TooLarge { .. } => "image-too-large",
            Self::NoSpace { .. } => "image-no-space",
            Self::Broken | Self::Source(_) => "image-source-failed",
            Self::Changed(_) => "image-source-changed",
            Self::Refused(_) => "image-source-refused",
            Self::System(_) => "image-os",
            Self::Digest(_) => "image-digest-wrong",
            Self::Proof(error) => error.code(),
            Self::Cancelled(_) => "ingest-cancelled",
            Self::Io { .. } | Self::Image(_) => return None,
        })
    }

    /// As an I/O error, to pass through readers; [`IngestError::from_io`] gets it back.
    #[must_use]
    pub fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// What a reader's failure means.
    #[must_use]
    pub fn from_io(operation: &'static str, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(source) => Self::Io { operation, source },
        }
    }

    /// Whether this says no more than that a part before failed, which says why.
    #[must_use]
    pub fn is_consequence(&self) -> bool {
        match self {
            Self::Broken => true,
            Self::Image(ImageError::Pack(PackError::Read { source, .. })) => source
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<Self>())
                .is_some_and(Self::is_consequence),
            _ => false,
        }
    }

    /// Whether this I/O error carries one of ours.
    #[must_use]
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}
