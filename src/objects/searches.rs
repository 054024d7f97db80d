//! Searches as all webservers know them: query, owner, progress, and the webserver that has the results.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::record::Stored;
use super::sharing::{ShareScope, Shareable, null_is_empty};
use super::{Store, StoreError, Timestamp};

/// State of a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is running.
    #[default]
    Running,
    /// All results are complete.
    Done,
    /// A user or a limit stopped it; results found so far are kept.
    Stopped,
    /// It failed; the results found so far are kept.
    Failed,
    /// Its webserver exited while it was running; the results found so far are kept.
    Interrupted,
    /// A state from a later version.
    #[serde(other)]
    Unknown,
}

/// A search.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Search {
    /// Id of the search: decimal digits.
    #[serde(rename = "ID")]
    pub id: String,
    /// UID of the owner.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// GIDs of groups that may read it.
    #[serde(rename = "GIDs", default, deserialize_with = "null_is_empty")]
    pub gids: Vec<i32>,
    /// Whether all users may read it.
    #[serde(default)]
    pub global: bool,
    /// Query as entered by the user.
    pub user_query: String,
    /// Query that was executed, if it differs from the entered one.
    #[serde(default)]
    pub effective_query: String,
    /// Tags of the query; rows refer to them by index.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Columns, if the query defines them.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// Start of the time range, inclusive.
    pub start_range: Timestamp,
    /// End of the time range, exclusive.
    pub end_range: Timestamp,
    /// Time at which it started.
    pub started: Timestamp,
    /// Time of the last write of this object.
    pub updated: Timestamp,
    /// Run time in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// Current state.
    #[serde(default)]
    pub state: State,
    /// Number of result rows.
    #[serde(default)]
    pub rows: u64,
    /// Size of the results in bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Number of rows examined.
    #[serde(default)]
    pub rows_in: u64,
    /// Whether results were dropped because of a limit.
    #[serde(default)]
    pub over_limit: bool,
    /// Reason why it failed or was stopped.
    #[serde(default)]
    pub error: String,
    /// Warnings for readers of the results.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Name of the webserver that has the results.
    pub webserver: String,
    /// Whether it continues when no client is attached.
    #[serde(default)]
    pub background: bool,
    /// Blob with the results, once saved: from then on every webserver has them.
    #[serde(default)]
    pub content: String,
    /// Time at which it is deleted; never if it was saved that way.
    #[serde(default)]
    pub expires: Timestamp,
    /// Whether it is excluded from the history.
    #[serde(default)]
    pub no_history: bool,
    /// Display name.
    #[serde(default)]
    pub name: String,
    /// Notes by users.
    #[serde(default)]
    pub notes: String,
    /// How it was started: manually, by a dashboard and so on.
    #[serde(default)]
    pub method: String,
    /// Identifies the object that started it.
    #[serde(default)]
    pub reference: String,
    /// Arbitrary data stored for clients.
    #[serde(default)]
    pub metadata: Option<Box<RawValue>>,
    /// Origin of results that were imported from an archive.
    #[serde(default)]
    pub imported: Option<Imported>,
}

/// Origin of an imported archive of results.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Imported {
    /// Time of the import.
    pub time: Timestamp,
    /// Name chosen by its owner.
    #[serde(default)]
    pub batch_name: String,
    /// Description by its owner.
    #[serde(default)]
    pub batch_info: String,
}

impl Stored for Search {
    const COLLECTION: &'static str = "searches";
    fn key(&self) -> String {
        self.id.clone()
    }
}

impl Shareable for Search {
    fn owner(&self) -> i32 {
        self.uid
    }
    fn readers(&self) -> ShareScope {
        ShareScope { global: self.global, groups: self.gids.clone() }
    }
    fn writers(&self) -> ShareScope {
        ShareScope::default()
    }
}

impl Search {
    /// Returns the query that was executed.
    #[must_use]
    pub fn ran(&self) -> &str {
        if self.effective_query.is_empty() { &self.user_query } else { &self.effective_query }
    }

    /// Returns the name of the state.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self.state {
            State::Running => "running",
            State::Done => "done",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Interrupted => "interrupted",
            State::Unknown => "unknown",
        }
    }

    /// Returns whether its results are kept permanently.
    #[must_use]
    pub fn is_saved(&self) -> bool {
        !self.content.is_empty()
    }
}

/// Returns the blobs that searches reference.
///
/// # Errors
/// If the state is corrupt, or a search is invalid: it could reference any blob.
pub fn referenced_blobs(store: &Store) -> Result<HashSet<String>, StoreError> {
    let mut named = HashSet::new();
    store.each_whole::<Search>("", |search| named.extend([search.content]))?;
    named.remove("");
    Ok(named)
}
