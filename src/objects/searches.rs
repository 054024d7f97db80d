//! Searches as everybody knows them: who searched for what, how far it is, and which webserver has the results.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::record::Stored;
use super::sharing::{Audience, Shared, null_is_empty};
use super::{Moment, Store, StoreError};

/// How far a search is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs.
    #[default]
    Running,
    /// It has all results.
    Done,
    /// Somebody or a bound ended it; what it had found is kept.
    Stopped,
    /// It could not go on; what it had found is kept.
    Failed,
    /// Its webserver ended while it ran; what it had found is kept.
    Interrupted,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// One search.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Search {
    /// Name: decimal digits.
    #[serde(rename = "ID")]
    pub id: String,
    /// Owner.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Groups that may read it.
    #[serde(rename = "GIDs", default, deserialize_with = "null_is_empty")]
    pub gids: Vec<i32>,
    /// Whether everybody may read it.
    #[serde(default)]
    pub global: bool,
    /// What was typed.
    pub user_query: String,
    /// What was run, when that is not what was typed.
    #[serde(default)]
    pub effective_query: String,
    /// Tags of the query; rows name them by place.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Columns, if the query says so.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// First time.
    pub start_range: Moment,
    /// First time after it.
    pub end_range: Moment,
    /// When it began.
    pub started: Moment,
    /// When this was last written.
    pub updated: Moment,
    /// How long it ran, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// How far it is.
    #[serde(default)]
    pub state: State,
    /// Rows found.
    #[serde(default)]
    pub rows: u64,
    /// Bytes of the results.
    #[serde(default)]
    pub bytes: u64,
    /// Rows looked at.
    #[serde(default)]
    pub rows_in: u64,
    /// Whether results were left out because there is a limit.
    #[serde(default)]
    pub over_limit: bool,
    /// Why it failed or was ended.
    #[serde(default)]
    pub error: String,
    /// What a reader of the results should know.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The webserver that has the results.
    pub webserver: String,
    /// Whether it goes on when nobody looks.
    #[serde(default)]
    pub background: bool,
    /// The content with the results, once it was saved: then every webserver has them.
    #[serde(default)]
    pub content: String,
    /// When it is cleared away; never, if it was saved so.
    #[serde(default)]
    pub expires: Moment,
    /// Whether it is left out of the history.
    #[serde(default)]
    pub no_history: bool,
    /// Name for people.
    #[serde(default)]
    pub name: String,
    /// Notes of people.
    #[serde(default)]
    pub notes: String,
    /// How it was begun: manual, dashboard and so on.
    #[serde(default)]
    pub method: String,
    /// What began it.
    #[serde(default)]
    pub reference: String,
    /// Whatever a client wants kept.
    #[serde(default)]
    pub metadata: Option<Box<RawValue>>,
    /// Where results came from that were brought here as an archive.
    #[serde(default)]
    pub imported: Option<Imported>,
}

/// An archive of results that was brought here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Imported {
    /// When.
    pub time: Moment,
    /// What its owner calls it.
    #[serde(default)]
    pub batch_name: String,
    /// What its owner says of it.
    #[serde(default)]
    pub batch_info: String,
}

impl Stored for Search {
    const COLLECTION: &'static str = "searches";
    fn key(&self) -> String {
        self.id.clone()
    }
}

impl Shared for Search {
    fn owner(&self) -> i32 {
        self.uid
    }
    fn readers(&self) -> Audience {
        Audience { global: self.global, groups: self.gids.clone() }
    }
    fn writers(&self) -> Audience {
        Audience::default()
    }
}

impl Search {
    /// What was run.
    #[must_use]
    pub fn ran(&self) -> &str {
        if self.effective_query.is_empty() { &self.user_query } else { &self.effective_query }
    }

    /// How far it is, in one word.
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

    /// Whether its results are kept for good.
    #[must_use]
    pub fn is_saved(&self) -> bool {
        !self.content.is_empty()
    }
}

/// Contents that searches name.
///
/// # Errors
/// When the state is damaged, or a search is invalid: it may name any.
pub fn named_contents(store: &Store) -> Result<HashSet<String>, StoreError> {
    let mut named = HashSet::new();
    store.each_whole::<Search>("", |search| named.extend([search.content]))?;
    named.remove("");
    Ok(named)
}
