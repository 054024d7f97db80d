//! Deletion of the rows that are left after a small transaction has deleted a user, a group or a history. They may
//! exceed one transaction, so they are deleted in slices. An object records the remaining work, so that it survives
//! restarts and only rows of deleted owners are deleted: rows whose owner does not exist (yet) for other reasons
//! are kept.
//!
//! Objects that name their owner in the value may have been transferred or shared since they were read, so each is
//! deleted only as it was read, and only after the deletion of the owner is confirmed: an object that others change at
//! the same time neither is lost nor prevents that deletion.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::groups::Group;
use super::history::Entry;
use super::kinds::{KINDS, Kind, Owner};
use super::record::{AsRead, Stored};
use super::restores::Restore;
use super::second_factors::Factor;
use super::users::{Lock, Membership, User};
use super::{Record, Store, StoreError, Timestamp, Writes};
use gravwell_model::codec::restore;
use gravwell_model::{Collection, Key};
use gravwell_replica::Object;
use gravwell_runtime::tasks::blocking;

/// Message if an object to delete was changed since it was read.
const IN_USE: &str = "it was transferred, shared or changed in the meantime";
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

/// Returns the rows whose keys start with a UID, at most `rows_max`.
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
    Ok(rows)
}

/// An object that is shared with no other user, as it was read.
struct Private {
    place: (Collection, Key),
    as_read: AsRead,
}

/// Returns the private objects of a user, at most `objects_max`. Reads whole collections.
fn private(store: &Store, uid: i32, objects_max: usize) -> Result<Vec<Private>, StoreError> {
    let mut found = Vec::new();
    let kinds = KINDS.iter().filter(|kind| kind.owner == Owner::Private);
    for (Kind { collection, .. }, shares) in kinds.filter_map(|kind| Some((kind, kind.shares?))) {
        if found.len() >= objects_max {
            break;
        }
        let collection = Collection::new(*collection).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let see = |key: Key, object: Object| {
            if shares(&object.value).is_some_and(|shares| shares.is_private() && shares.owner == uid) {
                found.push(Private { place: (collection.clone(), key), as_read: AsRead::of(&object) });
            }
            if found.len() < objects_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        blocking::run(|| store.replica().each(&collection, "", see))?;
    }
    Ok(found)
}

/// Returns whether a user owns objects that are shared with no other user.
///
/// # Errors
/// If the state is corrupt.
pub fn has_private(store: &Store, uid: i32) -> Result<bool, StoreError> {
    Ok(!private(store, uid, 1)?.is_empty())
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
            is_left || of_user(store, number, 1)?.count() > 0 || has_private(store, number)?
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

/// Returns the writes for the next slice of a cleaning, and whether no other may follow until it is decided. Advances the
/// cursor. The last slice also deletes the cleaning itself.
///
/// A slice with objects that are deleted only as they were read may be rejected. Unless it is the last, it also rewrites
/// the cleaning, which is not due until that is decided: the cleaning does not end while such an object is left.
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
    let room = SLICE.saturating_sub(rows.count());
    let mut writes = rows.into_writes();
    let mut may_fail = false;
    if *of == Of::User && !is_void && room > 0 {
        for Private { place, as_read } in private(store, *number, room)? {
            writes.replace_at(place, as_read, None, IN_USE);
            may_fail = true;
        }
    }
    let is_last = writes.len() < SLICE;
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
    } else if may_fail {
        writes.update(work, "")?;
    }
    Ok((writes, is_last || may_fail))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Author;
    use gravwell_model::Op;
    use gravwell_replica::{Replica, ReplicaOptions};

    const DATE: &str = "2026-01-01T00:00:00Z";

    fn op(collection: &str, key: &str, value: &serde_json::Value) -> Op {
        let (collection, key) = (Collection::new(collection).expect("name"), Key::new(key).expect("key"));
        Op::Put { collection, key, value: value.to_string().into() }
    }

    fn of_owner(id: usize, uid: i32, gids: &[i32]) -> Op {
        let value = json!({ "ID": id.to_string(), "UID": uid, "GIDs": gids, "Created": DATE, "Updated": DATE });
        op("macros", &id.to_string(), &value)
    }

    fn cleaning(uid: i32) -> Op {
        let value = json!({ "of": "user", "number": uid, "since": DATE, "webserver": "w" });
        op("cleanings", &key(Of::User, uid), &value)
    }

    struct Alone {
        store: Store,
        _temp: tempfile::TempDir,
    }

    impl Alone {
        /// Returns the store of a webserver that was never connected.
        async fn with(ops: Vec<Op>) -> Alone {
            let temp = tempfile::tempdir().expect("temp dir");
            let replica = Replica::open(temp.path(), ReplicaOptions::default()).expect("opens");
            let alone = Alone { store: Store::new(replica, "w"), _temp: temp };
            alone.put(ops).await;
            alone
        }

        async fn put(&self, ops: Vec<Op>) {
            assert!(self.commit(Writes::unconditional(ops, "a test")).await);
        }

        async fn commit(&self, writes: Writes) -> bool {
            self.store.commit(&Author::default(), "a test", writes).await.is_ok()
        }

        fn keys(&self, collection: &'static str) -> Vec<String> {
            self.store.some_keys_in(collection, "", None, usize::MAX).expect("reads")
        }

        fn slice(&self) -> (Writes, bool) {
            let works = self.store.list::<Cleaning>("").expect("reads");
            slice(&self.store, works.first().expect("is listed"), &mut Cursor::default()).expect("reads")
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p08_a_cleaning_deletes_private_objects_only_as_they_were_read_and_ends_after_the_last() {
        let mut ops: Vec<Op> = (0..=SLICE).map(|id| of_owner(id, 66, &[])).collect();
        ops.extend([cleaning(66), of_owner(5000, 7, &[]), of_owner(5001, 66, &[3])]);
        let alone = Alone::with(Vec::from([ops.pop().expect("an operation")])).await;
        for ops in ops.chunks(SLICE) {
            alone.put(ops.to_vec()).await;
        }
        let (writes, waits) = alone.slice();
        assert!(waits && writes.ops().iter().any(|op| op.collection().as_str() == "cleanings" && op.value().is_some()));
        // An object was transferred in the meantime, and another shared.
        alone.put(vec![of_owner(0, 7, &[]), of_owner(1, 66, &[3])]).await;
        assert!(!alone.commit(writes).await);
        assert_eq!(alone.keys("macros").len(), SLICE + 3);
        let (writes, waits) = alone.slice();
        assert!(waits && writes.ops().iter().any(|op| op.collection().as_str() == "cleanings" && op.value().is_none()));
        assert!(alone.commit(writes).await);
        assert_eq!(alone.keys("macros"), ["0", "1", "5000", "5001"]);
        assert!(alone.keys("cleanings").is_empty());
    }
}
