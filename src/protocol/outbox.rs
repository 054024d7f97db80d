//! Local transactions on their way to the datastore, and the optimistic view that they give.
//!
//! A transaction enters when it is durable locally and leaves when the *state* has decided it: the origin's row in
//! the state, which changes atomically with the position, says up to which counter everything is decided. So a
//! crash at any moment neither loses nor doubles a transaction. Answers to pushes only inform; they decide nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::model::txn::SETTLED_WITHIN;
use crate::model::{
    Collection, Condition, EntryBody, Key, Op, Origin, OriginCounter, OriginRow, Reason, Seq, Txn, TxnId,
};
use crate::planted::{self, Bug};

use super::lanes::Bulk;
use super::rebase::{Leaving, Lost};
use super::retried::Retried;
use super::shares::{Held, Shares};

/// Place in the local queue: rises with each transaction, for the life of the process.
pub type Place = u64;

/// A rejected transaction that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedTxn {
    /// The transaction.
    pub txn: Arc<Txn>,
    /// Sequence of the rejection.
    pub seq: Seq,
    /// Why.
    pub reason: Reason,
}

impl RejectedTxn {
    /// Whether the log knows nothing of the rejection: it was refused before it could be sequenced.
    #[must_use]
    pub fn is_unsequenced(&self) -> bool {
        self.seq == Seq::ZERO
    }
}

/// What became of a pending transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Committed at this sequence (after a resync: at or before it).
    Committed(TxnId, Seq),
    /// Rejected; it has moved to the rejected list.
    Rejected(TxnId, Seq, Reason),
}

/// Value of a key in the optimistic view: written by a pending transaction, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlaid {
    /// No pending transaction touches it.
    Untouched,
    /// A pending transaction put this value.
    Put(Bytes),
    /// A pending transaction deletes it.
    Deleted,
}

/// An own transaction that was committed, kept until every member that counts has it: were the datastore rebuilt from a
/// member that is behind it, it would be pushed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The transaction.
    pub txn: Arc<Txn>,
    /// Its sequence, or a later one.
    pub seq: Seq,
    /// How that is known.
    pub learnt: Learnt,
    place: Place,
}

/// From what it was learnt that a transaction is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// From its own entry.
    Entry,
    /// From the row of its origin in a state, of which it was the last: the row has its sequence.
    LastOfRow,
    /// From the row of its origin, which has a later sequence.
    Row,
}

impl Learnt {
    /// Whether the sequence that is kept is its own.
    #[must_use]
    pub fn is_exact(self) -> bool {
        self != Learnt::Row
    }
}

/// Most transactions that are kept, and most bytes of them. Beyond it the oldest go.
const KEPT_TXNS_MAX: usize = 4096;
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Most counters in a row that are filled with nothing.
const FILLED_MAX: u64 = 1024;

fn nothing(id: TxnId, time_ms: u64) -> Txn {
    Txn { id, settled: OriginCounter(0), time_ms, note: Bytes::new(), conditions: Vec::new(), ops: Vec::new() }
}

fn is_nothing(txn: &Txn) -> bool {
    txn.ops.is_empty() && txn.conditions.is_empty() && txn.note.is_empty()
}

/// Identities of what waits, in its order, with nothing in the place of what is missing between.
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

type Layer = BTreeMap<Place, Option<Bytes>>;

/// Pending and rejected transactions with their overlay.
#[derive(Debug, Default)]
pub struct Outbox {
    pending: BTreeMap<Place, Arc<Txn>>,
    by_origin: BTreeMap<Origin, VecDeque<(OriginCounter, Place)>>,
    taken: HashMap<Origin, OriginCounter>,
    overlay: BTreeMap<Collection, BTreeMap<Key, Layer>>,
    bulk: Bulk,
    rejected: BTreeMap<TxnId, RejectedTxn>,
    rejected_bytes: usize,
    shares: Shares,
    retried: Retried,
    /// Pending ones of which the log says something else.
    reused: BTreeSet<TxnId>,
    /// Rejections that are not known to be written down.
    unwritten: BTreeSet<TxnId>,
    next_place: Place,
    pending_bytes: usize,
    keeps: bool,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// By their marks, those of them whose own entry was not seen: the log may not name them as the writers of what they wrote.
    unseen: HashMap<Seq, Arc<Txn>>,
    /// What a state that was lost had decided, up to these counters.
    decided_before: HashMap<Origin, OriginCounter>,
    /// How many of the pending ones these are.
    hidden: usize,
    /// Of what is pending before this place it is not known whether a state that was lost had decided it.
    doubted_to: Place,
}

impl Outbox {
    /// One that keeps committed transactions for a while.
    #[must_use]
    pub fn keeping() -> Outbox {
        Outbox { keeps: true, ..Outbox::default() }
    }

    /// One that does not show what was decided already, up to these counters, by a state that was lost: the same objects may
    /// have changed since. It waits, and is pushed, as everything does of which the present state knows nothing.
    #[must_use]
    pub fn without_overlay_of(self, decided: impl IntoIterator<Item = (Origin, OriginCounter)>) -> Outbox {
        let decided = decided.into_iter().filter(|_| !planted::is(Bug::DecidedIsShownAgain));
        Outbox { decided_before: decided.collect(), ..self }
    }

    /// One of whose pending transactions it is not known whether a state that was lost had decided them.
    #[must_use]
    pub fn doubted(self) -> Outbox {
        Outbox { doubted_to: self.next_place, ..self }
    }

    /// Pending transactions that a state which was lost had decided, or may have decided, and that a state with these counters
    /// knows nothing of. What came after them is not known, so they must not be pushed to a log that has not decided them.
    #[must_use]
    pub fn lost_with_state(&self, decided: &BTreeMap<Origin, OriginCounter>) -> Vec<Arc<Txn>> {
        let is_lacking = |id: TxnId| decided.get(&id.origin).is_none_or(|decided| id.counter > *decided);
        let lost = self.pending.iter().filter(|(place, txn)| !self.is_certain(**place, txn.id) && is_lacking(txn.id));
        lost.map(|(_, txn)| Arc::clone(txn)).collect()
    }

    /// Whether anything that waits or was rejected was made upon a write after `seq`.
    #[must_use]
    pub fn is_upon_later_than(&self, seq: Seq) -> bool {
        let rejected = self.rejected.values().map(|rejected| &rejected.txn);
        let mut conditions = self.pending.values().chain(rejected).flat_map(|txn| &txn.conditions);
        let is_later = |condition: &Condition| match condition {
            Condition::Version { version, .. } => condition.mark().is_none() && *version > seq,
            _ => false,
        };
        conditions.any(is_later) && !planted::is(Bug::UponLostStays)
    }

    /// Whether a pending transaction was never decided.
    fn is_certain(&self, place: Place, id: TxnId) -> bool {
        self.is_shown(id) && place >= self.doubted_to
    }

    /// The committed transactions that are kept, oldest first.
    pub fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.kept.iter()
    }

    /// Estimated bytes of what is kept.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Every member that counts has durably applied everything up to `floor`.
    pub fn forget_passed(&mut self, floor: Seq) {
        while self.kept.front().is_some_and(|kept| kept.seq <= floor) {
            self.forget_oldest();
        }
    }

    fn keep(&mut self, txn: Arc<Txn>, seq: Seq, place: Place, learnt: Learnt) {
        if !self.keeps {
            return;
        }
        self.kept_bytes += txn.bytes_estimate();
        if learnt != Learnt::Entry {
            self.unseen.insert(txn.id.mark(), Arc::clone(&txn));
        }
        // In the order in which they were made, which is not always that in which it was learnt that they are decided.
        let at = self.kept.partition_point(|kept| kept.place < place);
        self.kept.insert(at, Kept { txn, seq, learnt, place });
        while self.kept.len() > KEPT_TXNS_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.kept_bytes -= kept.txn.bytes_estimate();
            self.unseen.remove(&kept.txn.id.mark());
        }
    }

    /// Committed transactions that `txn` was made upon, and of which the log may not know that they wrote what it holds.
    pub fn unseen_before(&self, txn: &Txn) -> impl Iterator<Item = &Arc<Txn>> {
        let marks = txn.conditions.iter().filter_map(Condition::mark).filter(|_| !self.unseen.is_empty());
        marks.filter_map(|mark| self.unseen.get(&mark))
    }

    /// What this outbox becomes under a log that has decided less than it had. What is pushed again waits before what is pending;
    /// what the log has committed, and other members may lack, is kept on, and what it has rejected is put on the list. A counter
    /// that nothing is left of is filled by a transaction without operations; where so many are that filling them makes no sense, what follows goes on under an origin
    /// that `fresh` gives. A rejection that the log does not know gets such an origin as well, and so does what is archived: it
    /// stays on the list, and its old identity belongs to what fills its place, or to the deletions of it that are pushed `again`. What is lost with a state
    /// ([`Outbox::lost_with_state`]) is left out. Conditions made in the history that is left are translated (`rebase.rs`), and
    /// name transactions as they are called from now on.
    #[must_use]
    pub fn requeued(&self, leaving: Leaving<'_>, mut fresh: impl FnMut() -> Origin) -> Outbox {
        let Leaving { decided, again, archived, reason, lost } = leaving;
        let decided_of = |origin: Origin| decided.get(&origin).map(|row| row.last_counter).unwrap_or_default();
        let is_decided = |id: TxnId| id.counter <= decided_of(id.origin);
        let mut outbox = Outbox { keeps: self.keeps, next_place: self.next_place, ..Outbox::default() };
        let mut names = self.retried.clone();
        let mut alone = |names: &mut Retried, from: TxnId| {
            let id = TxnId { origin: fresh(), counter: OriginCounter(1) };
            names.note(from, id);
            id
        };
        let mut listed = self.keep_decided(decided, lost, &mut outbox);
        for (id, rejected) in &self.rejected {
            let id = if is_decided(*id) { *id } else { alone(&mut names, *id) };
            let conditions = lost.conditions(&rejected.txn.conditions);
            let txn = Arc::new(Txn { conditions, ..Txn::clone(&rejected.txn) });
            listed.push((id, RejectedTxn { txn, ..rejected.clone() }));
        }
        let listed_again: BTreeSet<TxnId> = archived.iter().map(|txn| txn.id).collect();
        for txn in archived.into_iter().filter(|_| !planted::is(Bug::ArchivedNotListed)) {
            let id = alone(&mut names, txn.id);
            let txn = Arc::new(Txn { settled: OriginCounter(0), ..Txn::clone(&txn) });
            listed.push((id, RejectedTxn { txn, seq: Seq::ZERO, reason: reason.clone() }));
        }
        let certain = self.pending.iter().filter(|(place, txn)| self.is_certain(**place, txn.id)).map(|(_, txn)| txn);
        let waiting = certain.map(|txn| {
            let conditions = lost.conditions(&txn.conditions);
            Arc::new(Txn { conditions, ..Txn::clone(txn) })
        });
        let waiting: Vec<Arc<Txn>> = again.into_iter().chain(waiting).filter(|txn| !is_decided(txn.id)).collect();
        let numbered = numbered(waiting, decided_of, fresh);
        // What was made upon an archived one follows that, not the deletions that are pushed in its place.
        let is_renamed = |(_, txn): &&(TxnId, Arc<Txn>)| !listed_again.contains(&txn.id);
        numbered.iter().filter(is_renamed).for_each(|(id, txn)| names.note(txn.id, *id));
        outbox.retried = names;
        for (id, rejected) in listed {
            outbox.restore_rejected(RejectedTxn { txn: outbox.called(id, &rejected.txn), ..rejected });
        }
        for (id, txn) in numbered {
            // What it says of rejections, it says of another history.
            outbox.insert(Arc::new(Txn { settled: OriginCounter(0), ..Txn::clone(&outbox.called(id, &txn)) }));
        }
        outbox
    }

    /// What the push of a pending transaction says of rejections ([`Txn::settled`]). When many were rejected since it was made,
    /// that is all of its origin before what still waits, as far as they are written down: the datastore takes no more rejections
    /// from an origin that says of none that it has them.
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

    /// The rejection of a transaction is written down, or dealt with.
    pub fn note_written(&mut self, id: TxnId) {
        self.unwritten.remove(&id);
    }

    /// Keeps on in `outbox` what a log has decided of the kept and the pending transactions; returns those that it has rejected.
    /// A pending one may have been decided in the history that the log goes on from, and not in the one that is left.
    fn keep_decided(
        &self,
        decided: &BTreeMap<Origin, OriginRow>,
        lost: &Lost,
        outbox: &mut Outbox,
    ) -> Vec<(TxnId, RejectedTxn)> {
        let mut rejected = Vec::new();
        let kept = self.kept.iter().map(|kept| (&kept.txn, kept.place, Some((kept.seq, kept.learnt))));
        let pending = self.pending.iter().map(|(place, txn)| (txn, *place, None));
        let pending = pending.filter(|_| !planted::is(Bug::DecidedForgotten));
        for (txn, place, known) in kept.chain(pending) {
            let counter = txn.id.counter;
            let Some(row) = decided.get(&txn.id.origin).filter(|row| counter <= row.last_counter) else { continue };
            if let Some((seq, reason)) = row.rejection(counter) {
                // What only fills a place nobody made.
                if is_nothing(txn) {
                    continue;
                }
                let conditions = lost.conditions(&txn.conditions);
                let txn = Arc::new(Txn { conditions, ..Txn::clone(txn) });
                rejected.push((txn.id, RejectedTxn { txn, seq, reason: reason.clone() }));
                continue;
            }
            let by_row = if counter == row.last_counter { Learnt::LastOfRow } else { Learnt::Row };
            let (seq, learnt) = match known {
                // The log that goes on need not know what it wrote.
                Some((seq, learnt)) => (seq, if seq <= lost.shared_to() { learnt } else { Learnt::Row }),
                None => (row.last_seq, by_row),
            };
            outbox.keep(Arc::clone(txn), seq, place, learnt);
            if outbox.keeps {
                outbox.unseen.insert(txn.id.mark(), Arc::clone(txn));
            }
        }
        rejected
    }

    /// A transaction under the identity that it has from now on, upon others as they are called.
    fn called(&self, id: TxnId, txn: &Arc<Txn>) -> Arc<Txn> {
        Arc::new(Txn { id, ..Txn::clone(&self.retried.txn(txn)) })
    }

    /// Origins that have pending, kept or rejected transactions.
    #[must_use]
    pub fn all_origins(&self) -> Vec<Origin> {
        let kept = self.kept.iter().map(|kept| kept.txn.id.origin);
        let rejected = self.rejected.keys().map(|id| id.origin);
        let all: BTreeSet<Origin> = self.origins().into_iter().chain(kept).chain(rejected).collect();
        all.into_iter().collect()
    }

    /// Origins of everything that the journal may still hold, those of [`Outbox::all_origins`] first.
    #[must_use]
    pub fn known_origins(&self) -> Vec<Origin> {
        let mut origins = self.all_origins();
        let held: std::collections::BTreeSet<Origin> = origins.iter().copied().collect();
        origins.extend(self.taken.keys().filter(|origin| !held.contains(origin)));
        origins
    }

    /// Number of pending transactions, without those that a state that was lost had decided.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.pending.len() - self.hidden
    }

    /// The transactions that [`Outbox::depth`] counts, in order.
    pub fn waiting(&self) -> impl Iterator<Item = &Arc<Txn>> {
        self.pending.values().filter(|txn| self.is_shown(txn.id))
    }

    fn is_shown(&self, id: TxnId) -> bool {
        self.decided_before.get(&id.origin).is_none_or(|decided| id.counter > *decided)
    }

    /// Estimated bytes of pending transactions.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Estimated bytes of rejected transactions.
    #[must_use]
    pub fn rejected_bytes(&self) -> usize {
        self.rejected_bytes
    }

    /// What is an author's of both.
    #[must_use]
    pub fn held_by(&self, author: i32) -> Held {
        self.shares.of(author)
    }

    /// The pending transactions in order.
    pub fn pending(&self) -> impl Iterator<Item = &Arc<Txn>> {
        self.pending.values()
    }

    /// The rejected list.
    #[must_use]
    pub fn rejected(&self) -> &BTreeMap<TxnId, RejectedTxn> {
        &self.rejected
    }

    /// Greatest counter of `origin` that this outbox has seen.
    #[must_use]
    pub fn taken(&self, origin: Origin) -> OriginCounter {
        self.taken.get(&origin).copied().unwrap_or_default()
    }

    /// The next pending transaction of the express lane after `place`, to be pushed.
    #[must_use]
    pub fn next_express(&self, place: Option<Place>) -> Option<(Place, &Arc<Txn>)> {
        let start = place.map_or(0, |place| place + 1);
        let mut behind = self.pending.range(start..).filter(|(place, _)| !self.bulk.contains(**place));
        behind.next().map(|(place, txn)| (*place, txn))
    }

    /// The pending transactions of the bulk lane after `place`, in order.
    pub fn bulk_after(&self, place: Option<Place>) -> impl Iterator<Item = (Place, &Arc<Txn>)> {
        let start = place.map_or(0, |place| place + 1);
        self.bulk.from(start).filter_map(|place| Some((place, self.pending.get(&place)?)))
    }

    /// Whether a transaction of these operations and conditions would belong into the bulk lane for what waits there.
    #[must_use]
    pub fn waits_for_bulk(&self, ops: &[Op], conditions: &[Condition]) -> bool {
        self.bulk.concerns(ops, conditions)
    }

    /// Takes in a transaction that is durable locally. Counters of one origin must rise.
    pub fn insert(&mut self, txn: Arc<Txn>) -> Place {
        let is_bulk = self.bulk.takes(&txn);
        self.insert_in(txn, is_bulk)
    }

    /// [`Outbox::insert`] into a known lane.
    pub(crate) fn insert_in(&mut self, txn: Arc<Txn>, is_bulk: bool) -> Place {
        let place = self.next_place;
        self.next_place += 1;
        let id = txn.id;
        self.taken.insert(id.origin, id.counter);
        // Its maker gives it again.
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

    /// Puts a transaction on the rejected list directly, when the journal is read at open.
    pub fn restore_rejected(&mut self, rejected: RejectedTxn) {
        let id = rejected.txn.id;
        // One that the log knows nothing of leaves its counter to its maker.
        if !rejected.is_unsequenced() {
            let taken = self.taken.entry(id.origin).or_default();
            *taken = (*taken).max(id.counter);
        }
        self.put_rejected(rejected);
    }

    /// Takes a rejected transaction off the list.
    pub fn take_rejected(&mut self, id: TxnId) -> Option<RejectedTxn> {
        let taken = self.rejected.remove(&id)?;
        self.rejected_bytes -= taken.txn.bytes_estimate();
        self.shares.take_rejected(&taken.txn);
        if self.rejected.is_empty() && self.pending.is_empty() {
            self.retried.clear();
        }
        Some(taken)
    }

    /// A rejected transaction was submitted again as `to`: what was made upon it, and is or will be rejected, is upon that one.
    pub fn note_retried(&mut self, of: TxnId, to: TxnId) {
        self.take_rejected(of);
        self.retried.note(of, to);
        for rejected in self.rejected.values_mut() {
            rejected.txn = self.retried.txn(&rejected.txn);
        }
    }

    /// Conditions as they are upon what was submitted again meanwhile.
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

    /// The state has applied an entry at `seq`.
    pub fn handle_applied(&mut self, seq: Seq, body: &EntryBody) -> Option<Decided> {
        let id = body.id()?;
        let queue = self.by_origin.get(&id.origin)?;
        if queue.front().is_none_or(|(counter, _)| *counter > id.counter) {
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

    /// Compares an entry with what is pending under its identity, as it arrives and before it is applied: its bytes are covered by
    /// the log's chain then. Where the two differ, what is pending is rejected once the entry is applied.
    pub fn compare_arrived(&mut self, body: &EntryBody) {
        let EntryBody::Commit(arrived) = body else { return };
        if self.pending_of(arrived.id).is_some_and(|pending| !pending.has_contents_of(arrived)) {
            self.reused.insert(arrived.id);
        }
    }

    /// Puts a pending transaction on the rejected list before the log has decided it, and never will.
    pub fn refuse(&mut self, id: TxnId, reason: Reason) -> Option<Decided> {
        let queue = self.by_origin.get_mut(&id.origin)?;
        let at = queue.binary_search_by_key(&id.counter, |(counter, _)| *counter).ok()?;
        let (_, place) = queue.remove(at)?;
        let last = queue.back().map(|(counter, _)| *counter);
        if queue.is_empty() {
            self.by_origin.remove(&id.origin);
        }
        // What is known of the origin otherwise is in the state. Known it stays: the journal may hold what was decided before.
        self.taken.insert(id.origin, last.unwrap_or_default());
        let txn = self.remove(place)?;
        self.put_rejected(RejectedTxn { txn, seq: Seq::ZERO, reason: reason.clone() });
        Some(Decided::Rejected(id, Seq::ZERO, reason))
    }

    /// The transaction of this identity, as long as it is pending, rejected or kept.
    #[must_use]
    pub fn find(&self, id: TxnId) -> Option<&Arc<Txn>> {
        let rejected = || self.rejected.get(&id).map(|rejected| &rejected.txn);
        let kept = || self.kept.iter().map(|kept| &kept.txn).find(|txn| txn.id == id);
        self.pending_of(id).or_else(rejected).or_else(kept)
    }

    fn pending_of(&self, id: TxnId) -> Option<&Arc<Txn>> {
        let queue = self.by_origin.get(&id.origin)?;
        let at = queue.binary_search_by_key(&id.counter, |(counter, _)| *counter).ok()?;
        self.pending.get(&queue[at].1)
    }

    /// The state was opened or replaced: `row` is what it knows of `origin`. Everything up to its counter is decided.
    pub fn handle_row(&mut self, origin: Origin, row: &OriginRow) -> Vec<Decided> {
        let taken = self.taken.entry(origin).or_default();
        *taken = (*taken).max(row.last_counter);
        let rejection = |counter| row.rejection(counter).map(|(seq, reason): (Seq, &Reason)| (seq, reason.clone()));
        let reused = self.reused.clone();
        self.decide(origin, row.last_counter, None, row.last_seq, |counter| {
            let is_reused = reused.contains(&TxnId { origin, counter });
            rejection(counter).or_else(|| is_reused.then_some((row.last_seq, Reason::IdentityReused)))
        })
    }

    /// Origins that have pending transactions.
    #[must_use]
    pub fn origins(&self) -> Vec<Origin> {
        self.by_origin.keys().copied().collect()
    }

    /// A planted fault: takes everything up to a transaction for decided before the state says so.
    pub(crate) fn forget_up_to(&mut self, id: TxnId) {
        self.decide(id.origin, id.counter, None, Seq::ZERO, |_| None);
    }

    fn decide(
        &mut self,
        origin: Origin,
        up_to: OriginCounter,
        seen: Option<OriginCounter>,
        seq: Seq,
        rejection: impl Fn(OriginCounter) -> Option<(Seq, Reason)>,
    ) -> Vec<Decided> {
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
                Some(_) if planted::is(Bug::ForgetRejected) => continue,
                // It only fills the place of one that was rejected here, and nobody made it.
                Some(_) if is_nothing(&txn) && !planted::is(Bug::FillerIsRejected) => continue,
                Some((seq, reason)) => {
                    self.put_rejected(RejectedTxn { txn, seq, reason: reason.clone() });
                    self.unwritten.insert(id);
                    Decided::Rejected(id, seq, reason)
                }
                None => {
                    let learnt = match counter {
                        _ if seen == Some(counter) => Learnt::Entry,
                        _ if counter == up_to => Learnt::LastOfRow,
                        _ => Learnt::Row,
                    };
                    self.keep(txn, seq, place, learnt);
                    Decided::Committed(id, seq)
                }
            });
        }
        decided
    }

    fn remove(&mut self, place: Place) -> Option<Arc<Txn>> {
        let txn = self.pending.remove(&place)?;
        self.pending_bytes -= txn.bytes_estimate();
        self.shares.take_pending(&txn);
        self.hidden -= usize::from(!self.is_shown(txn.id));
        self.bulk.remove(place, &txn);
        for op in &txn.ops {
            if planted::is(Bug::OverlayStays) {
                break;
            }
            let Some(keys) = self.overlay.get_mut(op.collection()) else { continue };
            if let Some(layer) = keys.get_mut(op.key()) {
                layer.remove(&place);
                if layer.is_empty() || planted::is(Bug::OverlayDropped) {
                    keys.remove(op.key());
                }
            }
            if keys.is_empty() {
                self.overlay.remove(op.collection());
            }
        }
        Some(txn)
    }

    /// What the pending transactions make of a key.
    #[must_use]
    pub fn look_up(&self, collection: &Collection, key: &Key) -> Overlaid {
        let layer = self.overlay.get(collection).and_then(|keys| keys.get(key));
        layer.and_then(|layer| layer.last_key_value()).map_or(Overlaid::Untouched, |(_, value)| as_overlaid(value))
    }

    /// The pending transaction that wrote a key last.
    #[must_use]
    pub fn last_writer(&self, collection: &Collection, key: &Key) -> Option<TxnId> {
        let (place, _) = self.overlay.get(collection)?.get(key)?.last_key_value()?;
        self.pending.get(place).map(|txn| txn.id)
    }

    /// What the pending transactions make of the keys of a collection that start with `prefix`, in key order.
    #[must_use]
    pub fn scan(&self, collection: &Collection, prefix: &str) -> Vec<(Key, Overlaid)> {
        let Some(keys) = self.overlay.get(collection) else { return Vec::new() };
        let from = keys.iter().skip_while(|(key, _)| key.as_str() < prefix);
        let matching = from.take_while(|(key, _)| key.as_str().starts_with(prefix));
        let top =
            |(key, layer): (&Key, &Layer)| layer.last_key_value().map(|(_, value)| (key.clone(), as_overlaid(value)));
        matching.filter_map(top).collect()
    }

    /// Collections that pending transactions touch.
    pub fn collections(&self) -> impl Iterator<Item = &Collection> {
        self.overlay.keys()
    }
}

fn as_overlaid(value: &Option<Bytes>) -> Overlaid {
    value.as_ref().map_or(Overlaid::Deleted, |value| Overlaid::Put(value.clone()))
}

/// The keys whose optimistic view a transaction changes, for watchers.
pub fn touched(txn: &Txn) -> impl Iterator<Item = (&Collection, &Key)> {
    txn.ops.iter().map(|op: &Op| (op.collection(), op.key()))
}

#[cfg(test)]
mod tests;
