//! Deletion of the rows that are left after a small transaction has deleted a user, a group or a history. They may
//! exceed one transaction, so they are deleted in slices. An object records the remaining work, so that it survives
//! restarts and only rows of deleted owners are deleted: rows whose owner does not exist (yet) for other reasons
//! are kept.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::groups::Group;
use super::history::Entry;
use super::kinds::{KINDS, Kind, Owner};
use super::record::Stored;
use super::restores::Restore;
use super::second_factors::Factor;
use super::users::{Lock, Membership, User};
use super::{Record, Store, StoreError, Timestamp, Writes};
use gravwell_model::codec::restore;
use gravwell_model::{Collection, Key};
use gravwell_replica::Object;
use gravwell_runtime::tasks::blocking;

/// Maximum number of rows deleted in one transaction.
pub const SLICE: usize = 1000;
/// Seconds after which other webservers may take over.
const TAKEN_OVER_S: u64 = 60;

/// Kind of rows to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// All rows of a deleted user.
    User,
    /// Memberships of a deleted group.
    Group,
    /// A user's search history up to some entry.
    History,
    /// A kind from a later version.
    #[serde(other)]
    Unknown,
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Of::User => "user",
            Of::Group => "group",
            Of::History => "history",
            Of::Unknown => "unknown",
        }
    }
}

/// Remaining work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cleaning {
    /// Kind of rows to delete.
    pub of: Of,
    /// UID or GID of the owner.
    pub number: i32,
    /// For a history: id of the last entry to delete.
    #[serde(default)]
    pub until: String,
    /// Time at which the work started.
    pub since: Timestamp,
    /// Name of the webserver that started it.
    pub webserver: String,
    /// For a history: whether its key contains the id of the last entry. In earlier versions, all cleanings of a
    /// history shared one key.
    #[serde(default)]
    pub is_apart: bool,
}

impl Stored for Cleaning {
    const COLLECTION: &'static str = "cleanings";
    fn key(&self) -> String {
        match self.is_apart {
            true => format!("{}{}", history_prefix(self.number), self.until),
            false => key(self.of, self.number),
        }
    }
}

/// Returns the key prefix of all history cleanings of a user, except those from earlier versions.
#[must_use]
pub fn history_prefix(uid: i32) -> String {
    format!("{}/", key(Of::History, uid))
}

/// Returns the history cleanings of a user.
///
/// # Errors
/// If the state is corrupt.
pub fn of_user_history(store: &Store, uid: i32) -> Result<Vec<Record<Cleaning>>, StoreError> {
    let mut found = store.list::<Cleaning>(&history_prefix(uid))?;
    found.extend(store.valid::<Cleaning>(&key(Of::History, uid))?);
    Ok(found)
}

/// Returns the key of a cleaning by kind and number.
#[must_use]
pub fn key(of: Of, number: i32) -> String {
    format!("{}/{number}", of.name())
}

impl Cleaning {
    /// Creates a new cleaning.
    #[must_use]
    pub fn new(store: &Store, of: Of, number: i32, until: String) -> Cleaning {
        let is_apart = of == Of::History;
        Cleaning { of, number, until, since: Timestamp::now(), webserver: store.via().to_owned(), is_apart }
    }

    /// Returns whether its owner exists: the number is in use again, as after a restore, and nothing may be deleted.
    fn is_void(&self, store: &Store) -> Result<bool, StoreError> {
        match self.of {
            Of::User => store.has::<User>(&self.number.to_string()),
            Of::Group => store.has::<Group>(&self.number.to_string()),
            Of::History | Of::Unknown => Ok(false),
        }
    }
}

/// Key up to which the rows of each collection were processed, so that deleted rows are not scanned again and again.
#[derive(Clone, Debug, Default)]
pub struct Cursor(BTreeMap<&'static str, String>);

/// Rows of a single owner, to be deleted.
#[derive(Default)]
pub struct Rows {
    writes: Writes,
}

impl Rows {
    /// Adds rows of one collection with keys that start with `prefix` and follow the cursor, and advances the cursor.
    fn add_after(
        &mut self,
        store: &Store,
        collection: &'static str,
        prefix: &str,
        cursor: &mut Cursor,
        wanted: impl Fn(&str) -> bool,
        rows_max: usize,
    ) -> Result<(), StoreError> {
        let room = rows_max.saturating_sub(self.count());
        if room == 0 {
            return Ok(());
        }
        let after = cursor.0.get(collection).map(String::as_str);
        let keys = store.some_keys_in(collection, prefix, after, room)?;
        if let Some(last) = keys.last() {
            cursor.0.insert(collection, last.clone());
        }
        self.add(collection, keys, wanted, rows_max)
    }

    fn add(
        &mut self,
        collection: &str,
        keys: impl IntoIterator<Item = String>,
        wanted: impl Fn(&str) -> bool,
        rows_max: usize,
    ) -> Result<(), StoreError> {
        for key in keys {
            if self.writes.len() >= rows_max {
                break;
            }
            if wanted(&key) {
                let why = "its owner was deleted, so its value does not matter";
                self.writes.delete_unconditionally_at(collection, &key, why)?;
            }
        }
        Ok(())
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.writes.len()
    }

    /// Returns the writes that delete them.
    #[must_use]
    pub fn into_writes(self) -> Writes {
        self.writes
    }
}

/// Returns the rows that belong to a single user, at most `rows_max`.
///
/// # Errors
/// If the state is corrupt.
pub fn of_user(store: &Store, uid: i32, rows_max: usize) -> Result<Rows, StoreError> {
    of_user_after(store, uid, &mut Cursor::default(), rows_max)
}

fn of_user_after(store: &Store, uid: i32, cursor: &mut Cursor, rows_max: usize) -> Result<Rows, StoreError> {
    let (prefix, all) = (format!("{uid}/"), |_: &str| true);
    let mut rows = Rows::default();
    for kind in KINDS.iter().filter(|kind| kind.owner == Owner::Rows) {
        rows.add_after(store, kind.collection, &prefix, cursor, all, rows_max)?;
    }
    for kind in KINDS.iter().filter(|kind| kind.owner == Owner::Private) {
        let room = rows_max.saturating_sub(rows.count());
        rows.add(kind.collection, private(store, kind, uid, room)?, all, rows_max)?;
    }
    Ok(rows)
}

/// Returns the keys of the objects of a kind that a user owns and shares with no other user, at most `keys_max`.
fn private(store: &Store, kind: &Kind, uid: i32, keys_max: usize) -> Result<Vec<String>, StoreError> {
    let Some(shares) = kind.shares.filter(|_| keys_max > 0) else { return Ok(Vec::new()) };
    let collection = Collection::new(kind.collection).map_err(|error| StoreError::BadKey(error.to_string()))?;
    let mut keys = Vec::new();
    let see = |key: Key, object: Object| {
        if shares(&object.value).is_some_and(|shares| shares.owner == uid && shares.is_private()) {
            keys.push(key.as_str().to_owned());
        }
        if keys.len() < keys_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    blocking::run(|| store.replica().each(&collection, "", see))?;
    Ok(keys)
}

/// Returns the memberships of a group, at most `rows_max` rows.
///
/// # Errors
/// If the state is corrupt.
pub fn of_group(store: &Store, gid: i32, rows_max: usize) -> Result<Rows, StoreError> {
    let (mut rows, suffix) = (Rows::default(), format!("/{gid}"));
    rows.add(Membership::COLLECTION, store.keys::<Membership>("")?, |key| key.ends_with(&suffix), rows_max)?;
    Ok(rows)
}

/// Returns the entries of a user's history up to `until`, at most `rows_max` rows.
///
/// # Errors
/// If the state is corrupt.
pub fn of_history(
    store: &Store,
    uid: i32,
    until: &str,
    cursor: &mut Cursor,
    rows_max: usize,
) -> Result<Rows, StoreError> {
    let (mut rows, prefix) = (Rows::default(), format!("{uid}/"));
    let goes = |key: &str| key.strip_prefix(&prefix).is_some_and(|id| id <= until);
    rows.add_after(store, Entry::COLLECTION, &prefix, cursor, goes, rows_max)?;
    Ok(rows)
}

/// Returns whether objects of a user or group with this number are left, so that it must not be assigned again.
///
/// # Errors
/// If the state is corrupt.
pub fn is_anything_left(store: &Store, of: Of, number: i32) -> Result<bool, StoreError> {
    if store.has::<Cleaning>(&key(of, number))? {
        return Ok(true);
    }
    Ok(match of {
        Of::User => {
            let key = number.to_string();
            // A lock may be left of a user who was deleted while it was made.
            let is_left = store.has::<User>(&key)? || store.has::<Factor>(&key)? || store.has::<Lock>(&key)?;
            is_left || of_user(store, number, 1)?.count() > 0
        }
        Of::Group => store.has::<Group>(&number.to_string())? || of_group(store, number, 1)?.count() > 0,
        Of::History | Of::Unknown => false,
    })
}

/// Returns the cleanings that this webserver should continue now.
///
/// # Errors
/// If the state is corrupt.
pub fn due(store: &Store) -> Result<Vec<Record<Cleaning>>, StoreError> {
    let mut found = store.list::<Cleaning>("")?;
    // The deletion of the owner may still be rejected while it is pending.
    let now = store.confirmed_now();
    found.retain(|record| {
        let work = &record.value;
        let is_ours = work.webserver == store.via() || work.since.plus(TAKEN_OVER_S).is_past_at(now);
        work.of != Of::Unknown && record.version.is_some() && is_ours
    });
    Ok(found)
}

/// Returns the writes for the next slice of a cleaning, and whether it is the last one. Advances the cursor. The last
/// slice also deletes the cleaning itself.
///
/// # Errors
/// If the state is corrupt.
pub fn slice(store: &Store, work: &Record<Cleaning>, cursor: &mut Cursor) -> Result<(Writes, bool), StoreError> {
    let Cleaning { of, number, until, .. } = &work.value;
    let is_void = work.value.is_void(store)?;
    let next = |cursor: &mut Cursor| match of {
        _ if is_void => Ok(Rows::default()),
        Of::User => of_user_after(store, *number, cursor, SLICE),
        Of::Group => of_group(store, *number, SLICE),
        Of::History => of_history(store, *number, until, cursor, SLICE),
        Of::Unknown => Ok(Rows::default()),
    };
    let mut rows = next(cursor)?;
    if rows.count() < SLICE && !cursor.0.is_empty() {
        // Rows may have been added before the cursor.
        *cursor = Cursor::default();
        rows = next(cursor)?;
    }
    let is_last = rows.count() < SLICE;
    let mut writes = rows.into_writes();
    writes.unchanged(work, "")?;
    // A restore may have written objects of the owner, and the owner comes last. What is left when it has ended is deleted
    // then.
    writes.require_absent::<Restore>(restore::KEY, "")?;
    match of {
        Of::User if is_void => writes.require::<User>(&number.to_string(), "")?,
        Of::Group if is_void => writes.require::<Group>(&number.to_string(), "")?,
        Of::User => writes.require_absent::<User>(&number.to_string(), "")?,
        Of::Group => writes.require_absent::<Group>(&number.to_string(), "")?,
        Of::History | Of::Unknown => {}
    }
    if is_last {
        writes.delete(work, "")?;
    }
    Ok((writes, is_last))
}
