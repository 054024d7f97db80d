//! Control of a running search: counters and cancellation, shared by its threads, its sources and its clients.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// Maximum number of warnings that are kept.
const WARNINGS_MAX: usize = 20;

/// Reason why a search was stopped before its sources finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// A user stopped it.
    ByUser,
    /// It exceeded the time limit.
    TooLong(String),
    /// The webserver is shutting down.
    Shutdown,
}

/// Counters and cancellation state of one search.
#[derive(Debug, Default)]
pub struct Control {
    ended: AtomicBool,
    stopped: Mutex<Option<Stopped>>,
    children: Mutex<HashMap<u32, Arc<Mutex<std::process::Child>>>>,
    sources: Mutex<Vec<AbortHandle>>,
    warnings: Mutex<Vec<String>>,
    /// Rows that sources produced, before any stage.
    pub rows_in: AtomicU64,
    /// Bytes that sources produced.
    pub bytes_in: AtomicU64,
    /// Rows for which a filter failed.
    pub rows_failed: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Stops the search; results found so far are kept. The first reason wins.
    pub fn stop(&self, reason: Stopped) {
        locked(&self.stopped).get_or_insert(reason);
        self.end();
    }

    /// Ends all tasks and processes that still work for the search.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        for source in locked(&self.sources).drain(..) {
            source.abort();
        }
        for child in locked(&self.children).values() {
            // Killing a filter that has already exited has no effect.
            let _ = locked(child).kill();
        }
    }

    /// Returns why the search was stopped, if it was.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        locked(&self.stopped).clone()
    }

    /// Returns whether no more rows are wanted.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Registers the task of a source, which is aborted when the search ends.
    pub fn add_source(&self, handle: AbortHandle) {
        locked(&self.sources).push(handle);
        if self.is_ended() {
            self.end();
        }
    }

    /// Registers the process of a filter, which is killed when the search ends.
    pub fn add_child(&self, child: &Arc<Mutex<std::process::Child>>) {
        let id = locked(child).id();
        locked(&self.children).insert(id, Arc::clone(child));
        if self.is_ended() {
            self.end();
        }
    }

    /// Unregisters the process of a filter after it has exited.
    pub fn remove_child(&self, id: u32) {
        locked(&self.children).remove(&id);
    }

    /// Records a warning for readers of the results.
    pub fn warn(&self, warning: String) {
        let mut warnings = locked(&self.warnings);
        if warnings.len() < WARNINGS_MAX && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Returns the warnings for readers of the results.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        locked(&self.warnings).clone()
    }
}
