//! Table 4: the objects.
//!
//! Key: `0x04`, collection, `0x00`, key. Value: envelope around 0 version `u64` LE | 8 commit time in milliseconds
//! `u64` LE | 16 the bytes. An absent row means that no such object exists; deletes leave nothing behind.
//!
//! Keys sort by (collection, key): a collection has no control character, so `0x00` occurs in none, and where one
//! collection's name is the beginning of another's, `0x00` is less than whatever the other goes on with. After the
//! first `0x00` the rest is the key, whatever bytes it holds.

use std::ops::Bound;

use bytes::Bytes;

use super::engine::{End, Row, Slice, prefix_end};
use super::envelope::{self, HEADER_BYTES, Table};
use super::error::StateError;
use crate::model::{Collection, Key, Seq};

/// A value up to this size is copied out of the engine's block rather than keeping the block alive.
const COPY_BYTES_MAX: usize = 4096;
const FIXED_BYTES: usize = 16;

/// The present contents of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Sequence of its last write.
    pub version: Seq,
    /// When that was committed: milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Its bytes.
    pub value: Bytes,
}

/// An object's row before its value is copied anywhere.
pub(super) struct ObjectRow {
    pub(super) version: Seq,
    time_ms: u64,
    row: Slice,
}

impl ObjectRow {
    pub(super) fn value(&self) -> &[u8] {
        &self.row[HEADER_BYTES + FIXED_BYTES..]
    }

    pub(super) fn into_object(self) -> Object {
        let value = if self.row.len() <= COPY_BYTES_MAX {
            Bytes::copy_from_slice(self.value())
        } else {
            Bytes::from_owner(self.row).slice(HEADER_BYTES + FIXED_BYTES..)
        };
        Object { version: self.version, time_ms: self.time_ms, value }
    }
}

pub(super) fn key(collection: &str, key: &str) -> Vec<u8> {
    key_in(Table::Objects, collection, key)
}

/// The key of a row of `table` that is about an object.
pub(super) fn key_in(table: Table, collection: &str, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + collection.len() + key.len());
    out.push(table.number());
    out.extend_from_slice(collection.as_bytes());
    out.push(0);
    out.extend_from_slice(key.as_bytes());
    out
}

pub(super) fn encode(row_key: &[u8], version: Seq, time_ms: u64, value: &[u8]) -> Slice {
    let mut out = envelope::begin(FIXED_BYTES + value.len());
    out.extend_from_slice(&version.0.to_le_bytes());
    out.extend_from_slice(&time_ms.to_le_bytes());
    out.extend_from_slice(value);
    envelope::seal(row_key, out)
}

pub(super) fn decode(row_key: &[u8], row: Slice) -> Result<ObjectRow, StateError> {
    let contents = envelope::open(Table::Objects, row_key, &row)?;
    let (version, time_ms) = match (contents.first_chunk::<8>(), contents.get(8..).and_then(<[u8]>::first_chunk::<8>)) {
        (Some(version), Some(time_ms)) => (u64::from_le_bytes(*version), u64::from_le_bytes(*time_ms)),
        _ => return Err(Table::Objects.damaged(row_key, "the row is cut short")),
    };
    Ok(ObjectRow { version: Seq(version), time_ms, row })
}

/// Names and row of an object found by scanning.
pub(super) fn decode_named((row_key, row): Row) -> Result<(Collection, Key, ObjectRow), StateError> {
    let (collection, key) = names(Table::Objects, &row_key)?;
    Ok((collection, key, decode(&row_key, row)?))
}

/// The names in a key that [`key_in`] made.
pub(super) fn names(table: Table, row_key: &[u8]) -> Result<(Collection, Key), StateError> {
    let bad = |what: &str| table.damaged(row_key, what);
    let text = row_key.get(1..).and_then(|rest| std::str::from_utf8(rest).ok());
    let (collection, key) = text.and_then(|t| t.split_once('\0')).ok_or_else(|| bad("the key is malformed"))?;
    let collection = Collection::new(collection).map_err(|_| bad("the collection's name is malformed"))?;
    let key = Key::new(key).map_err(|_| bad("the key is empty"))?;
    Ok((collection, key))
}

/// The range of all objects, or of those after one.
pub(super) fn range_after(after: Option<(&Collection, &Key)>) -> (End, End) {
    let all = [Table::Objects.number()];
    let low = match after {
        None => Bound::Included(all.to_vec()),
        Some((collection, last)) => Bound::Excluded(key(collection.as_str(), last.as_str())),
    };
    (low, prefix_end(&all))
}

/// The range of a collection's keys that begin with `prefix` and lie above `from`. Never ends before it begins, which
/// engines may not bear.
pub(super) fn range_of(collection: &Collection, prefix: &str, from: Bound<&str>) -> (End, End) {
    let first = key(collection.as_str(), prefix);
    let high = prefix_end(&first);
    let low = match from.map(|from| key(collection.as_str(), from)) {
        Bound::Included(from) | Bound::Excluded(from) if from > first && !from.starts_with(&first) => {
            let (Bound::Included(end) | Bound::Excluded(end)) = &high else { return (Bound::Included(from), high) };
            Bound::Included(end.clone())
        }
        Bound::Included(from) if from > first => Bound::Included(from),
        Bound::Excluded(from) if from >= first => Bound::Excluded(from),
        _ => Bound::Included(first),
    };
    (low, high)
}
