//! Lock of a repository, held by processes that write to it or remove from it.
//!
//! The token in the lock identifies its holder, which rewrites the lock with the current time at regular intervals. A
//! lock that was not rewritten for long is stale, whichever process and host held it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::store::{Store, StoreError};
use gravwell_env::{Clock, SystemClock};

pub(super) const NAME: &str = "lock";
/// Interval at which a held lock is rewritten, in milliseconds.
const KEEP_MS: u64 = 60 * 1000;
/// Age of a stale lock, in milliseconds. Longer than one request to a slow store with all its retries.
const STALE_MS: u64 = 20 * 60 * 1000;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Holder {
    #[serde(default)]
    token: String,
    host: String,
    /// Identifies the running system and the namespace in which `process` counts. Empty if unknown, and in locks of
    /// versions that did not record it.
    #[serde(default)]
    space: String,
    process: u32,
    since_ms: u64,
    /// Time of the last write.
    #[serde(default)]
    kept_ms: u64,
    what: String,
}

/// Tokens of the locks that this process holds.
static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn held() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holder {
    fn new(what: &str) -> Result<Holder, StoreError> {
        let mut token = [0; 16];
        getrandom::fill(&mut token)
            .map_err(|error| StoreError::Failed { name: NAME.into(), reason: error.to_string() })?;
        let now_ms = SystemClock.now_ms();
        Ok(Holder {
            token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
            host: host(),
            space: process_space(),
            process: std::process::id(),
            since_ms: now_ms,
            kept_ms: now_ms,
            what: what.to_owned(),
        })
    }

    fn read(store: &dyn Store) -> Result<Option<Holder>, StoreError> {
        match store.get(NAME) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns whether the lock is stale.
    fn is_left(&self) -> bool {
        let is_here = !self.space.is_empty() && self.space == process_space();
        let is_own = is_here && self.process == std::process::id();
        let is_gone = is_here && is_gone(self.process);
        let is_old = SystemClock.now_ms().saturating_sub(self.kept_ms.max(self.since_ms)) > STALE_MS;
        is_gone || is_old || (is_own && !held().contains(&self.token))
    }
}

/// Returns whether no process has this number here. One that may not be signalled does exist.
fn is_gone(process: u32) -> bool {
    let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) else { return true };
    rustix::process::test_kill_process(process) == Err(Errno::SRCH)
}

/// Returns a text that is equal for two processes only if the numbers of processes mean the same for both. Containers may
/// share a host name and number their processes separately. Empty if that is unknown.
fn process_space() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let (boot, namespace) = (boot.trim(), namespace.to_string_lossy());
    if boot.is_empty() || namespace.is_empty() { String::new() } else { format!("{boot} {namespace}") }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A repository lock, released on drop.
pub struct Lock<'a> {
    store: &'a dyn Store,
    holder: Mutex<Holder>,
    gave_room: bool,
}

impl<'a> Lock<'a> {
    /// Acquires the lock.
    ///
    /// # Errors
    /// Returns an error if another process holds it. The message contains the holder, its operation and the remedy.
    pub fn take(store: &'a dyn Store, what: &str) -> Result<Lock<'a>, StoreError> {
        let holder = Holder::new(what)?;
        match store.put_new(NAME, &holder.text()) {
            Ok(()) => {}
            Err(StoreError::Exists(_)) => Self::take_over(store, &holder)?,
            Err(error) => return Err(error),
        }
        held().insert(holder.token.clone());
        Ok(Lock { store, holder: Mutex::new(holder), gave_room: false })
    }

    /// Acquires the lock in order to remove objects. If the disk is full, the reserved space is used.
    ///
    /// # Errors
    /// Like [`Lock::take`].
    pub fn take_to_remove(store: &'a dyn Store, what: &str) -> Result<Lock<'a>, StoreError> {
        match Self::take(store, what) {
            Err(StoreError::Full(_)) if store.give_room() => {
                let mut lock = Self::take(store, what)?;
                lock.gave_room = true;
                Ok(lock)
            }
            taken => taken,
        }
    }

    /// Returns whether the reserved space was used to acquire the lock.
    #[must_use]
    pub fn gave_room(&self) -> bool {
        self.gave_room
    }

    /// Takes over the existing lock if it is stale.
    fn take_over(store: &dyn Store, holder: &Holder) -> Result<(), StoreError> {
        let failed = |reason| StoreError::Failed { name: format!("{}/{NAME}", store.place()), reason };
        match Holder::read(store)? {
            // The write succeeded, only its response was lost.
            Some(other) if other.token == holder.token => {}
            Some(other) if !other.is_left() => {
                let who = format!("{} (process {} on {})", other.what, other.process, other.host);
                return Err(StoreError::Busy { name: format!("{}/{NAME}", store.place()), who });
            }
            _ => {
                store.put(NAME, &holder.text())?;
                let now = Holder::read(store)?;
                if now.is_none_or(|now| now.token != holder.token) {
                    return Err(failed("another process took over the lock at the same time; try again".into()));
                }
            }
        }
        Ok(())
    }

    /// Checks that the lock is still held.
    ///
    /// # Errors
    /// Returns an error if another process has taken it over, or the store cannot be reached.
    pub fn check(&self) -> Result<(), StoreError> {
        let token = self.holder.lock().unwrap_or_else(PoisonError::into_inner).token.clone();
        match Holder::read(self.store)? {
            Some(now) if now.token == token => Ok(()),
            _ => {
                let reason = "another process took over the lock, and this one stopped; try again".into();
                Err(StoreError::Failed { name: format!("{}/{NAME}", self.store.place()), reason })
            }
        }
    }

    /// Keeps the lock alive. Must be called often; most calls return immediately.
    ///
    /// # Errors
    /// Like [`Lock::check`].
    pub fn keep(&self) -> Result<(), StoreError> {
        let now_ms = SystemClock.now_ms();
        let is_due = {
            let holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
            now_ms.saturating_sub(holder.kept_ms) >= KEEP_MS
        };
        if !is_due {
            return Ok(());
        }
        self.check()?;
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        holder.kept_ms = now_ms;
        self.store.put(NAME, &holder.text())
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        let token = self.holder.lock().unwrap_or_else(PoisonError::into_inner).token.clone();
        held().remove(&token);
        let removed = match Holder::read(self.store) {
            Ok(Some(now)) if now.token == token => self.store.remove(NAME),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "failed to remove repository lock");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    fn put(store: &LocalStore, change: impl FnOnce(&mut Holder)) {
        let mut holder = Holder::new("backup").expect("a token");
        change(&mut holder);
        store.put(NAME, &holder.text()).expect("writes");
    }

    #[test]
    fn one_at_a_time_and_what_is_left_behind_does_not_stand_in_the_way() {
        let temp = tempfile::tempdir().expect("temp dir");
        let store = LocalStore::new(temp.path());
        let lock = Lock::take(&store, "backup").expect("takes");
        let refused = Lock::take(&store, "prune").map(drop).expect_err("is held").to_string();
        assert!(refused.contains("backup (process"), "{refused}");
        lock.check().expect("is held");
        drop(lock);
        assert!(Holder::read(&store).expect("reads").is_none());
        // Stale locks: of a process that is gone, of one that stopped rewriting it, and of this process, which could
        // not reach the store to remove it.
        let left: [fn(&mut Holder); 3] = [
            |holder| holder.process = u32::MAX,
            |holder| (holder.space, holder.since_ms, holder.kept_ms) = ("elsewhere".into(), 1, 1),
            |_| {},
        ];
        for left in left {
            put(&store, left);
            drop(Lock::take(&store, "prune").expect("takes over"));
        }
        // A process of another container, or of an unknown one, may be running although it is not found here.
        let unknown: [fn(&mut Holder); 2] = [
            |holder| (holder.space, holder.process) = (String::new(), u32::MAX),
            |holder| (holder.space, holder.process) = (format!("{}0", holder.space), u32::MAX),
        ];
        for unknown in unknown {
            put(&store, unknown);
            assert!(Lock::take(&store, "prune").is_err());
        }
    }

    #[test]
    fn a_holder_that_lost_its_lock_detects_it_and_leaves_the_new_lock() {
        let temp = tempfile::tempdir().expect("temp dir");
        let store = LocalStore::new(temp.path());
        let lock = Lock::take(&store, "backup").expect("takes");
        lock.holder.lock().expect("lock").kept_ms = 0;
        lock.keep().expect("is rewritten");
        assert!(Holder::read(&store).expect("reads").expect("is there").kept_ms > 0);
        put(&store, |holder| holder.host = "elsewhere".into());
        lock.check().expect_err("another's");
        lock.holder.lock().expect("lock").kept_ms = 0;
        lock.keep().expect_err("another's");
        drop(lock);
        assert_eq!(Holder::read(&store).expect("reads").expect("is there").host, "elsewhere");
    }
}
