//! Payloads of log records: conversion between bytes and [`Entry`].
//!
//! `CommitV1` and `RejectV1` are frozen: golden files pin their bytes. A change requires new structures under new
//! record kinds. Records of kinds that this version does not know are kept unchanged.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::{DecodeError, EncodeError};
use super::frame::{FrameHeader, FrameParts, HEADER_BYTES, PAYLOAD_BYTES_MAX, decode_frame, kind, seal_frame};
use super::redacted_frame::decode_sent;
use crate::limits::HARD;
use crate::{Chain, Condition, Entry, EntryBody, MemberName, Op, OriginCounter, Reason, Seq, Txn, TxnId};

/// Encoded form of a commit, also the first part of a redacted one.
#[derive(Serialize, Deserialize)]
pub(super) struct CommitV1<'a> {
    time_ms: u64,
    member: Cow<'a, MemberName>,
    id: TxnId,
    settled: OriginCounter,
    made_ms: u64,
    #[serde(with = "serde_bytes", borrow)]
    note: Cow<'a, [u8]>,
    conditions: Cow<'a, [Condition]>,
    ops: Cow<'a, [Op]>,
}

impl<'a> CommitV1<'a> {
    pub(super) fn of(entry: &'a Entry, txn: &'a Txn) -> CommitV1<'a> {
        CommitV1 {
            time_ms: entry.time_ms,
            member: Cow::Borrowed(&entry.member),
            id: txn.id,
            settled: txn.settled,
            made_ms: txn.time_ms,
            note: Cow::Borrowed(&txn.note),
            conditions: Cow::Borrowed(&txn.conditions),
            ops: Cow::Borrowed(&txn.ops),
        }
    }

    /// Creates the entry at `seq`. `more` is the number of rows in addition to its own. `body` creates the body of the
    /// entry from the transaction.
    pub(super) fn into_entry(
        self,
        what: &'static str,
        seq: Seq,
        more: usize,
        body: impl FnOnce(Txn) -> EntryBody,
    ) -> Result<Entry, DecodeError> {
        let rows = self.ops.len() + self.conditions.len() + more;
        if rows > HARD.ops_max {
            return Err(DecodeError::new(what, 0, format_args!("at most {} rows", HARD.ops_max), rows));
        }
        let txn = Txn {
            id: self.id,
            settled: self.settled,
            time_ms: self.made_ms,
            note: Bytes::copy_from_slice(&self.note),
            conditions: self.conditions.into_owned(),
            ops: self.ops.into_owned(),
        };
        Ok(Entry { seq, time_ms: self.time_ms, member: self.member.into_owned(), body: body(txn) })
    }
}

#[derive(Serialize, Deserialize)]
struct RejectV1<'a> {
    time_ms: u64,
    member: Cow<'a, MemberName>,
    id: TxnId,
    settled: OriginCounter,
    reason: Cow<'a, Reason>,
}

/// Appends the payload of `entry` to `out`; returns its kind.
pub(super) fn encode_payload(entry: &Entry, out: &mut Vec<u8>) -> u8 {
    let start = std::mem::take(out);
    let encoded = match &entry.body {
        EntryBody::Commit(txn) => {
            postcard::to_extend(&CommitV1::of(entry, txn), start).map(|bytes| (bytes, kind::COMMIT))
        }
        EntryBody::Reject { id, settled, reason } => {
            let body = RejectV1 {
                time_ms: entry.time_ms,
                member: Cow::Borrowed(&entry.member),
                id: *id,
                settled: *settled,
                reason: Cow::Borrowed(reason),
            };
            postcard::to_extend(&body, start).map(|bytes| (bytes, kind::REJECT))
        }
        EntryBody::Redacted { txn, withheld } => {
            super::redacted_frame::encode_payload(entry, txn, withheld, start).map(|bytes| (bytes, kind::REDACTED))
        }
        EntryBody::Unknown { kind, payload } => {
            let mut bytes = start;
            bytes.extend_from_slice(payload);
            Ok((bytes, *kind))
        }
    };
    let (bytes, kind) = encoded.expect("invariant: encoding into memory cannot fail");
    *out = bytes;
    kind
}

/// Appends `entry` to `out` as a frame; returns the chain after it. On error, `out` is unchanged.
///
/// # Errors
/// If the payload is longer than a frame can contain.
pub fn encode_entry(
    entry: &Entry,
    before: &Chain,
    batch_index: u32,
    flags: u16,
    out: &mut Vec<u8>,
) -> Result<Chain, EncodeError> {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    let kind = encode_payload(entry, out);
    let payload_bytes = out.len() - start - HEADER_BYTES;
    if payload_bytes > PAYLOAD_BYTES_MAX {
        out.truncate(start);
        return Err(EncodeError { seq: entry.seq.0, found: payload_bytes, allowed: PAYLOAD_BYTES_MAX });
    }
    Ok(seal_frame(&mut out[start..], FrameParts { kind, flags, batch_index, seq: entry.seq }, before))
}

/// Creates an entry from a header and its payload.
///
/// # Errors
/// If the payload does not match its kind.
pub fn decode_entry(header: &FrameHeader, payload: &Bytes) -> Result<Entry, DecodeError> {
    match header.kind {
        kind::COMMIT => {
            let what = "commit payload";
            decode_body::<CommitV1>(what, payload)?.into_entry(what, header.seq, 0, EntryBody::Commit)
        }
        kind::REJECT => {
            let body: RejectV1 = decode_body("reject payload", payload)?;
            Ok(Entry {
                seq: header.seq,
                time_ms: body.time_ms,
                member: body.member.into_owned(),
                body: EntryBody::Reject { id: body.id, settled: body.settled, reason: body.reason.into_owned() },
            })
        }
        kind => Ok(unknown_entry(header.seq, kind, payload.clone())),
    }
}

/// The time and the member of an entry of unknown kind cannot be read.
fn unknown_entry(seq: Seq, kind: u8, payload: Bytes) -> Entry {
    let member = MemberName::new("unknown").expect("invariant: a valid name");
    Entry { seq, time_ms: 0, member, body: EntryBody::Unknown { kind, payload } }
}

/// Returns the commit time of a record without decoding the rest. Every payload of a known kind starts with it.
#[must_use]
pub fn peek_time(header: &FrameHeader, payload: &[u8]) -> Option<u64> {
    let known = matches!(header.kind, kind::COMMIT | kind::REJECT | kind::AUDIT);
    known.then(|| postcard::take_from_bytes::<u64>(payload).ok().map(|(time, _)| time)).flatten()
}

pub(super) fn decode_body<'a, T: Deserialize<'a>>(what: &'static str, payload: &'a Bytes) -> Result<T, DecodeError> {
    let (body, rest) = postcard::take_from_bytes(payload)
        .map_err(|error| DecodeError::new(what, 0, "a well-formed structure", error))?;
    if rest.is_empty() {
        Ok(body)
    } else {
        Err(DecodeError::new(what, payload.len() - rest.len(), "the end", format_args!("{} more bytes", rest.len())))
    }
}

/// Decodes consecutive frames as sent to subscribers. Verifies checksums, sequences and the chain.
///
/// # Errors
/// If a frame is corrupt or does not follow `after`.
pub fn decode_frames(bytes: &Bytes, after: (Seq, Chain)) -> Result<(Vec<Entry>, Chain), DecodeError> {
    let (mut seq, mut chain) = after;
    let mut at = 0;
    let mut entries = Vec::new();
    while at < bytes.len() {
        let shift = |mut error: DecodeError| {
            error.offset += at;
            error
        };
        let rest = &bytes[at..];
        let (header, payload) = decode_frame(rest).map_err(shift)?;
        if header.seq != seq.next() {
            return Err(shift(DecodeError::new("sequence", super::frame::AT_SEQ, seq.next(), header.seq)));
        }
        let end = payload.end;
        chain = super::frame::check_chain(&rest[..end], &chain).map_err(shift)?;
        entries.push(decode_entry(&header, &bytes.slice(at + payload.start..at + end)).map_err(shift)?);
        (seq, at) = (header.seq, at + end);
    }
    Ok((entries, chain))
}

/// Decodes frames from a reply, which need not be consecutive and may be redacted. Verifies only checksums.
///
/// # Errors
/// If a frame is corrupt.
pub fn decode_loose_frames(bytes: &Bytes) -> Result<Vec<Entry>, DecodeError> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.slice(at..);
        let (header, payload) = decode_frame(&rest)?;
        at += payload.end;
        entries.push(decode_sent(&header, &rest.slice(payload))?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::codec::frame::{CHAIN_START, check_chain, flag};
    use crate::{Collection, Key, Origin};

    fn name() -> impl Strategy<Value = (Collection, Key)> {
        let collection = "[a-zäö]{1,20}".prop_map(|text| Collection::new(text).expect("a name"));
        (collection, ".{1,40}".prop_map(|text| Key::new(text).expect("not empty")))
    }

    fn op() -> impl Strategy<Value = Op> {
        (name(), proptest::option::of(vec(any::<u8>(), 0..300))).prop_map(|((collection, key), value)| match value {
            Some(value) => Op::Put { collection, key, value: value.into() },
            None => Op::Delete { collection, key },
        })
    }

    fn condition() -> impl Strategy<Value = Condition> {
        (name(), 0..3, any::<u64>()).prop_map(|((collection, key), which, version)| match which {
            0 => Condition::Absent { collection, key },
            1 => Condition::Present { collection, key },
            _ => Condition::Version { collection, key, version: Seq(version) },
        })
    }

    fn reason() -> impl Strategy<Value = Reason> {
        prop_oneof![
            (".*", any::<Option<u64>>())
                .prop_map(|(condition, found)| Reason::ConditionFailed { condition, found: found.map(Seq) }),
            ".*".prop_map(|message| Reason::LimitExceeded { message }),
            ".*".prop_map(|message| Reason::Forbidden { message }),
            Just(Reason::IdentityReused),
            ".*".prop_map(|message| Reason::ChunksLost { message }),
        ]
    }

    fn body() -> impl Strategy<Value = EntryBody> {
        let id = (any::<[u8; 16]>(), any::<u64>())
            .prop_map(|(origin, counter)| TxnId { origin: Origin(origin), counter: OriginCounter(counter) });
        let times = (any::<u64>(), any::<u64>());
        let rows = (vec(condition(), 0..4), vec(op(), 0..6));
        let note = vec(any::<u8>(), 0..50);
        prop_oneof![
            (id.clone(), times, note, rows).prop_map(|(id, (settled, time_ms), note, (conditions, ops))| {
                let settled = OriginCounter(settled);
                EntryBody::Commit(Txn { id, settled, time_ms, note: note.into(), conditions, ops })
            }),
            (id, any::<u64>(), reason()).prop_map(|(id, settled, reason)| {
                EntryBody::Reject { id, settled: OriginCounter(settled), reason }
            }),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        ((0..u64::MAX - 9), any::<u64>(), "[a-z0-9][a-z0-9._-]{0,30}", body()).prop_map(
            |(seq, time_ms, member, body)| Entry {
                seq: Seq(seq),
                time_ms,
                member: MemberName::new(member).expect("a name"),
                body,
            },
        )
    }

    proptest! {
        #[test]
        fn p10_entries_survive_their_frames(entry in entry(), index in any::<u32>(), partial in any::<bool>()) {
            let mut bytes = b"before".to_vec();
            let flags = if partial { flag::PARTIAL } else { 0 };
            let chain = encode_entry(&entry, &CHAIN_START, index, flags, &mut bytes).expect("encodes");
            let frame = Bytes::from(bytes.split_off(6));
            let (header, range) = decode_frame(&frame).expect("decodes");
            prop_assert_eq!((header.seq, header.batch_index, header.flags), (entry.seq, index, flags));
            prop_assert_eq!(header.chain, chain);
            prop_assert_eq!(check_chain(&frame, &CHAIN_START), Ok(chain));
            let payload = frame.slice(range);
            prop_assert_eq!(peek_time(&header, &payload), Some(entry.time_ms));
            prop_assert_eq!(decode_entry(&header, &payload), Ok(entry));
        }

        #[test]
        fn decoders_never_panic(bytes in vec(any::<u8>(), 0..300), kind in 0u8..4) {
            drop(decode_frame(&bytes));
            let mut frame = Vec::new();
            let parts = FrameParts { kind, flags: 0, batch_index: 0, seq: Seq(1) };
            crate::codec::frame::encode_frame(parts, &CHAIN_START, &bytes, &mut frame).expect("encodes");
            let (header, range) = decode_frame(&frame).expect("decodes");
            drop(decode_entry(&header, &Bytes::from(frame).slice(range)));
        }
    }
}
