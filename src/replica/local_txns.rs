//! Selects the local transactions that a member pushes again after the log continued without them. "The new log" is the
//! one that continued.
//!
//! A transaction is pushed again only if nothing came after it. In this member's state, its objects must still read as
//! it wrote them. In the new log, no other member may have written them, except in transactions that this member had
//! seen when it made its own. It must not depend on anything that the new log lacks, nor on a transaction that is left
//! out: reading or writing an object written by one of those counts. Everything left out is archived.
//!
//! Deletions in transactions that are left out are still pushed again, each under its own identity
//! ([`DivergedHistories::choose`]). Otherwise the member that created the object would not learn of the deletion and would push it
//! again. If the new log lacks the object, the deletion has the condition that it is absent, which removes nothing,
//! whatever the deletion depended on. If the new log has it, only transactions that do nothing but delete are pushed,
//! upon the versions that this member had seen.
//!
//! Transactions that are pushed again carry their conditions, translated (`protocol/rebase.rs`). A write without a
//! condition gets the condition that the object is still as in the new log. If an earlier local transaction wrote or
//! deleted an object that this one reads or writes, the condition is that the earlier one was committed and nothing
//! came after it. So if the earlier of two is rejected, the later one is rejected as well.
//!
//! An operation that only takes a right away ([`revocation::takes_right`]), and is in force in this member's state,
//! is never left out because of writes by others, in the new log or later in the lost part, and has no condition on
//! what it replaces. Of a transaction that is left out, the deletions of objects that give rights are pushed all the
//! same, except of those that had to be unchanged. What takes rights away alone does not depend on the login of its
//! author again, which was checked when it was committed, and which it may end. It depends on the author's role and
//! lock only where others have written these in the new log, so that nobody acts who was demoted or locked there.
//!
//! Nothing is created or returns by that. Only objects that restrict a user are put, and what gives a right stands on
//! its own conditions. Sessions and tokens name the epoch in which they were made, so an epoch that replaces a later
//! one could make its own ones valid again:
//!
//! - They are left out if others have written the epoch in the new log, or if this member's state has another epoch
//!   than the new log, which has that of a local transaction if one is pushed. So is everything else that requires an
//!   epoch of a local transaction, if others have written it in the new log. An epoch that others write while this
//!   member reads the new log is not known to it.
//! - An epoch of which sessions or tokens are put in the same transaction has conditions like all else.
//!
//! That the new log lacks an object is known as of the sequence to which it was read. Until the transaction that puts
//! the object arrives, another member may push a deletion of it, which leaves the object absent. So what puts an object
//! that the new log lacks has the condition that it was not deleted after that sequence either
//! ([`Condition::absent_since`]). If local transactions delete and then put it, the first one has this condition, and
//! each of the others the condition that the one before was the last to write or delete the object.
//!
//! The conditions that are added do not count against the limits of authors ([`PushLimits`]). A transaction that is still
//! too large for the datastore is left out.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use bytes::Bytes;

use gravwell_model::deletions::{Deletions, Named};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::limits::{HARD, PushLimits};
use gravwell_model::revocation::{self, is_presence_of_unique};
use gravwell_model::{self as model, Condition, EntryBody, Op, Origin, OriginRow, Seq, Txn, TxnId};
use gravwell_protocol::rebase::{Assumed, Lost};
use gravwell_state::{StateError, StateSnapshot};

mod by_name;

use by_name::{Conditions, InForce, LastOps};

/// Final values of objects; `None` if an object is deleted.
pub(super) type Values = BTreeMap<Named, Option<Bytes>>;

pub(super) type Txns = Vec<Arc<Txn>>;

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

/// Returns whether a transaction does nothing but delete.
fn deletes_only(txn: &Txn) -> bool {
    txn.ops.iter().all(|op| op.value().is_none())
}

/// Returns whether putting or deleting an object takes a right away that is still taken in a state with the values `had`.
fn is_taken(name: &Named, is_put: bool, had: &Values) -> bool {
    revocation::takes_right(&name.0, is_put) && had.get(name).map(Option::is_some) == Some(is_put)
}

/// Returns whether all that a transaction does is take rights away that are still taken.
fn is_revocation(txn: &Txn, had: &Values) -> bool {
    let in_force = InForce::of(txn, had);
    !txn.ops.is_empty() && txn.ops.iter().all(|op| in_force.has(op))
}

/// Returns a transaction without conditions on rights of its author, if all it does is take rights away. No login is
/// required again, not even one that it ends. Conditions on a role or lock stay if the transaction writes it, or others
/// have written it in the new log. So do those on the version of what it deletes.
fn without_standing(txn: &Arc<Txn>, had: &Values, others: &Others) -> Arc<Txn> {
    if !is_revocation(txn, had) {
        return Arc::clone(txn);
    }
    let written = LastOps::of(txn);
    let is_written = |condition: &Condition| written.has(&place(condition));
    let is_of_login = |condition: &Condition| {
        revocation::is_on_epoch(condition)
            || matches!(condition, Condition::Present { .. }) && !revocation::is_on_role(condition)
    };
    let is_kept = |condition: &&Condition| {
        !revocation::is_on_rights(condition)
            || others.have_judged(condition)
            || is_written(condition) && !is_of_login(condition)
    };
    if txn.conditions.iter().all(|condition| is_kept(&condition)) {
        return Arc::clone(txn);
    }
    let conditions = txn.conditions.iter().filter(is_kept).cloned().collect();
    Arc::new(Txn { conditions, ..Txn::clone(txn) })
}

/// Returns the roles and locks on which transactions depend.
fn roles(own: &[Arc<Txn>]) -> impl Iterator<Item = Named> {
    let conditions = own.iter().flat_map(|txn| &txn.conditions);
    conditions.filter(|condition| revocation::is_on_role(condition)).map(place)
}

/// Returns the epochs in which logins and tokens that transactions put are valid.
fn epochs(own: &[Arc<Txn>]) -> impl Iterator<Item = Named> {
    own.iter().flat_map(|txn| revocation::epochs_of(&txn.ops))
}

/// Returns an archived transaction with the conditions under which its author may retry it. If they are more than a
/// record of the journal can have, nothing satisfies the one that replaces them.
fn listed(txn: &Txn, conditions: Vec<Condition>) -> Txn {
    let listed = Txn { conditions, ..txn.clone() };
    if listed.bytes_estimate() <= HARD.txn_bytes_max {
        return listed;
    }
    let lost = txn.ops.first().map(named).map(|(collection, key)| Condition::upon_lost(collection, key));
    let conditions = txn.conditions.iter().cloned().chain(lost).collect();
    Txn { conditions, ..listed }
}

/// Returns the final value that transactions, in order, give each object.
pub(super) fn values(txns: &[Arc<Txn>]) -> Values {
    txns.iter().flat_map(|txn| &txn.ops).map(|op| (named(op), op.value().cloned())).collect()
}

/// Changes to the objects of interest in the new log since the histories diverged.
#[derive(Clone, Debug, Default)]
pub(super) struct Others {
    /// Objects written by others, in transactions that this member had not seen.
    written: BTreeSet<Named>,
    /// Last transaction that wrote each object, among those that this member had seen.
    known: BTreeMap<Named, TxnId>,
    /// Sequence to which entries of the new log were read; zero if none were.
    read_to: Seq,
    /// Objects deleted by anyone.
    deleted: BTreeSet<Named>,
}

impl Others {
    /// Returns whether the new log is known to have deleted an object since the histories diverged.
    pub(super) fn have_deleted(&self, name: &Named) -> bool {
        self.deleted.contains(name)
    }

    /// Returns whether a condition is on a role or lock that others have written.
    fn have_judged(&self, condition: &Condition) -> bool {
        revocation::is_on_role(condition) && self.written.contains(&place(condition))
    }

    /// Returns whether all writes of an object in the new log are known to be ones that this member had seen.
    pub(super) fn wrote_as_seen(&self, name: &Named) -> bool {
        self.known.contains_key(name) && !self.written.contains(name)
    }
}

/// Collects what others did from entries of the new log.
pub(super) struct Since<'a> {
    old: &'a StateSnapshot,
    of_interest: BTreeSet<Named>,
    /// Deletions of the abandoned history. Their objects are of interest as well.
    deletions: Option<&'a Deletions>,
    seen: BTreeMap<Origin, OriginRow>,
    pub others: Others,
}

impl<'a> Since<'a> {
    pub(super) fn new(old: &'a StateSnapshot, own: &[Arc<Txn>]) -> Since<'a> {
        let of_interest = own.iter().flat_map(|txn| &txn.ops).map(named).chain(roles(own)).chain(epochs(own)).collect();
        Since { old, of_interest, deletions: None, seen: BTreeMap::new(), others: Others::default() }
    }

    /// Adds the deletions of the abandoned history.
    pub(super) fn with_deletions(self, deletions: &'a Deletions) -> Since<'a> {
        Since { deletions: Some(deletions), ..self }
    }

    /// Evaluates an entry of the new log.
    pub(super) fn take(&mut self, entry: &model::Entry) -> Result<(), StateError> {
        self.others.read_to = self.others.read_to.max(entry.seq);
        let EntryBody::Commit(txn) = &entry.body else { return Ok(()) };
        let is_deleted = |(collection, key): &Named| self.deletions.is_some_and(|it| it.get(collection, key).is_some());
        let is_of_interest = |name: &Named| self.of_interest.contains(name) || is_deleted(name);
        let names: Vec<Named> = txn.ops.iter().map(named).filter(is_of_interest).collect();
        if names.is_empty() {
            return Ok(());
        }
        let deletes = txn.ops.iter().filter(|op| op.value().is_none()).map(named).filter(is_of_interest);
        self.others.deleted.extend(deletes.collect::<Vec<_>>());
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
        // A transaction that was rejected in the old history wrote nothing there. Once its author knows, it has
        // another identity.
        let is_rejected = row.rejection(id.counter).is_some() && !fault_injection::is(Bug::RejectedCountsAsSeen);
        Ok(id.counter <= row.last_counter && !is_rejected)
    }
}

/// Determines from the new state alone which objects of `own` were written after `shared_to`. A written object that
/// still exists has a later version; a deleted one is among the recent `deletions`. Nothing shows whether this member
/// had seen the write, so an object counts as not written only if it reads as `own` left it. An absent one must not have
/// been put by `own` either: it would return until the later local deletion. Returns `None` if `deletions` do not reach
/// back that far.
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
    let put: BTreeSet<Named> =
        own.iter().flat_map(|txn| &txn.ops).filter(|op| op.value().is_some()).map(named).collect();
    let left = values(own);
    for name in roles(own).chain(epochs(own)).filter(|name| !left.contains_key(name)) {
        let last = new.version(&name.0, &name.1)?.or_else(|| deletions.get(&name.0, &name.1));
        if last.is_some_and(|last| last > shared_to) {
            others.written.insert(name);
        }
    }
    for (name, value) in left {
        let there = new.get(&name.0, &name.1)?;
        let last = there.as_ref().map(|object| object.version).or_else(|| deletions.get(&name.0, &name.1));
        let returns = value.is_none() && put.contains(&name);
        let is_same = there.map(|object| object.value) == value && !returns;
        if last.is_some_and(|last| last > shared_to) && !is_same {
            others.written.insert(name);
        }
    }
    Ok(Some(others))
}

/// The last writer of each object among transactions in order, and whether it put the object.
#[derive(Default)]
struct Before<'a>(BTreeMap<Named, (&'a Txn, bool)>);

impl<'a> Before<'a> {
    fn take(&mut self, txn: &'a Txn) {
        self.0.extend(txn.ops.iter().map(|op| (named(op), (txn, op.value().is_some()))));
    }

    /// Returns the condition that an object is as its last writer left it; `None` if there is no writer.
    fn link(&self, name: &Named) -> Option<Condition> {
        let (writer, is_put) = self.0.get(name)?;
        Some(if *is_put { written_by(name.clone(), writer.id) } else { absent(name.clone()) })
    }

    /// Like [`Before::link`], but of a deleted object no other transaction may have deleted it since.
    fn last_link(&self, name: &Named) -> Option<Condition> {
        self.0.get(name).map(|(writer, _)| written_by(name.clone(), writer.id))
    }

    /// Returns the last writer of an object if it deleted the object.
    fn deleter(&self, name: &Named) -> Option<&'a Txn> {
        self.0.get(name).filter(|(_, is_put)| !is_put).map(|(writer, _)| *writer)
    }

    /// Returns a condition which proves that the transaction that deleted an object was committed. The deletion leaves
    /// no trace, so the condition is on another write of that transaction.
    fn deleted(&self, name: &Named) -> Option<Condition> {
        self.deleter(name)?.ops.iter().map(named).find_map(|name| {
            let (last, _) = self.0.get(&name).filter(|(_, is_put)| *is_put)?;
            Some(written_by(name, last.id))
        })
    }

    /// Returns whether the last writer of an object took a right away with it that is still taken in a state with the
    /// values `had`.
    fn is_taken(&self, name: &Named, had: &Values) -> bool {
        self.0.get(name).is_some_and(|(_, is_put)| is_taken(name, *is_put, had))
    }

    /// Returns the last writer of the condition's object if the condition shows that another write came after it.
    fn overtaken(&self, condition: &Condition) -> Option<TxnId> {
        let (writer, is_put) = self.0.get(&place(condition))?;
        let is_as_left = match condition {
            Condition::Absent { .. } => !is_put,
            Condition::Present { .. } => *is_put,
            Condition::Version { .. } if condition.since().is_some() => !is_put,
            Condition::Version { .. } => condition.mark() == Some(writer.id.mark()),
        };
        (!is_as_left).then_some(writer.id)
    }
}

/// Returns local transactions that may precede another member's write which was seen and which the new log has again,
/// while later local ones follow it. Pushed again, they would come after that write. That does not matter for operations
/// that only take rights away, which the state with the values `had` does not give again. A local transaction that names
/// the previous one as the last writer shows that nothing came between the two, unless that is only `assumed`.
fn parted_by(own: &[Arc<Txn>], known: &BTreeMap<Named, TxnId>, assumed: &Assumed, had: &Values) -> BTreeSet<TxnId> {
    // For each object its writers, with the marks of the transactions on which they depend for it.
    let mut writers: BTreeMap<Named, Vec<(TxnId, Vec<Seq>)>> = BTreeMap::new();
    for txn in own {
        let in_force = InForce::of(txn, had);
        let ops = txn.ops.iter().filter(|op| !in_force.has(op));
        let names: BTreeSet<Named> = ops.map(named).filter(|name| known.contains_key(name)).collect();
        let conditions = Conditions::of(if names.is_empty() { &[] } else { &txn.conditions });
        for name in names {
            let marks = conditions.on(&name).filter_map(Condition::mark).collect();
            writers.entry(name).or_default().push((txn.id, marks));
        }
    }
    let mut parted = BTreeSet::new();
    for (name, writers) in &writers {
        let mut before: Vec<TxnId> = Vec::new();
        for (id, marks) in writers {
            let is_upon = |last: &TxnId| !assumed.contains(&(*id, name.clone())) && marks.contains(&last.mark());
            if !before.last().is_none_or(is_upon) {
                parted.extend(before.drain(..));
            }
            before.push(*id);
        }
    }
    parted
}

/// Two histories that diverged: this member's state in one, and the state of the other, the new log.
pub(super) struct DivergedHistories<'a> {
    pub old: &'a StateSnapshot,
    pub new: &'a StateSnapshot,
    pub lost: &'a Lost,
    /// Conditions that refer to an earlier write only because nothing else is known.
    pub assumed: &'a Assumed,
    /// Limits of the transactions that are pushed.
    pub limits: &'a PushLimits,
}

impl DivergedHistories<'_> {
    /// Decides what happens to the local transactions that the new log lacks, in order: the `lacking` ones, then those
    /// `gone` with a lost state. Their conditions are translated ([`gravwell_protocol::rebase`]). Returns those to push again and those to archive. If it is unknown what `others` did,
    /// only deletions of absent objects are pushed again; after a restore (`is_restore`) nothing is.
    pub(super) fn choose(
        &self,
        lacking: &[Arc<Txn>],
        gone: &[Arc<Txn>],
        others: Option<&Others>,
        is_restore: bool,
    ) -> Result<(Txns, Txns), StateError> {
        let mut too_large = BTreeSet::new();
        let (again, whole) = if is_restore {
            (Vec::new(), BTreeSet::new())
        } else {
            let again = others.map_or(Ok(Vec::new()), |others| self.again(lacking, others, &mut too_large))?;
            self.with_deletions(lacking, gone, again, others, &mut too_large)?
        };
        if !too_large.is_empty() {
            tracing::warn!(
                count = too_large.len(),
                limits = ?self.limits,
                "transactions exceed the datastore's limits when they are pushed again; archiving them"
            );
        }
        let archived = self.archived(lacking, &whole, (gone, &too_large), others)?;
        Ok((again, archived))
    }

    /// Adds to those pushed `again`, in order, the deletions of transactions that are left out, except those that are
    /// `too_large`. Also returns the transactions that are pushed with all of their operations.
    fn with_deletions(
        &self,
        lacking: &[Arc<Txn>],
        gone: &[Arc<Txn>],
        again: Vec<Arc<Txn>>,
        others: Option<&Others>,
        too_large: &mut BTreeSet<TxnId>,
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
                    if !self.fits(&deletion) {
                        too_large.insert(txn.id);
                        continue;
                    }
                    // It is unknown what followed a transaction that was lost with a state, so its author is notified
                    // in any case.
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

    /// Returns the part of a left-out transaction that is pushed: its deletions of objects that this member's
    /// present or lost state no longer had and that others have not written since, or that gave rights. Also returns
    /// whether these are all of its operations. `last` holds for each object whether its last local writer put it, and
    /// whether that one is pushed again itself. `links` holds conditions on earlier pushes, `left` the objects written
    /// by earlier left-out transactions.
    fn deletion(
        &self,
        txn: &Arc<Txn>,
        is_gone: bool,
        last: &BTreeMap<Named, (bool, bool)>,
        links: &BTreeMap<Named, Condition>,
        left: &BTreeSet<Named>,
        others: Option<&Others>,
    ) -> Result<Option<(Txn, bool)>, StateError> {
        let nothing = Others::default();
        let wanted = values(std::slice::from_ref(txn));
        let known = others.unwrap_or(&nothing);
        // Names without a condition are of rights that are taken away whatever others have done.
        let takes_nothing = |condition: &Option<Condition>| matches!(condition, None | Some(Condition::Absent { .. }));
        let mut standing: Vec<Condition> =
            txn.conditions.iter().filter(|condition| known.have_judged(condition)).cloned().collect();
        let mut may_revoke = others.is_some() && !is_gone;
        for condition in &standing {
            may_revoke &= condition.holds(self.new.version(condition.collection(), condition.key())?);
        }
        let (last_ops, conditions) = (LastOps::of(txn), Conditions::of(&txn.conditions));
        let mut deleted = BTreeMap::new();
        for name in wanted.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name) {
            let Some((false, is_again)) = last.get(name).copied() else { continue };
            let is_absent = self.old.version(&name.0, &name.1)?.is_none();
            let is_taken = may_revoke && self.has_ended(&last_ops, &conditions, name)?;
            if !is_taken && known.written.contains(name) || !(is_gone || is_absent) {
                continue;
            }
            let condition = links.get(name).map_or_else(|| self.as_it_is(name.clone(), known), |it| Ok(it.clone()))?;
            // If the last writer is pushed again, it deletes an existing object itself.
            if matches!(condition, Condition::Absent { .. }) || !is_again {
                deleted.insert(name.clone(), (!is_taken).then_some(condition));
            }
        }
        let is_upon_lost = |read: &Condition| read.is_upon_lost() || left.contains(&place(read));
        let mut reads: Vec<Condition> =
            txn.conditions.iter().filter(|condition| !wanted.contains_key(&place(condition))).cloned().collect();
        let may_take = others.is_some() && deleted.len() == wanted.len() && !reads.iter().any(is_upon_lost);
        if is_gone || !may_take {
            deleted.retain(|_, condition| takes_nothing(condition));
        }
        if deleted.is_empty() {
            return Ok(None);
        }
        let is_whole = deleted.len() == wanted.len();
        let is_deleted = |op: &&Op| op.value().is_none() && deleted.contains_key(&named(op));
        let ops = txn.ops.iter().filter(is_deleted).cloned().collect();
        if deleted.values().all(takes_nothing) {
            standing.retain(|condition| !wanted.contains_key(&place(condition)));
            reads = if deleted.values().any(Option::is_none) { standing } else { Vec::new() };
        }
        reads.extend(deleted.into_values().flatten());
        Ok(Some((Txn { conditions: reads, ops, ..Txn::clone(txn) }, is_whole)))
    }

    /// Selects the `own` transactions to push again, in order, with the conditions under which to push them. Those that
    /// the datastore would reject because of their size are added to `too_large` and left out, with what depends on them.
    fn again(
        &self,
        own: &[Arc<Txn>],
        others: &Others,
        too_large: &mut BTreeSet<TxnId>,
    ) -> Result<Vec<Arc<Txn>>, StateError> {
        let had = self.had(own)?;
        let own: Vec<Arc<Txn>> = own.iter().map(|txn| without_standing(txn, &had, others)).collect();
        loop {
            let stay = self.staying(&own, others, &had, too_large)?;
            let again = self.conditioned(&own, &stay, others, &had)?;
            let known = too_large.len();
            too_large.extend(again.iter().filter(|txn| !self.fits(txn)).map(|txn| txn.id));
            if too_large.len() == known {
                return Ok(again);
            }
        }
    }

    /// Returns whether the datastore accepts a transaction of this size.
    fn fits(&self, txn: &Txn) -> bool {
        self.limits.check(txn).is_ok()
    }

    /// Returns the transactions that `stay`, in order, with the conditions under which to push them.
    fn conditioned(
        &self,
        own: &[Arc<Txn>],
        stay: &BTreeSet<TxnId>,
        others: &Others,
        had: &Values,
    ) -> Result<Vec<Arc<Txn>>, StateError> {
        let staying = || own.iter().filter(|txn| stay.contains(&txn.id));
        let ops = staying().flat_map(|txn| &txn.ops);
        let put: BTreeSet<Named> = ops.filter(|op| op.value().is_some()).map(named).collect();
        let (mut before, mut again) = (Before::default(), Vec::new());
        for txn in staying() {
            let conditions = self.conditions(txn, &before, &put, others, had)?;
            before.take(txn);
            again.push(Arc::new(Txn { conditions, ..Txn::clone(txn) }));
        }
        Ok(again)
    }

    /// Returns the values that the objects of transactions have in this member's state.
    fn had(&self, own: &[Arc<Txn>]) -> Result<Values, StateError> {
        let mut had = Values::new();
        for name in own.iter().flat_map(|txn| &txn.ops).map(named).chain(epochs(own)) {
            let value = self.old.get(&name.0, &name.1)?.map(|object| object.value);
            had.insert(name, value);
        }
        Ok(had)
    }

    /// Returns which of the `own` transactions are pushed again; none of those that are `too_large`.
    fn staying(
        &self,
        own: &[Arc<Txn>],
        others: &Others,
        had: &Values,
        too_large: &BTreeSet<TxnId>,
    ) -> Result<BTreeSet<TxnId>, StateError> {
        let mut lacked = BTreeSet::new();
        for name in had.keys() {
            if self.new.version(&name.0, &name.1)?.is_none() {
                lacked.insert(name.clone());
            }
        }
        let mut epochs_there = Values::new();
        for name in epochs(own) {
            let value = self.new.get(&name.0, &name.1)?.map(|object| object.value);
            epochs_there.insert(name, value);
        }
        // A transaction may require that an object which it deletes is present, although the new log lacks it. It is
        // left out, so that its other operations do not prevent the deletion.
        let is_impossible = |last: &LastOps<'_>, condition: &Condition, before: &Before<'_>| {
            let name = place(condition);
            let requires = matches!(condition, Condition::Present { .. });
            requires && last.is_deleted(&name) && lacked.contains(&name) && before.link(&name).is_none()
        };
        let parted = parted_by(own, &others.known, self.assumed, had);
        let is_left = |id: &TxnId| parted.contains(id) || too_large.contains(id);
        let mut stay: BTreeSet<TxnId> = own.iter().map(|txn| txn.id).filter(|id| !is_left(id)).collect();
        loop {
            // Leaving out a transaction may change how an object reads. Then its other writers are left out as well.
            let made: Vec<Arc<Txn>> = own.iter().filter(|txn| stay.contains(&txn.id)).cloned().collect();
            let made = values(&made);
            let is_written =
                |name: &Named| others.written.contains(name) && !fault_injection::is(Bug::OvertakenPushedAgain);
            let is_last = |name: &Named| made.get(name) == had.get(name) && !is_written(name);
            let (count, mut before, mut gone) = (stay.len(), Before::default(), BTreeSet::new());
            for txn in own {
                let overtaken: Vec<(TxnId, Named)> = txn
                    .conditions
                    .iter()
                    .filter_map(|condition| Some((before.overtaken(condition)?, place(condition))))
                    .collect();
                let (last, deletes_only, in_force) = (LastOps::of(txn), deletes_only(txn), InForce::of(txn, had));
                // It was made in an epoch that has ended, which is pushed again over a later one.
                let (is_revocation, grants) = (is_revocation(txn, had), txn.ops.iter().any(revocation::grants));
                let is_of_former = |condition: &Condition| {
                    let name = place(condition);
                    let has_ended = is_written(&name) || grants && made.get(&name) != had.get(&name);
                    !is_revocation && before.is_taken(&name, had) && has_ended
                };
                // What is left out has changed an object that the new log has all the same.
                let is_there =
                    |condition: &Condition| is_presence_of_unique(condition) && !lacked.contains(&place(condition));
                let is_upon_lost = |condition: &Condition| {
                    condition.is_upon_lost()
                        || gone.contains(&place(condition)) && !is_there(condition)
                        || is_of_former(condition)
                        || !deletes_only && is_impossible(&last, condition, &before)
                };
                let is_left = |op: &Op| !in_force.has(op) && (!is_last(&named(op)) || gone.contains(&named(op)));
                let is_ended = |name: Named| {
                    is_written(&name) || had.get(&name) != made.get(&name).or_else(|| epochs_there.get(&name))
                };
                if !overtaken.is_empty()
                    || txn.conditions.iter().any(is_upon_lost)
                    || txn.ops.iter().any(is_left)
                    || revocation::epochs_of(&txn.ops).any(is_ended)
                {
                    stay.remove(&txn.id);
                    // What takes a right away stays, whatever came after it.
                    let superseded = overtaken.iter().filter(|(_, name)| !before.is_taken(name, had));
                    for (writer, _) in superseded {
                        stay.remove(writer);
                    }
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

    /// Returns the conditions of a transaction that is pushed again after those in `before`. `put` holds the objects that
    /// it or another one that is pushed again puts.
    fn conditions(
        &self,
        txn: &Txn,
        before: &Before<'_>,
        put: &BTreeSet<Named>,
        others: &Others,
        had: &Values,
    ) -> Result<Vec<Condition>, StateError> {
        if fault_injection::is(Bug::AgainUnconditioned) {
            return Ok(txn.conditions.clone());
        }
        let mut conditions = Conditions::of(&txn.conditions);
        let (last, deletes_only, in_force) = (LastOps::of(txn), deletes_only(txn), InForce::of(txn, had));
        let mut deleters = BTreeSet::new();
        let read = txn.conditions.iter().map(place);
        let names: BTreeSet<Named> = read.chain(txn.ops.iter().map(named)).collect();
        for name in names {
            let is_written = last.has(&name);
            let is_first = is_written && before.link(&name).is_none();
            let is_lacked = is_first && self.new.version(&name.0, &name.1)?.is_none();
            if is_lacked && deletes_only {
                // The deletion removes nothing, whatever it depended on.
                conditions.retain_on(&name, |_| false);
            }
            if is_written {
                // Since when the object must be absent is determined again.
                conditions.retain_on(&name, |condition| condition.since().is_none());
            }
            // It takes effect whatever the object is.
            if last.get(&name).is_some_and(|op| in_force.has(op)) {
                continue;
            }
            let may_return = put.contains(&name) && !fault_injection::is(Bug::DeletedMeanwhileReturns);
            if let Some(link) = if may_return { before.last_link(&name) } else { before.link(&name) } {
                conditions.add(link);
                // One condition for each transaction that deleted something.
                if before.deleter(&name).is_some_and(|deleter| deleters.insert(deleter.id)) {
                    before.deleted(&name).into_iter().for_each(|condition| conditions.add(condition));
                }
            } else if is_lacked && may_return {
                // This includes that it is absent.
                conditions.add(self.absent_since(name, others));
            } else if is_written && !conditions.say_which(&name) {
                conditions.add(self.as_it_is(name, others)?);
            }
        }
        Ok(conditions.into_vec())
    }

    /// Returns the condition that an object is absent as in the new log, and was not deleted since that was read.
    fn absent_since(&self, name: Named, others: &Others) -> Condition {
        let at = self.new.meta().map(|meta| meta.seq).unwrap_or_default();
        Condition::absent_since(name.0, name.1, at.max(others.read_to))
    }

    /// Returns the condition that an object is as in the new log.
    fn as_it_is(&self, name: Named, others: &Others) -> Result<Condition, StateError> {
        let found = self.new.version(&name.0, &name.1)?;
        let writer = others.known.get(&name).filter(|_| found.is_some_and(|found| found > self.lost.shared_to()));
        Ok(match (found, writer) {
            (None, _) => absent(name),
            (Some(_), Some(id)) => written_by(name, *id),
            (Some(found), None) => version(name, found),
        })
    }

    /// Selects the `lacking` transactions to archive: those that are not pushed `again` and were effective, or on which
    /// an archived one depends, or may depend because it is unknown who made the lost write that it requires. Effective
    /// means that an object reads as written in this member's state, but differently in the new log. All transactions that were lost with a state (`gone`) are archived. They carry the conditions
    /// under which their authors may retry them.
    fn archived(
        &self,
        lacking: &[Arc<Txn>],
        again: &BTreeSet<TxnId>,
        (gone, too_large): (&[Arc<Txn>], &BTreeSet<TxnId>),
        others: Option<&Others>,
    ) -> Result<Vec<Arc<Txn>>, StateError> {
        let deletions = self.new.deletions()?;
        let (mut archived, mut upon, mut upon_lost) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let gone_ids: BTreeSet<TxnId> = gone.iter().map(|txn| txn.id).collect();
        for txn in lacking.iter().chain(gone).rev().filter(|txn| !again.contains(&txn.id) && !txn.ops.is_empty()) {
            let may_be_upon = || !self.lost.knows(txn.id) && txn.ops.iter().any(|op| upon_lost.contains(&named(op)));
            let is_required = upon.contains(&txn.id.mark()) || may_be_upon();
            if is_required
                || gone_ids.contains(&txn.id)
                || too_large.contains(&txn.id)
                || self.left_something(txn)?
                || self.is_undone(txn, &deletions, others)?
            {
                upon.extend(txn.conditions.iter().filter_map(Condition::mark));
                upon_lost.extend(txn.conditions.iter().filter(|condition| condition.is_upon_lost()).map(place));
                archived.push(Arc::clone(txn));
            }
        }
        archived.reverse();
        let mut before = Before::default();
        let mut conditioned = Vec::new();
        for txn in &archived {
            let (mut conditions, last) = (Conditions::of(&txn.conditions), LastOps::of(txn));
            for name in txn.ops.iter().map(named).collect::<BTreeSet<Named>>() {
                // A right is taken away whatever the object is, and may have been taken away already.
                // A right that was given and taken away since is absent again.
                let is_absence = |condition: &Condition| matches!(condition, Condition::Absent { .. });
                let may_be_again = revocation::takes_right(&name.0, false) && conditions.on(&name).any(is_absence);
                let is_said = conditions.say_which(&name) && !may_be_again;
                if !is_said && !self.has_ended(&last, &conditions, &name)? {
                    let link = before.link(&name);
                    conditions.add(link.map_or_else(|| self.as_shared(name, &deletions), Ok)?);
                }
            }
            before.take(txn);
            conditioned.push(Arc::new(listed(txn, conditions.into_vec())));
        }
        Ok(conditioned)
    }

    /// Returns whether a transaction deletes an object that gave a right, whatever it was, and the object is absent
    /// in this member's state.
    fn has_ended(&self, last: &LastOps<'_>, conditions: &Conditions, name: &Named) -> Result<bool, StateError> {
        let is_version = |condition: &Condition| matches!(condition, Condition::Version { .. });
        let is_upon = conditions.on(name).any(is_version);
        let takes_right = last.is_deleted(name) && !is_upon && revocation::takes_right(&name.0, false);
        Ok(takes_right && self.old.version(&name.0, &name.1)?.is_none())
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

    /// Returns whether the new log undoes a deletion of a transaction: the object was created again later in the
    /// abandoned history, and the new log neither reads so nor has deleted the object itself.
    fn is_undone(&self, txn: &Arc<Txn>, deletions: &Deletions, others: Option<&Others>) -> Result<bool, StateError> {
        if fault_injection::is(Bug::UndoneDeletionNotListed) {
            return Ok(false);
        }
        for (name, _) in values(std::slice::from_ref(txn)).into_iter().filter(|(_, value)| value.is_none()) {
            let is_known = others.is_some_and(|others| others.have_deleted(&name));
            let deleted = deletions.get(&name.0, &name.1);
            if is_known || deleted.is_some_and(|seq| seq > self.lost.shared_to()) {
                continue;
            }
            let had = self.old.get(&name.0, &name.1)?.map(|object| object.value);
            if had.is_some() && self.new.get(&name.0, &name.1)?.map(|object| object.value) != had {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the condition that an object is as both histories had it. Nothing satisfies it if the new log has
    /// changed the object.
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
mod tests;
