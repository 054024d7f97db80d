//! Blobs of any size, stored as content-addressed chunks alongside the log.
//!
//! A blob is split into chunks ([`chunking`]). Each chunk is identified by its hash and stored once, in pack files
//! ([`ChunkStore`]). The list of a blob's chunks is stored in chunks as well ([`manifest`]). A chunk that changed
//! little is sent as the difference from chunks that the receiver already has ([`delta_base`], [`delta`]). For the byte
//! layouts, see `log-format.md`, *Chunk packs*.
//!
//! Rule for all callers: the log may *reference* a chunk only after [`ChunkStore::sync`] has returned, called after the
//! last query or write that concerned the chunk. A crash can then leave unreferenced chunks, which
//! [`ChunkStore::collect`] removes, but never a reference to a chunk that does not exist.
//!
//! The code is synchronous and independent of tokio; every method may be called from any thread.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod chunking;
mod compress;
pub mod delta;
pub mod delta_base;
pub mod error;
pub mod format;
mod gc;
mod gc_pin;
mod index;
pub mod manifest;
mod pack;
mod recovery;
mod scan;
mod store;
mod sync;
mod verify;

#[cfg(test)]
mod tests;

pub use chunking::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Chunker};
pub use error::{ChunkError, Damage};
pub use gc::GcReport;
pub use gc_pin::{GcCutoff, GcPin};
pub use manifest::{PARTS_MAX, Part, decode_index, encode_index};
pub use recovery::OpenReport;
pub use store::{ChunkStats, ChunkStore};

/// Options of a chunk store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreOptions {
    /// Maximum length of a pack in bytes, at most 1 GiB. A pack is finished before a chunk would exceed it.
    pub pack_bytes: u64,
    /// Bytes of disk space to leave free. Chunks are rejected before the log runs out of space, and garbage collection
    /// needs space as well.
    pub reserve_bytes: u64,
    /// Share of garbage, from 0 to 1, at which a pack is rewritten.
    pub garbage_ratio: f64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { pack_bytes: 128 << 20, reserve_bytes: 256 << 20, garbage_ratio: 0.3 }
    }
}
