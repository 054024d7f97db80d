//! State shared by all parts of a running replica.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, watch};

use gravwell_model::codec::health;
use gravwell_model::codec::message::{Progress, Welcome};
use gravwell_model::codec::report_limits::reportable;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{
    Collection, Entry, Generation, Key, Limits, MemberName, Origin, OriginCounter, Position, Reason, Seq, TxnId,
    Verdict,
};
use gravwell_protocol::blob_gate::BlobGate;
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::{Outbox, RejectedTxn, ResolvedTxn, touched};
use gravwell_protocol::push::PushReply;
use gravwell_protocol::session::is_redacted;
use gravwell_runtime::tasks::supervisor::Supervisor;
use gravwell_runtime::telemetry::{self, output};
use gravwell_state::{StateError, StateMeta, StateStore};
use gravwell_transport::trust::Proof;

use super::blobs;
use super::datastore_notes::DatastoreNotes;
use super::disk::{self, Disk};
use super::history::Histories;
use super::opening::Lost;
use super::receipts::{Receipts, Stage};
use super::refusal::Refusal;
use super::terms::Terms;
use super::{CaBackupProblem, Connector};

/// A change of the replica's view, as sent to watchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An object was written by a committed transaction.
    Put {
        /// Sequence of the transaction.
        seq: Seq,
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
    /// An object was deleted by a committed transaction.
    Deleted {
        /// Sequence of the transaction.
        seq: Seq,
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
    /// A pending local transaction changes how an object reads, or such a change was rolled back because the
    /// transaction was rejected.
    Overlay {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
    /// The whole state was replaced by a snapshot: the watcher must read everything again.
    Replaced {
        /// Sequence of the snapshot.
        seq: Seq,
    },
}

/// Status of the connection to the datastore.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkStatus {
    pub connected: bool,
    pub address: String,
    pub verdict: Option<Verdict>,
    pub head: Seq,
    pub horizon: Seq,
    pub floor: Seq,
    /// Last reason for not being connected.
    pub trouble: String,
    /// When state and head were last known to be equal.
    pub level_at: Option<Instant>,
    /// When the last connection was lost.
    pub lost_at: Option<Instant>,
    /// Whether the datastore's entries can follow the state. Requests between this and the subscription must be short,
    /// because the time counts as lag.
    pub is_welcome: bool,
    /// Applied sequence, and since when it has not moved, while the replica lags.
    pub behind: Option<(Seq, Instant)>,
}

impl LinkStatus {
    pub(super) fn disconnect(&mut self) {
        if self.connected {
            self.lost_at = Some(Instant::now());
        }
        (self.connected, self.is_welcome) = (false, false);
    }
}

/// A lagging replica that applies nothing for this long is unhealthy: it does not learn of revoked rights.
const STALLED: Duration = Duration::from_secs(10);

/// Default limit, in bytes, of pending and rejected transactions. They are held in memory.
pub(super) const OUTBOX_BYTES_MAX: usize = 64 << 20;

/// Remedy when it is unknown how generations of the log started.
const SET_CLOCK: &str = "run a time service on both hosts; logins and tokens expire by the clock of each webserver";
const LEARNS_GENERATIONS: &str = "wait for the next connection, which provides it; if the datastore does not know it \
                                  either, set it there with `gravwell-logctl generations set`";

/// Remedy for a damaged CA backup.
const COMPARE_MEMBERS: &str = "compare `gravwell-logctl members` at the datastore with the members that you expect, \
                               revoke again those that were revoked, then remove the damaged file";

/// Remedy for a CA backup that cannot be read at the moment.
const MAKE_READABLE: &str = "make the file readable for this process (owner and permissions, free descriptors, the disk); \
                             keep it, it may be the latest copy. The report ends when it was read";

/// Remedy when the log lacks changes of this member that it once had.
const RESTORE_MISSING: &str = "compare what this webserver's users wrote with what is shown; an older copy of the datastore's directory \
                               or of this one may have it. The report ends when this process is restarted";

/// Reported when a replica whose state went back has caught up with a datastore that lacks the same entries.
const NOT_MADE_UP: &str = "the datastore lacks entries that this replica had durably applied; restore the datastore's \
                           newest data directory, or recover it from the most recent member";

/// Shared state of one replica.
pub(super) struct ReplicaState {
    state: RwLock<StateStore>,
    outbox: RwLock<Outbox>,
    link: Mutex<LinkStatus>,
    problem: Mutex<String>,
    /// Loss of the state, if any; cleared once the state has caught up with the datastore.
    lost: Mutex<Option<Lost>>,
    /// Describes the generations whose reason this member does not know.
    unknown_generations: Mutex<Option<String>>,
    /// Describes own changes that were resolved once and that the log lacks.
    missing: Mutex<Option<String>>,
    /// Problems found when the directory was opened.
    pub findings: Mutex<Vec<String>>,
    pub terms: Mutex<Option<Terms>>,
    /// The last position that the datastore signed.
    pub proof: watch::Sender<Option<Proof>>,
    /// Position of the last high-water mark that was written, or that `proof` names.
    pub reached: watch::Sender<Option<Position>>,
    pub disk: Disk,
    /// Whether the replica is being closed. Entries not applied by now are applied after the next start.
    pub is_closing: AtomicBool,
    pub limits: Mutex<Limits>,
    /// Limit, in bytes, of pending and rejected transactions.
    pub outbox_bytes_max: AtomicUsize,
    /// Reports why no other member is trusted.
    pub connector: Mutex<Option<Weak<dyn Connector>>>,
    /// Name of this member, once it has one.
    pub member: std::sync::OnceLock<String>,
    /// Reason why this member may not write; `None` if it may.
    forbidden: Mutex<Option<String>>,
    /// Set while the datastore refuses this member.
    refusal: Mutex<Option<Refusal>>,
    pub receipts: Receipts,
    /// Histories followed since the process started.
    pub histories: Histories,
    /// Held while outbox and state are exchanged.
    pub exchanging: Arc<tokio::sync::Mutex<()>>,
    /// Applied sequence.
    pub applied: watch::Sender<Seq>,
    /// Durably applied sequence.
    pub durable: watch::Sender<Seq>,
    /// Incremented with every change of the outbox.
    pub outbox_changed: watch::Sender<u64>,
    pub changes: broadcast::Sender<Change>,
    /// Entries as they are applied.
    pub entries: broadcast::Sender<Arc<Vec<Entry>>>,
    /// The connection to the datastore while there is one.
    pub connection: Mutex<Option<quinn::Connection>>,
    /// Set when the state differs from the datastore's, so that a snapshot must be fetched.
    resync_asked: AtomicBool,
    /// The blobs that are kept here; `None` if none are.
    pub contents: Option<Arc<blobs::BlobKeeper>>,
    gate: Mutex<BlobGate>,
    silence_ms: AtomicU64,
    pub datastore: DatastoreNotes,
    /// Watches the replica's tasks and threads.
    pub watch: Supervisor,
    pub started: Instant,
}

impl ReplicaState {
    pub(super) fn new(state: StateStore, outbox: Outbox, contents: Option<Arc<blobs::BlobKeeper>>) -> ReplicaState {
        let gate = Mutex::new(BlobGate::new(contents.is_some()));
        let seq = state.meta().map_or(Seq::ZERO, |meta| meta.seq);
        let outbox_changed = watch::channel(0).0;
        wake_by_damage(&state, &outbox_changed);
        ReplicaState {
            state: RwLock::new(state),
            outbox: RwLock::new(outbox),
            link: Mutex::default(),
            problem: Mutex::default(),
            lost: Mutex::default(),
            unknown_generations: Mutex::default(),
            missing: Mutex::default(),
            findings: Mutex::default(),
            terms: Mutex::default(),
            proof: watch::channel(None).0,
            reached: watch::channel(None).0,
            disk: Disk::unbounded(),
            is_closing: AtomicBool::new(false),
            limits: Mutex::default(),
            outbox_bytes_max: AtomicUsize::new(OUTBOX_BYTES_MAX),
            connector: Mutex::default(),
            member: std::sync::OnceLock::new(),
            forbidden: Mutex::default(),
            refusal: Mutex::default(),
            receipts: Receipts::default(),
            histories: Histories::default(),
            exchanging: Arc::default(),
            applied: watch::channel(seq).0,
            // A process that was killed may have applied entries in memory only. The applier persists the state first.
            durable: watch::channel(if fault_injection::is(Bug::StartsDurable) { seq } else { Seq::ZERO }).0,
            outbox_changed,
            changes: broadcast::channel(16 << 10).0,
            entries: broadcast::channel(64).0,
            connection: Mutex::default(),
            resync_asked: AtomicBool::new(false),
            contents,
            gate,
            silence_ms: AtomicU64::new(0),
            datastore: DatastoreNotes::default(),
            watch: Supervisor::default(),
            started: Instant::now(),
        }
    }

    /// Sets the disk that the replica is on.
    pub(super) fn on(mut self, disk: Disk) -> ReplicaState {
        self.disk = disk;
        self
    }

    pub(super) fn state(&self) -> StateStore {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace_state(&self, state: StateStore) {
        wake_by_damage(&state, &self.outbox_changed);
        let former = std::mem::replace(&mut *self.state.write().unwrap_or_else(PoisonError::into_inner), state);
        // Closing the former state takes time, during which readers must not wait for the lock.
        drop(former);
    }

    /// Reopens the state after its storage engine stopped because of `failure`. Until it is open, readers get that
    /// error, at the former position.
    ///
    /// # Errors
    /// If the state cannot be opened. Nothing can be read then, so the process must stop.
    pub(super) fn reopen_state(
        &self,
        failure: StateError,
        open: impl FnOnce() -> Result<StateStore, StateError>,
    ) -> Result<(), StateError> {
        // Close the engine before opening it again, because it locks its files.
        self.replace_state(self.state().stand_in(failure));
        self.replace_state(open()?);
        Ok(())
    }

    pub(super) fn outbox(&self) -> RwLockReadGuard<'_, Outbox> {
        self.outbox.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn outbox_mut(&self) -> RwLockWriteGuard<'_, Outbox> {
        self.outbox.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides which transactions may be pushed.
    pub(super) fn gate(&self) -> std::sync::MutexGuard<'_, BlobGate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notify_outbox_changed(&self) {
        self.outbox_changed.send_modify(|number| *number += 1);
    }

    pub(super) fn link(&self) -> LinkStatus {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update_link(&self, update: impl FnOnce(&mut LinkStatus)) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        update(&mut link);
        let (applied, now) = (*self.applied.borrow(), Instant::now());
        let is_behind = (link.connected || link.is_welcome) && applied < link.head;
        let stands_since = link.behind.filter(|(at, _)| *at == applied).map_or(now, |(_, since)| since);
        link.behind = is_behind.then_some((applied, stands_since));
        if link.connected && applied >= link.head {
            link.level_at = Some(now);
            self.findings.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Returns how long nothing was applied although the replica lags; `None` while it advances, and while a snapshot
    /// is fetched instead.
    fn stalled(&self) -> Option<Duration> {
        let (at, since) = self.link().behind?;
        let stalled = since.elapsed();
        (stalled >= STALLED && *self.applied.borrow() == at && !self.wants_resync()).then_some(stalled)
    }

    /// Clears the loss if nothing is missing any more. The state equals the datastore's at `seq`.
    pub(super) fn find_again(&self, seq: Seq) {
        let (link, meta) = (self.link(), self.state().meta());
        let is_level = seq >= link.head;
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = lost.as_mut() else { return };
        let is_found = found.is_made_up(meta.as_deref()) && (is_level || found.mark.is_some());
        if is_found || fault_injection::is(Bug::LossForgottenEarly) {
            tracing::info!(%seq, "caught up with the datastore; the state is complete again");
            *lost = None;
        } else if is_level && !found.message.ends_with(NOT_MADE_UP) {
            // The mark is the only proof of the loss, so it is kept.
            found.message = format!("{}; {NOT_MADE_UP}", found.message);
            tracing::error!(lost = found.message, head = %link.head, "caught up with the datastore, which lacks the \
                                                                      lost entries too");
        }
    }

    /// Records for how long nothing has been received from the datastore.
    pub(super) fn note_silence(&self, silence: Duration) {
        self.silence_ms.store(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms.load(Ordering::Relaxed))
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.state().meta().map(|meta| meta.position())
    }

    /// Returns the health problem; empty if there is none.
    pub(super) fn problem(&self) -> String {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let full = || self.disk.is_full().then(|| disk::FULL.to_owned());
        let problem = Some(problem).filter(|problem| !problem.is_empty()).or_else(|| self.damage());
        let ended = || Some(self.watch.ended()).filter(|ended| !ended.is_empty());
        problem.or_else(|| self.lost()).or_else(full).or_else(ended).unwrap_or_default()
    }

    /// Returns whether the process has to stop, so that nothing more is accepted.
    pub(super) fn has_failed(&self) -> bool {
        let is_lost = |contents: &Arc<blobs::BlobKeeper>| contents.store.health().is_err();
        self.watch.has_failed() || self.contents.as_ref().is_some_and(is_lost)
    }

    /// Returns the health problems that only this process can know.
    pub(super) fn reasons(&self) -> Vec<health::Reason> {
        let lost = self.lost().map(|lost| {
            let remedy = "make the datastore reachable; damaged states are kept as state-*.damaged-*";
            health::Reason::new(health::Code::StateLost, lost, remedy)
        });
        let damage = self.damage().map(|damage| {
            let remedy = "make the datastore reachable; the state is then fetched again without further action";
            health::Reason::new(health::Code::Damaged, damage, remedy)
        });
        let full = self.disk.is_full().then(|| {
            health::Reason::new(health::Code::ReadOnly, disk::FULL, "free some space on the disk of the data directory")
        });
        let unknown = self.unknown_generations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unknown =
            unknown.map(|what| health::Reason::new(health::Code::GenerationsUnknown, what, LEARNS_GENERATIONS));
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing = missing.map(|what| health::Reason::new(health::Code::ChangesMissing, what, RESTORE_MISSING));
        let members = self.membership_problem().map(|(what, _)| {
            health::Reason::new(
                health::Code::MembersNotBelieved,
                what,
                "make the datastore reachable, and upgrade the older side",
            )
        });
        let stalled = self.stalled().map(|stalled| {
            let what = format!("the replica is lagging and has applied nothing for {} s", stalled.as_secs());
            let remedy = "check the disk and the processors of its host for overload; restart it if this continues";
            health::Reason::new(health::Code::IntakeStalled, what, remedy)
        });
        let backup =
            self.connector().and_then(|connector| connector.ca_backup_problem()).map(|problem| match problem {
                CaBackupProblem::Damaged(what) => {
                    health::Reason::new(health::Code::CaBackupDamaged, what, COMPARE_MEMBERS)
                }
                CaBackupProblem::Unreadable(what) => {
                    health::Reason::new(health::Code::CaBackupUnreadable, what, MAKE_READABLE)
                }
            });
        let reasons = damage.into_iter().chain(lost).chain(full).chain(unknown).chain(missing).chain(members);
        let skew = self.datastore.skew_s().map(|skew_s| {
            let side = if skew_s > 0 { "ahead of" } else { "behind" };
            let what = format!("the clock of this host is {} s {side} the datastore's", skew_s.unsigned_abs());
            health::Reason::new(health::Code::ClockSkew, what, SET_CLOCK)
        });
        let pending = self.outbox().depth();
        let refused = self.datastore.refused().filter(|_| pending > 0).map(|why| {
            let what = format!("the datastore accepts no changes: {why} ({pending} are pending here)");
            health::Reason::new(health::Code::WritesRefused, what, "check `gravwell-logctl status` at the datastore")
        });
        reasons.chain(stalled).chain(backup).chain(skew).chain(refused).collect()
    }

    fn connector(&self) -> Option<Arc<dyn Connector>> {
        self.connector.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    /// Returns why no other member is trusted, and whether that is a fault.
    pub(super) fn membership_problem(&self) -> Option<(String, bool)> {
        self.connector()?.membership_problem()
    }

    /// Returns what the state has lost; `None` once it has caught up with the datastore.
    pub(super) fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|lost| lost.message.clone())
    }

    pub(super) fn set_unknown_generations(&self, what: Option<String>) {
        *self.unknown_generations.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Records a loss of the state. One that is recorded already is kept, because it is the proof.
    pub(super) fn note_lost(&self, lost: Lost) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(lost);
    }

    /// Returns whether a state at `meta` still lacks the lost entries.
    pub(super) fn lacks(&self, meta: &StateMeta) -> bool {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.as_ref().is_some_and(|lost| lost.mark.is_none() || !lost.is_made_up(Some(meta)))
    }

    /// Returns the position that this replica vouches for: that of its state or, after a loss, the one before it. It
    /// exposes a datastore that is behind this position, or whose log diverged before it.
    pub(super) fn claimed(&self) -> Option<Position> {
        let present = self.position();
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = lost.as_ref().and_then(|lost| lost.mark.as_ref()).map(|mark| mark.position);
        let is_of_one_log = |marked: &Position| present.is_none_or(|present| present.log_id == marked.log_id);
        marked.filter(is_of_one_log).or(present)
    }

    /// Returns whether the state has no position or a loss of unknown extent, and `generation` is not known to be the
    /// one that it last followed.
    pub(super) fn is_unsure_of(&self, generation: Generation) -> bool {
        let is_absent = self.position().is_none();
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unmarked = lost.as_ref().map_or(is_absent, |lost| lost.mark.is_none());
        let terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        is_unmarked && terms.as_ref().is_none_or(|terms| terms.generation != generation)
    }

    /// Returns whether the state lacks values that this member may read, or has values withheld from it.
    pub(super) fn is_redacted_wrongly(&self, welcome: &Welcome) -> bool {
        let is_wrong = self.state().meta().is_some_and(|meta| meta.is_redacted != is_redacted(welcome));
        is_wrong && !fault_injection::is(Bug::RoleChangeKeepsState)
    }

    pub(super) fn set_lost(&self, lost: Option<Lost>) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
    }

    /// Returns whether the state cannot follow the datastore that sent `welcome` from its present position.
    pub(super) fn is_lacking(&self, welcome: &Welcome) -> bool {
        self.position().is_none_or(|position| position.seq < welcome.horizon)
            || self.is_unsure_of(welcome.generation)
            || self.is_redacted_wrongly(welcome)
    }

    /// Sets the health problem; an empty text clears it.
    pub(super) fn set_problem(&self, problem: impl Into<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem.into();
    }

    pub(super) fn request_resync(&self, why: String) {
        self.set_problem(why);
        self.resync_asked.store(true, Ordering::Release);
        self.outbox_changed.send_modify(|number| *number += 1);
    }

    /// Returns whether the state must be fetched again: it differs from the datastore's, or a read has found
    /// it corrupt.
    pub(super) fn wants_resync(&self) -> bool {
        self.resync_asked.load(Ordering::Acquire) || self.state().damage().summary().is_some()
    }

    /// Records that the state was fetched again.
    pub(super) fn note_resynced(&self) {
        self.resync_asked.store(false, Ordering::Release);
    }

    /// Returns the corruption that reads have found in the state.
    fn damage(&self) -> Option<String> {
        self.state().damage().summary().map(|found| format!("{found}; fetching the state again"))
    }

    /// Adopts the generation of a datastore with a consistent position. Returns the position from which to follow it.
    pub(super) fn take_over(&self, welcome: &Welcome) -> Result<Position, String> {
        let position = self.position().ok_or("no position")?;
        if position.generation != welcome.generation || position.log_id != welcome.log_id {
            let state = self.state();
            state.set_generation(welcome.generation, welcome.lineage.clone()).map_err(|error| error.to_string())?;
        }
        Ok(position)
    }

    /// Compares arriving entries with the pending transactions of the same identities.
    pub(super) fn compare_arrived(&self, entries: &[Entry]) {
        if self.outbox().depth() == 0 {
            return;
        }
        let mut outbox = self.outbox_mut();
        entries.iter().for_each(|entry| outbox.compare_arrived(&entry.body));
    }

    /// Returns why this member may not write; `None` if it may.
    pub(super) fn forbidden(&self) -> Option<Reason> {
        let refused = || self.refusal().map(|refusal| refusal.message());
        let forbidden = self.forbidden.lock().unwrap_or_else(PoisonError::into_inner).clone();
        refused().or(forbidden).map(|message| Reason::Forbidden { message })
    }

    /// Returns the datastore's refusal of this member; `None` if it does not refuse it.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_refusal(&self, refusal: Option<Refusal>) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// Returns whether this is the name of this member.
    pub(super) fn is_me(&self, member: &MemberName) -> bool {
        self.member.get().is_some_and(|me| member.as_str() == me)
    }

    /// Returns the member that made the transactions of an origin, if that is not this one.
    pub(super) fn other_maker(&self, origin: Origin) -> Result<Option<MemberName>, StateError> {
        let Some(me) = self.member.get() else { return Ok(None) };
        let maker = self.state().maker(origin)?;
        Ok(maker.map(|maker| maker.member).filter(|member| member.as_str() != me))
    }

    /// Sets the reason why this member may not write.
    pub(super) fn set_forbidden(&self, forbidden: Option<String>) {
        *self.forbidden.lock().unwrap_or_else(PoisonError::into_inner) = forbidden;
    }

    /// Resolves the receipts of decided transactions. Returns the rejections, to be written to the journal.
    pub(super) fn settle(&self, decided: Vec<ResolvedTxn>) -> Vec<RejectedTxn> {
        if decided.is_empty() {
            return Vec::new();
        }
        let mut to_note = Vec::new();
        for decided in decided {
            match decided {
                ResolvedTxn::Committed(id, seq) => self.receipts.settle(id, Stage::Acknowledged(seq)),
                ResolvedTxn::Rejected(id, seq, reason) => {
                    telemetry::metrics::rejections(&reason);
                    let found: Option<RejectedTxn> = self.outbox().rejected().get(&id).cloned();
                    for (collection, key) in found.iter().flat_map(|rejected| touched(&rejected.txn)) {
                        let change = Change::Overlay { collection: collection.clone(), key: key.clone() };
                        let _ = self.changes.send(change);
                    }
                    to_note.extend(found);
                    self.receipts.settle(id, Stage::Rejected(seq, reason));
                }
            }
        }
        self.notify_outbox_changed();
        to_note
    }

    /// Resolves pending transactions by the origin rows of a state. Returns the rejections, to be written to
    /// the journal.
    pub(super) fn resolve_by(&self, state: &StateStore) -> Vec<RejectedTxn> {
        let origins: Vec<Origin> = self.outbox().origins();
        let mut decided = Vec::new();
        for origin in origins {
            match state.origin(origin) {
                Ok(Some(row)) => decided.extend(self.outbox_mut().handle_row(origin, &row)),
                Ok(None) => {}
                Err(error) => self.request_resync(format!("{error}; fetching the state again")),
            }
        }
        self.settle(decided)
    }

    /// Moves one pending transaction, or all of them, to the rejected list. Returns them, to be written to the journal.
    pub(super) fn refuse(&self, id: Option<TxnId>, reason: &Reason) -> Vec<RejectedTxn> {
        let decided = {
            let mut outbox = self.outbox_mut();
            let ids: Vec<TxnId> = match id {
                Some(id) => vec![id],
                None if fault_injection::is(Bug::ReaderWriteStays) => Vec::new(),
                None => outbox.pending().map(|txn| txn.id).collect(),
            };
            ids.into_iter().filter_map(|id| outbox.refuse(id, reason.clone())).collect()
        };
        self.settle(decided)
    }

    /// Moves all pending transactions to the rejected list if this member may not write. Returns them, to be written to
    /// the journal.
    pub(super) fn refuse_forbidden(&self) -> Vec<RejectedTxn> {
        let Some(reason) = self.forbidden() else { return Vec::new() };
        let to_note = self.refuse(None, &reason);
        if !to_note.is_empty() {
            tracing::warn!(count = to_note.len(), %reason, "rejected pending transactions");
        }
        to_note
    }

    /// Returns the progress report of this replica, which has durably applied everything up to `applied`.
    pub(super) fn progress(&self, applied: Seq) -> Progress {
        let (outbox, rejected) = {
            let outbox = self.outbox();
            (outbox.depth() as u64, outbox.rejected().len() as u64)
        };
        let fault = || self.membership_problem().filter(|(_, is_fault)| *is_fault).map(|(what, _)| what);
        let problem = Some(self.problem()).filter(|problem| !problem.is_empty()).or_else(fault).unwrap_or_default();
        let applied = if fault_injection::is(Bug::ReportUndurable) { *self.applied.borrow() } else { applied };
        Progress { applied, outbox, rejected, unhealthy: (!problem.is_empty()).then(|| reportable(&problem)) }
    }

    /// Handles a reply that transactions before `id` are missing. Returns the reason to restart the stream.
    fn handle_gap(&self, id: TxnId, expected: OriginCounter) -> String {
        let lacks = self.outbox_mut().note_gap(id.origin, expected);
        if lacks > 0 {
            let text = format!(
                "the log lacks {lacks} changes of this member that it once had (from counter {expected} of origin {}): \
                 neither this member's state nor its outbox has them any more",
                id.origin
            );
            tracing::error!(origin = %id.origin, %expected, lacks, "the log lacks changes of this member; empty ones are pushed in their place");
            *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
        format!("transaction {} is out of order, expected {expected}", id.counter)
    }

    /// Handles the answer to a push. Returns the reason to pause, if any. Rejections to be written to the journal are
    /// added to `to_note`.
    pub(super) fn handle_answer(&self, heard: PushReply, to_note: &mut Vec<RejectedTxn>) -> Option<String> {
        if let PushReply::Acknowledged(id, _) | PushReply::Decided(id) | PushReply::Refused(id, _) = &heard {
            self.gate().handle_decided(id.origin, id.counter);
            self.datastore.clear_refused();
        }
        match heard {
            PushReply::Refused(id, reason) => {
                to_note.extend(self.refuse(Some(id), &reason));
                None
            }
            PushReply::Acknowledged(id, seq) => {
                self.receipts.settle(id, Stage::Acknowledged(seq));
                if fault_injection::is(Bug::ForgetOnAnswer) {
                    self.outbox_mut().forget_up_to(id);
                }
                None
            }
            PushReply::Decided(_) => None,
            PushReply::Pause(reason) => {
                self.datastore.note_refused(&reason);
                Some(reason)
            }
            PushReply::Gap(id, expected) => Some(self.handle_gap(id, expected)),
            PushReply::ChunksMissing(id, reason) => {
                self.gate().handle_missing(id);
                Some(reason)
            }
        }
    }
}

/// Makes the replica fetch its state again when any read finds corruption.
fn wake_by_damage(state: &StateStore, outbox_changed: &watch::Sender<u64>) {
    let changed = outbox_changed.clone();
    state.damage().listen(move |found| {
        tracing::error!(found, "read found corruption; fetching the state again");
        changed.send_modify(|number| *number += 1);
    });
}

/// Stops the process: continuing could lose accepted transactions or show wrong data. Nothing more is accepted.
pub(super) fn stop_process(shared: &ReplicaState, failure: &Fatal) -> ! {
    shared.watch.fail(&failure.to_string());
    tracing::error!(%failure, "stopping, because accepted transactions could be lost");
    output::exit(70);
}

/// Like [`stop_process`], for a thread that panicked while it held accepted transactions.
pub(super) fn part_panicked(name: &'static str) -> ! {
    tracing::error!(thread = name, "thread panicked; stopping, because accepted transactions could be lost");
    output::exit(70);
}

/// Handle to the shared state.
pub(super) type ReplicaRef = Arc<ReplicaState>;
