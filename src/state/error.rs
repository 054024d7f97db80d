//! What can go wrong with a state, and what the caller must do about it.

use std::path::PathBuf;

use crate::model::{Digest, Seq};

/// A failed operation on a state.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// Another process has it open.
    #[error("the state in {} is in use by another process: stop that process, or ask it instead", dir.display())]
    Locked {
        /// Directory of the state.
        dir: PathBuf,
    },
    /// The system does not give what opening needs; the state may be sound.
    #[error("the state in {} cannot be opened ({cause}): it may be sound; give the process what it lacks and start it again", dir.display())]
    Unavailable {
        /// Directory of the state.
        dir: PathBuf,
        /// The system's words.
        cause: String,
    },
    /// Its storage is being opened again, and nothing can be read until it is.
    #[error("the state in {} cannot be read now: its storage stopped ({cause}) and is being opened again; try again in a moment", dir.display())]
    NotNow {
        /// Directory of the state.
        dir: PathBuf,
        /// Why it stopped.
        cause: String,
    },
    /// The engine cannot make sense of its files.
    #[error("the state in {} cannot be opened ({cause}): it must be rebuilt", dir.display())]
    Unreadable {
        /// Directory of the state.
        dir: PathBuf,
        /// The engine's words.
        cause: String,
    },
    /// The engine found its own files damaged while reading.
    #[error("reading the state failed ({cause}): it must be rebuilt")]
    ReadFailed {
        /// The engine's words.
        cause: String,
    },
    /// The engine failed and takes no more writes; what it holds in memory can no longer be trusted.
    #[error("the state's storage failed ({cause}): the process must stop; check the disk and start it again")]
    Stopped {
        /// The engine's words.
        cause: String,
    },
    /// A row does not hold what was written.
    #[error("the state is damaged: table {table}, key {key}: {what}; it must be rebuilt")]
    Damaged {
        /// Name of the table.
        table: &'static str,
        /// The row's key, readable.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// The rows do not add up to the digest that they should have.
    #[error("the state is wrong: its digest is {found} where {expected} was expected; it must be rebuilt")]
    DigestMismatch {
        /// What it should be.
        expected: Digest,
        /// What the rows add up to.
        found: Digest,
    },
    /// The store was never finished or never begun.
    #[error("the state has no position: it is new or was never finished")]
    Uninitialised,
    /// The store holds rows but no position: filling it was interrupted.
    #[error("the state has rows but no position: filling it was interrupted; discard the directory and begin anew")]
    Unfinished,
    /// Values are withheld from the state, so it cannot take the place of a log or of another state.
    #[error(
        "the state does not hold the values that are withheld from readers: only a webserver's or the datastore's can be used; what it does hold can be written out with `export`"
    )]
    Redacted,
    /// An entry from which values are withheld, for a state that holds all values.
    #[error(
        "entry {seq} lacks values that are withheld from readers, and the state holds all values: it must be fetched anew"
    )]
    RedactedEntry {
        /// Its sequence.
        seq: Seq,
    },
    /// The store holds a state already.
    #[error("the state at sequence {seq} is in place already; a new one needs an empty directory")]
    AlreadyInitialised {
        /// Its sequence.
        seq: Seq,
    },
    /// Entries that do not continue the state.
    #[error("entry {found} cannot be applied: the state continues at {expected}")]
    OutOfOrder {
        /// The sequence that comes next.
        expected: Seq,
        /// The sequence that was offered.
        found: Seq,
    },
}

/// What a [`StateError`] asks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Stop the process: retrying could acknowledge what is lost.
    Stop,
    /// Discard the directory and rebuild the state from its source.
    Rebuild,
    /// The call was refused and changed nothing; the state is sound.
    Refused,
}

impl StateError {
    /// Whether it says that what is stored is not what was written.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let is_new = matches!(self, StateError::Uninitialised | StateError::Unfinished);
        self.remedy() == Remedy::Rebuild && !is_new
    }

    /// What to do about it.
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
