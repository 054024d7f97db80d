//! Maintenance of the chunk store: unreferenced chunks are garbage-collected, seldom read ones are evicted if there is
//! a limit, and all are read now and then, so that corruption is found while others still have a copy.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::sleep;

use gravwell_chunks::ChunkStore;
use gravwell_model::codec::admin::{BlobCollection, BlobReport, BlobStats, Progress};
use gravwell_model::codec::blob_manifest::{self, BlobManifest};
use gravwell_model::codec::chunks::NAMES_MAX;
use gravwell_model::{ChunkId, Collection};
use gravwell_protocol::fatal::Fatal;
use gravwell_runtime::telemetry::metrics;
use gravwell_transport::transfer::{check, inventory};

use super::super::shared::{ReplicaRef, stop_process};
use super::super::{ReadError, conflict_archive};
use super::{Blobs, Fetching, blocking, locked};

/// Interval of garbage collection.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// Interval at which the limit of the cache is checked.
const EVICT_EVERY: Duration = Duration::from_secs(10);
/// Most chunks about which the datastore is asked in one request.
const EVICT_AT_A_TIME: usize = NAMES_MAX / 4;
/// Interval at which the store is checked for failure.
const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// Every chunk is read once in about this time, as long as that needs no more than [`SCRUB_CHUNKS_PER_S`].
const SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// A low rate: 32 chunks are two megabytes.
const SCRUB_CHUNKS_PER_S: u32 = 32;
/// How long a verification waits for repairs before it answers.
const HEALING: Duration = Duration::from_secs(20);

/// Returns the blobs that the replica sees, those of pending transactions included.
pub(super) fn all(shared: &ReplicaRef) -> Result<inventory::Contents, ReadError> {
    let mut all = inventory::Contents::default();
    if let Ok(collection) = Collection::new(blob_manifest::COLLECTION) {
        for (key, object) in shared.scan(&collection, "", None, usize::MAX)? {
            all.add(key.as_str(), &object.value);
        }
    }
    if let Ok(collection) = Collection::new(blob_manifest::RESOURCES) {
        for (_, object) in shared.scan(&collection, "", None, usize::MAX)? {
            all.add_resource(&object.value);
        }
    }
    // Other members still see the blob that a pending change replaces.
    for txn in shared.outbox().pending() {
        for (number, head) in blob_manifest::heads_of(txn).into_iter().enumerate() {
            all.heads.entry(format!("{}/{}/{number}", txn.id.origin, txn.id.counter)).or_insert(head);
        }
    }
    Ok(all)
}

pub(super) async fn run(contents: &Blobs) {
    tokio::join!(collect_at_times(contents), evict_at_times(contents), scrub(contents), watch_health(contents));
}

/// Stops the process if the store has failed. After a failed sync only a new start finds out what the disk holds.
async fn watch_health(contents: &Blobs) {
    loop {
        sleep(HEALTH_EVERY).await;
        let failed = |error| stop_process(&contents.shared, &Fatal::of("cannot store chunks")(error));
        contents.inner.store.health().unwrap_or_else(failed);
    }
}

async fn collect_at_times(contents: &Blobs) {
    loop {
        sleep(COLLECT_EVERY).await;
        match contents.collect(None, false).await {
            Ok(done) if done.chunks > 0 => {
                tracing::info!(chunks = done.chunks, freed = done.freed_bytes, "removed unreferenced chunks");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error, "chunk garbage collection failed; will retry"),
        }
    }
}

async fn evict_at_times(contents: &Blobs) {
    let Fetching::OnDemand { cache_bytes_max } = contents.inner.fetching else { return };
    if cache_bytes_max == 0 {
        return;
    }
    loop {
        sleep(EVICT_EVERY).await;
        if contents.inner.store.stats().stored_bytes > cache_bytes_max
            && let Err(error) = contents.evict_to(cache_bytes_max).await
        {
            tracing::warn!(error, "failed to shrink the chunk cache to its limit");
        }
    }
}

async fn scrub(contents: &Blobs) {
    loop {
        let store = contents.inner.store.clone();
        let ids = store.ids();
        let spread = SCRUB_EVERY / u32::try_from(ids.len()).unwrap_or(u32::MAX).max(1);
        let pause = spread.clamp(Duration::from_secs(1) / SCRUB_CHUNKS_PER_S, Duration::from_secs(60));
        for id in ids {
            sleep(pause).await;
            let store = store.clone();
            if let Ok(Err(error)) = blocking(move || store.read(&id)).await {
                tracing::warn!(%error, "corrupt chunk found; repairing from a member");
                contents.inner.wake.notify_one();
            }
        }
        sleep(Duration::from_secs(60)).await;
    }
}

impl Blobs {
    /// Removes unreferenced chunks. `grace` replaces the configured grace period.
    ///
    /// # Errors
    /// If the references are not known, or the store fails. Nothing is removed then.
    pub async fn collect(&self, grace: Option<Duration>, dry_run: bool) -> Result<BlobCollection, String> {
        let (store, directory) = (self.inner.store.clone(), self.inner.directory.clone());
        let cutoff = store.cutoff(grace.unwrap_or(self.inner.grace));
        // Read before the outbox and after it: applying a set moves its changes from the archive to the outbox, and
        // leaving a history moves changes the other way.
        let before = {
            let (store, directory) = (store.clone(), directory.clone());
            blocking(move || set_aside(&store, &directory)).await.map_err(|error| error.to_string())??
        };
        let mut all = {
            // While outbox and state are exchanged, what is pushed again may be in neither.
            let _alone = self.shared.exchanging.lock().await;
            self.all().map_err(|error| error.to_string())?
        };
        let collecting = move || {
            let held = before.into_iter().chain(set_aside(&store, &directory)?).enumerate();
            all.heads.extend(held.map(|(number, head)| (format!("quarantine/{number}"), head)));
            all.collect(&store, cutoff, dry_run)
        };
        let collected = blocking(collecting).await;
        collected.map_err(|error| error.to_string())?
    }

    /// Writes a checkpoint, which spares the next start reading, for an orderly stop.
    pub(crate) async fn checkpoint(&self) {
        let store = self.inner.store.clone();
        if let Ok(Err(error)) = blocking(move || store.checkpoint()).await {
            tracing::warn!(%error, "failed to write a checkpoint of the chunk store; no acknowledged data is lost");
        }
    }

    /// Returns statistics of all blobs and chunks.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub async fn stats(&self) -> Result<BlobStats, String> {
        let (all, store) = (self.all().map_err(|error| error.to_string())?, self.inner.store.clone());
        blocking(move || all.stats(&store)).await.map_err(|error| error.to_string())
    }

    /// Reads every chunk, has corrupt ones fetched again, and reports the blobs that remain incomplete. Sends
    /// `progress` now and then.
    ///
    /// # Errors
    /// If the store or the state cannot be read.
    pub async fn verify(&self, progress: mpsc::Sender<Progress>) -> Result<BlobReport, String> {
        let store = self.inner.store.clone();
        let verifying = move || {
            store.verify(&mut |done, total| {
                let _ = progress.try_send(Progress { stage: "chunks".into(), done, total });
            })
        };
        let found = blocking(verifying).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let damages: Vec<String> = found.iter().map(ToString::to_string).collect();
        let lost: Vec<ChunkId> = found.iter().filter_map(|damage| damage.id).collect();
        self.inner.wake.notify_one();
        let is_lost = |id: &&ChunkId| !self.inner.store.contains(id);
        let waited = Instant::now();
        while waited.elapsed() < HEALING && lost.iter().any(|id| is_lost(&id)) {
            // Once all members that answer were asked, waiting longer changes nothing.
            if self.shared.link().connected && waited.elapsed() > HEALING / 4 {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let healed = lost.iter().filter(|id| self.inner.store.contains(id)).count() as u64;
        metrics::chunks_healed(healed);
        let (all, store) = (self.all().map_err(|error| error.to_string())?, self.inner.store.clone());
        let asked = self.incomplete();
        let is_eager = self.inner.fetching == Fetching::Eager;
        let mut incomplete = blocking(move || all.examine_all(&store)).await.map_err(|error| error.to_string())?;
        incomplete.retain(|info| is_eager && info.missing > 0);
        incomplete.iter_mut().for_each(|info| info.lost = asked.get(&info.content).copied().unwrap_or(false));
        let chunks = self.inner.store.stats().chunks;
        Ok(BlobReport { ok: incomplete.is_empty(), chunks, damages, healed, incomplete })
    }

    /// Evicts chunks until about `bytes_max` are left: unreferenced ones first, then those of the blobs read longest
    /// ago. Only chunks that the datastore has are evicted. Chunks waiting to be sent, lists, archived changes, and
    /// chunks that a running upload relies on are kept.
    async fn evict_to(&self, bytes_max: u64) -> Result<(), String> {
        let cutoff = self.inner.store.cutoff(Duration::ZERO);
        let all = self.all().map_err(|error| error.to_string())?;
        let pending: Vec<_> = self.shared.outbox().pending().cloned().collect();
        let read_at = locked(&self.inner.read_at).clone();
        let (store, directory) = (self.inner.store.clone(), self.inner.directory.clone());
        let choosing = blocking(move || {
            let mut kept: Vec<BlobManifest> = pending.iter().flat_map(|txn| blob_manifest::heads_of(txn)).collect();
            kept.extend(set_aside(&store, &directory)?);
            candidates(&store, &all, kept, &read_at)
        });
        let candidates = choosing.await.map_err(|error| error.to_string())??;
        for some in candidates.chunks(EVICT_AT_A_TIME) {
            let excess = self.inner.store.stats().stored_bytes.saturating_sub(bytes_max);
            if excess == 0 {
                return Ok(());
            }
            let mut stream = self.inner.datastore_stream(&self.shared).await.map_err(|error| error.to_string())?;
            let lacking = stream.ask(some, false).await.map_err(|error| error.to_string())?;
            let only_here: HashSet<ChunkId> = lacking.ids.into_iter().collect();
            let (store, mut left) = (self.inner.store.clone(), excess);
            let is_gone = |id: &&ChunkId| {
                let goes = left > 0 && !only_here.contains(id);
                left = if goes { left.saturating_sub(store.stored_bytes(id)) } else { left };
                goes
            };
            let gone: Vec<ChunkId> = some.iter().filter(is_gone).copied().collect();
            let evicting = blocking(move || store.evict(&gone, cutoff).map(|_| ()));
            evicting.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// Returns the blobs of archived changes. One of which a list of chunks was never here pins nothing; a list that is corrupt is kept here,
/// so that collecting fails and names it instead of removing the chunks of that blob.
fn set_aside(store: &ChunkStore, directory: &Path) -> Result<Vec<BlobManifest>, String> {
    let mut heads = conflict_archive::heads(directory)?;
    heads.retain(|head| head.index.iter().all(|id| store.contains(id) || store.is_damaged(id)));
    Ok(heads)
}

/// Returns the chunks that may be evicted, in order: unreferenced ones, then those of the blobs read longest ago.
fn candidates(
    store: &ChunkStore,
    all: &inventory::Contents,
    waiting: Vec<BlobManifest>,
    read_at: &HashMap<ChunkId, Instant>,
) -> Result<Vec<ChunkId>, String> {
    let parts_of = |index: &[ChunkId]| check::all_parts(store, index).map_err(|error| error.to_string());
    let mut kept: HashSet<ChunkId> = HashSet::new();
    for head in &waiting {
        // Without the list its chunks are unknown, and could be any.
        let unknown = || "a chunk list of a pending blob is missing".to_owned();
        kept.extend(parts_of(&head.index)?.ok_or_else(unknown)?.iter().map(|part| part.id));
        kept.extend(&head.index);
    }
    all.heads.values().for_each(|head| kept.extend(head.index.iter().copied()));
    let mut heads: Vec<_> = all.heads.values().collect();
    heads.sort_by_key(|head| head.index.first().and_then(|first| read_at.get(first).copied()));
    let mut named = Vec::new();
    for head in heads {
        named.extend(parts_of(&head.index)?.unwrap_or_default().into_iter().map(|part| part.id));
    }
    let is_named: HashSet<ChunkId> = named.iter().copied().collect();
    let unnamed = store.ids().into_iter().filter(|id| !is_named.contains(id));
    let mut seen = HashSet::new();
    Ok(unnamed.chain(named).filter(|id| !kept.contains(id) && store.contains(id) && seen.insert(*id)).collect())
}
