//! Limits the number of operations that each user has in progress.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counters by key, with the same limit for each key.
#[derive(Debug)]
pub struct Quota<K> {
    max: usize,
    used: Mutex<HashMap<K, usize>>,
}

/// One counted operation; released when dropped.
#[derive(Debug)]
pub struct Held<K: Eq + Hash> {
    quota: Arc<Quota<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Quota<K> {
    /// Creates a quota of `max` for each key.
    #[must_use]
    pub fn new(max: usize) -> Arc<Quota<K>> {
        Arc::new(Quota { max, used: Mutex::default() })
    }

    /// Acquires one unit for a key; `None` if the key has used its quota.
    #[must_use]
    pub fn take(self: &Arc<Self>, key: K) -> Option<Held<K>> {
        let mut used = self.used();
        let count = used.entry(key.clone()).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Held { quota: Arc::clone(self), key })
    }

    /// Returns the quota of each key.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }
}

impl<K> Quota<K> {
    fn used(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Held<K> {
    fn drop(&mut self) {
        let mut used = self.quota.used();
        let Some(count) = used.get_mut(&self.key) else { return };
        *count -= 1;
        if *count == 0 {
            used.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_each_key_has_its_own_bound_and_gets_it_back() {
        let quota = Quota::new(2);
        let held = [quota.take(1), quota.take(1)];
        assert!(held.iter().all(Option::is_some) && quota.take(1).is_none());
        assert!(quota.take(2).is_some(), "another key has its own bound");
        drop(held);
        assert!(quota.take(1).is_some());
        assert!(quota.used().is_empty(), "unused keys are removed");
        assert!(Quota::new(0).take(1).is_none());
    }
}
