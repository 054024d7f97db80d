//! A block: consecutive log frames as they travel to subscribers.

use bytes::Bytes;

use super::error::DecodeError;
use super::frame::{check_chain, decode_frame};
use super::payload::decode_entry;
use super::redacted::{self, decode_sent};
use crate::model::{Chain, Entry};

/// Why a block does not decode.
#[derive(Debug, thiserror::Error)]
#[error("at byte {at} of a block: {error}")]
pub struct BadBlock {
    at: usize,
    error: DecodeError,
}

/// Decodes the frames of a block, each with the chain after it, checking checksums and the chain from `chain` on. Redacted
/// frames are taken only where values are withheld.
///
/// # Errors
/// At the first frame that is damaged, or whose chain does not follow from the one before.
pub fn decode_block(block: Bytes, mut chain: Chain, is_redacted: bool) -> Result<Vec<(Entry, Chain)>, BadBlock> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let bad = |error| BadBlock { at, error };
        let rest = block.slice(at..);
        let (header, payload) = decode_frame(&rest).map_err(bad)?;
        let frame = rest.slice(..payload.end);
        let stood_for = redacted::chain_of(&header).filter(|_| is_redacted);
        chain = stood_for.map_or_else(|| check_chain(&frame, &chain), Ok).map_err(bad)?;
        let payload = frame.slice(payload);
        let entry = if is_redacted { decode_sent(&header, &payload) } else { decode_entry(&header, &payload) };
        let entry = entry.map_err(bad)?;
        at += frame.len();
        entries.push((entry, chain));
    }
    Ok(entries)
}
