//! Blobs at the datastore. A transaction that references chunks is committed only after they are durable here. Members
//! can fetch chunks, lost chunks are re-fetched from members, and unreferenced chunks are garbage-collected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use gravwell_chunks::{CHUNK_BYTES_MAX, ChunkStore};
use gravwell_model::codec::admin::{BlobCollection, BlobReport, Progress};
use gravwell_model::codec::blob_manifest;
use gravwell_model::codec::chunks::RequestedChunk;
use gravwell_model::codec::message::{Kind, Open, RefusalCode, Refused};
use gravwell_model::{ChunkId, Collection, MemberName, Reason, Txn};
use gravwell_protocol::fatal::Fatal;
use gravwell_runtime::telemetry::metrics;
use gravwell_state::StateError;
use gravwell_transport::transfer::check::{Checked, lacking};
use gravwell_transport::transfer::{ChunkStream, RateLimiter, Server, TransferError, inventory};
use gravwell_transport::wire::{self, WireError};

use super::commit_thread::{stop_process, wait_applied};
use super::shared::DatastoreRef;

/// Interval of garbage collection.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// Interval at which all blobs are checked, even when none is known to be incomplete.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Delay before missing chunks are requested again.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Interval of the check for a failed chunk store.
const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// Members that do not open a stream within this time are skipped.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Chunks per request.
const GROUP: usize = 64;
/// Time for the chunks of one request, at 128 KiB/s if they are of the largest size: each message alone may take long.
const GROUP_WITHIN: Duration = Duration::from_secs(GROUP as u64 * CHUNK_BYTES_MAX as u64 / (128 << 10));
/// Time in which a scrub reads every chunk about once.
const SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Shortest delay between two chunks of a scrub.
const SCRUB_PAUSE_MIN: Duration = Duration::from_millis(31);
/// Time for which a verification waits for repairs.
const HEALING: Duration = Duration::from_secs(20);

/// Chunk store of a datastore, and the state of its maintenance.
pub(super) struct Blobs {
    pub store: ChunkStore,
    limiter: RateLimiter,
    grace: Duration,
    wake: Notify,
    missed: mpsc::Sender<ChunkId>,
    missed_here: Mutex<Option<mpsc::Receiver<ChunkId>>>,
    /// Incomplete blobs by key.
    incomplete: Mutex<BTreeMap<String, Missing>>,
    /// Members that last did not send what was requested in time; they are asked after the others.
    slow: Mutex<BTreeSet<MemberName>>,
}

/// State of an incomplete blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Being fetched.
    Sought,
    /// These members may have the missing chunks and have not answered.
    WaitsFor(Vec<MemberName>),
    /// Every member has answered, and none has the missing chunks.
    Lost,
}

/// Result of checking the chunks that a transaction references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BlobPrecheck {
    /// All are stored and durable.
    Fine,
    /// Some must be uploaded first.
    Wait(Refused),
    /// Some are lost or the references are invalid.
    Reject(Reason),
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

impl Blobs {
    pub(super) fn new(store: ChunkStore, bytes_per_s: u64, grace: Duration) -> Blobs {
        let (missed, missed_here) = mpsc::channel(64);
        Blobs {
            store,
            limiter: RateLimiter::new(bytes_per_s),
            grace,
            wake: Notify::new(),
            missed,
            missed_here: Mutex::new(Some(missed_here)),
            incomplete: Mutex::default(),
            slow: Mutex::default(),
        }
    }

    pub(super) async fn serve(
        &self,
        takes: bool,
        send: &mut quinn::SendStream,
        receive: &mut quinn::RecvStream,
    ) -> Result<(), WireError> {
        let (store, limiter, missed) = (self.store.clone(), self.limiter.clone(), self.missed.clone());
        Server { store, limiter, takes, missed }.serve(send, receive).await
    }

    /// Saves a checkpoint at an orderly shutdown, so that the next start reads less.
    pub(super) async fn checkpoint(&self) {
        let store = self.store.clone();
        if let Ok(Err(error)) = blocking(move || store.checkpoint()).await {
            tracing::warn!(%error, "chunk store was not closed cleanly; no acknowledged data is lost");
        }
    }

    /// Checks the chunks that a transaction references. The grace period of stored chunks restarts, so none is
    /// collected before the transaction is committed. `is_forsaken`: the member has lost the missing chunks.
    pub(super) async fn judge(&self, txn: &Txn, is_forsaken: bool) -> Result<BlobPrecheck, String> {
        let index: Vec<ChunkId> = blob_manifest::heads_of(txn).into_iter().flat_map(|head| head.index).collect();
        if index.is_empty() {
            return Ok(BlobPrecheck::Fine);
        }
        let store = self.store.clone();
        let checking = move || {
            let checked = lacking(&store, &index, true);
            // Chunks that another client wrote a moment ago may not be durable yet.
            store.sync().map(|()| checked).map_err(|error| error.to_string())
        };
        let Checked { lacking, malformed, unknown } = blocking(checking).await??;
        if let Some(error) = malformed {
            return Ok(BlobPrecheck::Reject(Reason::ChunksLost { message: error.to_string() }));
        }
        if let Some(error) = unknown {
            return Err(error.to_string());
        }
        let Some(first) = lacking.ids.first() else { return Ok(BlobPrecheck::Fine) };
        let count = lacking.ids.len();
        if is_forsaken {
            let message = format!(
                "{count} chunks of the contents are lost, {first} first: neither the webserver nor the datastore has \
                 them; upload the contents again"
            );
            return Ok(BlobPrecheck::Reject(Reason::ChunksLost { message }));
        }
        let message =
            format!("{count} chunks are missing at the datastore, {first} first; send them before referencing them");
        Ok(BlobPrecheck::Wait(Refused { code: RefusalCode::ChunksMissing, message }))
    }
}

pub(super) fn all(shared: &DatastoreRef) -> Result<inventory::Contents, StateError> {
    let mut all = inventory::Contents::default();
    let snapshot = shared.state.snapshot()?;
    if let Ok(collection) = Collection::new(blob_manifest::COLLECTION) {
        for row in snapshot.scan(&collection, "", std::ops::Bound::Unbounded) {
            let (key, object) = row?;
            all.add(key.as_str(), &object.value);
        }
    }
    if let Ok(collection) = Collection::new(blob_manifest::RESOURCES) {
        for row in snapshot.scan(&collection, "", std::ops::Bound::Unbounded) {
            all.add_resource(&row?.1.value);
        }
    }
    Ok(all)
}

/// Returns whether the datastore stores chunks.
pub(super) fn are_known(shared: &DatastoreRef) -> bool {
    shared.contents.store.stats().chunks > 0
}

/// Spawns the tasks that maintain chunks until the datastore stops.
pub(super) fn spawn(shared: &DatastoreRef, tasks: &mut tokio::task::JoinSet<()>) {
    let missed = shared.contents.missed_here.lock().unwrap_or_else(PoisonError::into_inner).take();
    let watch = &shared.watch;
    let of = || DatastoreRef::clone(shared);
    let (healing, listening, collecting, scrubbing, watching) = (of(), of(), of(), of(), of());
    tasks.spawn(watch.lasting("repair of chunks", async move { heal(&healing).await }));
    if missed.is_some() {
        tasks.spawn(watch.lasting("requests for missing chunks", async move { listen(&listening, missed).await }));
    }
    tasks.spawn(watch.lasting("garbage collection of chunks", async move { collect_at_times(&collecting).await }));
    tasks.spawn(watch.lasting("scrubbing of chunks", async move { scrub(&scrubbing).await }));
    tasks.spawn(watch.lasting("health of the chunk store", async move { watch_health(&watching).await }));
}

/// Stops the process after a failed sync. The contents of the disk are unknown then; only a restart can determine them.
async fn watch_health(shared: &DatastoreRef) {
    loop {
        sleep(HEALTH_EVERY).await;
        let failed = |error| stop_process(shared, &Fatal::of("chunks cannot be stored")(error));
        shared.contents.store.health().unwrap_or_else(failed);
    }
}

async fn listen(shared: &DatastoreRef, missed: Option<mpsc::Receiver<ChunkId>>) {
    let Some(mut missed) = missed else { return };
    while missed.recv().await.is_some() {
        // A member may request chunks that nothing names, any number of times.
        while missed.try_recv().is_ok() {}
        shared.contents.wake.notify_one();
        sleep(RETRY_EVERY).await;
    }
}

async fn collect_at_times(shared: &DatastoreRef) {
    loop {
        sleep(COLLECT_EVERY).await;
        match collect(shared, None, false).await {
            Ok(done) if done.chunks > 0 => {
                tracing::info!(chunks = done.chunks, freed = done.freed_bytes, "removed unreferenced chunks");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error, "chunk garbage collection failed; will retry"),
        }
    }
}

/// Removes unreferenced chunks; `grace` overrides the configured grace period.
pub(super) async fn collect(
    shared: &DatastoreRef,
    grace: Option<Duration>,
    dry_run: bool,
) -> Result<BlobCollection, String> {
    let recovery = shared.recovery();
    if !recovery.is_empty() && !dry_run {
        return Err(format!(
            "the datastore waits for recovery, and entries that the log lacks may reference the chunks: {recovery}"
        ));
    }
    let store = shared.contents.store.clone();
    let cutoff = store.cutoff(grace.unwrap_or(shared.contents.grace));
    // Transactions committed before the cutoff must have their references in the state.
    wait_applied(shared, shared.head()).await;
    let all = all(shared).map_err(|error| error.to_string())?;
    blocking(move || all.collect(&store, cutoff, dry_run)).await?
}

async fn scrub(shared: &DatastoreRef) {
    loop {
        let ids = shared.contents.store.ids();
        let spread = SCRUB_EVERY / u32::try_from(ids.len()).unwrap_or(u32::MAX).max(1);
        let pause = spread.clamp(SCRUB_PAUSE_MIN, Duration::from_secs(60));
        for id in ids {
            sleep(pause).await;
            let store = shared.contents.store.clone();
            if let Ok(Err(error)) = blocking(move || store.read(&id)).await {
                tracing::warn!(%error, "damaged chunk found; repairing from a member");
                shared.contents.wake.notify_one();
            }
        }
        sleep(Duration::from_secs(60)).await;
    }
}

/// Compares the blobs of the state with the store and requests missing chunks from members.
async fn heal(shared: &DatastoreRef) {
    loop {
        let lost = look(shared).await;
        let pause = if lost == 0 { LOOK_EVERY } else { RETRY_EVERY };
        let _ = timeout(pause, shared.contents.wake.notified()).await;
    }
}

async fn look(shared: &DatastoreRef) -> u64 {
    let contents = &shared.contents;
    metrics::chunk_store(contents.store.stats().file_bytes);
    let reading = DatastoreRef::clone(shared);
    let Ok(Ok(all)) = blocking(move || all(&reading)).await else { return 0 };
    let (mut incomplete, mut missing, mut lost) = (BTreeMap::new(), 0, 0);
    for (key, head) in &all.heads {
        let Some(UnreachableChunks { count, first, of }) = heal_content(shared, &all, key, head).await else {
            continue;
        };
        missing += count;
        incomplete.insert(key.clone(), of.clone());
        let concerned = all.label(key);
        let former = locked(contents).insert(key.clone(), of.clone());
        let is_news = former.as_ref() != Some(&of);
        match &of {
            Missing::Lost => {
                lost += count;
                if is_news {
                    tracing::error!(concerned, count, %first, "chunks lost: no connected member has a copy");
                }
            }
            Missing::WaitsFor(members) if is_news => {
                let members = members.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
                tracing::warn!(concerned, count, members, "chunks are missing; members that may have them are offline");
            }
            Missing::WaitsFor(_) | Missing::Sought => {}
        }
    }
    metrics::chunks_missing(missing, lost);
    *locked(contents) = incomplete;
    missing
}

fn locked(contents: &Blobs) -> std::sync::MutexGuard<'_, BTreeMap<String, Missing>> {
    contents.incomplete.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chunks that no reachable member has.
struct UnreachableChunks {
    count: u64,
    first: ChunkId,
    of: Missing,
}

/// Fetches missing chunks of one blob until it is complete or no member has the rest.
async fn heal_content(
    shared: &DatastoreRef,
    all: &inventory::Contents,
    key: &str,
    head: &blob_manifest::BlobManifest,
) -> Option<UnreachableChunks> {
    let contents = &shared.contents;
    let mut healed = 0;
    let absent = loop {
        let (store, index) = (contents.store.clone(), head.index.clone());
        let Ok(Checked { lacking, .. }) = blocking(move || lacking(&store, &index, true)).await else { break None };
        if lacking.ids.is_empty() {
            break None;
        }
        locked(contents).entry(key.to_owned()).or_insert(Missing::Sought);
        let wanted = lacking.ids.len();
        let (absent, unheard) = bring(shared, lacking.ids).await;
        healed += (wanted - absent.len()) as u64;
        if let Some(first) = absent.first().copied() {
            let of = if unheard.is_empty() { Missing::Lost } else { Missing::WaitsFor(unheard) };
            break Some(UnreachableChunks { count: absent.len() as u64, first, of });
        }
    };
    metrics::chunks_healed(healed);
    if healed > 0 {
        tracing::info!(concerned = all.label(key), chunks = healed, "repaired chunks from members");
    }
    absent
}

/// Requests chunks from one member after another. Returns the chunks still missing and the members that did not answer.
async fn bring(shared: &DatastoreRef, ids: Vec<ChunkId>) -> (Vec<ChunkId>, Vec<MemberName>) {
    let (mut left, mut unheard) = (ids, shared.members.holders());
    let slow = || shared.contents.slow.lock().unwrap_or_else(PoisonError::into_inner);
    let mut members = shared.members.connections();
    let last = slow().clone();
    members.sort_by_key(|(member, _)| last.contains(member));
    for (member, connection) in members {
        if left.is_empty() {
            break;
        }
        match fetch_from(shared, &connection, &left).await {
            Ok(()) => {
                slow().remove(&member);
                unheard.retain(|name| *name != member);
            }
            Err(error) => {
                if matches!(error, TransferError::Silent) {
                    slow().insert(member.clone());
                }
                tracing::debug!(%member, %error, "failed to fetch chunks from a member");
                if is_refusal(&error) {
                    unheard.retain(|name| *name != member);
                }
            }
        }
        left.retain(|id| !shared.contents.store.contains(id));
    }
    let store = shared.contents.store.clone();
    if let Ok(Err(error)) = blocking(move || store.sync()).await {
        tracing::error!(%error, "failed to sync chunks");
    }
    (left, unheard)
}

/// Returns whether the member refused because it stores no blobs.
fn is_refusal(error: &TransferError) -> bool {
    matches!(error, TransferError::Wire(WireError::Refused(refused)) if refused.code == RefusalCode::Forbidden)
}

async fn fetch_from(
    shared: &DatastoreRef,
    connection: &quinn::Connection,
    ids: &[ChunkId],
) -> Result<(), TransferError> {
    let opening = async {
        let (mut send, receive) = connection.open_bi().await?;
        wire::send(&mut send, Kind::Open, &Open::Chunks).await?;
        Ok::<_, WireError>((send, receive))
    };
    let (send, receive) = timeout(OPEN_TIMEOUT, opening).await.map_err(|_| TransferError::Silent)??;
    let contents = &shared.contents;
    let mut stream = ChunkStream::new(send, receive, contents.store.clone(), contents.limiter.clone(), ());
    for group in ids.chunks(GROUP) {
        let wants = group.iter().map(|id| RequestedChunk { id: *id, bases: Vec::new() }).collect();
        timeout(GROUP_WITHIN, stream.fetch(wants, false)).await.map_err(|_| TransferError::Silent)??;
    }
    Ok(())
}

/// Verifies every chunk, re-fetches corrupt ones and reports the blobs that are still incomplete.
pub(super) async fn verify(shared: &DatastoreRef, progress: mpsc::Sender<Progress>) -> Result<BlobReport, String> {
    let store = shared.contents.store.clone();
    let verifying = move || {
        store.verify(&mut |done, total| {
            let _ = progress.try_send(Progress { stage: "chunks".into(), done, total });
        })
    };
    let found = blocking(verifying).await?.map_err(|error| error.to_string())?;
    let damages = found.iter().map(ToString::to_string).collect();
    let before: Vec<ChunkId> = found.iter().filter_map(|damage| damage.id).collect();
    if timeout(HEALING, look(shared)).await.is_err() {
        shared.contents.wake.notify_one();
    }
    let healed = before.iter().filter(|id| shared.contents.store.contains(id)).count() as u64;
    let (all, store) = (all(shared).map_err(|error| error.to_string())?, shared.contents.store.clone());
    let mut incomplete = blocking(move || all.examine_all(&store)).await?;
    incomplete.retain(|info| info.missing > 0);
    mark_lost(shared, &mut incomplete);
    let chunks = shared.contents.store.stats().chunks;
    Ok(BlobReport { ok: incomplete.is_empty(), chunks, damages, healed, incomplete })
}

pub(super) fn incomplete(shared: &DatastoreRef) -> BTreeMap<String, Missing> {
    locked(&shared.contents).clone()
}

/// Marks the blobs that are known to be lost.
pub(super) fn mark_lost(shared: &DatastoreRef, infos: &mut [gravwell_model::codec::admin::BlobInfo]) {
    let known = locked(&shared.contents);
    infos.iter_mut().for_each(|info| info.lost = known.get(&info.content) == Some(&Missing::Lost));
}

/// A member that may serve other members.
pub(super) type Connected = (MemberName, quinn::Connection);
