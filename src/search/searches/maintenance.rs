//! Maintenance of searches: deletes expired ones, marks interrupted ones, and follows deletions in the log.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Live, Searches, locked};
use crate::control::Stopped;
use crate::results::Results;
use gravwell_objects::CommitError;
use gravwell_objects::searches::{Search, State};
use gravwell_objects::store::Author;
use gravwell_replica::Change;

/// A file of an unknown search is deleted after this time.
const UNKNOWN_AFTER: Duration = Duration::from_secs(3600);
/// An expired search whose webserver does not delete it is deleted by other webservers after this time.
const FORSAKEN_S: u64 = 7 * 24 * 3600;

impl Searches {
    /// Stops all searches because the process is shutting down.
    pub async fn shut_down(&self) {
        let all: Vec<Arc<Live>> = locked(&self.live).values().cloned().collect();
        for live in &all {
            live.control.stop(Stopped::Shutdown);
        }
        for live in all {
            let _ = tokio::time::timeout(Duration::from_secs(5), live.ended()).await;
        }
    }

    /// Marks searches as interrupted that a previous incarnation of this process left running.
    ///
    /// # Errors
    /// If the log rejects the change.
    pub async fn note_interrupted(&self) -> Result<(), CommitError> {
        let is_left = |search: &Search| search.webserver == self.store.via() && search.state == State::Running;
        for record in self.store.select::<Search>("", is_left)? {
            let search = record.value;
            if self.live(&search.id).is_some() {
                continue;
            }
            let progress = Results::open(&self.file(&search.id)).map(|results| results.progress()).unwrap_or_default();
            let interrupted = |kept: &mut Search| {
                kept.state = State::Interrupted;
                (kept.rows, kept.bytes) = (progress.rows, progress.bytes);
                kept.error = "its webserver exited while the search was running".into();
            };
            self.rewrite(&Author::default(), &search.id, "mark a search as interrupted", interrupted).await?;
        }
        Ok(())
    }

    /// Deletes expired searches, and files that belong to no search.
    ///
    /// # Errors
    /// If the log rejects the change.
    pub async fn sweep(&self) -> Result<(), CommitError> {
        let now = self.store.confirmed_now();
        let has_expired = |search: &Search| {
            let is_own = search.webserver == self.store.via();
            let after = if is_own { 0 } else { FORSAKEN_S };
            let has_ended = search.state != State::Running || !is_own;
            has_ended && !search.expires.is_never() && search.expires.plus(after).is_past_at(now)
        };
        for record in &self.store.select::<Search>("", has_expired)? {
            self.remove(&Author::default(), &record.value).await?;
        }
        for id in self.stock.unowned() {
            if let Some(search) = self.store.valid::<Search>(&id)? {
                self.stock.set_owner(&id, search.value.uid);
            }
        }
        let status = self.store.replica().status();
        if status.connected && status.lag_ops == 0 {
            // Results of a search with an invalid object are kept, because the object may be repaired.
            let known = self.store.keys::<Search>("")?;
            self.clear_unknown(&known.iter().map(String::as_str).collect());
        }
        Ok(())
    }

    fn clear_unknown(&self, known: &HashSet<&str>) {
        let Ok(files) = std::fs::read_dir(self.stock.dir()) else { return };
        for file in files.filter_map(Result::ok) {
            let path = file.path();
            let id = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let is_results = path.extension().is_some_and(|extension| extension == "results");
            let age = file.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
            let is_old = age.is_some_and(|age| age > UNKNOWN_AFTER);
            if is_results && is_old && !known.contains(id.as_str()) && self.live(&id).is_none() {
                self.forget(&id);
            }
        }
    }

    /// Follows the log and forgets searches that were deleted on any webserver. Runs until dropped.
    pub async fn follow(&self) {
        let mut changes = self.store.replica().watch();
        loop {
            match changes.recv().await {
                Ok(Change::Deleted { collection, key, .. }) if collection.as_str() == "searches" => {
                    self.forget(key.as_str())
                }
                Ok(_) => {}
                // The sweep handles deletions missed here.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}
