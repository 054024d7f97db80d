//! Search histories: one object a search, its key ordered by time, the oldest deleted by name when there are too many.

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::sessions::{hex, random};
use super::sharing::null_is_empty;
use super::{Moment, Record, Store, StoreError, Writes};

/// One search.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Entry {
    /// Key within the user's history.
    #[serde(rename = "ID")]
    pub id: String,
    /// Who searched.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Group to which the search was given; 0: none.
    #[serde(rename = "GID", default)]
    pub gid: i32,
    /// Groups to which the search was given.
    #[serde(rename = "GIDs", default, deserialize_with = "null_is_empty")]
    pub gids: Vec<i32>,
    /// Whether everybody may see it.
    #[serde(default)]
    pub global: bool,
    /// What was typed.
    pub user_query: String,
    /// What was run.
    pub effective_query: String,
    /// When.
    pub launched: Moment,
}

impl Stored for Entry {
    const COLLECTION: &'static str = "history";
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.id)
    }
}

/// Key of a search that was begun at `launched`: keys of later searches are greater.
///
/// # Errors
/// When there is no randomness.
pub fn new_id(launched: Moment) -> std::io::Result<String> {
    Ok(format!("{:012x}-{}", launched.ms(), hex(&random::<4>()?)))
}

/// Searches of a user, newest first.
///
/// # Errors
/// When the state is damaged.
pub fn of_user(store: &Store, uid: i32) -> Result<Vec<Record<Entry>>, StoreError> {
    let mut entries = store.list::<Entry>(&format!("{uid}/"))?;
    entries.reverse();
    Ok(entries)
}

/// Searches of everybody, newest first.
///
/// # Errors
/// When the state is damaged.
pub fn of_all(store: &Store) -> Result<Vec<Record<Entry>>, StoreError> {
    let mut entries = store.list::<Entry>("")?;
    entries.sort_by(|a, b| b.value.id.cmp(&a.value.id));
    Ok(entries)
}

/// Adds a search and deletes those that are beyond `entries_max`, oldest first.
///
/// # Errors
/// When the state is damaged.
pub fn add(store: &Store, entry: &Entry, entries_max: usize) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    writes.require::<super::users::User>(&entry.uid.to_string(), "the user was deleted")?;
    writes.set(entry)?;
    let keys = store.keys::<Entry>(&format!("{}/", entry.uid))?;
    let excess = (keys.len() + 1).saturating_sub(entries_max.max(1));
    for key in keys.iter().take(excess) {
        writes.delete::<Entry>(key)?;
    }
    Ok(writes)
}
