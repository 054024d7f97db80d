//! Fetching chunks that others reference: newest blobs first, repeatedly until everything is here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use gravwell_model::codec::blob_manifest::{self, BlobManifest};
use gravwell_model::codec::chunks::RequestedChunk;
use gravwell_model::{ChunkId, Collection};
use gravwell_runtime::telemetry::metrics;
use gravwell_transport::transfer::check::{self, Checked};

use super::super::shared::Change;
use super::{Blobs, Fetching, blocking, locked, maintenance};

/// Interval at which everything is compared, even if nothing is known to be missing.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Delay before chunks that no member had are requested again.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Changes that arrive within this time are handled together.
const GATHER: Duration = Duration::from_millis(5);

/// Chunks requested before checking whether something newer has arrived: some tens of megabytes.
const AT_A_TIME: usize = 1024;

/// A blob to check.
struct Item {
    key: String,
    head: BlobManifest,
    /// Sequence of its last write. Pending ones come first.
    age: u64,
}

/// Result of checking the blobs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Everything required is here.
    Complete,
    /// No member that answers has the rest.
    Incomplete,
    /// A newer blob has arrived, which goes first.
    Overtaken,
}

/// Reason to check again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// There are new blobs. Those that were found complete still are.
    News,
    /// Anything may be missing.
    Doubt,
}

type Changes = tokio::sync::broadcast::Receiver<Change>;

/// Fetches and maintains blobs until the task is dropped.
pub(crate) async fn run(contents: Blobs) {
    let missed = locked(&contents.inner.missed_here).take();
    let fetching = async {
        let mut changes = contents.shared.changes.subscribe();
        let mut complete = HashSet::new();
        loop {
            let pause = match look(&contents, &mut changes, &mut complete).await {
                Look::Overtaken => continue,
                Look::Complete => LOOK_EVERY,
                Look::Incomplete => RETRY_EVERY,
            };
            let occasion = timeout(pause, wait(&contents, &mut changes)).await.unwrap_or(Occasion::Doubt);
            if occasion == Occasion::Doubt {
                complete.clear();
            }
        }
    };
    tokio::join!(fetching, listen(&contents, missed), maintenance::run(&contents));
}

fn is_news(change: &Change) -> bool {
    match change {
        Change::Put { collection, .. } => collection.as_str() == blob_manifest::COLLECTION,
        Change::Replaced { .. } => true,
        Change::Deleted { .. } | Change::Overlay { .. } => false,
    }
}

/// Waits until there is a reason to check.
async fn wait(contents: &Blobs, changes: &mut Changes) -> Occasion {
    loop {
        tokio::select! {
            () = contents.inner.wake.notified() => return Occasion::Doubt,
            change = changes.recv() => match change {
                Ok(change) if !is_news(&change) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => {
                    sleep(GATHER).await;
                    return Occasion::News;
                }
                Err(RecvError::Closed) => return std::future::pending().await,
            },
        }
    }
}

/// Returns whether blobs have arrived since the last call.
fn has_news(changes: &mut Changes) -> bool {
    let mut found = false;
    loop {
        match changes.try_recv() {
            Ok(change) => found |= is_news(&change),
            Err(TryRecvError::Lagged(_)) => found = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return found,
        }
    }
}

/// Starts a check when another member requests a chunk that should be here.
async fn listen(contents: &Blobs, missed: Option<mpsc::Receiver<ChunkId>>) {
    let Some(mut missed) = missed else { return };
    while missed.recv().await.is_some() {
        contents.inner.wake.notify_one();
        sleep(RETRY_EVERY).await;
    }
}

/// Returns the blobs of the state, newest first.
fn items(contents: &Blobs) -> Vec<Item> {
    let Ok(collection) = Collection::new(blob_manifest::COLLECTION) else { return Vec::new() };
    let rows = contents.shared.scan(&collection, "", None, usize::MAX).unwrap_or_default();
    let item = |(key, object): (gravwell_model::Key, super::super::Object)| Item {
        key: key.as_str().to_owned(),
        head: blob_manifest::head_of(&object.value),
        age: object.version.map_or(u64::MAX, |version| version.0),
    };
    let mut items: Vec<Item> = rows.into_iter().map(item).filter(|item| !item.head.index.is_empty()).collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.age));
    items
}

/// Compares blobs with the store, except those known to be `complete`, and fetches missing chunks.
async fn look(contents: &Blobs, changes: &mut Changes, complete: &mut HashSet<(String, u64)>) -> Look {
    // The datastore uses this connection to request the chunks that it lacks.
    contents.inner.open_bulk(&contents.shared).await;
    let mut all_missing = 0;
    let mut incomplete = BTreeMap::new();
    let items = items(contents);
    let present: HashSet<(&str, u64)> = items.iter().map(|item| (item.key.as_str(), item.age)).collect();
    complete.retain(|(key, age)| present.contains(&(key.as_str(), *age)));
    for item in &items {
        let known = (item.key.clone(), item.age);
        if complete.contains(&known) {
            continue;
        }
        match fetch_missing(contents, item, changes).await {
            Fetched::Whole => drop(complete.insert(known)),
            Fetched::Absent(missing) => {
                all_missing += missing;
                incomplete.insert(item.key.clone(), true);
            }
            Fetched::Overtaken => return Look::Overtaken,
        }
    }
    metrics::chunks_missing(all_missing, all_missing);
    metrics::chunk_store(contents.inner.store.stats().file_bytes);
    for key in incomplete.keys() {
        if !locked(&contents.inner.incomplete).get(key).is_some_and(|is_known| *is_known) {
            tracing::warn!(content = key, "chunks missing at all reachable members; will retry");
        }
    }
    let found = if incomplete.is_empty() { Look::Complete } else { Look::Incomplete };
    *locked(&contents.inner.incomplete) = incomplete;
    found
}

/// Result of fetching one blob.
enum Fetched {
    /// All of it is here.
    Whole,
    /// Number of chunks that no member has.
    Absent(u64),
    /// A newer blob has arrived.
    Overtaken,
}

/// Fetches the missing chunks of one blob, until a newer blob arrives.
async fn fetch_missing(contents: &Blobs, item: &Item, changes: &mut Changes) -> Fetched {
    let inner = &contents.inner;
    let mut bases: Option<HashMap<ChunkId, Vec<ChunkId>>> = None;
    let is_eager = inner.fetching == Fetching::Eager;
    loop {
        let (store, index) = (inner.store.clone(), item.head.index.clone());
        let checking = blocking(move || check::lacking(&store, &index, is_eager)).await;
        let Ok(Checked { lacking, malformed, unknown }) = checking else { return Fetched::Absent(0) };
        if lacking.ids.is_empty() {
            // A malformed list will never be valid. One that cannot be read now is checked again.
            return if unknown.is_some() && malformed.is_none() { Fetched::Absent(0) } else { Fetched::Whole };
        }
        locked(&inner.incomplete).entry(item.key.clone()).or_insert(false);
        // Lists come first: they show which chunks may be sent as differences.
        let lists: Vec<ChunkId> = lacking.ids.iter().filter(|id| item.head.index.contains(id)).copied().collect();
        let wanted = if lists.is_empty() { lacking.ids } else { lists };
        let count = wanted.len();
        if bases.is_none() && !item.head.index.iter().any(|id| wanted.contains(id)) {
            bases = Some(contents.bases_for(&item.head).await);
        }
        let of = |id: &ChunkId| bases.as_ref().and_then(|bases| bases.get(id)).cloned().unwrap_or_default();
        let wants: Vec<RequestedChunk> = wanted.into_iter().map(|id| RequestedChunk { bases: of(&id), id }).collect();
        for some in wants.chunks(AT_A_TIME) {
            let absent = inner.bring(&contents.shared, some.to_vec(), false).await.len();
            let store = inner.store.clone();
            if let Ok(Err(error)) = blocking(move || store.sync()).await {
                tracing::warn!(%error, "failed to sync chunks");
            }
            if absent > 0 {
                tracing::debug!(content = item.key, absent, of = count, "chunks are missing");
                return Fetched::Absent(absent as u64);
            }
            if has_news(changes) {
                return Fetched::Overtaken;
            }
        }
    }
}
