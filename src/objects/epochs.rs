//! Epochs: which of a user's logins, and which of the API tokens, count. A new one ends all that came before it at once, however
//! many there are, whatever the clocks say, and also those that are made at the same time at another webserver.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use super::record::{AsRead, Stored};
use super::sessions::{hex, random};
use super::{Moment, Record, Store, StoreError, Writes};

/// What belongs to an epoch of its user.
pub trait OfEpoch {
    /// Where the epochs of these are.
    const EPOCHS: &'static str;
    /// The name of the epoch of those that are made before there is one.
    const FIRST: &'static str;

    /// The epoch to which it belongs; empty: a webserver of an earlier version, which does not say, made it.
    fn epoch(&self) -> &str;

    /// When it was made.
    fn created(&self) -> Moment;
}

/// Those of a user that count.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Epoch<T> {
    /// Whose.
    pub uid: i32,
    /// Which.
    pub id: String,
    /// Since when, for those that say no epoch.
    pub since: Moment,
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
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn begin(uid: i32) -> std::io::Result<Epoch<T>> {
        Ok(Epoch { uid, id: hex(&random::<16>()?), since: Moment::now(), of: PhantomData })
    }

    /// Whether one belongs to it.
    pub(super) fn includes(&self, one: &T) -> bool {
        if one.epoch().is_empty() { one.created() > self.since } else { one.epoch() == self.id }
    }
}

/// What is known of a user's epoch.
#[derive(Debug)]
pub enum Known<T> {
    /// There was none yet: every one counts.
    Never,
    /// This one.
    Now(Record<Epoch<T>>),
    /// It is invalid, so none counts.
    Invalid,
}

impl<T: OfEpoch> Known<T> {
    /// What is known of a user's.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn of(store: &Store, uid: i32) -> Result<Known<T>, StoreError> {
        let key = uid.to_string();
        Ok(match store.valid::<Epoch<T>>(&key)? {
            Some(epoch) => Known::Now(epoch),
            None if store.has::<Epoch<T>>(&key)? => Known::Invalid,
            None => Known::Never,
        })
    }

    /// Whether one counts, as far as epochs are concerned.
    #[must_use]
    pub fn includes(&self, one: &T) -> bool {
        match self {
            Known::Never => true,
            Known::Now(epoch) => epoch.value.includes(one),
            Known::Invalid => false,
        }
    }

    /// Whether what was made in an epoch of this name counts.
    #[must_use]
    pub fn counts(&self, epoch: &str) -> bool {
        match self {
            Known::Never => true,
            Known::Now(now) => now.value.id == epoch,
            Known::Invalid => false,
        }
    }

    /// The name of the epoch that counts; `None`: it is invalid.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        match self {
            Known::Never => Some(T::FIRST),
            Known::Now(now) => Some(now.value.id.as_str()),
            Known::Invalid => None,
        }
    }

    /// The epoch as it was read; `None`: there is no valid one.
    #[must_use]
    pub fn as_read(&self) -> Option<AsRead> {
        if let Known::Now(epoch) = self { Some(epoch.as_read) } else { None }
    }

    /// The name of the epoch of a new one. An invalid epoch has no reader: a new one takes its place.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn for_new(self, uid: i32, writes: &mut Writes) -> Result<String, StoreError> {
        if let Some(epoch) = self.current() {
            return Ok(epoch.to_owned());
        }
        let epoch = Epoch::<T>::begin(uid)?;
        writes.overwrite(&epoch, "an invalid epoch has no reader, and gives way to a new one")?;
        Ok(epoch.id)
    }
}
