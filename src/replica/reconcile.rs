//! Coming back to a log that went on without this member's last entries.
//!
//! When a datastore was rebuilt from a member that was behind, or an earlier state was restored, its log begins a new
//! generation at a sequence that this member is beyond. What the member has more is not merged, and not lost:
//!
//! - own transactions that the new log lacks are pushed again under their own identity, unless something came after them
//!   (see [`super::own`]), or an earlier state was restored on purpose;
//! - every other change is written to a file in `quarantine/`, durably, for a person to look at.
//!
//! Then outbox and state are exchanged: the outbox in the journal, the state, the outbox in memory, in this order, while
//! nothing is taken in. A crash at any point leaves the old state, for which all of this is done again with the same
//! result, or the new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::codec::admin::{Beginning, GenerationInfo, Request};
use crate::codec::message::Welcome;
use crate::env::vital;
use crate::log::generations;
use crate::model::position::Divergence;
use crate::model::{
    Collection, Generation, Key, LineageEntry, Origin, OriginCounter, Position, Reason, Seq, Txn, Verdict,
};
use crate::protocol::outbox::{Kept, Outbox};
use crate::protocol::rebase::{Leaving, Lost};
use crate::state::{self, StateError, StateSnapshot, StateStore};
use crate::telemetry;

use super::applier::{self, Descent};
use super::link::{LinkError, Linker};
use super::outbox_writer::{self, Step};
use super::own::{self, Others, Parted, Since, Values};
use super::quarantine::{Change, Set, Written};
use super::shared::{Shared, SharedRef};
use super::{ask, resync};

/// How long the datastore may take to say how its generations began.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the maker of a change is told that was archived.
const ARCHIVED: &str = "it was committed, but the log went on without it, because the datastore was recovered or restored; it is \
                        archived at this member (`gravwell-logctl quarantine`), and not applied: try it again, or let it go";

/// Where two logs of one origin have gone different ways.
struct Fork<'a> {
    shared_to: Seq,
    /// The generations that only the datastore knows.
    theirs: Vec<&'a LineageEntry>,
}

/// The place up to which the datastore's log is still this member's, when the two have gone different ways and the member is
/// beyond it, or something that it holds is `upon` a write beyond it. `lineage` is the member's; a generation is the same when
/// its number and its beginning are.
fn fork<'a>(
    mine: &Position,
    lineage: &[LineageEntry],
    welcome: &'a Welcome,
    upon: impl FnOnce(Seq) -> bool,
) -> Option<Fork<'a>> {
    let is_unknown = |entry: &&LineageEntry| {
        if lineage.is_empty() { entry.generation > mine.generation } else { !lineage.contains(entry) }
    };
    let theirs: Vec<&LineageEntry> = welcome.lineage.iter().filter(is_unknown).collect();
    let own = Divergence::of(lineage, &welcome.lineage).first;
    let shared_to = theirs.iter().map(|entry| entry.shared_to).min()?;
    let shared_to = own.map_or(shared_to, |own| own.min(shared_to));
    // Numbers of generations that grew apart say nothing of each other, so who is within what is shared is led over, too. So is
    // who stands within it at another entry than the datastore's.
    let is_elsewhere = welcome.verdict == Some(Verdict::Forked);
    // A change can be made upon what was seen elsewhere, or before a state went back.
    let is_beyond = own.is_some() || mine.seq > shared_to || is_elsewhere || upon(shared_to);
    (mine.log_id == welcome.log_id && is_beyond).then_some(Fork { shared_to, theirs })
}

/// Whether the datastore's log has left this member's, whatever their positions say.
pub(super) fn is_left(shared: &Shared, mine: &Position, lineage: &[LineageEntry], welcome: &Welcome) -> bool {
    fork(mine, lineage, welcome, |shared_to| shared.outbox().is_upon_later_than(shared_to)).is_some()
}

/// Sets aside or queues what the log lacks, and takes its state over. False: the log is not known to have left this one, or
/// not why, so a person has to decide; nothing was changed.
pub(super) async fn run(
    linker: &Linker,
    connection: &quinn::Connection,
    mine: &Position,
    lineage: &[LineageEntry],
    welcome: &Welcome,
) -> Result<bool, LinkError> {
    let upon = |shared_to| linker.shared.outbox().is_upon_later_than(shared_to);
    let Some(Fork { shared_to, theirs }) = fork(mine, lineage, welcome, upon) else { return Ok(false) };
    let here = generations::all(&linker.directory, mine.log_id).unwrap_or_default();
    let Some(is_restore) = reason(connection, &theirs, here).await else { return Ok(false) };
    let side = resync::side(linker).await?;
    let set = Set { is_restore, ..set_of(mine, welcome.generation, shared_to) };
    let reconciled = async {
        let state = resync::fetch_into(linker, connection, welcome, &side).await?;
        let shared_to = earlier_fork(linker, &state, shared_to)?;
        exchange(linker, connection, state, &side, Set { shared_to, ..set }).await
    };
    resync::ended(linker, &side, reconciled.await).await.map(|()| true)
}

/// What an archive of a member at `mine` is about, unless an earlier state was restored on purpose.
fn set_of(mine: &Position, left_by: Generation, shared_to: Seq) -> Set {
    let Position { log_id, generation, seq, digest, .. } = *mine;
    let lineage = Vec::new();
    Set { log_id, generation, left_by, lineage, shared_to, seq, digest, is_restore: false, revoked_ms: None }
}

/// Takes over a fetched state that does not continue this member's history although the positions are consistent: own
/// transactions that it lacks are pushed again where what came after them is known, everything else is archived.
pub(super) async fn leave(
    linker: &Linker,
    connection: &quinn::Connection,
    state: StateStore,
    side: &Path,
    fork: state::Fork,
) -> Result<(), LinkError> {
    let mine = linker.shared.position().ok_or_else(|| failed("a replica without a position cannot fork"))?;
    tracing::error!(
        %fork, "the datastore's log is a fork of this member's: own changes are pushed again or archived before it is followed"
    );
    telemetry::metrics::verdict(Verdict::Forked);
    let left_by = state.meta().map_or(mine.generation, |meta| meta.generation);
    let set = set_of(&mine, left_by, fork.shared_to);
    exchange(linker, connection, state, side, set).await
}

/// Up to where this member and `state` share their history, when the lineages say `shared_to`. A member that had followed
/// another branch of the log before parted from it earlier, which the origins of both show.
fn earlier_fork(linker: &Linker, state: &StateStore, shared_to: Seq) -> Result<Seq, LinkError> {
    let present = linker.shared.state().snapshot().map_err(failed)?;
    if present.meta().is_none() {
        return Ok(shared_to);
    }
    let fork = state::descent::fork(&present, &state.snapshot().map_err(failed)?).map_err(failed)?;
    let Some(fork) = fork.filter(|fork| fork.differs_at <= shared_to) else { return Ok(shared_to) };
    tracing::error!(%fork, by_lineage = %shared_to, "the log left this member's earlier than its lineage says");
    Ok(fork.shared_to)
}

/// The counters that a state has decided of the origins in the outbox.
fn decided_in(linker: &Linker, state: &StateStore) -> Result<Decided, LinkError> {
    decided(state, linker.shared.outbox().all_origins().into_iter()).map_err(failed)
}

/// Whether a fetched state lacks transactions that this member's state had decided before it was lost, or may have decided
/// in another generation.
pub(super) fn lacks_what_was_lost(linker: &Linker, state: &StateStore) -> Result<bool, LinkError> {
    let generation = state.meta().map(|meta| meta.generation).unwrap_or_default();
    let is_marked = linker.shared.position() != linker.shared.claimed();
    if !is_marked && !linker.shared.is_unsure_of(generation) {
        return Ok(false);
    }
    let decided = decided_in(linker, state)?;
    Ok(!linker.shared.outbox().lost_with_state(&decided).is_empty())
}

/// Takes over a fetched state that lacks transactions which were decided before this member's state was lost: they are
/// archived.
pub(super) async fn leave_lost(
    linker: &Linker,
    connection: &quinn::Connection,
    state: StateStore,
    side: &Path,
) -> Result<(), LinkError> {
    let (mine, theirs) = (linker.shared.claimed(), state.position());
    let (Some(mine), Some(theirs)) = (mine.or(theirs), theirs) else {
        return Err(failed("the fetched state has no position"));
    };
    let present = linker.shared.position().map_or(Seq::ZERO, |position| position.seq);
    let set = set_of(&mine, theirs.generation, earlier_fork(linker, &state, present.min(theirs.seq))?);
    tracing::error!(
        "the log has not what this member's state had decided before it was lost: own changes are archived"
    );
    exchange(linker, connection, state, side, set).await
}

/// Archives or queues what `state` lacks, and makes it the replica's.
async fn exchange(
    linker: &Linker,
    connection: &quinn::Connection,
    state: StateStore,
    side: &Path,
    set: Set,
) -> Result<(), LinkError> {
    // What the former connection brought is applied first: afterwards it is known what was committed here.
    barrier(&linker.applier).await?;
    let lineage = state.meta().map(|meta| meta.lineage.clone()).unwrap_or_default();
    let set = Set { lineage, ..set };
    let lacking = lacking(linker, &state)?;
    // What came after an own transaction is not known where the state lost something.
    let others = match set.is_restore || linker.shared.lost().is_some() || lacking.is_empty() {
        true => None,
        false => others_since(linker, connection, &state, set.shared_to, &lacking).await?,
    };
    let gone = linker.shared.outbox().lost_with_state(&decided_in(linker, &state)?);
    let (old, new) = (linker.shared.state().snapshot().map_err(failed)?, state.snapshot().map_err(failed)?);
    let (kept, shared_to): (Vec<Kept>, _) = (linker.shared.outbox().kept().cloned().collect(), set.shared_to);
    let (without_state, is_restore) = (gone.clone(), set.is_restore);
    let choosing = move || {
        let left = |collection: &Collection, key: &Key| -> Result<_, StateError> {
            Ok(old.get(collection, key)?.map(|object| (object.version, object.value)))
        };
        let lost = Lost::after(shared_to).with_own(kept.iter(), left)?;
        let parted = Parted { old: &old, new: &new, lost: &lost };
        let (again, archived) = parted.choose(&lacking, &without_state, others.as_ref(), is_restore)?;
        Ok((lost, again, archived))
    };
    let chosen: Result<_, StateError> = vital::spawn_blocking(choosing).await.map_err(failed)?;
    let (lost, again, archived) = chosen.map_err(failed)?;
    let exchange = Exchange {
        shared: Arc::clone(&linker.shared),
        applier: linker.applier.clone(),
        outbox: linker.outbox.clone(),
        directory: linker.directory.clone(),
        set,
        state,
        side: side.to_owned(),
        lost,
        again,
        archived,
        gone,
    };
    // It continues when the connection breaks: an exchange that was started is completed.
    tokio::spawn(exchange.run()).await.map_err(|_| LinkError::Closing)?
}

/// Whether an earlier state was restored on purpose; `None` when why the log went another way is not known.
async fn reason(connection: &quinn::Connection, theirs: &[&LineageEntry], here: Vec<GenerationInfo>) -> Option<bool> {
    let reply = ask::ask(connection, &Request::Generations).await;
    let reply = reply.map_err(|error| tracing::warn!(%error, "the datastore does not say why")).ok()?;
    let mut known: Vec<GenerationInfo> =
        reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
    // What the datastore says counts first.
    known.extend(here);
    let mut is_restore = false;
    for entry in theirs {
        let info =
            known.iter().find(|info| info.generation == entry.generation && info.shared_to == entry.shared_to)?;
        is_restore |= info.beginning == Beginning::Restored;
    }
    Some(is_restore)
}

/// Keeps in this member's directory why the generations began that led to the datastore's log.
pub(super) async fn learn(directory: &Path, connection: &quinn::Connection, welcome: &Welcome) -> Result<(), String> {
    let (directory, log_id, lineage) = (directory.to_owned(), welcome.log_id, welcome.lineage.clone());
    // A new log has nothing to tell.
    if lineage.len() <= 1 || generations::problem(&directory, log_id, &lineage).is_none() {
        return Ok(());
    }
    let asked = tokio::time::timeout(PATIENCE, ask::ask(connection, &Request::Generations)).await;
    let reply = asked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let known: Vec<GenerationInfo> = reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
    let learning = move || generations::learn(&directory, log_id, &known).map_err(|error| error.to_string());
    vital::spawn_blocking(learning).await.map_err(|error| error.to_string())?
}

fn failed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Resync(error.to_string())
}

/// The own transactions of which `state` knows nothing.
fn lacking(linker: &Linker, state: &StateStore) -> Result<Vec<Arc<Txn>>, LinkError> {
    let kept: Vec<Arc<Txn>> = linker.shared.outbox().kept().map(|kept| Arc::clone(&kept.txn)).collect();
    let decided = decided(state, kept.iter().map(|txn| txn.id.origin)).map_err(failed)?;
    let lacking = |txn: &Arc<Txn>| decided.get(&txn.id.origin).is_none_or(|counter| txn.id.counter > *counter);
    Ok(kept.into_iter().filter(lacking).collect())
}

/// What was done since to the objects of the `own` transactions; `None` when that is not known.
async fn others_since(
    linker: &Linker,
    connection: &quinn::Connection,
    state: &StateStore,
    shared_to: Seq,
    own: &[Arc<Txn>],
) -> Result<Option<Others>, LinkError> {
    let (old, new) = (linker.shared.state().snapshot().map_err(failed)?, state.snapshot().map_err(failed)?);
    let mut since = Since::new(&old, own);
    let mut unread = None;
    let read = ask::entries_after(connection, shared_to, |entry| {
        if let Err(error) = since.take(&entry) {
            unread = Some(error);
        }
    });
    let read = read.await;
    if let Some(error) = unread {
        return Err(failed(error));
    }
    match read {
        Ok(()) => Ok(Some(since.others)),
        Err(ask::AskError::Refused(reason)) => {
            tracing::info!(reason, "what others did since is not in the log: its state has to show it");
            let own = own.to_vec();
            let showing = vital::spawn_blocking(move || shown(&own, &new, shared_to));
            showing.await.map_err(failed)?.map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// What others did since, as the state that goes on shows it; `None` when that is not known.
fn shown(own: &[Arc<Txn>], new: &StateSnapshot, shared_to: Seq) -> Result<Option<Others>, StateError> {
    let deletions = new.deletions()?;
    let written = own::written_after(own, new, &deletions, shared_to)?;
    if written.is_none() {
        let known_after = deletions.complete_after();
        tracing::warn!(
            %shared_to, %known_after,
            "what others deleted since is not known so far back, so nothing is pushed again: all is set aside"
        );
    }
    Ok(written)
}

type Decided = BTreeMap<Origin, OriginCounter>;

/// Counters up to which a state has decided.
fn decided(state: &StateStore, origins: impl Iterator<Item = Origin>) -> Result<Decided, StateError> {
    let mut decided = Decided::new();
    for origin in origins {
        if let std::collections::btree_map::Entry::Vacant(entry) = decided.entry(origin) {
            entry.insert(state.origin(origin)?.map(|row| row.last_counter).unwrap_or_default());
        }
    }
    Ok(decided)
}

/// Everything that is needed to exchange outbox and state.
struct Exchange {
    shared: SharedRef,
    applier: mpsc::Sender<applier::Request>,
    outbox: mpsc::Sender<outbox_writer::Request>,
    directory: PathBuf,
    set: Set,
    state: StateStore,
    side: PathBuf,
    /// The history that is left.
    lost: Lost,
    /// Own transactions that are pushed again.
    again: Vec<Arc<Txn>>,
    /// Own transactions that are archived: their makers learn of it through the rejected list.
    archived: Vec<Arc<Txn>>,
    /// Those of them that a state which was lost had decided.
    gone: Vec<Arc<Txn>>,
}

/// Waits until everything that was handed to the applier is applied.
async fn barrier(applier: &mpsc::Sender<applier::Request>) -> Result<(), LinkError> {
    let (reply, done) = oneshot::channel();
    applier.send(applier::Request::Barrier(reply)).await.map_err(|_| LinkError::Closing)?;
    done.await.map_err(|_| LinkError::Closing)
}

impl Exchange {
    async fn run(self) -> Result<(), LinkError> {
        barrier(&self.applier).await?;
        // The archive is written while transactions are still taken in: of the state it needs what does not change any more.
        let compared = self.shared.position();
        let mut written = self.set_aside().await?;
        let (steps, receiver) = std::sync::mpsc::channel();
        let request = outbox_writer::Request::Exchange(receiver);
        self.outbox.send(request).await.map_err(|_| LinkError::Closing)?;
        if self.shared.position() != compared {
            written = self.set_aside().await?;
        }
        let (reply, done) = oneshot::channel();
        steps.send(Step::Prepare(Box::new(self.requeued()?), reply)).map_err(|_| LinkError::Closing)?;
        done.await.map_err(|_| LinkError::Closing)?.map_err(failed)?;
        let (reply, done) = oneshot::channel();
        let seq = self.state.meta().map(|meta| meta.seq).unwrap_or_default();
        let swap = applier::Request::Swap(self.state.clone(), self.side.clone(), Descent::Archived, reply);
        self.applier.send(swap).await.map_err(|_| LinkError::Closing)?;
        done.await.map_err(|_| LinkError::Closing)?.map_err(failed)?;
        let (reply, done) = oneshot::channel();
        steps.send(Step::Install(self.set.shared_to, reply)).map_err(|_| LinkError::Closing)?;
        done.await.map_err(|_| LinkError::Closing)?;
        let Set { shared_to, seq: was_at, .. } = self.set;
        tracing::warn!(
            %shared_to, %was_at, %seq, again = self.again.len(), set_aside = written.changes, file = written.file,
            "this member had entries that the log has not; its own are pushed again, the rest is set aside: see \
             `gravwell-logctl quarantine list`"
        );
        Ok(())
    }

    async fn set_aside(&self) -> Result<Written, LinkError> {
        let old = self.shared.state().snapshot().map_err(failed)?;
        let new = self.state.snapshot().map_err(failed)?;
        let (set, directory, again) = (self.set.clone(), self.directory.clone(), own::values(&self.again));
        let gone = own::values(&self.gone);
        let writing = move || {
            let mut file = set.create(&directory).map_err(|error| error.to_string())?;
            // A state that is gone shows no differences.
            if old.meta().is_some() {
                differences(&old, &new, set.shared_to, &again, |change| file.write(&change))?;
            }
            for ((collection, key), value) in gone {
                let there =
                    Some(new.version(&collection, &key).map_err(|error| error.to_string())?.unwrap_or_default());
                let change = Change { seq: None, time_ms: None, collection, key, value, there };
                file.write(&change).map_err(|error| error.to_string())?;
            }
            file.finish().map_err(|error| error.to_string())
        };
        vital::spawn_blocking(writing).await.map_err(failed)?.map_err(failed)
    }

    /// The outbox that continues what the state has decided.
    fn requeued(&self) -> Result<Outbox, LinkError> {
        let outbox = self.shared.outbox();
        let mut decided = BTreeMap::new();
        for origin in outbox.all_origins() {
            decided.extend(self.state.origin(origin).map_err(failed)?.map(|row| (origin, row)));
        }
        let mut random = Ok(());
        let mut fresh = || {
            let mut origin = [0; 16];
            if let Err(error) = getrandom::fill(&mut origin) {
                random = Err(failed(error));
            }
            Origin(origin)
        };
        let (again, archived) = (self.again.clone(), self.archived.clone());
        let reason = Reason::Forbidden { message: ARCHIVED.into() };
        let leaving = Leaving { decided: &decided, again, archived, reason, lost: &self.lost };
        let requeued = outbox.requeued(leaving, &mut fresh);
        random.map(|()| requeued)
    }
}

/// Gives every change after `shared_to` that `old` shows and `new` does not, unless it is in `again`.
fn differences(
    old: &StateSnapshot,
    new: &StateSnapshot,
    shared_to: Seq,
    again: &Values,
    mut give: impl FnMut(Change) -> std::io::Result<()>,
) -> Result<(), String> {
    let text = |error: StateError| error.to_string();
    let mut give = |change: Change| {
        let is_again = again.get(&(change.collection.clone(), change.key.clone())) == Some(&change.value);
        if is_again { Ok(()) } else { give(change).map_err(|error| error.to_string()) }
    };
    for row in old.objects() {
        let (collection, key, object) = row.map_err(text)?;
        let there = new.get(&collection, &key).map_err(text)?;
        // A shared write is replaced by later ones only; another version of the shared part shows that it was not shared.
        let is_shared = object.version <= shared_to
            && there.as_ref().is_none_or(|there| there.version == object.version || there.version > shared_to);
        if is_shared || there.as_ref().is_some_and(|there| there.value == object.value) {
            continue;
        }
        let (seq, time_ms) = (Some(object.version), Some(object.time_ms));
        let there = Some(there.map(|there| there.version).unwrap_or_default());
        give(Change { seq, time_ms, collection, key, value: Some(object.value), there })?;
    }
    for row in new.objects() {
        let (collection, key, object) = row.map_err(text)?;
        // What the new log wrote itself was never here; what both shared and is here no more was deleted.
        if object.version <= shared_to && old.get(&collection, &key).map_err(text)?.is_none() {
            let there = Some(object.version);
            give(Change { seq: None, time_ms: None, collection, key, value: None, there })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Chain, Digest, LogId};

    #[test]
    fn p05_a_log_that_went_another_way_is_told_by_its_lineage() {
        let mine = |log, generation, seq| Position {
            log_id: LogId([log; 16]),
            generation: Generation(generation),
            seq: Seq(seq),
            chain: Chain::default(),
            digest: Digest::ZERO,
        };
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let mut welcome = Welcome {
            version: 1,
            software: String::new(),
            member: "a".into(),
            role: "webserver".into(),
            log_id: LogId([1; 16]),
            generation: Generation(3),
            lineage: vec![entry(1, 0), entry(2, 50), entry(3, 40)],
            head: Seq(60),
            horizon: Seq(0),
            verdict: None,
            heartbeat_ms: 1000,
            txn_bytes_max: 1,
            value_bytes_max: 1,
            key_bytes_max: 1,
        };
        let first = [entry(1, 0)];
        let left_at = |mine: &Position, lineage: &[LineageEntry], welcome: &Welcome| {
            fork(mine, lineage, welcome, |_| false).map(|fork| fork.shared_to.0)
        };
        assert_eq!(left_at(&mine(1, 1, 45), &first, &welcome), Some(40));
        assert_eq!(left_at(&mine(1, 1, 45), &[], &welcome), Some(40), "its lineage is not known");
        assert_eq!(left_at(&mine(1, 1, 40), &first, &welcome), None);
        assert_eq!(
            left_at(&mine(1, 3, 99), &welcome.lineage, &welcome),
            None,
            "its generation is the last one: it is ahead"
        );
        assert_eq!(left_at(&mine(2, 1, 45), &first, &welcome), None, "another log");
        // The same numbers, given twice.
        let upon_44 = |shared_to: Seq| Seq(44) > shared_to;
        let within =
            |upon: &dyn Fn(Seq) -> bool| fork(&mine(1, 1, 30), &first, &welcome, upon).map(|fork| fork.shared_to.0);
        assert_eq!((within(&upon_44), within(&|_| false)), (Some(40), None), "what waits may name what was lost");
        let other = [entry(1, 0), entry(2, 50), entry(3, 45)];
        assert_eq!(left_at(&mine(1, 3, 55), &other, &welcome), Some(40));
        // Numbers that grew apart, in both directions.
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
}
