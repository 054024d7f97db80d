//! What `blobs` lists, counts and finds, as JSON.

use serde::{Deserialize, Serialize};

/// One content with its chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Name of the content.
    pub content: String,
    /// Names of the resources that name it.
    pub resources: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// Chunks, as far as known: lists that are missing do not tell.
    pub chunks: u64,
    /// Chunks that are not here.
    pub missing: u64,
    /// Names of some of them.
    pub missing_ids: Vec<String>,
    /// Whether it is known that no member that could be asked has them.
    pub lost: bool,
}

/// The chunk store as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStats {
    /// Contents that the state names.
    pub contents: u64,
    /// Bytes of all contents, each counted as often as it is named.
    pub content_bytes: u64,
    /// Contents of which chunks are not here.
    pub incomplete: u64,
    /// Chunks in the store.
    pub chunks: u64,
    /// Their bytes before compression.
    pub raw_bytes: u64,
    /// Their bytes as they are kept.
    pub stored_bytes: u64,
    /// Files.
    pub packs: u64,
    /// Bytes of the files.
    pub file_bytes: u64,
    /// Bytes of the files that are of no use until they are collected.
    pub garbage_bytes: u64,
    /// Chunks found damaged and not replaced yet.
    pub damaged: u64,
}

/// What a verification of all chunks found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobReport {
    /// Whether everything that is named is here and sound.
    pub ok: bool,
    /// Chunks checked.
    pub chunks: u64,
    /// Places that are damaged. What was there is fetched again from a member that has it.
    pub damages: Vec<String>,
    /// Chunks that were fetched again before this answer.
    pub healed: u64,
    /// Contents that are not complete.
    pub incomplete: Vec<BlobInfo>,
}

/// What a collection of chunks did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobCollection {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Chunks that the state names.
    pub live: u64,
    /// Chunks removed.
    pub chunks: u64,
    /// Their bytes before compression.
    pub raw_bytes: u64,
    /// Chunks that nothing names and that were written or asked for too short a time ago.
    pub kept_in_grace: u64,
    /// Bytes of disk given back.
    pub freed_bytes: u64,
    /// Why something was left for the next time; empty when nothing was.
    pub postponed: String,
}
