//! Encoding of transactions for pushing and for the outbox.
//!
//! `TxnV1` is frozen: a change requires a `TxnV2` with a new version byte at the start.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Condition, Op, OriginCounter, Txn, TxnId};

const VERSION: u8 = 1;

#[derive(Serialize)]
struct TxnV1<'a> {
    id: TxnId,
    settled: OriginCounter,
    time_ms: u64,
    #[serde(with = "serde_bytes")]
    note: Cow<'a, [u8]>,
    conditions: Cow<'a, [Condition]>,
    ops: Cow<'a, [Op]>,
}

/// Fields before the rows, which are decoded one by one.
#[derive(Deserialize)]
struct HeadV1<'a> {
    id: TxnId,
    settled: OriginCounter,
    time_ms: u64,
    #[serde(with = "serde_bytes", borrow)]
    note: Cow<'a, [u8]>,
}

/// Maximum encoded length of a transaction's identity and acknowledged-rejections watermark, from the start of the bytes.
pub const HEAD_BYTES_MAX: usize = 64;
/// Minimum encoded length of a condition or operation: its kind, a collection name of one byte, and a key of one byte.
const ROW_BYTES_MIN: usize = 5;

/// Bytes that are not a valid transaction.
#[derive(Debug, thiserror::Error)]
pub enum BadTxn {
    /// The input is empty.
    #[error("the encoded transaction is empty")]
    Empty,
    /// The program does not know this version.
    #[error("the encoded transaction has version {found}, but this program supports {VERSION}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// The body cannot be decoded, or bytes follow it.
    #[error("cannot decode a transaction: {0}")]
    Body(String),
    /// There are more operations and conditions than the caller allows.
    #[error("the encoded transaction has {found} operations and conditions")]
    Rows {
        /// Number of rows decoded or announced so far.
        found: usize,
    },
}

/// Appends the encoded form of `txn` to `out`.
pub fn encode_txn(txn: &Txn, out: &mut Vec<u8>) {
    encode_settled(txn, txn.settled, out);
}

/// Like [`encode_txn`], but with another acknowledged-rejections watermark.
pub fn encode_settled(txn: &Txn, settled: OriginCounter, out: &mut Vec<u8>) {
    out.push(VERSION);
    let body = TxnV1 {
        id: txn.id,
        settled,
        time_ms: txn.time_ms,
        note: Cow::Borrowed(&txn.note),
        conditions: Cow::Borrowed(&txn.conditions),
        ops: Cow::Borrowed(&txn.ops),
    };
    let start = std::mem::take(out);
    *out = postcard::to_extend(&body, start).expect("invariant: encoding into memory cannot fail");
}

/// Returns the hash of a transaction's conditions and operations, see [`Txn::has_contents_of`].
#[must_use]
pub fn contents_hash(txn: &Txn) -> [u8; 16] {
    let bytes = postcard::to_stdvec(&(&txn.conditions, &txn.ops)).expect("invariant: encoding into memory cannot fail");
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    hash
}

/// Decodes a transaction that fills `bytes`.
///
/// # Errors
/// If the bytes are of another version, corrupt, or followed by others.
pub fn decode_txn(bytes: &[u8]) -> Result<Txn, BadTxn> {
    decode_txn_within(bytes, usize::MAX)
}

/// Like [`decode_txn`], with a limit of the number of operations and conditions: rows of a few bytes occupy a multiple
/// of that in memory.
///
/// # Errors
/// If [`decode_txn`] would fail, or if there are more rows.
pub fn decode_txn_within(bytes: &[u8], rows_max: usize) -> Result<Txn, BadTxn> {
    let (head, mut rest) = taken::<HeadV1<'_>>(body_of(bytes)?)?;
    let conditions: Vec<Condition> = rows(&mut rest, 0, rows_max)?;
    let ops = rows(&mut rest, conditions.len(), rows_max)?;
    if !rest.is_empty() {
        return Err(BadTxn::Body(format!("it is followed by {} bytes", rest.len())));
    }
    let HeadV1 { id, settled, time_ms, note } = head;
    Ok(Txn { id, settled, time_ms, note: Bytes::copy_from_slice(&note), conditions, ops })
}

/// Decodes the identity and the acknowledged-rejections watermark from the first [`HEAD_BYTES_MAX`] bytes of a transaction.
///
/// # Errors
/// If [`decode_txn`] would fail, as far as these bytes show it.
pub fn decode_head(bytes: &[u8]) -> Result<(TxnId, OriginCounter), BadTxn> {
    Ok(taken(body_of(bytes)?)?.0)
}

fn body_of(bytes: &[u8]) -> Result<&[u8], BadTxn> {
    let (version, body) = bytes.split_first().ok_or(BadTxn::Empty)?;
    if *version != VERSION {
        return Err(BadTxn::Version { found: *version });
    }
    Ok(body)
}

fn taken<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), BadTxn> {
    postcard::take_from_bytes(bytes).map_err(|error| BadTxn::Body(error.to_string()))
}

/// Decodes a row count and that many rows; `before` is the number of rows decoded already.
fn rows<'a, T: Deserialize<'a>>(rest: &mut &'a [u8], before: usize, rows_max: usize) -> Result<Vec<T>, BadTxn> {
    let (count, behind) = taken::<usize>(rest)?;
    let found = before.saturating_add(count);
    if found > rows_max {
        return Err(BadTxn::Rows { found });
    }
    *rest = behind;
    // Limited by the input, whatever row count it announces.
    let mut rows = Vec::with_capacity(count.min(rest.len() / ROW_BYTES_MIN));
    for _ in 0..count {
        let (row, behind) = taken(rest)?;
        *rest = behind;
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Collection, Key, Origin};

    #[test]
    fn round_trip_and_trailing_bytes() {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let txn = Txn {
            id: TxnId { origin: Origin([7; 16]), counter: OriginCounter(3) },
            settled: OriginCounter(1),
            time_ms: 5,
            note: Bytes::from_static(b"who"),
            conditions: vec![Condition::Absent { collection: collection.clone(), key: key.clone() }],
            ops: vec![Op::Put { collection, key, value: Bytes::from_static(b"v") }],
        };
        let mut bytes = Vec::new();
        encode_txn(&txn, &mut bytes);
        assert_eq!(decode_txn(&bytes).expect("decodes"), txn);
        bytes.push(0);
        assert!(decode_txn(&bytes).is_err());
        assert!(matches!(decode_txn(&[]), Err(BadTxn::Empty)));
        assert!(matches!(decode_txn(&[9]), Err(BadTxn::Version { found: 9 })));
    }

    #[test]
    fn p15_rows_are_bounded_by_the_callers_number_and_by_the_bytes_that_are_there() {
        let (id, settled) = (TxnId { origin: Origin([7; 16]), counter: OriginCounter(u64::MAX) }, OriginCounter(5));
        let txn = Txn { id, settled, time_ms: 5, note: Bytes::new(), conditions: Vec::new(), ops: Vec::new() };
        let mut bytes = Vec::new();
        encode_txn(&txn, &mut bytes);
        // The head is followed by the numbers of conditions and of operations.
        bytes.truncate(bytes.len() - 2);
        assert!(bytes.len() <= HEAD_BYTES_MAX);
        assert_eq!(decode_head(&bytes).expect("decodes"), (id, settled));
        let with = |conditions: usize, written: usize, ops: usize| {
            let mut bytes = bytes.clone();
            bytes.extend(postcard::to_stdvec(&conditions).expect("encodes"));
            (0..written).for_each(|_| bytes.extend([0, 1, b'c', 1, b'k']));
            bytes.extend(postcard::to_stdvec(&ops).expect("encodes"));
            (0..ops).for_each(|_| bytes.extend([1, 1, b'c', 1, b'k']));
            decode_txn_within(&bytes, 10)
        };
        let taken = with(7, 7, 3).expect("decodes");
        assert_eq!((taken.conditions.len(), taken.ops.len()), (7, 3));
        assert!(matches!(with(7, 7, 4), Err(BadTxn::Rows { found: 11 })));
        assert!(matches!(with(800_000, 800_000, 0), Err(BadTxn::Rows { found: 800_000 })));
        assert!(matches!(with(usize::MAX, 1, 0), Err(BadTxn::Rows { found: usize::MAX })));
        assert!(matches!(with(9, 1, 0), Err(BadTxn::Body(_))));
        let mut lying = bytes.clone();
        lying.extend(postcard::to_stdvec(&usize::MAX).expect("encodes"));
        lying.extend([0, 1, b'c', 1, b'k']);
        assert!(matches!(decode_txn(&lying), Err(BadTxn::Body(_))), "nothing is allocated for missing rows");
    }
}
