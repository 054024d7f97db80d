//! Translation of conditions from an abandoned history to the log that continued without it ("the new log").
//!
//! The new log assigns the sequences of the abandoned part again. A condition on such a sequence must not hold for the
//! write that has it in the new log, because the author of the transaction has not seen that write. All conditions
//! carried over (of pending, re-pushed, archived and rejected transactions, and of earlier reads) are therefore
//! translated here, and only here: a condition on a local transaction of the abandoned part refers to that transaction,
//! and a condition on any other write of the abandoned part never holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::revocation;
use gravwell_model::{Collection, Condition, Key, Op, Origin, OriginRow, Reason, Seq, Txn, TxnId};

use super::outbox::RetainedTxn;

/// An abandoned history.
#[derive(Clone, Debug)]
pub struct Lost {
    shared_to: Seq,
    /// Local transactions of the abandoned part, by their sequences there.
    writers: HashMap<Seq, TxnId>,
    /// Objects of which the last local transaction of the abandoned part deletes them.
    deleted: BTreeSet<(Collection, Key)>,
    /// Conditions that replace [`Condition::Present`] on objects that the new log has from somebody else, or not at all.
    required: BTreeMap<(Collection, Key), Condition>,
}

/// Version and value of an object; `None` if it is absent.
pub type Found = Option<(Seq, Bytes)>;

/// The objects of one name.
#[derive(Clone, Debug)]
pub struct Named {
    /// The object in the abandoned history.
    pub old: Found,
    /// The object in the new log.
    pub new: Found,
    /// Sequence of its last known deletion in the abandoned history.
    pub deleted: Option<Seq>,
}

impl Lost {
    /// Creates a history that equals the present one up to `shared_to` and about which nothing else is known.
    #[must_use]
    pub fn after(shared_to: Seq) -> Lost {
        Lost { shared_to, writers: HashMap::new(), deleted: BTreeSet::new(), required: BTreeMap::new() }
    }

    /// Adds the local transactions in `kept`, which are in order. If a transaction's entry was not seen, nor its
    /// sequence recorded before a restart, and it was not the last one of its origin's row, only an upper limit of its
    /// sequence is known. For that case, `left` returns the value and the version of a key in the abandoned history.
    ///
    /// # Errors
    /// If `left` fails.
    pub fn with_own<'a, E>(
        self,
        kept: impl Iterator<Item = &'a RetainedTxn>,
        mut left: impl FnMut(&Collection, &Key) -> Result<Found, E>,
    ) -> Result<Lost, E> {
        let Lost { shared_to, mut writers, mut deleted, required } = self;
        let mut last: HashMap<(&Collection, &Key), (&RetainedTxn, &Op)> = HashMap::new();
        for kept in kept.filter(|kept| kept.seq > shared_to) {
            if kept.learnt.is_exact() {
                writers.insert(kept.seq, kept.txn.id);
            }
            last.extend(kept.txn.ops.iter().map(|op| ((op.collection(), op.key()), (kept, op))));
        }
        let is_deletion = |(_, (_, op)): &(_, &(&RetainedTxn, &Op))| op.value().is_none();
        deleted.extend(
            last.iter()
                .filter(is_deletion)
                .map(|((collection, key), _)| (Collection::clone(collection), Key::clone(key))),
        );
        let mut found: BTreeMap<Seq, BTreeSet<TxnId>> = BTreeMap::new();
        for ((collection, key), (kept, op)) in last.into_iter().filter(|(_, (kept, _))| !kept.learnt.is_exact()) {
            let Some(value) = op.value() else { continue };
            let there = left(collection, key)?.filter(|(version, there)| there == value && *version <= kept.seq);
            if let Some((version, _)) = there.filter(|(version, _)| *version > shared_to) {
                found.entry(version).or_default().insert(kept.txn.id);
            }
        }
        // A sequence belongs to one transaction: if two match, the writer is unknown.
        for (version, ids) in found {
            if let (Some(id), 1) = (ids.first(), ids.len()) {
                writers.entry(version).or_insert(*id);
            }
        }
        Ok(Lost { shared_to, writers, deleted, required })
    }

    /// Adds the objects that `conditions` require to be present. `objects` returns the objects of a name.
    ///
    /// An object that was written or deleted in the abandoned part may have been created there. If the new log has written an
    /// object of that name, too, it may be another one, and a transaction that required the first must not be committed upon
    /// the second: [`Condition::Present`] is then translated like a condition on the version that was seen. An object that the
    /// new log has from the shared part, where it was not deleted in the abandoned one, or with the same value, is the same one.
    /// So is one in a collection whose keys are not used twice ([`revocation::UNIQUE`]), whoever has written it.
    ///
    /// # Errors
    /// If `objects` fails.
    pub fn with_required<'a, E>(
        mut self,
        conditions: impl Iterator<Item = &'a Condition>,
        mut objects: impl FnMut(&Collection, &Key) -> Result<Named, E>,
    ) -> Result<Lost, E> {
        for condition in conditions {
            let Condition::Present { collection, key } = condition else { continue };
            let name = (collection.clone(), key.clone());
            if self.required.contains_key(&name) || revocation::is_presence_of_unique(condition) {
                continue;
            }
            let Named { old, new, deleted } = objects(collection, key)?;
            let is_deleted = deleted.is_some_and(|deleted| deleted > self.shared_to);
            let is_of_shared_part = new.as_ref().is_some_and(|(there, _)| *there <= self.shared_to);
            let is_shared = !is_deleted && is_of_shared_part;
            let is_same = |value| new.as_ref().is_some_and(|(_, there)| there == value);
            let condition = match &old {
                _ if is_shared => continue,
                Some((version, _)) if *version <= self.shared_to => continue,
                Some((_, value)) if is_same(value) => continue,
                Some((version, _)) => self.written(collection, key, *version),
                // The member has deleted the object of the shared part, which was present until then.
                None if is_of_shared_part && self.deleted.contains(&name) => continue,
                None => Condition::upon_lost(collection.clone(), key.clone()),
            };
            self.required.insert(name, condition);
        }
        Ok(self)
    }

    /// Returns the condition that an object was last written by the transaction that had this sequence in the abandoned part.
    fn written(&self, collection: &Collection, key: &Key, version: Seq) -> Condition {
        let (collection, key) = (collection.clone(), key.clone());
        match self.writers.get(&version) {
            Some(id) => Condition::written_by(collection, key, *id),
            None => Condition::upon_lost(collection, key),
        }
    }

    /// Returns whether the sequence of a local transaction of the abandoned part is known.
    #[must_use]
    pub fn knows(&self, id: TxnId) -> bool {
        self.writers.values().any(|writer| *writer == id)
    }

    /// Returns the last sequence that both histories share.
    #[must_use]
    pub fn shared_to(&self) -> Seq {
        self.shared_to
    }

    /// Translates a condition from the abandoned history.
    #[must_use]
    pub fn condition(&self, condition: &Condition) -> Condition {
        if fault_injection::is(Bug::ConditionsNotTranslated) {
            return condition.clone();
        }
        match condition {
            Condition::Version { collection, key, .. }
                if condition.since().is_some_and(|since| since > self.shared_to) =>
            {
                Condition::absent_since(collection.clone(), key.clone(), self.shared_to)
            }
            Condition::Version { collection, key, version }
                if condition.mark().is_none() && condition.since().is_none() && *version > self.shared_to =>
            {
                self.written(collection, key, *version)
            }
            Condition::Present { collection, key } => {
                self.required.get(&(collection.clone(), key.clone())).unwrap_or(condition).clone()
            }
            _ => condition.clone(),
        }
    }

    /// Translates the conditions of a transaction from the abandoned history.
    #[must_use]
    pub fn conditions(&self, conditions: &[Condition]) -> Vec<Condition> {
        conditions.iter().map(|condition| self.condition(condition)).collect()
    }
}

/// Translates the conditions of the transactions of one member, in order.
///
/// A condition that an object is present is not on a version, so it depends on what precedes it: if the last transaction
/// of the member that wrote the object is not in the new log either, the condition refers to that write.
#[derive(Debug)]
pub struct InOrder<'a> {
    lost: &'a Lost,
    /// Last transactions that put an object and that the new log lacks.
    writers: HashMap<(Collection, Key), TxnId>,
    assumed: Assumed,
}

/// Transactions that required only that an object is present, with its name, and whose condition now refers to an earlier
/// write of the same member. Others may have written the object in between.
pub type Assumed = BTreeSet<(TxnId, (Collection, Key))>;

impl<'a> InOrder<'a> {
    /// Starts before the first transaction.
    #[must_use]
    pub fn of(lost: &'a Lost) -> InOrder<'a> {
        InOrder { lost, writers: HashMap::new(), assumed: Assumed::new() }
    }

    /// Returns the next transaction, which the new log lacks, with translated conditions.
    pub fn translate(&mut self, txn: &Txn) -> Txn {
        let conditions: Vec<Condition> =
            txn.conditions.iter().map(|condition| self.condition(txn, condition)).collect();
        let is_assumed = |(before, after): &(&Condition, &Condition)| {
            matches!(before, Condition::Present { .. }) && after.mark().is_some()
        };
        let assumed = txn.conditions.iter().zip(&conditions).filter(is_assumed);
        let name = |condition: &Condition| (condition.collection().clone(), condition.key().clone());
        self.assumed.extend(assumed.map(|(before, _)| (txn.id, name(before))));
        self.pass(txn, true);
        Txn { conditions, ..txn.clone() }
    }

    /// Returns which conditions of translated transactions refer to a write only because nothing else is known.
    #[must_use]
    pub fn assumed(self) -> Assumed {
        self.assumed
    }

    /// Passes the next transaction, of which no translation is needed. `is_lacking`: the new log does not have it.
    pub fn pass(&mut self, txn: &Txn, is_lacking: bool) {
        for op in &txn.ops {
            let name = (op.collection().clone(), op.key().clone());
            match op.value().filter(|_| is_lacking) {
                Some(_) => self.writers.insert(name, txn.id),
                None => self.writers.remove(&name),
            };
        }
    }

    fn condition(&self, txn: &Txn, condition: &Condition) -> Condition {
        let Condition::Present { collection, key } = condition else { return self.lost.condition(condition) };
        if revocation::is_presence_of_unique(condition) {
            return condition.clone();
        }
        if fault_injection::is(Bug::PresentNotTranslated) || fault_injection::is(Bug::ConditionsNotTranslated) {
            return condition.clone();
        }
        let name = (collection.clone(), key.clone());
        let deletes = || {
            let last = txn.ops.iter().rev().find(|op| (op.collection(), op.key()) == (collection, key));
            self.lost.deleted.contains(&name) && last.is_some_and(|op| op.value().is_none())
        };
        match (self.writers.get(&name), self.lost.required.get(&name)) {
            (Some(writer), _) => Condition::written_by(name.0, name.1, *writer),
            // The transaction itself deletes the object that it requires.
            (None, _) if deletes() => condition.clone(),
            (None, None) => condition.clone(),
            // The member wrote the object only later, so it is unknown which one it was.
            (None, Some(required)) if required.mark().is_some() => Condition::upon_lost(name.0, name.1),
            (None, Some(required)) => required.clone(),
        }
    }
}

/// Input for [`Outbox::requeued`](super::outbox::Outbox::requeued).
#[derive(Debug)]
pub struct Leaving<'a> {
    /// Rows of the origins in the new log.
    pub decided: &'a BTreeMap<Origin, OriginRow>,
    /// Committed transactions to push again, with conditions for the new log.
    pub again: Vec<Arc<Txn>>,
    /// Transactions to put on the rejected list instead, with conditions for the new log.
    pub archived: Vec<Arc<Txn>>,
    /// Rejection reason of the archived transactions.
    pub reason: Reason,
    /// The abandoned history.
    pub lost: &'a Lost,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Outbox;
    use gravwell_model::OriginCounter;

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

    /// Returns an outbox with pending transactions that have these conditions; the first one was committed at sequence 12.
    fn outbox(conditions: &[Vec<Condition>]) -> Outbox {
        let mut outbox = Outbox::keeping();
        for (counter, conditions) in (1..).zip(conditions) {
            outbox.insert(txn(counter, conditions.clone()));
        }
        let mut row = OriginRow::default();
        row.record(Seq(12), OriginCounter(1), OriginCounter(0), None);
        outbox.handle_row(Origin([1; 16]), &row);
        outbox
    }

    fn conditions(outbox: &Outbox) -> Vec<Condition> {
        outbox.pending().flat_map(|txn| txn.conditions.clone()).collect()
    }

    fn requeued(outbox: &Outbox, again: Vec<Arc<Txn>>) -> Outbox {
        let (decided, kept) = (BTreeMap::new(), outbox.kept().cloned().collect::<Vec<_>>());
        let left =
            |_: &Collection, _: &Key| Ok::<_, std::convert::Infallible>(Some((Seq(12), Bytes::from_static(&[1]))));
        let lost = Lost::after(SHARED_TO).with_own(kept.iter(), left).expect("infallible");
        let leaving =
            Leaving { decided: &decided, again, archived: vec![], reason: Reason::IdentityReused, lost: &lost };
        outbox.requeued(leaving, || Origin([7; 16]))
    }

    #[test]
    fn p05_no_version_of_a_lost_history_holds_in_the_one_that_goes_on() {
        let others = [vec![], vec![version(10)], vec![version(11)], vec![version(12)], vec![upon(id(4))]];
        let outbox = outbox(&others);
        let kept: Vec<_> = outbox.kept().map(|kept| Arc::clone(&kept.txn)).collect();
        // The local transaction is pushed again, so transactions that depend on it refer to it.
        let (collection, key) = place();
        let lost = Condition::upon_lost(collection, key);
        let wanted = [version(10), lost.clone(), upon(id(1)), upon(id(4))];
        assert_eq!(conditions(&requeued(&outbox, kept)), wanted);
        // It is archived. The transaction that fills its counter writes nothing.
        assert_eq!(conditions(&requeued(&outbox, Vec::new())), wanted);
        // A transaction pushed again has conditions for the new log.
        let again = vec![txn(1, vec![version(11)])];
        assert_eq!(conditions(&requeued(&outbox, again))[0], version(11));
        assert!(lost.is_upon_lost() && (0..=20).all(|seq| !lost.holds(Some(Seq(seq)))));
    }

    #[test]
    fn p04_what_is_absent_since_a_lost_sequence_is_absent_since_the_histories_parted() {
        let since = |seq: u64| {
            let (collection, key) = place();
            Condition::absent_since(collection, key, Seq(seq))
        };
        let lost = Lost::after(SHARED_TO);
        for (given, wanted) in [(9, 9), (10, 10), (11, 10), (1 << 40, 10)] {
            assert_eq!(lost.condition(&since(given)), since(wanted));
        }
        // A member within the shared part leaves for it, too.
        let waiting = outbox(&[vec![], vec![since(11)]]);
        assert!(waiting.is_upon_later_than(SHARED_TO) && !waiting.is_upon_later_than(Seq(11)));
        assert_eq!(conditions(&requeued(&waiting, Vec::new())), [since(10)]);
    }

    #[test]
    fn p05_what_was_made_upon_a_transaction_follows_it_to_its_new_identity() {
        let mut outbox = Outbox::keeping();
        for (counter, conditions) in [(5000, vec![]), (5001, vec![upon(id(5000))]), (5002, vec![upon(id(5001))])] {
            outbox.insert(txn(counter, conditions));
        }
        let requeued = requeued(&outbox, Vec::new());
        let fresh = |counter| TxnId { origin: Origin([7; 16]), counter: OriginCounter(counter) };
        assert_eq!(conditions(&requeued), [upon(fresh(1)), upon(fresh(2))]);
    }

    #[test]
    fn p05_what_was_made_upon_an_archived_change_follows_it_although_its_deletions_are_pushed_again() {
        let mut outbox = Outbox::keeping();
        for (counter, conditions) in [(5000, vec![]), (5001, vec![upon(id(5000))])] {
            outbox.insert(txn(counter, conditions));
        }
        let mut row = OriginRow::default();
        row.record(Seq(12), OriginCounter(5000), OriginCounter(0), None);
        outbox.handle_row(Origin([1; 16]), &row);
        let (collection, key) = place();
        let ops = vec![Op::Delete { collection, key }];
        let again = vec![Arc::new(Txn { ops, ..Txn::clone(&txn(5000, vec![])) })];
        let (decided, lost, mut fresh) = (BTreeMap::new(), Lost::after(SHARED_TO), 100);
        let archived = vec![txn(5000, vec![])];
        let leaving = Leaving { decided: &decided, again, archived, reason: Reason::IdentityReused, lost: &lost };
        let requeued = outbox.requeued(leaving, || {
            fresh += 1;
            Origin([fresh; 16])
        });
        let archived = *requeued.rejected().keys().next().expect("is listed");
        let pending: Vec<_> = requeued.pending().map(|txn| (txn.id, txn.conditions.clone())).collect();
        let second = |counter| TxnId { origin: Origin([102; 16]), counter: OriginCounter(counter) };
        assert_eq!(pending, [(second(1), vec![]), (second(2), vec![upon(archived)])]);
    }
}
