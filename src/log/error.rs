//! Errors of the log, one enum per operation.

use std::fmt;
use std::io;

use gravwell_model::Seq;
use gravwell_model::codec::error::{DecodeError, EncodeError};

/// Remedy for a damaged log.
pub const REPAIR_REMEDY: &str = "restore the file from a backup, or stop a member and rebuild the log from it with \
                                 `gravwell-logctl --data-dir DATASTORE repair --from MEMBER_DIR`";

/// Damage on the storage medium: file, offset, expected value and value found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damage in {file} at byte {offset}: {what}: expected {expected}, found {found}")]
pub struct Damage {
    /// File name within the log's directory.
    pub file: String,
    /// Offset of the damaged structure within the file.
    pub offset: u64,
    /// The structure that is damaged or the rule that is violated.
    pub what: String,
    /// The expected value.
    pub expected: String,
    /// The value found.
    pub found: String,
}

impl Damage {
    /// Creates a damage report.
    pub fn new(
        file: impl fmt::Display,
        offset: u64,
        what: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Damage {
        Damage {
            file: file.to_string(),
            offset,
            what: what.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Converts the error of a decoder for a structure that starts at offset `base`.
    pub fn decode(file: impl fmt::Display, base: u64, error: &DecodeError) -> Damage {
        Damage::new(file, base + error.offset as u64, error.what, &error.expected, &error.found)
    }
}

/// An I/O error with the file it concerns.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct IoFailure {
    /// The operation that failed.
    pub action: &'static str,
    /// The file or directory.
    pub path: String,
    /// The error from the operating system.
    #[source]
    pub source: io::Error,
}

impl IoFailure {
    /// Returns whether the error points to the medium rather than to a lack of space, memory, permission or descriptors.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use io::ErrorKind::{OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        // `ENFILE` and `EMFILE`: too many open files in the system or in the process.
        let has_no_descriptor = matches!(self.source.raw_os_error(), Some(23 | 24));
        let lacks = [OutOfMemory, PermissionDenied, ReadOnlyFilesystem, StorageFull, QuotaExceeded];
        !has_no_descriptor && !lacks.contains(&self.source.kind())
    }

    /// Returns a closure for `map_err`.
    pub fn at(action: &'static str, path: impl fmt::Display) -> impl FnOnce(io::Error) -> IoFailure {
        let path = path.to_string();
        move |source| IoFailure { action, path, source }
    }
}

/// The log cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The medium is damaged. Nothing is skipped or truncated.
    #[error(
        "{first}{}; nothing was changed; run `gravwell-logctl verify` for a full list; {REPAIR_REMEDY}",
        further(*more)
    )]
    Damaged {
        /// The first damaged place.
        first: Damage,
        /// Number of further damaged places.
        more: usize,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// Returns a suffix that counts further damaged places; empty if there are none.
#[must_use]
pub fn further(more: usize) -> String {
    match more {
        0 => String::new(),
        1 => " (and 1 further damaged place)".into(),
        more => format!(" (and {more} further damaged places)"),
    }
}

impl From<Damage> for OpenError {
    fn from(first: Damage) -> OpenError {
        OpenError::Damaged { first, more: 0 }
    }
}

/// A batch was not written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk is full. No part of the batch remains; writing can resume when there is space.
    #[error("the disk is full ({free} bytes free in {directory}); free space or let compaction run; reads continue")]
    Full {
        /// Directory of the log.
        directory: String,
        /// Free bytes, as far as known.
        free: u64,
    },
    /// A record cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The entries do not follow the head.
    #[error("batch starts at sequence {found}, expected {expected}")]
    Sequence {
        /// Next sequence of the log.
        expected: Seq,
        /// Sequence found in the batch.
        found: Seq,
    },
    /// The previous batch has not been synced: at most one batch may be in flight.
    #[error("the previous batch has not been synced yet")]
    Unsynced,
    /// An earlier failure left the file in an unknown state: the process must stop and reopen the log.
    #[error("the log cannot be written after an earlier failure; restart the process")]
    Poisoned,
    /// Writing failed; the log is poisoned.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// It is unknown whether the data is durable: the process must stop.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Syncing failed, now or earlier.
    #[error("cannot sync the log: {0}; stop the process; no entry since the last sync was acknowledged")]
    Io(#[from] IoFailure),
    /// See [`AppendError::Poisoned`].
    #[error("the log cannot be written after an earlier failure; restart the process")]
    Poisoned,
}

impl From<gravwell_model::codec::block::BadBlock> for ReadError {
    fn from(error: gravwell_model::codec::block::BadBlock) -> ReadError {
        Damage::new("a segment", 0, "record", "an intact record", error).into()
    }
}

impl ReadError {
    /// Returns whether stored data differs from the data written or cannot be read back.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            ReadError::Compacted { .. } | ReadError::Beyond { .. } => false,
            ReadError::Damaged(_) => true,
            ReadError::Io(failure) => failure.is_damage(),
        }
    }
}

/// Records cannot be returned.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The records are below the horizon.
    #[error("records after {from} are compacted; read from {horizon} or later, or fetch a snapshot")]
    Compacted {
        /// Sequence after which reading should have started.
        from: Seq,
        /// Lowest sequence after which reading can start.
        horizon: Seq,
    },
    /// The records are past the durable end.
    #[error("sequence {seq} is past the head {head}")]
    Beyond {
        /// The requested sequence.
        seq: Seq,
        /// The last durable sequence.
        head: Seq,
    },
    /// The records are damaged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] IoFailure),
}
