//! Table 7: objects with values that are withheld from the member that holds this state.
//!
//! Only a *redacted* state has this table. Such a state always has the row `0x07`, an empty envelope. Further keys:
//! `0x07`, collection, `0x00`, key. Value: envelope around 0 version `u64` LE | 8 commit time in milliseconds `u64` LE
//! | 16 bytes of the value `u64` LE | 24 contribution to the digest, 32 bytes. An object is either here or in table 4,
//! never in both.

use std::ops::Bound;

use super::engine::{Batch, End, Engine, EngineSnapshot, Row, Slice, prefix_end};
use super::envelope::{self, Table};
use super::error::StateError;
use super::objects;
use gravwell_model::{Collection, Digest, Key, Seq, Withheld};

/// Metadata that a redacted state holds of an object with a withheld value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithheldObject {
    /// Sequence of the last write.
    pub version: Seq,
    /// Commit time of the last write, in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Name, size and contribution to the digest.
    pub object: Withheld,
}

const MARKER_KEY: [u8; 1] = [Table::Withheld as u8];
const CONTENTS_BYTES: usize = 56;

pub(super) fn push_marker(batch: &mut Batch) {
    batch.push((Slice::from(MARKER_KEY), Some(envelope::seal(&MARKER_KEY, envelope::begin(0)))));
}

/// Returns whether a state is marked as redacted.
pub(super) fn is_marked(view: &dyn EngineSnapshot) -> Result<bool, StateError> {
    let Some(row) = view.get(&MARKER_KEY)? else { return Ok(false) };
    match envelope::open(Table::Withheld, &MARKER_KEY, &row)? {
        [] => Ok(true),
        _ => Err(Table::Withheld.damaged(&MARKER_KEY, "the row has the wrong length")),
    }
}

pub(super) fn key(collection: &Collection, key: &Key) -> Vec<u8> {
    objects::key_in(Table::Withheld, collection.as_str(), key.as_str())
}

pub(super) fn encode(row_key: &[u8], withheld: &WithheldObject) -> Slice {
    let mut out = envelope::begin(CONTENTS_BYTES);
    for number in [withheld.version.0, withheld.time_ms, withheld.object.value_bytes] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&withheld.object.contribution.to_bytes());
    envelope::seal(row_key, out)
}

pub(super) fn decode_named((row_key, row): Row) -> Result<WithheldObject, StateError> {
    let (collection, key) = objects::names(Table::Withheld, &row_key)?;
    let contents = envelope::open(Table::Withheld, &row_key, &row)?;
    let contents: &[u8; CONTENTS_BYTES] =
        contents.try_into().map_err(|_| Table::Withheld.damaged(&row_key, "the row has the wrong length"))?;
    let number = |at: usize| contents.iter().skip(at).take(8).rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let contribution = contents.last_chunk::<32>().map_or(Digest::ZERO, |bytes| Digest::from_bytes(*bytes));
    let object = Withheld { collection, key, value_bytes: number(16), contribution };
    Ok(WithheldObject { version: Seq(number(0)), time_ms: number(8), object })
}

/// Returns the object under a key if its value is withheld.
pub(super) fn get(engine: &dyn Engine, row_key: Vec<u8>) -> Result<Option<WithheldObject>, StateError> {
    let Some(row) = engine.get(&row_key)? else { return Ok(None) };
    decode_named((Slice::from(row_key), row)).map(Some)
}

/// Returns the range of all objects with withheld values, without the marker.
pub(super) fn range() -> (End, End) {
    (Bound::Excluded(MARKER_KEY.to_vec()), prefix_end(&MARKER_KEY))
}
