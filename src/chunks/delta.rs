//! Encoding of a chunk as the difference from chunks that the receiver has. Used only on the wire, never on disk.
//!
//! The bases are concatenated and used as the reference prefix of Zstandard: a chunk of 64 KiB in which a few rows changed
//! shrinks to some hundred bytes. Decoded bytes are bounded, and must not be trusted before their hash is verified.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter};

use super::chunking::CHUNK_BYTES_MAX;
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::array_at;

/// Maximum number of bases of one delta.
pub const BASES_MAX: usize = 4;
/// Version of the layout.
pub const DELTA_FORMAT: u8 = 1;
/// Bytes before the compressed data: version, three zeros, raw length.
pub const DELTA_HEADER_BYTES: usize = 8;

/// Finds matches in prefixes of this size at a few hundred megabytes per second. Higher levels gain little on rows.
const LEVEL: i32 = 3;
/// Window that covers the longest prefix and the chunk.
const WINDOW_LOG: u32 = 21;

const _: () = assert!((BASES_MAX + 1) * CHUNK_BYTES_MAX <= 1 << WINDOW_LOG);

/// Encodes `raw` against the chunks in `base`. Returns `None` if the delta would not be at least an eighth shorter than
/// the chunk, or if there are too many or too long bases.
#[must_use]
pub fn encode(raw: &[u8], base: &[&[u8]]) -> Option<Vec<u8>> {
    if base.is_empty() || base.len() > BASES_MAX || base.iter().any(|base| base.len() > CHUNK_BYTES_MAX) {
        return None;
    }
    let length = u32::try_from(raw.len()).ok().filter(|length| *length as usize <= CHUNK_BYTES_MAX)?;
    let prefix = base.concat();
    // The context borrows the prefix for its lifetime, so each chunk needs its own context.
    let mut context = CCtx::try_create()?;
    context.set_parameter(CParameter::CompressionLevel(LEVEL)).ok()?;
    context.set_parameter(CParameter::WindowLog(WINDOW_LOG)).ok()?;
    context.set_parameter(CParameter::ChecksumFlag(false)).ok()?;
    context.ref_prefix(&prefix).ok()?;
    let mut delta = vec![0; raw.len() - raw.len() / 8];
    let room = delta.get_mut(DELTA_HEADER_BYTES..)?;
    // Compression fails if the buffer is too small, that is, if too little would be saved.
    let bytes = context.compress2(room, raw).ok()?;
    delta[0] = DELTA_FORMAT;
    delta[4..8].copy_from_slice(&length.to_le_bytes());
    delta.truncate(DELTA_HEADER_BYTES + bytes);
    Some(delta)
}

/// Inverse of [`encode`], given the same bases in the same order. The sender controls the result, so the caller must
/// verify its hash.
///
/// # Errors
/// If the bytes are not a delta, or decode to more than `raw_len_max` bytes.
pub fn decode(delta: &[u8], base: &[&[u8]], raw_len_max: usize) -> Result<Vec<u8>, DecodeError> {
    let wrong = |what, offset, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Err(DecodeError::new(what, offset, expected, found))
    };
    if delta.len() < DELTA_HEADER_BYTES || delta[..4] != [DELTA_FORMAT, 0, 0, 0] {
        let found = format!("{:02x?}", &delta[..delta.len().min(4)]);
        return wrong("header of a delta", 0, &"version 1 and zeros", &found);
    }
    if base.len() > BASES_MAX || base.iter().any(|base| base.len() > CHUNK_BYTES_MAX) {
        return wrong("number of bases of a delta", 0, &format_args!("at most {BASES_MAX} chunks"), &base.len());
    }
    let length = u32::from_le_bytes(array_at(delta, 4)) as usize;
    let allowed = raw_len_max.min(CHUNK_BYTES_MAX);
    if length > allowed {
        return wrong("length of a chunk", 4, &format_args!("at most {allowed}"), &length);
    }
    let prefix = base.concat();
    let Some(mut context) = DCtx::try_create() else {
        return wrong("decoder", 0, &"enough memory", &"none");
    };
    let prepared =
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).and_then(|_| context.ref_prefix(&prefix));
    let mut raw = vec![0; length];
    let decoded = prepared.and_then(|_| context.decompress(&mut raw[..], &delta[DELTA_HEADER_BYTES..]));
    match decoded {
        Ok(bytes) if bytes == length => Ok(raw),
        Ok(bytes) => wrong("length of a decoded delta", DELTA_HEADER_BYTES, &length, &bytes),
        Err(code) => {
            let found = zstd::zstd_safe::get_error_name(code);
            wrong("compressed part of a delta", DELTA_HEADER_BYTES, &"a Zstandard frame", &found)
        }
    }
}
