//! The handle that a webserver holds: reads, writes, watches, barriers, status.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::codec::admin::{OriginInfo, SeenVersion, Status};
use crate::codec::health::{self, Code, Health, Reason};
use crate::log::journal::JournalError;
use crate::model::{Collection, Key, Limits, MemberName, Op, Origin, Seq, Txn, TxnId, Verdict};
use crate::protocol::outbox::{Outbox, RejectedTxn};
use crate::state::{StateError, StateStore};

use super::applier::{self, Applier};
use super::contents::{self, Contents, ContentsOptions};
use super::directory::{Access, Directory};
use super::disk::Disk;
use super::history::History;
use super::link::{Connector, Linker};
use super::opening::{self, Lost, Opened};
use super::outbox_loss;
use super::outbox_records::{self, RestoreError};
use super::outbox_writer::{self, Again, Draft, OutboxWriter, SubmitError};
use super::proofs;
use super::quarantine;
use super::receipts::Receipt;
use super::refusal::Refusal;
use super::role;
use super::shared::{Change, OUTBOX_BYTES_MAX, Shared, SharedRef};
use super::terms::Terms;
use super::view::{Object, ReadError};
use crate::env::data_dir::{DirectoryError, PATIENCE};
use crate::env::watch::Watch;
use crate::env::{SystemClock, SystemEntropy};

/// Requests that may wait for the outbox writer.
const OUTBOX_QUEUE: usize = 4096;
/// Runs that may wait for the applier.
const APPLIER_QUEUE: usize = 16;

/// How a replica is opened.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Memory for cached state, in bytes.
    pub cache_bytes: u64,
    /// Where other webservers reach this one.
    pub external_addr: Option<String>,
    /// How long the list of members counts after the datastore was last heard; `None`: for ever.
    pub roster_age_max: Option<Duration>,
    /// How long to wait for a tool that looks at the directory.
    pub patience: Duration,
    /// Rhythm of progress reports, in milliseconds.
    pub heartbeat_ms: u64,
    /// Most bytes of pending transactions; beyond it nothing is accepted. They are held in memory.
    pub outbox_bytes_max: usize,
    /// Bounds of transactions until the datastore has named its own.
    pub limits: Limits,
    /// How contents are kept; `None`: not at all, so that none can be written or read here.
    pub contents: Option<ContentsOptions>,
    /// What for.
    pub access: Access,
    /// Whether the datastore is this webserver's own log.
    pub is_standalone: bool,
    /// With less room than this on the disk, in bytes, the replica only reads.
    pub free_min_bytes: u64,
    /// Bytes that are kept for when the disk is full.
    pub reserve_bytes: u64,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        ReplicaOptions {
            cache_bytes: 32 << 20,
            external_addr: None,
            roster_age_max: Some(Duration::from_secs(24 * 3600)),
            patience: PATIENCE,
            heartbeat_ms: 5000,
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            limits: Limits::default(),
            contents: None,
            access: Access::Serve,
            is_standalone: false,
            free_min_bytes: 64 << 20,
            reserve_bytes: 16 << 20,
        }
    }
}

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The outbox journal, which holds what exists nowhere else.
    #[error("the outbox journal: {0}")]
    Journal(#[from] JournalError),
    /// The outbox journal is damaged or missing.
    #[error(
        "the outbox journal: {reason}: bring the file back from a backup, or give up what is lost with `gravwell-logctl \
         --data-dir {home} outbox accept-loss`, which keeps the damaged file and what can be read", home = home.display()
    )]
    JournalDamaged {
        /// The replica's directory.
        home: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An entry of the outbox journal.
    #[error("the outbox journal in {path} cannot be read: {reason}", path = path.display())]
    Outbox {
        /// The journal's directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state, which was left as it is.
    #[error("{path}: {reason}; start the replica, which keeps it next to a new one, fetches its state anew and keeps its outbox", path = path.display())]
    Damaged {
        /// The state's directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state, even after it was discarded.
    #[error(transparent)]
    State(#[from] StateError),
    /// The chunk store.
    #[error("the chunk store: {0}")]
    Chunks(#[from] crate::chunks::ChunkError),
    /// No tokio runtime.
    #[error("a replica is opened within a tokio runtime")]
    NoRuntime,
    /// The operating system gives no thread.
    #[error("no thread for the replica: {0}")]
    Thread(#[from] std::io::Error),
}

impl OpenError {
    /// Whether what lies on the disk is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            OpenError::Journal(JournalError::Damaged(_))
            | OpenError::JournalDamaged { .. }
            | OpenError::Outbox { .. }
            | OpenError::Damaged { .. } => true,
            OpenError::State(error) => error.is_damage(),
            OpenError::Chunks(error) => error.is_damage(),
            _ => false,
        }
    }

    /// Names the replica's directory in what has to be done.
    fn of(self, home: &Path) -> OpenError {
        match self {
            OpenError::Journal(error @ JournalError::Damaged(_)) => {
                OpenError::JournalDamaged { home: home.to_owned(), reason: error.to_string() }
            }
            other => other,
        }
    }
}

/// Why nothing is said of an origin.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// The state is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its transactions are those of another member.
    #[error(
        "origin {origin} belongs to member {member}, which used it first; a record of an import that was copied from there \
         must not be continued here: remove it, so that the import begins under an identity of its own"
    )]
    OfAnotherMember {
        /// The origin.
        origin: Origin,
        /// The member.
        member: MemberName,
    },
}

/// A copy of a log's state, with an outbox. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Replica {
    /// First, so that the threads whose channels close with the last handle are known to end because they should.
    life: Arc<Life>,
    pub(super) shared: SharedRef,
    outbox: mpsc::Sender<outbox_writer::Request>,
    applier: mpsc::Sender<applier::Request>,
    options: ReplicaOptions,
    path: PathBuf,
    member: Option<String>,
}

/// Ends the parts of a replica with its last handle.
struct Life {
    shared: SharedRef,
    link: Mutex<Option<tokio::task::JoinHandle<()>>>,
    contents: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Copies of a directory that is only read. A process may end before the thread that holds them does.
    scratch: Option<PathBuf>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.shared.watch.stop();
        // The applier may wait for room on a full disk.
        self.shared.is_closing.store(true, Ordering::Release);
        if let Some(scratch) = &self.scratch {
            let _ = std::fs::remove_dir_all(scratch);
        }
        if let Some(link) = self.link.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            link.abort();
        }
        if let Some(contents) = self.contents.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            contents.abort();
        }
    }
}

impl Replica {
    /// Opens the replica in `path`, creating it if need be. It stays offline until [`Replica::connect`].
    ///
    /// # Errors
    /// When the directory is in use or belongs to something else, or the outbox journal is damaged: that one exists
    /// nowhere else, so it is never discarded. A damaged state is set aside and fetched again.
    pub fn open(path: &Path, options: ReplicaOptions) -> Result<Replica, OpenError> {
        Self::open_in(path, options).map_err(|error| error.of(path))
    }

    fn open_in(path: &Path, options: ReplicaOptions) -> Result<Replica, OpenError> {
        tokio::runtime::Handle::try_current().map_err(|_| OpenError::NoRuntime)?;
        let directory = Directory::open(path, options.access, options.patience)?;
        outbox_loss::check(path, options.access != Access::Read)?;
        let disk = match options.access {
            Access::Serve => Disk::new(path, options.free_min_bytes, options.reserve_bytes),
            Access::Write | Access::Read => Disk::unbounded(),
        };
        // On a full disk the reserve makes room for what opening writes.
        disk.is_full();
        let Opened { state, place, lost, decided, findings } = opening::open(&directory, options.cache_bytes)?;
        let outbox_path = directory.outbox()?;
        let scratch = directory.scratch().map(Path::to_path_buf);
        let (journal, restoring) = outbox_records::open(&outbox_path)?;
        let lost = match lost {
            Some(lost) => Some(lost),
            None => restoring.contradict(state.meta().as_deref()).map(|what| {
                directory.note_lost(&what);
                Lost::unmarked(what)
            }),
        };
        let restored = restoring.finish(&state, Outbox::keeping().without_overlay_of(decided));
        let (outbox, to_note) = restored.map_err(|error| match error {
            RestoreError::State(error) => OpenError::State(error),
            RestoreError::Journal(reason) => OpenError::Outbox { path: outbox_path, reason },
        })?;
        // Without a mark it is not known what of it a state that was lost had decided.
        let is_unsure = lost.as_ref().is_some_and(|lost| lost.mark.is_none());
        let outbox = if is_unsure { outbox.doubted() } else { outbox };
        let contents = match &options.contents {
            None => None,
            Some(wanted) => {
                let store = wanted
                    .store
                    .clone()
                    .map_or_else(|| contents::open_store(path, options.access, options.free_min_bytes), Ok)?;
                Some(Arc::new(contents::Inner::new(wanted, store, path)))
            }
        };
        let shared = Arc::new(Shared::new(state, outbox, contents).on(disk));
        shared.set_lost(lost);
        // Who writes has put right what was found; until the state is level, what it lacks is told in `lost`.
        let findings = if options.access == Access::Read { findings } else { Vec::new() };
        shared.findings.lock().unwrap_or_else(PoisonError::into_inner).extend(findings);
        if let Some(meta) = shared.state().meta() {
            let problem = crate::log::generations::problem_of_member(path, meta.log_id, &meta.lineage);
            shared.set_unknown_generations(problem);
        }
        let terms = Terms::load(path).unwrap_or_else(|error| {
            // They hold again with the next connection; until then the bounds are the smallest.
            tracing::warn!(error, "what the datastore said last is not known");
            shared.findings.lock().unwrap_or_else(PoisonError::into_inner).push(error);
            None
        });
        let limits = terms.as_ref().map_or_else(|| options.limits.clone(), Terms::limits);
        *shared.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        *shared.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
        proofs::open(path, &shared);
        shared.outbox_bytes_max.store(options.outbox_bytes_max, Ordering::Relaxed);
        let (outbox, outbox_requests) = mpsc::channel(OUTBOX_QUEUE);
        let (applier, applier_requests) = mpsc::channel(APPLIER_QUEUE);
        let writer = OutboxWriter::new(Arc::clone(&shared), journal, Arc::new(SystemClock), Arc::new(SystemEntropy));
        let end: Option<fn(&'static str) -> !> = Some(super::shared::part_panicked);
        shared.watch.thread("outbox", end, move || writer.run(outbox_requests))?;
        let worker =
            Applier::new(Arc::clone(&shared), Box::new(directory), outbox.clone()).at(place, options.cache_bytes);
        shared.watch.thread("applier", end, move || worker.run(applier_requests))?;
        if !to_note.is_empty() {
            let _ = outbox.try_send(outbox_writer::Request::Note(to_note));
        }
        let identity = crate::trust::Identity::load(path).ok();
        // A role changes by joining, so the identity knows it at least as well as the last welcome.
        let role = identity.as_ref().map(|identity| identity.role().to_string());
        shared.set_forbidden(role.as_deref().and_then(role::forbidden));
        shared.set_refusal(Refusal::load(path));
        let member = identity.map(|identity| identity.name().to_string());
        if let Some(member) = &member {
            let _ = shared.member.set(member.clone());
        }
        let life = Life { shared: Arc::clone(&shared), link: Mutex::default(), contents: Mutex::default(), scratch };
        let life = Arc::new(life);
        let path = path.to_owned();
        Ok(Replica { shared, outbox, applier, options, path, member, life })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was opened to be looked at.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.access == Access::Read
    }

    /// Keeps the replica connected from now on, through any number of failures.
    pub fn connect(&self, connector: Arc<dyn Connector>) {
        if let Some(contents) = self.contents() {
            contents.inner.set_connector(Arc::clone(&connector));
            let mut task = self.life.contents.lock().unwrap_or_else(PoisonError::into_inner);
            task.get_or_insert_with(|| tokio::spawn(self.shared.watch.lasting("contents", contents::fetch(contents))));
        }
        *self.shared.connector.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(&connector));
        let linker = Linker {
            shared: Arc::clone(&self.shared),
            applier: self.applier.clone(),
            outbox: self.outbox.clone(),
            connector,
            external_addr: self.options.external_addr.clone(),
            directory: self.path.clone(),
            cache_bytes: self.options.cache_bytes,
            heartbeat_ms: self.options.heartbeat_ms,
            fetching: Mutex::default(),
        };
        let task = tokio::spawn(self.shared.watch.lasting("connection to the datastore", linker.run()));
        if let Some(former) = self.life.link.lock().unwrap_or_else(PoisonError::into_inner).replace(task) {
            former.abort();
        }
    }

    /// The contents that it keeps; `None` when it keeps none.
    #[must_use]
    pub fn contents(&self) -> Option<Contents> {
        let inner = self.shared.contents.clone()?;
        Some(Contents { inner, shared: Arc::clone(&self.shared) })
    }

    /// Watches over this replica's tasks; for others that belong to it.
    #[must_use]
    pub fn watch_over(&self) -> &Watch {
        &self.shared.watch
    }

    /// Goes offline. Everything goes on working; nothing is pushed or received.
    pub fn disconnect(&self) {
        if let Some(link) = self.life.link.lock().unwrap_or_else(PoisonError::into_inner).take() {
            link.abort();
        }
        self.shared.update_link(|link| link.connected = false);
    }

    /// Disconnects and makes the state durable. Nothing would be lost without it; the next start is quicker with it.
    pub async fn close(&self) {
        self.shared.watch.stop();
        self.disconnect();
        self.shared.is_closing.store(true, Ordering::Release);
        if let Some(scratch) = &self.life.scratch {
            let _ = std::fs::remove_dir_all(scratch);
        }
        let contents = self.life.contents.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(contents) = contents {
            contents.abort();
        }
        let (reply, persisted) = oneshot::channel();
        if self.applier.send(applier::Request::Persist(reply)).await.is_ok() {
            let _ = persisted.await;
        }
        if self.options.access != Access::Read {
            if let Some(contents) = self.contents() {
                contents.checkpoint().await;
            }
            proofs::save(&self.shared, &self.path);
        }
        if self.options.access == Access::Serve {
            let _ = std::fs::remove_file(self.path.join(crate::transport::local::SOCKET));
        }
    }

    /// One object, own undecided transactions included.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, ReadError> {
        self.shared.get(collection, key)
    }

    /// The objects of a collection whose keys start with `prefix` and come after `after`, in key order, at most
    /// `limit`; own undecided transactions included.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn scan(
        &self,
        collection: &Collection,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Object)>, ReadError> {
        self.shared.scan(collection, prefix, after, limit)
    }

    /// As [`Replica::scan`], one object at a time until `visit` has seen enough, so that a collection of any size needs the
    /// memory of one object.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn each(
        &self,
        collection: &Collection,
        prefix: &str,
        visit: impl FnMut(Key, Object) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        self.shared.each(collection, prefix, None, visit)
    }

    /// For how long nothing has been heard from the datastore to which this replica counts as connected; it is asked for a
    /// sign of life every second. Who has pushed something for half a second and finds that much silence has reason to doubt
    /// that the datastore is there, well before the connection is given up.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.shared.silence()
    }

    /// Submits a transaction. When this returns, it is durable here and will be pushed until it is decided.
    ///
    /// # Errors
    /// When a bound is broken, a condition fails already here, or the local disk refuses.
    pub async fn submit(&self, draft: Draft) -> Result<Receipt, SubmitError> {
        let draft = self.stamped(draft);
        self.ask(|reply| outbox_writer::Request::Submit(draft, reply)).await
    }

    /// Hands a transaction over without waiting for the local disk: the answer comes through the returned channel.
    /// Transactions are taken in the order of these calls.
    ///
    /// # Errors
    /// When the replica is closed.
    pub async fn submit_pipelined(
        &self,
        draft: Draft,
    ) -> Result<oneshot::Receiver<Result<Receipt, SubmitError>>, SubmitError> {
        self.check_open()?;
        let (reply, answer) = oneshot::channel();
        let request = outbox_writer::Request::Submit(self.stamped(draft), reply);
        self.outbox.send(request).await.map_err(|_| SubmitError::Closed)?;
        Ok(answer)
    }

    /// What waits while the history is left was made in the one before.
    fn stamped(&self, draft: Draft) -> Draft {
        let read_in = draft.read_in.or_else(|| Some(self.history()));
        Draft { read_in, ..draft }
    }

    /// The history that is read now, to be asked before reading.
    #[must_use]
    pub fn history(&self) -> History {
        self.shared.histories.present()
    }

    /// Waits until the outbox has room for a transaction of so many bytes. Does not wait while the datastore is not reached, which
    /// makes room: the transaction is refused then.
    pub async fn wait_for_room(&self, bytes: usize) {
        let mut changed = self.shared.outbox_changed.subscribe();
        let limit = self.options.outbox_bytes_max / 4 * 3;
        loop {
            changed.borrow_and_update();
            let pending = self.shared.outbox().pending_bytes();
            if pending == 0 || pending + bytes <= limit || !self.is_connected() {
                return;
            }
            let patience = Duration::from_secs(1);
            if tokio::time::timeout(patience, changed.changed()).await.is_ok_and(|changed| changed.is_err()) {
                return;
            }
        }
    }

    /// Puts one object.
    ///
    /// # Errors
    /// See [`Replica::submit`].
    pub async fn put(&self, collection: Collection, key: Key, value: Bytes) -> Result<Receipt, SubmitError> {
        self.submit(Draft { ops: vec![Op::Put { collection, key, value }], ..Draft::default() }).await
    }

    /// Deletes one object.
    ///
    /// # Errors
    /// See [`Replica::submit`].
    pub async fn delete(&self, collection: Collection, key: Key) -> Result<Receipt, SubmitError> {
        self.submit(Draft { ops: vec![Op::Delete { collection, key }], ..Draft::default() }).await
    }

    /// Whether anything is taken in at all.
    fn check_open(&self) -> Result<(), SubmitError> {
        match self.options.access {
            Access::Read => Err(SubmitError::ReadOnly),
            Access::Serve | Access::Write if self.shared.has_failed() => Err(SubmitError::Failed),
            Access::Serve | Access::Write => Ok(()),
        }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, SubmitError>>) -> outbox_writer::Request,
    ) -> Result<T, SubmitError> {
        self.check_open()?;
        let (reply, answer) = oneshot::channel();
        self.outbox.send(request(reply)).await.map_err(|_| SubmitError::Closed)?;
        answer.await.map_err(|_| SubmitError::Closed)?
    }

    /// Changes from now on. A receiver that falls too far behind is told so and reads everything again.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// Entries of the log from now on, in runs, as they are applied here. A receiver that falls too far behind is told so.
    #[must_use]
    pub fn watch_entries(&self) -> broadcast::Receiver<Arc<Vec<crate::model::Entry>>> {
        self.shared.entries.subscribe()
    }

    /// Waits until the state has reached `seq`; `false` when `timeout` ran out first.
    pub async fn barrier(&self, seq: Seq, timeout: Duration) -> bool {
        let mut applied = self.shared.applied.subscribe();
        let reached = applied.wait_for(|applied| *applied >= seq);
        tokio::time::timeout(timeout, reached).await.is_ok_and(|reached| reached.is_ok())
    }

    /// Waits until every transaction that is in the outbox now is decided and applied here; `false` when `timeout`
    /// ran out first.
    pub async fn drain(&self, timeout: Duration) -> bool {
        let wanted: Vec<TxnId> = self.shared.outbox().pending().map(|txn| txn.id).collect();
        let mut last: std::collections::HashMap<Origin, _> = std::collections::HashMap::new();
        for id in wanted {
            last.insert(id.origin, id.counter);
        }
        let mut changed = self.shared.outbox_changed.subscribe();
        let drained = async {
            loop {
                changed.borrow_and_update();
                let waits = {
                    let outbox = self.shared.outbox();
                    let first =
                        outbox.pending().find(|txn| last.get(&txn.id.origin).is_some_and(|c| txn.id.counter <= *c));
                    first.is_some()
                };
                if !waits || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(timeout, drained).await.is_ok()
    }

    /// Undecided transactions, oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<Arc<Txn>> {
        self.shared.outbox().waiting().cloned().collect()
    }

    /// Rejected transactions that wait for a person.
    #[must_use]
    pub fn rejected(&self) -> Vec<RejectedTxn> {
        self.shared.outbox().rejected().values().cloned().collect()
    }

    /// Submits a rejected transaction again, as a new one.
    ///
    /// # Errors
    /// When it is not on the list, or as [`Replica::submit`].
    pub async fn retry(&self, id: TxnId) -> Result<Receipt, SubmitError> {
        self.retry_upon(id, Vec::new(), self.history()).await
    }

    /// As [`Replica::retry`], after its author has seen what is there now, in this history: it is applied `upon` these versions, and
    /// on no others.
    ///
    /// # Errors
    /// As [`Replica::retry`].
    pub async fn retry_upon(
        &self,
        id: TxnId,
        upon: Vec<SeenVersion>,
        seen_in: History,
    ) -> Result<Receipt, SubmitError> {
        self.retry_as(id, Again { upon, seen_in, ..Again::default() }).await
    }

    /// As [`Replica::retry`], made by who makes it now.
    ///
    /// # Errors
    /// As [`Replica::retry`].
    pub async fn retry_as(&self, id: TxnId, again: Again) -> Result<Receipt, SubmitError> {
        self.ask(|reply| outbox_writer::Request::Retry(id, again, reply)).await
    }

    /// Takes a rejected transaction off the list.
    ///
    /// # Errors
    /// When it is not on the list, or the local disk refuses.
    pub async fn dismiss(&self, id: TxnId) -> Result<(), SubmitError> {
        self.ask(|reply| outbox_writer::Request::Dismiss(id, reply)).await
    }

    /// What is known of an origin's transactions.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn origin(&self, origin: Origin) -> Result<OriginInfo, OriginError> {
        if let Some(member) = self.shared.other_maker(origin).map_err(ReadError::from)? {
            return Err(OriginError::OfAnotherMember { origin, member });
        }
        let row = self.shared.state().origin(origin).map_err(ReadError::from)?;
        let decided = row.map_or_else(Default::default, |row| row.last_counter);
        let taken = decided.max(self.shared.outbox().taken(origin));
        Ok(OriginInfo { taken, decided })
    }

    /// The committed state, without undecided transactions.
    #[must_use]
    pub fn state(&self) -> StateStore {
        self.shared.state()
    }

    /// Position, head, lag, outbox, verdict and health.
    #[must_use]
    pub fn status(&self) -> Status {
        let (link, refusal) = (self.shared.link(), self.shared.refusal());
        let meta = self.shared.state().meta();
        let (outbox, rejected) = {
            let outbox = self.shared.outbox();
            (outbox.depth() as u64, outbox.rejected().len() as u64)
        };
        let seq = meta.as_ref().map_or(Seq::ZERO, |meta| meta.seq);
        let head = link.head.max(seq);
        let level = link.connected && seq >= head;
        let since_level = link.level_at.unwrap_or(self.shared.started).elapsed();
        let verdict = match link.verdict {
            Some(Verdict::Same | Verdict::Behind) if seq >= head => Verdict::Same.to_string(),
            Some(verdict) => verdict.to_string(),
            None => "Unknown".to_owned(),
        };
        let problem = self.shared.problem();
        let ended = Some(self.shared.watch.ended()).filter(|ended| !ended.is_empty());
        let ended = ended.map(|ended| Reason::new(Code::TaskEnded, ended, health::START_AGAIN));
        let incomplete = self.contents().map(|contents| contents.incomplete()).unwrap_or_default();
        let lost_at = link.lost_at.unwrap_or(self.shared.started);
        let ms = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let mut status = Status {
            role: "replica".into(),
            running: true,
            member: self.member.clone(),
            log_id: meta.as_ref().map(|meta| meta.log_id),
            generation: meta.as_ref().map(|meta| meta.generation).unwrap_or_default(),
            seq,
            head,
            horizon: link.horizon,
            floor: link.floor,
            digest: meta.as_ref().map(|meta| meta.digest).unwrap_or_default(),
            verdict,
            remedy: link.verdict.map_or(String::new(), |verdict| verdict.remedy().to_owned()),
            outbox,
            rejected,
            lag_ops: head.since(seq),
            lag_ms: if level { 0 } else { ms(since_level) },
            connected: link.connected,
            trouble: refusal.as_ref().map_or(link.trouble, |refusal| refusal.reason.clone()),
            objects: meta.map_or(0, |meta| meta.digests.collections.values().map(|sum| sum.objects).sum()),
            healthy: problem.is_empty() && !self.shared.membership_problem().is_some_and(|(_, is_fault)| is_fault),
            problem,
            version: env!("CARGO_PKG_VERSION").into(),
            address: link.address,
            uptime_ms: ms(self.shared.started.elapsed()),
            was_level: link.level_at.is_some(),
            is_standalone: self.options.is_standalone,
            is_member: Some(self.is_member()),
            is_refused: refusal.is_some(),
            disconnected_ms: if link.connected { 0 } else { ms(lost_at.elapsed()) },
            quarantined: quarantine::files(&self.path).map_or(0, |files| files.len() as u64),
            clock_ms: crate::env::Clock::now_ms(&crate::env::SystemClock),
            contents_incomplete: incomplete.len() as u64,
            contents_lost: incomplete.values().filter(|is_lost| **is_lost).count() as u64,
            health: Health { reasons: ended.into_iter().collect(), ..Health::default() },
            ..Status::default()
        };
        status.health.reasons.extend(self.shared.reasons());
        health::assess(&mut status);
        status
    }

    /// Whether it has a datastore: an identity, or a connector of the embedding process.
    fn is_member(&self) -> bool {
        let is_linked = self.life.link.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        is_linked || crate::trust::Identity::exists(&self.path)
    }

    /// Why nothing that is not here yet will come or be decided, so that nobody need wait for it; `None` while it may.
    #[must_use]
    pub fn standstill(&self) -> Option<&'static str> {
        if self.options.access != Access::Serve {
            Some("no process runs on its directory")
        } else if self.shared.is_closing.load(Ordering::Acquire) {
            Some("it is being stopped")
        } else if self.shared.has_failed() {
            Some("a part of it has failed, and it ends")
        } else {
            (!self.is_member()).then_some("it has not joined a datastore")
        }
    }

    /// That the datastore refuses this member, as one that was revoked; `None` while it does not.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.shared.refusal()
    }

    /// Whether the datastore is reached.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.link().connected
    }

    /// A number that rises with every change of the outbox and of the rejected list.
    #[must_use]
    pub fn watch_outbox(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.outbox_changed.subscribe()
    }

    /// Number of undecided transactions.
    #[must_use]
    pub fn outbox_depth(&self) -> usize {
        self.shared.outbox().depth()
    }

    /// Where the state stands, without undecided transactions; `None` before anything was received.
    #[must_use]
    pub fn position(&self) -> Option<crate::model::Position> {
        self.shared.position()
    }

    /// What was not as it should be when the directory was opened, for people.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        self.shared.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the state lacks that it had; `None` once it was level with the datastore.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.shared.lost()
    }

    /// Why nobody can log in from this state: values that a login needs are withheld from readers, and are fetched when the
    /// member connects as something else.
    #[must_use]
    pub fn lacks_secrets(&self) -> Option<String> {
        self.shared.state().meta().filter(|meta| meta.is_redacted).map(|_| {
            "the state here is a reader's and lacks passwords, tokens and logins: give this member the role webserver \
             (`gravwell-logctl enroll NAME --role webserver --replace` at the datastore, `join TOKEN` here); it fetches the \
             rest when it connects"
                .to_owned()
        })
    }

    /// What the datastore said at the last connection; `None` before the first.
    #[must_use]
    pub fn terms(&self) -> Option<Terms> {
        self.shared.terms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the replica is not connected, for people; empty when it is.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.shared.link().trouble
    }
}
