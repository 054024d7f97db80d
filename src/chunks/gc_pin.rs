//! Protection of chunks that are not referenced yet against garbage collection.

use std::sync::Arc;
use std::time::Duration;

use super::pack::locked;
use super::store::{ChunkStore, StoreState};

/// While it exists, every chunk written or queried since its creation is kept. Clones share the same hold.
#[derive(Clone, Debug)]
pub struct GcPin {
    _held: Arc<Held>,
}

struct Held {
    shared: Arc<StoreState>,
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

/// Chunks written or queried at this second or later are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcCutoff(pub(super) u32);

impl GcCutoff {
    /// Returns whether a chunk that was last written or queried at `touched` is kept.
    pub(super) fn spares(self, touched: u32) -> bool {
        touched >= self.0
    }
}

impl ChunkStore {
    /// Keeps all chunks that are written or queried from now on, until the hold is dropped. For callers that will
    /// reference these chunks.
    #[must_use]
    pub fn hold(&self) -> GcPin {
        let shared = Arc::clone(&self.shared);
        // The time is read under the lock, so that a concurrent cutoff either precedes the hold or sees it.
        let mut held = locked(&shared.held);
        let since = shared.now_s();
        *held.entry(since).or_insert(0) += 1;
        drop(held);
        GcPin { _held: Arc::new(Held { shared, since }) }
    }

    /// Returns the cutoff that protects unreferenced chunks written or queried within `grace`, or since the oldest
    /// [`GcPin`] was created. Take it *before* determining which chunks are referenced: if a hold is dropped in between,
    /// its chunks are either protected by the cutoff or already referenced.
    #[must_use]
    pub fn cutoff(&self, grace: Duration) -> GcCutoff {
        let held = locked(&self.shared.held);
        let now = self.shared.now_s();
        // Both times are truncated to whole seconds, so a nonzero grace period is rounded up.
        let young = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX).saturating_add(u32::from(!grace.is_zero()));
        let by_age = now.saturating_add(1).saturating_sub(young);
        GcCutoff(held.keys().next().map_or(by_age, |oldest| by_age.min(*oldest)))
    }
}
