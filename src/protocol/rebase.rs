//! Conditions of transactions that go from a history that was lost into the one that goes on.
//!
//! The log that goes on gives the sequences of the lost part out again. A condition that names one of them must not hold for
//! the write that has it now: nobody has seen that write when the transaction was made.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{Condition, Seq, Txn, TxnId};

use super::outbox::Kept;

/// Rewrites conditions upon writes that the log which goes on has not, or has under another identity.
pub(super) struct Rebase {
    shared_to: Seq,
    /// Own transactions of the lost part, by their sequences there.
    lost: HashMap<Seq, Arc<Txn>>,
    /// Marks of transactions that have got another identity.
    marks: HashMap<Seq, TxnId>,
}

impl Rebase {
    /// Both histories are the same up to `shared_to`; `kept` are own transactions that were committed.
    pub(super) fn new<'a>(shared_to: Seq, kept: impl Iterator<Item = &'a Kept>) -> Rebase {
        let lost = kept.filter(|kept| kept.seq > shared_to).map(|kept| (kept.seq, Arc::clone(&kept.txn)));
        Rebase { shared_to, lost: lost.collect(), marks: HashMap::new() }
    }

    /// A transaction goes on under another identity. Those that name it come after it.
    pub(super) fn renumbered(&mut self, from: TxnId, to: TxnId) {
        if from != to {
            self.marks.insert(from.mark(), to);
        }
    }

    /// The conditions of `txn`, which was made upon the history that was lost, for the log that goes on.
    pub(super) fn conditions(&self, txn: &Txn) -> Vec<Condition> {
        txn.conditions.iter().map(|condition| self.version(condition).unwrap_or_else(|| self.mark(condition))).collect()
    }

    /// The conditions of `txn`, whose versions are those of the log that goes on.
    pub(super) fn marks(&self, txn: &Txn) -> Vec<Condition> {
        txn.conditions.iter().map(|condition| self.mark(condition)).collect()
    }

    /// A condition upon a transaction, under the identity that this one has now.
    fn mark(&self, condition: &Condition) -> Condition {
        let renumbered = condition.mark().and_then(|mark| self.marks.get(&mark));
        let (collection, key) = (condition.collection(), condition.key());
        renumbered.map_or_else(|| condition.clone(), |id| Condition::written_by(collection.clone(), key.clone(), *id))
    }

    /// What becomes of a condition upon a version of the lost part.
    fn version(&self, condition: &Condition) -> Option<Condition> {
        let Condition::Version { collection, key, version } = condition else { return None };
        if condition.mark().is_some() || *version <= self.shared_to {
            return None;
        }
        // An own write is known by its identity. Where it is not pushed again, nothing is written under that identity.
        let writes_it = |txn: &&Arc<Txn>| txn.ops.iter().any(|op| (op.collection(), op.key()) == (collection, key));
        let id = self.lost.get(version).filter(writes_it).map(|txn| txn.id);
        let id = id.map(|id| self.marks.get(&id.mark()).copied().unwrap_or(id));
        let (collection, key) = (collection.clone(), key.clone());
        Some(match id {
            Some(id) => Condition::written_by(collection, key, id),
            None => Condition::upon_lost(collection, key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Collection, Key, Op, Origin, OriginCounter};
    use crate::protocol::outbox::Outbox;
    use std::collections::BTreeMap;

    const SHARED_TO: Seq = Seq(10);

    fn id(counter: u64) -> TxnId {
        TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) }
    }

    fn place() -> (Collection, Key) {
        (Collection::new("c").expect("name"), Key::new("k").expect("key"))
    }

    fn version(version: u64) -> Condition {
        let (collection, key) = place();
        Condition::Version { collection, key, version: Seq(version) }
    }

    fn upon(id: TxnId) -> Condition {
        let (collection, key) = place();
        Condition::written_by(collection, key, id)
    }

    fn txn(counter: u64, conditions: Vec<Condition>) -> Arc<Txn> {
        let (collection, key) = place();
        let ops = vec![Op::Put { collection, key, value: vec![1].into() }];
        let (settled, note) = (OriginCounter(0), Default::default());
        Arc::new(Txn { id: id(counter), settled, time_ms: 0, note, conditions, ops })
    }

    /// An outbox with the transactions of these conditions pending, the first of them committed at sequence 12.
    fn outbox(conditions: &[Vec<Condition>]) -> Outbox {
        let mut outbox = Outbox::keeping();
        for (counter, conditions) in (1..).zip(conditions) {
            outbox.insert(txn(counter, conditions.clone()));
        }
        let mut row = crate::model::OriginRow::default();
        row.record(Seq(12), OriginCounter(1), OriginCounter(0), None);
        outbox.handle_row(Origin([1; 16]), &row);
        outbox
    }

    fn conditions(outbox: &Outbox) -> Vec<Condition> {
        outbox.pending().flat_map(|txn| txn.conditions.clone()).collect()
    }

    #[test]
    fn p05_no_version_of_a_lost_history_holds_in_the_one_that_goes_on() {
        let others = [vec![], vec![version(10)], vec![version(11)], vec![version(12)], vec![upon(id(4))]];
        let outbox = outbox(&others);
        let kept: Vec<_> = outbox.kept().map(|kept| Arc::clone(&kept.txn)).collect();
        let fresh = || unreachable!("no identity is given up");
        // The own one is pushed again: what was made upon it goes on from it.
        let (collection, key) = place();
        let lost = Condition::upon_lost(collection, key);
        let wanted = [version(10), lost.clone(), upon(id(1)), upon(id(4))];
        assert_eq!(conditions(&outbox.requeued(&BTreeMap::new(), kept, SHARED_TO, fresh)), wanted);
        // It is archived: what fills its place writes nothing.
        assert_eq!(conditions(&outbox.requeued(&BTreeMap::new(), Vec::new(), SHARED_TO, fresh)), wanted);
        // What is pushed again says which version it expects in the log that goes on.
        let again = vec![txn(1, vec![version(11)])];
        assert_eq!(conditions(&outbox.requeued(&BTreeMap::new(), again, SHARED_TO, fresh))[0], version(11));
        assert!(lost.is_upon_lost() && (0..=20).all(|seq| !lost.holds(Some(Seq(seq)))));
    }

    #[test]
    fn p05_what_was_made_upon_a_transaction_follows_it_to_its_new_identity() {
        let mut outbox = Outbox::keeping();
        for (counter, conditions) in [(5000, vec![]), (5001, vec![upon(id(5000))]), (5002, vec![upon(id(5001))])] {
            outbox.insert(txn(counter, conditions));
        }
        let requeued = outbox.requeued(&BTreeMap::new(), Vec::new(), SHARED_TO, || Origin([7; 16]));
        let fresh = |counter| TxnId { origin: Origin([7; 16]), counter: OriginCounter(counter) };
        assert_eq!(conditions(&requeued), [upon(fresh(1)), upon(fresh(2))]);
    }
}
