//! Which of its own transactions a member pushes again, after its log went on without them.
//!
//! Only those that nothing has come after: what they write must read, in the state that this member had, as they made it, and
//! nobody may have written it in the log that goes on, except in transactions that this member had seen when it made its own.
//! They must not have been made upon anything that the log has not, and nothing is pushed again without what it was made upon:
//! whatever read or wrote what one that is left out wrote is left out, too. Everything that is left out is set aside.
//!
//! Of what is left out the deletions are pushed again all the same, each under its own identity ([`Parted::choose`]): otherwise
//! nothing would show the member that had made the object that it was deleted, and it would push the object again. What the
//! log that goes on lacks is deleted there under the condition that it is absent, which takes nothing away, whatever the
//! deletion was made upon; what it has, only by transactions that delete and do nothing else, upon what this member had seen.
//!
//! What is pushed again carries its conditions, translated (`protocol/rebase.rs`). Where it writes without one, it carries the
//! condition that the object is still as the log that goes on has it; where an earlier own one wrote or deleted what it reads or
//! writes, that this one was committed, and nothing after it. So of two the later one is rejected with the earlier one.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use bytes::Bytes;

use crate::model::deletions::{Deletions, Named};
use crate::model::{self, Condition, EntryBody, Op, Origin, OriginRow, Seq, Txn, TxnId};
use crate::planted::{self, Bug};
use crate::protocol::rebase::Lost;
use crate::state::{StateError, StateSnapshot};

/// What objects are to read; `None`: they are deleted.
pub(super) type Values = BTreeMap<Named, Option<Bytes>>;

type Txns = Vec<Arc<Txn>>;

fn named(op: &Op) -> Named {
    (op.collection().clone(), op.key().clone())
}

fn place(condition: &Condition) -> Named {
    (condition.collection().clone(), condition.key().clone())
}

fn absent((collection, key): Named) -> Condition {
    Condition::Absent { collection, key }
}

fn version((collection, key): Named, version: Seq) -> Condition {
    Condition::Version { collection, key, version }
}

fn written_by((collection, key): Named, id: TxnId) -> Condition {
    Condition::written_by(collection, key, id)
}

/// Whether conditions say which write of an object they expect, or that there is none.
fn says_which(conditions: &[Condition], name: &Named) -> bool {
    let of_it = |condition: &&Condition| (condition.collection(), condition.key()) == (&name.0, &name.1);
    conditions.iter().filter(of_it).any(|condition| !matches!(condition, Condition::Present { .. }))
}

/// Whether a transaction does nothing but delete.
fn deletes_only(txn: &Txn) -> bool {
    txn.ops.iter().all(|op| op.value().is_none())
}

/// What transactions make of each object, taken together.
pub(super) fn values(txns: &[Arc<Txn>]) -> Values {
    txns.iter().flat_map(|txn| &txn.ops).map(|op| (named(op), op.value().cloned())).collect()
}

/// What was done to objects of interest in the log that goes on, since the histories parted.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Written by others, as far as this member had not seen it before.
    written: BTreeSet<Named>,
    /// The last transactions that wrote them, of those that it had seen.
    known: BTreeMap<Named, TxnId>,
}

/// Reads what others did from the log that goes on.
pub(super) struct Since<'a> {
    old: &'a StateSnapshot,
    of_interest: BTreeSet<Named>,
    seen: BTreeMap<Origin, OriginRow>,
    pub others: Others,
}

impl<'a> Since<'a> {
    pub(super) fn new(old: &'a StateSnapshot, own: &[Arc<Txn>]) -> Since<'a> {
        let of_interest = own.iter().flat_map(|txn| &txn.ops).map(named).collect();
        Since { old, of_interest, seen: BTreeMap::new(), others: Others::default() }
    }

    /// Takes in an entry of the log that goes on.
    pub(super) fn take(&mut self, entry: &model::Entry) -> Result<(), StateError> {
        let EntryBody::Commit(txn) = &entry.body else { return Ok(()) };
        let names: Vec<Named> = txn.ops.iter().map(named).filter(|name| self.of_interest.contains(name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        if self.had_seen(txn.id)? {
            self.others.known.extend(names.into_iter().map(|name| (name, txn.id)));
        } else {
            self.others.written.extend(names);
        }
        Ok(())
    }

    fn had_seen(&mut self, id: TxnId) -> Result<bool, StateError> {
        let row = match self.seen.entry(id.origin) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.old.origin(id.origin)?.unwrap_or_default()),
        };
        // One that was rejected there wrote nothing there. Once its author knows of that, it has another identity.
        let is_rejected = row.rejection(id.counter).is_some() && !planted::is(Bug::RejectedCountsAsSeen);
        Ok(id.counter <= row.last_counter && !is_rejected)
    }
}

/// What was done to the objects of `own` in the log that goes on after `shared_to`, as far as its state alone shows it: what was
/// written and is there has a later version, what was deleted is among the recent `deletions`. Nothing shows whether this member
/// had seen it, so only what reads as `own` has it counts as not written. `None`: `deletions` do not reach back that far.
pub(super) fn written_after(
    own: &[Arc<Txn>],
    new: &StateSnapshot,
    deletions: &Deletions,
    shared_to: Seq,
) -> Result<Option<Others>, StateError> {
    if deletions.complete_after() > shared_to {
        return Ok(None);
    }
    let mut others = Others::default();
    for (name, value) in values(own) {
        let there = new.get(&name.0, &name.1)?;
        let last = there.as_ref().map(|object| object.version).or_else(|| deletions.get(&name.0, &name.1));
        let is_same = there.map(|object| object.value) == value;
        if last.is_some_and(|last| last > shared_to) && !is_same {
            others.written.insert(name);
        }
    }
    Ok(Some(others))
}

/// Transactions in their order, with those that wrote each object last, and whether they put it.
#[derive(Default)]
struct Before<'a>(BTreeMap<Named, (&'a Txn, bool)>);

impl<'a> Before<'a> {
    fn take(&mut self, txn: &'a Txn) {
        self.0.extend(txn.ops.iter().map(|op| (named(op), (txn, op.value().is_some()))));
    }

    /// That an object is as the last one left it; nothing when there is none.
    fn link(&self, name: &Named) -> Option<Condition> {
        let (writer, is_put) = self.0.get(name)?;
        Some(if *is_put { written_by(name.clone(), writer.id) } else { absent(name.clone()) })
    }

    /// That the one which deleted an object was committed: a deletion leaves nothing that says so, another write of it does.
    fn deleted(&self, name: &Named) -> Option<Condition> {
        let (writer, _) = self.0.get(name).filter(|(_, is_put)| !is_put)?;
        writer.ops.iter().map(named).find_map(|name| {
            let (last, _) = self.0.get(&name).filter(|(_, is_put)| *is_put)?;
            Some(written_by(name, last.id))
        })
    }

    /// The last one that wrote the object of a condition, when the condition shows that another write came after it.
    fn overtaken(&self, condition: &Condition) -> Option<TxnId> {
        let (writer, is_put) = self.0.get(&place(condition))?;
        let is_as_left = match condition {
            Condition::Absent { .. } => !is_put,
            Condition::Present { .. } => *is_put,
            Condition::Version { .. } => *is_put && condition.mark() == Some(writer.id.mark()),
        };
        (!is_as_left).then_some(writer.id)
    }
}

/// Own transactions that may have come before a write of another member, of those that were seen and that the log that goes on has
/// again, and others after it: pushed again they would come after that write. An own one that names the one before it as the last
/// writer shows that nothing came between the two.
fn parted_by(own: &[Arc<Txn>], known: &BTreeMap<Named, TxnId>) -> BTreeSet<TxnId> {
    let mut parted = BTreeSet::new();
    for name in known.keys() {
        let mut before: Vec<TxnId> = Vec::new();
        for txn in own.iter().filter(|txn| txn.ops.iter().any(|op| named(op) == *name)) {
            let is_upon = |last: &TxnId| {
                let of_it = |condition: &&Condition| place(condition) == *name;
                txn.conditions.iter().filter(of_it).any(|condition| condition.mark() == Some(last.mark()))
            };
            if !before.last().is_none_or(is_upon) {
                parted.extend(before.drain(..));
            }
            before.push(txn.id);
        }
    }
    parted
}

/// Two histories that parted: the state that this member had in one, and the state of the other, which goes on.
pub(super) struct Parted<'a> {
    pub old: &'a StateSnapshot,
    pub new: &'a StateSnapshot,
    pub lost: &'a Lost,
}

impl Parted<'_> {
    fn translated(&self, txn: &Arc<Txn>) -> Arc<Txn> {
        Arc::new(Txn { conditions: self.lost.conditions(&txn.conditions), ..Txn::clone(txn) })
    }

    /// Decides what becomes of the own transactions that the log lacks, in their order: the `lacking` ones, then those that are
    /// `gone` with a state. Returns what is pushed again, and what is archived. What `others` did may not be known: then only
    /// deletions of what is absent are pushed again; after a restore (`is_restore`) nothing is.
    pub(super) fn choose(
        &self,
        lacking: &[Arc<Txn>],
        gone: &[Arc<Txn>],
        others: Option<&Others>,
        is_restore: bool,
    ) -> Result<(Txns, Txns), StateError> {
        let (again, whole) = if is_restore {
            (Vec::new(), BTreeSet::new())
        } else {
            let again = others.map_or(Ok(Vec::new()), |others| self.again(lacking, others))?;
            self.with_deletions(lacking, gone, again, others)?
        };
        let archived = self.archived(lacking, &whole, gone)?;
        Ok((again, archived))
    }

    /// What is pushed `again`, and in their places among that the deletions of what is not. Also returns which transactions are
    /// pushed with all of their operations.
    fn with_deletions(
        &self,
        lacking: &[Arc<Txn>],
        gone: &[Arc<Txn>],
        again: Vec<Arc<Txn>>,
        others: Option<&Others>,
    ) -> Result<(Vec<Arc<Txn>>, BTreeSet<TxnId>), StateError> {
        let mut whole: BTreeSet<TxnId> = again.iter().map(|txn| txn.id).collect();
        let mut stays: BTreeMap<TxnId, Arc<Txn>> = again.into_iter().map(|txn| (txn.id, txn)).collect();
        let mut last = BTreeMap::new();
        for txn in lacking.iter().chain(gone) {
            let is_again = stays.contains_key(&txn.id);
            last.extend(txn.ops.iter().map(|op| (named(op), (op.value().is_some(), is_again))));
        }
        let (mut pushed, mut links, mut left) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        for (number, txn) in lacking.iter().chain(gone).enumerate() {
            let next = match stays.remove(&txn.id) {
                Some(txn) => txn,
                None => {
                    let is_gone = number >= lacking.len();
                    let deletion = self.deletion(txn, is_gone, &last, &links, &left, others)?;
                    left.extend(txn.ops.iter().map(named));
                    let Some((deletion, is_whole)) = deletion else { continue };
                    // What came after one that went with a state is not known, so its author is told of it in any case.
                    if is_whole && !is_gone {
                        whole.insert(txn.id);
                    }
                    Arc::new(deletion)
                }
            };
            for op in &next.ops {
                let is_put = op.value().is_some();
                let name = named(op);
                links.insert(name.clone(), if is_put { written_by(name, next.id) } else { absent(name) });
            }
            pushed.push(next);
        }
        Ok((pushed, whole))
    }

    /// What is pushed of a transaction that is left out: its deletions of objects that this member had no more, in whatever state
    /// that was, and that others have not written since. Also returns whether that is all of it. `last`: whether the last own
    /// one that wrote each object put it, and is pushed again itself; `links`: what is pushed before; `left`: what those wrote that
    /// are left out before.
    fn deletion(
        &self,
        txn: &Arc<Txn>,
        is_gone: bool,
        last: &BTreeMap<Named, (bool, bool)>,
        links: &BTreeMap<Named, Condition>,
        left: &BTreeSet<Named>,
        others: Option<&Others>,
    ) -> Result<Option<(Txn, bool)>, StateError> {
        let (txn, nothing) = (self.translated(txn), Others::default());
        let wanted = values(std::slice::from_ref(&txn));
        let known = others.unwrap_or(&nothing);
        let takes_nothing = |condition: &Condition| matches!(condition, Condition::Absent { .. });
        let mut deleted = BTreeMap::new();
        for name in wanted.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name) {
            let Some((false, is_again)) = last.get(name).copied() else { continue };
            if known.written.contains(name) || !(is_gone || self.old.version(&name.0, &name.1)?.is_none()) {
                continue;
            }
            let condition = links.get(name).map_or_else(|| self.as_it_is(name.clone(), known), |it| Ok(it.clone()))?;
            // What is there is deleted by that one.
            if takes_nothing(&condition) || !is_again {
                deleted.insert(name.clone(), condition);
            }
        }
        let is_upon_lost = |read: &Condition| read.is_upon_lost() || left.contains(&place(read));
        let mut reads: Vec<Condition> =
            txn.conditions.iter().filter(|condition| !wanted.contains_key(&place(condition))).cloned().collect();
        let may_take = others.is_some() && deleted.len() == wanted.len() && !reads.iter().any(is_upon_lost);
        if is_gone || !may_take {
            deleted.retain(|_, condition| takes_nothing(&*condition));
        }
        if deleted.is_empty() {
            return Ok(None);
        }
        let is_whole = deleted.len() == wanted.len();
        let is_deleted = |op: &&Op| op.value().is_none() && deleted.contains_key(&named(op));
        let ops = txn.ops.iter().filter(is_deleted).cloned().collect();
        if deleted.values().all(takes_nothing) {
            reads.clear();
        }
        reads.extend(deleted.into_values());
        Ok(Some((Txn { conditions: reads, ops, ..Txn::clone(&txn) }, is_whole)))
    }

    /// Chooses from the `own` transactions, in their order, those to be pushed again, as they are to be pushed.
    fn again(&self, own: &[Arc<Txn>], others: &Others) -> Result<Vec<Arc<Txn>>, StateError> {
        let own: Vec<Arc<Txn>> = own.iter().map(|txn| self.translated(txn)).collect();
        let stay = self.staying(&own, others)?;
        let (mut before, mut again) = (Before::default(), Vec::new());
        for txn in own.iter().filter(|txn| stay.contains(&txn.id)) {
            let conditions = self.conditions(txn, &before, others)?;
            before.take(txn);
            again.push(Arc::new(Txn { conditions, ..Txn::clone(txn) }));
        }
        Ok(again)
    }

    fn staying(&self, own: &[Arc<Txn>], others: &Others) -> Result<BTreeSet<TxnId>, StateError> {
        let (mut had, mut lacked) = (Values::new(), BTreeSet::new());
        for name in own.iter().flat_map(|txn| &txn.ops).map(named) {
            let value = self.old.get(&name.0, &name.1)?.map(|object| object.value);
            if self.new.version(&name.0, &name.1)?.is_none() {
                lacked.insert(name.clone());
            }
            had.insert(name, value);
        }
        // That a deleted object is there, where it is not: what else such a transaction does must not keep it from being deleted.
        let is_impossible = |txn: &Txn, condition: &Condition, before: &Before<'_>| {
            let name = place(condition);
            let is_deleted = txn.ops.iter().rev().find(|op| named(op) == name).is_some_and(|op| op.value().is_none());
            let requires = matches!(condition, Condition::Present { .. }) && !deletes_only(txn);
            requires && is_deleted && lacked.contains(&name) && before.link(&name).is_none()
        };
        let parted = parted_by(own, &others.known);
        let mut stay: BTreeSet<TxnId> = own.iter().map(|txn| txn.id).filter(|id| !parted.contains(id)).collect();
        loop {
            // Without one that is left out, an object may read otherwise: then what wrote it is left out, too.
            let made: Vec<Arc<Txn>> = own.iter().filter(|txn| stay.contains(&txn.id)).cloned().collect();
            let made = values(&made);
            let is_written = |name: &Named| others.written.contains(name) && !planted::is(Bug::OvertakenPushedAgain);
            let is_last = |name: &Named| made.get(name) == had.get(name) && !is_written(name);
            let (count, mut before, mut gone) = (stay.len(), Before::default(), BTreeSet::new());
            for txn in own {
                let overtaken: Vec<TxnId> =
                    txn.conditions.iter().filter_map(|condition| before.overtaken(condition)).collect();
                let is_upon_lost = |condition: &Condition| {
                    condition.is_upon_lost()
                        || gone.contains(&place(condition))
                        || is_impossible(txn, condition, &before)
                };
                let is_left = |name: Named| !is_last(&name) || gone.contains(&name);
                if !overtaken.is_empty()
                    || txn.conditions.iter().any(is_upon_lost)
                    || txn.ops.iter().map(named).any(is_left)
                {
                    stay.retain(|id| *id != txn.id && !overtaken.contains(id));
                }
                if stay.contains(&txn.id) {
                    before.take(txn);
                } else {
                    gone.extend(txn.ops.iter().map(named));
                }
            }
            if stay.len() == count {
                return Ok(stay);
            }
        }
    }

    /// The conditions of one that is pushed again after those `before` it.
    fn conditions(&self, txn: &Txn, before: &Before<'_>, others: &Others) -> Result<Vec<Condition>, StateError> {
        let mut conditions = txn.conditions.clone();
        if planted::is(Bug::AgainUnconditioned) {
            return Ok(conditions);
        }
        let read = txn.conditions.iter().map(place);
        let names: BTreeSet<Named> = read.chain(txn.ops.iter().map(named)).collect();
        for name in names {
            let is_written = txn.ops.iter().any(|op| (op.collection(), op.key()) == (&name.0, &name.1));
            let is_lacked = || self.new.version(&name.0, &name.1).map(|found| found.is_none());
            if is_written && deletes_only(txn) && before.link(&name).is_none() && is_lacked()? {
                // It takes nothing away, whatever it was made upon.
                conditions.retain(|condition| place(condition) != name);
            }
            let more = match before.link(&name) {
                Some(link) => [Some(link), before.deleted(&name)],
                None if is_written && !says_which(&conditions, &name) => [Some(self.as_it_is(name, others)?), None],
                None => [None, None],
            };
            for condition in more.into_iter().flatten() {
                if !conditions.contains(&condition) {
                    conditions.push(condition);
                }
            }
        }
        Ok(conditions)
    }

    /// That an object is as the log that goes on has it.
    fn as_it_is(&self, name: Named, others: &Others) -> Result<Condition, StateError> {
        let found = self.new.version(&name.0, &name.1)?;
        let writer = others.known.get(&name).filter(|_| found.is_some_and(|found| found > self.lost.shared_to()));
        Ok(match (found, writer) {
            (None, _) => absent(name),
            (Some(_), Some(id)) => written_by(name, *id),
            (Some(found), None) => version(name, found),
        })
    }

    /// Of the `lacking` transactions those that are not pushed `again` and left something behind, or were made upon by such ones:
    /// what they wrote read as they made it in the state that this member had, and reads otherwise in the log that goes on. All of
    /// those that went with a state (`gone`) belong to them. They carry the conditions under which their authors may try them again.
    fn archived(
        &self,
        lacking: &[Arc<Txn>],
        again: &BTreeSet<TxnId>,
        gone: &[Arc<Txn>],
    ) -> Result<Vec<Arc<Txn>>, StateError> {
        let (mut archived, mut upon) = (Vec::new(), BTreeSet::new());
        let gone_ids: BTreeSet<TxnId> = gone.iter().map(|txn| txn.id).collect();
        for txn in lacking.iter().chain(gone).rev().filter(|txn| !again.contains(&txn.id) && !txn.ops.is_empty()) {
            let txn = self.translated(txn);
            if upon.contains(&txn.id.mark()) || gone_ids.contains(&txn.id) || self.left_something(&txn)? {
                upon.extend(txn.conditions.iter().filter_map(Condition::mark));
                archived.push(txn);
            }
        }
        archived.reverse();
        let deletions = self.new.deletions()?;
        let mut before = Before::default();
        let mut conditioned = Vec::new();
        for txn in &archived {
            let mut conditions = txn.conditions.clone();
            for name in txn.ops.iter().map(named).collect::<BTreeSet<Named>>() {
                if !says_which(&conditions, &name) {
                    let link = before.link(&name);
                    conditions.push(link.map_or_else(|| self.as_shared(name, &deletions), Ok)?);
                }
            }
            before.take(txn);
            conditioned.push(Arc::new(Txn { conditions, ..Txn::clone(txn) }));
        }
        Ok(conditioned)
    }

    fn left_something(&self, txn: &Txn) -> Result<bool, StateError> {
        for op in &txn.ops {
            let (collection, key) = (op.collection(), op.key());
            let had = self.old.get(collection, key)?.map(|object| object.value);
            if had.as_ref() == op.value() && self.new.get(collection, key)?.map(|object| object.value) != had {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// That an object is as both histories had it, which nothing satisfies where the log that goes on has changed it.
    fn as_shared(&self, name: Named, deletions: &Deletions) -> Result<Condition, StateError> {
        let shared_to = self.lost.shared_to();
        let found = self.new.version(&name.0, &name.1)?;
        let last = found.or_else(|| deletions.get(&name.0, &name.1));
        let is_known = found.is_some() || deletions.complete_after() <= shared_to;
        Ok(match found {
            _ if !is_known || last.is_some_and(|last| last > shared_to) => Condition::upon_lost(name.0, name.1),
            Some(found) => version(name, found),
            None => absent(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Chain, Collection, Entry, Generation, Key, LineageEntry, LogId, MemberName, OriginCounter, Reason,
    };
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

    /// What was rejected in the history that is lost, and is committed in the log that goes on, its readers had not seen.
    #[test]
    fn p08_what_was_rejected_in_the_lost_history_was_not_seen_there() {
        let other = txn(OTHER, 1, &[("k", Some(1))]);
        let rejected = EntryBody::Reject { id: other.id, settled: OriginCounter(0), reason: Reason::IdentityReused };
        let own = txn(ME, 1, &[("k", Some(2))]);
        let old = state_of(&[Entry { body: rejected, ..entries(std::slice::from_ref(&other), 1).remove(0) }]);
        let own = [Arc::new(own)];
        let mut since = Since::new(&old, &own);
        since.take(&entries(std::slice::from_ref(&other), 1)[0]).expect("reads");
        assert!(since.others.written.contains(&name("k")) && since.others.known.is_empty(), "{:?}", since.others);
    }

    fn state(txns: &[Txn]) -> StateSnapshot {
        state_of(&entries(txns, 1))
    }

    fn state_of(entries: &[Entry]) -> StateSnapshot {
        let state = StateStore::in_memory();
        let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
        state.init(LogId([1; 16]), Generation(1), lineage).expect("begins");
        if !entries.is_empty() {
            state.apply(entries, Chain::default()).expect("applies");
        }
        state.snapshot().expect("a view")
    }

    /// Counters and numbers of operations of what is pushed again; `history` after `shared`, `since` instead of it.
    fn again(shared: &[Txn], history: &[Txn], since: &[Txn]) -> Vec<(u64, usize)> {
        let all = |more: &[Txn]| state(&[shared, more].concat());
        let (old, new, shared_to) = (all(history), all(since), shared.len() as u64);
        let own = history.iter().filter(|txn| txn.id.origin == Origin([ME; 16])).cloned().map(Arc::new);
        let own: Vec<Arc<Txn>> = own.collect();
        let mut since_then = Since::new(&old, &own);
        entries(since, shared_to + 1).iter().for_each(|entry| since_then.take(entry).expect("reads"));
        let shown = new.deletions().expect("reads");
        let shown =
            written_after(&own, &new, &shown, Seq(shared_to)).expect("reads").expect("known from the beginning");
        let lost = Lost::after(Seq(shared_to));
        let parted = Parted { old: &old, new: &new, lost: &lost };
        let by_state = parted.again(&own, &shown).expect("reads");
        let chosen = parted.again(&own, &since_then.others).expect("reads");
        let is_chosen = |txn: &Arc<Txn>| chosen.iter().any(|chosen| chosen.id == txn.id);
        assert!(by_state.iter().all(is_chosen), "what the log shows as overtaken, its state shows");
        let of_state = |condition: &&Condition| condition.mark().is_none();
        for condition in chosen.iter().flat_map(|txn| &txn.conditions).filter(of_state) {
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
        let lost = Lost::after(shared_to);
        let chosen = Parted { old: &old, new: &new, lost: &lost }.again(&own, &written).expect("reads");
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

    /// Of two own changes the first may have come before what the log that goes on has again.
    #[test]
    fn p08_what_came_before_a_change_that_is_there_again_does_not_come_after_it() {
        let (first, second) = (txn(ME, 1, &[("k", Some(1))]), txn(ME, 2, &[("k", Some(3))]));
        let other = txn(OTHER, 1, &[("k", Some(2))]);
        let between = [first.clone(), other.clone(), second.clone()];
        assert_eq!(again(&[], &between, std::slice::from_ref(&other)), []);
        assert_eq!(again(&[], &between, &[]), [(1, 1), (2, 1)], "it is not there");
        let upon = Txn { conditions: vec![written_by(name("k"), first.id)], ..second };
        assert_eq!(again(&[], &[other.clone(), first, upon], &[other]), [(1, 1), (2, 1)], "nothing came between");
    }

    #[test]
    fn p04_what_depends_on_one_that_is_left_out_is_left_out() {
        let first = txn(ME, 1, &[("a", Some(1)), ("b", Some(1))]);
        let second = txn(ME, 2, &[("b", Some(2))]);
        assert_eq!(again(&[], &[first.clone(), second.clone()], &[]), [(1, 2), (2, 1)]);
        let both = txn(ME, 2, &[("b", Some(2)), ("k", Some(2))]);
        let overtaking = txn(OTHER, 1, &[("k", Some(3))]);
        assert_eq!(again(&[], &[first.clone(), both, overtaking], &[]), [], "b would read as the first made it");
        let gone = txn(ME, 2, &[("a", None)]);
        assert_eq!(again(&[], &[first, gone], &[]), [(1, 2), (2, 1)]);
    }
}
