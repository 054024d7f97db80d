//! Results that are kept: found again, saved for everybody, deleted.

use std::path::Path;
use std::sync::Arc;

use super::stock::Stock;
use super::{SearchError, Searches, locked};
use crate::objects::contents::{self, Upload};
use crate::objects::searches::Search;
use crate::objects::store::{Author, Committed};
use crate::objects::{CommitError, Moment, Store, Writes};
use crate::search::results::{Results, ResultsError};

/// How often a change is made again that met others.
const TRIES: usize = 5;
/// Bytes that are read at once to be saved.
const SAVE_BYTES: usize = 256 << 10;

/// What is said of results that are gone.
const CLEARED: &str = "the results were cleared away: their time was over, or newer ones needed the room; run the search again, \
                       and save what must stay";

/// Brings the results of a saved search here.
fn fetch(store: &Store, stock: &Arc<Stock>, search: &Search, file: &Path) -> Result<(), SearchError> {
    let part = file.with_extension("part");
    let mut lease = stock.begin(&search.id, &part, search.uid)?;
    lease.grow(search.bytes)?;
    let mut reader = contents::reader(store, &search.content).map_err(std::io::Error::other)?;
    std::io::copy(&mut reader, &mut std::fs::File::create(&part)?)?;
    Ok(lease.rename(&search.id, file)?)
}

/// The results of a search from the disk, where they are fetched to if they are not here.
fn opened(store: &Store, stock: &Arc<Stock>, search: &Search) -> Result<Arc<Results>, SearchError> {
    // Others may have waited for them before.
    if let Some(opened) = stock.opened(&search.id) {
        return Ok(opened);
    }
    let file = stock.file(&search.id);
    if !file.exists() && search.is_saved() {
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
    /// Changes a search that still exists, whatever else of it others change meanwhile.
    ///
    /// # Errors
    /// When it was deleted, or the log refuses.
    pub async fn rewrite(
        &self,
        author: &Author,
        id: &str,
        what: &str,
        change: impl Fn(&mut Search),
    ) -> Result<Search, CommitError> {
        self.rewrite_with(author, id, what, &Writes::new(), change).await
    }

    /// [`Searches::rewrite`], with more in the same transaction.
    pub(super) async fn rewrite_with(
        &self,
        author: &Author,
        id: &str,
        what: &str,
        more: &Writes,
        change: impl Fn(&mut Search),
    ) -> Result<Search, CommitError> {
        const GONE: &str = "the search was deleted meanwhile";
        let mut tries = 0;
        loop {
            let found = self.store.get::<Search>(id)?;
            let mut record = found.ok_or_else(|| CommitError::Conflict(GONE.into()))?;
            let mut writes = more.clone();
            change(&mut record.value);
            record.value.updated = Moment::now();
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

    /// The results of a search, from here, for a user.
    ///
    /// # Errors
    /// When they are damaged or were cleared away.
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
            // Held until here although nobody may wait any more: two that fetch at once would spoil each other's file.
            drop(place);
            opened
        });
        opened.await.map_err(std::io::Error::other)?
    }

    /// Stops a search that runs here and waits for its end; one that has ended needs no stop.
    pub async fn stop(&self, id: &str) {
        if let Some(live) = self.live(id) {
            live.stop();
            live.ended().await;
        }
    }

    /// Makes the results of a search of this webserver a content that every webserver has. Waits for its end.
    ///
    /// # Errors
    /// When there are no results, or the log does not take them.
    pub async fn save(
        &self,
        author: &Author,
        search: &Search,
        expires: Moment,
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

    /// Deletes a search everywhere; its webserver clears its results away as soon as it hears of it.
    ///
    /// # Errors
    /// When the log refuses.
    pub async fn remove(&self, author: &Author, search: &Search) -> Result<(), CommitError> {
        let mut writes = Writes::new();
        writes.delete_whatever::<Search>(&search.id, "a search goes with its owner's wish, however far it has come")?;
        let committed = self.store.commit(author, "delete a search", writes).await?;
        self.forget(&search.id);
        // While it is not decided, it may be rejected, and the contents are needed: the sweeper takes them away later.
        if search.is_saved()
            && matches!(committed, Committed::At(_))
            && let Some(writes) = contents::removal(&self.store, &search.content)?
            && let Err(error) = self.store.commit(author, "take away contents that nothing names", writes).await
        {
            tracing::debug!(%error, "contents of a search were not taken away yet");
        }
        Ok(())
    }

    /// Forgets a search here: ends it and clears its file away.
    pub fn forget(&self, id: &str) {
        let live = locked(&self.live).remove(id);
        if let Some(live) = live {
            live.stop();
        }
        self.stock.forget(id);
    }
}
