//! The manifest as JSON: the order of its keys, and reading what may be hostile.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::manifest::{FORMAT, Frame, MAX_FRAMES, Manifest, ManifestError};
use crate::proof::Proof;
use crate::table::Table;

/// The canonical order of keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wire {
    format: u32,
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    os_version: Option<String>,
    size: u64,
    frame_size: u32,
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<Table>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof: Option<Proof>,
    #[serde(serialize_with = "write_frames", deserialize_with = "read_frames")]
    frames: Vec<Frame>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFrame {
    offset: u64,
    length: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    zero: bool,
}

fn write_frames<S: Serializer>(frames: &[Frame], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(frames.iter().map(|frame| WireFrame {
        offset: frame.offset,
        length: frame.length,
        digest: frame.digest.map(hex::encode),
        zero: frame.digest.is_none(),
    }))
}

fn read_frames<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Frame>, D::Error> {
    let most = usize::try_from(MAX_FRAMES).unwrap_or(usize::MAX);
    bounded(from, most, "frames", |index, frame: WireFrame| {
        let digest = match (frame.digest, frame.zero) {
            (Some(text), false) => Some(
                digest_of(&text)
                    .ok_or_else(|| format!("digest of frame {index} is not {DIGEST}"))?,
            ),
            (None, true) => None,
            _ => {
                return Err(format!("frame {index} must have either a digest or zero"));
            }
        };
        Ok(Frame {
            offset: frame.offset,
            length: frame.length,
            digest,
        })
    })
}

/// Reads a list, converts each item at once, and stops at `most`: a hostile manifest costs no
/// more memory than a good one.
pub(crate) fn bounded<'de, D, T, U>(
    from: D,
    most: usize,
    what: &'static str,
    convert: impl Fn(usize, T) -> Result<U, String>,
) -> Result<Vec<U>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, F>(usize, &'static str, F, PhantomData<T>);
    impl<'de, T, U, F> Visitor<'de> for List<T, F>
    where
        T: Deserialize<'de>,
        F: Fn(usize, T) -> Result<U, String>,
    {
        type Value = Vec<U>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {} {}", self.0, self.1)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<U>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element()? {
                if all.len() == self.0 {
                    return Err(A::Error::custom(format!(
                        "more than the {} {} allowed",
                        self.0, self.1
                    )));
                }
                all.push((self.2)(all.len(), item).map_err(A::Error::custom)?);
            }
            Ok(all)
        }
    }
    from.deserialize_seq(List(most, what, convert, PhantomData))
}

const DIGEST: &str = "64 lower-case hex digits";

fn digest_of(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    // Upper-case hex would be a second spelling of the same manifest.
    let lower = !text.bytes().any(|c| c.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

impl TryFrom<Wire> for Manifest {
    type Error = ManifestError;

    fn try_from(wire: Wire) -> Result<Self, ManifestError> {
        if wire.format != FORMAT {
            return Err(ManifestError::Invalid(format!(
                "format {} is not supported, this is a reader of format {FORMAT}",
                wire.format
            )));
        }
        Self {
            sha256: digest_of(&wire.sha256)
                .ok_or_else(|| ManifestError::Invalid(format!("sha256 is not {DIGEST}")))?,
            os: wire.os,
            os_version: wire.os_version,
            size: wire.size,
            frame_size: wire.frame_size,
            table: wire.table,
            proof: wire.proof,
            frames: wire.frames,
        }
        .checked()
    }
}

impl From<Manifest> for Wire {
    fn from(manifest: Manifest) -> Self {
        Self {
            format: FORMAT,
            sha256: manifest.sha256(),
            os: manifest.os,
            os_version: manifest.os_version,
            size: manifest.size,
            frame_size: manifest.frame_size,
            table: manifest.table,
            proof: manifest.proof,
            frames: manifest.frames,
        }
    }
}
