//! Upkeep of the chunk store: what nothing names is collected, what is seldom read is let go where there is a bound, and
//! all is read now and then, so that damage is found while others still have what was there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::codec::admin::{BlobCollection, BlobReport, BlobStats, Progress};
use crate::codec::content;
use crate::model::{ChunkId, Collection};
use crate::telemetry::metrics;
use crate::transfer::{check, inventory};

use super::super::shared::SharedRef;
use super::super::{ReadError, quarantine};
use super::{Contents, Fetching, blocking, locked};

/// What nothing names is collected this often.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// The bound of the cache is looked at this often.
const EVICT_EVERY: Duration = Duration::from_secs(10);
/// Every chunk is read once in about this time, as long as that needs no more than [`SCRUB_CHUNKS_PER_S`].
const SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// At a low rate: 32 chunks are two megabytes.
const SCRUB_CHUNKS_PER_S: u32 = 32;
/// What was healed is waited for this long before a verification answers.
const HEALING: Duration = Duration::from_secs(20);

/// The contents that the replica sees, undecided ones included.
pub(super) fn all(shared: &SharedRef) -> Result<inventory::Contents, ReadError> {
    let mut all = inventory::Contents::default();
    if let Ok(collection) = Collection::new(content::COLLECTION) {
        for (key, object) in shared.scan(&collection, "", None, usize::MAX)? {
            all.add(key.as_str(), &object.value);
        }
    }
    if let Ok(collection) = Collection::new(content::RESOURCES) {
        for (_, object) in shared.scan(&collection, "", None, usize::MAX)? {
            all.add_resource(&object.value);
        }
    }
    // What a pending change replaces is still what everybody else sees.
    for txn in shared.outbox().pending() {
        for (number, head) in content::heads_of(txn).into_iter().enumerate() {
            all.heads.entry(format!("{}/{}/{number}", txn.id.origin, txn.id.counter)).or_insert(head);
        }
    }
    Ok(all)
}

pub(super) async fn run(contents: &Contents) {
    tokio::join!(collect_at_times(contents), evict_at_times(contents), scrub(contents));
}

async fn collect_at_times(contents: &Contents) {
    loop {
        sleep(COLLECT_EVERY).await;
        match contents.collect(None, false).await {
            Ok(done) if done.chunks > 0 => {
                tracing::info!(
                    chunks = done.chunks,
                    freed = done.freed_bytes,
                    "chunks that nothing names were removed"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error, "chunks that nothing names stay for now"),
        }
    }
}

async fn evict_at_times(contents: &Contents) {
    let Fetching::OnDemand { cache_bytes_max } = contents.inner.fetching else { return };
    if cache_bytes_max == 0 {
        return;
    }
    loop {
        sleep(EVICT_EVERY).await;
        if contents.inner.store.stats().stored_bytes > cache_bytes_max
            && let Err(error) = contents.evict_to(cache_bytes_max).await
        {
            tracing::warn!(error, "the cache of contents is larger than it should be");
        }
    }
}

async fn scrub(contents: &Contents) {
    loop {
        let store = contents.inner.store.clone();
        let ids = store.ids();
        let spread = SCRUB_EVERY / u32::try_from(ids.len()).unwrap_or(u32::MAX).max(1);
        let pause = spread.clamp(Duration::from_secs(1) / SCRUB_CHUNKS_PER_S, Duration::from_secs(60));
        for id in ids {
            sleep(pause).await;
            let store = store.clone();
            if let Ok(Err(error)) = blocking(move || store.read(&id)).await {
                tracing::warn!(%error, "damage was found; it is fetched again from a member");
                contents.inner.wake.notify_one();
            }
        }
        sleep(Duration::from_secs(60)).await;
    }
}

impl Contents {
    /// Removes chunks that nothing names; `grace` instead of the configured one.
    ///
    /// # Errors
    /// When it is not known what is named, or the store fails. Nothing is removed then.
    pub async fn collect(&self, grace: Option<Duration>, dry_run: bool) -> Result<BlobCollection, String> {
        let (store, grace) = (self.inner.store.clone(), grace.unwrap_or(self.inner.grace));
        let (mut all, directory) = (self.all().map_err(|error| error.to_string())?, self.inner.directory.clone());
        let collecting = move || {
            // A list that is not here was not here when the change was set aside, and holds nothing.
            let held = quarantine::heads(&directory)?.into_iter().enumerate();
            let held = held.filter(|(_, head)| store.missing(&head.index).is_empty());
            all.heads.extend(held.map(|(number, head)| (format!("quarantine/{number}"), head)));
            all.collect(&store, grace, dry_run)
        };
        let collected = blocking(collecting).await;
        collected.map_err(|error| error.to_string())?
    }

    /// Counts everything.
    ///
    /// # Errors
    /// When the state is damaged.
    pub async fn stats(&self) -> Result<BlobStats, String> {
        let (all, store) = (self.all().map_err(|error| error.to_string())?, self.inner.store.clone());
        blocking(move || all.stats(&store)).await.map_err(|error| error.to_string())
    }

    /// Reads every chunk, has what is damaged fetched again, and says what is not complete in the end. `progress` is told
    /// now and then.
    ///
    /// # Errors
    /// When the store or the state cannot be read.
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
            // Once everybody who answers was asked, waiting longer changes nothing.
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

    /// Lets chunks go, those of contents first that were read longest ago, until about `bytes_max` are left. What waits to be
    /// sent stays, and so does what was set aside, and lists.
    async fn evict_to(&self, bytes_max: u64) -> Result<(), String> {
        let all = self.all().map_err(|error| error.to_string())?;
        let pending: Vec<_> = self.shared.outbox().pending().cloned().collect();
        let read_at = locked(&self.inner.read_at).clone();
        let (store, directory) = (self.inner.store.clone(), self.inner.directory.clone());
        let evicting = move || {
            let set_aside = quarantine::heads(&directory)?;
            let of = |index: &[ChunkId]| check::all_parts(&store, index).ok().flatten().unwrap_or_default();
            let mut kept: HashSet<ChunkId> = HashSet::new();
            for head in pending.iter().flat_map(|txn| content::heads_of(txn)).chain(set_aside) {
                kept.extend(of(&head.index).iter().map(|part| part.id));
                kept.extend(head.index);
            }
            all.heads.values().for_each(|head| kept.extend(head.index.iter().copied()));
            let mut heads: Vec<_> = all.heads.values().collect();
            heads.sort_by_key(|head| head.index.first().and_then(|first| read_at.get(first).copied()));
            let mut excess = store.stats().stored_bytes.saturating_sub(bytes_max);
            let mut gone = Vec::new();
            for part in heads.iter().flat_map(|head| of(&head.index)) {
                if excess == 0 {
                    break;
                }
                if !kept.contains(&part.id) && store.contains(&part.id) {
                    excess = excess.saturating_sub(u64::from(part.bytes));
                    gone.push(part.id);
                }
            }
            store.evict(&gone).map(|_| ()).map_err(|error| error.to_string())
        };
        blocking(evicting).await.map_err(|error| error.to_string())?
    }
}
