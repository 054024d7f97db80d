//! How a running search is watched and ended: shared by its threads, its sources and whoever asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// Most warnings that are kept.
const WARNINGS_MAX: usize = 20;

/// Why a search was ended before its sources had nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Somebody wished so.
    ByUser,
    /// It ran for too long.
    TooLong(String),
    /// The webserver stops.
    Shutdown,
}

/// Counters and switches of one search.
#[derive(Debug, Default)]
pub struct Control {
    ended: AtomicBool,
    stopped: Mutex<Option<Stopped>>,
    children: Mutex<HashMap<u32, Arc<Mutex<std::process::Child>>>>,
    sources: Mutex<Vec<AbortHandle>>,
    warnings: Mutex<Vec<String>>,
    /// Rows that sources gave, before any stage.
    pub rows_in: AtomicU64,
    /// Bytes that sources gave.
    pub bytes_in: AtomicU64,
    /// Rows for which a filter failed.
    pub rows_failed: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Ends the search; what it has found so far is kept. The first reason counts.
    pub fn stop(&self, reason: Stopped) {
        locked(&self.stopped).get_or_insert(reason);
        self.end();
    }

    /// Ends everything that still works for the search, for whatever reason.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        for source in locked(&self.sources).drain(..) {
            source.abort();
        }
        for child in locked(&self.children).values() {
            // A filter that has ended already needs nothing.
            let _ = locked(child).kill();
        }
    }

    /// Why it was stopped, if it was.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        locked(&self.stopped).clone()
    }

    /// Whether nothing more is wanted.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// A source's task, to be ended with the search.
    pub fn add_source(&self, handle: AbortHandle) {
        locked(&self.sources).push(handle);
        if self.is_ended() {
            self.end();
        }
    }

    /// A filter's process, to be ended with the search.
    pub fn add_child(&self, child: &Arc<Mutex<std::process::Child>>) {
        let id = locked(child).id();
        locked(&self.children).insert(id, Arc::clone(child));
        if self.is_ended() {
            self.end();
        }
    }

    /// A filter's process has ended.
    pub fn remove_child(&self, id: u32) {
        locked(&self.children).remove(&id);
    }

    /// Notes what the reader of the results should know.
    pub fn warn(&self, warning: String) {
        let mut warnings = locked(&self.warnings);
        if warnings.len() < WARNINGS_MAX && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// What the reader of the results should know.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        locked(&self.warnings).clone()
    }
}
