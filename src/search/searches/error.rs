//! Why a search does not begin, or something cannot be done with it.

use super::NoRoom;
use crate::objects::contents::UploadError;
use crate::objects::{CommitError, StoreError};
use crate::search::filter::Busy;
use crate::search::query::QueryError;
use crate::search::results::ResultsError;

/// Why a search does not begin, or something cannot be done with it.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The query.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Too many run.
    #[error("{0} of your searches run, or wait to run, already: wait, or stop one (Search-Max-Per-User)")]
    TooMany(usize),
    /// All processes of filters are in use.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// All threads for searches are in use.
    #[error("too many searches run at this webserver; try again in a moment")]
    Crowded,
    /// Not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// A group of others.
    #[error("a search can be shared with groups of which one is a member")]
    NotMember,
    /// It still runs, or does not any more.
    #[error("{0}")]
    Conflict(String),
    /// The disk or the randomness of this machine.
    #[error("the results cannot be kept: {0}")]
    Io(#[from] std::io::Error),
    /// The results find no room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// What was brought is no archive.
    #[error("this is no archive of a search: {0}; download one with the format archive")]
    Archive(String),
    /// The results.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The log.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Making a content of them.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

impl From<StoreError> for SearchError {
    fn from(error: StoreError) -> Self {
        SearchError::Commit(error.into())
    }
}
