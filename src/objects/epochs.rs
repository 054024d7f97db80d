//! Epochs and ends determine which of a user's logins and API tokens are valid, whatever the clocks show.
//!
//! An [`End`] makes all of them invalid at once. It is written unconditionally at a random key, so that it takes effect
//! at any time and never replaces another end. They become possible again with a new [`Epoch`], which names the ends
//! that its author knew. An epoch is started only upon the last one as read: a webserver that was disconnected cannot
//! replace an epoch that it has not seen. Of two webservers that end the logins of a user and log the user in again at the
//! same time, one starts its epoch later, and its logins are rejected. Each end that the remaining epoch does not name
//! ends the logins of that one as well, until the next epoch.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use super::cleanup::SLICE;
use super::record::{AsRead, Stored};
use super::sessions::{hex, random};
use super::{CommitError, Record, Store, StoreError, Timestamp, Writes};
use gravwell_model::Op;

/// Message if an object was ended at another webserver while an epoch was started.
const STARTED: &str = "another epoch was started in the meantime";
/// Reason for writing ends unconditionally.
const ALWAYS: &str = "it takes rights away, and its key is random";
/// Age in seconds from which any webserver starts the epoch that follows an end; before, that is left to the webserver
/// that made the end.
const LEFT_ALONE_S: u64 = 5;
/// Time in seconds for which an end is kept although the epoch names it, in case a webserver of an earlier version
/// replaces the epoch unseen.
const KEPT_S: u64 = 24 * 3600;
/// Maximum number of ends of one user that are kept for that reason.
const KEPT_MAX: usize = 64;

/// An object that belongs to an epoch of its user.
pub trait OfEpoch {
    /// Collection of the epochs of this kind.
    const EPOCHS: &'static str;
    /// Collection of the ends of this kind.
    const ENDS: &'static str;
    /// Noun for several objects in audit notes.
    const PLURAL: &'static str;
    /// Id of the epoch of objects made before there is one.
    const FIRST: &'static str;
    /// Message if the epoch ended before an object that was made in it was committed.
    const ENDED: &'static str;

    /// Returns the epoch to which it belongs; empty if a webserver of an earlier version, without epochs, made it.
    fn epoch(&self) -> &str;

    /// Returns the time of its creation.
    fn created(&self) -> Timestamp;
}

/// An epoch: the set of a user's valid objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Epoch<T> {
    /// UID of the user.
    pub uid: i32,
    /// Random id of the epoch.
    pub id: String,
    /// Start time, which decides for objects without an epoch.
    pub since: Timestamp,
    /// Ids of the ends that its author knew. Another end makes all of its objects invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<String>,
    #[serde(skip)]
    pub(super) of: PhantomData<T>,
}

/// The end of all objects of a user that were made without knowledge of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct End<T> {
    /// UID of the user.
    pub uid: i32,
    /// Random id.
    pub id: String,
    /// Time at which it was made.
    pub since: Timestamp,
    #[serde(skip)]
    of: PhantomData<T>,
}

impl<T: OfEpoch> Stored for End<T> {
    const COLLECTION: &'static str = T::ENDS;
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.id)
    }
}

impl<T: OfEpoch> End<T> {
    /// Adds the end of all objects of a user.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn now(uid: i32, writes: &mut Writes) -> Result<(), StoreError> {
        let end = End::<T> { uid, id: hex(&random::<8>()?), since: Timestamp::now(), of: PhantomData };
        writes.overwrite(&end, ALWAYS)
    }
}

/// Returns the ids of the ends of a user, valid or not.
fn ends_of<T: OfEpoch>(store: &Store, uid: i32) -> Result<Vec<String>, StoreError> {
    let prefix = format!("{uid}/");
    let keys = store.keys::<End<T>>(&prefix)?;
    Ok(keys.iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect())
}

impl<T: OfEpoch> Stored for Epoch<T> {
    const COLLECTION: &'static str = T::EPOCHS;
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

impl<T: OfEpoch> Epoch<T> {
    /// Starts a new epoch upon the present one, valid or not, and names the ends that this webserver knows. Returns its
    /// id.
    ///
    /// # Errors
    /// If random bytes are unavailable, or the state is corrupt.
    pub fn start(store: &Store, uid: i32, writes: &mut Writes) -> Result<String, StoreError> {
        // The ends are read after the epoch: one that is deleted in between was named by another epoch.
        let found = store.seen::<Epoch<T>>(&uid.to_string())?;
        let ends = ends_of::<T>(store, uid)?;
        let epoch = Epoch { uid, id: hex(&random::<16>()?), since: Timestamp::now(), ends, of: PhantomData::<T> };
        writes.replace(found, &epoch, T::ENDED)?;
        Ok(epoch.id)
    }

    /// Returns whether an object belongs to it.
    pub(super) fn includes(&self, one: &T) -> bool {
        if one.epoch().is_empty() { one.created() > self.since } else { one.epoch() == self.id }
    }
}

/// State of a user's epoch.
#[derive(Debug)]
pub enum Known<T> {
    /// There was no epoch yet: all objects are valid.
    Never,
    /// The current epoch.
    Now(Record<Epoch<T>>),
    /// The epoch is invalid, or an end has not been followed by one, so no object is valid.
    Ended,
}

impl<T: OfEpoch> Known<T> {
    /// Reads the state of a user's epoch.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn of(store: &Store, uid: i32) -> Result<Known<T>, StoreError> {
        let key = uid.to_string();
        // The epoch is read after the ends, so that a new one is not taken for one that lacks its end.
        let ends = ends_of::<T>(store, uid)?;
        let found = store.valid::<Epoch<T>>(&key)?;
        let is_named = |end: &String| found.as_ref().is_some_and(|epoch| epoch.value.ends.contains(end));
        if !ends.iter().all(is_named) {
            return Ok(Known::Ended);
        }
        Ok(match found {
            Some(epoch) => Known::Now(epoch),
            None if store.has::<Epoch<T>>(&key)? => Known::Ended,
            None => Known::Never,
        })
    }

    /// Returns whether an object's epoch is valid.
    #[must_use]
    pub fn includes(&self, one: &T) -> bool {
        match self {
            Known::Never => true,
            Known::Now(epoch) => epoch.value.includes(one),
            Known::Ended => false,
        }
    }

    /// Returns whether objects made in the epoch with this id are valid.
    #[must_use]
    pub fn counts(&self, epoch: &str) -> bool {
        match self {
            Known::Never => true,
            Known::Now(now) => now.value.id == epoch,
            Known::Ended => false,
        }
    }

    /// Returns the id of the current epoch; `None` if it is invalid.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        match self {
            Known::Never => Some(T::FIRST),
            Known::Now(now) => Some(now.value.id.as_str()),
            Known::Ended => None,
        }
    }

    /// Returns the last write of the epoch; `None` if there is no valid one.
    #[must_use]
    pub fn as_read(&self) -> Option<AsRead> {
        if let Known::Now(epoch) = self { Some(epoch.as_read) } else { None }
    }
}

/// Returns the id of the epoch for a new object of a user, which is committed only in this epoch: if the epoch ends and is
/// written again after a recovery, the object must not return with it. If no object is valid, a new epoch is started.
///
/// # Errors
/// If random bytes are unavailable, or the state is corrupt.
pub fn for_new<T: OfEpoch>(store: &Store, uid: i32, writes: &mut Writes) -> Result<String, StoreError> {
    let known = Known::<T>::of(store, uid)?;
    let Some(epoch) = known.current() else { return Epoch::<T>::start(store, uid, writes) };
    writes.require_as_read::<Epoch<T>>(&uid.to_string(), known.as_read(), T::ENDED)?;
    Ok(epoch.to_owned())
}

/// Starts the epochs that follow the ends which `ops` have written, so that changes by objects of the former epoch are
/// rejected from now on. The ends are effective without: if this fails, housekeeping repeats it.
pub(super) async fn follow(store: &Store, ops: &[Op]) {
    use super::{sessions::Session, tokens::Token};
    for op in ops.iter().filter(|op| op.value().is_some()) {
        let Some(uid) = op.key().as_str().split_once('/').and_then(|(uid, _)| uid.parse().ok()) else { continue };
        let followed = match op.collection().as_str() {
            Session::ENDS => start_if_ended::<Session>(store, uid).await,
            Token::ENDS => start_if_ended::<Token>(store, uid).await,
            _ => continue,
        };
        if let Err(error) = followed {
            tracing::debug!(%error, uid, "failed to start an epoch; will retry");
        }
    }
}

/// Returns whether operations do nothing but start epochs.
#[must_use]
pub fn are_starts(ops: &[Op]) -> bool {
    use super::{sessions::Session, tokens::Token};
    let is_start =
        |op: &Op| op.value().is_some() && [Session::EPOCHS, Token::EPOCHS].contains(&op.collection().as_str());
    !ops.is_empty() && ops.iter().all(is_start)
}

async fn start_if_ended<T: OfEpoch>(store: &Store, uid: i32) -> Result<(), CommitError> {
    if !matches!(Known::<T>::of(store, uid)?, Known::Ended) {
        return Ok(());
    }
    let mut writes = Writes::new();
    Epoch::<T>::start(store, uid, &mut writes)?;
    store.make(&format!("start a new epoch of the {} of user {uid}", T::PLURAL), &writes).await
}

/// Starts the epochs that follow ends of any webserver, and deletes ends that are no longer needed. Returns once all
/// of it is decided, or the datastore is unreachable.
///
/// # Errors
/// If the state is corrupt, or the local disk fails.
pub async fn tidy<T: OfEpoch>(store: &Store) -> Result<(), CommitError> {
    let now = store.confirmed_now();
    let mut users: BTreeMap<i32, Vec<Record<End<T>>>> = BTreeMap::new();
    for end in store.list::<End<T>>("")? {
        users.entry(end.value.uid).or_default().push(end);
    }
    for (uid, mut ends) in users {
        ends.sort_by_key(|end| end.value.since);
        let done = match Known::<T>::of(store, uid)? {
            Known::Ended if ends.iter().any(|end| end.value.since.plus(LEFT_ALONE_S).is_past_at(now)) => {
                start_if_ended::<T>(store, uid).await
            }
            // Only in a history that has the epoch.
            Known::Now(epoch) if epoch.is_synced() => {
                let excess = ends.len().saturating_sub(KEPT_MAX);
                let is_over =
                    |(at, end): &(usize, &Record<End<T>>)| *at < excess || end.value.since.plus(KEPT_S).is_past_at(now);
                let mut writes = Writes::new();
                for (_, end) in ends.iter().enumerate().filter(is_over).take(SLICE) {
                    writes.delete(end, STARTED)?;
                }
                if writes.is_empty() {
                    continue;
                }
                writes.require_as_read::<Epoch<T>>(&uid.to_string(), Some(epoch.as_read), STARTED)?;
                store.make("delete ends that the epoch names", &writes).await
            }
            _ => continue,
        };
        match done {
            // Another webserver has done it.
            Err(CommitError::Conflict(_) | CommitError::Changed(_)) => {}
            done => done?,
        }
    }
    Ok(())
}
