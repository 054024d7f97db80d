//! Stored results: opened, saved for all webservers, deleted.

use std::path::Path;
use std::sync::Arc;

use super::result_files::ResultFiles;
use super::{SearchError, Searches, locked};
use crate::results::{Results, ResultsError};
use gravwell_objects::blobs::{self, Content, Upload};
use gravwell_objects::searches::{Search, State};
use gravwell_objects::store::{Author, CommitProgress};
use gravwell_objects::{CommitError, Store, Timestamp, Writes};

/// Maximum number of retries of a change that conflicts with others.
const TRIES: usize = 5;
/// Number of bytes read at a time when saving.
const SAVE_BYTES: usize = 256 << 10;

/// Message for results that were deleted.
const CLEARED: &str = "the results were deleted because they expired or newer ones needed the room; run the search \
                       again, and save results that you want to keep";

/// Refusal to save results that lack their end.
const SHORTENED: &str = "the results on this webserver are incomplete and cannot be saved; run the search again";

/// Fetches the results of a saved search to this webserver.
fn fetch(store: &Store, stock: &Arc<ResultFiles>, search: &Search, file: &Path) -> Result<(), SearchError> {
    let part = file.with_extension("part");
    let mut lease = stock.begin(&search.id, &part, search.uid)?;
    lease.grow(search.bytes)?;
    let mut reader = blobs::reader(store, &search.content).map_err(std::io::Error::other)?;
    let mut copy = std::fs::File::create(&part)?;
    std::io::copy(&mut reader, &mut copy)?;
    // Otherwise a shortened copy could have the name after a loss of power.
    copy.sync_data()?;
    Ok(lease.rename(&search.id, file)?)
}

/// Whether the copy of a saved search has all of its results. One of an earlier version may have been shortened by a loss of power.
fn is_whole(store: &Store, search: &Search, file: &Path) -> Result<bool, SearchError> {
    let Ok(data) = file.metadata() else { return Ok(false) };
    let content = store.get::<Content>(&search.content)?;
    Ok(content.is_none_or(|content| content.value.size == data.len()))
}

/// Opens the results of a search; fetches saved ones first if they are not on this disk.
fn opened(store: &Store, stock: &Arc<ResultFiles>, search: &Search) -> Result<Arc<Results>, SearchError> {
    // Another request may have opened them while this one waited.
    if let Some(opened) = stock.opened(&search.id) {
        return Ok(opened);
    }
    let file = stock.file(&search.id);
    if search.is_saved() && !is_whole(store, search, &file)? {
        fetch(store, stock, search, &file)?;
    }
    let results = Results::open(&file).map_err(|error| match error {
        ResultsError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
            SearchError::Conflict(CLEARED.into())
        }
        error => error.into(),
    })?;
    stock.keep_open(&search.id, &results);
    Ok(results)
}

impl Searches {
    /// Changes a search that still exists; retries if other fields of it change at the same time.
    ///
    /// # Errors
    /// If the search was deleted, or the log rejects the change.
    pub async fn rewrite(
        &self,
        author: &Author,
        id: &str,
        what: &str,
        change: impl Fn(&mut Search),
    ) -> Result<Search, CommitError> {
        self.rewrite_with(author, id, what, &Writes::new(), change).await
    }

    /// Like [`Searches::rewrite`], with further writes in the same transaction.
    pub(super) async fn rewrite_with(
        &self,
        author: &Author,
        id: &str,
        what: &str,
        more: &Writes,
        change: impl Fn(&mut Search),
    ) -> Result<Search, CommitError> {
        const GONE: &str = "the search was deleted in the meantime";
        let mut tries = 0;
        loop {
            let found = self.store.get::<Search>(id)?;
            let mut record = found.ok_or_else(|| CommitError::Conflict(GONE.into()))?;
            let mut writes = more.clone();
            change(&mut record.value);
            record.value.updated = Timestamp::now();
            writes.update(&record, GONE)?;
            match self.store.commit(author, what, writes).await {
                Err(CommitError::Changed(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
                Ok(_) => {
                    if let Some(live) = self.live(id) {
                        change(&mut locked(&live.search));
                    }
                    return Ok(record.value);
                }
            }
        }
    }

    /// Returns the results of a search, on behalf of a user.
    ///
    /// # Errors
    /// If the results are corrupt or were deleted.
    pub async fn results(&self, search: &Search, uid: i32) -> Result<Arc<Results>, SearchError> {
        if let Some(live) = self.live(&search.id) {
            return Ok(live.results());
        }
        if let Some(opened) = self.stock.opened(&search.id) {
            return Ok(opened);
        }
        let is_here = self.file(&search.id).exists();
        let place = self.openings.take(uid, &search.id, is_here).await?;
        let (store, stock, search) = (self.store.clone(), Arc::clone(&self.stock), search.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let opened = opened(&store, &stock, &search);
            // Held until here even if the caller no longer waits: two concurrent fetches would overwrite each
            // other's file.
            drop(place);
            opened
        });
        opened.await.map_err(std::io::Error::other)?
    }

    /// Stops a search that runs here and waits for its end; does nothing if it has ended.
    pub async fn stop(&self, id: &str) {
        if let Some(live) = self.live(id) {
            live.stop();
            live.ended().await;
        }
    }

    /// Saves the results of a search of this webserver as a blob that every webserver has. Waits for the search to end.
    ///
    /// # Errors
    /// If there are no results, or the log rejects the change.
    pub async fn save(
        &self,
        author: &Author,
        search: &Search,
        expires: Timestamp,
        change: impl Fn(&mut Search),
    ) -> Result<Search, SearchError> {
        if let Some(live) = self.live(&search.id) {
            live.ended().await;
        }
        let set = |kept: &mut Search| {
            kept.expires = expires;
            change(kept);
        };
        if search.is_saved() {
            return Ok(self.rewrite(author, &search.id, "save a search", set).await?);
        }
        let results = self.results(search, author.uid).await?;
        if search.state == State::Done && results.summary().is_none() {
            return Err(SearchError::Conflict(SHORTENED.into()));
        }
        let mut upload = Upload::begin(&self.store, "")?;
        let mut file = std::fs::File::open(results.path())?;
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::with_capacity(SAVE_BYTES);
                let read =
                    std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, SAVE_BYTES as u64), &mut bytes);
                read.map(|_| (file, bytes))
            });
            let (back, bytes) = read.await.map_err(std::io::Error::other)??;
            file = back;
            if bytes.is_empty() {
                break;
            }
            upload.write(&bytes).await?;
        }
        let mut writes = Writes::new();
        let content = upload.finish(&mut writes).await?;
        let named = |kept: &mut Search| {
            set(kept);
            kept.content.clone_from(&content.id);
        };
        Ok(self.rewrite_with(author, &search.id, "save a search", &writes, named).await?)
    }

    /// Deletes a search on all webservers; its webserver deletes the results as soon as it receives the change.
    ///
    /// # Errors
    /// If the log rejects the change.
    pub async fn remove(&self, author: &Author, search: &Search) -> Result<(), CommitError> {
        let mut writes = Writes::new();
        writes.delete_unconditionally::<Search>(&search.id, "deleting a search does not depend on its progress")?;
        let committed = self.store.commit(author, "delete a search", writes).await?;
        self.forget(&search.id);
        // A pending deletion may be rejected, and then the blob is still needed; housekeeping deletes it later.
        if search.is_saved()
            && matches!(committed, CommitProgress::At(_))
            && let Some(writes) = blobs::removal(&self.store, &search.content)?
            && let Err(error) = self.store.commit(author, "delete unreferenced blob", writes).await
        {
            tracing::debug!(%error, "failed to delete the blob of a search; will retry");
        }
        Ok(())
    }

    /// Forgets a search on this webserver: stops it and deletes its file.
    pub fn forget(&self, id: &str) {
        let live = locked(&self.live).remove(id);
        if let Some(live) = live {
            live.stop();
        }
        self.stock.forget(id);
    }
}
