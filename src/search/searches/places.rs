//! Places for work on results: threads are few, so nobody has more than a share of them, and who asks for more waits in line.

use std::io;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::SearchError;
use crate::env::shares::{Share, Shares};

/// Threads of all searches that run, and of those of one user who is no administrator: one for each search and for each resource
/// that it reads. There are 512 for what waits for disks and processors.
const THREADS: usize = 320;
const THREADS_OF_USER: usize = 96;
/// Longest wait for them.
const THREADS_WITHIN: Duration = Duration::from_secs(10);

/// Threads of searches. Each has all of its own before it begins: two that had some and waited for more would wait for each
/// other.
pub(super) struct Threads(Shares<i32>);

impl Default for Threads {
    fn default() -> Threads {
        Threads(Shares::new(THREADS, THREADS_OF_USER))
    }
}

impl Threads {
    /// Waits for the threads of a search that reads so many resources; `None`: of an administrator.
    pub(super) async fn take(&self, uid: Option<i32>, resources: usize) -> Result<Share, SearchError> {
        let count = u32::try_from(resources.saturating_add(1).min(THREADS)).unwrap_or(1);
        let taken = tokio::time::timeout(THREADS_WITHIN, self.0.take(uid, count)).await;
        Ok(taken.map_err(|_| SearchError::Crowded)?.map_err(io::Error::other)?)
    }
}

/// Results that are opened at the same time, and those that are fetched from elsewhere first, which takes as long as it takes;
/// and how many of either for one user.
const OPENINGS: usize = 32;
const OPENINGS_OF_USER: usize = 4;

/// Places for opening results: one for each search, so that of those who want it at once one fetches it and the others find it,
/// and nobody waits behind other searches; few for each user.
pub(super) struct Openings {
    of_searches: Shares<String>,
    here: Shares<i32>,
    fetched: Shares<i32>,
}

impl Default for Openings {
    fn default() -> Openings {
        let of_users = || Shares::new(OPENINGS, OPENINGS_OF_USER);
        Openings { of_searches: Shares::new(Semaphore::MAX_PERMITS, 1), here: of_users(), fetched: of_users() }
    }
}

impl Openings {
    /// Waits for the place of a search and one of a user. They go into the work itself, which may last longer than anybody
    /// waits for it.
    pub(super) async fn take(&self, uid: i32, id: &str, is_here: bool) -> io::Result<(Share, Share)> {
        let of_users = if is_here { &self.here } else { &self.fetched };
        // Who waits for a search that another one fetches takes only their own places.
        let of_user = of_users.take(Some(uid), 1).await.map_err(io::Error::other)?;
        let of_search = self.of_searches.take(Some(id.to_owned()), 1).await.map_err(io::Error::other)?;
        Ok((of_user, of_search))
    }
}

/// Places, and how many of them each user may have.
pub struct Places(Shares<i32>);

impl Places {
    /// So many places, of which each user may have `of_user`.
    #[must_use]
    pub fn new(all: usize, of_user: usize) -> Places {
        Places(Shares::new(all, of_user))
    }

    /// Waits for a place of a user. It goes into the work itself, which may last longer than anybody waits for it.
    ///
    /// # Errors
    /// Never: no place is ever closed.
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
        assert!(large().is_none(), "the fourth waits for one of the three");
        let other = threads.take(Some(2), 31).now_or_never().expect("has nothing to do with it").expect("free");
        drop(own);
        let again = large().expect("is free again").expect("free");
        let most = threads.take(None, usize::MAX).now_or_never();
        assert!(most.is_none(), "one that needs all waits for all");
        drop((other, again));
        assert!(threads.take(None, usize::MAX).now_or_never().is_some());
    }

    #[tokio::test]
    async fn p15_results_are_opened_one_at_a_time_of_a_search_and_at_once_of_many() {
        let openings = Openings::default();
        let first = openings.take(1, "a", false).await.expect("free");
        let mut second = Box::pin(openings.take(2, "a", false));
        assert!((&mut second).now_or_never().is_none(), "it is being fetched");
        let other = openings.take(2, "b", false).now_or_never().expect("has nothing to do with it").expect("free");
        let own: Vec<_> = (0..OPENINGS_OF_USER - 1)
            .map(|number| openings.take(1, &number.to_string(), false).now_or_never().expect("theirs"))
            .collect();
        assert!(openings.take(1, "c", false).now_or_never().is_none(), "they have all of theirs");
        assert!(openings.take(1, "c", true).now_or_never().is_some(), "what is here does not wait behind what is not");
        drop(first);
        drop((second.await.expect("is free now"), other, own));
    }
}
