//! Contents: what objects name by the chunks that it consists of.
//!
//! Chunks are kept here before a transaction names them, and sent to the datastore before that transaction is pushed (the
//! [gate](crate::protocol::gate) sees to that). What other members name is fetched: all of it as soon as it is known, or
//! only what is read. What is damaged or missing is fetched again by itself, from the datastore or from another member.

mod fetching;
mod sending;
mod sources;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::chunks::{ChunkError, ChunkStore, Part, StoreOptions};
use crate::codec::chunks::Want;
use crate::codec::content::ContentHead;
use crate::codec::message::Open;
use crate::env::view_fs::ViewFs;
use crate::env::{Fs, RealFs, SystemClock};
use crate::model::ChunkId;
use crate::peer::{Handler, Peer, Peers, Serving};
use crate::transfer::{Limiter, Server, check, inventory};
use crate::trust::Role;

use super::directory::Access;
use super::link::Connector;
use super::shared::SharedRef;

pub(super) use fetching::run as fetch;
pub use sending::Ahead;
pub(super) use sending::Delivery;
pub(super) use sources::give;

/// Directory of the chunk store within a replica's.
pub const CHUNKS: &str = "chunks";

/// Which chunks are fetched before somebody reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetching {
    /// All.
    Eager,
    /// None but lists; at most about so many bytes of chunks are kept, those that were read last.
    OnDemand {
        /// Bytes of the store; 0: no bound.
        cache_bytes_max: u64,
    },
}

/// How contents are kept.
#[derive(Clone, Debug)]
pub struct ContentsOptions {
    /// Where, when the store is another one's as well; `None`: in the replica's own directory.
    pub store: Option<ChunkStore>,
    /// Which chunks are fetched.
    pub fetching: Fetching,
    /// What nothing names is kept for this long.
    pub grace: Duration,
    /// Most bytes of chunks sent in a second; 0: no bound.
    pub bytes_per_s: u64,
}

impl Default for ContentsOptions {
    fn default() -> Self {
        let grace = Duration::from_secs(24 * 3600);
        ContentsOptions { store: None, fetching: Fetching::Eager, grace, bytes_per_s: 0 }
    }
}

/// Why contents cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// No member that answers has a chunk.
    #[error("chunk {0} is not here, and no member that answers has it: it is fetched as soon as one does")]
    Missing(ChunkId),
    /// The content is not what it should be.
    #[error("{0}")]
    Malformed(String),
    /// A list of chunks cannot be read.
    #[error(transparent)]
    List(#[from] check::ListError),
    /// The store.
    #[error(transparent)]
    Store(#[from] ChunkError),
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

pub(super) struct Inner {
    pub store: ChunkStore,
    pub fetching: Fetching,
    pub grace: Duration,
    limiter: Limiter,
    connector: Mutex<Option<Arc<dyn Connector>>>,
    peers: Mutex<Option<Peers>>,
    bulk: tokio::sync::Mutex<Option<sources::Bulk>>,
    /// Something is missing: look again.
    pub wake: Notify,
    missed: mpsc::Sender<ChunkId>,
    missed_here: Mutex<Option<mpsc::Receiver<ChunkId>>>,
    /// Contents that are not complete, and whether everybody who answers was asked in vain.
    incomplete: Mutex<BTreeMap<String, bool>>,
    /// When contents were last read, by a list of theirs.
    read_at: Mutex<HashMap<ChunkId, Instant>>,
    /// The replica's directory: what was set aside in it names chunks, too.
    directory: PathBuf,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the chunk store in a replica's directory, which this process has claimed.
pub(super) fn open_store(directory: &Path, access: Access, free_min: u64) -> Result<ChunkStore, ChunkError> {
    let clock = Arc::new(SystemClock);
    let fs: Arc<dyn Fs> = match access {
        // Opening tidies up; what is only looked at is tidied in memory.
        Access::Read => Arc::new(ViewFs::default()),
        Access::Serve | Access::Write => Arc::new(RealFs),
    };
    let mut options = StoreOptions::default();
    // Contents stop well before the replica only reads, so that what is small still arrives.
    options.reserve_bytes = options.reserve_bytes.max(free_min.saturating_mul(2));
    let (store, report) = ChunkStore::open(&directory.join(CHUNKS), fs, clock, options)?;
    report.damages.iter().for_each(|damage| tracing::warn!(%damage, "the chunk store"));
    Ok(store)
}

impl Inner {
    pub(super) fn new(options: &ContentsOptions, store: ChunkStore, directory: &Path) -> Inner {
        let (missed, missed_here) = mpsc::channel(64);
        Inner {
            store,
            fetching: options.fetching,
            grace: options.grace,
            limiter: Limiter::new(options.bytes_per_s),
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

    /// Serves streams on which others ask for chunks.
    pub(super) fn server(&self) -> Server {
        Server { store: self.store.clone(), limiter: self.limiter.clone(), takes: false, missed: self.missed.clone() }
    }

    pub(super) fn set_connector(&self, connector: Arc<dyn Connector>) {
        *locked(&self.connector) = Some(connector);
    }
}

/// Members that hold contents may read them from each other: whoever follows the log may.
struct Giver(Server);

impl Handler for Giver {
    fn allows(&self, role: Role) -> bool {
        matches!(role, Role::Webserver | Role::Reader)
    }

    fn serve(&self, _: Peer, mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Serving<'_> {
        Box::pin(async move { self.0.serve(&mut send, &mut receive).await })
    }
}

/// The contents of a replica. Cheap to clone.
#[derive(Clone)]
pub struct Contents {
    pub(super) inner: Arc<Inner>,
    pub(super) shared: SharedRef,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ContentsError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ContentsError::Stopping)
}

impl Contents {
    /// The chunk store.
    #[must_use]
    pub fn store(&self) -> &ChunkStore {
        &self.inner.store
    }

    /// Serves other members, and asks them.
    pub fn attach(&self, peers: &Peers) {
        peers.serve(Open::Chunks, Arc::new(Giver(self.inner.server())));
        *locked(&self.inner.peers) = Some(peers.clone());
        self.inner.wake.notify_one();
    }

    /// All parts of a content in order. Lists that are not here are fetched.
    ///
    /// # Errors
    /// See [`ContentsError`].
    pub async fn parts(&self, index: &[ChunkId]) -> Result<Vec<Part>, ContentsError> {
        self.note_read(index);
        let mut all = Vec::new();
        for id in index {
            self.read(id).await?;
            let (store, id) = (self.inner.store.clone(), *id);
            let parts = blocking(move || check::parts_of(&store, &id)).await?;
            all.extend(parts?.ok_or(ContentsError::Missing(id))?);
        }
        Ok(all)
    }

    /// The bytes of a chunk. One that is not here is fetched at once.
    ///
    /// # Errors
    /// See [`ContentsError`].
    pub async fn read(&self, id: &ChunkId) -> Result<Bytes, ContentsError> {
        self.read_ahead(std::slice::from_ref(id)).await
    }

    /// The bytes of the first of some chunks. When it is not here, it is fetched at once together with those of the others
    /// that are not here.
    ///
    /// # Errors
    /// See [`ContentsError`].
    pub async fn read_ahead(&self, ids: &[ChunkId]) -> Result<Bytes, ContentsError> {
        let Some(first) = ids.first().copied() else { return Ok(Bytes::new()) };
        if let Some(bytes) = self.read_here(first).await? {
            return Ok(bytes);
        }
        let is_missing = |id: &&ChunkId| !self.inner.store.contains(id);
        let wants = ids.iter().filter(is_missing).map(|id| Want { id: *id, bases: Vec::new() }).collect();
        self.inner.bring(&self.shared, wants, true).await;
        if let Some(bytes) = self.read_here(first).await? {
            return Ok(bytes);
        }
        self.inner.wake.notify_one();
        Err(ContentsError::Missing(first))
    }

    async fn read_here(&self, id: ChunkId) -> Result<Option<Bytes>, ContentsError> {
        let store = self.inner.store.clone();
        match blocking(move || store.read(&id)).await? {
            Ok(found) => Ok(found),
            Err(error @ ChunkError::Damaged { .. }) => {
                tracing::warn!(%error, "a chunk is fetched again");
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

    /// The contents that this replica sees, with the resources that name them.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn all(&self) -> Result<inventory::Contents, super::ReadError> {
        upkeep::all(&self.shared)
    }

    /// Contents of which chunks are missing here, with whether everybody who answers was asked in vain.
    #[must_use]
    pub fn incomplete(&self) -> BTreeMap<String, bool> {
        locked(&self.inner.incomplete).clone()
    }

    /// Sends chunks of a content to the datastore while it is still being written. `base`: the lists of the content that it
    /// replaces.
    #[must_use]
    pub fn ahead(&self, base: Vec<ChunkId>) -> Ahead {
        Ahead::begin(self.clone(), base)
    }

    /// The list of chunks of a content, as far as needed for telling differences; empty when it is not here.
    async fn parts_here(&self, index: Vec<ChunkId>) -> Vec<Part> {
        let store = self.inner.store.clone();
        let parts = blocking(move || check::all_parts(&store, &index)).await;
        parts.ok().and_then(Result::ok).flatten().unwrap_or_default()
    }

    /// For the chunks of a content, chunks of the content that it replaces from which they may be told as the difference.
    async fn bases_for(&self, head: &ContentHead) -> HashMap<ChunkId, Vec<ChunkId>> {
        if head.base.is_empty() {
            return HashMap::new();
        }
        let (old, new) = (self.parts_here(head.base.clone()).await, self.parts_here(head.index.clone()).await);
        blocking(move || pair(&old, &new)).await.unwrap_or_default()
    }
}

/// Pairs new chunks with old ones that may resemble them.
fn pair(old: &[Part], new: &[Part]) -> HashMap<ChunkId, Vec<ChunkId>> {
    let bases = |pairing: crate::chunks::pairing::Pairing| {
        (pairing.part.id, pairing.bases.iter().map(|part| part.id).collect())
    };
    crate::chunks::pairing::pair(old, new).into_iter().map(bases).collect()
}
