//! Slots for work on results. Threads are scarce, so each user is limited to a share of them and waits for more.

use std::io;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::SearchError;
use gravwell_runtime::tasks::shares::{Share, Shares};

/// Maximum number of threads of all searches, and of the searches of one user who is not an administrator. A search uses
/// one thread, and one for each resource that it reads. The runtime has 512 blocking threads.
const THREADS: usize = 320;
const THREADS_OF_USER: usize = 96;
/// Maximum time to wait for threads.
const THREADS_WITHIN: Duration = Duration::from_secs(10);

/// Threads of searches. A search reserves all of its threads before it starts; otherwise two searches that hold some and
/// wait for more could deadlock.
pub(super) struct Threads(Shares<i32>);

impl Default for Threads {
    fn default() -> Threads {
        Threads(Shares::new(THREADS, THREADS_OF_USER))
    }
}

impl Threads {
    /// Waits for the threads of a search that reads `resources` resources; `uid` is `None` for an administrator.
    pub(super) async fn take(&self, uid: Option<i32>, resources: usize) -> Result<Share, SearchError> {
        let count = u32::try_from(resources.saturating_add(1).min(THREADS)).unwrap_or(1);
        let taken = tokio::time::timeout(THREADS_WITHIN, self.0.take(uid, count)).await;
        Ok(taken.map_err(|_| SearchError::Crowded)?.map_err(io::Error::other)?)
    }
}

/// Maximum number of results opened concurrently, in total and per user. Results that must be fetched first are counted
/// separately, because that takes an unbounded time.
const OPENINGS: usize = 32;
const OPENINGS_OF_USER: usize = 4;

/// Slots for opening results. There is one per search: of several concurrent requests, one fetches the results and the
/// others find them, and other searches are not delayed. Each user has a limited number, and so have all together.
pub(super) struct Openings {
    of_searches: Shares<String>,
    here: OfKind,
    fetched: OfKind,
}

/// Slots for results of one kind.
struct OfKind {
    of_users: Shares<i32>,
    of_all: Shares<i32>,
}

impl Default for OfKind {
    fn default() -> OfKind {
        OfKind {
            of_users: Shares::new(Semaphore::MAX_PERMITS, OPENINGS_OF_USER),
            of_all: Shares::new(OPENINGS, OPENINGS_OF_USER),
        }
    }
}

impl Default for Openings {
    fn default() -> Openings {
        let of_searches = Shares::new(Semaphore::MAX_PERMITS, 1);
        Openings { of_searches, here: OfKind::default(), fetched: OfKind::default() }
    }
}

impl Openings {
    /// Waits for the slot of a search, one of a user and one of all. The caller moves them into the work, which may last
    /// longer than its requester waits.
    pub(super) async fn take(&self, uid: i32, id: &str, is_here: bool) -> io::Result<[Share; 3]> {
        let OfKind { of_users, of_all } = if is_here { &self.here } else { &self.fetched };
        // In this order, a request that waits for another one to fetch the same search uses only slots of its own user.
        let of_user = of_users.take(Some(uid), 1).await.map_err(io::Error::other)?;
        let of_search = self.of_searches.take(Some(id.to_owned()), 1).await.map_err(io::Error::other)?;
        let of_all = of_all.take(Some(uid), 1).await.map_err(io::Error::other)?;
        Ok([of_user, of_search, of_all])
    }
}

/// Slots with a limit per user.
pub struct Places(Shares<i32>);

impl Places {
    /// Creates `all` slots, of which each user may have `of_user`.
    #[must_use]
    pub fn new(all: usize, of_user: usize) -> Places {
        Places(Shares::new(all, of_user))
    }

    /// Waits for a slot of a user. The caller moves it into the work, which may last longer than its requester waits.
    ///
    /// # Errors
    /// Never: the semaphores are not closed.
    pub async fn take(&self, uid: i32) -> io::Result<Share> {
        self.0.take(Some(uid), 1).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn p15_searches_that_read_much_leave_threads_to_those_of_others() {
        let threads = Threads::default();
        let large = || threads.take(Some(1), 31).now_or_never();
        let own: Vec<_> = (0..3).map(|_| large().expect("theirs").expect("free")).collect();
        assert!(large().is_none(), "the fourth large search waits");
        let other = threads.take(Some(2), 31).now_or_never().expect("another user is not affected").expect("free");
        drop(own);
        let again = large().expect("threads are free again").expect("free");
        let most = threads.take(None, usize::MAX).now_or_never();
        assert!(most.is_none(), "a request for all threads waits");
        drop((other, again));
        assert!(threads.take(None, usize::MAX).now_or_never().is_some());
    }

    #[tokio::test]
    async fn p15_results_are_opened_one_at_a_time_of_a_search_and_at_once_of_many() {
        let openings = Openings::default();
        let first = openings.take(1, "a", false).await.expect("free");
        let mut second = Box::pin(openings.take(2, "a", false));
        assert!((&mut second).now_or_never().is_none(), "the search is being fetched");
        let other = openings.take(2, "b", false).now_or_never().expect("another user is not affected").expect("free");
        let own: Vec<_> = (0..OPENINGS_OF_USER - 1)
            .map(|number| openings.take(1, &number.to_string(), false).now_or_never().expect("theirs"))
            .collect();
        assert!(openings.take(1, "c", false).now_or_never().is_none(), "the user has reached the limit");
        assert!(openings.take(1, "c", true).now_or_never().is_some(), "local results do not wait for remote ones");
        drop(first);
        drop((second.await.expect("slot is free"), other, own));
    }

    #[tokio::test]
    async fn p15_who_waits_for_a_search_that_is_fetched_keeps_nobody_from_fetching_others() {
        let openings = Openings::default();
        let first = openings.take(1, "slow", false).await.expect("free");
        let users = 2..2 + i32::try_from(OPENINGS).expect("small");
        let mut waiting: Vec<_> = users.map(|uid| Box::pin(openings.take(uid, "slow", false))).collect();
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()), "the search is being fetched");
        assert!(openings.take(1000, "other", false).now_or_never().is_some());
        drop((waiting, first));
    }
}
