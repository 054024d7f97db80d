//! Single writer of the outbox journal: counters, group commit, rejections, dismissals.
//!
//! A transaction becomes visible (overlay, push, receipt) only after the journal is durable. The journal holds what
//! cannot be fetched again: pending transactions, and rejected ones until a user has dealt with them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use gravwell_env::{Clock, Entropy, wait};
use gravwell_log::journal::{Journal, JournalError};
use gravwell_model::codec::admin::SeenVersion;
use gravwell_model::codec::blob_manifest;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::limits::{HARD, LimitExceeded};
use gravwell_model::{Condition, Limits, Op, Origin, OriginCounter, Reason, Seq, Txn, TxnId};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::{Outbox, OverlayRead, RejectedTxn};
use gravwell_protocol::sequencer::{is_contradicted, of_another_member};
use gravwell_runtime::telemetry;
use gravwell_state::StateError;

use super::history::History;
use super::outbox_quota::{self, OutboxQuota};
use super::outbox_records::RejectedV1;
use super::receipts::{Receipt, Receipts, Stage};
use super::reverted::Reverted;
use super::shared::{ReplicaRef, stop_process};

mod batch;
mod rewriting;
mod turn;

pub(super) use turn::Heard;
#[cfg(any(test, feature = "testing"))]
pub(super) use turn::Turn;

/// The journal is rewritten when it has at least this many bytes and is mostly settled.
const REWRITE_BYTES_MIN: u64 = 4 << 20;
/// Longest delay until the journal's head durably vouches for durable records, and until sequences of committed
/// transactions are in the journal.
const VOUCH_AFTER: Duration = Duration::from_millis(100);
/// Returned when the outcome of an earlier transaction of the same identity is unknown.
const NOT_KNOWN: &str = "the state differs from the datastore's and is being fetched again, so the outcome of the \
                         earlier transaction with this identity is unknown; submit it again when the datastore is \
                         reachable";
/// Most requests per fsync.
const BATCH_TXNS_MAX: usize = 1024;

/// Error of submitting a transaction.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// A limit is exceeded.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// A condition fails already in the local view.
    #[error("{0}")]
    Condition(Reason),
    /// The transaction has no operations.
    #[error("a transaction needs at least one operation")]
    Empty,
    /// The given counter does not follow the last one of its origin.
    #[error("counter {found} of origin {origin} leaves a gap, expected {expected}")]
    Gap {
        /// Origin of the given identity.
        origin: Origin,
        /// Counter that was given.
        found: OriginCounter,
        /// Counter that was expected.
        expected: OriginCounter,
    },
    /// The outbox has reached its limit of transactions.
    #[error("outbox is full ({depth} pending transactions); writes resume when the datastore is reachable")]
    Full {
        /// Number of pending transactions.
        depth: usize,
    },
    /// The local disk is full.
    #[error("{}", super::disk::FULL)]
    DiskFull,
    /// This member may not write, or not under this identity.
    #[error("{0}")]
    Forbidden(Reason),
    /// The outbox has reached its limit in bytes.
    #[error(
        "outbox is full ({bytes} bytes of at most {limit}, `Outbox-Max-MB`); such writes resume when the datastore is \
         reachable"
    )]
    FullBytes {
        /// Bytes of pending transactions.
        bytes: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// The author's pending transactions fill the author's share of the outbox.
    #[error("your pending changes fill your share of the outbox (`Outbox-Max-MB`)")]
    ShareIsFull,
    /// The author's rejected transactions fill the space that they may take.
    #[error(
        "your rejected changes take {bytes} bytes; retry or dismiss them (`GET /api/rejections`, `gravwell-logctl \
         outbox`)"
    )]
    RejectedFill {
        /// Bytes of these transactions.
        bytes: usize,
    },
    /// Writing to the local disk failed.
    #[error("cannot write the outbox: {0}; nothing was accepted")]
    Disk(String),
    /// A part of the process has failed, so the process stops.
    #[error("a part of the process has failed, so nothing was accepted; retry after the restart")]
    Failed,
    /// Data that the checks need cannot be read at the moment.
    #[error("{0}")]
    NotNow(String),
    /// The replica was closed.
    #[error("the replica is closed")]
    Closed,
    /// The directory was opened for reading only.
    #[error("the replica's directory was opened for reading only; nothing was accepted")]
    ReadOnly,
    /// There is no such rejected transaction.
    #[error("no rejected transaction {origin}/{counter}; `gravwell-logctl outbox` lists them", origin = .0.origin, counter = .0.counter)]
    NotRejected(TxnId),
}

impl From<StateError> for SubmitError {
    fn from(error: StateError) -> SubmitError {
        match error {
            StateError::NotNow { .. } => SubmitError::NotNow(error.to_string()),
            error => SubmitError::Disk(error.to_string()),
        }
    }
}

/// A transaction as its author submits it.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// Operations; at least one, unless `id` is given.
    pub ops: Vec<Op>,
    /// Conditions that must hold for the transaction to be committed.
    pub conditions: Vec<Condition>,
    /// Encoded note on who made it, and from where.
    pub note: Bytes,
    /// Identity chosen by the author, who numbers from 1 without gaps; `None` to use an origin of the replica.
    pub id: Option<TxnId>,
    /// Milliseconds since 1970-01-01 UTC; 0 means now.
    pub time_ms: u64,
    /// Whether only the datastore checks its conditions: those that do not hold here are no reason to reject it.
    pub is_judged_upstream: bool,
    /// See [`Txn::settled`]; only used with an identity chosen by the author.
    pub settled: OriginCounter,
    /// History in which its conditions were read; `None` for the one in which it is submitted.
    pub read_in: Option<History>,
    /// Share of the outbox that it may use.
    pub room: OutboxQuota,
}

/// How a rejected transaction is submitted again.
#[derive(Debug, Clone, Default)]
pub struct Resubmission {
    /// Versions that conditions on these objects require from now on.
    pub upon: Vec<SeenVersion>,
    /// History in which these versions were seen.
    pub seen_in: History,
    /// Note on who makes it now, and from where; `None` to keep the former one.
    pub note: Option<Bytes>,
    /// Conditions about the former author, which are dropped.
    pub without: Vec<Condition>,
    /// Conditions about the present author.
    pub with: Vec<Condition>,
}

impl Resubmission {
    fn conditions(&self, old: &[Condition]) -> Vec<Condition> {
        let kept = old.iter().filter(|condition| !self.without.contains(condition));
        let more = self.with.iter().filter(|condition| !old.contains(condition) || self.without.contains(condition));
        kept.chain(more).cloned().collect()
    }
}

pub(super) enum Request {
    Submit(Draft, oneshot::Sender<Result<Receipt, SubmitError>>),
    /// Rejections to make durable.
    Note(Vec<RejectedTxn>),
    /// Sequences of committed transactions became known.
    Committed,
    Dismiss(TxnId, oneshot::Sender<Result<(), SubmitError>>),
    Retry(TxnId, Resubmission, oneshot::Sender<Result<Receipt, SubmitError>>),
    /// Exchanges the outbox because the log continued without this history. Requests of the same batch are handled
    /// before; all others wait until the steps end.
    Exchange(std::sync::mpsc::Receiver<Step>),
}

/// Makes the outbox that continues the present one. It is called while nothing is accepted: a transaction that was
/// accepted after it was made would be in neither.
pub(super) type Successor = Box<dyn FnOnce() -> Result<Outbox, String> + Send>;

/// A step of exchanging the outbox together with the state. If the steps end without [`Step::Install`], nothing has
/// changed: the journal gets the present outbox back.
pub(super) enum Step {
    /// Makes the outbox that will replace the present one, and writes it to the journal.
    Prepare(Successor, oneshot::Sender<Result<(), String>>),
    /// Replaces the outbox, after its state is in place. The histories are equal up to this sequence.
    Install(Seq, oneshot::Sender<()>),
}

/// Largest number of pending transactions.
pub(super) const DEPTH_MAX: usize = 1 << 20;

pub(super) struct OutboxWriter {
    shared: ReplicaRef,
    journal: Journal,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// Origins of the transactions made here, for the express and the bulk lane.
    express: Own,
    bulk: Own,
    last: HashMap<Origin, OriginCounter>,
    /// Rejections not in the journal yet because writing failed.
    unwritten: Vec<RejectedV1>,
    /// Whether the journal holds an outbox that was prepared for an exchange and not installed.
    holds_prepared: bool,
}

/// An origin of this process, created when it is first needed.
#[derive(Default)]
struct Own {
    origin: Option<Origin>,
    /// Rejections of this origin up to this counter are in the journal.
    settled: OriginCounter,
}

impl OutboxWriter {
    pub(super) fn new(
        shared: ReplicaRef,
        journal: Journal,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> OutboxWriter {
        OutboxWriter {
            shared,
            journal,
            clock,
            entropy,
            express: Own::default(),
            bulk: Own::default(),
            last: HashMap::new(),
            unwritten: Vec::new(),
            holds_prepared: false,
        }
    }

    /// Serves requests until all senders are dropped.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        // Since when the journal is to be completed, see `complete`.
        let mut incomplete_since: Option<Instant> = None;
        let mut reverted = Reverted::new(&*self.clock);
        loop {
            let request = match incomplete_since {
                None => requests.blocking_recv(),
                Some(since) => match wait::at_most(VOUCH_AFTER.saturating_sub(since.elapsed()), requests.recv()) {
                    Some(request) if since.elapsed() < VOUCH_AFTER => request,
                    late => {
                        self.complete().unwrap_or_else(|failure| stop_process(&self.shared, &failure));
                        incomplete_since = None;
                        let Some(request) = late else { continue };
                        request
                    }
                },
            };
            let Some(first) = request else { break };
            if reverted.is_noticed(&*self.clock) {
                tracing::warn!("clock jumped, the machine may have been reverted; using new identities");
                (self.express, self.bulk) = (Own::default(), Own::default());
            }
            let mut batch = vec![first];
            while batch.len() < BATCH_TXNS_MAX
                && let Ok(next) = requests.try_recv()
            {
                batch.push(next);
            }
            self.handle(batch).unwrap_or_else(|failure| stop_process(&self.shared, &failure));
            self.rewrite_if_worth_it(REWRITE_BYTES_MIN);
            if self.journal.is_unvouched() || !self.shared.outbox().unrecorded_sequences().is_empty() {
                incomplete_since.get_or_insert_with(Instant::now);
            }
        }
        self.complete().unwrap_or_else(|failure| stop_process(&self.shared, &failure));
    }

    pub(super) fn handle(&mut self, requests: Vec<Request>) -> Result<(), Fatal> {
        let mut left = Some(self.begin(requests));
        while let Some(turn) = left {
            left = self.advance(turn, |steps| steps.recv().map_or(Heard::Ended, Heard::Step))?;
        }
        Ok(())
    }

    /// Stops using an origin if the log has another transaction under this identity, or does not accept it.
    fn forsake(&mut self, id: TxnId, seq: Seq, reason: &Reason) {
        if seq != Seq::ZERO && *reason != Reason::IdentityReused {
            return;
        }
        self.last.remove(&id.origin);
        for own in [&mut self.express, &mut self.bulk] {
            if own.origin == Some(id.origin) {
                *own = Own::default();
            }
        }
    }

    /// Appends to the journal and syncs it. The inner error means that nothing was written and the journal
    /// is unchanged.
    fn write(&mut self, frames: &[(u8, Vec<u8>)]) -> Result<Result<(), JournalError>, Fatal> {
        let failed = "cannot write the outbox journal";
        if let Err(error) = self.written_back()? {
            return Ok(Err(error));
        }
        match self.journal.append(frames) {
            Err(error @ JournalError::Poisoned) => return Err(Fatal::of(failed)(error)),
            Err(error) => return Ok(Err(error)),
            Ok(()) => {}
        }
        // After a failed sync the disk contents are unknown, and a retry would not show them.
        self.journal.sync().map(Ok).map_err(Fatal::of(failed))
    }

    fn stage_within(&mut self, draft: Draft, staged: &mut Outbox) -> Result<Staged, SubmitError> {
        outbox_quota::check(&self.shared, &draft, staged)?;
        self.stage(draft, staged)
    }

    fn stage(&mut self, draft: Draft, staged: &mut Outbox) -> Result<Staged, SubmitError> {
        if draft.ops.is_empty() && draft.id.is_none() {
            return Err(SubmitError::Empty);
        }
        if self.shared.has_failed() {
            return Err(SubmitError::Failed);
        }
        let disk = &self.shared.disk;
        let makes_room = draft.ops.iter().all(|op| matches!(op, Op::Delete { .. }));
        if disk.is_full() && !(makes_room && disk.takes_deletes()) {
            telemetry::metrics::write_refusal("disk_full");
            return Err(SubmitError::DiskFull);
        }
        let depth = self.shared.outbox().depth() + staged.depth();
        if depth >= DEPTH_MAX {
            return Err(SubmitError::Full { depth });
        }
        let forbidden = self.shared.forbidden().filter(|_| !fault_injection::is(Bug::ReaderWritesAccepted));
        if draft.id.is_none()
            && let Some(reason) = forbidden
        {
            return Err(SubmitError::Forbidden(reason));
        }
        let waits = |outbox: &Outbox| outbox.waits_for_bulk(&draft.ops, &draft.conditions);
        let is_bulk = blob_manifest::references_chunks(&draft.ops) || waits(staged) || waits(&self.shared.outbox());
        let id = match draft.id {
            Some(id) => {
                let other = self.shared.other_maker(id.origin)?;
                if let Some(member) = other {
                    return Err(SubmitError::Forbidden(of_another_member(id.origin, &member)));
                }
                let last = self.last_counter(id.origin)?;
                if id.counter <= last {
                    // A transaction of this batch is not durable yet, so it cannot be acknowledged yet.
                    let is_twin = id.counter <= staged.taken(id.origin) && staged.pending().any(|txn| txn.id == id);
                    return if is_twin { Ok(Staged::Twin(id)) } else { self.known(id, draft).map(Staged::Known) };
                }
                if let Some(reason) = forbidden {
                    return Err(SubmitError::Forbidden(reason));
                }
                if id.counter != last.next() {
                    return Err(SubmitError::Gap { origin: id.origin, found: id.counter, expected: last.next() });
                }
                id
            }
            None => {
                let origin = self.own_origin(is_bulk)?;
                TxnId { origin, counter: self.last_counter(origin)?.next() }
            }
        };
        let own = if is_bulk { &self.bulk } else { &self.express };
        let settled = if draft.id.is_some() { draft.settled } else { own.settled };
        let settled = if fault_injection::is(Bug::SettledTooEarly) { id.counter } else { settled };
        let time_ms = if draft.time_ms == 0 { self.clock.now_ms() } else { draft.time_ms };
        let is_judged_here = draft.id.is_none() && !draft.is_judged_upstream;
        let histories = &self.shared.histories;
        if let Some(reason) = histories.refusal(&draft.conditions, draft.read_in).filter(|_| is_judged_here) {
            return Err(SubmitError::Condition(reason));
        }
        let Draft { ops, conditions, note, read_in, .. } = draft;
        let conditions = match histories.translated(&conditions, read_in) {
            Some(translated) => self.shared.outbox().upon_retried(&translated),
            None => conditions,
        };
        let txn = Txn { id, settled, time_ms, note, conditions, ops };
        // An author that numbers its own transactions needs a decision of the datastore on each, even on invalid ones.
        if is_judged_here {
            let limits: Limits = self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner).clone();
            limits.check(&txn)?;
            self.precheck(&txn.conditions, staged)?;
        } else {
            HARD.check(&txn)?;
        }
        let txn = Arc::new(txn);
        staged.insert_in(Arc::clone(&txn), is_bulk);
        self.last.insert(id.origin, id.counter);
        Ok(Staged::New(txn))
    }

    /// Rejects conditions that the local view shows to be impossible. The datastore decides the rest.
    fn precheck(&self, conditions: &[Condition], staged: &Outbox) -> Result<(), SubmitError> {
        for condition in conditions {
            let (collection, key) = (condition.collection(), condition.key());
            let overlaid = match staged.look_up(collection, key) {
                OverlayRead::Untouched => self.shared.outbox().look_up(collection, key),
                overlaid => overlaid,
            };
            let pending = overlaid != OverlayRead::Untouched;
            if pending && matches!(condition, Condition::Version { .. }) && condition.since().is_none() {
                self.precheck_upon_pending(condition, staged)?;
                continue;
            }
            let version = match overlaid {
                OverlayRead::Put(_) => Some(Seq(u64::MAX)),
                OverlayRead::Deleted => None,
                OverlayRead::Untouched => self.shared.state().version(collection, key)?,
            };
            let decidable = match condition {
                Condition::Absent { .. } | Condition::Present { .. } => true,
                // Only the datastore knows what was deleted up to the time when it judges.
                Condition::Version { .. } if condition.since().is_some() => true,
                // Only the datastore knows whether the transaction named by the condition wrote the present version.
                Condition::Version { .. } if condition.mark().is_some() => false,
                // The local state may be behind the version that the author has seen elsewhere.
                Condition::Version { version: wanted, .. } => version.is_some_and(|have| have > *wanted),
            };
            if decidable && !condition.holds(version) {
                let found = version.filter(|_| !pending);
                return Err(SubmitError::Condition(Reason::ConditionFailed {
                    condition: condition.to_string(),
                    found,
                }));
            }
        }
        Ok(())
    }

    /// Checks a condition on the last write of an object that a pending transaction has written.
    fn precheck_upon_pending(&self, condition: &Condition, staged: &Outbox) -> Result<(), SubmitError> {
        let Condition::Version { collection, key, version: wanted } = condition else { return Ok(()) };
        let own = || self.shared.outbox().last_writer(collection, key);
        let found = staged.last_writer(collection, key).or_else(own).map(TxnId::mark);
        let is_overtaken = if condition.mark().is_some() {
            found.is_some_and(|found| found != *wanted)
        } else {
            // The author read the present version, and a pending transaction has overwritten it. A version that the
            // state does not have yet was read elsewhere, so the datastore decides.
            self.shared.state().version(collection, key)?.is_some_and(|have| have >= *wanted)
        };
        if !is_overtaken {
            return Ok(());
        }
        Err(SubmitError::Condition(Reason::ConditionFailed { condition: condition.to_string(), found }))
    }

    fn own_origin(&mut self, is_bulk: bool) -> Result<Origin, SubmitError> {
        let own = if is_bulk { &mut self.bulk } else { &mut self.express };
        if let Some(origin) = own.origin {
            return Ok(origin);
        }
        let mut bytes = [0; 16];
        self.entropy.fill(&mut bytes).map_err(|error| SubmitError::Disk(error.to_string()))?;
        own.origin = Some(Origin(bytes));
        Ok(Origin(bytes))
    }

    fn last_counter(&mut self, origin: Origin) -> Result<OriginCounter, SubmitError> {
        if let Some(last) = self.last.get(&origin) {
            return Ok(*last);
        }
        let row = self.shared.state().origin(origin)?;
        let decided = row.map_or(OriginCounter(0), |row| row.last_counter);
        let last = decided.max(self.shared.outbox().taken(origin));
        self.last.insert(origin, last);
        Ok(last)
    }

    /// Returns the receipt of a transaction that was submitted before.
    fn known(&self, id: TxnId, draft: Draft) -> Result<Receipt, SubmitError> {
        let outbox = self.shared.outbox();
        let Draft { ops, conditions, note, settled, time_ms, .. } = draft;
        let conditions = outbox.upon_retried(&conditions);
        let given = Txn { id, settled, time_ms, note, conditions, ops };
        if outbox.find(id).is_some_and(|known| !known.is_rewritten_from(&given)) {
            return Ok(Receipts::decided(id, Stage::Rejected(Seq::ZERO, Reason::IdentityReused)));
        }
        if let Some(rejected) = outbox.rejected().get(&id) {
            return Ok(Receipts::decided(id, Stage::Rejected(rejected.seq, rejected.reason.clone())));
        }
        if outbox.pending().any(|txn| txn.id == id) {
            return Ok(self.shared.receipts.issue(id));
        }
        // A state that differs from the datastore's may show another outcome than the log, and the author would not
        // ask again.
        if self.shared.wants_resync() {
            return Err(SubmitError::NotNow(NOT_KNOWN.into()));
        }
        let row = self.shared.state().origin(id.origin)?;
        let row = row.unwrap_or_default();
        if row.last_counter < id.counter && id.counter <= outbox.answered_before(id.origin) {
            let now = outbox.present_identity(id).unwrap_or(id);
            if outbox.pending().any(|txn| txn.id == now) {
                return Ok(self.shared.receipts.issue_as(id, now));
            }
            let stage = match outbox.rejected().get(&now) {
                Some(rejected) => Stage::Rejected(rejected.seq, rejected.reason.clone()),
                // It was committed, in the abandoned history or under another identity since.
                None => Stage::Acknowledged(row.last_seq),
            };
            return Ok(Receipts::decided(id, stage));
        }
        // A state that was fetched again may not have reached this counter yet; then the outcome is unknown here.
        if row.last_counter < id.counter {
            return Err(SubmitError::Gap { origin: id.origin, found: id.counter, expected: row.last_counter.next() });
        }
        let maker = self.shared.state().maker(id.origin)?;
        if maker.is_some_and(|maker| is_contradicted(&maker, &given)) && !self.is_there(&given)? {
            return Ok(Receipts::decided(id, Stage::Rejected(row.last_seq, Reason::IdentityReused)));
        }
        let stage = match row.rejection(id.counter).filter(|_| !fault_injection::is(Bug::RejectedIsKnown)) {
            Some((seq, reason)) => Stage::Rejected(seq, reason.clone()),
            None => Stage::Acknowledged(row.last_seq),
        };
        Ok(Receipts::decided(id, stage))
    }

    /// Returns whether everything that a transaction writes is present, in a log with an earlier generation. Then this
    /// may be the transaction that was committed, under conditions rewritten when that generation was left.
    fn is_there(&self, given: &Txn) -> Result<bool, SubmitError> {
        let state = self.shared.state();
        let is_later = state.meta().is_some_and(|meta| meta.lineage.len() > 1);
        if !is_later || given.ops.iter().all(|op| op.value().is_none()) {
            return Ok(false);
        }
        for op in &given.ops {
            let there = state.get(op.collection(), op.key())?;
            if there.map(|object| object.value).as_ref() != op.value() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

enum Staged {
    New(Arc<Txn>),
    Known(Receipt),
    /// The same transaction is already in this batch.
    Twin(TxnId),
}

#[cfg(test)]
mod tests;
