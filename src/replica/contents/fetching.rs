//! Fetching what others name: newest first, again and again until everything is here.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::codec::chunks::Want;
use crate::codec::content::{self, ContentHead};
use crate::model::{ChunkId, Collection};
use crate::telemetry::metrics;
use crate::transfer::check::{self, Checked};

use super::super::shared::Change;
use super::{Contents, Fetching, blocking, locked, upkeep};

/// Everything is compared this often, even when nothing is known to be missing.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// What nobody had is asked for again after this long.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(5);

/// A content to look at.
struct Item {
    key: String,
    head: ContentHead,
    /// Sequence of its last write; undecided ones come first.
    age: u64,
}

/// Runs until the task is dropped.
pub(in crate::replica) async fn run(contents: Contents) {
    let missed = locked(&contents.inner.missed_here).take();
    let fetching = async {
        let mut changes = contents.shared.changes.subscribe();
        loop {
            // Whoever is new comes first; then everything.
            let is_complete = look(&contents).await;
            let pause = if is_complete { LOOK_EVERY } else { RETRY_EVERY };
            let _ = timeout(pause, wait(&contents, &mut changes)).await;
        }
    };
    tokio::join!(fetching, listen(&contents, missed), upkeep::run(&contents));
}

/// Waits until there is a reason to look.
async fn wait(contents: &Contents, changes: &mut tokio::sync::broadcast::Receiver<Change>) {
    let is_reason = |change: &Change| match change {
        Change::Put { collection, .. } => collection.as_str() == content::COLLECTION,
        Change::Replaced { .. } => true,
        Change::Deleted { .. } | Change::Overlay { .. } => false,
    };
    loop {
        tokio::select! {
            () = contents.inner.wake.notified() => return,
            change = changes.recv() => match change {
                Ok(change) if !is_reason(&change) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return sleep(GATHER).await,
                Err(RecvError::Closed) => return std::future::pending().await,
            },
        }
    }
}

/// Another member asked for what should be here.
async fn listen(contents: &Contents, missed: Option<mpsc::Receiver<ChunkId>>) {
    let Some(mut missed) = missed else { return };
    while missed.recv().await.is_some() {
        contents.inner.wake.notify_one();
        sleep(RETRY_EVERY).await;
    }
}

/// The contents of the state, newest first.
fn items(contents: &Contents) -> Vec<Item> {
    let Ok(collection) = Collection::new(content::COLLECTION) else { return Vec::new() };
    let rows = contents.shared.scan(&collection, "", None, usize::MAX).unwrap_or_default();
    let item = |(key, object): (crate::model::Key, super::super::Object)| Item {
        key: key.as_str().to_owned(),
        head: content::head_of(&object.value),
        age: object.version.map_or(u64::MAX, |version| version.0),
    };
    let mut items: Vec<Item> = rows.into_iter().map(item).filter(|item| !item.head.index.is_empty()).collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.age));
    items
}

/// Compares every content with the store and fetches what is missing; whether everything that should be here is.
async fn look(contents: &Contents) -> bool {
    let mut all_missing = 0;
    let mut incomplete = std::collections::BTreeMap::new();
    for item in items(contents) {
        let missing = complete(contents, &item).await;
        if missing > 0 {
            all_missing += missing;
            incomplete.insert(item.key, true);
        }
        // What came meanwhile is newer.
        if incomplete.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    let is_complete = incomplete.is_empty();
    metrics::chunks_missing(all_missing, all_missing);
    metrics::chunk_store(contents.inner.store.stats().file_bytes);
    for key in incomplete.keys() {
        if !locked(&contents.inner.incomplete).contains_key(key) {
            tracing::warn!(content = key, "chunks are missing that no member that answers has; asking again");
        }
    }
    *locked(&contents.inner.incomplete) = incomplete;
    is_complete
}

/// Fetches what is missing of one content; how many chunks nobody has.
async fn complete(contents: &Contents, item: &Item) -> u64 {
    let inner = &contents.inner;
    let mut bases: Option<HashMap<ChunkId, Vec<ChunkId>>> = None;
    let is_eager = inner.fetching == Fetching::Eager;
    loop {
        let (store, index) = (inner.store.clone(), item.head.index.clone());
        let Ok(Checked { lacking, .. }) = blocking(move || check::lacking(&store, &index, is_eager)).await else {
            return 0;
        };
        if lacking.ids.is_empty() {
            return 0;
        }
        locked(&inner.incomplete).entry(item.key.clone()).or_insert(false);
        // Lists come first: only they tell what may be told as a difference.
        let lists: Vec<ChunkId> = lacking.ids.iter().filter(|id| item.head.index.contains(id)).copied().collect();
        let wanted = if lists.is_empty() { lacking.ids } else { lists };
        let count = wanted.len();
        if bases.is_none() && !item.head.index.iter().any(|id| wanted.contains(id)) {
            bases = Some(contents.bases_for(&item.head).await);
        }
        let of = |id: &ChunkId| bases.as_ref().and_then(|bases| bases.get(id)).cloned().unwrap_or_default();
        let wants = wanted.into_iter().map(|id| Want { bases: of(&id), id }).collect();
        let absent = inner.bring(&contents.shared, wants, false).await.len();
        let store = inner.store.clone();
        if let Ok(Err(error)) = blocking(move || store.sync()).await {
            tracing::warn!(%error, "chunks were not made durable");
        }
        if absent > 0 {
            tracing::debug!(content = item.key, absent, of = count, "chunks are missing");
            return absent as u64;
        }
    }
}
