//! The sealed image: format, packing, verifying, planning a write.
//!
//! An image is two files. `data.zst` is a zstd file of independent frames, one for each slice of
//! the raw disk, in order: `zstd -dc data.zst` gives back the disk. `manifest.json` is a
//! [`SignedManifest`]: it lists every frame with its place in `data.zst` and the BLAKE3 digest
//! of the slice it decodes to, or says that the slice is all zero. Zero slices have a (tiny)
//! frame too, so that the file stays a plain zstd file, but nobody needs to fetch it. After the
//! frames comes a seek table in the zstd seekable format, for readers that are not ours.
//!
//! | who | uses |
//! |---|---|
//! | ingest | [`pack()`], [`Packed::into_manifest`], [`SignedManifest::sign`], [`verify_store`] |
//! | agent | [`SignedManifest::open`], [`WritePlan`], [`FrameReader`] or [`decode_frame`] |
//! | all who meet a GPT | [`gpt`] |
//!
//! Invariants: a [`Manifest`] in memory obeys its limits, because there is no other way to make
//! one; bytes that come out of [`FrameReader`] and [`decode_frame`] have the digest that the
//! manifest names; packing the same disk with the same options gives the same bytes.
//!
//! Not here: network, async, TLS, the daemon's catalog, the agent's disk.

mod decode;
pub mod gpt;
mod manifest;
mod pack;
mod plan;
mod proof;
mod seek;
mod sign;
mod table;
mod verify;
mod wire;

pub use decode::{Encoded, FrameDecoder, FrameError, FrameReader, decode_frame, is_slice};
pub use manifest::{
    DEFAULT_FRAME_SIZE, FORMAT, Frame, MAX_FRAME_SIZE, MAX_FRAMES, MAX_MANIFEST_BYTES,
    MIN_FRAME_SIZE, Manifest, ManifestError, SECTOR, check_os, check_os_version,
};
pub use pack::{Facts, PackError, PackOptions, Packed, pack};
pub use plan::{DiskTooSmall, END_OF_DISK, WritePlan};
pub use proof::{MAX_PROOF_TEXT, Proof, ProofMethod};
pub use sign::{KeyError, PublicKey, SignedManifest, SigningKey};
pub use table::{
    Grow, GrowError, Grown, HEAD, MAX_PARTITION_NUMBER, MAX_PARTITIONS, Partition, Table,
    TableKind, grow, may_grow,
};
pub use verify::{VerifyError, verify_store};
