//! Transactions as bytes: the form in which they are pushed and kept in an outbox.
//!
//! `TxnV1` is frozen: a change makes a `TxnV2` with a new version byte in front.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::{Condition, Op, OriginCounter, Txn, TxnId};

const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct TxnV1<'a> {
    id: TxnId,
    settled: OriginCounter,
    time_ms: u64,
    #[serde(with = "serde_bytes", borrow)]
    note: Cow<'a, [u8]>,
    conditions: Cow<'a, [Condition]>,
    ops: Cow<'a, [Op]>,
}

/// Bytes that are not a transaction.
#[derive(Debug, thiserror::Error)]
pub enum BadTxn {
    /// No bytes at all.
    #[error("an encoded transaction is empty")]
    Empty,
    /// A version that this program does not know.
    #[error("an encoded transaction has version {found}, this program knows {VERSION}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// The body does not decode, or bytes follow it.
    #[error("an encoded transaction does not decode: {0}")]
    Body(String),
}

/// Appends the encoded form of `txn` to `out`.
pub fn encode_txn(txn: &Txn, out: &mut Vec<u8>) {
    encode_settled(txn, txn.settled, out);
}

/// [`encode_txn`] of a transaction that says something else of what is settled.
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

/// Hash of what a transaction asks for; see [`Txn::has_contents_of`].
#[must_use]
pub fn contents_hash(txn: &Txn) -> [u8; 16] {
    let bytes = postcard::to_stdvec(&(&txn.conditions, &txn.ops)).expect("invariant: encoding into memory cannot fail");
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    hash
}

/// Decodes one transaction that fills `bytes`.
///
/// # Errors
/// When the bytes are of another version, damaged, or followed by more.
pub fn decode_txn(bytes: &[u8]) -> Result<Txn, BadTxn> {
    let (version, body) = bytes.split_first().ok_or(BadTxn::Empty)?;
    if *version != VERSION {
        return Err(BadTxn::Version { found: *version });
    }
    let (txn, rest) = postcard::take_from_bytes::<TxnV1>(body).map_err(|error| BadTxn::Body(error.to_string()))?;
    if !rest.is_empty() {
        return Err(BadTxn::Body(format!("{} bytes follow it", rest.len())));
    }
    Ok(Txn {
        id: txn.id,
        settled: txn.settled,
        time_ms: txn.time_ms,
        note: Bytes::copy_from_slice(&txn.note),
        conditions: txn.conditions.into_owned(),
        ops: txn.ops.into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Collection, Key, Origin};

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
}
