//! Limits the number of concurrent filter processes over all searches of a webserver.
//!
//! A search reserves a slot for each of its filters before it starts, all at once. Otherwise two searches that hold some
//! slots and wait for more could deadlock. The second process of a filter is optional and is started only while half of
//! the slots are free. A user who is not an administrator has at most a quarter of the slots, or as many as one search
//! needs. A user who needs more waits for their own searches to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gravwell_env::quota::Quota;
use gravwell_runtime::tasks::shares::{Share, Shares};

/// Maximum time to wait for slots.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Maximum number of waiting searches, in total and per user; further ones are rejected immediately.
const WAITING_MAX: usize = 256;
const WAITING_OF_USER: usize = 32;

/// Error if no slots are available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {0} filter processes of this webserver are busy; try again in a moment (Search-Filter-Processes)")]
pub struct Busy(usize);

/// Reserved slots, released on drop.
#[derive(Debug)]
pub struct Reserved {
    _share: Option<Share>,
}

/// Limit on filter processes.
#[derive(Debug)]
pub(super) struct Places {
    shares: Shares<i32>,
    max: usize,
    wait_max: Duration,
    waiting: AtomicUsize,
    waiting_of_users: Arc<Quota<i32>>,
}

/// Counts a waiting search until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    pub(super) fn new(max: usize) -> Places {
        Places {
            shares: Shares::new(max, max / 4),
            max,
            wait_max: WAIT_MAX,
            waiting: AtomicUsize::new(0),
            waiting_of_users: Quota::new(WAITING_OF_USER),
        }
    }

    /// Reserves `count` slots for a user (`None`: an administrator). Requests are served in order.
    ///
    /// # Errors
    /// If the slots do not become free within [`WAIT_MAX`], or too many searches are waiting.
    pub(super) async fn reserve(&self, uid: Option<i32>, count: usize) -> Result<Reserved, Busy> {
        if count == 0 {
            return Ok(Reserved { _share: None });
        }
        let busy = || Busy(self.max);
        let count = u32::try_from(count.min(self.max)).map_err(|_| busy())?;
        let _of_user = uid.map(|uid| self.waiting_of_users.take(uid).ok_or_else(busy)).transpose()?;
        let is_full = self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX;
        let _waiting = Waiting(&self.waiting);
        if is_full {
            return Err(busy());
        }
        let share = tokio::time::timeout(self.wait_max, self.shares.take(uid, count)).await;
        Ok(Reserved { _share: Some(share.map_err(|_| busy())?.map_err(|_| busy())?) })
    }

    /// Reserves a slot for an optional process; returns `None` unless half of the slots are free.
    pub(super) fn spare(&self) -> Option<Reserved> {
        self.shares.spare(self.max / 2).map(|share| Reserved { _share: Some(share) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(max: usize, wait_ms: u64) -> Places {
        Places { wait_max: Duration::from_millis(wait_ms), ..Places::new(max) }
    }

    #[tokio::test]
    async fn p15_searches_wait_for_filter_processes_and_are_refused_in_the_end() {
        let impatient = places(4, 20);
        let first = impatient.reserve(Some(1), 3).await.expect("free");
        assert_eq!(impatient.reserve(Some(2), 2).await.expect_err("one is free"), Busy(4));
        drop(first);
        let places = places(4, 60_000);
        let first = places.reserve(Some(1), 3).await.expect("free");
        assert!(places.spare().is_none(), "less than half is free");
        let (second, ()) = tokio::join!(places.reserve(Some(2), 2), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(first);
        });
        drop(second.expect("free again"));
        drop(places.reserve(Some(1), 100).await.expect("a request for more than all gets all"));
        let spare = places.spare().expect("all are free");
        assert!(places.spare().is_some() && places.reserve(Some(1), 0).await.is_ok());
        drop(spare);
        assert_eq!((places.shares.free(), places.waiting.load(Ordering::Relaxed)), (4, 0));
    }

    #[tokio::test]
    async fn p15_one_user_leaves_filter_processes_to_others() {
        let places = places(32, 20);
        let own = [places.reserve(Some(7), 4).await.expect("free"), places.reserve(Some(7), 4).await.expect("free")];
        assert!(places.reserve(Some(7), 1).await.is_err(), "a user gets a quarter");
        for uid in 8..11 {
            std::mem::forget(places.reserve(Some(uid), 8).await.expect("other users get a quarter each"));
        }
        drop(own);
        drop(places.reserve(Some(7), 8).await.expect("the user's processes are free again"));
    }

    #[tokio::test]
    async fn p15_only_so_many_searches_wait() {
        let places = Arc::new(places(1, 60_000));
        let held = places.reserve(Some(1), 1).await.expect("free");
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|number| {
                let (places, uid) = (Arc::clone(&places), i32::try_from(number / WAITING_OF_USER).expect("few"));
                tokio::spawn(async move { places.reserve(Some(10 + uid), 1).await.is_ok() })
            })
            .collect();
        while places.waiting.load(Ordering::Relaxed) < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        let refused = tokio::time::timeout(Duration::from_secs(30), places.reserve(Some(3), 1)).await;
        assert!(refused.expect("without a wait").is_err());
        waiting[0].abort();
        while !waiting[0].is_finished() {
            tokio::task::yield_now().await;
        }
        let refused = tokio::time::timeout(Duration::from_secs(30), places.reserve(Some(11), 1)).await;
        assert!(refused.expect("without a wait").is_err(), "the queue limits each user");
        drop(held);
        for waited in waiting.into_iter().skip(1) {
            assert!(waited.await.expect("ends"), "each is served");
        }
    }
}
