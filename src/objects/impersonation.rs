//! Administrators who act as another user. The validity of such a login depends on each administrator behind it: they
//! must exist, be administrators, not be locked, and not have ended their logins since it was started.

use serde::{Deserialize, Serialize};

use super::epochs::Known;
use super::record::AsRead;
use super::sessions::Session;
use super::users::{Admin, Lock, User};
use super::{Store, StoreError, Writes};

/// Maximum number of administrators behind one login. Each is a part of the session, and of the conditions of
/// its changes.
pub const BEHIND_MAX: usize = 4;

const ACTS_NO_MORE: &str = "the administrator who acts as the user has lost the right to do so; log in as yourself";

/// An administrator who acts as another user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impersonator {
    /// UID of the administrator.
    pub uid: i32,
    /// Epoch of the administrator's own logins at that time.
    pub epoch: String,
}

/// An administrator who may act as another user now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// UID of the administrator.
    pub uid: i32,
    /// Last write of the epoch; `None` if there has been none yet.
    pub epoch: Option<AsRead>,
}

impl Impersonator {
    /// Records that a user starts to act as another one. Returns `None` if the user's logins are invalid.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn now(store: &Store, uid: i32) -> Result<Option<Impersonator>, StoreError> {
        let known = Known::<Session>::of(store, uid)?;
        Ok(known.current().map(|epoch| Impersonator { uid, epoch: epoch.to_owned() }))
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

/// Returns the administrators behind a session, starting with the one who acts; `None` if one of them has lost
/// the right.
///
/// # Errors
/// If the state is corrupt.
pub fn of(store: &Store, session: &Session) -> Result<Option<Vec<Backing>>, StoreError> {
    // Webservers of earlier versions record no login epoch for them, so their sessions are invalid.
    if session.behind.is_empty() != session.su.is_empty() {
        return Ok(None);
    }
    session.behind.iter().map(|behind| behind.backing(store)).collect()
}

impl Backing {
    /// Requires that the administrator still has the role and the login.
    ///
    /// # Errors
    /// If the key is invalid.
    pub(super) fn require(&self, writes: &mut Writes) -> Result<(), StoreError> {
        self.require_role(writes)?;
        writes.require_as_read::<super::sessions::Epoch>(&self.uid.to_string(), self.epoch, ACTS_NO_MORE)
    }

    /// Requires that the administrator still has the role and is not locked.
    ///
    /// # Errors
    /// If the key is invalid.
    pub(super) fn require_role(&self, writes: &mut Writes) -> Result<(), StoreError> {
        let key = self.uid.to_string();
        writes.require::<Admin>(&key, ACTS_NO_MORE)?;
        writes.require_absent::<Lock>(&key, ACTS_NO_MORE)
    }
}
