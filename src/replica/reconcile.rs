//! Coming back to a log that went on without this member's last entries.
//!
//! When a datastore was rebuilt from a member that was behind, or an earlier state was restored, its log begins a new
//! generation at a sequence that this member is beyond. What the member has more is not merged, and not lost:
//!
//! - own transactions that the new log lacks are pushed again under their own identity, unless an earlier state was
//!   restored on purpose;
//! - every other change is written to a file in `quarantine/`, durably, for a person to look at.
//!
//! Then the new state takes the place of the old one. A crash at any point leaves the old state, which begins all over, or
//! the new one.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use crate::codec::admin::{Beginning, GenerationInfo, Request};
use crate::codec::message::Welcome;
use crate::model::{Collection, Key, Op, OriginCounter, Position, Seq};
use crate::protocol::outbox::Kept;
use crate::state::{StateError, StateSnapshot, StateStore};

use super::link::{LinkError, Linker};
use super::quarantine::{Change, Set, Written};
use super::{ask, outbox_writer, resync};

/// The sequence up to which the datastore's log is still this member's, when a later generation left it behind.
pub(super) fn left_at(mine: &Position, welcome: &Welcome) -> Option<Seq> {
    let later = welcome.lineage.iter().filter(|entry| entry.generation > mine.generation);
    let shared_to = later.map(|entry| entry.shared_to).min()?;
    (mine.log_id == welcome.log_id && mine.seq > shared_to).then_some(shared_to)
}

/// Sets aside or queues what the log lacks, and takes its state over. False: it is not known why the log went another way,
/// so a person has to decide; nothing was changed.
pub(super) async fn run(
    linker: &Linker,
    connection: &quinn::Connection,
    mine: &Position,
    shared_to: Seq,
    welcome: &Welcome,
) -> Result<bool, LinkError> {
    let Some(is_restore) = reason(connection, mine, welcome).await else { return Ok(false) };
    let side = resync::side(linker)?;
    let reconciled = async {
        let state = resync::fetch_into(linker, connection, &side).await?;
        let written = set_aside(linker, &state, mine, shared_to, welcome, is_restore).await?;
        queue(linker, &state, is_restore).await?;
        resync::swap(linker, state, side.clone()).await?;
        tracing::warn!(
            shared_to = %shared_to, was_at = %mine.seq, set_aside = written.changes, file = written.file,
            "this member had entries that the log has not; its own are pushed again, the rest is set aside: see \
             `gravwell-logctl quarantine list`"
        );
        Ok(())
    };
    let reconciled = reconciled.await;
    if reconciled.is_err() {
        resync::remove(linker, &side).await;
    }
    reconciled.map(|()| true)
}

/// Whether an earlier state was restored on purpose; `None` when why the log went another way is not known.
async fn reason(connection: &quinn::Connection, mine: &Position, welcome: &Welcome) -> Option<bool> {
    let reply = ask::ask(connection, &Request::Generations).await;
    let reply = reply.map_err(|error| tracing::warn!(%error, "the datastore does not say why")).ok()?;
    let known: Vec<GenerationInfo> = reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
    let mut is_restore = false;
    for entry in welcome.lineage.iter().filter(|entry| entry.generation > mine.generation) {
        let info =
            known.iter().find(|info| info.generation == entry.generation && info.shared_to == entry.shared_to)?;
        is_restore |= info.beginning == Beginning::Restored;
    }
    Some(is_restore)
}

/// Counters up to which a state has decided, as seen by an outbox.
fn decided(state: &StateStore, outbox_origins: &[crate::model::Origin]) -> Result<Decided, StateError> {
    let mut decided = Decided::new();
    for origin in outbox_origins {
        decided.insert(*origin, state.origin(*origin)?.map(|row| row.last_counter).unwrap_or_default());
    }
    Ok(decided)
}

pub(super) type Decided = BTreeMap<crate::model::Origin, OriginCounter>;

async fn set_aside(
    linker: &Linker,
    new: &StateStore,
    mine: &Position,
    shared_to: Seq,
    welcome: &Welcome,
    is_restore: bool,
) -> Result<Written, LinkError> {
    let failed = |error: &dyn std::fmt::Display| LinkError::Resync(error.to_string());
    let kept: Vec<Kept> = if is_restore { Vec::new() } else { linker.shared.outbox().kept().cloned().collect() };
    let origins: Vec<_> = kept.iter().map(|kept| kept.txn.id.origin).collect();
    let decided = decided(new, &origins).map_err(|error| failed(&error))?;
    let old = linker.shared.state().snapshot().map_err(|error| failed(&error))?;
    let new = new.snapshot().map_err(|error| failed(&error))?;
    let set = Set {
        log_id: mine.log_id,
        generation: mine.generation,
        left_by: welcome.generation,
        shared_to,
        seq: mine.seq,
        digest: mine.digest,
        is_restore,
    };
    let directory = linker.directory.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut file = set.create(&directory).map_err(|error| error.to_string())?;
        let own = own_values(&kept, &decided);
        differences(&old, &new, shared_to, |change| {
            let is_queued = own.get(&(change.collection.clone(), change.key.clone())) == Some(&change.value);
            if is_queued { Ok(()) } else { file.write(&change) }
        })?;
        file.finish().map_err(|error| error.to_string())
    });
    writing.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}

type Named = (Collection, Key);

/// What the own transactions that are pushed again make of each object.
fn own_values(kept: &[Kept], decided: &Decided) -> BTreeMap<Named, Option<bytes::Bytes>> {
    let lacking = |kept: &&Kept| decided.get(&kept.txn.id.origin).is_none_or(|counter| kept.txn.id.counter > *counter);
    let ops = kept.iter().filter(lacking).flat_map(|kept| &kept.txn.ops);
    ops.map(|op: &Op| ((op.collection().clone(), op.key().clone()), op.value().cloned())).collect()
}

/// Gives every change after `shared_to` that `old` shows and `new` does not.
fn differences(
    old: &StateSnapshot,
    new: &StateSnapshot,
    shared_to: Seq,
    mut give: impl FnMut(Change) -> std::io::Result<()>,
) -> Result<(), String> {
    let text = |error: StateError| error.to_string();
    let mut give = |change| give(change).map_err(|error| error.to_string());
    for row in old.objects() {
        let (collection, key, object) = row.map_err(text)?;
        if object.version <= shared_to {
            continue;
        }
        let there = new.get(&collection, &key).map_err(text)?;
        if there.is_some_and(|there| there.value == object.value) {
            continue;
        }
        let (seq, time_ms) = (Some(object.version), Some(object.time_ms));
        give(Change { seq, time_ms, collection, key, value: Some(object.value) })?;
    }
    for row in new.objects() {
        let (collection, key, object) = row.map_err(text)?;
        // What the new log wrote itself was never here; what both shared and is here no more was deleted.
        if object.version <= shared_to && old.get(&collection, &key).map_err(text)?.is_none() {
            give(Change { seq: None, time_ms: None, collection, key, value: None })?;
        }
    }
    Ok(())
}

/// Makes the outbox one that continues what `state` has decided, durably.
async fn queue(linker: &Linker, state: &StateStore, is_restore: bool) -> Result<(), LinkError> {
    let origins = linker.shared.outbox().all_origins();
    let decided = decided(state, &origins).map_err(|error| LinkError::Resync(error.to_string()))?;
    let (reply, done) = oneshot::channel();
    let request = outbox_writer::Request::Requeue { decided, again: !is_restore, reply };
    linker.outbox.send(request).await.map_err(|_| LinkError::Closing)?;
    done.await.map_err(|_| LinkError::Closing)?.map_err(LinkError::Resync)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Chain, Digest, Generation, LineageEntry, LogId};

    #[test]
    fn p05_a_member_is_left_behind_only_by_a_later_generation_of_its_own_log() {
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
        assert_eq!(left_at(&mine(1, 1, 45), &welcome), Some(Seq(40)));
        assert_eq!(left_at(&mine(1, 1, 40), &welcome), None);
        assert_eq!(left_at(&mine(1, 3, 99), &welcome), None, "its generation is the last one: it is ahead");
        assert_eq!(left_at(&mine(2, 1, 45), &welcome), None, "another log");
        welcome.lineage.clear();
        assert_eq!(left_at(&mine(1, 1, 45), &welcome), None);
    }
}
