//! Administrators who act as another user. What is done in such a login rests on each of those behind it: they exist, are
//! not locked, are administrators, and have not ended their logins since it was begun.

use serde::{Deserialize, Serialize};

use super::epochs::Known;
use super::record::AsRead;
use super::sessions::Session;
use super::users::{Admin, Lock, User};
use super::{Store, StoreError, Writes};

/// Most administrators behind one login. Each of them is a part of the session, and of the conditions of what it changes.
pub const BEHIND_MAX: usize = 4;

const ACTS_NO_MORE: &str = "the administrator who acts as the user has lost the right to it: log in as yourself";

/// An administrator who acts as another user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Who.
    pub uid: i32,
    /// The epoch of their own logins in which they began to.
    pub epoch: String,
}

/// The same, as long as it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Who.
    pub uid: i32,
    /// The epoch as it was read; `None`: there has been none yet.
    pub epoch: Option<AsRead>,
}

impl Behind {
    /// A user who begins to act as another one now. None whose logins do not count can.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn now(store: &Store, uid: i32) -> Result<Option<Behind>, StoreError> {
        let known = Known::<Session>::of(store, uid)?;
        Ok(known.current().map(|epoch| Behind { uid, epoch: epoch.to_owned() }))
    }

    fn backing(&self, store: &Store) -> Result<Option<Backing>, StoreError> {
        let key = self.uid.to_string();
        let is_administrator =
            store.valid::<User>(&key)?.is_some() && store.has::<Admin>(&key)? && !store.has::<Lock>(&key)?;
        let known = Known::<Session>::of(store, self.uid)?;
        let counts = is_administrator && known.counts(&self.epoch);
        Ok(counts.then_some(Backing { uid: self.uid, epoch: known.as_read() }))
    }
}

/// Those behind a session, first the one who acts; nothing when one of them has lost the right to it.
///
/// # Errors
/// When the state is damaged.
pub fn of(store: &Store, session: &Session) -> Result<Option<Vec<Backing>>, StoreError> {
    // A webserver of an earlier version names them and does not say by which login: then the session counts no more.
    if session.behind.is_empty() != session.su.is_empty() {
        return Ok(None);
    }
    session.behind.iter().map(|behind| behind.backing(store)).collect()
}

impl Backing {
    /// Makes what is written depend on it.
    ///
    /// # Errors
    /// When a key cannot be one.
    pub(super) fn require(&self, writes: &mut Writes) -> Result<(), StoreError> {
        self.require_role(writes)?;
        writes.require_as_read::<super::sessions::Epoch>(&self.uid.to_string(), self.epoch, ACTS_NO_MORE)
    }

    /// Makes what is written depend on the role alone.
    ///
    /// # Errors
    /// When a key cannot be one.
    pub(super) fn require_role(&self, writes: &mut Writes) -> Result<(), StoreError> {
        let key = self.uid.to_string();
        writes.require::<Admin>(&key, ACTS_NO_MORE)?;
        writes.require_absent::<Lock>(&key, ACTS_NO_MORE)
    }
}
