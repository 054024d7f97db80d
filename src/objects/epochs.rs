//! Epochs determine which of a user's logins and API tokens are valid. A new epoch immediately ends all earlier ones,
//! however many there are and whatever the clocks show, including those made at the same time at another webserver.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use super::record::{AsRead, Stored};
use super::sessions::{hex, random};
use super::{Record, Store, StoreError, Timestamp, Writes};

/// An object that belongs to an epoch of its user.
pub trait OfEpoch {
    /// Collection of the epochs of this kind.
    const EPOCHS: &'static str;
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
    #[serde(skip)]
    pub(super) of: PhantomData<T>,
}

impl<T: OfEpoch> Stored for Epoch<T> {
    const COLLECTION: &'static str = T::EPOCHS;
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

impl<T: OfEpoch> Epoch<T> {
    /// Creates a new epoch.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn begin(uid: i32) -> std::io::Result<Epoch<T>> {
        Ok(Epoch { uid, id: hex(&random::<16>()?), since: Timestamp::now(), of: PhantomData })
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
    /// The epoch is invalid, so no object is valid.
    Invalid,
}

impl<T: OfEpoch> Known<T> {
    /// Reads the state of a user's epoch.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn of(store: &Store, uid: i32) -> Result<Known<T>, StoreError> {
        let key = uid.to_string();
        Ok(match store.valid::<Epoch<T>>(&key)? {
            Some(epoch) => Known::Now(epoch),
            None if store.has::<Epoch<T>>(&key)? => Known::Invalid,
            None => Known::Never,
        })
    }

    /// Returns whether an object's epoch is valid.
    #[must_use]
    pub fn includes(&self, one: &T) -> bool {
        match self {
            Known::Never => true,
            Known::Now(epoch) => epoch.value.includes(one),
            Known::Invalid => false,
        }
    }

    /// Returns whether objects made in the epoch with this id are valid.
    #[must_use]
    pub fn counts(&self, epoch: &str) -> bool {
        match self {
            Known::Never => true,
            Known::Now(now) => now.value.id == epoch,
            Known::Invalid => false,
        }
    }

    /// Returns the id of the current epoch; `None` if it is invalid.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        match self {
            Known::Never => Some(T::FIRST),
            Known::Now(now) => Some(now.value.id.as_str()),
            Known::Invalid => None,
        }
    }

    /// Returns the last write of the epoch; `None` if there is no valid one.
    #[must_use]
    pub fn as_read(&self) -> Option<AsRead> {
        if let Known::Now(epoch) = self { Some(epoch.as_read) } else { None }
    }

    /// Returns the id of the epoch for a new object, which is committed only in this epoch: if the epoch ends and is
    /// written again after a recovery, the object must not return with it. An invalid epoch is replaced by a new one.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn for_new(self, uid: i32, writes: &mut Writes) -> Result<String, StoreError> {
        if let Some(epoch) = self.current() {
            writes.require_as_read::<Epoch<T>>(&uid.to_string(), self.as_read(), T::ENDED)?;
            return Ok(epoch.to_owned());
        }
        let epoch = Epoch::<T>::begin(uid)?;
        writes.overwrite(&epoch, "an invalid epoch is not used, so a new one replaces it")?;
        Ok(epoch.id)
    }
}
