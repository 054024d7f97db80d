//! Messages of chunk streams.
//!
//! The client asks, the server answers in order; requests may be sent before the answers to earlier ones have come. What
//! arrives is worth nothing before its hash was compared with its name.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::message::{BadMessage, HEADER_BYTES, Kind, encode, header};
use crate::model::ChunkId;

/// Most names in one message.
pub const NAMES_MAX: usize = 8192;
/// Most chunks wanted by one message: they are answered one by one, but each costs the server a look.
pub const WANTED_MAX: usize = 256;
/// Most chunks from which one may be told as the difference.
pub const BASES_MAX: usize = 4;
/// Longest body of a message on a chunk stream.
pub const BODY_BYTES_MAX: usize = 512 << 10;

const _: () = assert!(NAMES_MAX * 34 < BODY_BYTES_MAX);

/// Which of these are missing?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Names.
    pub ids: Vec<ChunkId>,
    /// Whether they are lists of chunks, of which the chunks that they list count, too.
    pub are_indexes: bool,
}

/// What is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// Names.
    pub ids: Vec<ChunkId>,
    /// Whether more is, or may be, missing: ask again when these are there.
    pub more: bool,
}

/// One wanted chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Its name.
    pub id: ChunkId,
    /// Chunks that the client has, from which it may be told as the difference.
    pub bases: Vec<ChunkId>,
}

/// Send these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Somebody waits for them.
    pub is_urgent: bool,
    /// The chunks.
    pub chunks: Vec<Want>,
}

/// Everything sent before is durable, but for these: the difference could not be resolved, so send them whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Names.
    pub refused: Vec<ChunkId>,
}

/// A chunk on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its name.
    pub id: ChunkId,
    /// Whole when empty; otherwise `bytes` are the difference from these.
    pub bases: Vec<ChunkId>,
    /// The bytes.
    pub bytes: Bytes,
}

const NAME_BYTES: usize = 32;

/// A message with a chunk: name, number of bases as one byte, their names, the bytes. It comes in two pieces, so that the
/// bytes need not be copied.
#[must_use]
pub fn encode_chunk(sent: &Sent) -> [Bytes; 2] {
    let names = NAME_BYTES + 1 + sent.bases.len() * NAME_BYTES;
    let mut head = Vec::with_capacity(HEADER_BYTES + names);
    head.extend_from_slice(&header(Kind::Chunk, names + sent.bytes.len()));
    head.extend_from_slice(&sent.id.0);
    head.push(u8::try_from(sent.bases.len()).unwrap_or(u8::MAX));
    sent.bases.iter().for_each(|base| head.extend_from_slice(&base.0));
    [head.into(), sent.bytes.clone()]
}

/// Inverse of [`encode_chunk`], for the body of the message.
///
/// # Errors
/// When the body is too short, or tells of too many bases.
pub fn decode_chunk(body: &Bytes) -> Result<Sent, BadMessage> {
    let bad = |reason: &str| BadMessage::Body { kind: Kind::Chunk, reason: reason.into() };
    let name = |at: usize| {
        let bytes = body.get(at..at + NAME_BYTES).and_then(|bytes| <[u8; NAME_BYTES]>::try_from(bytes).ok());
        bytes.map(ChunkId).ok_or_else(|| bad("a name is cut short"))
    };
    let id = name(0)?;
    let count = usize::from(*body.get(NAME_BYTES).ok_or_else(|| bad("it ends behind the name"))?);
    if count > BASES_MAX {
        return Err(bad("more bases than are allowed"));
    }
    let bases = (0..count).map(|base| name(NAME_BYTES + 1 + base * NAME_BYTES)).collect::<Result<Vec<_>, _>>()?;
    let start = NAME_BYTES + 1 + count * NAME_BYTES;
    Ok(Sent { id, bases, bytes: body.slice(start..) })
}

/// A message that says that a wanted chunk is not there.
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
            let sent = Sent {
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
