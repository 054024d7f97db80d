//! Places for work on results: threads are few, so nobody has more than a share of them, and who asks for more waits in line.

use std::io;

use tokio::sync::Semaphore;

use crate::env::shares::{Share, Shares};

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
