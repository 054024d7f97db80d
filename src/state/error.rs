//! Errors of a state, and what the caller has to do about them.

use std::path::PathBuf;

use gravwell_model::{Digest, Seq};

/// A failed operation on a state.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// Another process has the state open.
    #[error("the state in {} is in use by another process; stop that process, or use its interface", dir.display())]
    Locked {
        /// Directory of the state.
        dir: PathBuf,
    },
    /// The system does not provide what opening needs; the state may be intact.
    #[error("cannot open the state in {}: {cause}; it may be intact; provide the missing resource or permission and \
             restart the process", dir.display())]
    Unavailable {
        /// Directory of the state.
        dir: PathBuf,
        /// Error message of the system.
        cause: String,
    },
    /// The storage is being reopened; nothing can be read until then.
    #[error("cannot read the state in {} now: its storage stopped ({cause}) and is being reopened; try again in a \
             moment", dir.display())]
    NotNow {
        /// Directory of the state.
        dir: PathBuf,
        /// Reason why the storage stopped.
        cause: String,
    },
    /// The engine cannot interpret its files.
    #[error("the state in {} cannot be opened ({cause}): it must be rebuilt", dir.display())]
    Unreadable {
        /// Directory of the state.
        dir: PathBuf,
        /// Error message of the engine.
        cause: String,
    },
    /// The engine found damage in its own files while reading.
    #[error("reading the state failed ({cause}): it must be rebuilt")]
    ReadFailed {
        /// Error message of the engine.
        cause: String,
    },
    /// The engine failed and accepts no more writes; its contents in memory can no longer be trusted.
    #[error("the state's storage failed ({cause}), so the process must stop; check the disk and restart the process")]
    Stopped {
        /// Error message of the engine.
        cause: String,
    },
    /// A row is corrupt.
    #[error("the state is damaged: table {table}, key {key}: {what}; it must be rebuilt")]
    Damaged {
        /// Name of the table.
        table: &'static str,
        /// Key of the row in readable form.
        key: String,
        /// Description of the damage.
        what: String,
    },
    /// The rows do not add up to the expected digest.
    #[error("the state is inconsistent: its digest is {found}, expected {expected}; it must be rebuilt")]
    DigestMismatch {
        /// The expected digest.
        expected: Digest,
        /// The digest of the rows.
        found: Digest,
    },
    /// The store is new or was never completed.
    #[error("the state has no position: it is new or incomplete")]
    Uninitialised,
    /// The store has rows but no position: its creation was interrupted.
    #[error("the state has rows but no position: loading it was interrupted; delete the state directory and restart")]
    Unfinished,
    /// Values are withheld from the state, so it cannot replace a log or another state.
    #[error(
        "the state lacks the values that are withheld from readers; use the state of a webserver or of the datastore, \
         or write out the available values with `export`"
    )]
    Redacted,
    /// The entry lacks withheld values, but the state has to hold all values.
    #[error(
        "entry {seq} lacks values that are withheld from readers, but the state has all values; the state must be \
         fetched again"
    )]
    RedactedEntry {
        /// Sequence of the entry.
        seq: Seq,
    },
    /// The store already contains a state.
    #[error("a state at sequence {seq} already exists; use an empty directory")]
    AlreadyInitialised {
        /// Sequence of that state.
        seq: Seq,
    },
    /// The entries do not continue the state.
    #[error("cannot apply entry {found}: the state expects {expected}")]
    OutOfOrder {
        /// The next sequence of the state.
        expected: Seq,
        /// The sequence found in the entries.
        found: Seq,
    },
}

/// The action that a [`StateError`] requires of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Stop the process: a retry could acknowledge lost changes.
    Stop,
    /// Discard the directory and rebuild the state from its source.
    Rebuild,
    /// The call was rejected and changed nothing; the state is intact.
    Refused,
}

impl StateError {
    /// Returns whether the error means that stored data is corrupt.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let is_new = matches!(self, StateError::Uninitialised | StateError::Unfinished);
        self.remedy() == Remedy::Rebuild && !is_new
    }

    /// Returns the action required of the caller.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            StateError::Stopped { .. } => Remedy::Stop,
            StateError::Unreadable { .. }
            | StateError::ReadFailed { .. }
            | StateError::Damaged { .. }
            | StateError::DigestMismatch { .. }
            | StateError::Unfinished
            | StateError::Uninitialised => Remedy::Rebuild,
            StateError::Locked { .. }
            | StateError::Unavailable { .. }
            | StateError::NotNow { .. }
            | StateError::AlreadyInitialised { .. }
            | StateError::Redacted
            | StateError::RedactedEntry { .. }
            | StateError::OutOfOrder { .. } => Remedy::Refused,
        }
    }
}
