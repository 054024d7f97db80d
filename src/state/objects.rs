//! Table 4: the objects.
//!
//! Key: `0x04`, collection, `0x00`, key. Value: envelope around 0 version `u64` LE | 8 commit time in milliseconds
//! `u64` LE | 16 the bytes. An absent row means that the object does not exist; deletes leave no row in this table.
//!
//! Keys sort by (collection, key): collection names contain no control characters, so `0x00` occurs in none of them.
//! If the name of one collection is a prefix of another name, `0x00` sorts before the next character of the longer
//! name. Everything after the first `0x00` is the key, which may contain any bytes.

use std::ops::Bound;

use bytes::Bytes;

use super::engine::{End, Row, Slice, prefix_end};
use super::envelope::{self, HEADER_BYTES, Table};
use super::error::StateError;
use gravwell_model::{Collection, Key, Seq};

/// Values up to this size are copied, so that they do not keep the block of the engine alive.
const COPY_BYTES_MAX: usize = 4096;
const FIXED_BYTES: usize = 16;

/// The current contents of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Sequence of the last write.
    pub version: Seq,
    /// Commit time of the last write, in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The value.
    pub value: Bytes,
}

/// The row of an object before its value is copied.
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

/// Returns the key of the row for an object in `table`.
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
        _ => return Err(Table::Objects.damaged(row_key, "the row is truncated")),
    };
    Ok(ObjectRow { version: Seq(version), time_ms, row })
}

/// Decodes collection, key and row of an object found by a scan.
pub(super) fn decode_named((row_key, row): Row) -> Result<(Collection, Key, ObjectRow), StateError> {
    let (collection, key) = names(Table::Objects, &row_key)?;
    Ok((collection, key, decode(&row_key, row)?))
}

/// Returns the collection and the key contained in a row key created by [`key_in`].
pub(super) fn names(table: Table, row_key: &[u8]) -> Result<(Collection, Key), StateError> {
    let bad = |what: &str| table.damaged(row_key, what);
    let text = row_key.get(1..).and_then(|rest| std::str::from_utf8(rest).ok());
    let (collection, key) = text.and_then(|t| t.split_once('\0')).ok_or_else(|| bad("the key is malformed"))?;
    let collection = Collection::new(collection).map_err(|_| bad("the collection's name is malformed"))?;
    let key = Key::new(key).map_err(|_| bad("the key is empty"))?;
    Ok((collection, key))
}

/// Returns the range of all objects, or of those after the given one.
pub(super) fn range_after(after: Option<(&Collection, &Key)>) -> (End, End) {
    let all = [Table::Objects.number()];
    let low = match after {
        None => Bound::Included(all.to_vec()),
        Some((collection, last)) => Bound::Excluded(key(collection.as_str(), last.as_str())),
    };
    (low, prefix_end(&all))
}

/// Returns the range of the keys of a collection that start with `prefix` and follow the bound `from`. The end is
/// never before the start, which some engines do not accept.
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
