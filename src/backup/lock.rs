//! One at a time: who writes to a repository or removes from it holds its lock.

use serde::{Deserialize, Serialize};

use super::store::{Store, StoreError};
use crate::env::{Clock, SystemClock};

const NAME: &str = "lock";
/// A lock this old was left behind.
const STALE_MS: u64 = 24 * 3600 * 1000;

#[derive(Serialize, Deserialize)]
struct Holder {
    host: String,
    process: u32,
    since_ms: u64,
    what: String,
}

/// Held until it is dropped.
pub struct Lock<'a> {
    store: &'a dyn Store,
}

impl<'a> Lock<'a> {
    /// Takes the lock.
    ///
    /// # Errors
    /// When somebody else has it: the message says who, since when, and what to do.
    pub fn take(store: &'a dyn Store, what: &str) -> Result<Lock<'a>, StoreError> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let now_ms = SystemClock.now_ms();
        let holder =
            Holder { host: host.clone(), process: std::process::id(), since_ms: now_ms, what: what.to_owned() };
        let text = serde_json::to_vec(&holder).unwrap_or_default();
        match store.put_new(NAME, &text) {
            Ok(()) => Ok(Lock { store }),
            Err(StoreError::Exists(_)) => {
                let other: Option<Holder> = store.get(NAME).ok().and_then(|text| serde_json::from_slice(&text).ok());
                let is_left = other.as_ref().is_some_and(|other| {
                    let is_gone = other.host == host
                        && other.process != std::process::id()
                        && !std::path::Path::new("/proc").join(other.process.to_string()).exists();
                    is_gone || now_ms.saturating_sub(other.since_ms) > STALE_MS
                });
                if is_left {
                    store.put(NAME, &text)?;
                    return Ok(Lock { store });
                }
                let who = other.map_or_else(
                    || "somebody".to_owned(),
                    |other| format!("{} (process {} on {})", other.what, other.process, other.host),
                );
                let reason = format!("{who} is at work; wait, or remove it if that process is gone");
                Err(StoreError::Failed { name: format!("{}/{NAME}", store.place()), reason })
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.store.remove(NAME) {
            tracing::warn!(%error, "the repository's lock was not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::LocalStore;

    #[test]
    fn one_at_a_time_and_what_a_dead_process_left_does_not_stand_in_the_way() {
        let temp = tempfile::tempdir().expect("temp dir");
        let store = LocalStore::new(temp.path());
        let lock = Lock::take(&store, "backup").expect("takes");
        let refused = Lock::take(&store, "prune").map(drop).expect_err("is held").to_string();
        assert!(refused.contains("backup (process"), "{refused}");
        drop(lock);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("reads").trim().to_owned();
        let dead = Holder { host, process: u32::MAX, since_ms: SystemClock.now_ms(), what: "backup".into() };
        store.put("lock", &serde_json::to_vec(&dead).expect("text")).expect("writes");
        drop(Lock::take(&store, "prune").expect("takes over"));
        let old = Holder { host: "elsewhere".into(), process: 1, since_ms: 1, what: "backup".into() };
        store.put("lock", &serde_json::to_vec(&old).expect("text")).expect("writes");
        drop(Lock::take(&store, "prune").expect("takes over"));
    }
}
