//! The record frame: 48 bytes of header around a payload. See `log-format.md`, "Frame".
//!
//! CRC-32Cs cover every byte: that of the header covers bytes 0..44, that of the payload is in the header. The chain
//! links a frame to all frames before it. All functions are total and access only the bytes that they are given.

use std::ops::Range;

use super::error::DecodeError;
use crate::limits::HARD;
use crate::{Chain, Seq};

/// Magic bytes at the start of a frame.
pub const MAGIC: [u8; 4] = *b"GLR1";
/// Version of the frame layout.
pub const FORMAT: u8 = 1;
/// Length of the header, which precedes the payload.
pub const HEADER_BYTES: usize = 48;
/// Maximum length of a payload: a transaction of maximum length and its envelope.
pub const PAYLOAD_BYTES_MAX: usize = HARD.txn_bytes_max + (64 << 10);
/// Additional length allowed for a redacted payload, because the replacement of a value can be longer than the value.
pub const REDACTION_BYTES_MAX: usize = HARD.ops_max * 48;
/// Chain before the first record of a log.
pub const CHAIN_START: Chain = [0; 16];

/// Offset of the magic.
pub const AT_MAGIC: usize = 0;
/// Offset of the format version.
pub const AT_FORMAT: usize = 4;
/// Offset of the kind.
pub const AT_KIND: usize = 5;
/// Offset of the flags.
pub const AT_FLAGS: usize = 6;
/// Offset of the payload length.
pub const AT_LENGTH: usize = 8;
/// Offset of the batch index.
pub const AT_BATCH_INDEX: usize = 12;
/// Offset of the sequence.
pub const AT_SEQ: usize = 16;
/// Offset of the chain.
pub const AT_CHAIN: usize = 24;
/// Offset of the payload checksum.
pub const AT_PAYLOAD_CRC: usize = 40;
/// Offset of the header checksum.
pub const AT_HEADER_CRC: usize = 44;

/// Kinds of records. Values are never reused; 16 and above are reserved for journals.
pub mod kind {
    /// A committed transaction: `CommitV1`.
    pub const COMMIT: u8 = 1;
    /// A rejected transaction: `RejectV1`.
    pub const REJECT: u8 = 2;
    /// Replacement of a commit for a member that may not see some of its values. Never stored in a log.
    pub const REDACTED: u8 = 3;
    /// A record of the audit, which is a separate log: `AuditV1`.
    pub const AUDIT: u8 = 4;
    /// First kind reserved for journals.
    pub const JOURNAL_MIN: u8 = 16;
}

/// Flag bits.
pub mod flag {
    /// Compaction has removed operations from this record.
    pub const PARTIAL: u16 = 1;
    /// All known bits.
    pub const KNOWN: u16 = PARTIAL;
}

/// Decoded header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Kind of the payload, see [`kind`].
    pub kind: u8,
    /// Flags, see [`flag`].
    pub flags: u16,
    /// Length of the payload.
    pub payload_bytes: u32,
    /// Index within the batch that was written and synced together, from 0.
    pub batch_index: u32,
    /// Sequence of the record.
    pub seq: Seq,
    /// Chain after this record.
    pub chain: Chain,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// Returns the length of header and payload.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes as usize
    }

    /// Returns the sequence of the first record in the same batch.
    #[must_use]
    pub fn batch_first(&self) -> Seq {
        Seq(self.seq.0.saturating_sub(u64::from(self.batch_index)))
    }
}

/// Computes the chain after a record from the chain before it, its header and its payload. The batch index is excluded,
/// because the grouping of records for a sync is not part of the history.
#[must_use]
pub fn chain_after(before: &Chain, header: &[u8; HEADER_BYTES], payload: &[u8]) -> Chain {
    let mut prefix = [0; 36];
    prefix[..16].copy_from_slice(before);
    prefix[16..28].copy_from_slice(&header[..AT_BATCH_INDEX]);
    prefix[28..].copy_from_slice(&header[AT_SEQ..AT_CHAIN]);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prefix).update(payload);
    truncate(hasher.finalize().as_bytes())
}

fn truncate(hash: &[u8; 32]) -> Chain {
    let mut chain = [0; 16];
    chain.copy_from_slice(&hash[..16]);
    chain
}

/// Header fields given by the caller.
#[derive(Clone, Copy, Debug)]
pub struct FrameParts {
    /// See [`FrameHeader::kind`].
    pub kind: u8,
    /// See [`FrameHeader::flags`].
    pub flags: u16,
    /// See [`FrameHeader::batch_index`].
    pub batch_index: u32,
    /// See [`FrameHeader::seq`].
    pub seq: Seq,
}

/// Fills in the header of a frame whose payload is already in place: `frame` is [`HEADER_BYTES`] free bytes followed by
/// the payload. Returns the chain after it.
///
/// # Panics
/// If `frame` is shorter than a header, or its payload longer than [`PAYLOAD_BYTES_MAX`]. Callers check both.
pub fn seal_frame(frame: &mut [u8], parts: FrameParts, before: &Chain) -> Chain {
    seal_frame_of(frame, parts, |header, payload| chain_after(before, header, payload))
}

/// Like [`seal_frame`], with a chain from the caller.
pub(super) fn seal_frame_of(
    frame: &mut [u8],
    parts: FrameParts,
    chain: impl FnOnce(&[u8; HEADER_BYTES], &[u8]) -> Chain,
) -> Chain {
    let (head, payload) = frame.split_at_mut(HEADER_BYTES);
    let length = u32::try_from(payload.len()).expect("invariant: payloads are bounded");
    let mut header = [0; HEADER_BYTES];
    header[AT_MAGIC..AT_FORMAT].copy_from_slice(&MAGIC);
    header[AT_FORMAT] = FORMAT;
    header[AT_KIND] = parts.kind;
    header[AT_FLAGS..AT_LENGTH].copy_from_slice(&parts.flags.to_le_bytes());
    header[AT_LENGTH..AT_BATCH_INDEX].copy_from_slice(&length.to_le_bytes());
    header[AT_BATCH_INDEX..AT_SEQ].copy_from_slice(&parts.batch_index.to_le_bytes());
    header[AT_SEQ..AT_CHAIN].copy_from_slice(&parts.seq.0.to_le_bytes());
    let chain = chain(&header, payload);
    header[AT_CHAIN..AT_PAYLOAD_CRC].copy_from_slice(&chain);
    header[AT_PAYLOAD_CRC..AT_HEADER_CRC].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let crc = crc32c::crc32c(&header[..AT_HEADER_CRC]);
    header[AT_HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
    head.copy_from_slice(&header);
    chain
}

/// Appends a frame to `out`; returns the chain after it.
///
/// # Errors
/// If the payload is longer than [`PAYLOAD_BYTES_MAX`].
pub fn encode_frame(
    parts: FrameParts,
    before: &Chain,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<Chain, super::error::EncodeError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        let (found, allowed) = (payload.len(), PAYLOAD_BYTES_MAX);
        return Err(super::error::EncodeError { seq: parts.seq.0, found, allowed });
    }
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    out.extend_from_slice(payload);
    Ok(seal_frame(&mut out[start..], parts, before))
}

/// Reads an array at a fixed offset. Returns zeros if the input ends before (callers check the length first).
pub fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

/// Decodes and verifies a header, without its payload.
///
/// # Errors
/// If the input is too short, the checksum is wrong, or a field is out of range.
pub fn decode_header(bytes: &[u8]) -> Result<FrameHeader, DecodeError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(DecodeError::new("frame header", 0, format_args!("{HEADER_BYTES} bytes"), bytes.len()));
    };
    if header[..AT_FORMAT] != MAGIC {
        let found = format!("{:02x?}", &header[..AT_FORMAT]);
        return Err(DecodeError::new("frame magic", AT_MAGIC, "GLR1", found));
    }
    let stored = u32::from_le_bytes(array_at(header, AT_HEADER_CRC));
    let computed = crc32c::crc32c(&header[..AT_HEADER_CRC]);
    if stored != computed {
        return Err(DecodeError::checksum("frame header checksum", 0, computed, stored));
    }
    if header[AT_FORMAT] != FORMAT {
        return Err(DecodeError::new("frame format", AT_FORMAT, FORMAT, header[AT_FORMAT]));
    }
    let payload_bytes = u32::from_le_bytes(array_at(header, AT_LENGTH));
    let growth = if header[AT_KIND] == kind::REDACTED { REDACTION_BYTES_MAX } else { 0 };
    if payload_bytes as usize > PAYLOAD_BYTES_MAX + growth {
        let expected = format!("at most {}", PAYLOAD_BYTES_MAX + growth);
        return Err(DecodeError::new("payload length", AT_LENGTH, expected, payload_bytes));
    }
    Ok(FrameHeader {
        kind: header[AT_KIND],
        flags: u16::from_le_bytes(array_at(header, AT_FLAGS)),
        payload_bytes,
        batch_index: u32::from_le_bytes(array_at(header, AT_BATCH_INDEX)),
        seq: Seq(u64::from_le_bytes(array_at(header, AT_SEQ))),
        chain: array_at(header, AT_CHAIN),
        payload_crc: u32::from_le_bytes(array_at(header, AT_PAYLOAD_CRC)),
    })
}

/// Decodes and verifies the frame at the start of `bytes`; returns its header and the range of its payload. The chain
/// is not verified, see [`check_chain`].
///
/// # Errors
/// If header or payload are truncated, or do not match their checksums.
pub fn decode_frame(bytes: &[u8]) -> Result<(FrameHeader, Range<usize>), DecodeError> {
    let header = decode_header(bytes)?;
    let range = HEADER_BYTES..header.frame_bytes();
    let Some(payload) = bytes.get(range.clone()) else {
        let expected = format!("{} bytes", header.payload_bytes);
        return Err(DecodeError::new("payload", HEADER_BYTES, expected, bytes.len() - HEADER_BYTES));
    };
    let computed = crc32c::crc32c(payload);
    if computed != header.payload_crc {
        return Err(DecodeError::checksum("payload checksum", HEADER_BYTES, computed, header.payload_crc));
    }
    Ok((header, range))
}

/// Verifies that a frame, already checked by [`decode_frame`], continues a history with the chain `before`.
///
/// # Errors
/// If it does not.
pub fn check_chain(frame: &[u8], before: &Chain) -> Result<Chain, DecodeError> {
    let stored: Chain = array_at(frame, AT_CHAIN);
    let computed = chain_after(before, &array_at(frame, 0), frame.get(HEADER_BYTES..).unwrap_or_default());
    if stored == computed {
        Ok(stored)
    } else {
        let show = |chain: Chain| chain.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Err(DecodeError::new("chain", AT_CHAIN, show(computed), show(stored)))
    }
}
