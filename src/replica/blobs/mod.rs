//! Blobs: contents of objects, stored as chunks that the objects reference.
//!
//! Chunks are stored here before a transaction references them, and sent to the datastore before it is pushed
//! (ensured by the [gate](gravwell_protocol::blob_gate)). Chunks referenced by other members are fetched as soon as they are
//! known, or only when they are read. Corrupt or missing chunks are fetched again automatically, from the datastore
//! or another member.

mod download;
mod maintenance;
mod sources;
mod upload;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use gravwell_chunks::{ChunkError, ChunkStore, Part, StoreOptions};
use gravwell_env::view_fs::ViewFs;
use gravwell_env::{Fs, RealFs, SystemClock};
use gravwell_model::ChunkId;
use gravwell_model::codec::blob_manifest::BlobManifest;
use gravwell_model::codec::chunks::RequestedChunk;
use gravwell_model::codec::message::Open;
use gravwell_transport::peer::{Handler, Peer, Peers, Serving};
use gravwell_transport::transfer::{RateLimiter, Server, check, inventory};
use gravwell_transport::trust::Role;

use super::directory::Access;
use super::link::Connector;
use super::shared::ReplicaRef;

pub(super) use download::run as fetch;
pub(super) use sources::give;
pub use upload::Ahead;
pub(super) use upload::Delivery;

/// Directory of the chunk store within a replica's directory.
pub const CHUNKS: &str = "chunks";

/// Selects the chunks that are fetched before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetching {
    /// All chunks.
    Eager,
    /// Only chunk lists. About `cache_bytes_max` bytes of chunks are kept, those read last.
    OnDemand {
        /// Limit of the store, in bytes; 0 for no limit.
        cache_bytes_max: u64,
    },
}

/// How blobs are kept.
#[derive(Clone, Debug)]
pub struct BlobOptions {
    /// Chunk store, if it is shared; `None` for one in the replica's directory.
    pub store: Option<ChunkStore>,
    /// Selects the chunks that are fetched.
    pub fetching: Fetching,
    /// How long unreferenced chunks are kept.
    pub grace: Duration,
    /// Most bytes of chunks sent in a second; 0 for no limit.
    pub bytes_per_s: u64,
}

impl Default for BlobOptions {
    fn default() -> Self {
        let grace = Duration::from_secs(24 * 3600);
        BlobOptions { store: None, fetching: Fetching::Eager, grace, bytes_per_s: 0 }
    }
}

/// Error of reading blobs.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No member that answers has a chunk.
    #[error("chunk {0} is missing here and at all reachable members; it is fetched as soon as a member has it")]
    Missing(ChunkId),
    /// The blob is malformed.
    #[error("{0}")]
    Malformed(String),
    /// A list of chunks cannot be read.
    #[error(transparent)]
    List(#[from] check::ListError),
    /// The chunk store failed.
    #[error(transparent)]
    Store(#[from] ChunkError),
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

pub(super) struct BlobKeeper {
    pub store: ChunkStore,
    pub fetching: Fetching,
    pub grace: Duration,
    limiter: RateLimiter,
    connector: Mutex<Option<Arc<dyn Connector>>>,
    peers: Mutex<Option<Peers>>,
    bulk: tokio::sync::Mutex<Option<sources::Bulk>>,
    /// Notified when something is missing, to check again.
    pub wake: Notify,
    missed: mpsc::Sender<ChunkId>,
    missed_here: Mutex<Option<mpsc::Receiver<ChunkId>>>,
    /// Incomplete blobs, and whether all members that answer were asked without success.
    incomplete: Mutex<BTreeMap<String, bool>>,
    /// When blobs were last read, by their first list.
    read_at: Mutex<HashMap<ChunkId, Instant>>,
    /// The replica's directory; archived changes in it also reference chunks.
    directory: PathBuf,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the chunk store in a replica's directory, which this process has claimed.
pub(super) fn open_store(directory: &Path, access: Access, free_min: u64) -> Result<ChunkStore, ChunkError> {
    let clock = Arc::new(SystemClock);
    let fs: Arc<dyn Fs> = match access {
        // Opening cleans up; for a directory that is only read, in memory.
        Access::Read => Arc::new(ViewFs::default()),
        Access::Serve | Access::Write => Arc::new(RealFs),
    };
    let mut options = StoreOptions::default();
    // Blobs are refused well before the replica becomes read-only, so that small values still arrive.
    options.reserve_bytes = options.reserve_bytes.max(free_min.saturating_mul(2));
    let (store, report) = ChunkStore::open(&directory.join(CHUNKS), fs, clock, options)?;
    report.damages.iter().for_each(|damage| tracing::warn!(%damage, "the chunk store"));
    Ok(store)
}

impl BlobKeeper {
    pub(super) fn new(options: &BlobOptions, store: ChunkStore, directory: &Path) -> BlobKeeper {
        let (missed, missed_here) = mpsc::channel(64);
        BlobKeeper {
            store,
            fetching: options.fetching,
            grace: options.grace,
            limiter: RateLimiter::new(options.bytes_per_s),
            connector: Mutex::default(),
            peers: Mutex::default(),
            bulk: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            missed,
            missed_here: Mutex::new(Some(missed_here)),
            incomplete: Mutex::default(),
            read_at: Mutex::default(),
            directory: directory.to_owned(),
        }
    }

    /// Returns a server for streams on which others request chunks.
    pub(super) fn server(&self) -> Server {
        Server { store: self.store.clone(), limiter: self.limiter.clone(), takes: false, missed: self.missed.clone() }
    }

    pub(super) fn set_connector(&self, connector: Arc<dyn Connector>) {
        *locked(&self.connector) = Some(connector);
    }
}

/// Serves chunks to other members. Every member that follows the log may read them.
struct ChunkServer(Server);

impl Handler for ChunkServer {
    fn allows(&self, role: Role) -> bool {
        matches!(role, Role::Webserver | Role::Reader)
    }

    fn serve(&self, _: Peer, mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Serving<'_> {
        Box::pin(async move { self.0.serve(&mut send, &mut receive).await })
    }
}

/// The blobs of a replica. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    pub(super) inner: Arc<BlobKeeper>,
    pub(super) shared: ReplicaRef,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BlobError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BlobError::Stopping)
}

impl Blobs {
    /// Returns the chunk store.
    #[must_use]
    pub fn store(&self) -> &ChunkStore {
        &self.inner.store
    }

    /// Starts to serve other members, and to request chunks from them.
    pub fn attach(&self, peers: &Peers) {
        peers.serve(Open::Chunks, Arc::new(ChunkServer(self.inner.server())));
        *locked(&self.inner.peers) = Some(peers.clone());
        self.inner.wake.notify_one();
    }

    /// Returns all parts of a blob in order. Missing lists are fetched.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn parts(&self, index: &[ChunkId]) -> Result<Vec<Part>, BlobError> {
        self.note_read(index);
        let mut all = Vec::new();
        for id in index {
            self.read(id).await?;
            let (store, id) = (self.inner.store.clone(), *id);
            let parts = blocking(move || check::parts_of(&store, &id)).await?;
            all.extend(parts?.ok_or(BlobError::Missing(id))?);
        }
        Ok(all)
    }

    /// Returns the bytes of a chunk. A missing one is fetched immediately.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn read(&self, id: &ChunkId) -> Result<Bytes, BlobError> {
        self.read_ahead(std::slice::from_ref(id)).await
    }

    /// Returns the bytes of the first of some chunks. If it is missing, it is fetched immediately, together with the
    /// other missing ones.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn read_ahead(&self, ids: &[ChunkId]) -> Result<Bytes, BlobError> {
        let Some(first) = ids.first().copied() else { return Ok(Bytes::new()) };
        if let Some(bytes) = self.read_here(first).await? {
            return Ok(bytes);
        }
        let is_missing = |id: &&ChunkId| !self.inner.store.contains(id);
        let wants = ids.iter().filter(is_missing).map(|id| RequestedChunk { id: *id, bases: Vec::new() }).collect();
        self.inner.bring(&self.shared, wants, true).await;
        if let Some(bytes) = self.read_here(first).await? {
            return Ok(bytes);
        }
        self.inner.wake.notify_one();
        Err(BlobError::Missing(first))
    }

    async fn read_here(&self, id: ChunkId) -> Result<Option<Bytes>, BlobError> {
        let store = self.inner.store.clone();
        match blocking(move || store.read(&id)).await? {
            Ok(found) => Ok(found),
            Err(error @ ChunkError::Damaged { .. }) => {
                tracing::warn!(%error, "corrupt chunk found; fetching it again");
                self.inner.wake.notify_one();
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn note_read(&self, index: &[ChunkId]) {
        if let (Fetching::OnDemand { .. }, Some(first)) = (self.inner.fetching, index.first()) {
            locked(&self.inner.read_at).insert(*first, Instant::now());
        }
    }

    /// Returns the blobs that this replica sees, with the resources that reference them.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn all(&self) -> Result<inventory::Contents, super::ReadError> {
        maintenance::all(&self.shared)
    }

    /// Returns incomplete blobs, and whether all members that answer were asked without success.
    #[must_use]
    pub fn incomplete(&self) -> BTreeMap<String, bool> {
        locked(&self.inner.incomplete).clone()
    }

    /// Sends chunks of a blob to the datastore while it is still being written. `base` holds the lists of the blob that
    /// it replaces.
    #[must_use]
    pub fn ahead(&self, base: Vec<ChunkId>) -> Ahead {
        Ahead::begin(self.clone(), base)
    }

    /// Returns the chunk list of a blob, as far as needed to compute differences; empty if it is missing.
    async fn parts_here(&self, index: Vec<ChunkId>) -> Vec<Part> {
        let store = self.inner.store.clone();
        let parts = blocking(move || check::all_parts(&store, &index)).await;
        parts.ok().and_then(Result::ok).flatten().unwrap_or_default()
    }

    /// Returns delta base candidates for the chunks of a blob, from the blob that it replaces.
    async fn bases_for(&self, head: &BlobManifest) -> HashMap<ChunkId, Vec<ChunkId>> {
        if head.base.is_empty() {
            return HashMap::new();
        }
        let (old, new) = (self.parts_here(head.base.clone()).await, self.parts_here(head.index.clone()).await);
        blocking(move || pair(&old, &new)).await.unwrap_or_default()
    }
}

/// Pairs new chunks with old ones that may resemble them.
fn pair(old: &[Part], new: &[Part]) -> HashMap<ChunkId, Vec<ChunkId>> {
    let bases = |pairing: gravwell_chunks::delta_base::DeltaBases| {
        (pairing.part.id, pairing.bases.iter().map(|part| part.id).collect())
    };
    gravwell_chunks::delta_base::pair(old, new).into_iter().map(bases).collect()
}
