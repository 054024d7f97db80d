//! Whether a state can be used with a log, and how it is made anew from one.

use super::error::StateError;
use super::loader::Target;
use super::meta::StateMeta;
use super::origins::OriginTable;
use super::store::StateStore;
use crate::model::position::{Chain, Divergence, shared_after};
use crate::model::{Digest, Entry, Generation, LineageEntry, LogId, Seq};
use crate::planted::{self, Bug};

/// Entries are applied in batches of at most this many …
const BATCH_ENTRIES_MAX: usize = 4096;
/// … and about this many bytes.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// What a log says of itself when a state is held against it.
pub struct LogView<'a> {
    /// Which log.
    pub log_id: LogId,
    /// Which generation of it.
    pub generation: Generation,
    /// How generations descend.
    pub lineage: &'a [LineageEntry],
    /// Lowest sequence from which its tail can be read.
    pub horizon: Seq,
    /// Its last sequence.
    pub head: Seq,
    /// Its chain at a sequence between horizon and head, both included.
    pub chain_at: &'a dyn Fn(Seq) -> Option<Chain>,
}

/// What to do with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It stands at the log's head.
    Use,
    /// Apply the entries after this sequence.
    CatchUp {
        /// Where the state stands.
        from: Seq,
    },
    /// Build it anew: the log has everything that it ever held.
    Rebuild {
        /// Why.
        reason: RebuildReason,
    },
    /// Keep both: entries that the state was made from are not in the log. A state is fed after the log was synced, so
    /// they were acknowledged.
    Loss {
        /// What shows it.
        reason: LossReason,
    },
}

/// Why a state cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildReason {
    /// There is none, or it was never finished.
    #[error("there is no finished state")]
    Missing,
    /// It was begun for another log, and never took in an entry.
    #[error("the state is empty")]
    Empty,
    /// It goes on beyond what another generation of its log shares, with which an operator gave that up.
    #[error("the state is of a generation that was given up for the log's")]
    GivenUp,
    /// It ends before the entries that the log still has.
    #[error("the state ends before the log's horizon")]
    BelowHorizon,
}

/// What a state proves of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossReason {
    /// It is of another log.
    #[error("the state belongs to another log")]
    OtherLog,
    /// It has seen a later generation.
    #[error("the state is of a later generation than the log")]
    LaterGeneration,
    /// It has seen entries after the log's head.
    #[error("the state is ahead of the log")]
    Ahead,
    /// Its chain is not the log's.
    #[error("the state's history is not the log's")]
    OtherHistory,
}

/// Holds a state against its log. The caller records the log's generation with [`StateStore::set_generation`] when it
/// is later than the state's.
#[must_use]
pub fn verify_against(meta: Option<&StateMeta>, log: &LogView<'_>) -> Action {
    let rebuild = |reason| Action::Rebuild { reason };
    let loss = |reason| Action::Loss { reason };
    let Some(meta) = meta else { return rebuild(RebuildReason::Missing) };
    let is_other = meta.log_id != log.log_id || meta.generation > log.generation;
    let shared_to = shared_after(log.lineage, meta.generation);
    // Each has a generation that the other one lacks: whichever number is greater, an operator started the log's without knowing
    // of this state. A log that merely lacks the state's generation may be an older copy.
    let is_apart = meta.log_id == log.log_id && Divergence::of(&meta.lineage, log.lineage).is_mutual();
    match meta {
        meta if is_apart && meta.seq > Seq::ZERO => rebuild(RebuildReason::GivenUp),
        meta if is_other && meta.seq == Seq::ZERO => rebuild(RebuildReason::Empty),
        meta if meta.log_id != log.log_id => loss(LossReason::OtherLog),
        meta if meta.generation > log.generation => loss(LossReason::LaterGeneration),
        meta if shared_to.is_some_and(|shared_to| meta.seq > shared_to) => rebuild(RebuildReason::GivenUp),
        meta if meta.seq > log.head && planted::is(Bug::IndexAheadIsRebuilt) => rebuild(RebuildReason::GivenUp),
        meta if meta.seq > log.head => loss(LossReason::Ahead),
        meta if meta.seq < log.horizon => rebuild(RebuildReason::BelowHorizon),
        meta if (log.chain_at)(meta.seq) != Some(meta.chain) => loss(LossReason::OtherHistory),
        meta if meta.seq == log.head => Action::Use,
        meta => Action::CatchUp { from: meta.seq },
    }
}

/// A rebuild that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError<E> {
    /// The source of entries failed.
    #[error("the log could not be read: {0}")]
    Source(E),
    /// The new state failed.
    #[error("the new state: {0}")]
    State(#[from] StateError),
}

/// Fills an empty store with what a log adds up to: the compacted entries up to the horizon, the origins at the
/// horizon, and every entry after it, each with the chain at it. `horizon` is where the base ends (sequence 0 for a log
/// that was never compacted); `head_digest` is what the whole must add up to where that is known. `progress` is
/// called with the last sequence of every batch.
///
/// # Errors
/// When the source fails, or the state cannot be written or does not add up; the store is then to be discarded.
pub fn rebuild<E>(
    store: &StateStore,
    base: impl IntoIterator<Item = Result<Entry, E>>,
    origins: &OriginTable,
    horizon: Target,
    tail: impl IntoIterator<Item = Result<(Entry, Chain), E>>,
    head_digest: Option<Digest>,
    progress: &mut dyn FnMut(Seq),
) -> Result<StateStore, RebuildError<E>> {
    let mut loader = store.loader()?;
    let base = base.into_iter().map(|entry| entry.map(|entry| (entry, Chain::default())));
    in_batches(base, |entries, _| {
        loader.base(entries)?;
        progress(entries.last().map_or(Seq::ZERO, |entry| entry.seq));
        Ok(())
    })?;
    for (origin, row) in origins.rows() {
        loader.origin(origin, row)?;
    }
    let store = loader.finish(horizon)?;
    in_batches(tail.into_iter(), |entries, chain| {
        store.apply(entries, chain)?;
        progress(entries.last().map_or(Seq::ZERO, |entry| entry.seq));
        Ok(())
    })?;
    let found = store.meta().ok_or(StateError::Uninitialised)?.digest;
    if let Some(expected) = head_digest
        && expected != found
    {
        return Err(StateError::DigestMismatch { expected, found }.into());
    }
    store.persist()?;
    Ok(store)
}

fn in_batches<E>(
    entries: impl Iterator<Item = Result<(Entry, Chain), E>>,
    mut take: impl FnMut(&[Entry], Chain) -> Result<(), StateError>,
) -> Result<(), RebuildError<E>> {
    let mut batch = Vec::new();
    let mut last = Chain::default();
    let mut bytes = 0;
    for entry in entries {
        let (entry, chain) = entry.map_err(RebuildError::Source)?;
        bytes += match &entry.body {
            crate::model::EntryBody::Commit(txn) => txn.bytes_estimate(),
            _ => 0,
        };
        batch.push(entry);
        last = chain;
        if batch.len() >= BATCH_ENTRIES_MAX || bytes >= BATCH_BYTES_MAX {
            take(&batch, last)?;
            batch.clear();
            bytes = 0;
        }
    }
    if batch.is_empty() { Ok(()) } else { Ok(take(&batch, last)?) }
}
