//! Slots for expensive work, with a limit for each user: a request beyond the limit waits for earlier work of the same
//! user and does not delay other users.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Maximum number of users remembered; beyond this, users without slots are forgotten.
const REMEMBERED_MAX: usize = 1024;

/// A pool of slots with a limit for each key.
#[derive(Debug)]
pub struct Shares<K> {
    all: Arc<Semaphore>,
    of_each: usize,
    own: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// Acquired slots; released when dropped.
#[derive(Debug)]
pub struct Share {
    _own: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl<K: Eq + Hash> Shares<K> {
    /// Creates a pool of `all` slots, of which each key may have at most `of_each`.
    #[must_use]
    pub fn new(all: usize, of_each: usize) -> Shares<K> {
        Shares { all: Arc::new(Semaphore::new(all)), of_each: of_each.max(1), own: Mutex::default() }
    }

    fn own(&self, key: K) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.len() >= REMEMBERED_MAX {
            own.retain(|_, places| Arc::strong_count(places) > 1);
        }
        Arc::clone(own.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.of_each))))
    }

    /// Waits for `count` slots for a key; without a key there is no limit other than the pool. A single piece of work
    /// may need more slots than the limit of its key; then it must be the only one of that key.
    ///
    /// # Errors
    /// Never: the semaphores are never closed.
    pub async fn take(&self, key: Option<K>, count: u32) -> Result<Share, AcquireError> {
        let most = u32::try_from(self.of_each).unwrap_or(u32::MAX);
        let own = match key {
            Some(key) => Some(self.own(key).acquire_many_owned(count.min(most)).await?),
            None => None,
        };
        let all = Arc::clone(&self.all).acquire_many_owned(count).await?;
        Ok(Share { _own: own, _all: all })
    }

    /// Acquires a slot without a key if more than `left` are free.
    #[must_use]
    pub fn spare(&self, left: usize) -> Option<Share> {
        if self.free() <= left {
            return None;
        }
        Arc::clone(&self.all).try_acquire_owned().ok().map(|all| Share { _own: None, _all: all })
    }

    /// Returns the number of free slots.
    #[must_use]
    pub fn free(&self) -> usize {
        self.all.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn p15_nobody_has_more_than_a_share() {
        let shares = Shares::new(4, 2);
        let first = [shares.take(Some(1), 1).await.expect("open"), shares.take(Some(1), 1).await.expect("open")];
        let mut third = Box::pin(shares.take(Some(1), 1));
        assert!((&mut third).now_or_never().is_none(), "the share is used up");
        let other = shares.take(Some(2), 2).await.expect("a waiting key does not block others");
        drop(first);
        drop(third.await);
        drop(other);
        let large = shares.take(Some(3), 4).await.expect("one task may exceed the share");
        assert_eq!((shares.free(), shares.spare(0).is_none()), (0, true));
        drop(large);
        assert!(shares.spare(3).is_some() && shares.spare(4).is_none());
        for key in 10..10_000 {
            drop(shares.take(Some(key), 1).await);
        }
        assert!(shares.own.lock().expect("not poisoned").len() <= REMEMBERED_MAX);
    }
}
