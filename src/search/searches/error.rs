//! Error of starting a search or of an operation on it.

use super::NoSpace;
use crate::filter::Busy;
use crate::query::QueryError;
use crate::results::ResultsError;
use gravwell_objects::blobs::UploadError;
use gravwell_objects::{CommitError, StoreError};

/// Error of starting a search or of an operation on it.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The query is invalid.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Too many searches of the user are running or waiting.
    #[error("{0} of your searches are already running or waiting (Search-Max-Per-User); wait, or stop one")]
    TooMany(usize),
    /// All filter processes are in use.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// All search threads are in use.
    #[error("too many searches run at this webserver; try again in a moment")]
    Crowded,
    /// The user is not allowed to do this.
    #[error("{0}")]
    Forbidden(String),
    /// The user is not a member of a group with which to share.
    #[error("you are not a member of the group; share the search with your own groups")]
    NotMember,
    /// The operation does not fit the current state of the search.
    #[error("{0}")]
    Conflict(String),
    /// The disk or the random number generator failed.
    #[error("cannot store the results: {0}")]
    Io(#[from] std::io::Error),
    /// There is no disk space for the results.
    #[error(transparent)]
    NoRoom(#[from] NoSpace),
    /// The imported file is not a valid archive.
    #[error("not a search archive: {0}; download one in the format archive")]
    Archive(String),
    /// A text of an archive is too long.
    #[error("cannot import the archive: {0}")]
    Text(String),
    /// The results cannot be read.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The log rejected the change.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The results could not be stored as a blob.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

impl From<StoreError> for SearchError {
    fn from(error: StoreError) -> Self {
        SearchError::Commit(error.into())
    }
}
