//! Rejected transactions that were submitted again under new identities, for transactions that depend on them.

use std::collections::HashMap;
use std::sync::Arc;

use gravwell_model::{Condition, Seq, Txn, TxnId};

/// New identities of transactions that were submitted again, by the mark of the old identity.
#[derive(Clone, Debug, Default)]
pub(super) struct Retried(HashMap<Seq, TxnId>);

impl Retried {
    /// Records that `of` was submitted again as `to`, or has this identity from now on.
    pub(super) fn note(&mut self, of: TxnId, to: TxnId) {
        if of != to {
            self.0.insert(of.mark(), to);
        }
    }

    /// Clears the map, once no transaction is left that depends on one in it.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the latest identity of the transaction with this mark, following repeated submissions.
    fn now(&self, mark: Seq) -> Option<TxnId> {
        let mut found = *self.0.get(&mark)?;
        // The chain ends, because each identity is newer than the previous one. A corrupt journal may contain a cycle.
        for _ in 0..self.0.len() {
            let Some(next) = self.0.get(&found.mark()) else { break };
            found = *next;
        }
        Some(found)
    }

    /// Returns the latest identity of a transaction, if it is another one.
    pub(super) fn of(&self, id: TxnId) -> Option<TxnId> {
        self.now(id.mark())
    }

    /// Returns conditions that refer to the latest identities.
    pub(super) fn conditions(&self, conditions: &[Condition]) -> Vec<Condition> {
        let renamed = |condition: &Condition| {
            let now = condition.mark().and_then(|mark| self.now(mark))?;
            Some(Condition::written_by(condition.collection().clone(), condition.key().clone(), now))
        };
        conditions.iter().map(|condition| renamed(condition).unwrap_or_else(|| condition.clone())).collect()
    }

    /// Returns the transaction with such conditions.
    pub(super) fn txn(&self, txn: &Arc<Txn>) -> Arc<Txn> {
        let is_upon = |condition: &Condition| condition.mark().is_some_and(|mark| self.0.contains_key(&mark));
        if !txn.conditions.iter().any(is_upon) {
            return Arc::clone(txn);
        }
        Arc::new(Txn { conditions: self.conditions(&txn.conditions), ..Txn::clone(txn) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Outbox, RejectedTxn};
    use gravwell_model::{Collection, Key, Op, Origin, OriginCounter, Reason};

    fn id(counter: u64) -> TxnId {
        TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) }
    }

    fn upon(counter: u64) -> Condition {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        Condition::written_by(collection, key, id(counter))
    }

    fn rejected(counter: u64, conditions: Vec<Condition>) -> RejectedTxn {
        let op = Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new("k").expect("key") };
        let (settled, note) = (OriginCounter(0), bytes::Bytes::new());
        let txn = Txn { id: id(counter), settled, time_ms: 0, note, conditions, ops: vec![op] };
        RejectedTxn { txn: Arc::new(txn), seq: Seq(9), reason: Reason::IdentityReused }
    }

    #[test]
    fn p05_what_was_made_upon_a_rejected_change_follows_it_when_that_is_retried() {
        let mut outbox = Outbox::default();
        outbox.restore_rejected(rejected(1, vec![]));
        outbox.restore_rejected(rejected(2, vec![upon(1)]));
        outbox.restore_rejected(rejected(3, vec![upon(2)]));
        let conditions = |outbox: &Outbox, counter| outbox.rejected()[&id(counter)].txn.conditions.clone();
        outbox.note_retried(id(1), id(11));
        assert_eq!((conditions(&outbox, 2), conditions(&outbox, 3)), (vec![upon(11)], vec![upon(2)]));
        // It is rejected and retried again; a transaction that was in flight arrives late.
        outbox.restore_rejected(rejected(11, vec![]));
        outbox.note_retried(id(11), id(12));
        outbox.restore_rejected(rejected(4, vec![upon(1)]));
        assert_eq!((conditions(&outbox, 2), conditions(&outbox, 4)), (vec![upon(12)], vec![upon(12)]));
        assert_eq!(outbox.upon_retried(&[upon(11), upon(7)]), [upon(12), upon(7)]);
    }
}
