//! The sequencer against a model that keeps and searches every entry.

use std::collections::HashMap;
use std::convert::Infallible;

use super::steps::Steps;
use gravwell_model::deletions::Deleted;
use gravwell_model::{
    Collection, Condition, Entry, EntryBody, Key, Limits, MemberName, OriginCounter, Reason, Seq, Txn, TxnId,
};
use gravwell_protocol::sequencer::{Decision, Sequencer, Versions};

/// Content of the log: committed entries, followed by staged ones.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    kept: usize,
    /// Number of entries that the index contains.
    applied: usize,
}

/// The last write of an object: its sequence, and whether it put the object.
fn last_in(entries: &[Entry], collection: &Collection, key: &Key) -> Option<(Seq, bool)> {
    entries.iter().rev().find_map(|entry| match &entry.body {
        EntryBody::Commit(txn) => {
            let last = txn.ops.iter().rev().find(|op| op.collection() == collection && op.key() == key)?;
            Some((entry.seq, last.value().is_some()))
        }
        _ => None,
    })
}

fn version_in(entries: &[Entry], collection: &Collection, key: &Key) -> Option<Seq> {
    last_in(entries, collection, key).filter(|(_, is_put)| *is_put).map(|(seq, _)| seq)
}

impl Versions for Model {
    type Error = Infallible;

    /// The index contains exactly the applied entries.
    fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, Infallible> {
        Ok(version_in(&self.entries[..self.applied], collection, key))
    }

    fn author(&self, seq: Seq) -> Option<TxnId> {
        let place = usize::try_from(seq.0).ok()?.checked_sub(1)?;
        self.entries[..self.kept].get(place)?.body.id()
    }

    fn deleted(&self, collection: &Collection, key: &Key) -> Result<Option<Deleted>, Infallible> {
        let last = last_in(&self.entries[..self.applied], collection, key);
        Ok(Some(last.map_or(Deleted::NotAfter(Seq::ZERO), |(seq, _)| Deleted::At(seq))))
    }
}

impl Model {
    fn head(&self) -> Seq {
        Seq(self.entries.len() as u64)
    }

    fn of(&self, id: TxnId) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.body.id() == Some(id))
    }

    fn last_counter(&self, id: TxnId) -> u64 {
        self.entries.iter().filter(|entry| entry.body.id().is_some_and(|of| of.origin == id.origin)).count() as u64
    }

    fn holds(&self, condition: &Condition) -> bool {
        let last = last_in(&self.entries, condition.collection(), condition.key());
        let found = last.filter(|(_, is_put)| *is_put).map(|(seq, _)| seq);
        if let Some(since) = condition.since() {
            return last.is_none_or(|(seq, is_put)| !is_put && seq <= since);
        }
        let Some(mark) = condition.mark() else { return condition.holds(found) };
        let at = |(seq, _): (Seq, bool)| self.entries.get(usize::try_from(seq.0).ok()?.checked_sub(1)?)?.body.id();
        last.and_then(at).is_some_and(|id| id.mark() == mark)
    }

    /// Returns whether the origin has acknowledged the rejection of `id`.
    fn is_settled(&self, id: TxnId) -> bool {
        self.entries.iter().any(|entry| match &entry.body {
            EntryBody::Commit(Txn { id: by, settled, .. }) | EntryBody::Reject { id: by, settled, .. } => {
                by.origin == id.origin && by.counter > id.counter && *settled >= id.counter
            }
            EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => false,
        })
    }

    /// Checks the decision about `txn` against the model.
    fn judge(&mut self, txn: &Txn, decision: Decision) {
        let last = self.last_counter(txn.id);
        match decision {
            Decision::Write(entry) => {
                assert_eq!(txn.id.counter.0, last + 1, "counters of an origin have no gaps");
                assert_eq!(entry.seq, self.head().next(), "sequences have no gaps");
                let good = txn.conditions.iter().all(|condition| self.holds(condition));
                match &entry.body {
                    EntryBody::Commit(written) => {
                        assert!(good && written.ops == txn.ops, "{entry:?} {txn:?}");
                    }
                    EntryBody::Reject { id, reason, .. } => {
                        assert!(!good && *id == txn.id, "{entry:?} {txn:?}");
                        assert!(matches!(reason, Reason::ConditionFailed { .. }), "{reason}");
                    }
                    EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => panic!("unexpected entry kind"),
                }
                assert!(
                    self.entries.last().is_none_or(|before| before.time_ms <= entry.time_ms),
                    "commit times do not decrease"
                );
                self.entries.push(entry);
            }
            Decision::Gap(expected) => {
                assert!(txn.id.counter.0 > last + 1 && expected.0 == last + 1, "{txn:?} {expected}");
            }
            Decision::Unsettled(count) => {
                let of_origin = |entry: &&Entry| entry.body.id().is_some_and(|id| id.origin == txn.id.origin);
                let made = self.entries.iter().filter(of_origin).count();
                assert!(count <= made && txn.id.counter.0 == last + 1, "{count} {txn:?}");
            }
            Decision::Committed(at) => {
                let entry = self.of(txn.id).expect("is resolved");
                assert!(at >= entry.seq && at <= self.head());
                let committed = matches!(entry.body, EntryBody::Commit(_));
                assert!(committed || self.is_settled(txn.id), "a rejection was forgotten: {entry:?}");
            }
            Decision::Rejected(_, Reason::IdentityReused) => {
                let entry = self.of(txn.id).expect("is resolved");
                let differs = |written: &Txn| written.ops != txn.ops || written.conditions != txn.conditions;
                let is_other = matches!(&entry.body, EntryBody::Commit(written) if differs(written));
                assert!(is_other || matches!(entry.body, EntryBody::Reject { .. }), "{entry:?} {txn:?}");
            }
            Decision::Rejected(at, reason) => {
                let entry = self.of(txn.id).expect("is resolved");
                let same = matches!(&entry.body, EntryBody::Reject { reason: first, .. } if *first == reason);
                assert!(same && at == entry.seq, "a retry got another answer: {entry:?} {reason}");
            }
        }
    }
}

/// Transactions in any order with retries and gaps, batches that are committed or rolled back, and an index that lags.
pub fn run(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let mut sequencer = Sequencer::new(Seq::ZERO, 0, Limits::default(), HashMap::new());
    let member = MemberName::new("m").expect("invariant: a valid name");
    let mut model = Model::default();
    while !steps.is_done() {
        match steps.below(8) {
            0 => {
                sequencer.keep();
                model.kept = model.entries.len();
            }
            1 => {
                sequencer.undo();
                model.entries.truncate(model.kept);
            }
            // The index is updated only between batches.
            2 if model.kept == model.entries.len() => {
                let lag = usize::try_from(steps.below(5)).unwrap_or_default();
                model.applied = model.applied.max(model.kept.saturating_sub(lag));
                sequencer.applied(Seq(model.applied as u64));
            }
            _ => {
                let origin = steps.origin();
                let next = model.last_counter(TxnId { origin, ..TxnId::default() }) + 1;
                // Mostly the next counter; sometimes an earlier one or one that leaves a gap.
                let counter = match steps.below(8) {
                    0 => next.saturating_sub(1 + steps.below(4)).max(1),
                    1 => next + 1,
                    _ => next,
                };
                let id = TxnId { origin, counter: OriginCounter(counter) };
                let txn = steps.txn(id, model.head());
                let decision = sequencer.propose(&member, txn.clone(), steps.below(9), &model);
                let Ok(decision) = decision;
                model.judge(&txn, decision);
            }
        }
        assert_eq!(sequencer.head(), model.head());
        let origin = steps.origin();
        let last = model.last_counter(TxnId { origin, ..TxnId::default() });
        assert_eq!(sequencer.last_counter(origin), OriginCounter(last), "undo restores the counter");
    }
}
