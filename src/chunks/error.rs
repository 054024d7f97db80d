//! Errors of the chunk store.

use std::io;

use gravwell_model::ChunkId;

/// A corrupt location in a file of the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damage in {file} at byte {offset}: {what}{}", self.id.map(|id| format!(" (chunk {id})")).unwrap_or_default())]
pub struct Damage {
    /// The chunk lost there, if known.
    pub id: Option<ChunkId>,
    /// File name within the store's directory.
    pub file: String,
    /// Offset of the corrupt structure.
    pub offset: u64,
    /// Description of the problem.
    pub what: String,
}

/// Error of a chunk store operation.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The stored bytes of a chunk are corrupt. The chunk is treated as missing until it is written again.
    #[error(
        "chunk {id} is damaged in {file} at byte {offset} ({what}); it is treated as missing until it is fetched again"
    )]
    Damaged {
        /// ID of the chunk.
        id: ChunkId,
        /// File name within the store's directory.
        file: String,
        /// Offset of its frame.
        offset: u64,
        /// Description of the problem.
        what: String,
    },
    /// The bytes belong to another chunk.
    #[error("these {bytes} bytes are chunk {found}, not {id}: they were changed in transit; send them again")]
    Mismatch {
        /// ID given by the caller.
        id: ChunkId,
        /// ID computed from the bytes.
        found: ChunkId,
        /// Number of bytes given.
        bytes: usize,
    },
    /// The chunk is longer than allowed.
    #[error("a chunk has {found} bytes, but at most {allowed} are allowed")]
    TooLong {
        /// Number of bytes given.
        found: usize,
        /// Maximum length.
        allowed: usize,
    },
    /// There is no space for more chunks. Reading and garbage collection still work.
    #[error(
        "no space for chunks in {directory}: {free} bytes are free, and {reserve} are reserved for the log; remove \
         resources or free space, then collect; reading continues"
    )]
    Full {
        /// The store's directory.
        directory: String,
        /// Free bytes, or 0 if unknown.
        free: u64,
        /// Bytes that the store leaves free.
        reserve: u64,
    },
    /// An earlier sync failed, so it is unknown which bytes reached the disk.
    #[error("chunks cannot be written after a failed sync; restart the process; reading continues")]
    Poisoned,
    /// An operation of the file system failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The file or directory concerned.
        path: String,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
}

impl ChunkError {
    /// Returns whether stored bytes are corrupt.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, ChunkError::Damaged { .. })
    }

    /// Returns a closure for `map_err`.
    pub(super) fn io(action: &'static str, path: impl std::fmt::Display) -> impl FnOnce(io::Error) -> ChunkError {
        let path = path.to_string();
        move |source| ChunkError::Io { action, path, source }
    }
}

impl From<Damage> for ChunkError {
    fn from(damage: Damage) -> ChunkError {
        match damage.id {
            Some(id) => ChunkError::Damaged { id, file: damage.file, offset: damage.offset, what: damage.what },
            None => ChunkError::Io { action: "read", path: damage.file, source: io::Error::other(damage.what) },
        }
    }
}
