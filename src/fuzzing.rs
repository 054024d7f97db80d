//! Entry points of the fuzz targets: each feeds arbitrary bytes to one family of decoders and checks what must hold.
//!
//! The same functions run under `cargo fuzz` and, over mutated seeds, in `tests/fuzz_smoke.rs`.

use bytes::Bytes;

use crate::codec::{block, frame, jsonl, message, payload, txn};
use crate::config::syntax;
use crate::log::format;
use crate::trust::Token;

/// One target: a name and what to do with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("record", record),
    ("segment", segment),
    ("wire", wire),
    ("config", config),
    ("token", token),
    ("jsonl", json_lines),
];

/// Frames and payloads; what decodes encodes to something that decodes to the same.
pub fn record(bytes: &[u8]) {
    let Ok((header, range)) = frame::decode_frame(bytes) else { return };
    let body = Bytes::copy_from_slice(&bytes[range]);
    let Ok(entry) = payload::decode_entry(&header, &body) else { return };
    let mut again = Vec::new();
    if payload::encode_entry(&entry, &frame::CHAIN_START, header.batch_index, header.flags, &mut again).is_ok() {
        let (header, range) = frame::decode_frame(&again).expect("invariant: what was encoded decodes");
        let body = Bytes::copy_from_slice(&again[range]);
        assert_eq!(payload::decode_entry(&header, &body).ok(), Some(entry));
    }
}

/// File headers, footers, head slots, and runs of frames.
pub fn segment(bytes: &[u8]) {
    let _ = format::FileHeader::decode(bytes);
    let _ = format::Footer::decode(bytes);
    let _ = format::HeadSlot::decode(bytes);
    let _ = block::decode_block(Bytes::copy_from_slice(bytes), frame::CHAIN_START);
}

/// Messages: the header, then the body as every type that may travel.
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
    let _ = serde_json::from_slice::<crate::codec::admin::Request>(body);
    if let Ok(found) = txn::decode_txn(body) {
        let mut again = Vec::new();
        txn::encode_txn(&found, &mut again);
        assert_eq!(txn::decode_txn(&again).ok(), Some(found));
    }
}

/// `gravwell.conf`.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = syntax::parse(text);
    }
}

/// Join tokens; one that is read prints the same text.
pub fn token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = text.parse::<Token>()
    {
        assert_eq!(token.to_string().parse::<Token>().ok(), Some(token));
    }
}

/// Lines of `import`; what is read prints a line that reads the same.
pub fn json_lines(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok((ops, conditions)) = jsonl::parse_line(text)
    {
        let line = jsonl::txn_line(&ops, &conditions);
        assert_eq!(jsonl::parse_line(&line).ok(), Some((ops, conditions)));
    }
}
