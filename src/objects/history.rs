//! Search histories: one object a search, its key ordered by time, the oldest deleted by name when there are too many.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::cleaning::{self, Cleaning, Of, SLICE};
use super::record::Stored;
use super::sessions::{hex, random};
use super::sharing::null_is_empty;
use super::{Moment, Store, StoreError, Writes};

/// Why entries are deleted without a condition.
const NEVER_CHANGED: &str = "an entry never changes";

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

/// Key of a search that was begun at `launched`: keys of later searches are greater, and so are those of all searches
/// after the history was cleared, whatever the clocks say.
///
/// # Errors
/// When there is no randomness, or the state is damaged.
pub fn new_id(store: &Store, uid: i32, launched: Moment) -> Result<String, StoreError> {
    let cleared = cleared_until(store, uid)?.unwrap_or_default();
    let cleared_ms = cleared.split('-').next().and_then(|ms| u64::from_str_radix(ms, 16).ok());
    let ms = launched.ms().max(cleared_ms.map_or(0, |ms| ms + 1));
    Ok(format!("{ms:012x}-{}", hex(&random::<4>()?)))
}

/// The last entry of a user's history that was cleared and is not yet gone.
fn cleared_until(store: &Store, uid: i32) -> Result<Option<String>, StoreError> {
    Ok(cleaning::of_user_history(store, uid)?.into_iter().map(|record| record.value.until).max())
}

/// Clears a user's history, at once; what is too much for a transaction is taken away afterwards.
///
/// # Errors
/// When the state is damaged.
pub fn clear(store: &Store, uid: i32) -> Result<Writes, StoreError> {
    let keys = store.keys::<Entry>(&format!("{uid}/"))?;
    let mut writes = Writes::new();
    if keys.len() < SLICE {
        keys.iter().try_for_each(|key| writes.delete_whatever::<Entry>(key, NEVER_CHANGED))?;
    } else if let Some((_, until)) = keys.last().and_then(|key| key.split_once('/')) {
        writes.require::<super::users::User>(&uid.to_string(), "the user was deleted")?;
        let work = Cleaning::new(store, Of::History, uid, until.to_owned());
        // One that was made cut off may be committed after a later one: it takes no other's place.
        writes.overwrite(&work, "its key names its last entry, so another one there says the same")?;
    }
    Ok(writes)
}

/// What was cleared of users' histories and is not gone yet.
pub struct Cleared(HashMap<i32, String>);

impl Cleared {
    /// Reads it.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn read(store: &Store) -> Result<Cleared, StoreError> {
        let work = store.list::<Cleaning>("")?.into_iter().map(|record| record.value);
        let mut cleared: HashMap<i32, String> = HashMap::new();
        for work in work.filter(|work| work.of == Of::History) {
            let until = cleared.entry(work.number).or_default();
            *until = std::mem::take(until).max(work.until);
        }
        Ok(Cleared(cleared))
    }

    /// Whether an entry was cleared.
    #[must_use]
    pub fn includes(&self, entry: &Entry) -> bool {
        self.0.get(&entry.uid).is_some_and(|until| entry.id <= *until)
    }
}

/// Adds a search and deletes those that are beyond `entries_max`, oldest first.
///
/// # Errors
/// When the state is damaged.
pub fn add(store: &Store, entry: &Entry, entries_max: usize) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    writes.require::<super::users::User>(&entry.uid.to_string(), "the user was deleted")?;
    writes.overwrite(entry, "its number is random")?;
    let keys = store.keys::<Entry>(&format!("{}/", entry.uid))?;
    let excess = (keys.len() + 1).saturating_sub(entries_max.max(1));
    // More than a few only after the setting was lowered: the rest goes with the searches that follow.
    for key in keys.iter().take(excess.min(SLICE)) {
        writes.delete_whatever::<Entry>(key, NEVER_CHANGED)?;
    }
    Ok(writes)
}
