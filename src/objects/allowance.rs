//! How much and how fast users may write. It is asked where every change passes, so that no way of making one goes around it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::passwords::Password;
use super::quotas::{Added, QuotaError, Quotas};
use super::record::Stored;
use super::sessions::{Epoch, Session};
use super::store::{Author, CommitError};
use super::tokens::Token;
use super::users::{Admin, Lock, Membership};
use super::write_rate::WriteRate;
use super::{Store, StoreError};
use crate::model::Op;

/// Hears of a change that came too fast.
pub type Told = Box<dyn Fn(&Author) + Send + Sync>;

/// Of what may wait for the datastore, this part is one user's.
const SHARE_OF_USER: u64 = 8;
/// And this part is kept for what must be possible: ending sessions and rights, deleting, and administrators.
const SHARE_KEPT: u64 = 8;
/// Bytes of a transaction besides its operations, roughly.
const TXN_BYTES: u64 = 512;
/// Collections that end or give access.
const VITAL: [&str; 7] = [
    Session::COLLECTION,
    Epoch::COLLECTION,
    Lock::COLLECTION,
    Admin::COLLECTION,
    Membership::COLLECTION,
    Password::COLLECTION,
    Token::COLLECTION,
];

/// Bytes that wait for the datastore while it is away, of ordinary users.
#[derive(Debug, Default)]
struct Waiting {
    of_users: HashMap<i32, u64>,
    all: u64,
}

impl Waiting {
    /// Adds what a user makes, if there is room for it.
    fn add(&mut self, uid: i32, bytes: u64, most: u64) -> bool {
        let own = self.of_users.entry(uid).or_default();
        let has_room = *own + bytes <= most / SHARE_OF_USER && self.all + bytes <= most - most / SHARE_KEPT;
        if has_room {
            *own += bytes;
            self.all += bytes;
        }
        has_room
    }
}

/// Whether operations only take away, or concern who may come in.
fn is_vital(ops: &[Op]) -> bool {
    ops.iter().all(|op| op.value().is_none() || VITAL.contains(&op.collection().as_str()))
}

/// The bounds.
pub struct Allowance {
    rate: WriteRate,
    quotas: Quotas,
    /// Most bytes that wait for the datastore.
    outbox_bytes_max: u64,
    waiting: Mutex<Waiting>,
    told: Told,
}

impl std::fmt::Debug for Allowance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allowance").field("rate", &self.rate).field("quotas", &self.quotas).finish_non_exhaustive()
    }
}

/// What a change has taken; given back when it is dropped without having been kept.
#[derive(Debug)]
pub struct Spent<'a>(Added<'a>);

impl Spent<'_> {
    /// The change was made.
    pub fn keep(self) {
        self.0.keep();
    }
}

fn is_admin(store: &Store, uid: i32) -> Result<bool, StoreError> {
    store.has::<Admin>(&Admin { uid, since: super::Moment::NEVER }.key())
}

impl Allowance {
    /// Bounds, and who hears of changes that come too fast.
    #[must_use]
    pub fn new(rate: WriteRate, quotas: Quotas, outbox_bytes_max: u64, told: Told) -> Allowance {
        Allowance { rate, quotas, outbox_bytes_max, waiting: Mutex::default(), told }
    }

    /// While the datastore is away, what one user makes does not fill the outbox: everybody needs it.
    fn wait(&self, store: &Store, uid: i32, ops: &[Op], bytes: usize) -> Result<(), CommitError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if store.replica().outbox_depth() == 0 {
            *waiting = Waiting::default();
        }
        if store.replica().is_connected() || is_vital(ops) {
            return Ok(());
        }
        let has_room = waiting.add(uid, bytes as u64 + TXN_BYTES, self.outbox_bytes_max);
        if has_room { Ok(()) } else { Err(CommitError::TooMuchWaits) }
    }

    fn too_fast(&self, author: &Author, wait: std::time::Duration) -> CommitError {
        (self.told)(author);
        CommitError::TooFast(wait)
    }

    /// Whether a change of this user would be taken now: asked before much is done for one.
    ///
    /// # Errors
    /// When changes came too fast.
    pub fn look(&self, store: &Store, author: &Author) -> Result<(), CommitError> {
        let is_admin = is_admin(store, author.uid)?;
        self.rate.look(author.uid, is_admin).map_err(|wait| self.too_fast(author, wait))
    }

    pub(super) fn spend(&self, store: &Store, author: &Author, ops: &[Op]) -> Result<Spent<'_>, CommitError> {
        let is_admin = is_admin(store, author.uid)?;
        let bytes = ops.iter().map(|op| op.key().len() + op.value().map_or(0, bytes::Bytes::len)).sum();
        self.rate.take(author.uid, is_admin, bytes).map_err(|wait| self.too_fast(author, wait))?;
        // Administrators import, and clean up after others.
        if is_admin {
            return Ok(Spent(self.quotas.add_anyway(store, ops)?));
        }
        self.wait(store, author.uid, ops, bytes)?;
        self.quotas.add(store, ops).map(Spent).map_err(|error| match error {
            QuotaError::Full(reason) => CommitError::TooMuch(reason),
            QuotaError::Store(error) => error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Collection, Key};

    #[test]
    fn p07_one_user_leaves_room_in_the_outbox() {
        let (mut waiting, most) = (Waiting::default(), 800);
        assert!(waiting.add(1, 100, most) && !waiting.add(1, 1, most), "an eighth");
        for uid in 2..8 {
            assert!(waiting.add(uid, 100, most), "others have as much");
        }
        assert!(!waiting.add(8, 1, most), "the last eighth is kept");
    }

    #[test]
    fn p07_what_ends_access_or_takes_away_needs_no_room() {
        let place = |collection: &str| (Collection::new(collection).expect("a name"), Key::new("1").expect("a key"));
        let put = |name: &str| {
            let (collection, key) = place(name);
            Op::Put { collection, key, value: "{}".into() }
        };
        let delete = |name: &str| {
            let (collection, key) = place(name);
            Op::Delete { collection, key }
        };
        assert!(is_vital(&[put("locks"), put("session-epochs"), delete("sessions")]));
        assert!(is_vital(&[delete("dashboards")]));
        assert!(!is_vital(&[put("sessions"), put("dashboards")]));
    }
}
