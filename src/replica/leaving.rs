//! Leaving an abandoned history for the log that continued without it ("the new log"): the decisions, and the steps
//! that carry them out.
//!
//! Nothing here waits: [`super::rejoin`] drives it between tasks and threads, `stepped` by hand. First,
//! [`Leaving`] decides what happens to everything that the new log lacks. Then an [`Exchange`] takes its steps, in
//! this order:
//!
//! - the archive is written;
//! - the future outbox is written to the journal (prepared);
//! - the fetched state replaces the present one (swapped);
//! - the outbox in memory is replaced (installed).
//!
//! Each of the first three is durable before the next one starts. After a crash between two of them all of it is done
//! again: the state is still the former one, or the exchange is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use gravwell_env::Entropy;
use gravwell_model::codec::admin::{GenerationCause, GenerationInfo};
use gravwell_model::codec::message::Welcome;
use gravwell_model::deletions::{Deletions, Named};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::position::Divergence;
use gravwell_model::{
    Collection, Condition, Generation, Key, LineageEntry, Origin, OriginCounter, Position, Reason, Seq, Txn, TxnId,
    Verdict,
};
use gravwell_protocol::outbox::{Outbox, RetainedTxn};
use gravwell_protocol::rebase::{self, Found, InOrder, Lost};
use gravwell_runtime::telemetry;
use gravwell_state::{self as state, StateError, StateSnapshot, StateStore};

use super::accepted_before;
use super::conflict_archive::{Change, Set, Written};
use super::local_txns::{self, DivergedHistories, Others, Since, Txns, Values};
use super::shared::{ReplicaRef, ReplicaState};

/// Reason shown to the author of an archived change.
const ARCHIVED: &str = "committed, but the log continued without this change because the datastore was recovered or \
                        restored; it is archived at this member (`gravwell-logctl quarantine`) and not applied; retry \
                        or dismiss it";

/// Point at which two logs with a common start diverged.
pub(super) struct Fork<'a> {
    pub shared_to: Seq,
    /// Generations that only the datastore knows.
    pub theirs: Vec<&'a LineageEntry>,
}

/// Returns the last sequence at which the datastore's log equals this member's, if the two diverged and the member is
/// past it or, according to `upon`, holds something that depends on a later write. `mine` is the position that it claims,
/// `present` and `lineage` are those of its state. Generations are the same if their numbers and starts are.
pub(super) fn fork<'a>(
    mine: &Position,
    (present, lineage): (Seq, &[LineageEntry]),
    welcome: &'a Welcome,
    upon: impl FnOnce(Seq) -> bool,
) -> Option<Fork<'a>> {
    let is_unknown = |entry: &&LineageEntry| {
        if lineage.is_empty() { entry.generation > mine.generation } else { !lineage.contains(entry) }
    };
    let followed = followed_before(mine, lineage, welcome);
    let is_followed = |(at, entry): (usize, &LineageEntry)| at < followed && present <= entry.shared_to;
    let others = welcome.lineage.iter().enumerate().filter(|numbered| !is_followed(*numbered));
    let theirs: Vec<&LineageEntry> = others.map(|(_, entry)| entry).filter(is_unknown).collect();
    let own = Divergence::of(lineage, &welcome.lineage).first;
    let shared_to = theirs.iter().map(|entry| entry.shared_to).min()?;
    let shared_to = own.map_or(shared_to, |own| own.min(shared_to));
    // Generation numbers that were assigned independently cannot be compared, so a member within the shared part
    // rejoins as well. So does one whose position there is not that of the datastore's log.
    let is_elsewhere = welcome.verdict == Some(Verdict::Forked);
    // A power cut may have taken the state back into the shared part, but not the transactions that depend on
    // later entries.
    let is_beyond = own.is_some() || mine.seq > shared_to || is_elsewhere || upon(shared_to);
    (mine.log_id == welcome.log_id && is_beyond).then_some(Fork { shared_to, theirs })
}

/// Returns how many generations of the datastore's log the member followed before its state went back, if its lineage
/// went back with the state and the datastore finds the former position in its log.
fn followed_before(mine: &Position, lineage: &[LineageEntry], welcome: &Welcome) -> usize {
    let last_of = |lineage: &[LineageEntry]| lineage.iter().rposition(|entry| entry.generation == mine.generation);
    let is_in_log = welcome.verdict.is_some_and(Verdict::is_good);
    let is_unknown = lineage.is_empty() || !is_in_log || fault_injection::is(Bug::LineageOfOlderState);
    if is_unknown || last_of(lineage).is_some() {
        return 0;
    }
    last_of(&welcome.lineage).map_or(0, |last| last + 1)
}

/// Returns whether a pending transaction depends, or may depend, on an entry after `shared_to`. One that requires an absent
/// object may depend on the entry that created it, if a power failure took the state back before that.
pub(super) fn is_upon_later(shared: &ReplicaState, shared_to: Seq) -> bool {
    let requires_absent = || {
        let state = shared.state();
        let is_present =
            |collection: &Collection, key: &Key| Ok::<_, StateError>(state.version(collection, key)?.is_some());
        // An unreadable state is reported when it is compared.
        shared.outbox().requires_absent(is_present).unwrap_or(true)
    };
    let is_behind = shared.position() != shared.claimed();
    shared.outbox().is_upon_later_than(shared_to) || is_behind && requires_absent()
}

/// Returns whether one of these generations started because an earlier state was restored on purpose; `None` if the
/// reason of one is unknown. Earlier items of `known` take precedence.
pub(super) fn is_restore(theirs: &[&LineageEntry], known: &[GenerationInfo]) -> Option<bool> {
    let mut is_restore = false;
    for entry in theirs {
        let info =
            known.iter().find(|info| info.generation == entry.generation && info.shared_to == entry.shared_to)?;
        is_restore |= info.beginning == GenerationCause::Restored;
    }
    Some(is_restore)
}

/// Describes the archive of a member at `mine`; `is_restore` is not set.
pub(super) fn set_of(mine: &Position, left_by: Generation, shared_to: Seq) -> Set {
    let Position { log_id, generation, seq, digest, .. } = *mine;
    let (lineage, is_restore, deletions_after, revoked_ms) = (Vec::new(), false, None, None);
    Set { log_id, generation, left_by, lineage, shared_to, seq, digest, is_restore, deletions_after, revoked_ms }
}

/// Describes the archive of a member whose fetched `state` does not continue its own, although the positions
/// are consistent.
pub(super) fn set_of_fork(shared: &ReplicaState, state: &StateStore, fork: &state::Fork) -> Result<Set, String> {
    let mine = shared.position().ok_or("a replica without a position cannot fork")?;
    tracing::error!(
        %fork, "datastore's log is a fork of this member's; pushing or archiving local changes"
    );
    telemetry::metrics::verdict(Verdict::Forked);
    let left_by = state.meta().map_or(mine.generation, |meta| meta.generation);
    Ok(set_of(&mine, left_by, fork.shared_to))
}

/// Describes the archive of a member whose fetched `state` lacks transactions that were decided before its own
/// was lost.
pub(super) fn set_of_lost(shared: &ReplicaState, state: &StateStore) -> Result<Set, String> {
    let (mine, theirs) = (shared.claimed(), state.position());
    let (Some(mine), Some(theirs)) = (mine.or(theirs), theirs) else {
        return Err("the fetched state has no position".into());
    };
    let present = shared.position().map_or(Seq::ZERO, |position| position.seq);
    let shared_to = earlier_fork(shared, state, present.min(theirs.seq)).map_err(|error| error.to_string())?;
    tracing::error!(
        "log lacks transactions that were resolved before this member's state was lost; archiving local changes"
    );
    Ok(set_of(&mine, theirs.generation, shared_to))
}

/// Returns the last sequence that this member shares with `state`, which is `shared_to` by their lineages. A member
/// that had followed another branch of the log diverged earlier; the origins of both states show that.
pub(super) fn earlier_fork(shared: &ReplicaState, state: &StateStore, shared_to: Seq) -> Result<Seq, StateError> {
    let present = shared.state().snapshot()?;
    if present.meta().is_none() {
        return Ok(shared_to);
    }
    let fork = state::descent::fork(&present, &state.snapshot()?)?;
    let Some(fork) = fork.filter(|fork| fork.differs_at <= shared_to) else { return Ok(shared_to) };
    tracing::error!(%fork, by_lineage = %shared_to, "log diverged from this member's earlier than its lineage shows");
    Ok(fork.shared_to)
}

/// Returns whether a fetched state lacks transactions that this member's state had decided before it was lost, or may
/// have decided in another generation.
pub(super) fn lacks_what_was_lost(shared: &ReplicaState, state: &StateStore) -> Result<bool, StateError> {
    let generation = state.meta().map(|meta| meta.generation).unwrap_or_default();
    let is_marked = shared.position() != shared.claimed();
    if !is_marked && !shared.is_unsure_of(generation) {
        return Ok(false);
    }
    let decided = decided_of_outbox(shared, state)?;
    Ok(!shared.outbox().lost_with_state(&decided).is_empty())
}

type Decided = BTreeMap<Origin, OriginCounter>;

/// Returns the counter up to which a state has decided each origin.
fn decided(state: &StateStore, origins: impl Iterator<Item = Origin>) -> Result<Decided, StateError> {
    let mut decided = Decided::new();
    for origin in origins {
        if let std::collections::btree_map::Entry::Vacant(entry) = decided.entry(origin) {
            entry.insert(state.origin(origin)?.map(|row| row.last_counter).unwrap_or_default());
        }
    }
    Ok(decided)
}

/// Returns the counters up to which a state has decided the origins in the outbox.
fn decided_of_outbox(shared: &ReplicaState, state: &StateStore) -> Result<Decided, StateError> {
    let origins = shared.outbox().all_origins();
    decided(state, origins.into_iter())
}

/// Returns the local transactions that `state` has not decided.
fn lacking(shared: &ReplicaState, state: &StateStore) -> Result<Vec<Arc<Txn>>, StateError> {
    let kept: Vec<Arc<Txn>> = shared.outbox().kept().map(|kept| Arc::clone(&kept.txn)).collect();
    let decided = decided(state, kept.iter().map(|txn| txn.id.origin))?;
    let lacking = |txn: &Arc<Txn>| decided.get(&txn.id.origin).is_none_or(|counter| txn.id.counter > *counter);
    Ok(kept.into_iter().filter(lacking).collect())
}

/// A history that is about to be left, with everything needed to decide what happens to the rest of it.
pub struct Leaving {
    shared: ReplicaRef,
    set: Set,
    state: StateStore,
    old: StateSnapshot,
    new: StateSnapshot,
    /// Local transactions that the new log lacks.
    lacking: Vec<Arc<Txn>>,
    /// Recent deletions in the old state, by anyone.
    deletions: Deletions,
}

impl Leaving {
    /// Takes snapshots of both states. Everything handed to the applier must have been applied, and nothing may follow.
    pub(super) fn new(shared: ReplicaRef, state: StateStore, set: Set) -> Result<Leaving, StateError> {
        let lineage = state.meta().map(|meta| meta.lineage.clone()).unwrap_or_default();
        let lacking = lacking(&shared, &state)?;
        let (old, new) = (shared.state().snapshot()?, state.snapshot()?);
        let deletions = deletions_of(&old)?;
        let deletions_after = Some(deletions.complete_after()).filter(|after| *after > set.shared_to);
        if let Some(known_after) = deletions_after {
            tracing::warn!(
                shared_to = %set.shared_to, %known_after,
                "some deletions of the abandoned history are unknown; objects deleted before may return"
            );
        }
        Ok(Leaving { set: Set { lineage, deletions_after, ..set }, lacking, deletions, old, new, shared, state })
    }

    /// Returns the sequence after which to read what others did; `None` if nothing depends on it.
    #[must_use]
    pub fn reads_after(&self) -> Option<Seq> {
        // After a loss it is unknown what followed a local transaction.
        let is_idle = || self.lacking.is_empty() && !self.has_deleted_again();
        let is_unknown = self.set.is_restore || self.shared.lost().is_some();
        (!is_unknown && !is_idle()).then_some(self.set.shared_to)
    }

    /// Returns whether the new log has written an object that this member has seen deleted. A row that cannot be read
    /// counts as one.
    fn has_deleted_again(&self) -> bool {
        let shared_to = self.set.shared_to;
        let mut lost = self.deletions.rows().filter(|(seq, _)| *seq > shared_to);
        let is_later = |version: Option<Seq>| version.is_some_and(|version| version > shared_to);
        lost.any(|(_, (collection, key))| self.new.version(collection, key).map_or(true, is_later))
    }

    /// Returns a collector of what others did, to be fed with entries of the new log.
    pub(super) fn since(&self) -> Since<'_> {
        Since::new(&self.old, &self.lacking).with_deletions(&self.deletions)
    }

    /// Returns what others did, judging by the new state alone; `None` if that is unknown.
    pub(super) fn shown(&self) -> Result<Option<Others>, StateError> {
        let (deletions, shared_to) = (self.new.deletions()?, self.set.shared_to);
        let written = local_txns::written_after(&self.lacking, &self.new, &deletions, shared_to)?;
        if written.is_none() {
            let known_after = deletions.complete_after();
            tracing::warn!(
                %shared_to, %known_after,
                "deletions of other members are not known that far back; archiving all changes instead of pushing \
                 them again"
            );
        }
        Ok(written)
    }

    /// Decides which local transactions are pushed again and which are archived. `others` is `None` if the changes of
    /// others are unknown.
    pub(super) fn choose(self, others: Option<&Others>) -> Result<Exchange, StateError> {
        let Leaving { shared, set, state, old, new, lacking, .. } = self;
        let gone = shared.outbox().lost_with_state(&decided_of_outbox(&shared, &state)?);
        let kept: Vec<RetainedTxn> = shared.outbox().kept().cloned().collect();
        let lost = Lost::after(set.shared_to).with_own(kept.iter(), |collection, key| found(&old, collection, key))?;
        let lost = with_required(lost, shared.outbox().conditions(), &old, &new)?;
        let own = Own { kept: &kept, lacking: &lacking, gone: &gone };
        let (again, archived) = own.split((&old, &new), &lost, others, set.is_restore)?;
        let others = others.cloned().unwrap_or_default();
        Ok(Exchange { shared, set, state, lost, again, archived, gone, others })
    }
}

/// Returns an object of a state for the translation of conditions.
pub(super) fn found(state: &StateSnapshot, collection: &Collection, key: &Key) -> Result<Found, StateError> {
    Ok(state.get(collection, key)?.map(|object| (object.version, object.value)))
}

/// Everything needed to exchange outbox and state.
pub struct Exchange {
    shared: ReplicaRef,
    set: Set,
    state: StateStore,
    /// The abandoned history.
    lost: Lost,
    /// Local transactions that are pushed again.
    again: Vec<Arc<Txn>>,
    /// Local transactions that are archived. Their authors see them on the rejected list.
    archived: Vec<Arc<Txn>>,
    /// Archived transactions that only a lost state had decided.
    gone: Vec<Arc<Txn>>,
    /// Changes in the new log, as far as known.
    others: Others,
}

impl Exchange {
    /// Returns the description of the archive.
    #[must_use]
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// Returns the state that replaces the present one.
    pub(super) fn state(&self) -> &StateStore {
        &self.state
    }

    /// Returns the replica's current position.
    pub(super) fn position(&self) -> Option<Position> {
        self.shared.position()
    }

    /// Returns the number of local transactions that are pushed again.
    pub(super) fn again(&self) -> usize {
        self.again.len()
    }

    /// Durably writes the changes that the log lacks, and that are not pushed again, to a file in the replica's
    /// directory. Transactions may be accepted at the same time: they do not change the data read here.
    pub(super) fn archive(&self, directory: &Path) -> Result<Written, String> {
        if fault_injection::is(Bug::ArchiveSkipped) {
            return Ok(Written::default());
        }
        let text = |error: StateError| error.to_string();
        let old = self.shared.state().snapshot().map_err(text)?;
        let new = self.state.snapshot().map_err(text)?;
        let (again, gone) = (local_txns::values(&self.again), local_txns::values(&self.gone));
        let mut file = self.set.create(directory).map_err(|error| error.to_string())?;
        // A state that is gone shows no differences.
        if old.meta().is_some() {
            let apart = DivergedStates { old: &old, new: &new, shared_to: self.set.shared_to, others: &self.others };
            apart.differences(&again, |change| file.write(&change))?;
        }
        for ((collection, key), value) in gone {
            let there = Some(new.version(&collection, &key).map_err(text)?.unwrap_or_default());
            let change = Change { seq: None, time_ms: None, collection, key, value, there, is_seen: false };
            file.write(&change).map_err(|error| error.to_string())?;
        }
        file.finish().map_err(|error| error.to_string())
    }

    /// Returns the outbox that continues from the counters of the new state. No transactions may be accepted while it
    /// is prepared.
    pub(super) fn requeued(&self, entropy: &dyn Entropy) -> Result<Outbox, String> {
        let mut decided = BTreeMap::new();
        for origin in self.shared.outbox().all_origins() {
            let row = self.state.origin(origin).map_err(|error| error.to_string())?;
            decided.extend(row.map(|row| (origin, row)));
        }
        let mut random = Ok(());
        let mut fresh = || {
            let mut origin = [0; 16];
            if let Err(error) = entropy.fill(&mut origin) {
                random = Err(error.to_string());
            }
            Origin(origin)
        };
        let (again, archived) = (self.again.clone(), self.archived.clone());
        let reason = Reason::Forbidden { message: ARCHIVED.into() };
        let lost = self.required().map_err(|error| error.to_string())?;
        let leaving = rebase::Leaving { decided: &decided, again, archived, reason, lost: &lost };
        let mut requeued = self.shared.outbox().requeued(leaving, &mut fresh);
        random?;
        accepted_before::note(&self.shared, &self.state, &mut requeued).map_err(|error| error.to_string())?;
        Ok(requeued)
    }

    /// Returns the abandoned history with the objects that transactions in the outbox require.
    fn required(&self) -> Result<Lost, StateError> {
        let (old, new) = (self.shared.state().snapshot()?, self.state.snapshot()?);
        with_required(self.lost.clone(), self.shared.outbox().conditions(), &old, &new)
    }
}

/// The local transactions of an abandoned history, in order.
pub(super) struct Own<'a> {
    /// All committed ones that are kept.
    pub kept: &'a [RetainedTxn],
    /// Those of them that the new log lacks.
    pub lacking: &'a [Arc<Txn>],
    /// Pending ones that only a lost state had decided.
    pub gone: &'a [Arc<Txn>],
}

impl Own<'_> {
    /// Decides which are pushed again and which are archived, both with conditions for the new log.
    pub(super) fn split(
        &self,
        (old, new): (&StateSnapshot, &StateSnapshot),
        lost: &Lost,
        others: Option<&Others>,
        is_restore: bool,
    ) -> Result<(Txns, Txns), StateError> {
        let mut in_order = InOrder::of(lost);
        let is_lacking: BTreeSet<TxnId> = self.lacking.iter().map(|txn| txn.id).collect();
        let mut lacking = Txns::new();
        for txn in self.kept.iter().map(|kept| &kept.txn) {
            if is_lacking.contains(&txn.id) {
                lacking.push(Arc::new(in_order.translate(txn)));
            } else {
                in_order.pass(txn, false);
            }
        }
        let gone: Txns = self.gone.iter().map(|txn| Arc::new(in_order.translate(txn))).collect();
        let assumed = in_order.assumed();
        DivergedHistories { old, new, lost, assumed: &assumed }.choose(&lacking, &gone, others, is_restore)
    }
}

/// Adds the objects that `conditions` require to be present. A state that is gone does not show which they were.
pub(super) fn with_required<'a>(
    lost: Lost,
    conditions: impl Iterator<Item = &'a Condition>,
    old: &StateSnapshot,
    new: &StateSnapshot,
) -> Result<Lost, StateError> {
    if old.meta().is_none() {
        return Ok(lost);
    }
    let deletions = old.deletions()?;
    lost.with_required(conditions, |collection, key| {
        let (old, new) = (found(old, collection, key)?, found(new, collection, key)?);
        Ok(rebase::Named { old, new, deleted: deletions.get(collection, key) })
    })
}

/// Returns the recent deletions in a state; none if it is gone.
fn deletions_of(state: &StateSnapshot) -> Result<Deletions, StateError> {
    if state.meta().is_some() { state.deletions() } else { Ok(Deletions::default()) }
}

/// The states of two histories that are equal up to `shared_to`.
pub(super) struct DivergedStates<'a> {
    pub old: &'a StateSnapshot,
    pub new: &'a StateSnapshot,
    pub shared_to: Seq,
    /// Changes in the new log, as far as known.
    pub others: &'a Others,
}

impl DivergedStates<'_> {
    /// Passes to `give` every change after `shared_to` that `old` has and `new` lacks, unless it is in `again`.
    pub(super) fn differences(
        &self,
        again: &Values,
        mut give: impl FnMut(Change) -> std::io::Result<()>,
    ) -> Result<(), String> {
        let text = |error: StateError| error.to_string();
        let (old, new, shared_to) = (self.old, self.new, self.shared_to);
        let mut give = |change: Change| {
            let is_again = again.get(&(change.collection.clone(), change.key.clone())) == Some(&change.value);
            if is_again { Ok(()) } else { give(change).map_err(|error| error.to_string()) }
        };
        for row in old.objects() {
            let (collection, key, object) = row.map_err(text)?;
            let there = new.get(&collection, &key).map_err(text)?;
            // Only later writes replace a shared write. Another version within the shared part shows that this one was
            // not shared.
            let is_shared = object.version <= shared_to
                && there.as_ref().is_none_or(|there| there.version == object.version || there.version > shared_to);
            if is_shared || there.as_ref().is_some_and(|there| there.value == object.value) {
                continue;
            }
            let (seq, time_ms) = (Some(object.version), Some(object.time_ms));
            let there = Some(there.map(|there| there.version).unwrap_or_default());
            give(Change { seq, time_ms, collection, key, value: Some(object.value), there, is_seen: false })?;
        }
        let deletions = deletions_of(old).map_err(text)?;
        let delete = |(collection, key): Named, seq, there, is_seen| {
            let there = Some(there);
            Change { seq, time_ms: None, collection, key, value: None, there, is_seen }
        };
        for row in new.objects() {
            let (collection, key, object) = row.map_err(text)?;
            // A shared object that is missing here was deleted here.
            if object.version <= shared_to && old.get(&collection, &key).map_err(text)?.is_none() {
                let seq = deletions.get(&collection, &key).filter(|seq| *seq > shared_to);
                give(delete((collection, key), seq, object.version, false))?;
            }
        }
        if fault_injection::is(Bug::SeenDeletionsNotArchived) {
            return Ok(());
        }
        for (seq, name, there) in self.deletions(&deletions).map_err(text)? {
            let is_seen = there != Seq::ZERO && self.others.wrote_as_seen(&name);
            give(delete(name, Some(seq), there, is_seen))?;
        }
        Ok(())
    }

    /// Returns the deletions after `shared_to` that `new` is not known to have, except those of objects that both
    /// histories had before, with the version of the object in `new`; 0 if it is absent there. The object may have been
    /// created after `shared_to` as well: whoever did that and has not seen the deletion pushes it again.
    fn deletions(&self, deletions: &Deletions) -> Result<Vec<(Seq, Named, Seq)>, StateError> {
        let mut lacking = Vec::new();
        let theirs = self.new.deletions()?;
        for (seq, name) in deletions.rows().filter(|(seq, _)| *seq > self.shared_to) {
            let there = self.new.version(&name.0, &name.1)?;
            let is_deleted_there = match there {
                None => theirs.get(&name.0, &name.1).is_some_and(|seq| seq > self.shared_to),
                Some(_) => self.others.have_deleted(name),
            };
            if !is_deleted_there && there.is_none_or(|there| there > self.shared_to) {
                lacking.push((seq, name.clone(), there.unwrap_or_default()));
            }
        }
        Ok(lacking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Chain, Digest, LogId};

    fn mine(log: u8, generation: u64, seq: u64) -> Position {
        Position {
            log_id: LogId([log; 16]),
            generation: Generation(generation),
            seq: Seq(seq),
            chain: Chain::default(),
            digest: Digest::ZERO,
        }
    }

    fn welcome(lineage: Vec<LineageEntry>) -> Welcome {
        Welcome {
            version: 1,
            software: String::new(),
            member: "a".into(),
            role: "webserver".into(),
            log_id: LogId([1; 16]),
            generation: Generation(3),
            lineage,
            head: Seq(60),
            horizon: Seq(0),
            verdict: None,
            heartbeat_ms: 1000,
            txn_bytes_max: 1,
            value_bytes_max: 1,
            key_bytes_max: 1,
        }
    }

    #[test]
    fn p05_a_log_that_went_another_way_is_told_by_its_lineage() {
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let mut welcome = welcome(vec![entry(1, 0), entry(2, 50), entry(3, 40)]);
        let first = [entry(1, 0)];
        let left_at = |mine: &Position, lineage: &[LineageEntry], welcome: &Welcome| {
            fork(mine, (mine.seq, lineage), welcome, |_| false).map(|fork| fork.shared_to.0)
        };
        assert_eq!(left_at(&mine(1, 1, 45), &first, &welcome), Some(40));
        assert_eq!(left_at(&mine(1, 1, 45), &[], &welcome), Some(40), "lineage unknown");
        assert_eq!(left_at(&mine(1, 1, 40), &first, &welcome), None);
        let upon = |version: u64| {
            fork(&mine(1, 1, 40), (Seq(40), &first), &welcome, |shared_to| version > shared_to.0).is_some()
        };
        assert_eq!((upon(40), upon(41)), (false, true), "pending transactions depend on lost ones");
        assert_eq!(
            left_at(&mine(1, 3, 99), &welcome.lineage, &welcome),
            None,
            "the member's generation is the last one, so it is ahead"
        );
        assert_eq!(left_at(&mine(2, 1, 45), &first, &welcome), None, "another log");
        let upon_44 = |shared_to: Seq| Seq(44) > shared_to;
        let within = |upon: &dyn Fn(Seq) -> bool| {
            fork(&mine(1, 1, 30), (Seq(30), &first), &welcome, upon).map(|fork| fork.shared_to.0)
        };
        assert_eq!(
            (within(&upon_44), within(&|_| false)),
            (Some(40), None),
            "pending transactions may depend on lost ones"
        );
        // The same generation numbers, assigned twice.
        let other = [entry(1, 0), entry(2, 50), entry(3, 45)];
        assert_eq!(left_at(&mine(1, 3, 55), &other, &welcome), Some(40));
        // Generation numbers that were assigned independently, in both directions.
        for generation in [9, 2] {
            let other = [entry(1, 0), entry(generation, 30)];
            assert_eq!(left_at(&mine(1, generation, 55), &other, &welcome), Some(30));
            assert_eq!(left_at(&mine(1, generation, 20), &other, &welcome), Some(30));
        }
        let mut later = welcome.lineage.clone();
        later.push(entry(4, 55));
        assert_eq!(left_at(&mine(1, 4, 58), &later, &welcome), None, "an older copy of the datastore is not followed");
        welcome.lineage.clear();
        assert_eq!(left_at(&mine(1, 1, 45), &first, &welcome), None);
    }

    #[test]
    fn p05_a_state_that_went_back_before_the_start_of_its_generation_has_left_nothing() {
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let welcome = |verdict| Welcome { verdict, ..welcome(vec![entry(1, 0), entry(2, 40)]) };
        let (first, claimed) = ([entry(1, 0)], mine(1, 2, 55));
        let left_at = |present, verdict| {
            let welcome = welcome(verdict);
            fork(&claimed, (Seq(present), &first), &welcome, |_| false).map(|fork| fork.shared_to.0)
        };
        assert_eq!(left_at(30, Some(Verdict::Behind)), None);
        assert_eq!(left_at(40, Some(Verdict::Same)), None);
        assert_eq!(left_at(41, Some(Verdict::Behind)), Some(40), "the state has entries that the generation left");
        for verdict in [None, Some(Verdict::Forked)] {
            assert_eq!(left_at(30, verdict), Some(40), "the former position is not known to be in the log");
        }
    }
}
