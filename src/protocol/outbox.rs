//! Local transactions on their way to the datastore, and the optimistic view that results from them.
//!
//! A transaction enters when it is durable locally and leaves when the *state* has resolved it: the row of its origin in
//! the state, which changes atomically with the position, contains the counter up to which all transactions are resolved.
//! A crash at any time therefore neither loses nor duplicates a transaction. Replies to pushes are only informative.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::txn::SETTLED_WITHIN;
use gravwell_model::{
    Collection, Condition, EntryBody, Key, Op, Origin, OriginCounter, OriginRow, Reason, Seq, Txn, TxnId,
};

use super::lanes::BulkLane;
use super::rebase::{InOrder, Leaving, Lost};
use super::retained_txns::RetainedTxns;
use super::retried::Retried;
use super::shares::{Held, Shares};

pub use super::retained_txns::{ResolutionSource, RetainedTxn, RetentionLimits};

/// Position in the local queue. Increases with each transaction during the lifetime of the process.
pub type QueuePosition = u64;

/// A rejected transaction that waits for a user to handle it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedTxn {
    /// The transaction.
    pub txn: Arc<Txn>,
    /// Sequence of the rejection; zero if the log does not contain it.
    pub seq: Seq,
    /// Reason of the rejection.
    pub reason: Reason,
}

impl RejectedTxn {
    /// Returns whether the transaction was rejected before it could be sequenced, so that the log has no record of it.
    #[must_use]
    pub fn is_unsequenced(&self) -> bool {
        self.seq == Seq::ZERO
    }
}

/// Outcome of a pending transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolvedTxn {
    /// Committed at this sequence. After a snapshot: at or before this sequence.
    Committed(TxnId, Seq),
    /// Rejected; the transaction has moved to the rejected list.
    Rejected(TxnId, Seq, Reason),
}

/// Value of a key in the optimistic view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverlayRead {
    /// No pending transaction touches it.
    Untouched,
    /// A pending transaction put this value.
    Put(Bytes),
    /// A pending transaction deletes it.
    Deleted,
}

/// Maximum number of consecutive counters that are filled with empty transactions.
const FILLED_MAX: u64 = 1024;

fn nothing(id: TxnId, time_ms: u64) -> Txn {
    Txn { id, settled: OriginCounter(0), time_ms, note: Bytes::new(), conditions: Vec::new(), ops: Vec::new() }
}

fn is_nothing(txn: &Txn) -> bool {
    txn.ops.is_empty() && txn.conditions.is_empty() && txn.note.is_empty()
}

/// Returns the waiting transactions in order with their new identities, and an empty transaction for each missing counter.
fn numbered(
    waiting: Vec<Arc<Txn>>,
    decided_of: impl Fn(Origin) -> OriginCounter,
    mut fresh: impl FnMut() -> Origin,
) -> Vec<(TxnId, Arc<Txn>)> {
    let mut last: BTreeMap<Origin, TxnId> = BTreeMap::new();
    let mut numbered = Vec::new();
    for txn in waiting {
        let (origin, counter) = (txn.id.origin, txn.id.counter);
        let last = last.entry(origin).or_insert_with(|| TxnId { origin, counter: decided_of(origin) });
        if last.origin == origin && counter.0 - last.counter.0 > FILLED_MAX {
            *last = TxnId { origin: fresh(), counter: OriginCounter(0) };
        }
        while last.origin == origin && last.counter.next() < counter {
            last.counter = last.counter.next();
            numbered.push((*last, Arc::new(nothing(*last, txn.time_ms))));
        }
        last.counter = last.counter.next();
        numbered.push((*last, txn));
    }
    numbered
}

type Layer = BTreeMap<QueuePosition, Option<Bytes>>;

/// Pending and rejected transactions with their overlay.
#[derive(Debug, Default)]
pub struct Outbox {
    pending: BTreeMap<QueuePosition, Arc<Txn>>,
    by_origin: BTreeMap<Origin, VecDeque<(OriginCounter, QueuePosition)>>,
    taken: HashMap<Origin, OriginCounter>,
    overlay: BTreeMap<Collection, BTreeMap<Key, Layer>>,
    bulk: BulkLane,
    rejected: BTreeMap<TxnId, RejectedTxn>,
    rejected_bytes: usize,
    shares: Shares,
    retried: Retried,
    /// Pending transactions whose identity the log has for different contents.
    reused: BTreeSet<TxnId>,
    /// Rejections that are not known to be in the journal.
    unwritten: BTreeSet<TxnId>,
    next_place: QueuePosition,
    pending_bytes: usize,
    kept: RetainedTxns,
    /// Counters up to which a lost state had resolved transactions.
    decided_before: HashMap<Origin, OriginCounter>,
    /// Number of pending transactions that a lost state had resolved.
    hidden: usize,
    /// For pending transactions before this position, it is unknown whether a lost state had resolved them.
    doubted_to: QueuePosition,
    /// Counters that the datastore expects next of origins whose transactions before the pending ones it lacks.
    gaps: HashMap<Origin, OriginCounter>,
    /// Counters up to which an abandoned history had accepted transactions of origins, where the log may have fewer.
    accepted_before: BTreeMap<Origin, OriginCounter>,
}

impl Outbox {
    /// Creates an outbox that keeps committed transactions for a while.
    #[must_use]
    pub fn keeping() -> Outbox {
        Outbox::keeping_within(RetentionLimits::default())
    }

    /// Like [`Outbox::keeping`], with the given limits.
    #[must_use]
    pub fn keeping_within(limits: RetentionLimits) -> Outbox {
        Outbox { kept: RetainedTxns::within(Some(limits)), ..Outbox::default() }
    }

    /// Hides transactions from the optimistic view that a lost state had resolved, up to these counters: their objects
    /// may have changed since. They are still pushed, like all transactions that the current state does not know.
    #[must_use]
    pub fn without_overlay_of(self, decided: impl IntoIterator<Item = (Origin, OriginCounter)>) -> Outbox {
        let decided = decided.into_iter().filter(|_| !fault_injection::is(Bug::DecidedIsShownAgain));
        Outbox { decided_before: decided.collect(), ..self }
    }

    /// Marks all pending transactions as possibly resolved by a lost state.
    #[must_use]
    pub fn doubted(self) -> Outbox {
        Outbox { doubted_to: self.next_place, ..self }
    }

    /// Returns the pending transactions that a lost state had resolved, or may have resolved, and that are unknown to a
    /// state with these counters. Later changes of their objects are unknown, so they must not be pushed to a log that
    /// has not resolved them.
    #[must_use]
    pub fn lost_with_state(&self, decided: &BTreeMap<Origin, OriginCounter>) -> Vec<Arc<Txn>> {
        let is_lacking = |id: TxnId| decided.get(&id.origin).is_none_or(|decided| id.counter > *decided);
        let lost = self.pending.iter().filter(|(place, txn)| !self.is_certain(**place, txn.id) && is_lacking(txn.id));
        lost.map(|(_, txn)| Arc::clone(txn)).collect()
    }

    /// Returns whether a pending or rejected transaction has a condition on a version later than `seq`.
    #[must_use]
    pub fn is_upon_later_than(&self, seq: Seq) -> bool {
        let rejected = self.rejected.values().map(|rejected| &rejected.txn);
        let mut conditions = self.pending.values().chain(rejected).flat_map(|txn| &txn.conditions);
        let is_later = |condition: &Condition| match condition {
            Condition::Version { version, .. } => {
                condition.mark().is_none() && condition.since().unwrap_or(*version) > seq
            }
            _ => false,
        };
        conditions.any(is_later) && !fault_injection::is(Bug::UponLostStays)
    }

    /// Returns whether a pending transaction requires an object to be present that neither an earlier one puts nor
    /// `is_present` has: the state in which its author saw the object is lost.
    ///
    /// # Errors
    /// If `is_present` fails.
    pub fn requires_absent<E>(
        &self,
        mut is_present: impl FnMut(&Collection, &Key) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut written: HashMap<(&Collection, &Key), bool> = HashMap::new();
        for txn in self.pending.values() {
            for condition in &txn.conditions {
                let Condition::Present { collection, key } = condition else { continue };
                let there = written.get(&(collection, key)).copied();
                if !there.map_or_else(|| is_present(collection, key), Ok)? {
                    return Ok(true);
                }
            }
            written.extend(txn.ops.iter().map(|op| ((op.collection(), op.key()), op.value().is_some())));
        }
        Ok(false)
    }

    /// Returns whether a pending transaction is known to be unresolved in any lost state.
    fn is_certain(&self, place: QueuePosition, id: TxnId) -> bool {
        self.is_shown(id) && place >= self.doubted_to
    }

    /// Returns the kept committed transactions, oldest first.
    pub fn kept(&self) -> impl Iterator<Item = &RetainedTxn> {
        self.kept.iter()
    }

    /// Returns the estimated size of the kept transactions in bytes.
    #[must_use]
    pub fn retained_bytes(&self) -> usize {
        self.kept.bytes()
    }

    /// Drops kept transactions up to `floor`, which every member within retention has durably applied.
    pub fn drop_below(&mut self, floor: Seq) {
        self.kept.drop_below(floor);
    }

    /// Returns the committed transactions on which `txn` depends and which the log may not record as writers.
    pub fn unseen_before(&self, txn: &Txn) -> impl Iterator<Item = &Arc<Txn>> {
        self.kept.unseen_before(txn)
    }

    /// Returns the conditions of all transactions in it.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        let rejected = self.rejected.values().map(|rejected| &rejected.txn);
        let txns = self.pending.values().chain(rejected).chain(self.kept.iter().map(|kept| &kept.txn));
        txns.flat_map(|txn| txn.conditions.iter())
    }

    /// Returns the outbox for a new log that has resolved fewer transactions than the abandoned history.
    ///
    /// - The transactions in `again` precede the pending ones.
    /// - Transactions that the new log has committed, and that other members may lack, are still kept. Those that it has
    ///   rejected are put on the rejected list.
    /// - A counter without a remaining transaction is filled with an empty transaction. If too many are missing, the
    ///   following transactions get an origin from `fresh` instead.
    /// - A rejection that the log does not contain gets such an origin as well. So does an archived transaction, which is
    ///   put on the rejected list. Its old identity is used by the empty transaction, or by its deletions in `again`.
    /// - Transactions lost with a state ([`Outbox::lost_with_state`]) are omitted.
    /// - Conditions from the abandoned history are translated (`rebase.rs`), and refer to transactions by their new
    ///   identities.
    #[must_use]
    pub fn requeued(&self, leaving: Leaving<'_>, mut fresh: impl FnMut() -> Origin) -> Outbox {
        let Leaving { decided, again, archived, reason, lost } = leaving;
        let decided_of = |origin: Origin| decided.get(&origin).map(|row| row.last_counter).unwrap_or_default();
        let is_decided = |id: TxnId| id.counter <= decided_of(id.origin);
        let kept = RetainedTxns::within(self.kept.limits());
        let mut outbox = Outbox { kept, next_place: self.next_place, ..Outbox::default() };
        let mut names = self.retried.clone();
        let mut alone = |names: &mut Retried, from: TxnId| {
            let id = TxnId { origin: fresh(), counter: OriginCounter(1) };
            names.note(from, id);
            id
        };
        let mut listed = self.retain_resolved(decided, lost, &mut outbox);
        for (id, rejected) in &self.rejected {
            let id = if is_decided(*id) { *id } else { alone(&mut names, *id) };
            let conditions = lost.conditions(&rejected.txn.conditions);
            let txn = Arc::new(Txn { conditions, ..Txn::clone(&rejected.txn) });
            listed.push((id, RejectedTxn { txn, ..rejected.clone() }));
        }
        let listed_again: BTreeSet<TxnId> = archived.iter().map(|txn| txn.id).collect();
        for txn in archived.into_iter().filter(|_| !fault_injection::is(Bug::ArchivedNotListed)) {
            let id = alone(&mut names, txn.id);
            let txn = Arc::new(Txn { settled: OriginCounter(0), ..Txn::clone(&txn) });
            listed.push((id, RejectedTxn { txn, seq: Seq::ZERO, reason: reason.clone() }));
        }
        let mut in_order = InOrder::of(lost);
        self.kept.iter().for_each(|kept| in_order.pass(&kept.txn, !is_decided(kept.txn.id)));
        let translated: Vec<(QueuePosition, Arc<Txn>)> =
            self.pending.iter().map(|(place, txn)| (*place, Arc::new(in_order.translate(txn)))).collect();
        let certain = translated.into_iter().filter(|(place, txn)| self.is_certain(*place, txn.id)).map(|(_, txn)| txn);
        let waiting: Vec<Arc<Txn>> = again.into_iter().chain(certain).filter(|txn| !is_decided(txn.id)).collect();
        let numbered = numbered(waiting, decided_of, fresh);
        // Transactions that depend on an archived one refer to that, not to the deletions pushed in its place.
        let is_renamed = |(_, txn): &&(TxnId, Arc<Txn>)| !listed_again.contains(&txn.id);
        numbered.iter().filter(is_renamed).for_each(|(id, txn)| names.note(txn.id, *id));
        outbox.retried = names;
        for (id, rejected) in listed {
            outbox.restore_rejected(RejectedTxn { txn: outbox.called(id, &rejected.txn), ..rejected });
        }
        for (id, txn) in numbered {
            // The acknowledgement refers to rejections of the abandoned history.
            outbox.insert(Arc::new(Txn { settled: OriginCounter(0), ..Txn::clone(&outbox.called(id, &txn)) }));
        }
        outbox
    }

    /// Returns the acknowledged-rejections watermark ([`Txn::settled`]) for the push of a pending transaction. If many
    /// rejections followed its creation, the watermark covers all counters of its origin before the first one that is
    /// pending or whose rejection is not in the journal. The datastore accepts no more rejections from an origin that
    /// acknowledges none.
    #[must_use]
    pub fn settled_before(&self, txn: &Txn) -> OriginCounter {
        let origin = txn.id.origin;
        let waits = self.by_origin.get(&origin).and_then(VecDeque::front).map(|(counter, _)| *counter);
        let unwritten = self.unwritten.range(TxnId { origin, counter: OriginCounter(0) }..).next();
        let unwritten = unwritten.filter(|id| id.origin == origin).map(|id| id.counter);
        let first = waits.into_iter().chain(unwritten).chain([txn.id.counter]).min().unwrap_or_default();
        let recorded = OriginCounter(first.0.saturating_sub(1));
        if recorded.0.saturating_sub(txn.settled.0) >= SETTLED_WITHIN { recorded } else { txn.settled }
    }

    /// Records that the rejection of a transaction is in the journal or was handled.
    pub fn note_written(&mut self, id: TxnId) {
        self.unwritten.remove(&id);
    }

    /// Keeps those kept and pending transactions in `outbox` that the new log has committed; returns those that it has
    /// rejected. A pending transaction may have been resolved in the new log, but not in the abandoned history.
    fn retain_resolved(
        &self,
        decided: &BTreeMap<Origin, OriginRow>,
        lost: &Lost,
        outbox: &mut Outbox,
    ) -> Vec<(TxnId, RejectedTxn)> {
        let mut rejected = Vec::new();
        let kept = self.kept.iter().map(|kept| (&kept.txn, kept.place, Some((kept.seq, kept.learnt))));
        let pending = self.pending.iter().map(|(place, txn)| (txn, *place, None));
        let pending = pending.filter(|_| !fault_injection::is(Bug::DecidedForgotten));
        for (txn, place, known) in kept.chain(pending) {
            let counter = txn.id.counter;
            let Some(row) = decided.get(&txn.id.origin).filter(|row| counter <= row.last_counter) else { continue };
            if let Some((seq, reason)) = row.rejection(counter) {
                // An empty transaction that fills a counter has no author.
                if is_nothing(txn) {
                    continue;
                }
                let conditions = lost.conditions(&txn.conditions);
                let txn = Arc::new(Txn { conditions, ..Txn::clone(txn) });
                rejected.push((txn.id, RejectedTxn { txn, seq, reason: reason.clone() }));
                continue;
            }
            let by_row = if counter == row.last_counter { ResolutionSource::LastOfRow } else { ResolutionSource::Row };
            let (seq, learnt) = match known {
                // The new log may not know what the transaction wrote.
                Some((seq, learnt)) => (seq, if seq <= lost.shared_to() { learnt } else { ResolutionSource::Row }),
                None => (row.last_seq, by_row),
            };
            outbox.kept.note_unseen(txn);
            outbox.kept.keep(RetainedTxn { txn: Arc::clone(txn), seq, place, learnt });
        }
        rejected
    }

    /// Returns a transaction with its new identity, and with conditions that refer to new identities.
    fn called(&self, id: TxnId, txn: &Arc<Txn>) -> Arc<Txn> {
        Arc::new(Txn { id, ..Txn::clone(&self.retried.txn(txn)) })
    }

    /// Returns the origins that have pending, kept or rejected transactions.
    #[must_use]
    pub fn all_origins(&self) -> Vec<Origin> {
        let kept = self.kept.iter().map(|kept| kept.txn.id.origin);
        let rejected = self.rejected.keys().map(|id| id.origin);
        let all: BTreeSet<Origin> = self.origins().into_iter().chain(kept).chain(rejected).collect();
        all.into_iter().collect()
    }

    /// Returns all origins of which the journal may still hold transactions, those of [`Outbox::all_origins`] first.
    #[must_use]
    pub fn known_origins(&self) -> Vec<Origin> {
        let mut origins = self.all_origins();
        let held: std::collections::BTreeSet<Origin> = origins.iter().copied().collect();
        origins.extend(self.taken.keys().filter(|origin| !held.contains(origin)));
        origins
    }

    /// Returns the number of pending transactions, except those that a lost state had resolved.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.pending.len() - self.hidden
    }

    /// Returns the transactions that [`Outbox::depth`] counts, in order.
    pub fn waiting(&self) -> impl Iterator<Item = &Arc<Txn>> {
        self.pending.values().filter(|txn| self.is_shown(txn.id))
    }

    fn is_shown(&self, id: TxnId) -> bool {
        self.decided_before.get(&id.origin).is_none_or(|decided| id.counter > *decided)
    }

    /// Returns the estimated size of the pending transactions in bytes.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Returns the estimated size of the rejected transactions in bytes.
    #[must_use]
    pub fn rejected_bytes(&self) -> usize {
        self.rejected_bytes
    }

    /// Returns the size of an author's pending and rejected transactions.
    #[must_use]
    pub fn held_by(&self, author: i32) -> Held {
        self.shares.of(author)
    }

    /// Returns the pending transactions in order.
    pub fn pending(&self) -> impl Iterator<Item = &Arc<Txn>> {
        self.pending.values()
    }

    /// Returns the rejected transactions.
    #[must_use]
    pub fn rejected(&self) -> &BTreeMap<TxnId, RejectedTxn> {
        &self.rejected
    }

    /// Returns the greatest counter of `origin` that this outbox has seen.
    #[must_use]
    pub fn taken(&self, origin: Origin) -> OriginCounter {
        let taken = self.taken.get(&origin).copied().unwrap_or_default();
        taken.max(self.accepted_before.get(&origin).copied().unwrap_or_default())
    }

    /// Records that an abandoned history had accepted the transactions of an origin up to this counter. Those that were
    /// not pushed again under their own identity were pushed again under another one, or archived. An author that
    /// numbers its own transactions may submit them again, which must not commit them twice.
    pub fn note_accepted_before(&mut self, origin: Origin, counter: OriginCounter) {
        if counter > self.taken(origin) {
            self.accepted_before.insert(origin, counter);
        }
    }

    /// Returns what [`Outbox::note_accepted_before`] has recorded.
    pub fn accepted_before(&self) -> impl Iterator<Item = (Origin, OriginCounter)> {
        self.accepted_before.iter().map(|(origin, counter)| (*origin, *counter))
    }

    /// Returns the counter up to which no transaction of an origin is pending, and an abandoned history had accepted all.
    #[must_use]
    pub fn answered_before(&self, origin: Origin) -> OriginCounter {
        let accepted = self.accepted_before.get(&origin).copied().unwrap_or_default();
        let first =
            self.by_origin.get(&origin).and_then(VecDeque::front).map(|(counter, _)| counter.0.saturating_sub(1));
        first.map_or(accepted, |before| accepted.min(OriginCounter(before)))
    }

    /// Returns the present identity of a transaction that was submitted again, or that has another one since its history
    /// was abandoned; `None` if it has its own, or nothing depends on it any more.
    #[must_use]
    pub fn present_identity(&self, id: TxnId) -> Option<TxnId> {
        self.retried.of(id)
    }

    /// Returns the next pending transaction of the express lane after `place`.
    #[must_use]
    pub fn next_express(&self, place: Option<QueuePosition>) -> Option<(QueuePosition, &Arc<Txn>)> {
        let start = place.map_or(0, |place| place + 1);
        let mut behind = self.pending.range(start..).filter(|(place, _)| !self.bulk.contains(**place));
        behind.next().map(|(place, txn)| (*place, txn))
    }

    /// Returns the pending transactions of the bulk lane after `place`, in order.
    pub fn bulk_after(&self, place: Option<QueuePosition>) -> impl Iterator<Item = (QueuePosition, &Arc<Txn>)> {
        let start = place.map_or(0, |place| place + 1);
        self.bulk.from(start).filter_map(|place| Some((place, self.pending.get(&place)?)))
    }

    /// Returns whether a transaction with these operations and conditions would have to queue behind the bulk lane.
    #[must_use]
    pub fn waits_for_bulk(&self, ops: &[Op], conditions: &[Condition]) -> bool {
        self.bulk.concerns(ops, conditions)
    }

    /// Adds a transaction that is durable locally. Counters of an origin must increase.
    pub fn insert(&mut self, txn: Arc<Txn>) -> QueuePosition {
        let is_bulk = self.bulk.takes(&txn);
        self.insert_in(txn, is_bulk)
    }

    /// Like [`Outbox::insert`], with the lane given by the caller.
    pub fn insert_in(&mut self, txn: Arc<Txn>, is_bulk: bool) -> QueuePosition {
        let place = self.next_place;
        self.next_place += 1;
        let id = txn.id;
        self.taken.insert(id.origin, id.counter);
        // The author submits the transaction again.
        if self.rejected.get(&id).is_some_and(RejectedTxn::is_unsequenced) {
            self.take_rejected(id);
        }
        self.by_origin.entry(id.origin).or_default().push_back((id.counter, place));
        let is_shown = self.is_shown(id);
        self.hidden += usize::from(!is_shown);
        for op in txn.ops.iter().filter(|_| is_shown) {
            let keys = self.overlay.entry(op.collection().clone()).or_default();
            keys.entry(op.key().clone()).or_default().insert(place, op.value().cloned());
        }
        if is_bulk {
            self.bulk.insert(place, &txn);
        }
        self.pending_bytes += txn.bytes_estimate();
        self.shares.add_pending(&txn);
        self.pending.insert(place, txn);
        place
    }

    /// Adds a transaction to the rejected list when the journal is read at open.
    pub fn restore_rejected(&mut self, rejected: RejectedTxn) {
        let id = rejected.txn.id;
        // The author may use the counter again if the log does not contain the rejection.
        if !rejected.is_unsequenced() {
            let taken = self.taken.entry(id.origin).or_default();
            *taken = (*taken).max(id.counter);
        }
        self.put_rejected(rejected);
    }

    /// Removes a transaction from the rejected list.
    pub fn take_rejected(&mut self, id: TxnId) -> Option<RejectedTxn> {
        let taken = self.rejected.remove(&id)?;
        self.rejected_bytes -= taken.txn.bytes_estimate();
        self.shares.take_rejected(&taken.txn);
        if self.rejected.is_empty() && self.pending.is_empty() {
            self.retried.clear();
        }
        Some(taken)
    }

    /// Records that a rejected transaction was submitted again as `to`. Transactions that depend on it, and that are or
    /// will be rejected, now depend on `to`.
    pub fn note_retried(&mut self, of: TxnId, to: TxnId) {
        self.take_rejected(of);
        self.retried.note(of, to);
        for rejected in self.rejected.values_mut() {
            rejected.txn = self.retried.txn(&rejected.txn);
        }
    }

    /// Returns conditions in which transactions that were submitted again have their new identities.
    #[must_use]
    pub fn upon_retried(&self, conditions: &[Condition]) -> Vec<Condition> {
        self.retried.conditions(conditions)
    }

    fn put_rejected(&mut self, rejected: RejectedTxn) {
        let rejected = RejectedTxn { txn: self.retried.txn(&rejected.txn), ..rejected };
        let id = rejected.txn.id;
        self.take_rejected(id);
        self.rejected_bytes += rejected.txn.bytes_estimate();
        self.shares.add_rejected(&rejected.txn);
        self.rejected.insert(id, rejected);
    }

    /// Handles an entry that the state has applied at `seq`.
    pub fn handle_applied(&mut self, seq: Seq, body: &EntryBody) -> Option<ResolvedTxn> {
        let id = body.id()?;
        let queue = self.by_origin.get(&id.origin)?;
        if queue.front().is_none_or(|(counter, _)| *counter > id.counter) {
            // An empty transaction that fills a gap.
            if let Some(expected) = self.gaps.get_mut(&id.origin) {
                *expected = id.counter.next().max(*expected);
            }
            return None;
        }
        let reason = match body {
            EntryBody::Reject { reason, .. } => Some(reason.clone()),
            EntryBody::Commit(_) if self.reused.contains(&id) => Some(Reason::IdentityReused),
            _ => None,
        };
        let rejection = |_| reason.clone().map(|reason| (seq, reason));
        self.decide(id.origin, id.counter, Some(id.counter), seq, rejection).pop()
    }

    /// Compares an entry with the pending transaction of the same identity. Called when the entry arrives, before it is
    /// applied, because the log's chain covers its bytes then. If they differ, the pending transaction is rejected once
    /// the entry is applied.
    pub fn compare_arrived(&mut self, body: &EntryBody) {
        let EntryBody::Commit(arrived) = body else { return };
        if self.pending_of(arrived.id).is_some_and(|pending| !pending.has_contents_of(arrived)) {
            self.reused.insert(arrived.id);
        }
    }

    /// Rejects a pending transaction that the log has not resolved and never will. Returns `None` if it is not pending,
    /// or is an empty transaction that fills a counter, which has no author.
    pub fn refuse(&mut self, id: TxnId, reason: Reason) -> Option<ResolvedTxn> {
        let queue = self.by_origin.get_mut(&id.origin)?;
        let at = queue.binary_search_by_key(&id.counter, |(counter, _)| *counter).ok()?;
        let (_, place) = queue.remove(at)?;
        let last = queue.back().map(|(counter, _)| *counter);
        if queue.is_empty() {
            self.by_origin.remove(&id.origin);
        }
        // The state has the counters resolved before. The origin stays known, because the journal may hold resolved
        // transactions of it.
        self.taken.insert(id.origin, last.unwrap_or_default());
        let txn = self.remove(place).filter(|txn| !is_nothing(txn))?;
        self.put_rejected(RejectedTxn { txn, seq: Seq::ZERO, reason: reason.clone() });
        Some(ResolvedTxn::Rejected(id, Seq::ZERO, reason))
    }

    /// Returns the transaction with this identity if it is pending, rejected or kept.
    #[must_use]
    pub fn find(&self, id: TxnId) -> Option<&Arc<Txn>> {
        let rejected = || self.rejected.get(&id).map(|rejected| &rejected.txn);
        self.pending_of(id).or_else(rejected).or_else(|| self.kept.get(id))
    }

    fn pending_of(&self, id: TxnId) -> Option<&Arc<Txn>> {
        let queue = self.by_origin.get(&id.origin)?;
        let at = queue.binary_search_by_key(&id.counter, |(counter, _)| *counter).ok()?;
        self.pending.get(&queue[at].1)
    }

    /// Handles a state that was opened or replaced and contains `row` for `origin`. All transactions up to its counter
    /// are resolved.
    pub fn handle_row(&mut self, origin: Origin, row: &OriginRow) -> Vec<ResolvedTxn> {
        let taken = self.taken.entry(origin).or_default();
        *taken = (*taken).max(row.last_counter);
        let rejection = |counter| row.rejection(counter).map(|(seq, reason): (Seq, &Reason)| (seq, reason.clone()));
        let reused = self.reused.clone();
        self.decide(origin, row.last_counter, None, row.last_seq, |counter| {
            let is_reused = reused.contains(&TxnId { origin, counter });
            rejection(counter).or_else(|| is_reused.then_some((row.last_seq, Reason::IdentityReused)))
        })
    }

    /// Records that the datastore expects the counter `expected` of `origin` next. Returns the number of counters before
    /// the first pending transaction that it lacks. They were resolved once, so the log and the state have both lost
    /// them, and no member can push them again. Empty transactions take their place ([`Outbox::gap_before`]).
    pub fn note_gap(&mut self, origin: Origin, expected: OriginCounter) -> u64 {
        let first = self.by_origin.get(&origin).and_then(VecDeque::front).map_or(expected, |(counter, _)| *counter);
        if first <= expected {
            self.gaps.remove(&origin);
            return 0;
        }
        self.gaps.insert(origin, expected);
        // What an abandoned history had accepted is not missing: it was pushed again, or archived.
        let accepted = self.accepted_before.get(&origin).copied().unwrap_or_default();
        first.0.saturating_sub(expected.max(accepted.next()).0)
    }

    /// Returns the empty transaction to push before `txn`, if the datastore lacks counters before it. `filled`: the last
    /// counter for which one was pushed.
    #[must_use]
    pub fn gap_before(&self, txn: &Txn, filled: Option<OriginCounter>) -> Option<Txn> {
        let origin = txn.id.origin;
        let expected = *self.gaps.get(&origin)?;
        let first = self.by_origin.get(&origin).and_then(VecDeque::front).map(|(counter, _)| *counter)?;
        let counter = filled.map_or(expected, |filled| expected.max(filled.next()));
        (counter < first).then(|| nothing(TxnId { origin, counter }, txn.time_ms))
    }

    /// Returns the origins that have pending transactions.
    #[must_use]
    pub fn origins(&self) -> Vec<Origin> {
        self.by_origin.keys().copied().collect()
    }

    /// Injected fault: treats all transactions up to `id` as resolved before the state has resolved them.
    pub fn forget_up_to(&mut self, id: TxnId) {
        self.decide(id.origin, id.counter, None, Seq::ZERO, |_| None);
    }

    fn decide(
        &mut self,
        origin: Origin,
        up_to: OriginCounter,
        seen: Option<OriginCounter>,
        seq: Seq,
        rejection: impl Fn(OriginCounter) -> Option<(Seq, Reason)>,
    ) -> Vec<ResolvedTxn> {
        let mut decided = Vec::new();
        let Some(queue) = self.by_origin.get_mut(&origin) else { return decided };
        let mut places = Vec::new();
        while let Some((counter, place)) = queue.front().copied().filter(|(counter, _)| *counter <= up_to) {
            queue.pop_front();
            places.push((counter, place));
        }
        if queue.is_empty() {
            self.by_origin.remove(&origin);
        }
        for (counter, place) in places {
            let Some(txn) = self.remove(place) else { continue };
            let id = TxnId { origin, counter };
            self.reused.remove(&id);
            decided.push(match rejection(counter) {
                Some(_) if fault_injection::is(Bug::ForgetRejected) => continue,
                // An empty transaction that fills the counter of one rejected here has no author.
                Some(_) if is_nothing(&txn) && !fault_injection::is(Bug::FillerIsRejected) => continue,
                Some((seq, reason)) => {
                    self.put_rejected(RejectedTxn { txn, seq, reason: reason.clone() });
                    self.unwritten.insert(id);
                    ResolvedTxn::Rejected(id, seq, reason)
                }
                None => {
                    let learnt = match counter {
                        _ if seen == Some(counter) => ResolutionSource::Entry,
                        _ if counter == up_to => ResolutionSource::LastOfRow,
                        _ => ResolutionSource::Row,
                    };
                    self.kept.keep(RetainedTxn { txn, seq, place, learnt });
                    ResolvedTxn::Committed(id, seq)
                }
            });
        }
        decided
    }

    fn remove(&mut self, place: QueuePosition) -> Option<Arc<Txn>> {
        let txn = self.pending.remove(&place)?;
        self.pending_bytes -= txn.bytes_estimate();
        self.shares.take_pending(&txn);
        self.hidden -= usize::from(!self.is_shown(txn.id));
        self.bulk.remove(place, &txn);
        for op in &txn.ops {
            if fault_injection::is(Bug::OverlayStays) {
                break;
            }
            let Some(keys) = self.overlay.get_mut(op.collection()) else { continue };
            if let Some(layer) = keys.get_mut(op.key()) {
                layer.remove(&place);
                if layer.is_empty() || fault_injection::is(Bug::OverlayDropped) {
                    keys.remove(op.key());
                }
            }
            if keys.is_empty() {
                self.overlay.remove(op.collection());
            }
        }
        Some(txn)
    }

    /// Returns the value of a key in the optimistic view.
    #[must_use]
    pub fn look_up(&self, collection: &Collection, key: &Key) -> OverlayRead {
        let layer = self.overlay.get(collection).and_then(|keys| keys.get(key));
        layer.and_then(|layer| layer.last_key_value()).map_or(OverlayRead::Untouched, |(_, value)| as_overlaid(value))
    }

    /// Returns the last pending transaction that wrote a key.
    #[must_use]
    pub fn last_writer(&self, collection: &Collection, key: &Key) -> Option<TxnId> {
        let (place, _) = self.overlay.get(collection)?.get(key)?.last_key_value()?;
        self.pending.get(place).map(|txn| txn.id)
    }

    /// Returns the last pending transaction that wrote a key, if a pending one creates it, under the condition that it is
    /// absent, and none deletes it after that. If the creation is rejected, what is under the key is another object.
    #[must_use]
    pub fn last_writer_since_creation(&self, collection: &Collection, key: &Key) -> Option<TxnId> {
        let layer = self.overlay.get(collection)?.get(key)?;
        let (last, value) = layer.last_key_value()?;
        let absent = Condition::Absent { collection: collection.clone(), key: key.clone() };
        let is_creation =
            |place: &QueuePosition| self.pending.get(place).is_some_and(|txn| txn.conditions.contains(&absent));
        let is_created = value.is_some() && layer.keys().any(is_creation);
        self.pending.get(last).filter(|_| is_created).map(|txn| txn.id)
    }

    /// Returns the keys of a collection that start with `prefix` and that pending transactions write, in key order.
    #[must_use]
    pub fn scan(&self, collection: &Collection, prefix: &str) -> Vec<(Key, OverlayRead)> {
        let Some(keys) = self.overlay.get(collection) else { return Vec::new() };
        let from = keys.iter().skip_while(|(key, _)| key.as_str() < prefix);
        let matching = from.take_while(|(key, _)| key.as_str().starts_with(prefix));
        let top =
            |(key, layer): (&Key, &Layer)| layer.last_key_value().map(|(_, value)| (key.clone(), as_overlaid(value)));
        matching.filter_map(top).collect()
    }

    /// Returns the collections that pending transactions write.
    pub fn collections(&self) -> impl Iterator<Item = &Collection> {
        self.overlay.keys()
    }
}

fn as_overlaid(value: &Option<Bytes>) -> OverlayRead {
    value.as_ref().map_or(OverlayRead::Deleted, |value| OverlayRead::Put(value.clone()))
}

/// Returns the keys whose optimistic view a transaction changes, for watchers.
pub fn touched(txn: &Txn) -> impl Iterator<Item = (&Collection, &Key)> {
    txn.ops.iter().map(|op: &Op| (op.collection(), op.key()))
}

mod sequences;

#[cfg(test)]
mod tests;
