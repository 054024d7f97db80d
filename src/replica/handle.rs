//! The handle that a webserver holds: reads, writes, watches, barriers, status.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot};

use gravwell_log::journal::JournalError;
use gravwell_model::codec::admin::{OriginInfo, SeenVersion, Status};
use gravwell_model::codec::health::{self, Code, Health, Reason};
use gravwell_model::codec::restore;
use gravwell_model::{Collection, Key, Limits, MemberName, Op, Origin, Seq, Txn, TxnId, Verdict};
use gravwell_protocol::outbox::{Outbox, RejectedTxn};
use gravwell_state::{StateError, StateStore};

use super::applier::{self, Applier};
use super::blobs::{self, BlobOptions, Blobs};
use super::conflict_archive;
use super::directory::{Access, Directory};
use super::disk::Disk;
use super::history::History;
use super::link::{Connector, LinkDriver};
use super::opening::{self, Lost, Opened};
use super::outbox_loss;
use super::outbox_records::{self, RestoreError};
use super::outbox_writer::{self, Draft, OutboxWriter, Resubmission, SubmitError};
use super::proofs;
use super::receipts::Receipt;
use super::refusal::Refusal;
use super::role;
use super::shared::{Change, OUTBOX_BYTES_MAX, ReplicaRef, ReplicaState};
use super::terms::Terms;
use super::view::{Object, ReadError};
use gravwell_env::data_dir::{DirectoryError, PATIENCE};
use gravwell_env::{Clock as _, SystemClock, SystemEntropy};
use gravwell_runtime::tasks::supervisor::Supervisor;

/// Requests that may wait for the outbox writer.
const OUTBOX_QUEUE: usize = 4096;
/// Requests that may wait for the applier.
const APPLIER_QUEUE: usize = 16;

/// Options for opening a replica.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Memory for the state's cache, in bytes.
    pub cache_bytes: u64,
    /// Address at which other webservers reach this one.
    pub external_addr: Option<String>,
    /// How long the membership list is valid after the datastore was last heard from; `None` for no limit.
    pub roster_age_max: Option<Duration>,
    /// How long to wait for a tool that is reading the directory.
    pub patience: Duration,
    /// Interval of progress reports, in milliseconds.
    pub heartbeat_ms: u64,
    /// Limit, in bytes, of pending transactions; beyond it nothing is accepted. They are held in memory.
    pub outbox_bytes_max: usize,
    /// Limits of transactions until the datastore has announced its own.
    pub limits: Limits,
    /// How blobs are kept; `None` if they are not, so that none can be written or read here.
    pub contents: Option<BlobOptions>,
    /// Purpose for which the replica is opened.
    pub access: Access,
    /// Whether the datastore is this webserver's own log.
    pub is_standalone: bool,
    /// Free disk space, in bytes, below which the replica only reads.
    pub free_min_bytes: u64,
    /// Bytes kept in reserve for a full disk.
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

/// Error of opening a replica.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The outbox journal cannot be opened. Its contents exist nowhere else.
    #[error("cannot open the outbox journal: {0}")]
    Journal(#[from] JournalError),
    /// The outbox journal is corrupt or missing.
    #[error(
        "outbox journal: {reason}; restore the file from a backup, or give up the lost changes with `gravwell-logctl \
         --data-dir {home} outbox accept-loss`, which keeps the damaged file and readable records", home = home.display()
    )]
    JournalDamaged {
        /// Directory of the replica.
        home: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// An entry of the outbox journal cannot be read.
    #[error("cannot read the outbox journal in {path}: {reason}", path = path.display())]
    Outbox {
        /// Directory of the journal.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// The state is corrupt. It was not changed.
    #[error("{path}: {reason}; start the replica, which keeps the damaged state and the outbox and fetches the state \
             again", path = path.display())]
    Damaged {
        /// Directory of the state.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// The state cannot be opened even after it was discarded.
    #[error(transparent)]
    State(#[from] StateError),
    /// The chunk store cannot be opened.
    #[error("cannot open the chunk store: {0}")]
    Chunks(#[from] gravwell_chunks::ChunkError),
    /// The caller is not within a tokio runtime.
    #[error("a replica can be opened only within a tokio runtime")]
    NoRuntime,
    /// The operating system cannot start a thread.
    #[error("cannot start a thread of the replica: {0}")]
    Thread(#[from] std::io::Error),
}

impl OpenError {
    /// Returns whether files on the disk are corrupt.
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

    /// Adds the replica's directory to the remedy.
    fn of(self, home: &Path) -> OpenError {
        match self {
            OpenError::Journal(error @ JournalError::Damaged(_)) => {
                OpenError::JournalDamaged { home: home.to_owned(), reason: error.to_string() }
            }
            other => other,
        }
    }
}

/// Error of [`Replica::origin`].
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// The state is corrupt.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The origin belongs to another member.
    #[error(
        "origin {origin} belongs to member {member}, which used it first, so an import record copied from that member \
         cannot be continued here; remove the record, so that the import starts with a new identity"
    )]
    OfAnotherMember {
        /// Origin that was asked for.
        origin: Origin,
        /// Member that used it first.
        member: MemberName,
    },
}

/// A copy of a log's state, with an outbox. Cheap to clone; dropping the last clone closes it.
#[derive(Clone)]
pub struct Replica {
    /// First, so that the watch stops before the channels close: the threads that exit then are meant to.
    life: Arc<StopOnDrop>,
    pub(super) shared: ReplicaRef,
    outbox: mpsc::Sender<outbox_writer::Request>,
    applier: mpsc::Sender<applier::Request>,
    options: ReplicaOptions,
    path: PathBuf,
    member: Option<String>,
}

/// Stops the parts of a replica when its last handle is dropped.
struct StopOnDrop {
    shared: ReplicaRef,
    link: Mutex<Option<tokio::task::JoinHandle<()>>>,
    contents: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Copies of files of a directory opened for reading. The process may exit before the thread that holds them.
    scratch: Option<PathBuf>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.shared.watch.stop();
        // The applier may be waiting for free space on a full disk.
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
    /// Opens the replica in `path`, creating it if needed. It stays offline until [`Replica::connect`].
    ///
    /// # Errors
    /// If the directory is in use or belongs to something else, or the outbox journal is corrupt: it exists nowhere
    /// else, so it is never discarded. A corrupt state is kept aside and fetched again.
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
        // On a full disk this releases the reserve, to make room for the writes of opening.
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
        // Without a mark it is unknown which of these transactions a lost state had decided.
        let is_unsure = lost.as_ref().is_some_and(|lost| lost.mark.is_none());
        let outbox = if is_unsure { outbox.doubted() } else { outbox };
        let contents = match &options.contents {
            None => None,
            Some(wanted) => {
                let store = wanted
                    .store
                    .clone()
                    .map_or_else(|| blobs::open_store(path, options.access, options.free_min_bytes), Ok)?;
                Some(Arc::new(blobs::BlobKeeper::new(wanted, store, path)))
            }
        };
        let shared = Arc::new(ReplicaState::new(state, outbox, contents).on(disk));
        shared.set_lost(lost);
        // A process with write access has repaired the problems found. Until the state has caught up, `lost` reports
        // the rest.
        let findings = if options.access == Access::Read { findings } else { Vec::new() };
        shared.findings.lock().unwrap_or_else(PoisonError::into_inner).extend(findings);
        if let Some(meta) = shared.state().meta() {
            let problem = gravwell_log::generations::problem_of_member(path, meta.log_id, &meta.lineage);
            shared.set_unknown_generations(problem);
        }
        let terms = Terms::load(path).unwrap_or_else(|error| {
            // The next connection provides them again. Until then the limits of the options apply.
            tracing::warn!(error, "failed to load the last terms of the datastore");
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
        let identity = gravwell_transport::trust::Identity::load(path).ok();
        // Joining changes the role, so the identity is at least as recent as the last welcome.
        let role = identity.as_ref().map(|identity| identity.role().to_string());
        shared.set_forbidden(role.as_deref().and_then(role::forbidden));
        shared.set_refusal(Refusal::load(path));
        let member = identity.map(|identity| identity.name().to_string());
        if let Some(member) = &member {
            let _ = shared.member.set(member.clone());
        }
        let life =
            StopOnDrop { shared: Arc::clone(&shared), link: Mutex::default(), contents: Mutex::default(), scratch };
        let life = Arc::new(life);
        let path = path.to_owned();
        Ok(Replica { shared, outbox, applier, options, path, member, life })
    }

    /// Returns the replica's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether it was opened for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.access == Access::Read
    }

    /// Keeps the replica connected from now on, through any number of failures.
    pub fn connect(&self, connector: Arc<dyn Connector>) {
        if let Some(contents) = self.contents() {
            contents.inner.set_connector(Arc::clone(&connector));
            let mut task = self.life.contents.lock().unwrap_or_else(PoisonError::into_inner);
            task.get_or_insert_with(|| tokio::spawn(self.shared.watch.lasting("contents", blobs::fetch(contents))));
        }
        *self.shared.connector.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(&connector));
        let linker = LinkDriver {
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

    /// Returns the blobs that it keeps; `None` if it keeps none.
    #[must_use]
    pub fn contents(&self) -> Option<Blobs> {
        let inner = self.shared.contents.clone()?;
        Some(Blobs { inner, shared: Arc::clone(&self.shared) })
    }

    /// Returns the watch over this replica's tasks, to add others that belong to it.
    #[must_use]
    pub fn watch_over(&self) -> &Supervisor {
        &self.shared.watch
    }

    /// Goes offline. Everything continues to work, but nothing is pushed or received.
    pub fn disconnect(&self) {
        if let Some(link) = self.life.link.lock().unwrap_or_else(PoisonError::into_inner).take() {
            link.abort();
        }
        self.shared.update_link(|link| link.connected = false);
    }

    /// Disconnects and makes the state durable. Nothing is lost without this, but the next start takes longer.
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
            let _ = std::fs::remove_file(self.path.join(gravwell_transport::local::SOCKET));
        }
    }

    /// Returns one object, own pending transactions included.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, ReadError> {
        self.shared.get(collection, key)
    }

    /// Returns the objects of a collection whose keys start with `prefix` and come after `after`, in key order, at most
    /// `limit`; own pending transactions included.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn scan(
        &self,
        collection: &Collection,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Object)>, ReadError> {
        self.shared.scan(collection, prefix, after, limit)
    }

    /// Like [`Replica::scan`], one object at a time until `visit` breaks. A collection of any size needs the memory of
    /// one object.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn each(
        &self,
        collection: &Collection,
        prefix: &str,
        visit: impl FnMut(Key, Object) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        self.shared.each(collection, prefix, None, visit)
    }

    /// Returns for how long nothing has been received from the connected datastore, which is probed every second. If a
    /// push has been unanswered for half a second and the silence is as long, the caller has reason to doubt that the
    /// datastore is there, well before the connection is given up.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.shared.silence()
    }

    /// Submits a transaction. When this returns, it is durable here and will be pushed until it is decided.
    ///
    /// # Errors
    /// If a limit is exceeded, a condition already fails locally, or the local disk fails.
    pub async fn submit(&self, draft: Draft) -> Result<Receipt, SubmitError> {
        let draft = self.stamped(draft);
        self.ask(|reply| outbox_writer::Request::Submit(draft, reply)).await
    }

    /// Submits a transaction without waiting for the local disk. The result arrives through the returned channel.
    /// Transactions are accepted in the order of these calls.
    ///
    /// # Errors
    /// If the replica is closed.
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

    /// Adds the present history: a draft that is queued while the history changes was made in the former one.
    fn stamped(&self, draft: Draft) -> Draft {
        let read_in = draft.read_in.or_else(|| Some(self.history()));
        Draft { read_in, ..draft }
    }

    /// Returns the present history. Call this before reading.
    #[must_use]
    pub fn history(&self) -> History {
        self.shared.histories.present()
    }

    /// Waits until the outbox has room for a transaction of `bytes` bytes. Does not wait while the datastore, which
    /// makes room, is unreachable: the transaction is rejected then.
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

    /// Fails if no submission can be accepted at all.
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

    /// Subscribes to changes from now on. A receiver that lags too far gets an error and must read everything again.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// Subscribes to log entries from now on, in batches, as they are applied here. A receiver that lags too far gets
    /// an error.
    #[must_use]
    pub fn watch_entries(&self) -> broadcast::Receiver<Arc<Vec<gravwell_model::Entry>>> {
        self.shared.entries.subscribe()
    }

    /// Waits until the state has reached `seq`; `false` if `timeout` expired first.
    pub async fn barrier(&self, seq: Seq, timeout: Duration) -> bool {
        let mut applied = self.shared.applied.subscribe();
        let reached = applied.wait_for(|applied| *applied >= seq);
        tokio::time::timeout(timeout, reached).await.is_ok_and(|reached| reached.is_ok())
    }

    /// Waits until every transaction that is in the outbox now is decided and applied here; `false` if `timeout`
    /// expired first.
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

    /// Returns the pending transactions, oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<Arc<Txn>> {
        self.shared.outbox().waiting().cloned().collect()
    }

    /// Returns the rejected transactions that a user has to deal with.
    #[must_use]
    pub fn rejected(&self) -> Vec<RejectedTxn> {
        self.shared.outbox().rejected().values().cloned().collect()
    }

    /// Submits a rejected transaction again, as a new one.
    ///
    /// # Errors
    /// If it is not on the rejected list, or as for [`Replica::submit`].
    pub async fn retry(&self, id: TxnId) -> Result<Receipt, SubmitError> {
        self.retry_upon(id, Vec::new(), self.history()).await
    }

    /// Like [`Replica::retry`], after the author has seen the present versions in history `seen_in`. The transaction is
    /// applied `upon` these versions, and on no others.
    ///
    /// # Errors
    /// As for [`Replica::retry`].
    pub async fn retry_upon(
        &self,
        id: TxnId,
        upon: Vec<SeenVersion>,
        seen_in: History,
    ) -> Result<Receipt, SubmitError> {
        self.retry_as(id, Resubmission { upon, seen_in, ..Resubmission::default() }).await
    }

    /// Like [`Replica::retry`], on behalf of the author who makes it now.
    ///
    /// # Errors
    /// As for [`Replica::retry`].
    pub async fn retry_as(&self, id: TxnId, again: Resubmission) -> Result<Receipt, SubmitError> {
        self.ask(|reply| outbox_writer::Request::Retry(id, again, reply)).await
    }

    /// Removes a rejected transaction from the list.
    ///
    /// # Errors
    /// If it is not on the list, or the local disk fails.
    pub async fn dismiss(&self, id: TxnId) -> Result<(), SubmitError> {
        self.ask(|reply| outbox_writer::Request::Dismiss(id, reply)).await
    }

    /// Returns the last counters of an origin that were accepted and decided.
    ///
    /// # Errors
    /// If the state is corrupt, or the origin belongs to another member.
    pub fn origin(&self, origin: Origin) -> Result<OriginInfo, OriginError> {
        if let Some(member) = self.shared.other_maker(origin).map_err(ReadError::from)? {
            return Err(OriginError::OfAnotherMember { origin, member });
        }
        let row = self.shared.state().origin(origin).map_err(ReadError::from)?;
        let decided = row.map_or_else(Default::default, |row| row.last_counter);
        let outbox = self.shared.outbox();
        let (taken, decided) = (decided.max(outbox.taken(origin)), decided.max(outbox.answered_before(origin)));
        Ok(OriginInfo { taken, decided })
    }

    /// Returns the committed state, without pending transactions.
    #[must_use]
    pub fn state(&self) -> StateStore {
        self.shared.state()
    }

    /// Returns position, head, lag, outbox, verdict and health.
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
            trouble: refusal.as_ref().map_or(link.trouble, Refusal::described),
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
            quarantined: conflict_archive::files(&self.path).map_or(0, |files| files.len() as u64),
            clock_ms: SystemClock.now_ms(),
            contents_incomplete: incomplete.len() as u64,
            contents_lost: incomplete.values().filter(|is_lost| **is_lost).count() as u64,
            health: Health { reasons: ended.into_iter().collect(), ..Health::default() },
            ..Status::default()
        };
        status.health.reasons.extend(self.shared.reasons());
        status.health.reasons.extend(self.unfinished_restore());
        health::assess(&mut status);
        status
    }

    /// Returns the reason that a restore of an export archive is unfinished, if it is.
    fn unfinished_restore(&self) -> Option<Reason> {
        let (collection, key) = (Collection::new(restore::COLLECTION).ok()?, Key::new(restore::KEY).ok()?);
        // A state that cannot be read is reported by itself.
        self.get(&collection, &key).ok().flatten().map(|mark| restore::reason(&mark.value))
    }

    /// Returns the limits of a transaction, as the datastore has announced them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the replica has a datastore: an identity, or a connector of the embedding process.
    fn is_member(&self) -> bool {
        let is_linked = self.life.link.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        is_linked || gravwell_transport::trust::Identity::exists(&self.path)
    }

    /// Returns why nothing more will arrive or be decided, so that no caller need wait; `None` if it may.
    #[must_use]
    pub fn standstill(&self) -> Option<&'static str> {
        if self.options.access != Access::Serve {
            Some("no process is running on its directory")
        } else if self.shared.is_closing.load(Ordering::Acquire) {
            Some("it is stopping")
        } else if self.shared.has_failed() {
            Some("a part of it has failed and it is stopping")
        } else {
            (!self.is_member()).then_some("it has not joined a datastore")
        }
    }

    /// Returns the datastore's refusal of this member, for example after a revocation; `None` if it is not refused.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.shared.refusal()
    }

    /// Returns whether the datastore is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.link().connected
    }

    /// Returns why the datastore has been refusing changes for a while, though it is connected; `None` if it does not.
    #[must_use]
    pub fn writes_refused(&self) -> Option<String> {
        self.shared.datastore.refused()
    }

    /// Returns the time that the fleet has reached for certain, in milliseconds since 1970-01-01 UTC: this host's clock,
    /// unless that is ahead of the datastore's. Deletions by age use it, so that a wrong clock deletes nothing.
    #[must_use]
    pub fn confirmed_ms(&self) -> u64 {
        let logged_ms = self.shared.state().meta().map_or(0, |meta| meta.time_ms);
        self.shared.datastore.confirmed_ms(SystemClock.now_ms(), logged_ms)
    }

    /// Returns a counter that rises with every change of the outbox or the rejected list.
    #[must_use]
    pub fn watch_outbox(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.outbox_changed.subscribe()
    }

    /// Returns the number of pending transactions.
    #[must_use]
    pub fn outbox_depth(&self) -> usize {
        self.shared.outbox().depth()
    }

    /// Returns the position of the state, without pending transactions; `None` before anything was received.
    #[must_use]
    pub fn position(&self) -> Option<gravwell_model::Position> {
        self.shared.position()
    }

    /// Returns the problems found when the directory was opened, for the operator.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        self.shared.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what the state has lost; `None` once it has caught up with the datastore.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.shared.lost()
    }

    /// Returns why no user can log in from this state: values that a login needs are withheld from readers. They are
    /// fetched when the member connects in another role.
    #[must_use]
    pub fn lacks_secrets(&self) -> Option<String> {
        self.shared.state().meta().filter(|meta| meta.is_redacted).map(|_| {
            "the state is a reader's and lacks passwords, tokens and logins; give this member the role webserver \
             (`gravwell-logctl enroll NAME --role webserver --replace` at the datastore, `join TOKEN` here); the rest \
             is fetched when it connects"
                .to_owned()
        })
    }

    /// Returns the terms of the last connection; `None` before the first.
    #[must_use]
    pub fn terms(&self) -> Option<Terms> {
        self.shared.terms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns why the replica is not connected, for the operator; empty if it is.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.shared.link().trouble
    }
}
