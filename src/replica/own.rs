//! Which of its own transactions a member pushes again, after its log went on without them.
//!
//! Only those that nothing has come after: what they write must read, in the state that this member had, as they made it, and
//! nobody may have written it in the log that goes on, except in transactions that this member had seen when it made its own.
//! Everything else is set aside. Of several writes of one object the last counts, so each carries the condition that the
//! object is still as the log that goes on has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::model::deletions::{Deletions, Named};
use crate::model::{Condition, Entry, EntryBody, Op, Origin, OriginCounter, Seq, Txn, TxnId};
use crate::state::{StateError, StateSnapshot};

/// What objects are to read; `None`: they are deleted.
pub(super) type Values = BTreeMap<Named, Option<Bytes>>;

fn named(op: &Op) -> Named {
    (op.collection().clone(), op.key().clone())
}

/// What transactions make of each object, taken together.
pub(super) fn values(txns: &[Arc<Txn>]) -> Values {
    txns.iter().flat_map(|txn| &txn.ops).map(|op| (named(op), op.value().cloned())).collect()
}

/// What others did to objects of interest in the log that goes on, as far as a member had not seen it before.
pub(super) struct Since<'a> {
    old: &'a StateSnapshot,
    of_interest: BTreeSet<Named>,
    seen: BTreeMap<Origin, OriginCounter>,
    /// Objects that were written.
    pub written: BTreeSet<Named>,
}

impl<'a> Since<'a> {
    pub(super) fn new(old: &'a StateSnapshot, own: &[Arc<Txn>]) -> Since<'a> {
        let of_interest = own.iter().flat_map(|txn| &txn.ops).map(named).collect();
        Since { old, of_interest, seen: BTreeMap::new(), written: BTreeSet::new() }
    }

    /// Takes in an entry of the log that goes on.
    pub(super) fn take(&mut self, entry: &Entry) -> Result<(), StateError> {
        let EntryBody::Commit(txn) = &entry.body else { return Ok(()) };
        if txn.ops.is_empty() || self.had_seen(txn.id)? {
            return Ok(());
        }
        let names = txn.ops.iter().map(named).filter(|name| self.of_interest.contains(name));
        self.written.extend(names.collect::<Vec<_>>());
        Ok(())
    }

    fn had_seen(&mut self, id: TxnId) -> Result<bool, StateError> {
        if let Some(last) = self.seen.get(&id.origin) {
            return Ok(id.counter <= *last);
        }
        let last = self.old.origin(id.origin)?.map(|row| row.last_counter).unwrap_or_default();
        self.seen.insert(id.origin, last);
        Ok(id.counter <= last)
    }
}

/// Which objects of `own` the log that goes on wrote after `shared_to`, as far as its state alone shows it: what was written
/// and is there has a later version, what was deleted is among the recent `deletions`. Nothing shows whether this member had
/// seen it, so only what reads as `own` has it counts as not written. `None`: `deletions` do not reach back that far.
pub(super) fn written_after(
    own: &[Arc<Txn>],
    new: &StateSnapshot,
    deletions: &Deletions,
    shared_to: Seq,
) -> Result<Option<BTreeSet<Named>>, StateError> {
    if deletions.complete_after() > shared_to {
        return Ok(None);
    }
    let mut written = BTreeSet::new();
    for (name, value) in values(own) {
        let there = new.get(&name.0, &name.1)?;
        let last = there.as_ref().map(|object| object.version).or_else(|| deletions.get(&name.0, &name.1));
        let is_same = there.map(|object| object.value) == value;
        if last.is_some_and(|last| last > shared_to) && !is_same {
            written.insert(name);
        }
    }
    Ok(Some(written))
}

/// Chooses from the `own` transactions, in their order, those to be pushed again, as they are to be pushed.
pub(super) fn choose(
    own: Vec<Arc<Txn>>,
    old: &StateSnapshot,
    new: &StateSnapshot,
    written: &BTreeSet<Named>,
    shared_to: Seq,
) -> Result<Vec<Arc<Txn>>, StateError> {
    let mut present = Values::new();
    for name in own.iter().flat_map(|txn| &txn.ops).map(named) {
        let value = old.get(&name.0, &name.1)?.map(|object| object.value);
        present.insert(name, value);
    }
    let mut chosen = own;
    loop {
        // Without one that is left out, an object may read otherwise: then what wrote it is left out, too.
        let (values, before) = (values(&chosen), chosen.len());
        let is_last = |name: &Named| values.get(name) == present.get(name) && !written.contains(name);
        chosen.retain(|txn| txn.ops.iter().all(|op| is_last(&named(op))));
        if chosen.len() == before {
            break;
        }
    }
    last_writes(&mut chosen);
    let names: BTreeSet<Named> = chosen.iter().flat_map(|txn| &txn.ops).map(named).collect();
    chosen.iter().map(|txn| conditioned(txn, &names, new, shared_to).map(Arc::new)).collect()
}

/// Of the `lacking` transactions those that are not pushed `again` and left something behind that is archived: it read as
/// they made it in the state that this member had, and reads otherwise in the log that goes on.
pub(super) fn archived(
    lacking: Vec<Arc<Txn>>,
    again: &[Arc<Txn>],
    old: &StateSnapshot,
    new: &StateSnapshot,
) -> Result<Vec<Arc<Txn>>, StateError> {
    let again: BTreeSet<TxnId> = again.iter().map(|txn| txn.id).collect();
    let mut archived = Vec::new();
    for txn in lacking.into_iter().filter(|txn| !again.contains(&txn.id)) {
        for op in &txn.ops {
            let (collection, key) = (op.collection(), op.key());
            let had = old.get(collection, key)?.map(|object| object.value);
            if had.as_ref() == op.value() && new.get(collection, key)?.map(|object| object.value) != had {
                archived.push(txn);
                break;
            }
        }
    }
    Ok(archived)
}

/// Leaves of several writes of one object the last.
fn last_writes(txns: &mut [Arc<Txn>]) {
    let mut later = BTreeSet::new();
    for txn in txns.iter_mut().rev() {
        let mut ops: Vec<Op> = txn.ops.iter().rev().filter(|op| later.insert(named(op))).cloned().collect();
        if ops.len() < txn.ops.len() {
            ops.reverse();
            *txn = Arc::new(Txn { ops, ..Txn::clone(txn) });
        }
    }
}

fn conditioned(txn: &Txn, own: &BTreeSet<Named>, new: &StateSnapshot, shared_to: Seq) -> Result<Txn, StateError> {
    let as_is = |(collection, key): Named| -> Result<Condition, StateError> {
        Ok(match new.version(&collection, &key)? {
            Some(version) => Condition::Version { collection, key, version },
            None => Condition::Absent { collection, key },
        })
    };
    let mut conditions = Vec::new();
    for op in &txn.ops {
        conditions.push(as_is(named(op))?);
    }
    let others = txn.conditions.iter().filter(|condition| {
        let is_of_lost = matches!(condition, Condition::Version { version, .. } if *version > shared_to);
        !txn.ops.is_empty() && !is_of_lost && !own.contains(&(condition.collection().clone(), condition.key().clone()))
    });
    conditions.extend(others.cloned());
    Ok(Txn { conditions, ..txn.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Chain, Collection, Generation, Key, LineageEntry, LogId, MemberName};
    use crate::state::StateStore;

    const ME: u8 = 1;
    const OTHER: u8 = 2;

    fn name(key: &str) -> Named {
        (Collection::new("c").expect("name"), Key::new(key).expect("key"))
    }

    fn txn(origin: u8, counter: u64, ops: &[(&str, Option<u8>)]) -> Txn {
        let op = |(key, value): &(&str, Option<u8>)| {
            let (collection, key) = name(key);
            match value {
                Some(value) => Op::Put { collection, key, value: Bytes::from(vec![*value]) },
                None => Op::Delete { collection, key },
            }
        };
        let id = TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) };
        let (settled, note, ops) = (OriginCounter(0), Bytes::new(), ops.iter().map(op).collect());
        Txn { id, settled, time_ms: 0, note, conditions: Vec::new(), ops }
    }

    fn entries(txns: &[Txn], from: u64) -> Vec<Entry> {
        let member = MemberName::new("m").expect("name");
        let entry = |(seq, txn): (u64, &Txn)| {
            let body = EntryBody::Commit(txn.clone());
            Entry { seq: Seq(seq), time_ms: seq, member: member.clone(), body }
        };
        (from..).zip(txns).map(entry).collect()
    }

    fn state(txns: &[Txn]) -> StateSnapshot {
        let state = StateStore::in_memory();
        let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
        state.init(LogId([1; 16]), Generation(1), lineage).expect("begins");
        if !txns.is_empty() {
            state.apply(&entries(txns, 1), Chain::default()).expect("applies");
        }
        state.snapshot().expect("a view")
    }

    /// Counters and numbers of operations of what is pushed again; `history` after `shared`, `since` instead of it.
    fn again(shared: &[Txn], history: &[Txn], since: &[Txn]) -> Vec<(u64, usize)> {
        let all = |more: &[Txn]| state(&[shared, more].concat());
        let (old, new, shared_to) = (all(history), all(since), shared.len() as u64);
        let own = history.iter().filter(|txn| txn.id.origin == Origin([ME; 16])).cloned().map(Arc::new);
        let own: Vec<Arc<Txn>> = own.collect();
        let mut others = Since::new(&old, &own);
        entries(since, shared_to + 1).iter().for_each(|entry| others.take(entry).expect("reads"));
        let shown = new.deletions().expect("reads");
        let shown =
            written_after(&own, &new, &shown, Seq(shared_to)).expect("reads").expect("known from the beginning");
        let by_state = choose(own.clone(), &old, &new, &shown, Seq(shared_to)).expect("reads");
        let chosen = choose(own, &old, &new, &others.written, Seq(shared_to)).expect("reads");
        assert!(by_state.iter().all(|txn| chosen.contains(txn)), "what the log shows as overtaken, its state shows");
        for condition in chosen.iter().flat_map(|txn| &txn.conditions) {
            assert!(condition.holds(new.version(condition.collection(), condition.key()).expect("reads")));
        }
        chosen.iter().map(|txn| (txn.id.counter.0, txn.ops.len())).collect()
    }

    #[test]
    fn p04_nothing_that_was_overtaken_is_pushed_again() {
        let shared = [txn(OTHER, 1, &[("k", Some(1))])];
        let put = txn(ME, 1, &[("k", Some(2)), ("l", Some(2))]);
        assert_eq!(again(&shared, std::slice::from_ref(&put), &[]), [(1, 2)]);
        // Overtaken in the history that is lost: by a delete, by another value.
        assert_eq!(again(&shared, &[put.clone(), txn(OTHER, 2, &[("k", None)])], &[]), []);
        assert_eq!(again(&shared, &[put.clone(), txn(OTHER, 2, &[("k", Some(3))])], &[]), []);
        // Overtaken in the log that goes on, also by a delete of what is there no more.
        for later in [Some(9), None] {
            let since = [txn(3, 1, &[("k", later)])];
            assert_eq!(again(&shared, std::slice::from_ref(&put), &since), []);
            assert_eq!(again(&[], std::slice::from_ref(&put), &since), []);
        }
        // What was known when the own one was made has not overtaken it.
        let others = txn(OTHER, 2, &[("k", Some(3))]);
        assert_eq!(again(&shared, &[others.clone(), put.clone()], &[others]), [(1, 2)]);
        // Others' objects are nobody's business.
        assert_eq!(again(&shared, &[put], &[txn(3, 1, &[("z", None)])]), [(1, 2)]);
    }

    /// Counters of what is pushed again when only the state of the log that goes on can be read; `None`: it is not known.
    fn again_by_state(shared: &[Txn], own: &[Txn], since: &[Txn], known_after: u64) -> Option<Vec<u64>> {
        let all = |more: &[Txn]| state(&[shared, more].concat());
        let (old, new, shared_to) = (all(own), all(since), Seq(shared.len() as u64));
        let own: Vec<Arc<Txn>> = own.iter().cloned().map(Arc::new).collect();
        let mut deletions = new.deletions().expect("reads");
        deletions.forget_to(Seq(known_after), &mut crate::model::deletions::Changed::new());
        let written = written_after(&own, &new, &deletions, shared_to).expect("reads")?;
        let chosen = choose(own, &old, &new, &written, shared_to).expect("reads");
        Some(chosen.iter().map(|txn| txn.id.counter.0).collect())
    }

    #[test]
    fn p04_the_state_alone_shows_what_was_overtaken() {
        let shared = [txn(OTHER, 1, &[("k", Some(1)), ("gone", Some(1))]), txn(OTHER, 2, &[("gone", None)])];
        let own = [txn(ME, 1, &[("k", Some(2))]), txn(ME, 2, &[("new", Some(2)), ("gone", Some(2))])];
        let again = |since: &[Txn]| again_by_state(&shared, &own, since, 0).expect("known");
        assert_eq!(again(&[]), [1, 2], "what was deleted before is not between");
        assert_eq!(again(&[txn(3, 1, &[("z", Some(1))]), txn(3, 2, &[("z", None)])]), [1, 2]);
        // Deleted in between: what was there, what came in between, and what was absent all the time.
        assert_eq!(again(&[txn(3, 1, &[("k", None)])]), [2]);
        assert_eq!(again(&[txn(3, 1, &[("new", Some(5))]), txn(3, 2, &[("new", None)])]), [1]);
        assert_eq!(again(&[txn(3, 1, &[("new", None)])]), [1]);
        // Written in between, also after it was deleted.
        assert_eq!(again(&[txn(3, 1, &[("k", Some(5))])]), [2]);
        assert_eq!(again(&[txn(3, 1, &[("gone", None)]), txn(3, 2, &[("gone", Some(5))])]), [1]);
        // It reads as the own one has it.
        assert_eq!(again(&[txn(3, 1, &[("k", Some(2))])]), [1, 2]);
        // What is known begins too late, or just in time.
        assert_eq!(again_by_state(&shared, &own, &[txn(3, 1, &[("k", None)])], 3), None);
        assert_eq!(again_by_state(&shared, &own, &[txn(3, 1, &[("k", None)])], 2), Some(vec![2]));
        // An own deletion is pushed again unless the object was written since.
        let deleting = [txn(ME, 1, &[("k", None)])];
        assert_eq!(again_by_state(&shared, &deleting, &[], 0), Some(vec![1]));
        assert_eq!(again_by_state(&shared, &deleting, &[txn(3, 1, &[("k", Some(9))])], 0), Some(vec![]));
    }

    #[test]
    fn p04_of_several_writes_the_last_counts_and_what_depends_on_one_that_is_left_out_is_left_out() {
        let first = txn(ME, 1, &[("a", Some(1)), ("b", Some(1))]);
        let second = txn(ME, 2, &[("b", Some(2))]);
        assert_eq!(again(&[], &[first.clone(), second.clone()], &[]), [(1, 1), (2, 1)]);
        let both = txn(ME, 2, &[("b", Some(2)), ("k", Some(2))]);
        let overtaking = txn(OTHER, 1, &[("k", Some(3))]);
        assert_eq!(again(&[], &[first.clone(), both, overtaking], &[]), [], "b would read as the first made it");
        let gone = txn(ME, 2, &[("a", None)]);
        assert_eq!(again(&[], &[first, gone], &[]), [(1, 1), (2, 1)]);
    }
}
