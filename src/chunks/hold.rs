//! What must stay although nothing names it yet.

use std::sync::Arc;
use std::time::Duration;

use super::pack::locked;
use super::store::{ChunkStore, Shared};

/// As long as it lives, every chunk that was written or asked for after its beginning stays. Clones are the same hold.
#[derive(Clone, Debug)]
pub struct Hold {
    _held: Arc<Held>,
}

struct Held {
    shared: Arc<Shared>,
    since: u32,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = locked(&self.shared.held);
        if let Some(count) = held.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.since);
            }
        }
    }
}

/// Chunks written or asked for at this second or later stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cutoff(pub(super) u32);

impl Cutoff {
    /// Whether a chunk stays that was written or asked for last at `touched`.
    pub(super) fn spares(self, touched: u32) -> bool {
        touched >= self.0
    }
}

impl ChunkStore {
    /// Keeps everything that is written or asked for from now on, until it is dropped: for whoever goes on to name it.
    #[must_use]
    pub fn hold(&self) -> Hold {
        let shared = Arc::clone(&self.shared);
        // Under the lock, so that a cutoff is taken before or after, and sees it then.
        let mut held = locked(&shared.held);
        let since = shared.now_s();
        *held.entry(since).or_insert(0) += 1;
        drop(held);
        Hold { _held: Arc::new(Held { shared, since }) }
    }

    /// What is young enough to stay although nothing names it: what was written or asked for within `grace`, or since the
    /// oldest [`Hold`] began. It must be taken *before* asking what is named: a hold that ends in between has then either
    /// spared its chunks, or they are named.
    #[must_use]
    pub fn cutoff(&self, grace: Duration) -> Cutoff {
        let held = locked(&self.shared.held);
        let now = self.shared.now_s();
        // Seconds are cut off on both sides.
        let young = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX).saturating_add(u32::from(!grace.is_zero()));
        let by_age = now.saturating_add(1).saturating_sub(young);
        Cutoff(held.keys().next().map_or(by_age, |oldest| by_age.min(*oldest)))
    }
}
