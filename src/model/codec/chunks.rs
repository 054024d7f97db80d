//! Messages of chunk streams.
//!
//! The client sends requests, the server replies in order. The client may send further requests before it has received
//! earlier replies. Received chunks must not be trusted before their hash is compared with their ID.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::message::{BadMessage, HEADER_BYTES, Kind, encode, header};
use crate::ChunkId;

/// Maximum number of IDs in one message.
pub const NAMES_MAX: usize = 8192;
/// Maximum number of chunks requested by one message. They are sent one by one, but each requires a lookup by the server.
pub const WANTED_MAX: usize = 256;
/// Maximum number of bases of a delta.
pub const BASES_MAX: usize = 4;
/// Maximum length of a message body on a chunk stream.
pub const BODY_BYTES_MAX: usize = 512 << 10;

const _: () = assert!(NAMES_MAX * 34 < BODY_BYTES_MAX);

/// Query for missing chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingQuery {
    /// IDs of the chunks.
    pub ids: Vec<ChunkId>,
    /// Whether these are index chunks, so that the chunks that they list are queried as well.
    pub are_indexes: bool,
}

/// Reply to [`MissingQuery`]: the missing chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingChunks {
    /// IDs of the missing chunks.
    pub ids: Vec<ChunkId>,
    /// Whether more chunks are or may be missing: query again when these are present.
    pub more: bool,
}

/// A requested chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestedChunk {
    /// ID of the chunk.
    pub id: ChunkId,
    /// Chunks that the client has, against which the chunk may be sent as a delta.
    pub bases: Vec<ChunkId>,
}

/// Request for chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest {
    /// Whether a caller at the client waits for them.
    pub is_urgent: bool,
    /// The requested chunks.
    pub chunks: Vec<RequestedChunk>,
}

/// Confirmation that all chunks sent before are durable, except those listed: their deltas could not be resolved, so
/// they must be sent in full.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredChunks {
    /// IDs of the chunks to send in full.
    pub refused: Vec<ChunkId>,
}

/// A chunk on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkData {
    /// ID of the chunk.
    pub id: ChunkId,
    /// Bases of the delta in `bytes`; empty if `bytes` is the complete chunk.
    pub bases: Vec<ChunkId>,
    /// Delta, or complete chunk.
    pub bytes: Bytes,
}

const NAME_BYTES: usize = 32;

/// Encodes a message with a chunk: its ID, the number of bases as one byte, their IDs, and the bytes. Returned in two
/// parts, so that the bytes need not be copied.
#[must_use]
pub fn encode_chunk(sent: &ChunkData) -> [Bytes; 2] {
    let names = NAME_BYTES + 1 + sent.bases.len() * NAME_BYTES;
    let mut head = Vec::with_capacity(HEADER_BYTES + names);
    head.extend_from_slice(&header(Kind::Chunk, names + sent.bytes.len()));
    head.extend_from_slice(&sent.id.0);
    head.push(u8::try_from(sent.bases.len()).unwrap_or(u8::MAX));
    sent.bases.iter().for_each(|base| head.extend_from_slice(&base.0));
    [head.into(), sent.bytes.clone()]
}

/// Inverse of [`encode_chunk`] for the body of the message.
///
/// # Errors
/// If the body is too short or has too many bases.
pub fn decode_chunk(body: &Bytes) -> Result<ChunkData, BadMessage> {
    let bad = |reason: &str| BadMessage::Body { kind: Kind::Chunk, reason: reason.into() };
    let name = |at: usize| {
        let bytes = body.get(at..at + NAME_BYTES).and_then(|bytes| <[u8; NAME_BYTES]>::try_from(bytes).ok());
        bytes.map(ChunkId).ok_or_else(|| bad("truncated chunk ID"))
    };
    let id = name(0)?;
    let count = usize::from(*body.get(NAME_BYTES).ok_or_else(|| bad("it ends after the chunk ID"))?);
    if count > BASES_MAX {
        return Err(bad("too many bases"));
    }
    let bases = (0..count).map(|base| name(NAME_BYTES + 1 + base * NAME_BYTES)).collect::<Result<Vec<_>, _>>()?;
    let start = NAME_BYTES + 1 + count * NAME_BYTES;
    Ok(ChunkData { id, bases, bytes: body.slice(start..) })
}

/// Encodes the reply that a requested chunk is missing.
#[must_use]
pub fn encode_absent(id: &ChunkId) -> Vec<u8> {
    encode(Kind::ChunkAbsent, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_survive_the_wire_and_are_bounded() {
        for bases in 0..=BASES_MAX {
            let sent = ChunkData {
                id: ChunkId([7; 32]),
                bases: (0..bases).map(|base| ChunkId([u8::try_from(base).expect("small"); 32])).collect(),
                bytes: Bytes::from_static(b"some bytes"),
            };
            let message = Bytes::from(encode_chunk(&sent).concat());
            let body = message.slice(HEADER_BYTES..);
            assert_eq!(decode_chunk(&body), Ok(sent));
            for cut in 0..=NAME_BYTES + bases * NAME_BYTES {
                assert!(decode_chunk(&body.slice(..cut)).is_err(), "{cut}");
            }
        }
        let mut body = vec![0; 4096];
        body[NAME_BYTES] = u8::try_from(BASES_MAX).expect("small") + 1;
        assert!(decode_chunk(&body.into()).is_err());
    }
}
