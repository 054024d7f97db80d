//! Places for work on results: threads are few, so nobody has more than a share of them, and who asks for more waits in line.

use std::io;

use crate::env::shares::{Share, Shares};

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
