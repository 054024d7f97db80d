//! Frames for members that may not see all values, see [`crate::redaction`].
//!
//! A redacted frame replaces the frame of a commit that is sent to such a member. It has the chain of the original
//! frame, which cannot be computed from the remaining data. The member relies on the datastore for it. The digest at
//! the next bookmark shows whether the withheld values are those in the log. Redacted frames are never stored in a log.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::DecodeError;
use super::frame::{FrameHeader, FrameParts, HEADER_BYTES, decode_frame, kind, seal_frame_of};
use super::payload::{CommitV1, decode_body, decode_entry};
use crate::fault_injection::{self, Bug};
use crate::{Chain, Entry, EntryBody, Redaction, Txn, Withheld};

#[derive(Serialize, Deserialize)]
struct RedactedV1<'a> {
    #[serde(borrow)]
    commit: CommitV1<'a>,
    withheld: Cow<'a, [Withheld]>,
}

/// Appends the payload of a redacted entry to `out`.
pub(super) fn encode_payload(
    entry: &Entry,
    txn: &Txn,
    withheld: &[Withheld],
    out: Vec<u8>,
) -> postcard::Result<Vec<u8>> {
    postcard::to_extend(&RedactedV1 { commit: CommitV1::of(entry, txn), withheld: Cow::Borrowed(withheld) }, out)
}

/// Like [`decode_entry`], but accepts redacted frames.
///
/// # Errors
/// If the payload does not match its kind.
pub fn decode_sent(header: &FrameHeader, payload: &Bytes) -> Result<Entry, DecodeError> {
    if header.kind != kind::REDACTED {
        return decode_entry(header, payload);
    }
    let what = "redacted payload";
    let RedactedV1 { commit, withheld } = decode_body(what, payload)?;
    let (count, withheld) = (withheld.len(), withheld.into_owned());
    commit.into_entry(what, header.seq, count, |txn| EntryBody::Redacted { txn, withheld })
}

/// Returns complete frames of the log for a recipient, redacted if `redaction` is given.
///
/// # Errors
/// If a frame is corrupt.
pub fn frames_for(redaction: Option<&Redaction>, frames: Bytes) -> Result<Bytes, DecodeError> {
    match redaction {
        Some(redaction) => redact_frames(redaction, frames),
        None => Ok(frames),
    }
}

/// Returns complete frames for a member from which `redaction` withholds values.
///
/// # Errors
/// If a frame is corrupt.
pub fn redact_frames(redaction: &Redaction, frames: Bytes) -> Result<Bytes, DecodeError> {
    if fault_injection::is(Bug::TailNotRedacted) {
        return Ok(frames);
    }
    let (mut out, mut copied, mut at) = (Vec::new(), 0, 0);
    while at < frames.len() {
        let rest = frames.slice(at..);
        let (header, payload) = decode_frame(&rest)?;
        let end = at + payload.end;
        let entry = decode_entry(&header, &rest.slice(payload))?;
        if redaction.concerns(&entry) {
            out.extend_from_slice(&frames[copied..at]);
            append(&redaction.redact(entry), &header, &mut out);
            copied = end;
        }
        at = end;
    }
    if copied == 0 {
        return Ok(frames);
    }
    out.extend_from_slice(&frames[copied..]);
    Ok(out.into())
}

/// Appends the frame of a redacted entry, which replaces the one with `header`.
fn append(entry: &Entry, header: &FrameHeader, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    super::payload::encode_payload(entry, out);
    let parts =
        FrameParts { kind: kind::REDACTED, flags: header.flags, batch_index: header.batch_index, seq: header.seq };
    seal_frame_of(&mut out[start..], parts, |_, _| header.chain);
}

/// Returns the chain of a frame that replaces another one; `None` for other kinds.
pub(super) fn chain_of(header: &FrameHeader) -> Option<Chain> {
    (header.kind == kind::REDACTED).then_some(header.chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::block::decode_block;
    use crate::codec::frame::CHAIN_START;
    use crate::codec::payload::encode_entry;
    use crate::{Collection, Key, MemberName, Op, Origin, OriginCounter, Seq, TxnId};

    fn entry(seq: u64, collection: &str, value: &'static [u8]) -> Entry {
        let (collection, key) = (Collection::new(collection).expect("name"), Key::new("k").expect("key"));
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(seq) };
        let ops = vec![Op::Put { collection, key, value: Bytes::from_static(value) }];
        let txn = Txn { id, settled: OriginCounter(0), time_ms: 5, note: "who".into(), conditions: vec![], ops };
        let member = MemberName::new("m").expect("name");
        Entry { seq: Seq(seq), time_ms: 9, member, body: EntryBody::Commit(txn) }
    }

    #[test]
    fn p11_a_redacted_block_has_the_chain_of_the_whole_one_and_no_hidden_value() {
        let entries =
            [entry(1, "passwords", b"opens it"), entry(2, "users", b"seen"), entry(3, "passwords", b"opens more")];
        let (mut frames, mut chain) = (Vec::new(), CHAIN_START);
        let mut chains = Vec::new();
        for entry in &entries {
            chain = encode_entry(entry, &chain, 0, 0, &mut frames).expect("encodes");
            chains.push(chain);
        }
        let redaction = Redaction::default();
        let sent = redact_frames(&redaction, frames.into()).expect("redacts");
        assert!(!sent.windows(5).any(|bytes| bytes == b"opens"));
        let got = decode_block(sent.clone(), CHAIN_START, true).expect("decodes");
        assert_eq!(got.iter().map(|(_, chain)| *chain).collect::<Vec<_>>(), chains);
        let expected = entries.map(|entry| redaction.redact(entry));
        assert_eq!(got.into_iter().map(|(entry, _)| entry).collect::<Vec<_>>(), expected);
        // A member that may see all values rejects redacted frames.
        assert!(decode_block(sent, CHAIN_START, false).is_err());
    }

    #[test]
    fn p11_nothing_is_copied_where_nothing_is_hidden() {
        let mut frames = Vec::new();
        encode_entry(&entry(1, "users", b"seen"), &CHAIN_START, 0, 0, &mut frames).expect("encodes");
        let frames = Bytes::from(frames);
        let sent = redact_frames(&Redaction::default(), frames.clone()).expect("redacts");
        assert_eq!(sent.as_ptr(), frames.as_ptr());
    }
}
