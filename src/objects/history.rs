//! Search histories: one object per search, with keys ordered by time. The oldest entries are deleted individually if
//! there are too many.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::cleanup::{self, Cleaning, Of, SLICE};
use super::record::Stored;
use super::sessions::{hex, random};
use super::sharing::null_is_empty;
use super::{Store, StoreError, Timestamp, Writes};

/// Reason for deleting entries unconditionally.
const NEVER_CHANGED: &str = "entries are immutable";

/// A search.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Entry {
    /// Key within the user's history.
    #[serde(rename = "ID")]
    pub id: String,
    /// UID of the user who searched.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// GID of the group with which the search was shared; 0 for none.
    #[serde(rename = "GID", default)]
    pub gid: i32,
    /// GIDs of the groups with which the search was shared.
    #[serde(rename = "GIDs", default, deserialize_with = "null_is_empty")]
    pub gids: Vec<i32>,
    /// Whether all users may see it.
    #[serde(default)]
    pub global: bool,
    /// Query as entered by the user.
    pub user_query: String,
    /// Query that was executed.
    pub effective_query: String,
    /// Start of the search.
    pub launched: Timestamp,
}

impl Stored for Entry {
    const COLLECTION: &'static str = "history";
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.id)
    }
}

/// Returns the key of a search that started at `launched`: greater than the keys of earlier searches, and than those of
/// all cleared ones, whatever the clocks show.
///
/// # Errors
/// If random bytes are unavailable, or the state is corrupt.
pub fn new_id(store: &Store, uid: i32, launched: Timestamp) -> Result<String, StoreError> {
    let cleared = cleared_until(store, uid)?.unwrap_or_default();
    let cleared_ms = cleared.split('-').next().and_then(|ms| u64::from_str_radix(ms, 16).ok());
    let ms = launched.ms().max(cleared_ms.map_or(0, |ms| ms + 1));
    Ok(format!("{ms:012x}-{}", hex(&random::<4>()?)))
}

/// Returns the id of the last cleared entry of a user's history while its deletion is incomplete.
fn cleared_until(store: &Store, uid: i32) -> Result<Option<String>, StoreError> {
    Ok(cleanup::of_user_history(store, uid)?.into_iter().map(|record| record.value.until).max())
}

/// Clears a user's history with immediate effect; entries that exceed one transaction are deleted afterwards.
///
/// # Errors
/// If the state is corrupt.
pub fn clear(store: &Store, uid: i32) -> Result<Writes, StoreError> {
    let keys = store.keys::<Entry>(&format!("{uid}/"))?;
    let mut writes = Writes::new();
    if keys.len() < SLICE {
        keys.iter().try_for_each(|key| writes.delete_unconditionally::<Entry>(key, NEVER_CHANGED))?;
    } else if let Some((_, until)) = keys.last().and_then(|key| key.split_once('/')) {
        writes.require::<super::users::User>(&uid.to_string(), "the user was deleted")?;
        let work = Cleaning::new(store, Of::History, uid, until.to_owned());
        // A cleaning made while disconnected may be committed after a later one: it must not replace another one.
        writes.overwrite(&work, "its key names the last entry, so an existing object is equal")?;
    }
    Ok(writes)
}

/// Entries of users' histories that were cleared but not yet deleted.
pub struct Cleared(HashMap<i32, String>);

impl Cleared {
    /// Reads the cleanings of all histories.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn read(store: &Store) -> Result<Cleared, StoreError> {
        let work = store.list::<Cleaning>("")?.into_iter().map(|record| record.value);
        let mut cleared: HashMap<i32, String> = HashMap::new();
        for work in work.filter(|work| work.of == Of::History) {
            let until = cleared.entry(work.number).or_default();
            *until = std::mem::take(until).max(work.until);
        }
        Ok(Cleared(cleared))
    }

    /// Returns whether an entry was cleared.
    #[must_use]
    pub fn includes(&self, entry: &Entry) -> bool {
        self.0.get(&entry.uid).is_some_and(|until| entry.id <= *until)
    }
}

/// Adds a search, and deletes the oldest entries in excess of `entries_max`.
///
/// # Errors
/// If the state is corrupt.
pub fn add(store: &Store, entry: &Entry, entries_max: usize) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    writes.require::<super::users::User>(&entry.uid.to_string(), "the user was deleted")?;
    writes.overwrite(entry, "its ID is random")?;
    let keys = store.keys::<Entry>(&format!("{}/", entry.uid))?;
    let excess = (keys.len() + 1).saturating_sub(entries_max.max(1));
    // A large excess occurs only after the setting was lowered: the searches that follow delete the rest.
    for key in keys.iter().take(excess.min(SLICE)) {
        writes.delete_unconditionally::<Entry>(key, NEVER_CHANGED)?;
    }
    Ok(writes)
}
