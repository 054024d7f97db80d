//! Committed local transactions that are kept, because they have to be pushed again if the log loses them.
//!
//! The memory for them is bounded, and the oldest are dropped first. Transactions that delete are bounded apart from
//! those that only put: a put that is dropped is still an object of the state, so a comparison of two states finds it,
//! whereas a deletion that is dropped leaves nothing but a row among the state's recent deletions, without its author.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Condition, Seq, Txn, TxnId, deletions};

use super::outbox::QueuePosition;

/// A committed transaction of this replica. It is kept until every member within retention has it, because it has to be
/// pushed again if the datastore is rebuilt from a member that lacks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedTxn {
    /// The transaction.
    pub txn: Arc<Txn>,
    /// Its sequence, or a later one if [`ResolutionSource::is_exact`] is false.
    pub seq: Seq,
    /// Source of the sequence.
    pub learnt: ResolutionSource,
    pub(super) place: QueuePosition,
}

/// Source from which the replica learned that a transaction is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolutionSource {
    /// The transaction's own entry.
    Entry,
    /// The row of its origin in a state, as the last transaction of that row. The row has its sequence.
    LastOfRow,
    /// The row of its origin, which has a later sequence.
    Row,
    /// A record of the outbox journal, written before a restart.
    Recorded,
}

impl ResolutionSource {
    /// Returns whether the recorded sequence is that of the transaction.
    #[must_use]
    pub fn is_exact(self) -> bool {
        self != ResolutionSource::Row
    }
}

/// Limits of kept transactions. Transactions that only put, that do both, and that only delete are counted apart.
#[derive(Clone, Copy, Debug)]
pub struct RetentionLimits {
    /// Maximum number of transactions that only put, and of those that do both.
    pub txns: usize,
    /// Maximum number of operations of transactions that only delete.
    pub deletions: usize,
    /// Maximum estimated size in bytes, of each of the three. Conditions do not count: those that are added when a
    /// transaction is pushed again must not end its retention.
    pub bytes: usize,
}

impl Default for RetentionLimits {
    fn default() -> RetentionLimits {
        RetentionLimits { txns: 4096, deletions: deletions::ROWS_MAX, bytes: 8 << 20 }
    }
}

/// Kinds of transactions with limits of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Puts,
    Both,
    Deletes,
}

const KINDS: [Kind; 3] = [Kind::Puts, Kind::Both, Kind::Deletes];

impl Kind {
    fn of(txn: &Txn) -> Kind {
        let deletes = txn.ops.iter().filter(|op| op.value().is_none()).count();
        match deletes {
            0 => Kind::Puts,
            _ if fault_injection::is(Bug::DeletionsKeptWithPuts) => Kind::Puts,
            _ if deletes == txn.ops.len() => Kind::Deletes,
            _ => Kind::Both,
        }
    }

    /// Returns how much of the maximum number a transaction takes.
    fn weight(self, txn: &Txn) -> usize {
        if self == Kind::Deletes { txn.ops.len() } else { 1 }
    }
}

/// Kept transactions of one kind, oldest first.
#[derive(Debug, Default)]
struct Shelf {
    txns: VecDeque<RetainedTxn>,
    weight: usize,
    bytes: usize,
}

/// Kept transactions.
#[derive(Debug, Default)]
pub(super) struct RetainedTxns {
    /// `None` if nothing is kept.
    limits: Option<RetentionLimits>,
    /// In the order of [`KINDS`].
    shelves: [Shelf; KINDS.len()],
    /// Place of each transaction.
    places: HashMap<TxnId, QueuePosition>,
    /// The transactions whose own entry was not seen, by mark. The log may not record them as writers of their objects.
    unseen: HashMap<Seq, Arc<Txn>>,
    /// Exact sequences that are not known to be in the journal.
    unrecorded: BTreeMap<TxnId, Seq>,
}

impl RetainedTxns {
    pub(super) fn within(limits: Option<RetentionLimits>) -> RetainedTxns {
        RetainedTxns { limits, ..RetainedTxns::default() }
    }

    pub(super) fn limits(&self) -> Option<RetentionLimits> {
        self.limits
    }

    /// Returns the transactions in the order in which they were created.
    pub(super) fn iter(&self) -> impl Iterator<Item = &RetainedTxn> {
        let mut all: Vec<&RetainedTxn> = self.shelves.iter().flat_map(|shelf| &shelf.txns).collect();
        all.sort_by_key(|kept| kept.place);
        all.into_iter()
    }

    pub(super) fn bytes(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.bytes).sum()
    }

    pub(super) fn get(&self, id: TxnId) -> Option<&Arc<Txn>> {
        let place = *self.places.get(&id)?;
        self.shelves.iter().find_map(|shelf| {
            let at = shelf.txns.binary_search_by_key(&place, |kept| kept.place).ok()?;
            Some(&shelf.txns[at].txn)
        })
    }

    pub(super) fn keep(&mut self, kept: RetainedTxn) {
        let Some(limits) = self.limits else { return };
        let RetainedTxn { txn, place, learnt, .. } = &kept;
        let kind = Kind::of(txn);
        if *learnt != ResolutionSource::Entry {
            self.unseen.insert(txn.id.mark(), Arc::clone(txn));
        }
        if learnt.is_exact() {
            self.unrecorded.insert(txn.id, kept.seq);
        }
        self.places.insert(txn.id, *place);
        let shelf = &mut self.shelves[kind as usize];
        shelf.weight += kind.weight(txn);
        shelf.bytes += txn.ops_bytes_estimate();
        // Ordered by creation, which may differ from the order in which they turned out to be resolved.
        let at = shelf.txns.partition_point(|other| other.place < *place);
        shelf.txns.insert(at, kept);
        let weight_max = if kind == Kind::Deletes { limits.deletions } else { limits.txns };
        loop {
            let shelf = &self.shelves[kind as usize];
            if shelf.weight <= weight_max && shelf.bytes <= limits.bytes {
                return;
            }
            self.forget_oldest(kind);
        }
    }

    fn forget_oldest(&mut self, kind: Kind) {
        let shelf = &mut self.shelves[kind as usize];
        if let Some(RetainedTxn { txn, .. }) = shelf.txns.pop_front() {
            shelf.weight -= kind.weight(&txn);
            shelf.bytes -= txn.ops_bytes_estimate();
            self.places.remove(&txn.id);
            self.unseen.remove(&txn.id.mark());
            self.unrecorded.remove(&txn.id);
        }
    }

    /// Drops transactions up to `floor`.
    pub(super) fn drop_below(&mut self, floor: Seq) {
        for kind in KINDS {
            while self.shelves[kind as usize].txns.front().is_some_and(|kept| kept.seq <= floor) {
                self.forget_oldest(kind);
            }
        }
    }

    /// Returns the exact sequences that are not known to be in the journal.
    pub(super) fn unrecorded(&self) -> &BTreeMap<TxnId, Seq> {
        &self.unrecorded
    }

    /// Records that these sequences are in the journal.
    pub(super) fn note_recorded(&mut self, recorded: impl IntoIterator<Item = TxnId>) {
        for id in recorded {
            self.unrecorded.remove(&id);
        }
    }

    /// Takes sequences from the journal, where the row of the origin gave only an upper limit.
    pub(super) fn take_recorded(&mut self, recorded: impl Fn(TxnId) -> Option<Seq>) {
        for kept in self.shelves.iter_mut().flat_map(|shelf| &mut shelf.txns) {
            let Some(seq) = recorded(kept.txn.id).filter(|seq| *seq <= kept.seq) else { continue };
            if !kept.learnt.is_exact() {
                (kept.seq, kept.learnt) = (seq, ResolutionSource::Recorded);
            }
            if kept.seq == seq {
                self.unrecorded.remove(&kept.txn.id);
            }
        }
    }

    /// Records that the log may not record a kept transaction as the writer of its objects.
    pub(super) fn note_unseen(&mut self, txn: &Arc<Txn>) {
        if self.limits.is_some() {
            self.unseen.insert(txn.id.mark(), Arc::clone(txn));
        }
    }

    /// Returns the transactions on which `txn` depends and which the log may not record as writers.
    pub(super) fn unseen_before(&self, txn: &Txn) -> impl Iterator<Item = &Arc<Txn>> {
        let marks = txn.conditions.iter().filter_map(Condition::mark).filter(|_| !self.unseen.is_empty());
        marks.filter_map(|mark| self.unseen.get(&mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Collection, Key, Op, Origin, OriginCounter};

    fn txn(counter: u64, puts: &[&'static str], deletes: &[&str]) -> Arc<Txn> {
        let name = |key: &str| (Collection::new("c").expect("name"), Key::new(key).expect("key"));
        let put = |value: &&'static str| {
            let (collection, key) = name("put");
            Op::Put { collection, key, value: value.as_bytes().into() }
        };
        let delete = |key: &&str| {
            let (collection, key) = name(key);
            Op::Delete { collection, key }
        };
        let ops = puts.iter().map(put).chain(deletes.iter().map(delete)).collect();
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let (settled, note, conditions) = (OriginCounter(0), Default::default(), Vec::new());
        Arc::new(Txn { id, settled, time_ms: 0, note, conditions, ops })
    }

    fn kept(limits: RetentionLimits, txns: &[Arc<Txn>]) -> RetainedTxns {
        let mut all = RetainedTxns::within(Some(limits));
        for txn in txns {
            let (counter, txn) = (txn.id.counter.0, Arc::clone(txn));
            all.keep(RetainedTxn { txn, seq: Seq(counter), learnt: ResolutionSource::Row, place: counter });
        }
        all
    }

    fn counters(kept: &RetainedTxns) -> Vec<u64> {
        kept.iter().map(|kept| kept.txn.id.counter.0).collect()
    }

    #[test]
    fn p04_puts_do_not_displace_deletions() {
        let put = |counter| txn(counter, &["value"], &[]);
        let both = |counter| txn(counter, &["value"], &["k"]);
        let delete = |counter| txn(counter, &[], &["k", "l"]);
        let limits = RetentionLimits { txns: 2, deletions: 4, ..RetentionLimits::default() };
        let all = [delete(1), both(2), put(3), put(4), put(5), delete(6), both(7), both(8)];
        let mut kept = kept(limits, &all);
        assert_eq!(counters(&kept), [1, 4, 5, 6, 7, 8]);
        let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        for txn in &all {
            let is_kept = counters(&kept).contains(&txn.id.counter.0);
            assert_eq!(kept.get(txn.id), Some(txn).filter(|_| is_kept));
        }
        kept.keep(RetainedTxn { txn: delete(9), seq: Seq(9), learnt: ResolutionSource::Entry, place: 9 });
        assert_eq!(counters(&kept), [4, 5, 6, 7, 8, 9]);
        kept.drop_below(Seq(7));
        assert_eq!((counters(&kept), kept.get(id(6)), kept.unseen.len()), (vec![8, 9], None, 1));
        kept.drop_below(Seq(9));
        assert_eq!((kept.bytes(), kept.places.len(), kept.unseen.len()), (0, 0, 0));
    }

    #[test]
    fn p04_bytes_of_puts_do_not_displace_deletions() {
        let value: &'static str = "0123456789012345678901234567890123456789";
        let all = [txn(1, &[], &["k"]), txn(2, &[value], &["k"]), txn(3, &[value; 9], &[]), txn(4, &[value; 9], &[])];
        let bytes = all[3].ops_bytes_estimate();
        let kept = kept(RetentionLimits { bytes, ..RetentionLimits::default() }, &all);
        assert_eq!(counters(&kept), [1, 2, 4]);
        assert_eq!(kept.bytes(), [0, 1, 3].map(|at: usize| all[at].ops_bytes_estimate()).iter().sum::<usize>());
    }

    #[test]
    fn nothing_is_kept_without_limits() {
        let mut kept = RetainedTxns::default();
        kept.keep(RetainedTxn { txn: txn(1, &[], &["k"]), seq: Seq(1), learnt: ResolutionSource::Row, place: 1 });
        kept.note_unseen(&txn(1, &[], &["k"]));
        assert!(kept.iter().next().is_none() && kept.unseen.is_empty() && kept.places.is_empty());
    }
}
