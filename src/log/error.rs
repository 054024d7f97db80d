//! What can go wrong with a log, one enum per operation.

use std::fmt;
use std::io;

use crate::codec::error::{DecodeError, EncodeError};
use crate::model::Seq;

/// What to do about a damaged log.
pub const REPAIR_REMEDY: &str = "bring back the file from a backup, or stop a member and rebuild the log from it with \
                                 `gravwell-logctl --data-dir DATASTORE repair --from MEMBER_DIR`";

/// Damage on the medium: which file, where, what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damage in {file} at byte {offset}: {what}: expected {expected}, found {found}")]
pub struct Damage {
    /// File name within the log's directory.
    pub file: String,
    /// Offset of the damaged structure within the file.
    pub offset: u64,
    /// The structure or rule that is broken.
    pub what: String,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Damage {
    /// Makes one.
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

    /// From a decoder's error about a structure that starts at `base`.
    pub fn decode(file: impl fmt::Display, base: u64, error: &DecodeError) -> Damage {
        Damage::new(file, base + error.offset as u64, error.what, &error.expected, &error.found)
    }
}

/// An input or output error with the file that it concerns.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct IoFailure {
    /// What was tried.
    pub action: &'static str,
    /// On which file or directory.
    pub path: String,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

impl IoFailure {
    /// Whether it says something of the medium, not of what the process lacks.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use io::ErrorKind::{OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        // Too many open files, of the process or of the system.
        let has_no_descriptor = matches!(self.source.raw_os_error(), Some(23 | 24));
        let lacks = [OutOfMemory, PermissionDenied, ReadOnlyFilesystem, StorageFull, QuotaExceeded];
        !has_no_descriptor && !lacks.contains(&self.source.kind())
    }

    /// For `map_err`.
    pub fn at(action: &'static str, path: impl fmt::Display) -> impl FnOnce(io::Error) -> IoFailure {
        let path = path.to_string();
        move |source| IoFailure { action, path, source }
    }
}

/// A log that cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The medium is damaged. Nothing is skipped or cut.
    #[error(
        "{first}{}; nothing was changed: `gravwell-logctl verify` lists every place; {REPAIR_REMEDY}",
        further(*more)
    )]
    Damaged {
        /// The first place.
        first: Damage,
        /// Number of further places found.
        more: usize,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// That there are further damaged places, where there are.
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

/// A batch that was not written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk is full. Nothing of the batch remains; writing may go on when there is space.
    #[error("the disk is full ({free} bytes free in {directory}): free space or let compaction run; reads go on")]
    Full {
        /// The log's directory.
        directory: String,
        /// Free bytes as far as known.
        free: u64,
    },
    /// A record cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The entries do not follow the head.
    #[error("a batch starts with sequence {found}, but the log goes on with {expected}")]
    Sequence {
        /// Next sequence of the log.
        expected: Seq,
        /// Sequence found in the batch.
        found: Seq,
    },
    /// The previous batch has not been synced: only one may ever be in flight.
    #[error("the previous batch has not been synced yet")]
    Unsynced,
    /// An earlier failure left the file in an unknown state: the process must stop and open the log again.
    #[error("the log cannot be written any more after an earlier failure: stop the process and open the log again")]
    Poisoned,
    /// Writing failed; the log is poisoned.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// Durability is unknown: the process must stop.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Syncing failed now or before.
    #[error("the log could not be made durable ({0}): stop the process; nothing since the last sync was acknowledged")]
    Io(#[from] IoFailure),
    /// See [`AppendError::Poisoned`].
    #[error("the log cannot be written any more after an earlier failure: stop the process and open the log again")]
    Poisoned,
}

impl From<crate::codec::block::BadBlock> for ReadError {
    fn from(error: crate::codec::block::BadBlock) -> ReadError {
        Damage::new("a segment", 0, "record", "an intact one", error).into()
    }
}

impl ReadError {
    /// Whether it says that what is stored is not what was written, or cannot be read back.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            ReadError::Compacted { .. } | ReadError::Beyond { .. } => false,
            ReadError::Damaged(_) => true,
            ReadError::Io(failure) => failure.is_damage(),
        }
    }
}

/// Records that cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They lie below the horizon.
    #[error("records after {from} are compacted: reading can start at {horizon} or later; take a snapshot")]
    Compacted {
        /// Where reading should have begun.
        from: Seq,
        /// Lowest sequence from which it can.
        horizon: Seq,
    },
    /// They lie beyond what is durable.
    #[error("sequence {seq} is beyond the head {head}")]
    Beyond {
        /// What was asked for.
        seq: Seq,
        /// What there is.
        head: Seq,
    },
    /// They are damaged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] IoFailure),
}
