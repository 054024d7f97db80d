//! What can go wrong with chunks.

use std::io;

use crate::model::ChunkId;

/// A place in a file of the store that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damage in {file} at byte {offset}: {what}{}", self.id.map(|id| format!(" (chunk {id})")).unwrap_or_default())]
pub struct Damage {
    /// The chunk that is lost there, as far as it can be told.
    pub id: Option<ChunkId>,
    /// File name within the store's directory.
    pub file: String,
    /// Where the damaged structure begins.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// Why the store refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The bytes of a chunk are not what was written. It counts as missing from now on, and writing it again replaces
    /// it.
    #[error(
        "chunk {id} is damaged in {file} at byte {offset} ({what}): it counts as missing until it is fetched again"
    )]
    Damaged {
        /// The chunk.
        id: ChunkId,
        /// File name within the store's directory.
        file: String,
        /// Offset of its frame.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The bytes are another chunk's.
    #[error("these {bytes} bytes are chunk {found}, not {id}: they were changed on the way; send them again")]
    Mismatch {
        /// The name that was given.
        id: ChunkId,
        /// The name of the bytes.
        found: ChunkId,
        /// How many bytes.
        bytes: usize,
    },
    /// Chunks are bounded.
    #[error("a chunk of {found} bytes: at most {allowed} are allowed")]
    TooLong {
        /// Bytes given.
        found: usize,
        /// Greatest length.
        allowed: usize,
    },
    /// There is no space for more chunks; reading and collecting go on.
    #[error(
        "no space for chunks in {directory}: {free} bytes are free, and {reserve} stay free for the log; remove resources \
         or free space, then collect; reading goes on"
    )]
    Full {
        /// The store's directory.
        directory: String,
        /// Free bytes, as far as known.
        free: u64,
        /// Bytes that the store leaves free.
        reserve: u64,
    },
    /// An earlier sync failed, so what is on the disk is unknown.
    #[error(
        "chunks cannot be written any more after a failed sync: stop the process and start it again; reading goes on"
    )]
    Poisoned,
    /// The operating system refuses.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl ChunkError {
    /// Whether it says that what is stored is not what was written.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, ChunkError::Damaged { .. })
    }

    /// For `map_err`.
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
