//! Chunk lists of blobs, themselves stored as chunks, so that the entry of a blob in the log is small at any size.
//!
//! A blob is a list of [`Part`]s. The list is split into *index chunks* of at most [`PARTS_MAX`] parts each, which are
//! stored and sent like any other chunk. An object in the log holds the IDs of the index chunks.

use gravwell_model::ChunkId;
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::array_at;

use super::chunking::CHUNK_BYTES_MAX;

/// Magic bytes at the start of an index chunk.
pub const INDEX_MAGIC: [u8; 4] = *b"GCI1";
/// Version of the layout.
pub const INDEX_FORMAT: u8 = 1;
/// Length of the header, which precedes the parts.
pub const INDEX_HEADER_BYTES: usize = 12;
/// Length of one part.
pub const PART_BYTES: usize = 36;
/// Maximum number of parts of one index chunk: about 256 MiB of a blob, in a chunk of 144 KiB.
pub const PARTS_MAX: usize = 4096;

const _: () = assert!(INDEX_HEADER_BYTES + PARTS_MAX * PART_BYTES <= CHUNK_BYTES_MAX);

/// One chunk of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// ID of the chunk.
    pub id: ChunkId,
    /// Its raw length in bytes, from 1 to [`CHUNK_BYTES_MAX`].
    pub bytes: u32,
}

/// Encodes an index chunk. Callers split lists before: at most [`PARTS_MAX`] parts are allowed.
#[must_use]
pub fn encode_index(parts: &[Part]) -> Vec<u8> {
    debug_assert!(parts.len() <= PARTS_MAX, "invariant: callers split lists");
    let mut bytes = Vec::with_capacity(INDEX_HEADER_BYTES + parts.len() * PART_BYTES);
    bytes.extend_from_slice(&INDEX_MAGIC);
    bytes.extend_from_slice(&[INDEX_FORMAT, 0, 0, 0]);
    bytes.extend_from_slice(&u32::try_from(parts.len()).unwrap_or(u32::MAX).to_le_bytes());
    for part in parts {
        bytes.extend_from_slice(&part.id.0);
        bytes.extend_from_slice(&part.bytes.to_le_bytes());
    }
    bytes
}

/// Inverse of [`encode_index`].
///
/// # Errors
/// If the bytes are not exactly one index chunk of a known version within its limits.
pub fn decode_index(bytes: &[u8]) -> Result<Vec<Part>, DecodeError> {
    let wrong = |what, offset, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Err(DecodeError::new(what, offset, expected, found))
    };
    if bytes.len() < INDEX_HEADER_BYTES {
        return wrong("index chunk", 0, &format_args!("at least {INDEX_HEADER_BYTES} bytes"), &bytes.len());
    }
    if bytes[..4] != INDEX_MAGIC {
        return wrong("magic of an index chunk", 0, &"GCI1", &format_args!("{:02x?}", &bytes[..4]));
    }
    if bytes[4] != INDEX_FORMAT {
        return wrong("format of an index chunk", 4, &INDEX_FORMAT, &bytes[4]);
    }
    if bytes[5..8] != [0; 3] {
        return wrong("reserved bytes of an index chunk", 5, &"zeros", &format_args!("{:02x?}", &bytes[5..8]));
    }
    let count = u32::from_le_bytes(array_at(bytes, 8)) as usize;
    if count > PARTS_MAX {
        return wrong("number of parts", 8, &format_args!("at most {PARTS_MAX}"), &count);
    }
    let body = &bytes[INDEX_HEADER_BYTES..];
    if body.len() != count * PART_BYTES {
        let expected = INDEX_HEADER_BYTES + count * PART_BYTES;
        return wrong("length of an index chunk", 0, &expected, &bytes.len());
    }
    let mut parts = Vec::with_capacity(count);
    for (part, number) in body.chunks_exact(PART_BYTES).zip(0..) {
        let bytes = u32::from_le_bytes(array_at(part, 32));
        if bytes == 0 || bytes as usize > CHUNK_BYTES_MAX {
            let offset = INDEX_HEADER_BYTES + number * PART_BYTES + 32;
            return wrong("length of a part", offset, &format_args!("1 to {CHUNK_BYTES_MAX}"), &bytes);
        }
        parts.push(Part { id: ChunkId(array_at(part, 0)), bytes });
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(count: usize) -> Vec<Part> {
        (0..count).map(|n| Part { id: ChunkId::of(&n.to_le_bytes()), bytes: 1 + n as u32 }).collect()
    }

    #[test]
    fn lists_survive_bytes() {
        for count in [0, 1, 2, 100, PARTS_MAX] {
            let bytes = encode_index(&parts(count));
            assert!(bytes.len() <= CHUNK_BYTES_MAX);
            assert_eq!(decode_index(&bytes), Ok(parts(count)));
        }
    }

    #[test]
    fn a_malformed_chunk_list_is_rejected() {
        let good = encode_index(&parts(3));
        for cut in 0..good.len() {
            assert!(decode_index(&good[..cut]).is_err(), "{cut}");
        }
        assert!(decode_index(&[&good[..], &[0]].concat()).is_err(), "trailing byte");
        for at in 0..INDEX_HEADER_BYTES {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode_index(&bad).is_err(), "header byte {at}");
        }
        for bytes in [0, CHUNK_BYTES_MAX as u32 + 1] {
            let bad = encode_index(&[Part { id: ChunkId::of(b""), bytes }]);
            let error = decode_index(&bad).expect_err("out of bounds").to_string();
            assert!(error.contains("length of a part"), "{error}");
        }
    }
}
