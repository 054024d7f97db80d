//! Quotas: limits on the number and size of the objects of each kind that one user may keep. One user's objects must
//! not slow down other users' lists, or fill the memory or disk of members.
//!
//! A user's objects are counted by scanning them at the user's first change. From then on, changes made at this
//! webserver adjust the count. Changes made elsewhere are found by counting again: after a while, sooner near the
//! limit, and before any change is rejected.
//!
//! The table of kinds states which kinds have quotas. Histories have a separate limit, at which the oldest entries are
//! deleted, so that no search is rejected because of them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::kinds;
use super::{Store, StoreError};
use gravwell_model::{Collection, Op};
use gravwell_runtime::tasks::blocking;

/// Time for which a count is used.
const BELIEVED: Duration = Duration::from_secs(600);
/// The same above half of the limit.
const BELIEVED_NEAR: Duration = Duration::from_secs(60);
/// Maximum age of a count that causes a rejection.
const BELIEVED_FULL: Duration = Duration::from_secs(2);
/// Maximum number of counts remembered.
const REMEMBERED_MAX: usize = 4096;

/// Number of objects and their total size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    objects: i64,
    bytes: i64,
}

impl Amount {
    fn of(bytes: usize) -> Amount {
        Amount { objects: 1, bytes: i64::try_from(bytes).unwrap_or(i64::MAX) }
    }

    fn plus(self, other: Amount) -> Amount {
        let Amount { objects, bytes } = other;
        Amount { objects: self.objects.saturating_add(objects), bytes: self.bytes.saturating_add(bytes) }
    }

    fn minus(self, other: Amount) -> Amount {
        self.plus(Amount { objects: -other.objects, bytes: -other.bytes })
    }

    fn exceeds(self, most: Amount) -> bool {
        (most.objects != 0 && self.objects > most.objects) || (most.bytes != 0 && self.bytes > most.bytes)
    }
}

/// UID of the owner, and collection.
type Of = (i32, &'static str);

#[derive(Clone, Copy, Debug)]
struct Counted {
    amount: Amount,
    at: Instant,
}

/// Amounts of objects that users own, as far as they were counted.
#[derive(Debug)]
pub struct Quotas {
    most: Amount,
    counted: Mutex<HashMap<Of, Counted>>,
}

/// Amounts that a change adds to the counts; subtracted again on drop unless kept.
#[derive(Debug)]
pub struct Added<'a> {
    quotas: &'a Quotas,
    amounts: Vec<(Of, Amount)>,
}

impl Added<'_> {
    /// Keeps the amounts, because the change was made.
    pub fn keep(mut self) {
        self.amounts.clear();
    }
}

impl<'a> Added<'a> {
    /// Keeps the amounts unless the change is reported as not made.
    #[must_use]
    pub fn until_refused(self) -> UntilRefused<'a> {
        UntilRefused(Some(self))
    }
}

/// Amounts of a change in progress. They are kept on drop, because the caller may stop waiting for the outcome.
pub struct UntilRefused<'a>(Option<Added<'a>>);

impl UntilRefused<'_> {
    /// Subtracts the amounts: the change was not made.
    pub fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for UntilRefused<'_> {
    fn drop(&mut self) {
        if let Some(added) = self.0.take() {
            added.keep();
        }
    }
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        let mut counted = self.quotas.counted();
        for (of, amount) in &self.amounts {
            if let Some(known) = counted.get_mut(of) {
                known.amount = known.amount.minus(*amount);
            }
        }
    }
}

/// Reason why a change is rejected.
#[derive(Debug)]
pub enum QuotaError {
    /// A user has reached a quota; contains a description.
    Full(String),
    /// The present state cannot be read.
    Store(StoreError),
}

impl From<StoreError> for QuotaError {
    fn from(error: StoreError) -> QuotaError {
        QuotaError::Store(error)
    }
}

#[derive(Deserialize)]
struct Owned {
    #[serde(rename = "UID")]
    uid: i32,
}

fn owner(value: &[u8]) -> Option<i32> {
    serde_json::from_slice::<Owned>(value).ok().map(|owned| owned.uid)
}

impl Quotas {
    /// Creates limits for each kind and user; 0: no limit.
    #[must_use]
    pub fn new(objects_max: u64, bytes_max: u64) -> Quotas {
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        Quotas { most: Amount { objects: number(objects_max), bytes: number(bytes_max) }, counted: Mutex::default() }
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<Of, Counted>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the amounts that operations add to users' counts.
    fn added(store: &Store, ops: &[Op]) -> Result<Vec<(Of, Amount)>, StoreError> {
        let mut added: HashMap<Of, Amount> = HashMap::new();
        for op in ops {
            let collection = op.collection().as_str();
            let bounded = kinds::of(collection).filter(|kind| kind.has_quota);
            let Some(kind) = bounded.map(|kind| kind.collection) else { continue };
            let before = store.raw(op.collection(), op.key())?;
            let of = |value: &[u8]| owner(value).map(|uid| (uid, Amount::of(value.len())));
            if let Some((uid, amount)) = before.and_then(|(value, _)| of(&value)) {
                let sum = added.entry((uid, kind)).or_default();
                *sum = sum.minus(amount);
            }
            if let Some((uid, amount)) = op.value().and_then(|value| of(value)) {
                let sum = added.entry((uid, kind)).or_default();
                *sum = sum.plus(amount);
            }
        }
        Ok(added.into_iter().collect())
    }

    fn count(store: &Store, (uid, kind): Of) -> Result<Amount, StoreError> {
        let collection = Collection::new(kind).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let mut sum = Amount::default();
        blocking::run(|| {
            store.replica().each(&collection, "", |_, object| {
                if owner(&object.value) == Some(uid) {
                    sum = sum.plus(Amount::of(object.value.len()));
                }
                ControlFlow::Continue(())
            })
        })?;
        Ok(sum)
    }

    /// Returns a user's amount, counted no longer ago than `believed` permits.
    fn known(&self, store: &Store, of: Of, believed: &impl Fn(Amount) -> Duration) -> Result<Amount, StoreError> {
        let known = self.counted().get(&of).copied();
        if let Some(known) = known.filter(|known| known.at.elapsed() <= believed(known.amount)) {
            return Ok(known.amount);
        }
        let (at, amount) = (Instant::now(), Quotas::count(store, of)?);
        let mut counted = self.counted();
        if counted.len() >= REMEMBERED_MAX {
            counted.clear();
        }
        counted.insert(of, Counted { amount, at });
        Ok(amount)
    }

    /// Charges operations of an ordinary user. A user above the limit may still reduce the amount.
    ///
    /// # Errors
    /// If a quota is exceeded.
    pub fn add(&self, store: &Store, author: i32, ops: &[Op]) -> Result<Added<'_>, QuotaError> {
        let amounts = Quotas::added(store, ops)?;
        let half = self.half();
        let usual = |known: Amount| if known.exceeds(half) { BELIEVED_NEAR } else { BELIEVED };
        self.count_again(store, &amounts, usual)?;
        if let Ok(added) = self.note_if_fits(author, &amounts) {
            return Ok(added);
        }
        self.count_again(store, &amounts, |_| BELIEVED_FULL)?;
        self.note_if_fits(author, &amounts).map_err(|of| QuotaError::Full(self.refusal(author, &of)))
    }

    fn half(&self) -> Amount {
        Amount { objects: self.most.objects / 2, bytes: self.most.bytes / 2 }
    }

    /// Limits a user who may change another user's objects to half of the owner's quota.
    fn most_for(&self, author: i32, owner: i32) -> Amount {
        if author == owner { self.most } else { self.half() }
    }

    fn is_bounded(&self, amount: Amount) -> bool {
        self.most != Amount::default() && (amount.objects > 0 || amount.bytes > 0)
    }

    /// Renews counts older than `believed` permits, where the amount grows.
    fn count_again(
        &self,
        store: &Store,
        amounts: &[(Of, Amount)],
        believed: impl Fn(Amount) -> Duration,
    ) -> Result<(), StoreError> {
        let more = amounts.iter().filter(|(_, amount)| self.is_bounded(*amount));
        more.map(|(of, _)| of).try_for_each(|of| self.known(store, *of, &believed).map(drop))
    }

    /// Adds all amounts if all fit, so that concurrent changes cannot exceed the limit together. Otherwise returns the
    /// owner and kind that are full.
    fn note_if_fits(&self, author: i32, amounts: &[(Of, Amount)]) -> Result<Added<'_>, Of> {
        let mut counted = self.counted();
        for (of, amount) in amounts.iter().filter(|(_, amount)| self.is_bounded(*amount)) {
            let most = self.most_for(author, of.0);
            if counted.get(of).is_some_and(|known| known.amount.plus(*amount).exceeds(most)) {
                return Err(*of);
            }
        }
        Quotas::note(&mut counted, amounts);
        Ok(Added { quotas: self, amounts: amounts.to_vec() })
    }

    /// Charges operations of an administrator without checking the limits.
    ///
    /// # Errors
    /// If the present state cannot be read.
    pub fn add_anyway(&self, store: &Store, ops: &[Op]) -> Result<Added<'_>, StoreError> {
        let amounts = Quotas::added(store, ops)?;
        Quotas::note(&mut self.counted(), &amounts);
        Ok(Added { quotas: self, amounts })
    }

    fn note(counted: &mut HashMap<Of, Counted>, amounts: &[(Of, Amount)]) {
        for (of, amount) in amounts {
            if let Some(known) = counted.get_mut(of) {
                known.amount = known.amount.plus(*amount);
            }
        }
    }

    fn refusal(&self, author: i32, (uid, kind): &Of) -> String {
        let kind = kinds::of(kind).map_or(*kind, |kind| kind.plural);
        if author != *uid {
            return format!("the remaining quota of user {uid} for {kind} is reserved for that user");
        }
        let Amount { objects, bytes } = self.most;
        let mut bounds = Vec::new();
        if objects != 0 {
            bounds.push(format!("{objects} objects (User-Objects-Max)"));
        }
        if bytes != 0 {
            bounds.push(format!("{} KiB in total (User-Objects-MB)", bytes >> 10));
        }
        format!("user {uid} has reached the quota for {kind}: {}; delete some first", bounds.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::dashboards::Dashboard;
    use super::super::record::Stored;
    use super::*;

    const OF: Of = (7, Dashboard::COLLECTION);

    #[test]
    fn p15_of_changes_at_once_only_so_many_fit() {
        let quotas = Quotas::new(3, 100);
        quotas.counted().insert(OF, Counted { amount: Amount::default(), at: Instant::now() });
        let add = |bytes| quotas.note_if_fits(7, &[(OF, Amount::of(bytes))]);
        let (first, second) = (add(40).expect("fits"), add(40).expect("fits"));
        assert_eq!(add(40).map(drop), Err(OF), "too many bytes while both changes may be committed");
        drop(first);
        second.keep();
        add(60).expect("a dropped change uses no quota").keep();
        let less = Amount { objects: -1, bytes: -60 };
        quotas.note_if_fits(7, &[(OF, less)]).expect("shrinking always fits").keep();
        add(1).expect("fits").keep();
        add(1).expect("fits").keep();
        assert_eq!(add(1).map(drop), Err(OF), "too many objects");
    }

    #[test]
    fn p15_a_change_that_nobody_waits_for_counts_until_it_is_known_that_it_was_refused() {
        let quotas = Quotas::new(2, 100);
        quotas.counted().insert(OF, Counted { amount: Amount::default(), at: Instant::now() });
        let add = || quotas.note_if_fits(7, &[(OF, Amount::of(1))]).map(Added::until_refused);
        drop(add().expect("fits"));
        drop(add().expect("fits"));
        assert_eq!(add().map(drop), Err(OF), "both may have been committed");
        let quotas = Quotas::new(1, 100);
        quotas.counted().insert(OF, Counted { amount: Amount::default(), at: Instant::now() });
        for _ in 0..3 {
            let added = quotas.note_if_fits(7, &[(OF, Amount::of(1))]).expect("a rejected change uses no quota");
            added.until_refused().give_back();
        }
    }

    #[test]
    fn p15_who_changes_what_another_owns_leaves_half_of_the_room_to_the_owner() {
        let quotas = Quotas::new(0, 100);
        quotas.counted().insert(OF, Counted { amount: Amount::default(), at: Instant::now() });
        let grow = |author, bytes| quotas.note_if_fits(author, &[(OF, Amount { objects: 0, bytes })]).map(Added::keep);
        assert_eq!((grow(8, 50), grow(8, 1)), (Ok(()), Err(OF)));
        assert_eq!((grow(7, 50), grow(7, 1)), (Ok(()), Err(OF)), "the owner may use the whole quota");
        assert_eq!(grow(8, -60), Ok(()), "shrinking always fits");
    }

    #[test]
    fn owners_are_found_in_values() {
        assert_eq!(owner(br#"{"ID":5,"UID":7,"Data":{"UID":8}}"#), Some(7));
        assert_eq!((owner(b"{}"), owner(b"x")), (None, None));
    }
}
