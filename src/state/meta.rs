//! Tables 1 and 2: the position of the state, and the sums of its rows.
//!
//! Table 1 has one row, under the key `0x01`: envelope around the postcard of `PositionV1`, followed since version 2
//! by that of the sum of the recent deletions, which version 1 ignores. Without this row the store is unfinished.
//! Table 2 has one row per collection that has objects: key `0x02`, collection; value: envelope around 0 objects `u64`
//! LE | 8 bytes of keys and values `u64` LE | 16 digest, 32 bytes. The position repeats the digest over all sums, so a
//! lost or stale sum is detected when the store is opened.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::engine::{Batch, EngineSnapshot, Slice, prefix_end};
use super::envelope::{self, Table};
use super::error::StateError;
use super::withheld;
use gravwell_model::deletions::Summary;
use gravwell_model::digest::CollectionSum;
use gravwell_model::position::Chain;
use gravwell_model::{Collection, Digest, DigestSet, Generation, Lineage, LogId, Position, Seq};

/// Position and sums of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateMeta {
    /// Id of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Descent of the generations.
    pub lineage: Lineage,
    /// Last entry applied.
    pub seq: Seq,
    /// Chain value at that entry.
    pub chain: Chain,
    /// Commit time of that entry, in milliseconds since 1970-01-01 UTC; 0 before the first entry.
    pub time_ms: u64,
    /// Sums by collection, and the digest of the origins.
    pub digests: DigestSet,
    /// `digests.overall()`, cached.
    pub digest: Digest,
    /// Whether values are withheld: of some objects the state holds only the names and their contribution to the digest.
    pub is_redacted: bool,
}

impl StateMeta {
    /// Returns the position of the state.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            log_id: self.log_id,
            generation: self.generation,
            seq: self.seq,
            chain: self.chain,
            digest: self.digest,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct PositionV1 {
    log_id: LogId,
    generation: Generation,
    lineage: Lineage,
    seq: Seq,
    chain: Chain,
    time_ms: u64,
    origins: Digest,
    digest: Digest,
}

const POSITION_KEY: [u8; 1] = [Table::Position as u8];

/// Adds the row of the position to a batch.
pub(super) fn push_position(batch: &mut Batch, meta: &StateMeta, origins: Digest, deletions: Summary) {
    let row = PositionV1 {
        log_id: meta.log_id,
        generation: meta.generation,
        lineage: meta.lineage.clone(),
        seq: meta.seq,
        chain: meta.chain,
        time_ms: meta.time_ms,
        origins,
        digest: meta.digest,
    };
    let row = (row, deletions);
    let out = postcard::to_extend(&row, envelope::begin(208)).expect("invariant: a position has no unsized sequence");
    batch.push((Slice::from(POSITION_KEY), Some(envelope::seal(&POSITION_KEY, out))));
}

fn sum_key(collection: &Collection) -> Vec<u8> {
    let mut key = vec![Table::Sums.number()];
    key.extend_from_slice(collection.as_str().as_bytes());
    key
}

/// Adds the sum of a collection to a batch; `None` if its last object was deleted.
pub(super) fn push_sum(batch: &mut Batch, collection: &Collection, sum: Option<&CollectionSum>) {
    let key = sum_key(collection);
    let value = sum.map(|sum| {
        let mut out = envelope::begin(48);
        out.extend_from_slice(&sum.objects.to_le_bytes());
        out.extend_from_slice(&sum.bytes.to_le_bytes());
        out.extend_from_slice(&sum.digest.to_bytes());
        envelope::seal(&key, out)
    });
    batch.push((Slice::from(key), value));
}

fn decode_sum(key: &[u8], value: &[u8]) -> Result<(Collection, CollectionSum), StateError> {
    let bad = |what: &str| Table::Sums.damaged(key, what);
    let name = key.get(1..).and_then(|name| std::str::from_utf8(name).ok());
    let collection = name.and_then(|name| Collection::new(name).ok()).ok_or_else(|| bad("the key is malformed"))?;
    let contents = envelope::open(Table::Sums, key, value)?;
    let contents: &[u8; 48] = contents.try_into().map_err(|_| bad("the row has the wrong length"))?;
    let number = |at: usize| contents.iter().skip(at).take(8).rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let digest = contents.last_chunk::<32>().ok_or_else(|| bad("the row has the wrong length"))?;
    let sum = CollectionSum { objects: number(0), bytes: number(8), digest: Digest::from_bytes(*digest) };
    Ok((collection, sum))
}

/// Returns sequence, chain value and generation of a view, without its sums.
pub(super) fn load_place(view: &dyn EngineSnapshot) -> Result<Option<(Seq, Chain, Generation)>, StateError> {
    Ok(load_position(view)?.map(|(position, _)| (position.seq, position.chain, position.generation)))
}

/// Returns the sum of the recent deletions of a view; `None` if it was written last by a version that does not know the sum.
pub(super) fn load_deletions(view: &dyn EngineSnapshot) -> Result<Option<Summary>, StateError> {
    Ok(load_position(view)?.and_then(|(_, deletions)| deletions))
}

fn load_position(view: &dyn EngineSnapshot) -> Result<Option<(PositionV1, Option<Summary>)>, StateError> {
    let Some(row) = view.get(&POSITION_KEY)? else { return Ok(None) };
    let contents = envelope::open(Table::Position, &POSITION_KEY, &row)?;
    let bad = |error: postcard::Error| Table::Position.damaged(&POSITION_KEY, error.to_string());
    let (position, rest) = postcard::take_from_bytes(contents).map_err(bad)?;
    let deletions = if rest.is_empty() { None } else { Some(postcard::from_bytes(rest).map_err(bad)?) };
    Ok(Some((position, deletions)))
}

/// Loads the meta of a view; `None` if the store is new or unfinished.
pub(super) fn load(view: &dyn EngineSnapshot) -> Result<Option<StateMeta>, StateError> {
    let Some((position, _)) = load_position(view)? else { return Ok(None) };
    let mut digests = DigestSet { origins: position.origins, ..DigestSet::default() };
    let prefix = [Table::Sums.number()];
    for row in view.range(Bound::Included(prefix.to_vec()), prefix_end(&prefix)) {
        let (key, value) = row?;
        let (collection, sum) = decode_sum(&key, &value)?;
        digests.collections.insert(collection, sum);
    }
    let found = digests.overall();
    if found != position.digest {
        return Err(StateError::DigestMismatch { expected: position.digest, found });
    }
    Ok(Some(StateMeta {
        log_id: position.log_id,
        generation: position.generation,
        lineage: position.lineage,
        seq: position.seq,
        chain: position.chain,
        time_ms: position.time_ms,
        digests,
        digest: found,
        is_redacted: withheld::is_marked(view)?,
    }))
}
