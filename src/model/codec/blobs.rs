//! Replies of the `blobs` commands, in JSON.

use serde::{Deserialize, Serialize};

/// A blob with its chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Key of the blob's object.
    pub content: String,
    /// Names of the resources that reference it.
    pub resources: Vec<String>,
    /// Length in bytes.
    pub size: u64,
    /// Known chunks. The chunks in missing index chunks are unknown.
    pub chunks: u64,
    /// Missing chunks.
    pub missing: u64,
    /// IDs of some missing chunks.
    pub missing_ids: Vec<String>,
    /// Whether it is known that no reachable member has them.
    pub lost: bool,
}

/// Statistics of the chunk store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStats {
    /// Blobs that the state references.
    pub contents: u64,
    /// Total length of all blobs, each counted once per reference.
    pub content_bytes: u64,
    /// Blobs with missing chunks.
    pub incomplete: u64,
    /// Chunks in the store.
    pub chunks: u64,
    /// Their total length before compression.
    pub raw_bytes: u64,
    /// Their total length as stored.
    pub stored_bytes: u64,
    /// Pack files.
    pub packs: u64,
    /// Total length of the pack files.
    pub file_bytes: u64,
    /// Bytes of garbage in the pack files, reclaimed by garbage collection.
    pub garbage_bytes: u64,
    /// Corrupt chunks that were not replaced yet.
    pub damaged: u64,
}

/// Result of verifying all chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobReport {
    /// Whether all referenced chunks are present and intact.
    pub ok: bool,
    /// Chunks checked.
    pub chunks: u64,
    /// Corrupt locations. Their chunks are fetched again from a member that has them.
    pub damages: Vec<String>,
    /// Chunks that were repaired before this reply.
    pub healed: u64,
    /// Blobs with missing chunks.
    pub incomplete: Vec<BlobInfo>,
}

/// Result of a garbage collection of chunks, or of a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobCollection {
    /// Whether this was a dry run that changed nothing.
    pub dry_run: bool,
    /// Chunks that the state references.
    pub live: u64,
    /// Chunks removed.
    pub chunks: u64,
    /// Their total length before compression.
    pub raw_bytes: u64,
    /// Unreferenced chunks that were kept because they were written or queried recently.
    pub kept_in_grace: u64,
    /// Bytes of disk space freed.
    pub freed_bytes: u64,
    /// Reason why a part was postponed to the next collection; empty if nothing was.
    pub postponed: String,
}
