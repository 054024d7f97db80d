//! Decoders of the wire protocol, of user input, and of segments.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use gravwell_config::syntax;
use gravwell_log::format;
use gravwell_model::codec::message::Kind;
use gravwell_model::codec::payload::decode_loose_frames;
use gravwell_model::codec::redacted_frame::redact_frames;
use gravwell_model::codec::{admin, block, chunks, deletions, frame, json_lines, message, payload, txn};
use gravwell_model::{ChunkId, Redaction};
use gravwell_transport::trust::{Proof, Roster, Token};

/// Frames and payloads; a decoded entry survives a round trip.
pub fn record(bytes: &[u8]) {
    let Ok((header, range)) = frame::decode_frame(bytes) else { return };
    let body = Bytes::copy_from_slice(&bytes[range]);
    let Ok(entry) = payload::decode_entry(&header, &body) else { return };
    let mut again = Vec::new();
    if payload::encode_entry(&entry, &frame::CHAIN_START, header.batch_index, header.flags, &mut again).is_ok() {
        let (header, range) = frame::decode_frame(&again).expect("invariant: encoded bytes decode");
        let body = Bytes::copy_from_slice(&again[range]);
        assert_eq!(payload::decode_entry(&header, &body).ok(), Some(entry));
    }
}

/// File headers, footers, head slots, and sequences of frames.
pub fn segment(bytes: &[u8]) {
    let _ = format::FileHeader::decode(bytes);
    let _ = format::Footer::decode(bytes);
    let _ = format::HeadSlot::decode(bytes);
    let _ = block::decode_block(Bytes::copy_from_slice(bytes), frame::CHAIN_START, false);
    redacted(Bytes::copy_from_slice(bytes));
}

/// Redacted frames, as sent to readers: none contains a value of a withheld collection.
fn redacted(bytes: Bytes) {
    let _ = block::decode_block(bytes.clone(), frame::CHAIN_START, true);
    let redaction = Redaction::default();
    let Ok(frames) = redact_frames(&redaction, bytes) else { return };
    let Ok(entries) = decode_loose_frames(&frames) else { return };
    assert!(!entries.iter().any(|entry| redaction.concerns(entry)));
}

/// Messages: the header, then the body decoded as every type that may be sent.
pub fn wire(bytes: &[u8]) {
    let Some((header, body)) = bytes.split_first_chunk::<{ message::HEADER_BYTES }>() else { return };
    let Ok((kind, length)) = message::decode_header(*header, message::MESSAGE_BYTES_MAX) else { return };
    let body = &body[..length.min(body.len())];
    let _ = message::decode::<message::Open>(kind, body);
    let _ = message::decode::<message::Hello>(kind, body);
    let _ = message::decode::<message::Welcome>(kind, body);
    let _ = message::decode::<message::Refused>(kind, body);
    let _ = message::decode::<message::Progress>(kind, body);
    let _ = message::decode::<message::Outcome>(kind, body);
    let _ = message::decode::<message::SnapshotBegin>(kind, body);
    let _ = message::decode::<Vec<message::Row>>(kind, body);
    let _ = serde_json::from_slice::<gravwell_model::codec::admin::Request>(body);
    let _ = (txn::decode_head(body), txn::decode_txn_within(body, 3));
    if let Ok(found) = txn::decode_txn(body) {
        let mut again = Vec::new();
        txn::encode_txn(&found, &mut again);
        assert_eq!(txn::decode_txn(&again).ok(), Some(found));
    }
}

/// A stream of messages, each decoded by its kind; decoded messages survive a round trip.
pub fn messages(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_first_chunk::<{ message::HEADER_BYTES }>() {
        let Ok((kind, length)) = message::decode_header(*header, message::MESSAGE_BYTES_MAX) else { return };
        let Some((body, after)) = after.split_at_checked(length) else { return };
        rest = after;
        match kind {
            Kind::Open => again::<message::Open>(kind, body),
            Kind::Hello => again::<message::Hello>(kind, body),
            Kind::Welcome => again::<message::Welcome>(kind, body),
            Kind::Refused => again::<message::Refused>(kind, body),
            Kind::Subscribe => again::<message::Subscribe>(kind, body),
            Kind::Progress => again::<message::Progress>(kind, body),
            Kind::Heartbeat => again::<message::Heartbeat>(kind, body),
            Kind::Compacted => again::<message::Compacted>(kind, body),
            Kind::Frames => drop(block::decode_block(Bytes::copy_from_slice(body), frame::CHAIN_START, true)),
            Kind::Bookmark => again::<message::Bookmark>(kind, body),
            Kind::Push | Kind::PushLostBlobs => drop(txn::decode_txn(body)),
            Kind::ChunksQuery => again::<chunks::MissingQuery>(kind, body),
            Kind::ChunksMissing => again::<chunks::MissingChunks>(kind, body),
            Kind::ChunksRequest => again::<chunks::ChunkRequest>(kind, body),
            Kind::Chunk => chunk(body),
            Kind::ChunkAbsent => again::<ChunkId>(kind, body),
            Kind::ChunksSent => again::<()>(kind, body),
            Kind::ChunksStored => again::<chunks::StoredChunks>(kind, body),
            Kind::Outcome => again::<message::Outcome>(kind, body),
            Kind::SnapshotBegin => again::<message::SnapshotBegin>(kind, body),
            Kind::Rows => again::<Vec<message::Row>>(kind, body),
            Kind::SnapshotEnd => again::<message::SnapshotEnd>(kind, body),
            Kind::Deletions => deleted(body),
            Kind::AdminRequest => admin(body),
            Kind::Announce => again::<message::Announce>(kind, body),
            Kind::Roster => roster(body),
            Kind::Proof => proof(body),
            Kind::Revocations => again::<message::Revocations>(kind, body),
            Kind::Renew | Kind::Renewed | Kind::AdminItem | Kind::AdminEnd | Kind::AdminError => {}
        }
    }
}

/// A signed position; the signature is not verified.
fn proof(body: &[u8]) {
    if let Ok(found) = Proof::from_bytes(body) {
        assert_eq!(Proof::from_bytes(found.to_text().as_bytes()), Ok(found));
    }
}

fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(kind: Kind, body: &[u8]) {
    let Ok(first) = message::decode::<T>(kind, body) else { return };
    let encoded = message::encode(kind, &first);
    assert_eq!(message::decode::<T>(kind, &encoded[message::HEADER_BYTES..]).as_ref(), Ok(&first));
}

/// Recent deletions; they survive a round trip.
fn deleted(bytes: &[u8]) {
    if let Ok(found) = deletions::decode(bytes) {
        assert_eq!(deletions::decode(&deletions::encode(&found)), Ok(found));
    }
}

/// Chunks on the wire; a decoded chunk encodes to the same bytes.
fn chunk(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(bytes);
    if let Ok(sent) = chunks::decode_chunk(&body) {
        assert_eq!(chunks::encode_chunk(&sent).concat()[message::HEADER_BYTES..], body);
    }
}

/// Membership lists; they survive a round trip.
pub fn roster(bytes: &[u8]) {
    if let Ok(roster) = Roster::decode(bytes) {
        assert_eq!(Roster::decode(&roster.encode()).as_ref(), Ok(&roster));
    }
}

/// Administration requests and replies; they survive a round trip.
pub fn admin(bytes: &[u8]) {
    fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
        let Ok(first) = serde_json::from_slice::<T>(bytes) else { return };
        let written = serde_json::to_vec(&first).expect("invariant: a decoded value encodes");
        assert_eq!(serde_json::from_slice::<T>(&written).ok(), Some(first));
    }
    again::<admin::Request>(bytes);
    again::<admin::Status>(bytes);
    again::<admin::MemberInfo>(bytes);
    again::<admin::PresenceInfo>(bytes);
    again::<admin::BackendInfo>(bytes);
    again::<admin::VerifyReport>(bytes);
    again::<admin::CompactReport>(bytes);
    again::<admin::OutboxItem>(bytes);
    again::<admin::AdminError>(bytes);
}

/// Text of `gravwell.conf`.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = syntax::parse(text);
    }
}

/// Join tokens; they survive a round trip through text.
pub fn token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = text.parse::<Token>()
    {
        assert_eq!(token.to_string().parse::<Token>().ok(), Some(token));
    }
}

/// Lines of `import`; they survive a round trip.
pub fn json_lines(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok((ops, conditions)) = json_lines::parse_line(text)
    {
        let line = json_lines::txn_line(&ops, &conditions);
        assert_eq!(json_lines::parse_line(&line).ok(), Some((ops, conditions)));
    }
}
