//! Limits on the amount and rate of users' writes, checked where every change passes.

use super::passwords::Password;
use super::quotas::{Added, QuotaError, Quotas, UntilRefused};
use super::record::Stored;
use super::second_factors::{Factor, LastStep, RecoveryCodes, Setup};
use super::sessions::{End, Epoch, Session};
use super::store::{Author, CommitError};
use super::tokens::{TokenEnd, TokenEpoch};
use super::users::{Admin, Lock};
use super::write_rate::WriteRate;
use super::{Store, StoreError, Writes};
use gravwell_model::Op;
use gravwell_replica::OutboxQuota;

/// Callback for changes that exceed the rate.
pub type Told = Box<dyn Fn(&Author) + Send + Sync>;

/// Collections whose changes end access or authenticate users; each such change is small. Tokens are created in
/// advance, and can wait.
const KEPT: [&str; 11] = [
    Session::COLLECTION,
    End::COLLECTION,
    Epoch::COLLECTION,
    TokenEnd::COLLECTION,
    TokenEpoch::COLLECTION,
    Lock::COLLECTION,
    Password::COLLECTION,
    Factor::COLLECTION,
    LastStep::COLLECTION,
    RecoveryCodes::COLLECTION,
    Setup::COLLECTION,
];

/// Returns whether operations only delete, or concern authentication.
fn is_kept_for(ops: &[Op]) -> bool {
    ops.iter().all(|op| op.value().is_none() || KEPT.contains(&op.collection().as_str()))
}

/// The limits.
pub struct WriteLimits {
    rate: WriteRate,
    quotas: Quotas,
    told: Told,
}

impl std::fmt::Debug for WriteLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allowance").field("rate", &self.rate).field("quotas", &self.quotas).finish_non_exhaustive()
    }
}

/// Amounts that a change was charged; returned on drop unless kept.
#[derive(Debug)]
pub struct Spent<'a>(Added<'a>);

impl<'a> Spent<'a> {
    /// Keeps the charge, because the change was made.
    pub fn keep(self) {
        self.0.keep();
    }

    /// Keeps the charge unless the change is reported as not made.
    #[must_use]
    pub fn until_refused(self) -> UntilRefused<'a> {
        self.0.until_refused()
    }
}

fn is_admin(store: &Store, uid: i32) -> Result<bool, StoreError> {
    store.has::<Admin>(&Admin { uid, since: super::Timestamp::NEVER }.key())
}

impl WriteLimits {
    /// Creates the limits, with a callback for changes that exceed the rate.
    #[must_use]
    pub fn new(rate: WriteRate, quotas: Quotas, told: Told) -> WriteLimits {
        WriteLimits { rate, quotas, told }
    }

    /// Returns how much of the outbox a change may use. Administrators import data, and clean up after others. Changes
    /// with which the webserver completes work that was charged at its start are always small.
    pub(super) fn room(store: &Store, author: &Author, writes: &Writes) -> Result<OutboxQuota, StoreError> {
        if author.uid == 0 || is_admin(store, author.uid)? {
            return Ok(OutboxQuota::Whole);
        }
        Ok(if writes.is_unmetered() || is_kept_for(writes.ops()) { OutboxQuota::Kept } else { OutboxQuota::Share })
    }

    fn too_fast(&self, author: &Author, wait: std::time::Duration) -> CommitError {
        (self.told)(author);
        CommitError::TooFast(wait)
    }

    /// Checks whether a change of this user would be accepted now; called before expensive work for one.
    ///
    /// # Errors
    /// If the user's changes exceeded the rate.
    pub fn look(&self, store: &Store, author: &Author) -> Result<(), CommitError> {
        let is_admin = is_admin(store, author.uid)?;
        self.rate.look(author.uid, is_admin).map_err(|wait| self.too_fast(author, wait))
    }

    pub(super) fn spend(&self, store: &Store, author: &Author, ops: &[Op]) -> Result<Spent<'_>, CommitError> {
        let is_admin = is_admin(store, author.uid)?;
        let bytes = ops.iter().map(|op| op.key().len() + op.value().map_or(0, bytes::Bytes::len)).sum();
        self.rate.take(author.uid, is_admin, bytes).map_err(|wait| self.too_fast(author, wait))?;
        // Administrators import data, and clean up after others.
        if is_admin {
            return Ok(Spent(self.quotas.add_anyway(store, ops)?));
        }
        self.quotas.add(store, author.uid, ops).map(Spent).map_err(|error| match error {
            QuotaError::Full(reason) => CommitError::TooMuch(reason),
            QuotaError::Store(error) => error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Collection, Key};

    #[test]
    fn p07_what_ends_access_or_takes_away_has_room_kept_for_it() {
        let place = |collection: &str| (Collection::new(collection).expect("a name"), Key::new("1").expect("a key"));
        let put = |name: &str| {
            let (collection, key) = place(name);
            Op::Put { collection, key, value: "{}".into() }
        };
        let delete = |name: &str| {
            let (collection, key) = place(name);
            Op::Delete { collection, key }
        };
        assert!(is_kept_for(&[
            put("locks"),
            put("session-epochs"),
            put("token-epochs"),
            put("session-ends"),
            put("token-ends"),
            delete("sessions")
        ]));
        assert!(is_kept_for(&[delete("dashboards")]));
        assert!(!is_kept_for(&[put("sessions"), put("dashboards")]));
        assert!(!is_kept_for(&[put("tokens")]), "creating tokens must not use the reserved room");
    }
}
