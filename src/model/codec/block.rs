//! Blocks: consecutive log frames as sent to subscribers.

use bytes::Bytes;

use super::error::DecodeError;
use super::frame::{check_chain, decode_frame, decode_header};
use super::payload::decode_entry;
use super::redacted_frame::{self, decode_sent};
use crate::{Chain, Entry};

/// A block that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("byte {at} of a block: {error}")]
pub struct BadBlock {
    at: usize,
    error: DecodeError,
}

/// Decodes the frames of a block, each with the chain after it. Verifies checksums, and the chain from `chain` on.
/// Redacted frames are accepted only if `is_redacted` is set.
///
/// # Errors
/// If a frame is corrupt or does not continue the chain.
pub fn decode_block(block: Bytes, mut chain: Chain, is_redacted: bool) -> Result<Vec<(Entry, Chain)>, BadBlock> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let bad = |error| BadBlock { at, error };
        let rest = block.slice(at..);
        let (header, payload) = decode_frame(&rest).map_err(bad)?;
        let frame = rest.slice(..payload.end);
        let stood_for = redacted_frame::chain_of(&header).filter(|_| is_redacted);
        chain = stood_for.map_or_else(|| check_chain(&frame, &chain), Ok).map_err(bad)?;
        let payload = frame.slice(payload);
        let entry = if is_redacted { decode_sent(&header, &payload) } else { decode_entry(&header, &payload) };
        let entry = entry.map_err(bad)?;
        at += frame.len();
        entries.push((entry, chain));
    }
    Ok(entries)
}

/// Splits a block into blocks of at most `bytes_max` bytes. A frame that is longer becomes a block.
///
/// # Errors
/// If a header is corrupt.
pub fn split(mut block: Bytes, bytes_max: usize) -> Result<Vec<Bytes>, DecodeError> {
    let mut parts = Vec::new();
    while block.len() > bytes_max {
        let mut end = 0;
        while end < block.len() {
            let next = end + decode_header(&block[end..])?.frame_bytes();
            if end > 0 && next > bytes_max {
                break;
            }
            end = next.min(block.len());
        }
        parts.push(block.split_to(end));
    }
    parts.extend(Some(block).filter(|rest| !rest.is_empty()));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seq;
    use crate::codec::frame::{CHAIN_START, FrameParts, HEADER_BYTES, encode_frame, kind};

    #[test]
    fn a_block_is_cut_between_frames_and_nothing_is_lost() {
        let (mut block, mut chain) = (Vec::new(), CHAIN_START);
        for (length, seq) in [10, 10, 500, 10, 10].into_iter().zip(1..) {
            let parts = FrameParts { kind: kind::COMMIT, flags: 0, batch_index: 0, seq: Seq(seq) };
            chain = encode_frame(parts, &chain, &vec![0; length], &mut block).expect("encodes");
        }
        let (block, small) = (Bytes::from(block), HEADER_BYTES + 10);
        for bytes_max in 0..block.len() + 2 {
            let parts = split(block.clone(), bytes_max).expect("is truncated");
            assert_eq!(parts.concat(), block);
            let is_frame = |part: &Bytes| part.len() == small || part.len() == HEADER_BYTES + 500;
            assert!(parts.iter().all(|part| part.len() <= bytes_max || is_frame(part)), "{bytes_max}");
        }
        let lengths = |bytes_max| {
            split(block.clone(), bytes_max).expect("is truncated").iter().map(Bytes::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(2 * small), [2 * small, HEADER_BYTES + 500, 2 * small]);
        assert_eq!(lengths(block.len()), [block.len()]);
        assert!(split(block.slice(1..), 0).is_err());
        assert_eq!(split(Bytes::new(), 0), Ok(vec![]));
    }
}
