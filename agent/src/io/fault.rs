//! What can be wrong with a source of image data, in words and by consequence.

use std::fmt;

use anneal_protocol::agent::FailureCode;

/// Why a request for image data brought less than was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No connection, or it broke before an answer came.
    Unreachable(String),
    /// 5xx, 408 or 429.
    Busy(u16),
    /// Another 4xx, or an answer that makes no sense.
    Refused(u16),
    /// It answered a range with the whole file, or with another range.
    NoRange(String),
    /// The header promised another length than the range has.
    Length {
        /// Bytes asked for.
        asked: u64,
        /// Bytes promised.
        promised: u64,
    },
    /// Its file is shorter than the image's data.
    Short {
        /// Bytes there, if it says so.
        there: Option<u64>,
        /// Bytes that the manifest says.
        expected: u64,
    },
    /// The answer ended before all that it promised had come.
    Cut {
        /// Byte of the data at which it ended.
        at: u64,
    },
    /// Too little came for too long.
    Stalled {
        /// Seconds it was waited for.
        seconds: u64,
        /// Byte of the data at which it stopped.
        at: u64,
    },
    /// A frame is not what the manifest says.
    Corrupt {
        /// Index of the frame.
        frame: usize,
    },
}

/// What follows from a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gravity {
    /// May be gone in a moment.
    Passing,
    /// Will be the same next time, unless somebody repairs the source.
    Lasting,
    /// The source is not to be asked again.
    Fatal,
}

impl Fault {
    /// How bad it is.
    #[must_use]
    pub fn gravity(&self) -> Gravity {
        match self {
            Self::Corrupt { .. } => Gravity::Fatal,
            Self::Refused(_) | Self::NoRange(_) | Self::Length { .. } | Self::Short { .. } => {
                Gravity::Lasting
            }
            Self::Unreachable(_) | Self::Busy(_) | Self::Cut { .. } | Self::Stalled { .. } => {
                Gravity::Passing
            }
        }
    }

    /// The word for a step that fails of it.
    #[must_use]
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Corrupt { .. } => FailureCode::ImageCorrupt,
            Self::Short { .. } | Self::Cut { .. } | Self::Length { .. } => {
                FailureCode::ImageTruncated
            }
            Self::Stalled { .. } => FailureCode::ImageStalled,
            Self::Unreachable(_) | Self::Busy(_) | Self::Refused(_) | Self::NoRange(_) => {
                FailureCode::Server
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Self::Busy(status) => write!(f, "answers {status}"),
            Self::Refused(status) => write!(f, "refuses with {status}"),
            Self::NoRange(what) => write!(f, "does not answer with the range asked for: {what}"),
            Self::Length { asked, promised } => {
                write!(f, "promises {promised} bytes for a range of {asked}")
            }
            Self::Short { there, expected } => match there {
                Some(there) => {
                    write!(
                        f,
                        "truncated: it ends at byte {there}, the manifest says {expected}"
                    )
                }
                None => write!(
                    f,
                    "truncated: it ends before byte {expected}, where the manifest says"
                ),
            },
            Self::Cut { at } => write!(f, "truncated: the answer ended early, at byte {at}"),
            Self::Stalled { seconds, at } => {
                write!(
                    f,
                    "stalled: next to nothing came for {seconds} s at byte {at}"
                )
            }
            Self::Corrupt { frame } => {
                write!(
                    f,
                    "sent wrong bytes: frame {frame} does not match the manifest"
                )
            }
        }
    }
}
