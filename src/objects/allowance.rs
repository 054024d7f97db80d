//! How much and how fast users may write. It is asked where every change passes, so that no way of making one goes around it.

use super::quotas::{Added, QuotaError, Quotas};
use super::record::Stored;
use super::store::{Author, CommitError};
use super::users::Admin;
use super::write_rate::WriteRate;
use super::{Store, StoreError};
use crate::model::Op;

/// Hears of a change that came too fast.
pub type Told = Box<dyn Fn(&Author) + Send + Sync>;

/// The bounds.
pub struct Allowance {
    rate: WriteRate,
    quotas: Quotas,
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
    pub fn new(rate: WriteRate, quotas: Quotas, told: Told) -> Allowance {
        Allowance { rate, quotas, told }
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
        self.quotas.add(store, ops).map(Spent).map_err(|error| match error {
            QuotaError::Full(reason) => CommitError::TooMuch(reason),
            QuotaError::Store(error) => error.into(),
        })
    }
}
