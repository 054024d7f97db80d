//! Why bytes are not what they should be.

use std::fmt;

/// Bytes that do not decode: what was read, where, what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}: expected {expected}, found {found}")]
pub struct DecodeError {
    /// The field or structure.
    pub what: &'static str,
    /// Offset within the decoded bytes.
    pub offset: usize,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl DecodeError {
    /// Makes one.
    pub fn new(what: &'static str, offset: usize, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        DecodeError { what, offset, expected: expected.to_string(), found: found.to_string() }
    }

    /// A checksum that does not match; `offset` is where the bytes under it begin.
    #[must_use]
    pub fn checksum(what: &'static str, offset: usize, computed: u32, stored: u32) -> Self {
        DecodeError::new(what, offset, format_args!("{computed:08x}"), format_args!("{stored:08x}"))
    }
}

/// An entry that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {seq} would have a payload of {found} bytes; a frame holds at most {allowed}")]
pub struct EncodeError {
    /// Sequence of the entry.
    pub seq: u64,
    /// Its payload.
    pub found: usize,
    /// Greatest payload.
    pub allowed: usize,
}
