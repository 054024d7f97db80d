//! Contents of any size, as content-addressed chunks beside the log.
//!
//! A content is cut into chunks ([`cut`]); each is named by its hash and kept once, in packs ([`ChunkStore`]); the list
//! of a content's chunks is kept as chunks, too ([`manifest`]); what changed a little is sent as the difference from
//! chunks that the receiver has ([`pairing`], [`delta`]). `log-format.md`, *Chunk packs*, has the bytes.
//!
//! The rule for all who use this: a chunk may be *named* in the log only after [`ChunkStore::sync`] has returned behind
//! the last question or write that concerned it. A crash then leaves chunks that nothing names, which
//! [`ChunkStore::collect`] removes, and never a name without its chunk.
//!
//! The code is synchronous and knows no tokio; every method may be called from any thread.

mod collect;
mod compress;
pub mod cut;
pub mod delta;
pub mod error;
pub mod format;
mod hold;
mod index;
pub mod manifest;
mod pack;
pub mod pairing;
mod recovery;
mod scan;
mod store;
mod sync;
mod verify;

#[cfg(test)]
mod tests;

pub use collect::Collected;
pub use cut::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Cutter};
pub use error::{ChunkError, Damage};
pub use hold::{Cutoff, Hold};
pub use manifest::{PARTS_MAX, Part, decode_index, encode_index};
pub use recovery::OpenReport;
pub use store::{ChunkStats, ChunkStore};

/// How chunks are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreOptions {
    /// A pack is finished before a chunk would make it longer than this, in bytes; at most 1 GiB.
    pub pack_bytes: u64,
    /// Bytes of disk that are left free: chunks are refused before the log has no room, and collecting needs room, too.
    pub reserve_bytes: u64,
    /// A pack is rewritten when at least this part of it is of no use, from 0 to 1.
    pub garbage_ratio: f64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { pack_bytes: 128 << 20, reserve_bytes: 256 << 20, garbage_ratio: 0.3 }
    }
}
