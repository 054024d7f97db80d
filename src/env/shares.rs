//! Places for work that is much, of which nobody has more than a share: who asks for more waits for their own to end, and
//! keeps nobody else waiting.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Who asked is forgotten beyond this many, unless they have places.
const REMEMBERED_MAX: usize = 1024;

/// Places, and how many each may have of them.
#[derive(Debug)]
pub struct Shares<K> {
    all: Arc<Semaphore>,
    of_each: usize,
    own: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// Places that are taken; given back when dropped.
#[derive(Debug)]
pub struct Share {
    _own: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl<K: Eq + Hash> Shares<K> {
    /// So many places, of which each may have at most `of_each`.
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

    /// Waits for `count` places for somebody; without a key, for whom there is no bound. One piece of work may need more than a
    /// share: it has to be the only one then.
    ///
    /// # Errors
    /// Never: no place is ever closed.
    pub async fn take(&self, key: Option<K>, count: u32) -> Result<Share, AcquireError> {
        let most = u32::try_from(self.of_each).unwrap_or(u32::MAX);
        let own = match key {
            Some(key) => Some(self.own(key).acquire_many_owned(count.min(most)).await?),
            None => None,
        };
        let all = Arc::clone(&self.all).acquire_many_owned(count).await?;
        Ok(Share { _own: own, _all: all })
    }

    /// A place that is nobody's, if more than `left` are free.
    #[must_use]
    pub fn spare(&self, left: usize) -> Option<Share> {
        if self.free() <= left {
            return None;
        }
        Arc::clone(&self.all).try_acquire_owned().ok().map(|all| Share { _own: None, _all: all })
    }

    /// Places that are free.
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
        assert!((&mut third).now_or_never().is_none(), "they have their share");
        let other = shares.take(Some(2), 2).await.expect("whoever waits for their own is in nobody's way");
        drop(first);
        drop(third.await);
        drop(other);
        let large = shares.take(Some(3), 4).await.expect("one piece of work may need more");
        assert_eq!((shares.free(), shares.spare(0).is_none()), (0, true));
        drop(large);
        assert!(shares.spare(3).is_some() && shares.spare(4).is_none());
        for key in 10..10_000 {
            drop(shares.take(Some(key), 1).await);
        }
        assert!(shares.own.lock().expect("not poisoned").len() <= REMEMBERED_MAX);
    }
}
