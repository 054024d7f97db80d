//! Decides whether a state can be used with a log, and rebuilds a state from a log.

use super::error::StateError;
use super::loader::Target;
use super::meta::StateMeta;
use super::origins::OriginTable;
use super::store::StateStore;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::position::{Chain, Divergence, shared_after};
use gravwell_model::{Digest, Entry, Generation, LineageEntry, LogId, Seq};

const BATCH_ENTRIES_MAX: usize = 4096;
/// Approximate maximum size in bytes of a batch.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Properties of a log that a state is compared with.
pub struct LogView<'a> {
    /// Id of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Descent of the generations.
    pub lineage: &'a [LineageEntry],
    /// Lowest sequence from which the tail of the log can be read.
    pub horizon: Seq,
    /// Last sequence of the log.
    pub head: Seq,
    /// Returns the chain value at a sequence between horizon and head, both included.
    pub chain_at: &'a dyn Fn(Seq) -> Option<Chain>,
}

/// The action required for a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Use the state: it is at the head of the log.
    Use,
    /// Apply the entries after this sequence.
    CatchUp {
        /// Sequence of the state.
        from: Seq,
    },
    /// Rebuild the state: the log still has everything it ever contained.
    Rebuild {
        /// Reason for the rebuild.
        reason: RebuildReason,
    },
    /// Keep both: entries applied to the state are missing from the log. Entries are applied after the log was synced,
    /// so they were acknowledged.
    Loss {
        /// The evidence for the loss.
        reason: LossReason,
    },
}

/// Reason why a state cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildReason {
    /// There is no state, or it was never completed.
    #[error("there is no complete state")]
    Missing,
    /// The state was created for another log and has no entries.
    #[error("the state is empty")]
    Empty,
    /// The state extends past what its generation shares with the log; an operator abandoned that part when starting
    /// the log's generation.
    #[error("the state is of a generation that was abandoned for the log's")]
    GivenUp,
    /// The state ends before the entries that the log still has.
    #[error("the state ends before the log's horizon")]
    BelowHorizon,
}

/// Evidence that a log has lost entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossReason {
    /// The state belongs to another log.
    #[error("the state belongs to another log")]
    OtherLog,
    /// The state has a later generation.
    #[error("the state is of a later generation than the log")]
    LaterGeneration,
    /// The state has entries after the head of the log.
    #[error("the state is ahead of the log")]
    Ahead,
    /// The chain value of the state differs from that of the log.
    #[error("the state's history differs from the log's")]
    OtherHistory,
}

/// Compares a state with its log. If the generation of the log is later than that of the state, the caller records it
/// with [`StateStore::set_generation`].
#[must_use]
pub fn verify_against(meta: Option<&StateMeta>, log: &LogView<'_>) -> Action {
    let rebuild = |reason| Action::Rebuild { reason };
    let loss = |reason| Action::Loss { reason };
    let Some(meta) = meta else { return rebuild(RebuildReason::Missing) };
    let is_other = meta.log_id != log.log_id || meta.generation > log.generation;
    let shared_to = shared_after(log.lineage, meta.generation);
    // Each lineage has a generation that the other one lacks: whichever number is higher, an operator started the generation of
    // the log without knowing this state. A log that only lacks the generation of the state may be an older copy.
    let is_apart = meta.log_id == log.log_id && Divergence::of(&meta.lineage, log.lineage).is_mutual();
    match meta {
        meta if is_apart && meta.seq > Seq::ZERO => rebuild(RebuildReason::GivenUp),
        meta if is_other && meta.seq == Seq::ZERO => rebuild(RebuildReason::Empty),
        meta if meta.log_id != log.log_id => loss(LossReason::OtherLog),
        meta if meta.generation > log.generation => loss(LossReason::LaterGeneration),
        meta if shared_to.is_some_and(|shared_to| meta.seq > shared_to) => rebuild(RebuildReason::GivenUp),
        meta if meta.seq > log.head && fault_injection::is(Bug::IndexAheadIsRebuilt) => rebuild(RebuildReason::GivenUp),
        meta if meta.seq > log.head => loss(LossReason::Ahead),
        meta if meta.seq < log.horizon => rebuild(RebuildReason::BelowHorizon),
        meta if (log.chain_at)(meta.seq) != Some(meta.chain) => loss(LossReason::OtherHistory),
        meta if meta.seq == log.head => Action::Use,
        meta => Action::CatchUp { from: meta.seq },
    }
}

/// A rebuild that did not complete.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError<E> {
    /// The source of entries failed.
    #[error("cannot read the log: {0}")]
    Source(E),
    /// The new state failed.
    #[error("cannot write the new state: {0}")]
    State(#[from] StateError),
}

/// Fills an empty store from a log: the compacted entries up to the horizon, the origins at the horizon, and every
/// entry after it with its chain value. `horizon` describes the end of the base (sequence 0 for a log that was never
/// compacted); `head_digest` is the expected digest of the result, if known. `progress` is called with the last
/// sequence of every batch.
///
/// # Errors
/// If the source fails, the state cannot be written, or a digest differs; the store must then be discarded.
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
            gravwell_model::EntryBody::Commit(txn) => txn.bytes_estimate(),
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
